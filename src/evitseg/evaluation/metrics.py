"""Metrics of semantic segmentation, all from one confusion matrix over a whole set."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from evitseg.errors import ConfigError
from evitseg.image import Mask
from evitseg.labels import LabelSpace

BOUNDARY_FRACTION = 0.02
"""Width of boundary IoU's band, as a fraction of the image's diagonal (arXiv:2103.16562)."""


def confusion_matrix(truth: Mask, prediction: Mask, num_classes: int, ignore_index: int) -> NDArray[np.int64]:
    """Pixel counts by (true class, predicted class); pixels whose truth is `ignore_index` are not counted.

    Raises: ConfigError if the masks have different sizes or a class index is out of range.
    """
    if truth.shape != prediction.shape:
        raise ConfigError(f"masks of {truth.shape} and {prediction.shape} pixels cannot be compared.")
    counted = truth != ignore_index
    true, predicted = truth[counted].astype(np.int64), prediction[counted].astype(np.int64)
    for what, mask in (("truth", true), ("prediction", predicted)):
        if mask.size and not 0 <= mask.min() <= mask.max() < num_classes:
            raise ConfigError(f"the {what} has class index {mask.max()}; there are {num_classes} classes.")
    counts = np.bincount(true * num_classes + predicted, minlength=num_classes**2)
    return counts.reshape(num_classes, num_classes).astype(np.int64)


def iou(confusion: NDArray[np.int64]) -> NDArray[np.float64]:
    """Intersection over union per class, 0 to 1; nan for a class in neither truth nor prediction."""
    intersection = np.diag(confusion)
    return ratio(intersection, confusion.sum(0) + confusion.sum(1) - intersection)


def mean_iou(confusion: NDArray[np.int64]) -> float:
    """Mean over the classes that occur in truth or prediction, 0 to 1; nan if none does."""
    return mean(iou(confusion))


def ratio(part: NDArray[np.int64], whole: NDArray[np.int64]) -> NDArray[np.float64]:
    """Element-wise quotient; nan where `whole` is 0."""
    values: NDArray[np.float64] = np.divide(part, whole, out=np.full(len(part), np.nan), where=whole > 0)
    return values


def mean(values: NDArray[np.float64]) -> float:
    """Mean of the values that are not nan; nan if there are none."""
    occurring = values[~np.isnan(values)]
    return float(occurring.mean()) if occurring.size else math.nan


def boundary_band(mask: Mask, distance: int) -> NDArray[np.bool_]:
    """(H, W) mask of the pixels within `distance` of another class or of the image's edge.

    The distance of two pixels is the larger of their distances along the two axes.
    """
    # A pixel is in the band if its neighbourhood contains several classes.
    lowest = highest = np.pad(mask, distance, mode="edge")
    for axis in (0, 1):
        lowest, highest = _running(np.minimum, lowest, distance, axis), _running(np.maximum, highest, distance, axis)
    band: NDArray[np.bool_] = lowest != highest
    band[:distance], band[-distance:], band[:, :distance], band[:, -distance:] = True, True, True, True
    return band


def _running(extreme: np.ufunc, values: Mask, distance: int, axis: int) -> Mask:
    """Minimum or maximum over windows of 2·distance + 1 pixels along an axis, in a logarithmic number of steps."""
    values = np.moveaxis(values, axis, 0)
    window, width = 2 * distance + 1, 1
    while width < window:
        step = min(width, window - width)
        values = extreme(values[:-step], values[step:])
        width += step
    return np.moveaxis(values, 0, axis)


@dataclass(frozen=True)
class Counts:
    """Pixel counts of one image or of several; they add up.

    Attributes:
        confusion: (classes, classes) pixels, true class first.
        boundary_intersection, boundary_union: (classes,) pixels, for boundary IoU.
    """

    confusion: NDArray[np.int64]
    boundary_intersection: NDArray[np.int64]
    boundary_union: NDArray[np.int64]

    def __add__(self, other: Counts) -> Counts:
        return Counts(
            self.confusion + other.confusion,
            self.boundary_intersection + other.boundary_intersection,
            self.boundary_union + other.boundary_union,
        )


def count(truth: Mask, prediction: Mask, labels: LabelSpace) -> Counts:
    """The counts of one image. Raises: ConfigError if the masks cannot be compared."""
    classes, ignored = len(labels.classes), labels.ignore_index
    confusion = confusion_matrix(truth, prediction, classes, ignored)
    distance = max(1, round(BOUNDARY_FRACTION * math.hypot(*truth.shape)))
    counted = truth != ignored
    true_band = boundary_band(truth, distance) & counted
    # Ignored pixels are ignored in both masks: a prediction cannot know where their edge is.
    predicted_band = boundary_band(np.where(counted, prediction, truth), distance) & counted

    def pixels(mask: Mask, where: NDArray[np.bool_]) -> NDArray[np.int64]:
        return np.bincount(mask[where], minlength=classes).astype(np.int64)

    intersection = pixels(truth, true_band & predicted_band & (truth == prediction))
    union = pixels(truth, true_band) + pixels(prediction, predicted_band) - intersection
    return Counts(confusion, intersection, union)
