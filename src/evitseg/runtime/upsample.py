"""Compute the class index of every pixel from logits at stride 8, exactly, without the full-size logits.

The mask is the argmax of the logits after bilinear up-sampling to the image's size (half-pixel centres, edges
repeated). The core (`core/src/ops/mask.h`) computes it for the logits of every engine.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from evitseg.labels import mask_dtype
from evitseg.runtime.core import Core, MaskSide, library
from evitseg.system.core_library import check


@dataclass(frozen=True)
class Side:
    """One side of a window of a larger image, whose up-sampling does not depend on where it was cut.

    Attributes:
        logits, pixels: numbers along the whole image's side.
        first_logit, first_pixel: the first ones of the window.
    """

    logits: int
    pixels: int
    first_logit: int = 0
    first_pixel: int = 0

    def needed(self, pixels: int) -> tuple[int, int]:
        """The first logit that this many pixels of the window depend on, and the one after the last."""
        ends = np.array([self.first_pixel, self.first_pixel + pixels - 1])
        low, high = np.floor((ends + 0.5) * (self.logits / self.pixels) - 0.5).astype(int)
        return max(0, int(low)), min(self.logits, int(high) + 2)


def argmax_upsampled(
    logits: NDArray[np.float32],
    size: tuple[int, int],
    sides: tuple[Side, Side] | None = None,
    core: Core | None = None,
) -> NDArray[np.integer]:
    """The class with the largest bilinearly up-sampled logit, for every pixel.

    Args:
        logits: (classes, h, w).
        size: (height, width) of the mask, in pixels, larger or smaller than the logits.
        sides: for a window of a larger image, its place along height and width; the logits must cover `Side.needed`.
        core: whose threads take part; None for the caller's alone. The mask is the same.

    Returns: (height, width) class indices, uint8, or uint16 for more than 255 classes. Of equal classes the first
    wins; of classes whose difference is within float32's rounding, either may.
    """
    logits = np.ascontiguousarray(logits, np.float32)
    mask = np.empty(size, mask_dtype(len(logits)))
    whole = sides or tuple(Side(*side) for side in zip(logits.shape[1:], size, strict=True))
    down, across = (
        MaskSide(side, pixels, of.logits, of.pixels, of.first_logit, of.first_pixel)
        for side, pixels, of in zip(logits.shape[1:], size, whole, strict=True)
    )
    call = logits.ctypes.data, len(logits), ctypes.byref(down), ctypes.byref(across), mask.ctypes.data
    if core is None:
        check(library().evs_mask(None, *call))
    else:
        with core.runner() as runner:
            check(core.library.evs_mask(runner, *call))
    return mask
