from __future__ import annotations

import pytest

from evitseg.architecture import (
    BACKBONES,
    CLASSIFICATION_HEADS,
    SEGMENTATION_HEADS,
    Backbone,
    ClassificationHead,
    ModelConfig,
    SegmentationHead,
    cost,
    model_config,
    published_start,
)
from evitseg.errors import ConfigError
from tests.optional import needs

ALL = {
    **{name: ModelConfig(BACKBONES[name.split("-")[0]], head) for name, head in SEGMENTATION_HEADS.items()},
    **{f"{name} classifier": ModelConfig(BACKBONES[name], head) for name, head in CLASSIFICATION_HEADS.items()},
    "b0 for 150 classes": model_config("b0", 150),
    "b0-relu": model_config("b0-relu", 19),
    "l0": model_config("l0", 19),
    "l3": model_config("l3", 19),
}


# Table 4 of arXiv:2205.14756: millions of parameters, and 10⁹ multiply-adds at 1024×2048.
@pytest.mark.parametrize(
    ("name", "parameters", "macs"),
    [("b0", 0.7, 4.4), ("b1", 4.8, 25), ("b2", 15, 74), ("b3", 40, 179), ("l1", 40, 282), ("l2", 53, 396)],
)
def test_parameters_and_macs_are_the_published_ones(name: str, parameters: float, macs: float) -> None:
    counted = cost(ALL[f"{name}-cityscapes"])
    digits = 1 if parameters < 10 else 0
    assert round(counted.parameters / 1e6, digits) == parameters
    assert round(counted.macs(1024, 2048) / 1e9, 1 if macs < 10 else 0) == macs


@pytest.mark.parametrize("name", ALL)
def test_the_count_is_that_of_the_network(name: str) -> None:
    needs("torch")
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from evitseg.model.network import EfficientViT

    config = ALL[name]
    with torch.device("meta"):
        model = EfficientViT(config).eval()
        counted = cost(config)
        assert sum(p.numel() for p in model.parameters()) == counted.parameters
        with FlopCounterMode(display=False) as flops:
            model(torch.empty(1, 3, 128, 192))
    macs = flops.get_total_flops() / 2
    if isinstance(config.head, ClassificationHead):  # the part after the average is not counted per pixel
        hidden, features = config.head.widths
        macs -= hidden * features + features * config.head.num_classes
    assert macs == pytest.approx(counted.macs(128, 192), rel=1e-12)


def test_b0_relu_is_b0_with_relu_before_attention_begins() -> None:
    """Its published start is b0's, which has the same weights."""
    needs("torch")
    from torch import nn

    from evitseg.model.network import EfficientViT

    relu, b0 = (EfficientViT(model_config(name, 3)) for name in ("b0-relu", "b0"))
    found: dict[str, set[type]] = {}
    for name, module in relu.named_modules():
        if isinstance(module, nn.ReLU | nn.Hardswish):
            found.setdefault(".".join(name.split(".")[: 3 if "stages" in name else 2]), set()).add(type(module))
    early = {"backbone.stem", "backbone.stages.0", "backbone.stages.1"}
    assert {name for name, kinds in found.items() if kinds == {nn.ReLU}} == early
    assert {name for name, kinds in found.items() if kinds == {nn.Hardswish}} == found.keys() - early
    shapes = [{key: value.shape for key, value in network.state_dict().items()} for network in (relu, b0)]
    assert shapes[0] == shapes[1]
    starts = {name: published_start(name) for name in BACKBONES}
    assert starts["b0-relu"] == starts["b0"] == "b0-cityscapes"
    assert {name for name, start in starts.items() if start is None} == {"l0", "l3"}


def test_a_misspelt_variant_is_an_error_that_names_near_ones() -> None:
    with pytest.raises(ConfigError, match="unknown variant 'b7'; did you mean 'b"):
        model_config("b7", 4)


def test_any_backbone_goes_with_any_head() -> None:
    needs("torch")
    import torch

    from evitseg.model.network import EfficientViTBackbone, SegmentationNetworkHead

    with torch.device("meta"):
        for backbone in BACKBONES:
            features = EfficientViTBackbone(BACKBONES[backbone])(torch.empty(1, 3, 64, 96))
            for head in ("b0-cityscapes", "b1-ade20k", "l1-cityscapes", "l2-ade20k"):
                config = model_config(backbone, 5, head)
                assert isinstance(config.head, SegmentationHead)
                assert SegmentationNetworkHead(config.head, config.backbone)(features).shape == (1, 5, 8, 12)


def test_numbers_that_cannot_work_are_refused() -> None:
    b0 = BACKBONES["b0"]
    with pytest.raises(ConfigError, match="odd"):
        Backbone(b0.stem_width, b0.stem_depth, b0.stem_kind, b0.stages, b0.head_dim, attention_kernels=(4,))
    with pytest.raises(ConfigError, match="multiple of head_dim"):
        Backbone(b0.stem_width, b0.stem_depth, b0.stem_kind, b0.stages, head_dim=48)
    with pytest.raises(ConfigError, match="num_classes is 0"):
        model_config("b0", 0)
