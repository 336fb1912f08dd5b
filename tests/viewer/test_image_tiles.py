from __future__ import annotations

import threading
from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray

from evitseg.errors import ImageError
from evitseg.raster.window import ArraySource, Origin, Source
from evitseg.viewer import image_tiles
from evitseg.viewer.image_tiles import ImageTiles

Pixels = NDArray[np.uint8]


def noise(height: int, width: int) -> Pixels:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)


def averaged(image: Pixels, factor: int) -> NDArray[np.float64]:
    """The mean of every cell of `factor` by `factor` pixels, cells at the border being smaller."""
    rows = [image[y : y + factor].astype(float) for y in range(0, image.shape[0], factor)]
    return np.array([[band[:, x : x + factor].mean((0, 1)) for x in range(0, image.shape[1], factor)] for band in rows])


class FromFile(Source):
    """A source that counts what is read, whose file has no smaller levels."""

    def __init__(self, image: Pixels, damaged: Callable[[int, int, int, int], bool] = lambda *window: False) -> None:
        self.size = (image.shape[0], image.shape[1])
        self.origin = Origin("tiff")
        self.image, self.damaged, self.pixels_read = image, damaged, 0

    def read(self, top: int, left: int, height: int, width: int) -> Pixels:
        if self.damaged(top, left, height, width):
            raise ImageError("damaged")
        self.pixels_read += height * width
        return self.image[top : top + height, left : left + width]

    def valid(self, top: int, left: int, height: int, width: int) -> None:
        return None


def whole(tiles: ImageTiles, level: int) -> Pixels:
    rows, columns = tiles.pyramid.grid(level)
    return np.vstack([np.hstack([tiles.tile(level, y, x) for x in range(columns)]) for y in range(rows)])


@pytest.mark.parametrize("make", [ArraySource, FromFile])
def test_tiles_are_the_image_and_its_averages(make: Callable[[Pixels], Source]) -> None:
    image = noise(515, 1061)
    tiles = ImageTiles(make(image))
    tiles.prepare()
    np.testing.assert_array_equal(whole(tiles, 0), image)
    for level in (1, 2):
        assert np.abs(whole(tiles, level) - averaged(image, 2**level)).max() < 1  # rounded
        np.testing.assert_array_equal(tiles.whole(level), whole(tiles, level))


def test_coarse_levels_come_from_a_small_copy_that_is_made_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_tiles, "SMALL_SIDE", 1024)
    gradient = np.broadcast_to((np.arange(8192) // 64).astype(np.uint8)[:, None, None], (8192, 256, 3))
    source = FromFile(np.ascontiguousarray(gradient))
    tiles, done = ImageTiles(source), list[float]()
    tiles.prepare(done.append)
    assert done[-1] == 1
    assert done == sorted(done)
    before = source.pixels_read
    assert before <= 8192 * 256
    assert np.abs(whole(tiles, 3) - averaged(gradient, 8)).max() <= 1
    assert np.abs(whole(tiles, 4) - averaged(gradient, 16)).max() <= 1
    assert source.pixels_read == before


def test_a_coarse_tile_waits_for_the_small_copy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_tiles, "SMALL_SIDE", 1024)
    tiles, found = ImageTiles(FromFile(noise(8192, 64))), list[Pixels]()
    thread = threading.Thread(target=lambda: found.append(tiles.tile(3, 0, 0)))
    thread.start()
    thread.join(0.05)
    assert not found
    tiles.prepare()
    thread.join(10)
    assert found[0].shape == (512, 8, 3)


def test_a_part_that_cannot_be_read_is_black_and_the_rest_is_shown() -> None:
    image = np.full((1024, 1024, 3), 90, np.uint8)
    tiles = ImageTiles(FromFile(image, lambda top, left, height, width: top + height > 512 and left + width > 512))
    tiles.prepare()
    expected = image.copy()
    expected[512:, 512:] = 0
    np.testing.assert_array_equal(whole(tiles, 0), expected)
    np.testing.assert_array_equal(whole(tiles, 1), expected[::2, ::2])
