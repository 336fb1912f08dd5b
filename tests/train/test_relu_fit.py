from __future__ import annotations

from dataclasses import replace

from tests.optional import needs

needs("torch", "accelerate")

import torch

from evitseg.architecture import BACKBONES
from evitseg.exporters.verify import example_images
from evitseg.loading import network_of
from evitseg.model.network import EfficientViT, NormalizedModel
from evitseg.train.relu_fit import fitted_to_relu


def test_a_network_with_fitted_relu_sees_nearly_what_it_saw_with_hard_swish() -> None:
    network, manifest = network_of("b0-camvid")
    preprocess = replace(manifest.preprocess, short_side=384)
    swapped = EfficientViT(replace(network.config, backbone=BACKBONES["b0-relu"])).eval()
    swapped.load_state_dict(network.state_dict())
    fitted = fitted_to_relu(swapped, preprocess, example_images()[1:2])
    pixels = torch.from_numpy(preprocess.apply(example_images()[-1]).copy())[None]
    with torch.inference_mode():
        expected, *others = (NormalizedModel(own, preprocess)(pixels) for own in (network, fitted, swapped))
    errors = [float((logits - expected).square().mean() / expected.var()) for logits in others]
    equal = [float((logits.argmax(1) == expected.argmax(1)).float().mean()) for logits in others]
    assert errors[0] < 0.05  # more if the blocks' last weights are not fitted
    assert equal[0] > 0.96 > 0.5 > equal[1]
