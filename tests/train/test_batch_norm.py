from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.optional import needs

needs("torch", "accelerate")

import torch
from torch import nn

from evitseg.data.layouts import find_dataset
from evitseg.exporters.verify import example_images
from evitseg.loading import network_of
from evitseg.model.network import NormalizedModel, build
from evitseg.preprocess import Preprocess
from evitseg.train.batch_norm import estimate, spread, unfolded, whole_images
from tests.networks import lively


def normalised(stack: torch.Tensor) -> torch.Tensor:
    return stack.float() / 255


def test_statistics_are_the_mean_and_variance_of_all_pixels() -> None:
    generator = torch.Generator().manual_seed(0)
    first, second = (torch.randn(n, 3, 40, size, generator=generator) * 2 + n for n, size in ((4, 30), (1, 50)))
    norm = nn.BatchNorm2d(3)
    estimate(nn.Sequential(norm), [first, second])
    together = torch.cat([part.transpose(0, 1).flatten(1) for part in (first, second)], dim=1)
    assert norm.running_mean is not None
    assert norm.running_var is not None
    torch.testing.assert_close(norm.running_mean, together.mean(1), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(norm.running_var, together.var(1, correction=0), rtol=1e-5, atol=1e-5)
    assert norm.momentum == 0.1
    assert not norm.training


def test_one_batch_makes_evaluation_what_training_computes() -> None:
    torch.manual_seed(0)
    network = build("b0", 4).eval()
    pixels = torch.randn(4, 3, 96, 128)
    with torch.no_grad():
        before = network(pixels)
        expected = network.train()(pixels)
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.reset_running_stats()
        estimate(network, [pixels])
        torch.testing.assert_close(network(pixels), expected, rtol=1e-3, atol=1e-3)
        assert not torch.allclose(before, expected, rtol=0.1, atol=0.1)


def test_a_network_with_folded_norms_gets_statistics_to_train_with(tmp_path: Path) -> None:
    """The bundled model's norms normalised for the first time in training, after which it knew nothing."""
    network, preprocess = network_of("b0-camvid")[0], Preprocess(short_side=192)
    for number, image in enumerate(example_images()[:2]):
        for kind, values in (("images", image), ("masks", np.zeros(image.shape[:2], np.uint8))):
            (tmp_path / kind).mkdir(exist_ok=True)
            Image.fromarray(values).save(tmp_path / kind / f"{number}.png")
    pairs = find_dataset(tmp_path).splits["all"]
    made = unfolded(network, pairs, preprocess)
    ready = NormalizedModel(network, preprocess)
    pixels = torch.from_numpy(preprocess.apply(example_images()[0]).copy()).permute(2, 0, 1)[None]
    pixels = (pixels.float() + ready.shift) * ready.scale
    with torch.no_grad():
        expected = network(pixels)
        torch.testing.assert_close(made(pixels), expected, rtol=1e-3, atol=1e-3)
        equal = [(own.train()(pixels).argmax(1) == expected.argmax(1)).float().mean() for own in (made, network)]
    assert equal[1] < 0.5 < 0.8 < equal[0]
    plain = lively(build("b0", 4))
    for key, value in unfolded(plain, pairs, preprocess).state_dict().items():
        assert torch.equal(value, plain.state_dict()[key]), key


def test_layers_that_are_kept_and_those_that_see_too_little_stay_as_they_are() -> None:
    network = nn.Sequential(nn.BatchNorm2d(3), nn.BatchNorm2d(3))
    estimate(network, [torch.randn(2, 3, 64, 64) + 5], keep=lambda name: name == "0")
    means = [module.running_mean for module in network if isinstance(module, nn.BatchNorm2d)]
    assert means[0] is not None
    assert means[1] is not None
    assert means[0].abs().max() == 0
    assert means[1].min() > 4
    tiny = build("b0", 2).eval()
    deepest = {key: value.clone() for key, value in tiny.state_dict().items() if "stages.3" in key}
    estimate(tiny, [torch.randn(1, 3, 32, 32)])  # a single value at stride 32: its variance is nothing
    assert all(bool((value > 0).all()) for key, value in tiny.state_dict().items() if "running_var" in key)
    for key, value in deepest.items():
        assert torch.equal(tiny.state_dict()[key], value) or "num_batches" in key


def test_images_of_one_size_go_together_as_far_as_memory_allows() -> None:
    shapes = [(64, 96), (64, 96), (64, 96), (32, 32), (64, 96)]
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 255, (*shape, 3)).astype(np.uint8) for shape in shapes]
    sizes = [tuple(b.shape) for b in whole_images(images, Preprocess(), 2 * 64 * 96, normalised)]
    assert sizes == [(2, 3, 64, 96), (1, 3, 64, 96), (1, 3, 32, 32), (1, 3, 64, 96)]
    assert [len(b) for b in whole_images(images, Preprocess(), 1, normalised)] == [1] * 5
    first = next(iter(whole_images(images, Preprocess(), 1, normalised)))
    np.testing.assert_allclose(first[0].permute(1, 2, 0), images[0] / 255, rtol=1e-6)


@pytest.mark.parametrize(
    ("count", "most", "numbers"), [(3, 64, [0, 1, 2]), (1, 64, [0]), (100, 5, [0, 25, 50, 74, 99])]
)
def test_images_for_statistics_are_spread_over_all(count: int, most: int, numbers: list[int]) -> None:
    assert spread(count, most) == numbers
