"""Folders of pictures and masks, as people have them: recognise, pair, inspect, split."""

from __future__ import annotations

import hashlib
import os
import random
import unicodedata
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace
from multiprocessing import get_context
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from evitseg.data.class_list import read_class_list
from evitseg.data.folders import Skipped, image_files, reasons
from evitseg.data.lists import Pair
from evitseg.data.truth import Survey, class_counts, settled_for, settled_labels
from evitseg.data.yaml_file import own_yaml, read_yaml, yaml_labels
from evitseg.errors import ConfigError, DatasetError, EvitsegError, EvitsegWarning
from evitseg.formats import exif_orientation, format_of, orientation_of
from evitseg.image import AS_STATED, ReadOptions, read_picture, tinted, with_legend
from evitseg.labels import LabelSpace, load_labels
from evitseg.mask_values import Held
from evitseg.masks import read_mask_file, read_truth

MAX_WORKERS = 61
"""Processes at most; Windows waits for no more."""
KILLED = "a process was ended from outside, mostly for want of memory; try --workers 1."
__all__ = [
    "ALL", "Dataset", "Finding", "Inspection", "Pair", "contact_sheet", "find_dataset", "find_pairs", "infer_labels",
    "inspect", "pair_files", "read_truth", "split_pairs",
]  # fmt: skip
ALL = "all"
"""The name of the only split, where the data has none."""


@dataclass(frozen=True)
class Dataset:
    """Pictures with masks, found on disk; nothing is read yet but the folders.

    Attributes:
        root: the folder or file it was found by.
        layout: which of the known arrangements it is.
        splits: pairs by the split's name, "train", "val" and "test" or only "all"; in the order of their names.
        labels: the classes, where the data says them.
        unpaired: pictures without a mask, and masks without a picture.
        problems: sentences about annotations that are wrong and were left out.
        notes: sentences about what is not wrong but worth knowing.
        skipped: files that look like images or masks and are not read.
    """

    root: Path
    layout: str
    splits: Mapping[str, tuple[Pair, ...]]
    labels: LabelSpace | None
    unpaired: tuple[Path, ...]
    problems: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    skipped: tuple[Skipped, ...] = ()

    def pairs(self, split: str | None = None) -> tuple[Pair, ...]:
        """One split's pairs, or all. Raises: DatasetError for a split that there is not."""
        if split is None:
            return tuple(pair for pairs in self.splits.values() for pair in pairs)
        if split not in self.splits:
            raise DatasetError(f"{self.root}: there is no split {split!r}; there are {', '.join(self.splits)}.")
        return self.splits[split]


_SPLITS = {
    "train": "train", "training": "train",
    "val": "val", "valid": "val", "validation": "val",
    "test": "test", "testing": "test",
}  # fmt: skip
_PICTURE_FOLDERS = ("images", "image", "imgs", "img", "pictures", "photos", "JPEGImages", "leftImg8bit", "img_dir")
_MASK_FOLDERS = (
    "masks", "mask", "labels", "label", "annotations", "annotation", "annots", "gt", "ground_truth",
    "segmentation", "SegmentationClass", "gtFine", "ann_dir",
)  # fmt: skip
_PICTURE_SUFFIXES = ("_leftImg8bit", "_image", "_img", "_rgb", "_sat")
# The first that fits wins: Cityscapes has several masks for a picture.
_MASK_SUFFIXES = (
    "_gtFine_labelIds", "_labelIds", "_labelTrainIds", "_mask", "_masks", "_label", "_labels", "_gt", "_seg",
    "_segmentation", "_annotation", "_L",
)  # fmt: skip
_KNOWN_SUFFIXES = frozenset({*_MASK_SUFFIXES, "_gtFine_color", "_gtFine_instanceIds", "_gtFine_labelTrainIds"})


def find_dataset(
    path: str | os.PathLike[str], labels: LabelSpace | None = None, reading: ReadOptions = AS_STATED
) -> Dataset:
    """Recognise how pictures and masks are arranged.

    Args:
        path: a folder with `images/` and `masks/` (or other usual names, with or without splits above or below them),
            of the SegNet tutorial (`train/`, `trainannot/`), of Cityscapes (`leftImg8bit/`, `gtFine/`), or of ADE20K
            (`images/training`, `annotations/training`); a .txt or .csv file with a picture and a mask on each line;
            or a .yaml file with the keys path, train, val, test, masks_dir, names, label_mapping.
        labels: the classes, where they are known better than the data says.
        reading: how the pictures' files are read.

    Raises: DatasetError where there are no pairs, with what was looked for.
    """
    root = Path(path)
    try:
        exists = root.exists()
    except ValueError as error:  # a name that no file can have
        raise DatasetError(f"{str(root)[:200]!r}: no such file or folder ({error}).") from error
    except OSError as error:
        raise DatasetError(f"{str(root)[:200]}: cannot be read ({error.strerror or error}).") from error
    if not exists:
        raise DatasetError(f"{root}: no such file or folder.")
    if not (root.is_file() or root.is_dir()):
        raise DatasetError(f"{root}: neither a file nor a folder.")
    try:
        return _found(root, labels, reading)
    except OSError as error:
        raise DatasetError(f"{error.filename or root}: cannot be read ({error.strerror or error}).") from error


def _found(root: Path, labels: LabelSpace | None, reading: ReadOptions) -> Dataset:
    from evitseg.data.annotations.layouts import mask_layout

    if root.is_file():
        readers = {".txt": _from_list, ".csv": _from_list, ".yaml": _from_yaml, ".yml": _from_yaml}
        ending = root.suffix.lower()
        if ending not in readers or ending in (".yaml", ".yml"):
            drawn = _drawn(root, labels, reading)
            if drawn is not None:
                return drawn
        if ending not in readers:
            raise DatasetError(f"{root}: data is a folder, a list of pairs (.txt, .csv), or a .yaml file.")
        found = readers[ending](root)
    elif (described := own_yaml(root)) is not None:
        found = _from_yaml(described)
    else:
        layouts = (mask_layout, _cityscapes, _ade20k, _segnet, _trees, _side_by_side)
        recognised = next((dataset for layout in layouts if (dataset := layout(root)) is not None), None)
        if recognised is None or not recognised.pairs():
            drawn = _drawn(root, labels, reading)
            if drawn is not None:
                return drawn
        if recognised is None:
            raise DatasetError(
                f"{root}: no pictures with masks found; arrange them as {root}/images/NAME.jpg and "
                f"{root}/masks/NAME.png, or give a list of pairs (.txt) or a .yaml file."
            )
        found = recognised
    if not found.pairs():
        examples = ", ".join(str(p.relative_to(root) if root.is_dir() else p) for p in found.unpaired[:3])
        left_out = "".join(f"; left out: {count} {reason}" for reason, count in reasons(found.skipped).items())
        raise DatasetError(
            f"{root}: {found.layout}, but no picture has a mask of the same name (unpaired: {examples}, ...{left_out})."
            if examples
            else f"{root}: {found.layout}, but it holds no pictures."
        )
    own = labels or _own_labels(root if root.is_dir() else root.parent, found)
    return _read_as(replace(found, labels=own), reading)


def _drawn(root: Path, labels: LabelSpace | None, reading: ReadOptions) -> Dataset | None:
    """Polygons and brush strokes of an annotation tool, drawn. Raises: DatasetError."""
    from evitseg.data.annotations.reading import drawn_dataset

    found = drawn_dataset(root, labels)
    return _read_as(found, reading) if found is not None else None


def _read_as(dataset: Dataset, reading: ReadOptions) -> Dataset:
    pairs_of = dataset.splits.items()
    return replace(
        dataset, splits={s: tuple(replace(pair, reading=reading) for pair in pairs) for s, pairs in pairs_of}
    )


def find_pairs(path: str | os.PathLike[str], split: str | None = None) -> tuple[Pair, ...]:
    """The pairs of a dataset, or of one of its splits. Raises: DatasetError."""
    return find_dataset(path).pairs(split)


def _own_labels(folder: Path, found: Dataset) -> LabelSpace | None:
    """The classes that the data names. Raises: DatasetError where a YAML file and what lies beside it disagree."""
    beside = _labels_beside(folder)
    if beside is None or found.labels is None or found.root.suffix.lower() not in (".yaml", ".yml"):
        return beside or found.labels
    stated = [space for space in (beside, found.labels) if "raw_ids" not in space.assumed]
    if beside.names != found.labels.names or (len(stated) == 2 and _ids(beside) != _ids(found.labels)):
        other = folder / ("labels.json" if (folder / "labels.json").is_file() else "classes.txt")
        raise DatasetError(
            f"{found.root} and {other} name different classes or ids; delete the wrong one, or give --labels."
        )
    return stated[0] if stated else beside


def _ids(labels: LabelSpace) -> list[frozenset[int]]:
    return [frozenset(c.raw_ids) for c in labels.classes]


def _labels_beside(folder: Path) -> LabelSpace | None:
    """Classes that the folder itself names: labels.json, or classes.txt with a name a line."""
    if (folder / "labels.json").is_file():
        return load_labels(folder / "labels.json")
    if (folder / "classes.txt").is_file():
        return read_class_list(folder / "classes.txt", folder.resolve().name)
    return None


def _child(folder: Path, names: Iterable[str]) -> Path | None:
    """The first of the names that is a folder here, in any case."""
    present = {p.name.lower(): p for p in sorted(folder.iterdir()) if p.is_dir()}
    return next((present[name.lower()] for name in names if name.lower() in present), None)


def _splits_of(folder: Path) -> dict[str, Path]:
    """Subfolders named as splits are. Raises: DatasetError where two are the same split."""
    found: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        split = _SPLITS.get(path.name.lower()) if path.is_dir() else None
        if split in found:
            raise DatasetError(f"{folder}: {found[split].name}/ and {path.name}/ are both the {split} split; keep one.")
        if split is not None:
            found[split] = path
    return found


def _pair_trees(pictures: Path, masks: Path, skipped: list[Skipped]) -> tuple[list[Pair], list[Path]]:
    """Pairs of two trees by place and stem, and what has no partner."""
    taken: list[dict[Path, Path]] = []
    doubles = []
    for root in (pictures, masks):
        places: dict[Path, Path] = {}
        # Of files that differ in their ending alone a PNG comes first: it keeps numbers exactly.
        for path in sorted(image_files(root, skipped), key=lambda p: (p.suffix.lower() != ".png", p)):
            place = _place(path, root)
            if place in places:
                doubles.append(path)
            else:
                places[place] = path
        taken.append(dict(sorted(places.items())))
    pairs, alone = pair_files(*taken)
    return pairs, alone + doubles


def _place(path: Path, root: Path) -> Path:
    """Folders and stem below a root; a Mac may have written an accent as a character of its own."""
    return Path(unicodedata.normalize("NFC", str(path.relative_to(root).with_suffix(""))))


def pair_files(pictures: Mapping[Path, Path], masks: Mapping[Path, Path]) -> tuple[list[Pair], list[Path]]:
    """Pair files by their place (folders and stem below a root).

    A mask's stem is its picture's, or its picture's with a suffix: a usual one such as `_mask`, or another that more
    than half of the masks have. A suffix begins with neither a letter nor a digit: `10` is not a mask of `1`.

    Returns: pairs in the pictures' order, and the files without a partner.

    Raises: DatasetError where pictures have several masks, one a class.
    """
    bare = {_without(place, _PICTURE_SUFFIXES): place for place in pictures}
    odd = Counter(suffix for place in masks if (suffix := _suffix(place, bare)) and suffix not in _KNOWN_SUFFIXES)
    common = [suffix for suffix, count in odd.most_common(2) if 2 * count > min(len(masks), len(pictures))]
    if len(common) > 1:
        raise DatasetError(
            f"{next(iter(masks.values())).parent}: pictures have several masks each ({', '.join(sorted(odd))}); merge "
            "them into one mask with a number for every class."
        )
    suffixes = ["", *_MASK_SUFFIXES, *common]
    pairs, used = [], set()
    for place, picture in pictures.items():
        stem = _without(place, _PICTURE_SUFFIXES)
        for candidate in [place, *(stem.with_name(stem.name + suffix) for suffix in suffixes)]:
            if candidate in masks and candidate not in used and masks[candidate] != picture:
                pairs.append(Pair(picture, masks[candidate]))
                used.add(candidate)
                break
    paired = {pair.picture for pair in pairs}
    alone = [picture for picture in pictures.values() if picture not in paired]
    for place, mask in masks.items():
        suffix = _suffix(place, bare)
        # Another mask of a paired picture is not alone where it is one of a known kind: Cityscapes has four.
        spare = suffix in _KNOWN_SUFFIXES and pictures[bare[_without(place, (suffix,))]] in paired
        if place not in used and not spare:
            alone.append(mask)
    return pairs, alone


def _suffix(place: Path, names: Mapping[Path, Path]) -> str:
    """What a mask's stem has behind the longest of the names that it begins with; "" where there is none."""
    for length in range(len(place.name) - 1, 0, -1):
        if not place.name[length].isalnum() and place.with_name(place.name[:length]) in names:
            return place.name[length:]
    return ""


def _without(place: Path, suffixes: Iterable[str]) -> Path:
    suffix = next((s for s in suffixes if place.name.endswith(s) and place.name != s), "")
    return place.with_name(place.name.removesuffix(suffix))


def _dataset(root: Path, layout: str, parts: Mapping[str, tuple[Path, Path]], labels: str | None) -> Dataset:
    """A dataset of tree pairs, one a split."""
    splits: dict[str, tuple[Pair, ...]] = {}
    unpaired: list[Path] = []
    skipped: list[Skipped] = []
    for split in sorted(parts, key=["train", "val", "test", ALL].index):
        pairs, alone = _pair_trees(*parts[split], skipped)
        splits[split] = tuple(pairs)
        unpaired += alone
    space = load_labels(labels) if labels else None
    return Dataset(root, layout, splits, space, tuple(unpaired), skipped=tuple(skipped))


def _cityscapes(root: Path) -> Dataset | None:
    pictures, masks = root / "leftImg8bit", root / "gtFine"
    if not (pictures.is_dir() and masks.is_dir()):
        return None
    there = _splits_of(masks)
    # The test split's masks are not public: all its pixels are ignored.
    parts = {s: (p, there[s]) for s, p in _splits_of(pictures).items() if s in there and s != "test"}
    return _dataset(root, "Cityscapes", parts, "cityscapes")


def _ade20k(root: Path) -> Dataset | None:
    pictures, masks = root / "images", root / "annotations"
    if not all((folder / part).is_dir() for folder in (pictures, masks) for part in ("training", "validation")):
        return None
    there = _splits_of(masks)
    parts = {s: (p, there[s]) for s, p in _splits_of(pictures).items() if s in there}
    return _with_rest(_dataset(root, "ADE20K", parts, "ade20k"), pictures, masks, parts)


def _with_rest(dataset: Dataset, pictures: Path, masks: Path, parts: Mapping[str, tuple[Path, Path]]) -> Dataset:
    """The dataset, with what lies in no split's folder among the files without a partner."""
    kept = {folder for both in parts.values() for folder in both}
    rest = [path for path in (*image_files(pictures), *image_files(masks)) if not kept & set(path.parents)]
    return replace(dataset, unpaired=(*dataset.unpaired, *rest))


def _segnet(root: Path) -> Dataset | None:
    parts = {s: (p, p.with_name(f"{p.name}annot")) for s, p in _splits_of(root).items()}
    parts = {s: folders for s, folders in parts.items() if folders[1].is_dir()}
    return _dataset(root, "the SegNet tutorial's CamVid", parts, "camvid") if parts else None


def _trees(root: Path) -> Dataset | None:
    pictures, masks = _child(root, _PICTURE_FOLDERS), _child(root, _MASK_FOLDERS)
    if pictures and masks:
        there = _splits_of(masks)
        parts = {s: (p, there[s]) for s, p in _splits_of(pictures).items() if s in there} or {ALL: (pictures, masks)}
        found = _dataset(root, f"{pictures.name}/ and {masks.name}/", parts, None)
        return _with_rest(found, pictures, masks, parts)
    parts = {}
    for split, folder in _splits_of(root).items():
        pictures, masks = _child(folder, _PICTURE_FOLDERS), _child(folder, _MASK_FOLDERS)
        if pictures and masks:
            parts[split] = (pictures, masks)
    return _dataset(root, "splits with pictures and masks in each", parts, None) if parts else None


def _side_by_side(root: Path) -> Dataset | None:
    """Images and masks in one folder, a mask called as its image with a usual suffix: x.jpg and x_mask.png.

    A file whose name ends so is an image where none has the name before the suffix: surgical_mask.png alone.
    """
    parts = _splits_of(root) or {ALL: root}
    splits: dict[str, tuple[Pair, ...]] = {}
    unpaired: list[Path] = []
    skipped: list[Skipped] = []
    for split in sorted(parts, key=["train", "val", "test", ALL].index):
        places: dict[Path, list[Path]] = {}
        for path in image_files(parts[split], skipped):
            places.setdefault(_place(path, parts[split]), []).append(path)
        masks = {
            p: files
            for p, files in places.items()
            if _without(p, _MASK_SUFFIXES) != p and _without(p, _MASK_SUFFIXES) in places
        }
        if not masks:
            return None
        pairs, alone = pair_files(
            {place: files[0] for place, files in places.items() if place not in masks},
            {place: files[0] for place, files in masks.items()},
        )
        splits[split] = tuple(pairs)
        unpaired += [*alone, *(path for files in places.values() for path in files[1:])]
    return Dataset(root, "masks beside their images", splits, None, tuple(unpaired), skipped=tuple(skipped))


def _from_list(path: Path) -> Dataset:
    from evitseg.data.annotations.layouts import pair_list

    return pair_list(path)


def _from_yaml(path: Path) -> Dataset:
    content = read_yaml(path)
    base = path.parent / (content.get("path") or ".")
    splits: dict[str, tuple[Pair, ...]] = {}
    unpaired: list[Path] = []
    skipped: list[Skipped] = []
    for split in ("train", "val", "test"):
        where = content.get(split)
        if not where:
            continue
        if not isinstance(where, str):
            raise DatasetError(f"{path}: {split} must be one folder; put the pictures below one.")
        pictures = base / where
        masks = _mask_folder(base, Path(where), content["masks_dir"])
        for folder in (pictures, masks):
            if not _is_folder(folder):
                raise DatasetError(f"{path}: {split} leads to {str(folder)[:200]}, which is not a folder.")
        pairs, alone = _pair_trees(pictures, masks, skipped)
        splits[split] = tuple(pairs)
        unpaired += alone
    return Dataset(path, "a YAML file", splits, yaml_labels(path, content), tuple(unpaired), skipped=tuple(skipped))


def _is_folder(path: Path) -> bool:
    try:
        return path.is_dir()
    except (OSError, ValueError):  # a name that no file can have
        return False


def _mask_folder(base: Path, pictures: Path, masks: str) -> Path:
    """The pictures' folder with `images` replaced by the masks' name."""
    parts = list(pictures.parts)
    for i in reversed(range(len(parts))):
        if parts[i] == "images":
            return base.joinpath(*parts[:i], masks, *parts[i + 1 :])
    return base / masks / pictures


def infer_labels(pairs: Sequence[Pair]) -> LabelSpace:
    """Numbered classes for masks that nobody named; see `evitseg.data.truth`. Raises: DatasetError."""
    return settled_for([pair.mask for pair in pairs], None)


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
        digest, mask_digest: of the picture's pixels, and of the mask's stored values.
        turned: whether the picture is stored turned, and shown upright as its EXIF orientation says.
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
        alone = [f"{path}: has no partner, a mask or picture of the same name." for path in self.dataset.unpaired]
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
        """Pictures that stand in two splits with the same pixels."""
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
        """Whether training would run: no mask has an id without a class, and there are pictures to train on."""
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
    read: list[tuple[Finding, Held | None]] = []
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


def _inspect(job: tuple[str, Pair]) -> tuple[Finding, Held | None]:
    # In a process of its own a warning would be lost.
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("ignore")
        warnings.simplefilter("always", EvitsegWarning)
        finding, held = _read(*job)
    remarks = (str(warning.message) for warning in told if issubclass(warning.category, EvitsegWarning))
    return replace(finding, remarks=tuple(remarks)), held


def _read(split: str, pair: Pair) -> tuple[Finding, Held | None]:
    finding = Finding(split, pair)
    try:
        picture = read_picture(pair.picture, pair.reading)
    except EvitsegError as error:
        return replace(finding, problem=str(error), reason="images that cannot be read"), None
    try:
        file = read_mask_file(pair.mask)
    except EvitsegError as error:
        return replace(finding, problem=str(error), reason="masks that cannot be read"), None
    held = file.held
    size, mask_size = picture.shape[:2], file.values.shape
    turned = _is_turned(pair.picture)
    if size != mask_size:
        problem = f"{pair.mask}: {mask_size[1]}×{mask_size[0]} pixels, but its picture has {size[1]}×{size[0]}"
        if turned and mask_size == size[::-1]:
            problem += (
                "; the picture is turned by its EXIF orientation, and the mask has the stored size: turn the mask "
                "likewise, or take the orientation out of the picture"
            )
        return replace(finding, problem=f"{problem}.", reason="masks of another size than the image"), held
    digest = hashlib.sha256(picture.tobytes()).hexdigest()
    stored = hashlib.sha256(file.values.tobytes() + repr((held.kind, held.colors)).encode()).hexdigest()
    return replace(finding, size=size, digest=digest, mask_digest=stored, turned=turned), held


def _counted(finding: Finding, held: Held | None, labels: LabelSpace) -> Finding:
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


def _is_turned(picture: Path) -> bool:
    """Whether a picture's file says that it is stored turned."""
    try:
        with open(picture, "rb") as stream:
            kind = format_of(stream.read(64))
            if kind is not None and kind.name == "TIFF":
                with Image.open(picture, formats=("TIFF",)) as image:
                    return exif_orientation(image) != 1
            return kind is not None and orientation_of(stream, kind) != 1
    except Exception:  # Pillow raises whatever a damaged file makes it stumble over; reading it names the damage
        return False


def split_pairs(pairs: Sequence[Pair], share: float = 0.2, seed: int = 0) -> dict[str, tuple[Pair, ...]]:
    """Pairs divided at random into "train" and "val", the same for the same seed.

    Args:
        share: of the validation split; both splits get at least one pair.
    """
    if len(pairs) < 2:
        raise DatasetError(f"{len(pairs)} pair cannot be divided into training and validation; two are the least.")
    order = list(range(len(pairs)))
    random.Random(seed).shuffle(order)
    held = set(order[: min(max(1, round(share * len(pairs))), len(pairs) - 1)])
    return {
        "train": tuple(pair for i, pair in enumerate(pairs) if i not in held),
        "val": tuple(pair for i, pair in enumerate(pairs) if i in held),
    }


def contact_sheet(inspection: Inspection, count: int = 24, width: int = 240) -> Image.Image:
    """Pictures with their masks drawn over them, spread over the dataset, as one image.

    Args:
        count: pictures at most.
        width: of one picture on the sheet, in pixels.
    """
    usable = inspection.usable
    if not usable:
        raise DatasetError(f"{inspection.dataset.root}: no pair can be read, so there is nothing to show.")
    tiles = []
    shown = min(count, len(usable))
    for i in sorted({round(i * (len(usable) - 1) / max(1, shown - 1)) for i in range(shown)}):
        pair = usable[i].pair
        picture, truth = read_picture(pair.picture, pair.reading), read_truth(pair.mask, inspection.labels)
        step = max(1, picture.shape[1] // width)  # thinned first: a large picture needs no blending in full
        tile = tinted(picture[::step, ::step].copy(), truth[::step, ::step], inspection.labels)
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
