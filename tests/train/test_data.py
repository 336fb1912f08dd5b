from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.optional import needs

needs("torch", "accelerate")

import torch

from evitseg.data.lists import Pair
from evitseg.errors import TrainError
from evitseg.labels import numbered
from evitseg.train import TrainConfig
from evitseg.train.data import Batches, Crops, batches, classmix, retouched

SMALL = TrainConfig(epochs=2, batch=4, crop=(64, 64), scale=(0.8, 1.2), workers=0)


@pytest.mark.parametrize(("images", "batch"), [(1, 1), (10, 4), (12, 4), (3, 8), (7, 7)])
def test_every_epoch_sees_every_image(images: int, batch: int) -> None:
    config = replace(SMALL, batch=batch)
    keys = batches(config, images, epoch=3)
    assert len(keys) == -(-images // batch)
    assert {len(group) for group in keys} == {batch}
    numbers = [number for group in keys for _, number in group]
    assert sorted(numbers[:images]) == list(range(images))
    assert keys == batches(config, images, epoch=3)
    if images > 4:
        assert keys != [[(3, n) for _, n in group] for group in batches(config, images, epoch=4)]


@pytest.mark.parametrize("rotate", [0.0, 40.0])
def test_image_and_mask_stay_together(tmp_path: Path, rotate: float) -> None:
    rng = np.random.default_rng(0)
    mask = rng.integers(0, 3, (9, 12)).repeat(8, 0).repeat(8, 1).astype(np.uint8)
    Image.fromarray(mask).save(tmp_path / "mask.png")
    Image.fromarray(np.stack([mask * 100] * 3, -1)).save(tmp_path / "image.png")
    config = replace(SMALL, scale=(0.3, 2.5), crop=(96, 64), jitter=0.0, rotate=rotate)
    crops = Crops([Pair(tmp_path / "image.png", tmp_path / "mask.png")], numbered(3), config)
    flips = set()
    for epoch in range(40):
        image, truth = crops[epoch, 0]
        assert image.shape == (3, 96, 64)
        assert truth.shape == (96, 64)
        counted = truth != 255
        assert counted.any()
        # Beyond the border black; along it a turned image fades.
        assert (image[:, ~counted] != 0).sum() <= (0.03 * image.numel() if rotate else 0)
        # Bilinear at the borders of classes, exact within.
        agree = ((image[0].float() / 100).round() == truth)[counted].float().mean()
        assert agree > (0.75 if rotate else 0.85)
        flips.add(float(agree))
        again, _ = crops[epoch, 0]
        assert torch.equal(again, image)
    assert len(flips) > 20


def test_another_camera_sees_the_same_view() -> None:
    rng = np.random.default_rng(0)
    image = rng.integers(60, 200, (32, 48, 3)).astype(np.uint8)
    same = replace(SMALL, jitter=0.0)
    assert np.array_equal(retouched(image, same, np.random.default_rng(1)), image)
    one, two = (retouched(image, SMALL, np.random.default_rng(5)) for _ in "ab")
    assert np.array_equal(one, two)
    assert not np.array_equal(one, image)
    for change in ({"blur": 1.0}, {"jpeg": 1.0}):
        changed = retouched(image, replace(same, **change), np.random.default_rng(1))  # type: ignore[arg-type]
        assert changed.shape == image.shape
        assert changed.dtype == np.uint8
        assert 0 < np.abs(changed.astype(int) - image).mean() < 60


def test_jitter_is_brightness_contrast_and_saturation() -> None:
    # A grey image has no saturation to change, and its mean no contrast: only brightness is left.
    grey = np.full((16, 16, 3), 100, np.uint8)
    brightness = 1 + 0.3 * np.random.default_rng(7).uniform(-1, 1, 3)[0]
    seen = retouched(grey, SMALL, np.random.default_rng(7))
    assert np.abs(seen.astype(float) - 100 * brightness).max() <= 1


def test_classmix_pastes_whole_classes() -> None:
    rng = np.random.default_rng(0)
    truth, its_truth = np.zeros((8, 8), np.uint8), np.repeat(np.array([1, 2, 3, 255], np.uint8), 16).reshape(8, 8)
    image, other = np.zeros((8, 8, 3), np.uint8), np.full((8, 8, 3), 9, np.uint8)
    mixed, mixed_truth = classmix(image, truth, other, its_truth, 255, rng)
    pasted = mixed_truth != 0
    assert set(np.unique(mixed_truth[pasted])) < {1, 2, 3}
    assert len(np.unique(mixed_truth[pasted])) == 2
    assert np.array_equal(mixed_truth[pasted], its_truth[pasted])
    assert np.array_equal((mixed == 9).all(-1), pasted)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_image_that_breaks_during_the_run_is_named(tmp_path: Path, workers: int) -> None:
    pairs = []
    for i in range(4):
        for kind in ("image", "mask"):
            Image.fromarray(np.full((64, 64), i % 2, np.uint8)).save(tmp_path / f"{kind}{i}.png")
        pairs.append(Pair(tmp_path / f"image{i}.png", tmp_path / f"mask{i}.png"))
    config = replace(SMALL, workers=workers)
    crops = Crops(pairs, numbered(2), config)
    reading = Batches(crops, config)
    keys = batches(config, 4, 0)
    assert len(list(reading.read(keys))) == 1
    (tmp_path / "image2.png").write_bytes(b"no image")
    with pytest.raises(TrainError, match=r"image2\.png: .* go on with --resume"):
        list(reading.read(keys))


def test_classmix_and_everything_else_is_decided_by_the_key(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    pairs = []
    for i in range(3):
        Image.fromarray(rng.integers(0, 255, (80, 90, 3)).astype(np.uint8)).save(tmp_path / f"{i}.png")
        Image.fromarray(rng.integers(0, 3, (80, 90)).astype(np.uint8)).save(tmp_path / f"{i}_mask.png")
        pairs.append(Pair(tmp_path / f"{i}.png", tmp_path / f"{i}_mask.png"))
    config = replace(SMALL, classmix=0.5, rotate=20, blur=0.5, jpeg=0.5)
    for epoch in range(5):
        one, two = (Crops(pairs, numbered(3), config)[epoch, 1] for _ in "ab")
        assert torch.equal(one[0], two[0])
        assert torch.equal(one[1], two[1])
