"""Windows of an image, damaged parts, and an image resampled to the network's input size."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from evitseg.errors import ImageError
from evitseg.preprocess import ResampledSide, resampled_window
from evitseg.raster.window import ArraySink as ArraySink
from evitseg.raster.window import ArraySource as ArraySource
from evitseg.raster.window import Sink as Sink
from evitseg.raster.window import Source as Source


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
    """A source at another size. Its windows have exactly the pixels of the whole image resampled."""

    def __init__(self, source: Source, size: tuple[int, int]) -> None:
        self.source, self.size = source, size

    def read(self, window: Window) -> tuple[NDArray[np.uint8], list[Damage]]:
        """The pixels of a window, and the damaged parts of the source that they depend on."""
        if self.source.size == self.size:
            image, damages = read_window(self.source, window)
            return np.ascontiguousarray(image), damages
        down = ResampledSide(self.source.size[0], self.size[0], window.top, window.height)
        across = ResampledSide(self.source.size[1], self.size[1], window.left, window.width)
        box = Window(down.source_first, across.source_first, down.source_count, across.source_count)
        image, damages = read_window(self.source, box)
        return resampled_window(image, down, across), damages

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
