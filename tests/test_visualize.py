from __future__ import annotations

import numpy as np
import pytest

from evitseg.labels import load_labels
from evitseg.visualize import class_fractions, overlay


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
