from __future__ import annotations

import numpy as np
import pytest

from evitseg.viewer.pyramid import TILE, Pyramid


@pytest.mark.parametrize(
    ("size", "levels"), [((1, 1), 1), ((512, 512), 1), ((512, 513), 2), ((300, 1025), 3), ((32768, 32768), 7)]
)
def test_levels_halve_the_image_until_it_is_one_tile(size: tuple[int, int], levels: int) -> None:
    pyramid = Pyramid(size)
    assert pyramid.levels == levels
    assert pyramid.grid(levels - 1) == (1, 1)
    assert levels == 1 or pyramid.grid(levels - 2) != (1, 1)
    assert pyramid.size_of(0) == size


@pytest.mark.parametrize("size", [(513, 1300), (1024, 700), (40, 3000)])
def test_the_tiles_of_a_level_cover_it_once_and_show_the_whole_image(size: tuple[int, int]) -> None:
    pyramid = Pyramid(size)
    for level in range(pyramid.levels):
        covered = np.zeros(pyramid.size_of(level), int)
        image = np.zeros(size, int)
        rows, columns = pyramid.grid(level)
        for row in range(rows):
            for column in range(columns):
                part = pyramid.tile(level, row, column)
                covered[part.top : part.top + part.height, part.left : part.left + part.width] += 1
                own = pyramid.in_image(level, part)
                image[own.top : own.top + own.height, own.left : own.left + own.width] += 1
        assert (covered == 1).all()
        assert (image == 1).all()
        assert pyramid.has(level, rows - 1, columns - 1)
        assert not pyramid.has(level, rows, 0)
        assert not pyramid.has(level, 0, -1)
    assert not pyramid.has(pyramid.levels, 0, 0)


def test_a_margin_stays_inside_the_level() -> None:
    pyramid = Pyramid((1200, 2000))
    assert pyramid.tile(0, 1, 1, margin=100) == (TILE - 100, TILE - 100, TILE + 200, TILE + 200)
    assert pyramid.tile(0, 0, 3, margin=100) == (0, 3 * TILE - 100, TILE + 100, 2000 - 3 * TILE + 100)
