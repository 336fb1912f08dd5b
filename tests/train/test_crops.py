from __future__ import annotations

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
from evitseg.train.crops import Batches, Crops, batch_keys
from tests.train.scenes import SMALL


@pytest.mark.parametrize(("images", "batch"), [(1, 1), (10, 4), (12, 4), (3, 8), (7, 7)])
def test_every_epoch_sees_every_image(images: int, batch: int) -> None:
    keys = batch_keys(images, batch, 0, epoch=3)
    assert len(keys) == -(-images // batch)
    assert {len(group) for group in keys} == {batch}
    numbers = [number for group in keys for _, number in group]
    assert sorted(numbers[:images]) == list(range(images))
    assert keys == batch_keys(images, batch, 0, epoch=3)
    if images > 4:
        assert keys != [[(3, n) for _, n in group] for group in batch_keys(images, batch, 0, epoch=4)]


@pytest.mark.parametrize("rotate", [0.0, 40.0])
def test_image_and_mask_stay_together(tmp_path: Path, rotate: float) -> None:
    rng = np.random.default_rng(0)
    mask = rng.integers(0, 3, (9, 12)).repeat(8, 0).repeat(8, 1).astype(np.uint8)
    Image.fromarray(mask).save(tmp_path / "mask.png")
    Image.fromarray(np.stack([mask * 100] * 3, -1)).save(tmp_path / "image.png")
    config = SMALL.updated(
        {"augment.scale": (0.3, 2.5), "data.crop": (96, 64), "augment.color_jitter": 0.0, "augment.rotate": rotate}
    )
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


@pytest.mark.parametrize("workers", [0, 1])
def test_a_image_that_breaks_during_the_run_is_named(tmp_path: Path, workers: int) -> None:
    pairs = []
    for i in range(4):
        for kind in ("image", "mask"):
            Image.fromarray(np.full((64, 64), i % 2, np.uint8)).save(tmp_path / f"{kind}{i}.png")
        pairs.append(Pair(tmp_path / f"image{i}.png", tmp_path / f"mask{i}.png"))
    config = SMALL.updated({"data.workers": workers})
    crops = Crops(pairs, numbered(2), config)
    reading = Batches(crops, workers)
    keys = batch_keys(4, config.batch_size, config.seed, 0)
    assert len(list(reading.read(keys))) == 1
    (tmp_path / "image2.png").write_bytes(b"no image")
    with pytest.raises(TrainError, match=r"image2\.png: .* continue with --resume"):
        list(reading.read(keys))


def test_classmix_and_everything_else_is_decided_by_the_key(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    pairs = []
    for i in range(3):
        Image.fromarray(rng.integers(0, 255, (80, 90, 3)).astype(np.uint8)).save(tmp_path / f"{i}.png")
        Image.fromarray(rng.integers(0, 3, (80, 90)).astype(np.uint8)).save(tmp_path / f"{i}_mask.png")
        pairs.append(Pair(tmp_path / f"{i}.png", tmp_path / f"{i}_mask.png"))
    config = SMALL.updated(
        {
            "augment.classmix_prob": 0.5, "augment.paste_prob": 0.5, "augment.rotate": 20, "augment.blur_prob": 0.5,
            "augment.jpeg_prob": 0.5,
        }
    )  # fmt: skip
    for epoch in range(5):
        one, two = (Crops(pairs, numbered(3), config, rare=[2])[epoch, 1] for _ in "ab")
        assert torch.equal(one[0], two[0])
        assert torch.equal(one[1], two[1])
