"""Measure a segmenter, a function, or masks that exist already on labelled images."""

from __future__ import annotations

import contextlib
import json
import math
import os
import pickle
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Protocol, TypeAlias, TypedDict, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from evitseg.data.dataset import Dataset
from evitseg.data.folders import image_files
from evitseg.data.layouts import find_dataset
from evitseg.data.lists import Pair
from evitseg.data.truth import labels_of_model, settled_for
from evitseg.errors import ConfigError, DatasetError, ImageError
from evitseg.evaluation.metrics import Counts, count, iou, mean, mean_iou, ratio
from evitseg.image import ImageArray, Mask
from evitseg.labels import LabelSpace, aligned, by_index
from evitseg.raster.files import read_image
from evitseg.raster.masks import read_mask_file, read_truth
from evitseg.system.parallel import process_map


@dataclass(frozen=True)
class ImageResult:
    """The score of one image; both numbers are nan if no pixel of its mask counts.

    Attributes:
        pair: the image and its mask.
        miou: mean over the classes that occur in this image, 0 to 1.
        accuracy: fraction of its counted pixels that have the right class.
    """

    pair: Pair
    miou: float
    accuracy: float


class ReportDict(TypedDict):
    """The JSON form of a `Report`; None stands for the score of a class that does not occur."""

    miou: float | None
    iou: dict[str, float | None]
    accuracy: dict[str, float | None]
    pixel_accuracy: float
    frequency_weighted_iou: float
    boundary_iou: dict[str, float | None]
    mean_boundary_iou: float | None
    images: int
    skipped: list[str]
    confusion: list[list[int]]
    settings: dict[str, str]


@dataclass(frozen=True)
class Report:
    """The accuracy of a model on a set of images; every fraction is between 0 and 1.

    Attributes:
        labels: the classes.
        counts: pixel counts over the whole set.
        images: one result per image, in the order of the pairs.
        skipped: one sentence for each pair that could not be read; the numbers leave these pairs out.
        settings: free-form notes on what was measured and how, such as the engine.
    """

    labels: LabelSpace
    counts: Counts
    images: tuple[ImageResult, ...]
    skipped: tuple[str, ...] = ()
    settings: dict[str, str] = field(default_factory=dict)

    @property
    def iou(self) -> NDArray[np.float64]:
        """IoU per class; nan for a class that occurs in neither truth nor prediction."""
        return iou(self.counts.confusion)

    @property
    def miou(self) -> float:
        """Mean IoU over the classes that occur."""
        return mean(self.iou)

    @property
    def accuracy(self) -> NDArray[np.float64]:
        """Recall per class: the fraction of its true pixels that were predicted; nan for a class without any."""
        return ratio(np.diag(self.counts.confusion), self.counts.confusion.sum(1))

    @property
    def pixel_accuracy(self) -> float:
        """Fraction of all counted pixels that have the right class."""
        confusion = self.counts.confusion
        return float(np.trace(confusion) / max(confusion.sum(), 1))

    @property
    def frequency_weighted_iou(self) -> float:
        """Mean IoU in which each class weighs as much as its fraction of the true pixels."""
        frequencies = self.counts.confusion.sum(1) / max(self.counts.confusion.sum(), 1)
        return float(np.nansum(self.iou * frequencies))

    @property
    def boundary_iou(self) -> NDArray[np.float64]:
        """IoU per class of the pixels near its boundaries (arXiv:2103.16562); nan for a class without any."""
        return ratio(self.counts.boundary_intersection, self.counts.boundary_union)

    @property
    def mean_boundary_iou(self) -> float:
        """Mean of `boundary_iou` over the classes that occur."""
        return mean(self.boundary_iou)

    def to_dict(self) -> ReportDict:
        """The report as JSON types."""

        def by_class(values: NDArray[np.float64]) -> dict[str, float | None]:
            pairs = zip(self.labels.names, values.tolist(), strict=True)
            return {name: None if math.isnan(value) else value for name, value in pairs}

        return {
            "miou": None if math.isnan(self.miou) else self.miou,
            "iou": by_class(self.iou),
            "accuracy": by_class(self.accuracy),
            "pixel_accuracy": self.pixel_accuracy,
            "frequency_weighted_iou": self.frequency_weighted_iou,
            "boundary_iou": by_class(self.boundary_iou),
            "mean_boundary_iou": None if math.isnan(self.mean_boundary_iou) else self.mean_boundary_iou,
            "images": len(self.images),
            "skipped": list(self.skipped),
            "confusion": self.counts.confusion.tolist(),
            "settings": self.settings,
        }

    def to_json(self) -> str:
        """`to_dict` as indented JSON."""
        return json.dumps(self.to_dict(), indent=2)


class HasMask(Protocol):
    """A prediction."""

    @property
    def mask(self) -> Mask: ...


@runtime_checkable
class FileSegmenter(Protocol):
    """An `evitseg.Segmenter`, which reads image files itself. Evaluation must not import the runtime to say so."""

    @property
    def labels(self) -> LabelSpace: ...

    def mask_tta(self, image: ImageArray) -> Mask: ...

    def __call__(self, source: Path, /) -> HasMask: ...


def evaluate(
    model: Predictor,
    data: str | os.PathLike[str] | Dataset | Sequence[Pair],
    labels: LabelSpace | None = None,
    *,
    split: str | None = None,
    workers: int = 1,
    settings: dict[str, str] | None = None,
    progress: Callable[[int], None] = lambda done: None,
) -> Report:
    """Measure how well predicted masks match the true ones.

    Args:
        model: a `Segmenter`, which reads the image files as `evitseg eval` does; a function from an image, (H, W, 3)
            uint8 RGB, to class indices, (H, W); or `PredictedMasks`.
        data: a path or `Dataset` as for `find_dataset`, or a sequence of pairs.
        labels: the classes. None uses the data's classes in the order of the segmenter's, or the segmenter's classes if
            the data does not name any.
        split: the split of a dataset to measure. None uses "val" if there is one, else "test", else all pairs.
        workers: number of processes, among which a segmenter loaded without `threads` divides the cores. `model` is
            pickled once for each of them, so it cannot be a lambda, and a script needs `if __name__ == "__main__":`
            around its work.
        settings: notes to keep in the report.
        progress: called with 1 after every pair.

    Raises: DatasetError if no pair can be read or a mask has an id that belongs to no class; ConfigError if the data
    has other classes than the segmenter, or `model` cannot be pickled.
    """
    own: LabelSpace | None = getattr(model, "labels", None) if labels is None else None
    if isinstance(data, (str, os.PathLike, Dataset)):
        dataset = data if isinstance(data, Dataset) else find_dataset(data, labels)
        pairs = dataset.pairs(split or default_split(dataset))
        labels = settled_split(dataset, pairs, labels or dataset.labels, own)
    else:
        if split is not None:
            raise ConfigError(f"split {split!r} cannot be chosen from a list of pairs; pass the dataset itself.")
        pairs = tuple(data)
        masks = [pair.mask for pair in pairs]
        if labels is None and own is not None:
            labels = labels_of_model(masks, own)
        labels = settled_for(masks, labels)
    if isinstance(model, PredictedMasks):
        model.check(pairs)
    scored = _in_processes(model, pairs, labels, workers) if workers > 1 else _one_by_one(model, pairs, labels)

    def reported() -> Iterator[tuple[Pair, Counts | str]]:
        for each in scored:
            progress(1)
            yield each

    return summarise(reported(), labels, settings or {})


def default_split(dataset: Dataset) -> str | None:
    """The split to measure unless the user chooses one: val, else test, else None for all pairs."""
    return next((name for name in ("val", "test") if name in dataset.splits), None)


def settled_split(
    dataset: Dataset, pairs: Sequence[Pair], labels: LabelSpace | None, model: LabelSpace | None
) -> LabelSpace:
    """The classes of a split's masks, in the order of the model's classes if those are given.

    Raises: DatasetError if the masks contradict each other; ConfigError if the data has other classes than the model.
    """
    classes = labels or model
    # Only the other splits may show whether 255 is the second of two classes.
    is_binary = classes is not None and len(classes.classes) <= 2
    masks = [pair.mask for pair in (dataset.pairs() if is_binary else pairs)]
    if labels is None and model is not None:
        labels = labels_of_model(masks, model)
    settled = settled_for(masks, labels)
    return aligned(settled, model) if model is not None and settled.names != model.names else settled


def pair_predictor(model: Predictor) -> Callable[[Pair], Mask]:
    """A function that gives a pair's predicted mask; see `evaluate` for the models."""
    if isinstance(model, PredictedMasks):
        return model
    if isinstance(model, FileSegmenter):
        # It reads the file itself, like `evitseg predict`: large JPEGs are decoded at a reduced size.
        segment: FileSegmenter = model
        return lambda pair: segment(pair.image).mask
    function: Callable[[ImageArray], Mask] = model
    return lambda pair: function(read_image(pair.image, pair.reading))


def count_pair(predict: Callable[[Pair], Mask], pair: Pair, labels: LabelSpace) -> Counts | str:
    """The pixel counts of one pair, or a sentence that says why it has none."""
    try:
        truth = read_truth(pair.mask, labels)
        prediction = predict(pair)
        if prediction.shape != truth.shape:
            sizes = [f"{width}×{height}" for height, width in (truth.shape, prediction.shape)]
            return f"{pair.mask}: {sizes[0]} pixels, but the prediction has {sizes[1]}."
        return count(truth, prediction, labels)
    except ImageError as error:
        return str(error)


def summarise(scored: Iterable[tuple[Pair, Counts | str]], labels: LabelSpace, settings: dict[str, str]) -> Report:
    """One report from all pairs with their `count_pair`. Raises: DatasetError if no pair has counts."""
    total: Counts | None = None
    images, skipped = [], []
    for pair, counts in scored:
        if isinstance(counts, str):
            skipped.append(counts)
            continue
        total = counts if total is None else total + counts
        pixels = counts.confusion.sum()
        right = np.trace(counts.confusion) / pixels if pixels else math.nan
        images.append(ImageResult(pair, mean_iou(counts.confusion), float(right)))
    if total is None:
        raise DatasetError(f"nothing to measure: {skipped[0] if skipped else 'there are no pairs.'}")
    return Report(labels, total, tuple(images), tuple(skipped), settings)


def _one_by_one(model: Predictor, pairs: Sequence[Pair], labels: LabelSpace) -> Iterator[tuple[Pair, Counts | str]]:
    predict = pair_predictor(model)
    for pair in pairs:
        yield pair, count_pair(predict, pair, labels)


def _in_processes(
    model: Predictor, pairs: Sequence[Pair], labels: LabelSpace, workers: int
) -> Iterator[tuple[Pair, Counts | str]]:
    try:
        pickled = pickle.dumps(model)
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        raise ConfigError(
            f"this model cannot be sent to other processes ({error}); pass a segmenter or a function that a module "
            "defines by name, or use one process."
        ) from error
    yield from zip(pairs, process_map(pairs, _count, workers, partial(_prepare, pickled, labels)), strict=True)


_prepared: tuple[Callable[[Pair], Mask], LabelSpace]
"""The model and the classes of a worker process, which gets them once and not with every pair."""


def _prepare(pickled: bytes, labels: LabelSpace) -> None:
    global _prepared
    _prepared = pair_predictor(pickle.loads(pickled)), labels


def _count(pair: Pair) -> Counts | str:
    predict, labels = _prepared
    return count_pair(predict, pair, labels)


class PredictedMasks:
    """Masks in a folder, written earlier by `evitseg predict` or another program; a model for `evaluate`.

    Args:
        folder: contains NAME.png or NAME_mask.png for every image NAME, at any depth.
        labels: the classes. Masks hold class indices or the classes' colours, as `evitseg predict` writes them.

    Raises: DatasetError for a folder without masks.
    """

    def __init__(self, folder: str | os.PathLike[str], labels: LabelSpace) -> None:
        self.folder, self.labels = Path(folder), labels
        self._indices = by_index(labels)
        self._masks: dict[str, list[Path]] = {}
        for path in image_files(self.folder) if self.folder.is_dir() else []:
            if path.suffix.lower() in (".png", ".tif", ".tiff", ".bmp"):
                self._masks.setdefault(path.stem.removesuffix("_mask"), []).append(path)
        if not self._masks:
            raise DatasetError(f"{folder}: no masks (.png) found; evitseg predict writes them.")

    def __call__(self, pair: Pair) -> Mask:
        """The predicted mask of a pair's image. Raises: ImageError if the folder has none, or several."""
        path = self._file(pair)
        try:
            mask = read_mask_file(path).classes(self._indices)
            if self.labels.ignore_index in mask:
                raise ConfigError("has pixels without a class.")
            return mask
        except ConfigError as error:
            raise ImageError(
                f"{path}: {error} Predicted masks hold class indices, 0 to {len(self.labels.classes) - 1}, or the "
                "classes' colours, as evitseg predict writes them."
            ) from error

    def check(self, pairs: Iterable[Pair]) -> None:
        """Raises: DatasetError if two images would get the same mask."""
        images: dict[Path, Path] = {}
        for pair in pairs:
            with contextlib.suppress(ImageError):
                path = self._file(pair)
                other = images.setdefault(path, pair.image)
                if other != pair.image:
                    raise DatasetError(
                        f"{path}: could be the mask of {other} and of {pair.image}; put masks into the folders of "
                        "their images."
                    )

    def _file(self, pair: Pair) -> Path:
        # If street.jpg and street.png are in one folder, predict calls their masks street_jpg_mask.png and
        # street_png_mask.png.
        names = (pair.image.name.replace(".", "_"), pair.image.stem)
        found = next((self._masks[name] for name in names if name in self._masks), [])
        # The folders above a mask must be those above the image: a mask of the same name elsewhere is another image's.
        found = [p for p in found if _ends_with(pair.image.parent.parts, p.relative_to(self.folder).parent.parts)]
        deepest = max((len(p.parts) for p in found), default=0)
        found = [p for p in found if len(p.parts) == deepest]
        if len(found) != 1:
            reason = "no mask" if not found else f"{len(found)} masks"
            raise ImageError(f"{pair.image}: {reason} of its name in {self.folder}.")
        return found[0]


def _ends_with(parts: tuple[str, ...], end: tuple[str, ...]) -> bool:
    return not end or parts[-len(end) :] == end


Predictor: TypeAlias = FileSegmenter | PredictedMasks | Callable[[ImageArray], Mask]
"""A source of predicted masks, as `evaluate` takes it."""
