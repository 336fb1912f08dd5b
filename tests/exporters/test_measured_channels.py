from __future__ import annotations

import pytest

from tests.optional import needs

needs("torch", "onnx")

import torch

from evitseg.architecture import EARLY, model_config
from evitseg.exporters.measured_channels import with_measured_channel_factors
from evitseg.exporters.verify import example_images
from evitseg.model.fold import convolutions, folded, with_folded_norms
from evitseg.model.layers import ConvNormAct
from evitseg.model.network import EfficientViT, NormalizedModel
from evitseg.preprocess import Preprocess
from tests.networks import lively

SMALL = Preprocess(fixed=(64, 96))


@pytest.fixture(scope="module")
def uneven() -> EfficientViT:
    """A network with ReLU whose expanded channels differ by orders of magnitude."""
    model = lively(EfficientViT(model_config("b0-relu", 4)))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, module in convolutions(model).items():
            if name.startswith(("backbone.stages.0", "backbone.stages.1")) and name.endswith("expand"):
                factors = torch.exp2(torch.rand(module.norm.num_features, generator=generator) * 12 - 6)
                module.norm.weight.mul_(factors)
                module.norm.bias.mul_(factors)
    return model


def sizes(model: EfficientViT, pixels: torch.Tensor) -> dict[str, torch.Tensor]:
    """The largest number of each channel after ReLU, by convolution."""
    found = {}
    for name, module in convolutions(model).items():
        if isinstance(getattr(module, "act", None), torch.nn.ReLU):
            module.register_forward_hook(lambda _, given, y, name=name: found.update({name: y.amax((0, 2, 3))}))
    with torch.inference_mode():
        NormalizedModel(model, SMALL)(pixels)
    return found


def test_factors_make_channels_alike_and_keep_every_bit(uneven: EfficientViT) -> None:
    pixels = torch.from_numpy(SMALL.apply(example_images()[0]).copy())[None]
    model = with_measured_channel_factors(uneven, SMALL, example_images()[:1])
    with torch.inference_mode():
        before, after = (NormalizedModel(net, SMALL)(pixels) for net in (with_folded_norms(uneven), model))
    assert torch.equal(before, after)
    old, new = sizes(with_folded_norms(uneven), pixels), sizes(model, pixels)
    assert {name.split(".")[1] for name in old} == {"stem", "stages"}
    for name in old:
        if name.endswith("expand"):
            seen = old[name] > 0
            assert old[name][seen].max() / old[name][seen].min() > 100
            assert new[name][seen].max() / new[name][seen].min() < 2.01, name  # powers of two


def test_only_channels_between_relu_and_one_convolution_are_scaled(uneven: EfficientViT) -> None:
    """The first convolution's channels are also added to those of the block after it."""
    model = with_measured_channel_factors(uneven, SMALL, example_images()[:1])
    before, after = convolutions(with_folded_norms(uneven)), convolutions(model)

    def weights(module: ConvNormAct) -> torch.Tensor:
        return torch.from_numpy(folded(module)[0])

    changed = {name for name in before if not torch.equal(weights(before[name]), weights(after[name]))}
    assert "backbone.stem.0.conv" not in changed
    assert {".".join(name.split(".")[1:3]) for name in changed} == {"stem.1", "stages.0", "stages.1"}
    assert len(EARLY) == 3
    hard = with_folded_norms(lively(EfficientViT(model_config("b0", 4))))
    same = with_measured_channel_factors(hard, SMALL, example_images()[:1])
    assert all(torch.equal(a, b) for a, b in zip(hard.state_dict().values(), same.state_dict().values(), strict=True))
