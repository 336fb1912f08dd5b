from __future__ import annotations

import pytest

from tests.optional import needs

needs("torch", "onnx")

import torch
from torch.nn import functional as F

from evitseg.architecture import ModelConfig, model_config
from evitseg.errors import ConfigError
from evitseg.exporters.export_model import Bicubic, ExportModel
from evitseg.model.network import EfficientViT, NormalizedModel
from evitseg.model.published import PUBLISHED
from evitseg.preprocess import Preprocess
from tests.runtime.programs import CONFIGS


def lively(model: EfficientViT) -> EfficientViT:
    """Batch norm with statistics and weights of its own, as after training."""
    torch.manual_seed(0)
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)  # type: ignore[union-attr]
            module.running_var.uniform_(0.5, 1.5)  # type: ignore[union-attr]
            torch.nn.init.uniform_(module.weight, 0.5, 1.5)
            torch.nn.init.normal_(module.bias, 0, 0.1)
    return model.eval()


@pytest.mark.parametrize(
    ("config", "size"),
    [(model_config("b0", 5), (96, 160)), (model_config("b1", 5), (64, 64)), (CONFIGS["fused"], (64, 96))],
    ids=["b0", "b1", "blocks of the L series"],
)
def test_the_form_for_devices_is_the_same_function(config: ModelConfig, size: tuple[int, int]) -> None:
    model = lively(EfficientViT(config))
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    image = torch.randint(0, 256, (1, *size, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        expected = NormalizedModel(model, Preprocess())(image)
        for half in (False, True):
            actual = ExportModel(model, Preprocess(fixed=size), half)(image)
            assert (actual - expected).abs().max() < 1e-5 * expected.abs().max()
        planes = image.permute(0, 3, 1, 2).float()
        assert torch.equal(ExportModel(model, Preprocess(fixed=size), True, planes=True)(planes), actual)
    assert all(torch.equal(tensor, before[key]) for key, tensor in model.state_dict().items())


@pytest.mark.parametrize("factor", [2, 4])
def test_bicubic_up_sampling_is_pytorchs_to_the_border(factor: int) -> None:
    x = torch.randn(1, 3, 5, 7, generator=torch.Generator().manual_seed(0))
    expected = F.interpolate(x, scale_factor=factor, mode="bicubic", align_corners=False)
    torch.testing.assert_close(Bicubic((5, 7), factor)(x), expected)


def test_what_has_no_such_form_is_refused() -> None:
    with pytest.raises(ConfigError, match="only segmentation networks"):
        ExportModel(EfficientViT(PUBLISHED["efficientvit-b1"].config), Preprocess(fixed=(64, 64)))
