"""Compare models on the same labelled images, with confidence intervals over the images."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from evitseg.data.lists import Pair
from evitseg.evaluation.evaluate import Predictor, Report, count_pair, pair_predictor, summarise
from evitseg.evaluation.metrics import Counts
from evitseg.image import Mask
from evitseg.labels import LabelSpace
from evitseg.raster.masks import read_truth

CONFIDENCE = 0.95
"""Probability that an interval is meant to hold."""
RESAMPLES = 2000
"""Default number of resampled sets of images."""


@dataclass(frozen=True)
class Interval:
    """A measured value, and the limits of its confidence interval.

    All are nan for a class that does not occur. The limits are nan if a single image has the class, because one image
    does not tell how much the value depends on the choice of images.
    """

    value: float
    low: float
    high: float

    @property
    def excludes_zero(self) -> bool:
        """Whether the sign of the value is certain, as far as the images tell."""
        return self.low > 0 or self.high < 0


@dataclass(frozen=True)
class Scores:
    """One model's scores from 0 to 1, and how far they are above those of the first model.

    Attributes:
        report: the evaluation on the images that all models were measured on.
        miou, iou: mean IoU, and IoU per class.
        miou_difference, iou_difference: this model's minus the first model's; 0 for the first model itself.
    """

    report: Report
    miou: Interval
    iou: tuple[Interval, ...]
    miou_difference: Interval
    iou_difference: tuple[Interval, ...]


@dataclass(frozen=True)
class Comparison:
    """Several models on the same images.

    Attributes:
        labels: the classes.
        scores: one per model, in their order.
        different: per image, the fraction of its counted pixels that the models do not all give the same class.
        skipped: one sentence for each pair that some model was not measured on; no model is.
        resamples: number of resampled sets of images.
    """

    labels: LabelSpace
    scores: tuple[Scores, ...]
    different: tuple[tuple[Pair, float], ...]
    skipped: tuple[str, ...]
    resamples: int

    def most_different(self, count: int) -> list[tuple[Pair, float]]:
        """The images with the largest fraction of different pixels, if any pixel differs."""
        ordered = sorted(self.different, key=lambda each: -each[1])
        return [each for each in ordered[:count] if each[1] > 0]


def compare_models(
    models: Sequence[Predictor],
    pairs: Sequence[Pair],
    labels: LabelSpace,
    *,
    resamples: int = RESAMPLES,
    settings: Sequence[dict[str, str]] = (),
    progress: Callable[[int], None] = lambda done: None,
) -> Comparison:
    """Measure all models on all images, and how certain their differences are.

    The intervals are those of the paired percentile bootstrap: images are drawn with replacement, the same ones for
    every model, and each drawn set has one confusion matrix per model. They say how much the scores depend on the
    choice of the images, not on the seed of a training run.

    Args:
        models: as for `evaluate`; the first is the one that the others are compared with.
        settings: notes on each model, for its report.
        progress: called with 1 after every pair.

    Raises: DatasetError if no pair can be measured.
    """
    predictors = [pair_predictor(model) for model in models]
    measured: list[list[Counts]] = [[] for _ in models]
    used: list[tuple[Pair, float]] = []
    skipped: list[str] = []
    for pair in pairs:
        masks: list[Mask] = []
        counted = [count_pair(_keeping(predict, masks), pair, labels) for predict in predictors]
        problems = [each for each in counted if isinstance(each, str)]
        if problems:
            skipped.append(problems[0])
        else:
            used.append((pair, _different(masks, read_truth(pair.mask, labels), labels)))
            for own, counts in zip(measured, counted, strict=True):
                assert not isinstance(counts, str)
                own.append(counts)
        progress(1)
    notes = settings or [{} for _ in models]
    failed = [(pair, sentence) for pair, sentence in zip(pairs, skipped, strict=True)] if not used else []
    reports = [
        summarise([*zip((pair for pair, _ in used), own, strict=True), *failed], labels, note)
        for own, note in zip(measured, notes, strict=True)
    ]
    has = np.stack([_unions(own) > 0 for own in measured]).any(0)
    drawn = [_drawn_ious(own, resamples) for own in measured]
    scores = tuple(
        _scores(report, own, reports[0], drawn[0], has.sum(0)) for report, own in zip(reports, drawn, strict=True)
    )
    return Comparison(labels, scores, tuple(used), tuple(skipped), resamples)


def _keeping(predict: Callable[[Pair], Mask], kept: list[Mask]) -> Callable[[Pair], Mask]:
    """The same predictor, which appends its masks to a list."""

    def predicted(pair: Pair) -> Mask:
        kept.append(predict(pair))
        return kept[-1]

    return predicted


def _different(masks: Sequence[Mask], truth: Mask, labels: LabelSpace) -> float:
    counted = truth != labels.ignore_index
    differs = np.zeros(truth.shape, bool)
    for mask in masks[1:]:
        differs |= mask != masks[0]
    return float((differs & counted).sum() / max(counted.sum(), 1))


def _unions(images: Sequence[Counts]) -> NDArray[np.int64]:
    """(images, classes) pixels that have a class in the truth or in the prediction."""
    each = [counts.confusion for counts in images]
    return np.stack([pixels.sum(0) + pixels.sum(1) - np.diag(pixels) for pixels in each])


def _drawn_ious(images: Sequence[Counts], resamples: int) -> NDArray[np.float64]:
    """(resamples, classes) IoU of resampled sets of images; the same sets for every model."""
    intersection = np.stack([np.diag(counts.confusion) for counts in images])
    union = _unions(images)
    rng, drawn = np.random.default_rng(0), []
    for start in range(0, resamples, 256):  # in parts: thousands of images times thousands of sets would be large
        times = rng.multinomial(len(images), np.full(len(images), 1 / len(images)), min(256, resamples - start))
        part, whole = times @ intersection, times @ union
        drawn.append(np.divide(part, whole, out=np.full(part.shape, np.nan), where=whole > 0))
    return np.concatenate(drawn)


def _scores(
    report: Report,
    drawn: NDArray[np.float64],
    first: Report,
    first_drawn: NDArray[np.float64],
    with_class: NDArray[np.int64],
) -> Scores:
    """The scores of one model; `with_class` is the number of images that have each class."""
    own, base, images = _means(drawn), _means(first_drawn), len(report.images)
    return Scores(
        report,
        _interval(report.miou, own, images),
        tuple(map(_interval, report.iou.tolist(), drawn.T, with_class)),
        _interval(report.miou - first.miou, own - base, images),
        tuple(map(_interval, (report.iou - first.iou).tolist(), (drawn - first_drawn).T, with_class)),
    )


def _means(drawn: NDArray[np.float64]) -> NDArray[np.float64]:
    """(resamples,) mean IoU over the classes that occur in each drawn set."""
    occurs = ~np.isnan(drawn)
    means: NDArray[np.float64] = np.where(occurs, drawn, 0).sum(1) / np.maximum(occurs.sum(1), 1)
    return means


def _interval(value: float, drawn: NDArray[np.float64], images: int) -> Interval:
    known = drawn[~np.isnan(drawn)]
    if images < 2 or not known.size:
        return Interval(value, float("nan"), float("nan"))
    low, high = np.quantile(known, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return Interval(value, float(low), float(high))
