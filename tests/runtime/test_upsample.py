from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.optional import needs

needs("torch")

import torch
from torch.nn import functional as F

from evitseg.errors import EngineError
from evitseg.runtime.upsample import Side, argmax_upsampled


def smooth(shape: tuple[int, int, int], seed: int) -> NDArray[np.float32]:
    """Random logits with regions, as real ones have."""
    coarse = torch.randn(1, shape[0], 3, 4, generator=torch.Generator().manual_seed(seed))
    return F.interpolate(coarse, shape[1:], mode="bicubic")[0].numpy()


def full(logits: NDArray[np.float32], size: tuple[int, int]) -> NDArray[np.float64]:
    """All full-size logits, by PyTorch in float64."""
    tensor = torch.from_numpy(logits)[None].double()
    return F.interpolate(tensor, size, mode="bilinear", align_corners=False)[0].numpy()


@pytest.mark.parametrize(
    ("shape", "size"),
    [
        ((5, 7, 9), (56, 72)),
        ((11, 88, 120), (360, 480)),  # CamVid at twice its size
        ((19, 22, 31), (100, 333)),
        ((19, 3, 4), (50, 33)),
        ((3, 8, 8), (5, 3)),  # smaller than the logits
        ((2, 1, 1), (1, 1)),
        ((4, 4, 4), (1, 700)),
        ((4, 5, 1), (40, 8)),
        ((1, 6, 6), (48, 48)),
        ((300, 6, 6), (48, 48)),
    ],
)
@pytest.mark.parametrize("kind", ["noise", "regions"])
def test_the_mask_is_the_argmax_of_the_full_size_logits(
    shape: tuple[int, int, int], size: tuple[int, int], kind: str
) -> None:
    noise = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    logits = noise if kind == "noise" else smooth(shape, seed=0)
    mask, reference = argmax_upsampled(logits, size), full(logits, size)
    assert mask.shape == size
    assert mask.dtype == (np.uint8 if shape[0] <= 255 else np.uint16)
    chosen = np.take_along_axis(reference, mask[None].astype(np.int64), 0)[0]
    # The class chosen is the best, or ties with it within float32's rounding.
    np.testing.assert_allclose(chosen, reference.max(0), rtol=1e-5, atol=1e-6)
    assert (mask == reference.argmax(0)).mean() > 0.9999


def naive(logits: NDArray[np.float32], size: tuple[int, int]) -> NDArray[np.integer]:
    """The argmax of all full-size logits, in float32 with the roundings that the core promises."""

    def sides(logits: int, pixels: int) -> tuple[NDArray[np.intp], NDArray[np.intp], NDArray[np.float32]]:
        position = (np.arange(pixels) + 0.5) * (logits / pixels) - 0.5
        below = np.floor(position).astype(int)
        return below.clip(0), (below + 1).clip(0, logits - 1), (position - below).astype(np.float32)

    low, high, down = sides(logits.shape[1], size[0])
    left, right, across = sides(logits.shape[2], size[1])
    rows = logits[:, low] * (1 - down[:, None]) + logits[:, high] * down[:, None]
    mask: NDArray[np.integer] = (rows[:, :, left] * (1 - across) + rows[:, :, right] * across).argmax(0)
    return mask


@pytest.mark.parametrize("classes", [1, 2, 19, 255, 256, 300])
def test_every_pixel_has_the_class_of_the_naive_computation(classes: int) -> None:
    rng = np.random.default_rng(classes)
    for _ in range(12):
        h, w = rng.integers(1, 50, 2)
        size = (int(rng.integers(1, 9 * h)), int(rng.integers(1, 9 * w)))
        logits = rng.normal(size=(classes, h, w)).astype(np.float32)
        mask = argmax_upsampled(logits, size)
        assert mask.dtype == (np.uint8 if classes < 256 else np.uint16)
        np.testing.assert_array_equal(mask, naive(logits, size), err_msg=f"{logits.shape} to {size}")


def test_a_window_of_logits_gives_that_part_of_the_mask() -> None:
    logits = smooth((19, 23, 37), seed=2)
    whole = argmax_upsampled(logits, (151, 333))
    sides = Side(23, 151, first_pixel=40), Side(37, 333, first_pixel=97)
    (y0, y1), (x0, x1) = sides[0].needed(71), sides[1].needed(103)
    placed = replace(sides[0], first_logit=y0), replace(sides[1], first_logit=x0)
    part = argmax_upsampled(logits[:, y0:y1, x0:x1], (71, 103), placed)
    np.testing.assert_array_equal(part, whole[40:111, 97:200])
    with pytest.raises(EngineError, match="out of range"):
        argmax_upsampled(logits[:, y0 + 1 : y1, x0:x1], (71, 103), (replace(sides[0], first_logit=y0 + 1), placed[1]))


@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf])
def test_logits_that_are_not_finite_give_some_class(wrong: float) -> None:
    logits = smooth((3, 6, 8), seed=3)
    logits[:, 2:4, 3] = wrong
    assert argmax_upsampled(logits, (48, 64)).max() < 3


def test_equal_logits_give_the_first_class() -> None:
    assert (argmax_upsampled(np.zeros((4, 3, 3), np.float32), (24, 24)) == 0).all()


def test_the_logits_are_left_as_they_were() -> None:
    logits = smooth((5, 9, 9), seed=1)
    before = logits.copy()
    argmax_upsampled(logits, (72, 72))
    np.testing.assert_array_equal(logits, before)
