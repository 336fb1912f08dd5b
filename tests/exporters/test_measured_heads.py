from __future__ import annotations

import numpy as np
import pytest

from tests.optional import needs

needs("torch", "onnx")

import torch

from evitseg.architecture import model_config
from evitseg.exporters.measured_heads import measured_factors, with_measured_head_factors
from evitseg.exporters.verify import example_images
from evitseg.loading import network_of
from evitseg.model.fold import folded_weights, network_of_folded
from evitseg.model.network import EfficientViT, NormalizedModel
from evitseg.preprocess import Preprocess
from evitseg.runtime.head_factors import with_head_factors
from evitseg.runtime.weights import Weights

SMALL = Preprocess(fixed=(64, 96))


@pytest.fixture(scope="module")
def uneven() -> EfficientViT:
    """The bundled network with heads of very different size."""
    model, _ = network_of("b0-camvid")
    rng = np.random.default_rng(0)
    factors = {
        name: np.exp2(rng.integers(-9, 9, own.shape).astype(float))
        for name, own in measured_factors(model, SMALL, example_images()[:1]).items()
    }
    weights = with_head_factors(model.config, [Weights(*own) for own in folded_weights(model)], factors)
    return network_of_folded(model.config, [(own.kernel, own.bias) for own in weights])


def test_measured_factors_make_heads_alike_and_change_no_logit(uneven: EfficientViT) -> None:
    images = example_images()
    model = with_measured_head_factors(uneven, SMALL, images)
    for name, own in measured_factors(uneven, SMALL, images).items():
        assert own.max() / own.min() > 1000, name
    for name, own in measured_factors(model, SMALL, images).items():
        assert (own == 1).all(), name
    with torch.inference_mode():
        pixels = torch.from_numpy(SMALL.apply(images[0]).copy())[None]
        before, after = (NormalizedModel(network.eval(), SMALL)(pixels) for network in (uneven, model))
    # Equal but for the order of sums and the limits of divisors.
    torch.testing.assert_close(after, before, rtol=1e-4, atol=1e-4)


def test_a_head_that_is_always_zero_keeps_its_weights() -> None:
    model = EfficientViT(model_config("b0", 4)).eval()
    layer = model.backbone.stages[2][1].attention  # type: ignore[index]
    with torch.no_grad():
        layer.qkv.conv.weight[: layer.head_dim] = 0
    factors = measured_factors(model, SMALL, example_images()[:1])
    assert factors["stage3.block1.attention"][0, 0, 0] == 1
