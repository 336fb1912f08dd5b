from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torchmetrics import JaccardIndex

from evitseg.errors import ConfigError
from evitseg.image import read_mask
from evitseg.labels import load_labels
from evitseg.metrics import confusion_matrix, iou, mean_iou


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
    labels = load_labels("camvid")
    paths = sorted((shared("data/camvid") / "valannot").iterdir())[:12]
    masks = [labels.encode(read_mask(path)) for path in paths]
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
