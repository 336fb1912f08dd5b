"""Windows of an image, damaged parts, and an image resampled to the network's input size."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from evitseg.errors import ImageError
from evitseg.raster.window import ArraySink as ArraySink
from evitseg.raster.window import ArraySource as ArraySource
from evitseg.raster.window import Sink as Sink
from evitseg.raster.window import Source as Source

_FIXED_POINT = 22
"""Fractional bits of Pillow's fixed-point weights."""


@dataclass(frozen=True)
class Window:
    """A rectangle of pixels or features."""

    top: int
    left: int
    height: int
    width: int

    @property
    def bottom(self) -> int:
        return self.top + self.height

    @property
    def right(self) -> int:
        return self.left + self.width

    @property
    def pixels(self) -> int:
        return self.height * self.width

    def over(self, stride: int) -> Window:
        """The same rectangle in features of this stride; exact for multiples of the stride."""
        return Window(self.top // stride, self.left // stride, self.height // stride, self.width // stride)

    def inside(self, outer: Window) -> tuple[slice, slice]:
        """Rows and columns of this window in an array that holds the outer one."""
        top, left = self.top - outer.top, self.left - outer.left
        return slice(top, top + self.height), slice(left, left + self.width)

    def common(self, other: Window) -> Window | None:
        """The intersection; None if it is empty."""
        top, left = max(self.top, other.top), max(self.left, other.left)
        height, width = min(self.bottom, other.bottom) - top, min(self.right, other.right) - left
        return Window(top, left, height, width) if height > 0 and width > 0 else None


@dataclass(frozen=True)
class Damage:
    """A part of the image that could not be read, with the reason."""

    window: Window
    reason: str


def whole_rows(tile: tuple[int, int], width: int, pixels: int) -> tuple[int, int]:
    """A sink's tile; if it spans the whole width, as many tiles as make about this many pixels."""
    down, across = tile
    return tile if across < width else (down * max(1, pixels // (down * width)), width)


def tiles_of(size: tuple[int, int], tile: tuple[int, int]) -> Iterator[Window]:
    """Windows that cover an image, row by row, cropped at its right and lower border."""
    for top in range(0, size[0], tile[0]):
        for left in range(0, size[1], tile[1]):
            yield Window(top, left, min(tile[0], size[0] - top), min(tile[1], size[1] - left))


def read_window(source: Source, window: Window) -> tuple[NDArray[np.uint8], list[Damage]]:
    """The pixels of a window, black where the source is damaged, and the damaged parts.

    A damaged part is a whole block of the source, so that every window reports the same parts.
    """
    try:
        return source.read(window.top, window.left, window.height, window.width), []
    except ImageError:
        pass
    height, width = source.tile
    image, damages = np.zeros((window.height, window.width, 3), np.uint8), []
    for top in range(window.top // height * height, window.bottom, height):
        for left in range(window.left // width * width, window.right, width):
            block = Window(top, left, min(height, source.size[0] - top), min(width, source.size[1] - left))
            part = block.common(window)
            assert part is not None
            try:
                pixels = source.read(block.top, block.left, block.height, block.width)
            except ImageError as error:
                damages.append(Damage(block, str(error)))
                continue
            image[part.inside(window)] = pixels[part.inside(block)]
    return image, damages


def valid_window(source: Source, window: Window, damages: list[Damage]) -> NDArray[np.bool_] | None:
    """(height, width), False for pixels without data and damaged ones; None if all are valid."""
    valid = source.valid(window.top, window.left, window.height, window.width)
    hit = [part for damage in damages if (part := damage.window.common(window)) is not None]
    if not hit:
        return valid
    valid = np.ones((window.height, window.width), np.bool_) if valid is None else np.array(valid)
    for part in hit:
        valid[part.inside(window)] = False
    return valid


class Resampled:
    """A source at another size. Its windows have exactly the pixels of Pillow's bilinear resize of the whole image.

    Pillow can resize a box of an image, but stores the box in float32, and some pixels would differ by one. Its
    arithmetic is reproduced instead (`precompute_coeffs` in its Resample.c): rows, then columns, each a sum of 8-bit
    pixels with fixed-point weights, rounded to 8 bits.
    """

    def __init__(self, source: Source, size: tuple[int, int]) -> None:
        self.source, self.size = source, size

    def box(self, window: Window) -> Window:
        """The pixels of the source that a window depends on."""
        (top, _, bottom), (left, _, right) = (
            _taps(own, new, begin, count)
            for own, new, begin, count in zip(
                self.source.size, self.size, (window.top, window.left), (window.height, window.width), strict=True
            )
        )
        return Window(top, left, bottom - top, right - left)

    def read(self, window: Window) -> tuple[NDArray[np.uint8], list[Damage]]:
        """The pixels of a window, and the damaged parts of the source that they depend on."""
        box = self.box(window)
        image, damages = read_window(self.source, box)
        across = _taps(self.source.size[1], self.size[1], window.left, window.width)[1]
        down = _taps(self.source.size[0], self.size[0], window.top, window.height)[1]
        if self.source.size[1] != self.size[1]:
            image = _weighted(image, across, 1)
        if self.source.size[0] != self.size[0]:
            image = _weighted(image, down, 0)
        return np.ascontiguousarray(image), damages

    def valid(self, window: Window, damages: list[Damage], stride: int) -> NDArray[np.bool_]:
        """(h / stride, w / stride), whether a cell has any valid pixel."""
        cells = window.over(stride)
        (y0, y1), (x0, x1) = (
            (begin * own // new, min(own, -(-end * own // new)))
            for begin, end, own, new in zip(
                (window.top, window.left), (window.bottom, window.right), self.source.size, self.size, strict=True
            )
        )
        area = Window(y0, x0, y1 - y0, x1 - x0)
        valid = valid_window(self.source, area, damages)
        if valid is None:
            return np.ones((cells.height, cells.width), np.bool_)
        rows = ((window.top + np.arange(cells.height) * stride) * self.source.size[0] // self.size[0] - y0).clip(0)
        columns = ((window.left + np.arange(cells.width) * stride) * self.source.size[1] // self.size[1] - x0).clip(0)
        down = np.logical_or.reduceat(valid, rows, axis=0)
        return np.logical_or.reduceat(down, columns, axis=1)


def _taps(own: int, new: int, begin: int, count: int) -> tuple[int, tuple[NDArray[np.intp], NDArray[np.int32]], int]:
    """The source pixels and weights that Pillow uses for `count` pixels from `begin` along one side.

    Returns: the first source pixel; (count, taps) indices from there, and weights; the source pixel after the last.
    """
    if own == new:
        return begin, (np.arange(count)[:, None], np.full((count, 1), 1 << _FIXED_POINT, np.int32)), begin + count
    scale = own / new
    support = max(scale, 1.0)
    center = (begin + np.arange(count) + 0.5) * scale
    low = np.maximum((center - support + 0.5).astype(np.intp), 0)
    high = np.minimum((center + support + 0.5).astype(np.intp), own)
    index = low[:, None] + np.arange(int((high - low).max()))
    weights = np.maximum(1 - np.abs((index - center[:, None] + 0.5) * (1 / support)), 0)
    weights[index >= high[:, None]] = 0
    total = np.zeros((count, 1))
    for tap in range(weights.shape[1]):  # in the order in which Pillow adds them
        total[:, 0] += weights[:, tap]
    fixed = (0.5 + weights / total * (1 << _FIXED_POINT)).astype(np.int32)
    first, last = int(low[0]), int(high[-1])
    return first, (index.clip(max=own - 1).clip(max=last - 1) - first, fixed), last


def _weighted(
    image: NDArray[np.uint8], taps: tuple[NDArray[np.intp], NDArray[np.int32]], axis: int
) -> NDArray[np.uint8]:
    index, weights = taps
    shape = (1, -1, 1) if axis else (-1, 1, 1)
    size = list(image.shape)
    size[axis] = len(index)
    total = np.full(size, 1 << (_FIXED_POINT - 1), np.int32)
    for tap in range(index.shape[1]):
        total += image.take(index[:, tap], axis) * weights[:, tap].reshape(shape)
    return (total >> _FIXED_POINT).clip(0, 255).astype(np.uint8)
