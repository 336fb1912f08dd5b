"""Evaluate a model, or masks that were predicted earlier, on labelled images."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, TypedDict, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from evitseg.data.dataset import Dataset
from evitseg.data.folders import image_files
from evitseg.data.inspect import KILLED, MAX_WORKERS
from evitseg.data.layouts import find_dataset
from evitseg.data.lists import Pair
from evitseg.data.truth import settled_for
from evitseg.errors import ConfigError, DatasetError, ImageError
from evitseg.evaluation.metrics import Counts, count, iou, mean, mean_iou, ratio
from evitseg.image import ImageArray, Mask
from evitseg.labels import LabelSpace, aligned, by_index
from evitseg.raster.files import read_image
from evitseg.raster.masks import read_mask_file, read_truth


@dataclass(frozen=True)
class ImageResult:
    """One image's part in a report.

    Attributes:
        pair: which one.
        miou: mean over the classes that occur in this image, 0 to 1.
        accuracy: share of its counted pixels that are right.

    Both are nan where no pixel counts.
    """

    pair: Pair
    miou: float
    accuracy: float


class ReportDict(TypedDict):
    """A report's numbers for programs; a class that does not occur has None."""

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
    """How good a model is on a set of images; all shares are 0 to 1.

    Attributes:
        labels: the classes.
        counts: over the whole set.
        images: one by one, in the order they were given.
        skipped: sentences about pairs that could not be read and are not in the numbers.
        settings: what was measured, and how.
    """

    labels: LabelSpace
    counts: Counts
    images: tuple[ImageResult, ...]
    skipped: tuple[str, ...] = ()
    settings: dict[str, str] = field(default_factory=dict)

    @property
    def iou(self) -> NDArray[np.float64]:
        return iou(self.counts.confusion)

    @property
    def miou(self) -> float:
        return mean(self.iou)

    @property
    def accuracy(self) -> NDArray[np.float64]:
        """Share of every class's true pixels that are found; nan for a class without any."""
        return ratio(np.diag(self.counts.confusion), self.counts.confusion.sum(1))

    @property
    def pixel_accuracy(self) -> float:
        confusion = self.counts.confusion
        return float(np.trace(confusion) / max(confusion.sum(), 1))

    @property
    def frequency_weighted_iou(self) -> float:
        """Mean IoU, every class weighted by its share of the true pixels."""
        shares = self.counts.confusion.sum(1) / max(self.counts.confusion.sum(), 1)
        return float(np.nansum(self.iou * shares))

    @property
    def boundary_iou(self) -> NDArray[np.float64]:
        """IoU of every class's pixels near its boundaries, arXiv:2103.16562; nan for a class that has none."""
        return ratio(self.counts.band_hits, self.counts.band_union)

    @property
    def mean_boundary_iou(self) -> float:
        return mean(self.boundary_iou)

    def to_dict(self) -> ReportDict:
        """Numbers for programs; a class that does not occur has null."""

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
        return json.dumps(self.to_dict(), indent=2)


MaskFunction = Callable[[ImageArray], Mask]
"""(H, W, 3) uint8 image -> (H, W) class indices."""


class HasMask(Protocol):
    """A prediction."""

    @property
    def mask(self) -> Mask: ...


@runtime_checkable
class ReadsFiles(Protocol):
    """A segmenter: called with a file, it returns a prediction."""

    @property
    def labels(self) -> LabelSpace: ...

    def mask_tta(self, image: ImageArray) -> Mask: ...

    def __call__(self, source: Path, /) -> HasMask: ...


def evaluate(
    mask_of: ReadsFiles | MaskFunction | Callable[[Pair], Mask],
    data: str | os.PathLike[str] | Dataset | Sequence[Pair],
    labels: LabelSpace | None = None,
    *,
    split: str | None = None,
    settings: dict[str, str] | None = None,
    by_pair: bool = False,
    progress: Callable[[int], None] = lambda done: None,
) -> Report:
    """Measure a model, or any function from an image to a mask.

    Args:
        mask_of: a `Segmenter`, which reads the files itself, as `evitseg eval` measures it; or a function from an image
            (H, W, 3), uint8 RGB, to (H, W) class indices.
        data: what `find_dataset` takes or gives, or pairs as `find_pairs` gives them.
        labels: the classes; None takes the data's, in the order of the segmenter's, or else the segmenter's.
        split: of a dataset; None takes val, else test, else all there is.
        by_pair: `mask_of` takes the pair instead of the image, as a folder of predicted masks does.
        settings: noted in the report.
        progress: called with 1 for every pair done.

    Raises: DatasetError where no pair can be read, and for a mask with an id that has no class; ConfigError where the
    data's classes are not the segmenter's.
    """
    own: LabelSpace | None = getattr(mask_of, "labels", None) if labels is None else None
    if isinstance(data, (str, os.PathLike, Dataset)):
        dataset = data if isinstance(data, Dataset) else find_dataset(data, labels)
        pairs = dataset.pairs(split or default_split(dataset))
        labels = settled_split(dataset, pairs, labels or dataset.labels, own)
    else:
        if split is not None:
            raise ConfigError(f"split {split!r} of pairs: give the data itself to choose a split of it.")
        pairs = tuple(data)
        labels = settled_for([pair.mask for pair in pairs], labels or own)
    function: Callable[[Any], Any] = mask_of  # of an image or of a pair, as by_pair says
    if isinstance(mask_of, ReadsFiles) and not by_pair:
        segment = mask_of
        # From the file, like `evitseg predict`: large JPEGs are decoded at a reduced size.
        function, by_pair = (lambda pair: segment(pair.image).mask), True
    outcomes = (measured(function, pair, labels, by_pair, progress) for pair in pairs)
    return summarise(outcomes, labels, settings or {})


def default_split(dataset: Dataset) -> str | None:
    """The split that is measured where none is asked for: val, else test, else all there is."""
    return next((name for name in ("val", "test") if name in dataset.splits), None)


def settled_split(
    dataset: Dataset, pairs: Sequence[Pair], labels: LabelSpace | None, model: LabelSpace | None
) -> LabelSpace:
    """The classes of a split's masks, in the order of a model's where there is one.

    Raises: DatasetError, and ConfigError where the data's classes are not the model's.
    """
    labels = labels or model
    # Whether 255 is the second of two classes can show in another split.
    is_binary = labels is not None and len(labels.classes) <= 2
    settled = settled_for([pair.mask for pair in (dataset.pairs() if is_binary else pairs)], labels)
    return aligned(settled, model) if model is not None and settled.names != model.names else settled


def measured(
    mask_of: Callable[[Any], Mask],
    pair: Pair,
    labels: LabelSpace,
    by_pair: bool = False,
    progress: Callable[[int], None] = lambda done: None,
) -> tuple[Pair, Counts | str]:
    """One pair's counts, or the sentence about why it has none; see `evaluate` and `summarise`."""
    try:
        truth = read_truth(pair.mask, labels)
        prediction = mask_of(pair if by_pair else read_image(pair.image, pair.reading))
        if prediction.shape != truth.shape:
            sizes = [f"{width}×{height}" for height, width in (truth.shape, prediction.shape)]
            return pair, f"{pair.mask}: {sizes[0]} pixels, but the prediction has {sizes[1]}."
        return pair, count(truth, prediction, labels)
    except ImageError as error:
        return pair, str(error)
    finally:
        progress(1)


def summarise(outcomes: Iterable[tuple[Pair, Counts | str]], labels: LabelSpace, settings: dict[str, str]) -> Report:
    """One report from every pair's counts, or the sentence about why it has none.

    Raises: DatasetError where not one has counts.
    """
    total: Counts | None = None
    images, skipped = [], []
    for pair, counts in outcomes:
        if isinstance(counts, str):
            skipped.append(counts)
            continue
        total = counts if total is None else total + counts
        pixels = counts.confusion.sum()
        right = np.trace(counts.confusion) / pixels if pixels else math.nan
        images.append(ImageResult(pair, mean_iou(counts.confusion), float(right)))
    if total is None:
        raise DatasetError(f"nothing to measure: {skipped[0] if skipped else 'no pairs were given.'}")
    return Report(labels, total, tuple(images), tuple(skipped), settings)


class PredictedMasks:
    """Masks that were predicted before, found in a folder by the images' names.

    Args:
        folder: with NAME.png or NAME_mask.png for every image NAME, at any depth.
        labels: the classes; masks hold class indices or the classes' colours, as `evitseg predict` writes them.

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
        """Raises: ImageError where the image has no mask here, or several."""
        # Of street.jpg beside street.png, the masks are street_jpg_mask.png and street_png_mask.png.
        names = (pair.image.name.replace(".", "_"), pair.image.stem)
        found = next((self._masks[name] for name in names if name in self._masks), [])
        # Folders below ours are those that the image lies in; so a mask of the same name from elsewhere is no match.
        found = [p for p in found if _ends_with(pair.image.parent.parts, p.relative_to(self.folder).parent.parts)]
        deepest = max((len(p.parts) for p in found), default=0)
        found = [p for p in found if len(p.parts) == deepest]
        if len(found) != 1:
            reason = "no mask" if not found else f"{len(found)} masks"
            raise ImageError(f"{pair.image}: {reason} of its name in {self.folder}.")
        try:
            mask = read_mask_file(found[0]).classes(self._indices)
            if self.labels.ignore_index in mask:
                raise ConfigError("has pixels without a class.")
            return mask
        except ConfigError as error:
            raise ImageError(
                f"{found[0]}: {error} Predicted masks hold class indices, 0 to {len(self.labels.classes) - 1}, or the "
                "classes' colours, as evitseg predict writes them."
            ) from error


def _ends_with(parts: tuple[str, ...], end: tuple[str, ...]) -> bool:
    return not end or parts[-len(end) :] == end


_worker: Callable[[Pair], tuple[Pair, Counts | str]]


def evaluate_in_processes(
    make: Callable[[], tuple[Callable[[Any], Mask], bool]],
    pairs: Sequence[Pair],
    labels: LabelSpace,
    workers: int,
    *,
    settings: dict[str, str] | None = None,
    progress: Callable[[int], None] = lambda done: None,
) -> Report:
    """`evaluate`, with the pairs divided over processes.

    Args:
        make: called once in every process; gives `mask_of` and `by_pair`. It has to be picklable.
    """
    import multiprocessing

    # A fresh process, not a fork: an engine's threads do not survive one.
    context = multiprocessing.get_context("spawn")
    try:
        with ProcessPoolExecutor(min(workers, MAX_WORKERS), context, _start_worker, (make, labels)) as pool:

            def outcomes() -> Iterable[tuple[Pair, Counts | str]]:
                for outcome in pool.map(_work, pairs, chunksize=4):
                    progress(1)
                    yield outcome

            return summarise(outcomes(), labels, settings or {})
    except BrokenProcessPool as error:
        raise DatasetError(f"measuring stopped: {KILLED}") from error


def _start_worker(make: Callable[[], tuple[Callable[[Any], Mask], bool]], labels: LabelSpace) -> None:
    global _worker
    mask_of, by_pair = make()
    _worker = lambda pair: measured(mask_of, pair, labels, by_pair, lambda done: None)  # noqa: E731  # bound once


def _work(pair: Pair) -> tuple[Pair, Counts | str]:
    return _worker(pair)
