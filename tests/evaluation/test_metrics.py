from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from evitseg.errors import ConfigError
from evitseg.evaluation.metrics import boundary_band, confusion_matrix, count, iou, mean_iou
from evitseg.labels import load_labels, numbered
from evitseg.raster.masks import read_truth
from tests.optional import needs


def test_a_confusion_matrix_counted_by_hand() -> None:
    truth = np.array([[0, 0, 1], [1, 255, 2]])
    prediction = np.array([[0, 1, 1], [1, 0, 0]])
    confusion = confusion_matrix(truth, prediction, 3, ignore_index=255)
    np.testing.assert_array_equal(confusion, [[1, 1, 0], [0, 2, 0], [1, 0, 0]])
    np.testing.assert_allclose(iou(confusion), [1 / 3, 2 / 3, 0])
    assert mean_iou(confusion) == pytest.approx(1 / 3)


def test_a_class_that_occurs_nowhere_does_not_count() -> None:
    confusion = np.array([[3, 1, 0], [2, 4, 0], [0, 0, 0]])
    np.testing.assert_allclose(iou(confusion), [3 / 6, 4 / 7, np.nan])
    assert mean_iou(confusion) == pytest.approx((3 / 6 + 4 / 7) / 2)
    assert np.isnan(mean_iou(np.zeros((2, 2), np.int64)))


def test_masks_that_cannot_be_compared_are_an_error() -> None:
    with pytest.raises(ConfigError, match="cannot be compared"):
        confusion_matrix(np.zeros((2, 2), int), np.zeros((2, 3), int), 2, 255)
    with pytest.raises(ConfigError, match="prediction has class index 7"):
        confusion_matrix(np.zeros((1, 2), int), np.array([[0, 7]]), 2, 255)


def test_the_metric_agrees_with_torchmetrics_on_real_masks(shared: Callable[[str], Path]) -> None:
    needs("torchmetrics", "torch")
    import torch
    from torchmetrics import JaccardIndex

    labels = load_labels("camvid")
    paths = sorted((shared("data/camvid") / "valannot").iterdir())[:12]
    masks = [read_truth(path, labels) for path in paths]
    jaccard = JaccardIndex("multiclass", num_classes=11, average="none", ignore_index=255)
    confusion = np.zeros((11, 11), np.int64)
    # The next frame's mask, its void as sky, is a prediction with plausible errors.
    for truth, other in itertools.pairwise(masks):
        prediction = np.where(other == 255, 0, other)
        confusion += confusion_matrix(truth, prediction, 11, 255)
        jaccard.update(torch.from_numpy(prediction.astype(np.int64)), torch.from_numpy(truth.astype(np.int64)))
    expected = jaccard.compute().numpy()
    occurring = ~np.isnan(iou(confusion))
    np.testing.assert_allclose(iou(confusion)[occurring], expected[occurring], rtol=1e-6)


def slow_band(mask: NDArray[np.integer], distance: int) -> NDArray[np.bool_]:
    """The band's definition, pixel by pixel."""
    height, width = mask.shape
    band = np.zeros(mask.shape, bool)
    for y in range(height):
        for x in range(width):
            if min(y, x, height - 1 - y, width - 1 - x) < distance:
                band[y, x] = True
                continue
            around = mask[y - distance : y + distance + 1, x - distance : x + distance + 1]
            band[y, x] = (around != mask[y, x]).any()
    return band


@pytest.mark.parametrize("distance", [1, 2, 3, 7])
def test_the_boundary_band_is_what_its_definition_says(distance: int) -> None:
    rng = np.random.default_rng(0)
    mask = rng.integers(0, 3, (6, 8)).repeat(5, 0).repeat(5, 1).astype(np.uint8)
    np.testing.assert_array_equal(boundary_band(mask, distance), slow_band(mask, distance))


def test_boundary_iou_counted_by_hand() -> None:
    # 1×8 pixels, distance 1: the band is everything, for the image is one pixel high.
    truth = np.array([[0, 0, 0, 1, 1, 1, 1, 255]], np.uint8)
    prediction = np.array([[0, 0, 1, 1, 1, 1, 0, 0]], np.uint8)
    counts = count(truth, prediction, numbered(2))
    np.testing.assert_array_equal(counts.boundary_intersection, [2, 3])
    np.testing.assert_array_equal(counts.boundary_union, [4, 5])


def test_a_perfect_prediction_has_a_perfect_boundary_whatever_it_says_of_void() -> None:
    rng = np.random.default_rng(0)
    truth = rng.integers(0, 3, (6, 8)).repeat(9, 0).repeat(9, 1).astype(np.uint8)
    truth[10:40, 20:50] = 255
    prediction = np.where(truth == 255, 1, truth)
    counts = count(truth, prediction, numbered(3))
    np.testing.assert_array_equal(counts.boundary_intersection, counts.boundary_union)
    assert counts.boundary_union.min() > 0


def test_boundary_pixels_are_part_of_the_classes_pixels() -> None:
    rng = np.random.default_rng(1)
    truth, prediction = rng.integers(0, 2, (2, 40, 40)).astype(np.uint8)
    counts = count(truth, prediction, numbered(2))
    assert (counts.boundary_intersection <= np.diag(counts.confusion)).all()
