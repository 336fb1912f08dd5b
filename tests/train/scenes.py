"""Data for training that anyone can make, and a variant that trains in a third of b0's time."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from evitseg.architecture import BACKBONES, SEGMENTATION_HEADS
from evitseg.train import TrainConfig
from tests.runtime.programs import CONFIGS


def add_tiny_variant(patch: pytest.MonkeyPatch) -> None:
    """Makes "tiny" the name of a variant, with every kind of block that the B series has."""
    network = CONFIGS["mbconv"]
    patch.setitem(BACKBONES, "tiny", network.backbone)
    patch.setitem(SEGMENTATION_HEADS, "tiny-cityscapes", network.head)


with pytest.MonkeyPatch.context() as _patch:
    add_tiny_variant(_patch)
    TINY = TrainConfig(variant="tiny")
    SMALL = TINY.updated(
        {"epochs": 2, "batch_size": 4, "data.crop": (64, 64), "augment.scale": (0.8, 1.2), "data.workers": 0}
    )


def scene(rng: np.random.Generator, size: tuple[int, int]) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Sky, ground, squares and discs, in noisy colours: an image and its mask of four classes."""
    height, width = size
    y, x = np.mgrid[:height, :width]
    mask = (y > height * rng.uniform(0.4, 0.6)).astype(np.uint8)
    for index in (2, 3):
        for _ in range(2):
            cy, cx, radius = rng.uniform(10, height - 10), rng.uniform(10, width - 10), rng.uniform(0.1, 0.2) * height
            square = (np.abs(y - cy) < radius) & (np.abs(x - cx) < radius)
            mask[square if index == 2 else (y - cy) ** 2 + (x - cx) ** 2 < radius**2] = index
    colors = np.array([[120, 160, 220], [90, 90, 95], [200, 60, 50], [60, 150, 60]])
    return np.clip(colors[mask] + rng.normal(0, 25, (height, width, 3)), 0, 255).astype(np.uint8), mask


def scenes(folder: Path, count: int, size: tuple[int, int], seed: int = 0) -> Path:
    rng = np.random.default_rng(seed)
    for i in range(count):
        for kind, values in zip(("images", "masks"), scene(rng, size), strict=True):
            (folder / kind).mkdir(parents=True, exist_ok=True)
            Image.fromarray(values).save(folder / kind / f"{i:07}.png")
    return folder
