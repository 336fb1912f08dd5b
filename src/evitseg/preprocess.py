"""Turn an image into the input of the network."""

from __future__ import annotations

import ctypes
import math
from dataclasses import dataclass
from functools import cache

import numpy as np

from evitseg.architecture import STRIDE
from evitseg.errors import ConfigError
from evitseg.image import MAX_PIXELS, ImageArray, Size
from evitseg.system.core_library import check, open_library


@dataclass(frozen=True)
class Preprocess:
    """How an image becomes network input. Stored in every exported model, so that training and device agree.

    The image is scaled so that its short side has `short_side` pixels, but enlarged at most by the factor
    `max_enlarge`. The sides are rounded to multiples of 32, the network's stride. One resampling does both. An image
    that already has this size is not resampled.

    Attributes:
        short_side: length of the short side in pixels; None keeps the image's own size, except for the rounding.
        max_enlarge: limit on enlarging, which adds cost but no detail.
        mean, std: per RGB channel, for pixels scaled to 0–1. The network applies them; exported models have them folded
            into the first convolution.
        fixed: (height, width) in pixels, for exported models with a single input size. Every image is stretched to it,
            and the rule above does not apply.
    """

    short_side: int | None = None
    max_enlarge: float = 2.0
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)
    fixed: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        if self.short_side is not None:
            check_size(self.short_side)
        if not 1 <= self.max_enlarge <= 16:
            raise ConfigError(f"max_enlarge is {self.max_enlarge}; it must be between 1 and 16.")
        if not all(math.isfinite(value) for value in (*self.mean, *self.std)) or min(self.std) <= 0:
            raise ConfigError(f"mean {self.mean} and std {self.std} must be finite, and std must be positive.")
        if self.fixed is not None:
            check_sides(self.fixed)

    def fit(self, image_size: tuple[int, int], size: Size = None, limit: int | None = MAX_PIXELS) -> tuple[int, int]:
        """(height, width) of the network input for an image of this (height, width).

        Args:
            size: overrides the rule: the short side in pixels, which may enlarge without limit, or "native".
            limit: maximum number of pixels of the input; None for work in windows.

        Raises: ConfigError if the input would have more pixels, or if `size` is given for a model of a single size.
        """
        if self.fixed is not None:
            if size is not None:
                height, width = self.fixed
                raise ConfigError(
                    f"this model accepts only images of {height}x{width} (height x width); omit the size, or export "
                    "the model again with another."
                )
            return self.fixed
        scale = 1.0
        if size is None and self.short_side is not None:
            scale = min(self.short_side / min(image_size), self.max_enlarge)
        elif size is not None and size != "native":
            scale = check_size(size) / min(image_size)
        height, width = (max(1, round(side * scale / STRIDE)) * STRIDE for side in image_size)
        if limit is not None and height * width > limit:
            raise ConfigError(
                f"an image of {image_size[1]}×{image_size[0]} pixels would be resized to {width}×{height} for the "
                f"network, which is more than {limit:,} pixels; choose a smaller size."
            )
        return height, width

    def apply(self, image: ImageArray, size: Size = None) -> ImageArray:
        """Network input (h, w, 3), uint8, from an image (H, W, 3), uint8; `fit` gives h and w."""
        return resampled(image, self.fit(image.shape[:2], size))


def resampled(image: ImageArray, size: tuple[int, int]) -> ImageArray:
    """The image resampled to (height, width); unchanged if it already has this size."""
    if image.shape[:2] == size:
        return np.ascontiguousarray(image)
    down, across = (ResampledSide(own, new) for own, new in zip(image.shape[:2], size, strict=True))
    return resampled_window(image, down, across)


class ResampledSide(ctypes.Structure):
    """One side of an image that is resampled, its height or its width, and a window of the result along it.

    It is the core's `evs_resized`.

    Args:
        own, new: pixels along this side of the whole image, before and after.
        first, count: the window, in pixels of the result; by default the whole side.

    Attributes:
        source_first, source_count: the pixels of the image that the window depends on.
    """

    source_first: int
    source_count: int
    count: int
    _fields_ = tuple((name, ctypes.c_int) for name in ("own", "new", "first", "count", "source_first", "source_count"))

    def __init__(self, own: int, new: int, first: int = 0, count: int | None = None) -> None:
        super().__init__(own, new, first, new - first if count is None else count)
        check(_core().evs_resize_source(ctypes.byref(self)))


def resampled_window(pixels: ImageArray, down: ResampledSide, across: ResampledSide) -> ImageArray:
    """A window of the resampled image; the same pixels, wherever it was cut.

    Args:
        pixels: (H, W, 3), those of the image that the window depends on.
    """
    # Pillow's bilinear filter: it averages over all source pixels, so that fine structures do not alias. Rows first, as
    # in Pillow up to 12; Pillow 13 chooses the cheaper order, which gives other pixels.
    assert pixels.shape == (down.source_count, across.source_count, 3)
    assert pixels.dtype == np.uint8
    if pixels.strides[1:] != (3, 1) or pixels.strides[0] < 3 * across.source_count:
        pixels = np.ascontiguousarray(pixels)
    out = np.empty((down.count, across.count, 3), np.uint8)
    call = pixels.ctypes.data, pixels.strides[0], ctypes.byref(down), ctypes.byref(across)
    check(_core().evs_resize(*call, None, out.ctypes.data))
    return out


@cache
def _core() -> ctypes.CDLL:
    core, pointer, size, side = open_library(), ctypes.c_void_p, ctypes.c_size_t, ctypes.POINTER(ResampledSide)
    core.evs_resize_source.argtypes = [side]
    core.evs_resize.argtypes = [pointer, size, side, side, ctypes.c_char_p, pointer]
    return core


def check_size(short_side: int) -> int:
    """Return a valid short side. Raises: ConfigError for another."""
    if not isinstance(short_side, int) or not STRIDE <= short_side <= 16_384:
        raise ConfigError(f"size {short_side} is out of range; the short side must be {STRIDE} to 16384 pixels.")
    return short_side


def check_sides(sides: tuple[int, int]) -> tuple[int, int]:
    """Return a valid (height, width) of network input. Raises: ConfigError for another."""
    if not all(isinstance(side, int) and 1 <= side <= 16_384 for side in sides):
        raise ConfigError(f"size {sides[0]}x{sides[1]} is out of range; both sides must be {STRIDE} to 16384 pixels.")
    if any(side % STRIDE for side in sides):
        fits = [max(1, round(side / STRIDE)) * STRIDE for side in sides]
        raise ConfigError(
            f"size {sides[0]}x{sides[1]}: both sides must be multiples of {STRIDE}, the network's stride; "
            f"{fits[0]}x{fits[1]} fits."
        )
    return sides
