from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from evitseg.labels import load_labels, numbered
from evitseg.visualize import class_counts, class_fractions, error_map, overlay, tile_sheet


def test_fractions_add_up_and_come_largest_first() -> None:
    mask = np.array([[3, 3, 3, 0], [3, 0, 8, 3]], np.uint8)
    assert class_fractions(mask, load_labels("camvid")) == {"road": 5 / 8, "sky": 2 / 8, "car": 1 / 8}


@pytest.mark.parametrize("size", [(1, 1), (3, 200), (270, 480)])
def test_an_overlay_has_the_image_above_and_the_legend_below(size: tuple[int, int]) -> None:
    labels = load_labels("camvid")
    image = np.full((*size, 3), 200, np.uint8)
    mask = np.zeros(size, np.uint8)
    drawn = np.asarray(overlay(image, mask, labels, opacity=0.5))
    assert drawn.shape[0] > size[0]
    assert drawn.shape[1] >= size[1]
    np.testing.assert_allclose(drawn[0, 0], (200 + labels.palette[0].astype(int)) / 2, atol=1)
    assert (drawn[size[0] :] == labels.palette[0]).all(-1).any()  # the legend's swatch


def test_errors_are_drawn_where_they_are() -> None:
    truth = np.array([[0, 1], [255, 1]], np.uint8)
    drawn = np.asarray(error_map(np.zeros((2, 2, 3), np.uint8), truth, np.zeros((2, 2), np.uint8), numbered(2)))
    assert (drawn[0, 0] == 0).all()
    assert drawn[0, 1, 0] > 100 > drawn[0, 1, 1]
    assert (drawn[1, 0] > 100).all()


def test_a_sheet_has_a_tile_at_every_place_and_white_where_there_is_none() -> None:
    tiles = {(4, 3): "red", (4, 2): "lime", (4, 5): "blue"}
    red, low, blue = (Image.new("RGB", size, color) for size, color in tiles.items())
    sheet = np.asarray(tile_sheet([[red, low], [blue]]))
    assert sheet.shape == (8, 8, 3)
    assert (sheet[:3, :4] == (255, 0, 0)).all()
    assert (sheet[:2, 4:] == (0, 255, 0)).all()
    assert (sheet[2, 4:] == 255).all()
    assert (sheet[3:, :4] == (0, 0, 255)).all()
    assert (sheet[3:, 4:] == 255).all()


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_classes_are_counted_as_numpy_counts_them(dtype: type) -> None:
    rng = np.random.default_rng(0)
    mask: NDArray[np.integer] = np.repeat(rng.integers(0, 200, (37, 20)), 13, axis=1).astype(dtype)
    for part in (mask, mask[:, 3:77], mask[::2].T, mask[:0]):
        expected = np.bincount(part.ravel(), minlength=200)
        np.testing.assert_array_equal(class_counts(part, 200), expected)
        np.testing.assert_array_equal(class_counts(part, 11), expected[:11])
