from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.optional import needs

needs("torch")

import torch
from torch.nn import functional as F

from evitseg.runtime.upsample import argmax_upsampled


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


def test_equal_logits_give_the_first_class() -> None:
    assert (argmax_upsampled(np.zeros((4, 3, 3), np.float32), (24, 24)) == 0).all()


def test_the_logits_are_left_as_they_were() -> None:
    logits = smooth((5, 9, 9), seed=1)
    before = logits.copy()
    argmax_upsampled(logits, (72, 72))
    np.testing.assert_array_equal(logits, before)
