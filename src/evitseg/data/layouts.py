"""Recognise the folder layouts of segmentation data sets and pair their images and masks."""

from __future__ import annotations

import os
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path

from evitseg.data.class_list import read_class_list
from evitseg.data.dataset import ALL, Dataset
from evitseg.data.folders import Skipped, image_files, reasons
from evitseg.data.lists import Pair
from evitseg.data.yaml_file import own_yaml, read_yaml, yaml_labels
from evitseg.errors import DatasetError
from evitseg.image import AS_STATED, ReadOptions
from evitseg.labels import LabelSpace, load_labels

_SPLITS = {
    "train": "train", "training": "train",
    "val": "val", "valid": "val", "validation": "val",
    "test": "test", "testing": "test",
}  # fmt: skip


_IMAGE_FOLDERS = ("images", "image", "imgs", "img", "pictures", "photos", "JPEGImages", "leftImg8bit", "img_dir")


_MASK_FOLDERS = (
    "masks", "mask", "labels", "label", "annotations", "annotation", "annots", "gt", "ground_truth",
    "segmentation", "SegmentationClass", "gtFine", "ann_dir",
)  # fmt: skip


_IMAGE_SUFFIXES = ("_leftImg8bit", "_image", "_img", "_rgb", "_sat")


# The first that fits wins: Cityscapes has several masks for an image.
_MASK_SUFFIXES = (
    "_gtFine_labelIds", "_labelIds", "_labelTrainIds", "_mask", "_masks", "_label", "_labels", "_gt", "_seg",
    "_segmentation", "_annotation", "_L",
)  # fmt: skip


_KNOWN_SUFFIXES = frozenset({*_MASK_SUFFIXES, "_gtFine_color", "_gtFine_instanceIds", "_gtFine_labelTrainIds"})


def find_dataset(
    path: str | os.PathLike[str], labels: LabelSpace | None = None, reading: ReadOptions = AS_STATED
) -> Dataset:
    """Recognise how images and masks are arranged.

    Args:
        path: a folder with `images/` and `masks/` (or other usual names, with or without splits above or below them),
            of the SegNet tutorial (`train/`, `trainannot/`), of Cityscapes (`leftImg8bit/`, `gtFine/`), or of ADE20K
            (`images/training`, `annotations/training`); a .txt or .csv file with an image and a mask on each line;
            or a .yaml file with the keys path, train, val, test, masks_dir, names, label_mapping.
        labels: the classes, where they are known better than the data says.
        reading: how the images' files are read.

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
                f"{root}: no images with masks found; arrange them as {root}/images/NAME.jpg and "
                f"{root}/masks/NAME.png, or give a list of pairs (.txt) or a .yaml file."
            )
        found = recognised
    if not found.pairs():
        examples = ", ".join(str(p.relative_to(root) if root.is_dir() else p) for p in found.unpaired[:3])
        left_out = "".join(f"; left out: {count} {reason}" for reason, count in reasons(found.skipped).items())
        raise DatasetError(
            f"{root}: {found.layout}, but no image has a mask of the same name (unpaired: {examples}, ...{left_out})."
            if examples
            else f"{root}: {found.layout}, but it holds no images."
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


def _pair_trees(images: Path, masks: Path, skipped: list[Skipped]) -> tuple[list[Pair], list[Path]]:
    """Pairs of two trees by place and stem, and what has no partner."""
    taken: list[dict[Path, Path]] = []
    doubles = []
    for root in (images, masks):
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


def pair_files(images: Mapping[Path, Path], masks: Mapping[Path, Path]) -> tuple[list[Pair], list[Path]]:
    """Pair files by their place (folders and stem below a root).

    A mask's stem is its image's, or its image's with a suffix: a usual one such as `_mask`, or another that more
    than half of the masks have. A suffix begins with neither a letter nor a digit: `10` is not a mask of `1`.

    Returns: pairs in the images' order, and the files without a partner.

    Raises: DatasetError where images have several masks, one a class.
    """
    bare = {_without(place, _IMAGE_SUFFIXES): place for place in images}
    odd = Counter(suffix for place in masks if (suffix := _suffix(place, bare)) and suffix not in _KNOWN_SUFFIXES)
    common = [suffix for suffix, count in odd.most_common(2) if 2 * count > min(len(masks), len(images))]
    if len(common) > 1:
        raise DatasetError(
            f"{next(iter(masks.values())).parent}: images have several masks each ({', '.join(sorted(odd))}); merge "
            "them into one mask with a number for every class."
        )
    suffixes = ["", *_MASK_SUFFIXES, *common]
    pairs, used = [], set()
    for place, image in images.items():
        stem = _without(place, _IMAGE_SUFFIXES)
        for candidate in [place, *(stem.with_name(stem.name + suffix) for suffix in suffixes)]:
            if candidate in masks and candidate not in used and masks[candidate] != image:
                pairs.append(Pair(image, masks[candidate]))
                used.add(candidate)
                break
    paired = {pair.image for pair in pairs}
    alone = [image for image in images.values() if image not in paired]
    for place, mask in masks.items():
        suffix = _suffix(place, bare)
        # Another mask of a paired image is not alone where it is one of a known kind: Cityscapes has four.
        spare = suffix in _KNOWN_SUFFIXES and images[bare[_without(place, (suffix,))]] in paired
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
    images, masks = root / "leftImg8bit", root / "gtFine"
    if not (images.is_dir() and masks.is_dir()):
        return None
    there = _splits_of(masks)
    # The test split's masks are not public: all its pixels are ignored.
    parts = {s: (p, there[s]) for s, p in _splits_of(images).items() if s in there and s != "test"}
    return _dataset(root, "Cityscapes", parts, "cityscapes")


def _ade20k(root: Path) -> Dataset | None:
    images, masks = root / "images", root / "annotations"
    if not all((folder / part).is_dir() for folder in (images, masks) for part in ("training", "validation")):
        return None
    there = _splits_of(masks)
    parts = {s: (p, there[s]) for s, p in _splits_of(images).items() if s in there}
    return _with_rest(_dataset(root, "ADE20K", parts, "ade20k"), images, masks, parts)


def _with_rest(dataset: Dataset, images: Path, masks: Path, parts: Mapping[str, tuple[Path, Path]]) -> Dataset:
    """The dataset, with what lies in no split's folder among the files without a partner."""
    kept = {folder for both in parts.values() for folder in both}
    rest = [path for path in (*image_files(images), *image_files(masks)) if not kept & set(path.parents)]
    return replace(dataset, unpaired=(*dataset.unpaired, *rest))


def _segnet(root: Path) -> Dataset | None:
    parts = {s: (p, p.with_name(f"{p.name}annot")) for s, p in _splits_of(root).items()}
    parts = {s: folders for s, folders in parts.items() if folders[1].is_dir()}
    return _dataset(root, "the SegNet tutorial's CamVid", parts, "camvid") if parts else None


def _trees(root: Path) -> Dataset | None:
    images, masks = _child(root, _IMAGE_FOLDERS), _child(root, _MASK_FOLDERS)
    if images and masks:
        there = _splits_of(masks)
        parts = {s: (p, there[s]) for s, p in _splits_of(images).items() if s in there} or {ALL: (images, masks)}
        found = _dataset(root, f"{images.name}/ and {masks.name}/", parts, None)
        return _with_rest(found, images, masks, parts)
    parts = {}
    for split, folder in _splits_of(root).items():
        images, masks = _child(folder, _IMAGE_FOLDERS), _child(folder, _MASK_FOLDERS)
        if images and masks:
            parts[split] = (images, masks)
    return _dataset(root, "splits with images and masks in each", parts, None) if parts else None


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
            raise DatasetError(f"{path}: {split} must be one folder; put the images below one.")
        images = base / where
        masks = _mask_folder(base, Path(where), content["masks_dir"])
        for folder in (images, masks):
            if not _is_folder(folder):
                raise DatasetError(f"{path}: {split} leads to {str(folder)[:200]}, which is not a folder.")
        pairs, alone = _pair_trees(images, masks, skipped)
        splits[split] = tuple(pairs)
        unpaired += alone
    return Dataset(path, "a YAML file", splits, yaml_labels(path, content), tuple(unpaired), skipped=tuple(skipped))


def _is_folder(path: Path) -> bool:
    try:
        return path.is_dir()
    except (OSError, ValueError):  # a name that no file can have
        return False


def _mask_folder(base: Path, images: Path, masks: str) -> Path:
    """The images' folder with `images` replaced by the masks' name."""
    parts = list(images.parts)
    for i in reversed(range(len(parts))):
        if parts[i] == "images":
            return base.joinpath(*parts[:i], masks, *parts[i + 1 :])
    return base / masks / images
