"""Tiles of an image at every size, in bounded memory."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable
from itertools import product

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from evitseg.errors import ImageError
from evitseg.raster.window import ArraySource, Source
from evitseg.system.parallel import ordered_map
from evitseg.viewer.pyramid import TILE, Pyramid, Rectangle

Pixels = NDArray[np.uint8]

_CACHE_BYTES = 64 * 2**20
SMALL_SIDE = 4096
"""Longest side of the small copy that is made of an image whose file has no smaller levels."""
_PER_PIXEL = 4
"""Source pixels along each side that are averaged for a pixel of a reduced tile; more cost time and look the same."""
_BLOCK = (1024, 4096)
"""(height, width) of the parts in which the image is read once for its small copy."""


class ImageTiles:
    """An image as a pyramid of tiles.

    A reduced tile comes from the smaller levels of the file, if there are any. Otherwise, `prepare` reads the image
    once and keeps a small copy, because a tile of a coarse level would read most of the file.
    """

    def __init__(self, source: Source) -> None:
        self.source, self.pyramid = source, Pyramid(source.size)
        self._cache: OrderedDict[tuple[int, int, int], Pixels] = OrderedDict()
        self._lock = threading.Lock()
        self._small: Pixels | None = None
        self._small_level = self.pyramid.levels
        if source.origin.levels == 1 and not isinstance(source, ArraySource):
            self._small_level = (-(-max(source.size) // SMALL_SIDE) - 1).bit_length()
        self._is_ready = threading.Event()

    def prepare(self, watch: Callable[[float], None] = lambda fraction: None) -> None:
        """Make the small copy. Tiles of coarse levels wait for it.

        Args:
            watch: called with the finished fraction, 0 to 1. An error that it raises stops the work.
        """
        try:
            if 2 < self._small_level < self.pyramid.levels:
                self._small = self._copied(watch)
        finally:
            self._is_ready.set()

    def _copied(self, watch: Callable[[float], None]) -> Pixels:
        factor = 2**self._small_level
        height, width = self.pyramid.size
        small = np.zeros((*self.pyramid.size_of(self._small_level), 3), np.uint8)
        places = list(product(range(0, height, _BLOCK[0]), range(0, width, _BLOCK[1])))

        def work(place: tuple[int, int]) -> Pixels:
            top, left = place
            part = Rectangle(top, left, min(_BLOCK[0], height - top), min(_BLOCK[1], width - left))
            return self._averaged(part, factor, 2)

        for done, ((top, left), pixels) in enumerate(zip(places, ordered_map(places, work), strict=True), 1):
            rows, columns = pixels.shape[:2]
            small[top // factor : top // factor + rows, left // factor : left // factor + columns] = pixels
            watch(done / len(places))
        return small

    def tile(self, level: int, row: int, column: int) -> Pixels:
        """(height, width, 3) of a tile; black where the image cannot be read."""
        key = (level, row, column)
        with self._lock:
            known = self._cache.get(key)
            if known is not None:
                self._cache.move_to_end(key)
                return known
        pixels = self.read(level, self.pyramid.tile(*key))
        with self._lock:
            self._cache[key] = pixels
            while sum(each.nbytes for each in self._cache.values()) > _CACHE_BYTES:
                self._cache.popitem(last=False)
        return pixels

    def read(self, level: int, part: Rectangle) -> Pixels:
        """(height, width, 3) of any part of a level."""
        if level >= self._small_level:
            self._is_ready.wait()
        small = self._small
        if small is None or level < self._small_level:
            return self._averaged(self.pyramid.in_image(level, part), 2**level, _PER_PIXEL)
        factor = 2 ** (level - self._small_level)
        top, left = part.top * factor, part.left * factor
        pixels = small[top : top + part.height * factor, left : left + part.width * factor]
        return np.asarray(Image.fromarray(pixels).reduce(factor))

    def whole(self, level: int) -> Pixels:
        """(height, width, 3) of a whole level, which must be small."""
        height, width = self.pyramid.size_of(level)
        rows, columns = self.pyramid.grid(level)
        pixels = np.empty((height, width, 3), np.uint8)
        for row, column in product(range(rows), range(columns)):
            top, left = row * TILE, column * TILE
            pixels[top : top + TILE, left : left + TILE] = self.tile(level, row, column)
        return pixels

    def _averaged(self, part: Rectangle, factor: int, per_pixel: int) -> Pixels:
        """A part of the image, `factor` times smaller; every pixel averages `per_pixel` pixels along each side."""
        step = max(1, factor // per_pixel)
        try:
            pixels = self.source.read(*part) if step == 1 else self.source.reduced(*part, step)
        except ImageError:
            pixels = self._undamaged(part, step)
        return pixels if factor == step else np.asarray(Image.fromarray(pixels).reduce(factor // step))

    def _undamaged(self, part: Rectangle, step: int) -> Pixels:
        """The pixels of a part that can be read; the others are black."""
        side = max(TILE, step)
        pixels = np.zeros((-(-part.height // step), -(-part.width // step), 3), np.uint8)
        for top, left in product(range(0, part.height, side), range(0, part.width, side)):
            height, width = min(side, part.height - top), min(side, part.width - left)
            try:
                found = self.source.reduced(part.top + top, part.left + left, height, width, step)
            except ImageError:
                continue
            rows, columns = found.shape[:2]
            pixels[top // step : top // step + rows, left // step : left // step + columns] = found
        return pixels
