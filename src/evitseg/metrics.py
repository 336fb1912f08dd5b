"""How good masks are: one confusion matrix over a whole set, and what follows from it."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from evitseg.errors import ConfigError
from evitseg.image import Mask


def confusion_matrix(truth: Mask, prediction: Mask, num_classes: int, ignore_index: int) -> NDArray[np.int64]:
    """Counts of pixels, (true class, predicted class); pixels whose truth is `ignore_index` are not counted.

    Raises: ConfigError where the masks' sizes differ, or a class index is out of range.
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
    """Intersection over union of every class, 0 to 1; nan for a class in neither truth nor prediction."""
    hit = np.diag(confusion)
    union = confusion.sum(0) + confusion.sum(1) - hit
    values: NDArray[np.float64] = np.divide(hit, union, out=np.full(len(hit), np.nan), where=union > 0)
    return values


def mean_iou(confusion: NDArray[np.int64]) -> float:
    """Mean over the classes that occur in truth or prediction, 0 to 1; nan where none does."""
    values = iou(confusion)
    occurring = values[~np.isnan(values)]
    return float(occurring.mean()) if occurring.size else float("nan")
