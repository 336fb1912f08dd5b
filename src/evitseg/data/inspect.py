"""Read every image and mask of a data set and report the problems."""

from __future__ import annotations

import hashlib
import warnings
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace
from multiprocessing import get_context
from pathlib import Path

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
from evitseg.raster.formats import format_of
from evitseg.raster.mask_values import DistinctValues
from evitseg.raster.masks import read_mask_file, read_truth
from evitseg.raster.orientation import exif_orientation, orientation_of
from evitseg.visualize import tinted, with_legend

MAX_WORKERS = 61
"""Processes at most; Windows waits for no more."""


KILLED = "a process was ended from outside, mostly for want of memory; try --workers 1."


@dataclass(frozen=True)
class Finding:
    """One pair, read.

    Attributes:
        split, pair: which one.
        problem: a sentence where it cannot be used, else "".
        reason: of what kind the problem is, in a few words.
        stranger: whether the problem is an id or colour outside the label space, which would stop training.
        size: (height, width).
        counts: pixels of every class.
        digest, mask_digest: of the image's pixels, and of the mask's stored values.
        turned: whether the image is stored turned, and shown upright as its EXIF orientation says.
        remarks: what reading it warned of.
    """

    split: str
    pair: Pair
    problem: str = ""
    stranger: bool = False
    size: tuple[int, int] = (0, 0)
    counts: tuple[int, ...] = ()
    digest: str = ""
    mask_digest: str = ""
    turned: bool = False
    reason: str = ""
    remarks: tuple[str, ...] = ()


@dataclass(frozen=True)
class Inspection:
    """Everything about a dataset that training needs to be right.

    Attributes:
        dataset, labels: what was inspected, with which classes.
        findings: one for each pair.
    """

    dataset: Dataset
    labels: LabelSpace
    findings: tuple[Finding, ...]

    @property
    def usable(self) -> tuple[Finding, ...]:
        return tuple(finding for finding in self.findings if not finding.problem)

    @property
    def problems(self) -> list[str]:
        """Sentences: first what would stop training, then what it would leave out."""
        strangers = [f.problem for f in self.findings if f.stranger]
        others = [f.problem for f in self.findings if f.problem and not f.stranger]
        alone = [f"{path}: has no partner, a mask or image of the same name." for path in self.dataset.unpaired]
        return [*strangers, *others, *self.dataset.problems, *alone]

    @property
    def left_out(self) -> dict[str, int]:
        """How many pairs and files are left out, by reason."""
        counts = Counter(finding.reason for finding in self.findings if finding.problem)
        if self.dataset.unpaired:
            counts["files without a partner"] = len(self.dataset.unpaired)
        return dict(counts.most_common()) | reasons(self.dataset.skipped)

    @property
    def leaks(self) -> list[tuple[Finding, Finding]]:
        """Images that stand in two splits with the same pixels."""
        first: dict[str, Finding] = {}
        leaks = []
        for finding in self.usable:
            other = first.setdefault(finding.digest, finding)
            if other.split != finding.split:
                leaks.append((other, finding))
        return leaks

    @property
    def obstacle(self) -> str:
        """Why training cannot begin, as a sentence; "" where it can."""
        splits = Counter(finding.split for finding in self.usable)
        if any(f.stranger for f in self.findings):
            return "masks have ids without a class; add them with --labels, or mend the masks."
        pairs = splits["train"] + splits[ALL]
        if not ((splits["train"] and splits["val"]) or pairs >= 2):  # two, to hold one out
            return (
                "there is no usable pair to train on."
                if not pairs
                else "there is one usable pair to train on, and none to validate; two are the least."
            )
        return self.sameness

    @property
    def sameness(self) -> str:
        """A sentence where all masks hold one class of several; "" where there is something to tell apart."""
        occurring = np.flatnonzero(self.frequencies())
        if len(occurring) != 1 or len(self.labels.classes) == 1:
            return ""
        return (
            f"every counted pixel is {self.labels.names[occurring[0]]!r}, so there is nothing to tell apart; say in a "
            "labels.json which numbers of the masks (raw_ids) stand for which class."
        )

    @property
    def trains(self) -> bool:
        """Whether training would run: no mask has an id without a class, and there are images to train on."""
        return not self.obstacle

    def frequencies(self, split: str | None = None) -> NDArray[np.float64]:
        """Share of every class among the counted pixels."""
        chosen = [f.counts for f in self.usable if split is None or f.split == split]
        totals = np.sum(chosen, axis=0, dtype=np.float64) if chosen else np.zeros(len(self.labels.classes))
        shares: NDArray[np.float64] = totals / max(totals.sum(), 1.0)
        return shares


def inspect(dataset: Dataset, workers: int = 0, progress: Callable[[int], None] = lambda done: None) -> Inspection:
    """Read every pair.

    Args:
        workers: processes; 0 for this one alone. A script that asks for more needs the usual
            `if __name__ == "__main__":` around it.
        progress: called with 1 for every pair done.
    """
    jobs = [(split, pair) for split, pairs in dataset.splits.items() for pair in pairs]
    workers = min(MAX_WORKERS, len(jobs), workers)
    read: list[tuple[Finding, DistinctValues | None]] = []
    if workers > 1:
        try:
            # Fresh processes, not forks, which copy a program in the middle of what its threads do.
            with ProcessPoolExecutor(workers, get_context("spawn")) as pool:
                for result in pool.map(_inspect, jobs, chunksize=8):
                    read.append(result)
                    progress(1)
        except BrokenProcessPool as error:
            raise DatasetError(f"{dataset.root}: {KILLED}") from error
    else:
        for job in jobs:
            read.append(_inspect(job))
            progress(1)
    held = [Survey(finding.pair.mask, held) for finding, held in read if held is not None]
    if not held and dataset.labels is None:
        raise DatasetError(
            f"{dataset.root}: no usable pair to train on ({read[0][0].problem if read else 'there is none'})"
        )
    # What the numbers mean can depend on all masks; every file is read once all the same.
    labels = settled_labels(held, dataset.labels)
    for finding, _ in read:
        for remark in finding.remarks:
            warnings.warn(remark, EvitsegWarning, stacklevel=2)
    return Inspection(dataset, labels, tuple(_counted(finding, held, labels) for finding, held in read))


def _inspect(job: tuple[str, Pair]) -> tuple[Finding, DistinctValues | None]:
    # In a process of its own a warning would be lost.
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("ignore")
        warnings.simplefilter("always", EvitsegWarning)
        finding, held = _read(*job)
    remarks = (str(warning.message) for warning in told if issubclass(warning.category, EvitsegWarning))
    return replace(finding, remarks=tuple(remarks)), held


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
    held = file.distinct
    size, mask_size = image.shape[:2], file.values.shape
    turned = _is_turned(pair.image)
    if size != mask_size:
        problem = f"{pair.mask}: {mask_size[1]}×{mask_size[0]} pixels, but its image has {size[1]}×{size[0]}"
        if turned and mask_size == size[::-1]:
            problem += (
                "; the image is turned by its EXIF orientation, and the mask has the stored size: turn the mask "
                "likewise, or take the orientation out of the image"
            )
        return replace(finding, problem=f"{problem}.", reason="masks of another size than the image"), held
    digest = hashlib.sha256(image.tobytes()).hexdigest()
    stored = hashlib.sha256(file.values.tobytes() + repr((held.kind, held.colors)).encode()).hexdigest()
    return replace(finding, size=size, digest=digest, mask_digest=stored, turned=turned), held


def _counted(finding: Finding, held: DistinctValues | None, labels: LabelSpace) -> Finding:
    """The finding with the pixels of every class."""
    if held is None or finding.problem:
        return finding
    where = finding.pair.mask
    try:
        counts = class_counts(held, labels)
    except ConfigError as error:
        return replace(finding, problem=f"{where}: {error}", stranger=True, reason="masks with ids without a class")
    if not any(counts):
        problem = f"{where}: every pixel is ignored; there is nothing to learn from it."
        return replace(finding, problem=problem, reason="masks of which every pixel is ignored")
    return replace(finding, counts=counts)


def _is_turned(image: Path) -> bool:
    """Whether an image's file says that it is stored turned."""
    try:
        with open(image, "rb") as stream:
            kind = format_of(stream.read(64))
            if kind is not None and kind.name == "TIFF":
                with Image.open(image, formats=("TIFF",)) as opened:
                    return exif_orientation(opened) != 1
            return kind is not None and orientation_of(stream, kind) != 1
    except Exception:  # Pillow raises whatever a damaged file makes it stumble over; reading it names the damage
        return False


def contact_sheet(inspection: Inspection, count: int = 24, width: int = 240) -> Image.Image:
    """Images with their masks drawn over them, spread over the dataset, as one image.

    Args:
        count: images at most.
        width: of one image on the sheet, in pixels.
    """
    usable = inspection.usable
    if not usable:
        raise DatasetError(f"{inspection.dataset.root}: no pair can be read, so there is nothing to show.")
    tiles = []
    shown = min(count, len(usable))
    for i in sorted({round(i * (len(usable) - 1) / max(1, shown - 1)) for i in range(shown)}):
        pair = usable[i].pair
        image, truth = read_image(pair.image, pair.reading), read_truth(pair.mask, inspection.labels)
        step = max(1, image.shape[1] // width)  # thinned first: a large image needs no blending in full
        tile = tinted(image[::step, ::step].copy(), truth[::step, ::step], inspection.labels)
        tiles.append(tile.resize((width, max(1, tile.height * width // tile.width))))
    columns = min(6, len(tiles))
    rows = [tiles[at : at + columns] for at in range(0, len(tiles), columns)]
    heights = [max(tile.height for tile in row) for row in rows]
    sheet = Image.new("RGB", (columns * width, sum(heights)), (255, 255, 255))
    for r, row in enumerate(rows):
        for c, tile in enumerate(row):
            sheet.paste(tile, (c * width, sum(heights[:r])))
    shares = dict(zip(inspection.labels.names, inspection.frequencies().tolist(), strict=True))
    return with_legend(sheet, {name: share for name, share in shares.items() if share}, inspection.labels)
