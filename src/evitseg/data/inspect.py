"""Read every image and mask of a dataset and report problems."""

from __future__ import annotations

import hashlib
import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from evitseg.data.dataset import ALL, Dataset
from evitseg.data.folders import reasons
from evitseg.data.lists import Pair
from evitseg.data.truth import Survey, class_counts, settled_labels
from evitseg.errors import ConfigError, DatasetError, EvitsegError, EvitsegWarning
from evitseg.labels import LabelSpace
from evitseg.raster.files import read_image
from evitseg.raster.mask_values import DistinctValues
from evitseg.raster.masks import read_mask_file, read_truth
from evitseg.raster.orientation import orientation_of_file
from evitseg.system.parallel import process_map
from evitseg.visualize import tile_sheet, tinted, with_legend


@dataclass(frozen=True)
class Finding:
    """The result of reading one pair.

    Attributes:
        split, pair: the pair and its split.
        problem: a sentence that says why the pair cannot be used, or "".
        reason: the kind of problem, in a few words.
        unknown_id: whether the problem is an id or colour outside the label space, which stops training.
        size: (height, width).
        counts: number of pixels per class.
        digest, mask_digest: hashes of the image's pixels and of the mask's stored values.
        exif_rotated: whether the image is stored rotated, with an EXIF orientation that turns it upright.
        warnings: the warnings that reading it gave.
    """

    split: str
    pair: Pair
    problem: str = ""
    unknown_id: bool = False
    size: tuple[int, int] = (0, 0)
    counts: tuple[int, ...] = ()
    digest: str = ""
    mask_digest: str = ""
    exif_rotated: bool = False
    reason: str = ""
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class Inspection:
    """The results of inspecting a dataset.

    Attributes:
        dataset, labels: the dataset and its classes.
        findings: one per pair.
    """

    dataset: Dataset
    labels: LabelSpace
    findings: tuple[Finding, ...]

    @property
    def usable(self) -> tuple[Finding, ...]:
        """Findings without a problem."""
        return tuple(finding for finding in self.findings if not finding.problem)

    @property
    def problems(self) -> list[str]:
        """Problems as sentences: first those that stop training, then pairs and files that it skips."""
        unknown_ids = [f.problem for f in self.findings if f.unknown_id]
        others = [f.problem for f in self.findings if f.problem and not f.unknown_id]
        unpaired = [f"{path}: has no matching mask or image of the same name." for path in self.dataset.unpaired]
        return [*unknown_ids, *others, *self.dataset.problems, *unpaired]

    @property
    def skipped(self) -> dict[str, int]:
        """Number of pairs and files that training skips, per reason."""
        counts = Counter(finding.reason for finding in self.findings if finding.problem)
        if self.dataset.unpaired:
            counts["files without a partner"] = len(self.dataset.unpaired)
        return dict(counts.most_common()) | reasons(self.dataset.skipped)

    @property
    def leaks(self) -> list[tuple[Finding, Finding]]:
        """Pairs of findings whose images have the same pixels but are in different splits."""
        first: dict[str, Finding] = {}
        leaks = []
        for finding in self.usable:
            other = first.setdefault(finding.digest, finding)
            if other.split != finding.split:
                leaks.append((other, finding))
        return leaks

    @property
    def obstacle(self) -> str:
        """A sentence that says why training cannot start, or ""."""
        splits = Counter(finding.split for finding in self.usable)
        if any(f.unknown_id for f in self.findings):
            return "masks have ids without a class; add them with --labels, or fix the masks."
        pairs = splits["train"] + splits[ALL]
        if not ((splits["train"] and splits["val"]) or pairs >= 2):  # two, because one is held out for validation
            return (
                "there is no usable pair to train on."
                if not pairs
                else "there is one usable pair to train on, and none to validate; at least two are needed."
            )
        return self.single_class

    @property
    def single_class(self) -> str:
        """A sentence that says that all pixels have the same class although there are several, or ""."""
        occurring = np.flatnonzero(self.frequencies())
        if len(occurring) != 1 or len(self.labels.classes) == 1:
            return ""
        return (
            f"every counted pixel is {self.labels.names[occurring[0]]!r}, so there is nothing to learn; assign the "
            "numbers in the masks to classes with raw_ids in a labels.json."
        )

    @property
    def trains(self) -> bool:
        """Whether training can start."""
        return not self.obstacle

    def frequencies(self, split: str | None = None) -> NDArray[np.float64]:
        """Fraction of the counted pixels per class, in one split or in all."""
        chosen = [f.counts for f in self.usable if split is None or f.split == split]
        totals = np.sum(chosen, axis=0, dtype=np.float64) if chosen else np.zeros(len(self.labels.classes))
        fractions: NDArray[np.float64] = totals / max(totals.sum(), 1.0)
        return fractions


def inspect(dataset: Dataset, workers: int = 0, progress: Callable[[int], None] = lambda done: None) -> Inspection:
    """Read every pair of a dataset.

    Args:
        workers: number of processes; 0 uses only this process. A script that starts more needs
            `if __name__ == "__main__":` around its work.
        progress: called with 1 after every pair.

    Raises: DatasetError if the masks contradict each other, or if none can be read and the data names no classes.
    """
    jobs = [(split, pair) for split, pairs in dataset.splits.items() for pair in pairs]
    read: list[tuple[Finding, DistinctValues | None]] = []
    for result in process_map(jobs, _inspect, workers) if min(workers, len(jobs)) > 1 else map(_inspect, jobs):
        read.append(result)
        progress(1)
    surveys = [Survey(finding.pair.mask, distinct) for finding, distinct in read if distinct is not None]
    if not surveys and dataset.labels is None:
        raise DatasetError(f"{dataset.root}: no pair can be used ({read[0][0].problem if read else 'there is none'})")
    # The meaning of a number can depend on all masks, so classes are counted after all files have been read once.
    labels = settled_labels(surveys, dataset.labels)
    for finding, _ in read:
        for message in finding.warnings:
            warnings.warn(message, EvitsegWarning, stacklevel=2)
    return Inspection(dataset, labels, tuple(_counted(finding, distinct, labels) for finding, distinct in read))


def _inspect(job: tuple[str, Pair]) -> tuple[Finding, DistinctValues | None]:
    # Warnings would be lost in a worker process.
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("ignore")
        warnings.simplefilter("always", EvitsegWarning)
        finding, distinct = _read(*job)
    messages = (str(warning.message) for warning in caught if issubclass(warning.category, EvitsegWarning))
    return replace(finding, warnings=tuple(messages)), distinct


def _read(split: str, pair: Pair) -> tuple[Finding, DistinctValues | None]:
    finding = Finding(split, pair)
    try:
        image = read_image(pair.image, pair.reading)
    except EvitsegError as error:
        return replace(finding, problem=str(error), reason="images that cannot be read"), None
    try:
        file = read_mask_file(pair.mask)
    except EvitsegError as error:
        return replace(finding, problem=str(error), reason="masks that cannot be read"), None
    distinct = file.distinct
    size, mask_size = image.shape[:2], file.values.shape
    rotated = orientation_of_file(pair.image) != 1
    if size != mask_size:
        problem = f"{pair.mask}: {mask_size[1]}×{mask_size[0]} pixels, but its image has {size[1]}×{size[0]}"
        if rotated and mask_size == size[::-1]:
            problem += (
                "; the image is rotated by its EXIF orientation, but the mask is not: rotate the mask, or remove the "
                "orientation from the image"
            )
        return replace(finding, problem=f"{problem}.", reason="masks of another size than the image"), distinct
    digest = hashlib.sha256(image.tobytes()).hexdigest()
    stored = hashlib.sha256(file.values.tobytes() + repr((distinct.kind, distinct.colors)).encode()).hexdigest()
    return replace(finding, size=size, digest=digest, mask_digest=stored, exif_rotated=rotated), distinct


def _counted(finding: Finding, distinct: DistinctValues | None, labels: LabelSpace) -> Finding:
    """The finding with its pixel counts per class."""
    if distinct is None or finding.problem:
        return finding
    where = finding.pair.mask
    try:
        counts = class_counts(distinct, labels)
    except ConfigError as error:
        return replace(finding, problem=f"{where}: {error}", unknown_id=True, reason="masks with ids without a class")
    if not any(counts):
        problem = f"{where}: every pixel is ignored, so there is nothing to learn from it."
        return replace(finding, problem=problem, reason="masks of which every pixel is ignored")
    return replace(finding, counts=counts)


def contact_sheet(inspection: Inspection, count: int = 24, width: int = 240) -> Image.Image:
    """Images tinted with their masks, chosen evenly from the dataset, as one image with a legend.

    Args:
        count: maximum number of images.
        width: width of an image on the sheet, in pixels.

    Raises: DatasetError if no pair can be used.
    """
    usable = inspection.usable
    if not usable:
        raise DatasetError(f"{inspection.dataset.root}: no pair can be read, so there is nothing to draw.")
    tiles = []
    shown = min(count, len(usable))
    for i in sorted({round(i * (len(usable) - 1) / max(1, shown - 1)) for i in range(shown)}):
        pair = usable[i].pair
        image, truth = read_image(pair.image, pair.reading), read_truth(pair.mask, inspection.labels)
        step = max(1, image.shape[1] // width)  # reduced before it is tinted, which is faster
        tile = tinted(image[::step, ::step].copy(), truth[::step, ::step], inspection.labels)
        tiles.append(tile.resize((width, max(1, tile.height * width // tile.width))))
    columns = min(6, len(tiles))
    sheet = tile_sheet([tiles[at : at + columns] for at in range(0, len(tiles), columns)])
    fractions = dict(zip(inspection.labels.names, inspection.frequencies().tolist(), strict=True))
    return with_legend(sheet, {name: fraction for name, fraction in fractions.items() if fraction}, inspection.labels)
