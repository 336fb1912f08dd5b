"""Recognise the folder layouts of segmentation datasets, and pair images with masks."""

from __future__ import annotations

import os
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path

from evitseg.data.dataset import ALL, SPLIT_SYNONYMS, SPLITS, Dataset
from evitseg.data.folders import Skipped, image_files, reasons
from evitseg.data.lists import Pair
from evitseg.data.yaml_file import own_yaml, read_yaml, yaml_labels
from evitseg.errors import DatasetError
from evitseg.image import AS_STATED, ReadOptions
from evitseg.labels import LabelSpace, load_labels, read_class_list

_IMAGE_FOLDERS = ("images", "image", "imgs", "img", "pictures", "photos", "JPEGImages", "leftImg8bit", "img_dir")
_MASK_FOLDERS = (
    "masks", "mask", "labels", "label", "annotations", "annotation", "annots", "gt", "ground_truth",
    "segmentation", "SegmentationClass", "gtFine", "ann_dir",
)  # fmt: skip
_IMAGE_SUFFIXES = ("_leftImg8bit", "_image", "_img", "_rgb", "_sat")
# Tried in this order, because Cityscapes has several masks per image.
_MASK_SUFFIXES = (
    "_gtFine_labelIds", "_labelIds", "_labelTrainIds", "_mask", "_masks", "_label", "_labels", "_gt", "_seg",
    "_segmentation", "_annotation", "_L",
)  # fmt: skip
_KNOWN_SUFFIXES = frozenset({*_MASK_SUFFIXES, "_gtFine_color", "_gtFine_instanceIds", "_gtFine_labelTrainIds"})


def find_dataset(
    path: str | os.PathLike[str], labels: LabelSpace | None = None, reading: ReadOptions = AS_STATED
) -> Dataset:
    """Find the pairs of images and masks in a folder or file.

    Args:
        path: a folder with `images/` and `masks/` (or other common names, with or without splits above or below
            them); the folder of the SegNet tutorial (`train/`, `trainannot/`), Cityscapes (`leftImg8bit/`, `gtFine/`)
            or ADE20K (`images/training`, `annotations/training`); a .txt or .csv file with an image and a mask on each
            line; a .yaml file with the keys path, train, val, test, masks_dir, names, label_mapping; or an export of
            an annotation tool.
        labels: the classes; None for those that the data names.
        reading: how the image files are read.

    Raises: DatasetError if there are no pairs.
    """
    root = Path(path)
    try:
        exists = root.exists()
    except ValueError as error:  # not a possible file name
        raise DatasetError(f"{str(root)[:200]!r}: no such file or folder ({error}).") from error
    except OSError as error:
        raise DatasetError(f"{str(root)[:200]}: cannot be read ({error.strerror or error}).") from error
    if not exists:
        raise DatasetError(f"{root}: no such file or folder.")
    if not (root.is_file() or root.is_dir()):
        raise DatasetError(f"{root}: is neither a file nor a folder.")
    try:
        return _found(root, labels, reading)
    except OSError as error:
        raise DatasetError(f"{error.filename or root}: cannot be read ({error.strerror or error}).") from error


def _found(root: Path, labels: LabelSpace | None, reading: ReadOptions) -> Dataset:
    from evitseg.data.annotations.mask_folders import mask_layout, unused_lists

    if root.is_file():
        readers = {".txt": _from_list, ".csv": _from_list, ".yaml": _from_yaml, ".yml": _from_yaml}
        ending = root.suffix.lower()
        if ending not in readers or ending in (".yaml", ".yml"):
            drawn = _drawn(root, labels, reading)
            if drawn is not None:
                return drawn
        if ending not in readers:
            raise DatasetError(f"{root}: not a dataset; pass a folder, a list of pairs (.txt, .csv) or a .yaml file.")
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
                f"{root}/masks/NAME.png, or pass a list of pairs (.txt) or a .yaml file."
            )
        found = recognised
        if list(found.splits) == [ALL] and (sentence := unused_lists(root)):
            found = replace(found, notes=(*found.notes, sentence))
    if not found.pairs():
        examples = ", ".join(str(p.relative_to(root) if root.is_dir() else p) for p in found.unpaired[:3])
        skipped = "".join(f"; skipped: {count} {reason}" for reason, count in reasons(found.skipped).items())
        raise DatasetError(
            f"{root}: {found.layout}, but no image has a mask of the same name (unpaired: {examples}, ...{skipped})."
            if examples
            else f"{root}: {found.layout}, but it contains no images."
        )
    own = labels or _own_labels(root if root.is_dir() else root.parent, found)
    return _read_as(replace(found, labels=own), reading)


def _drawn(root: Path, labels: LabelSpace | None, reading: ReadOptions) -> Dataset | None:
    """The dataset of an annotation tool, with masks drawn from its shapes, or None. Raises: DatasetError."""
    from evitseg.data.annotations.reading import drawn_dataset

    found = drawn_dataset(root, labels)
    return _read_as(found, reading) if found is not None else None


def _read_as(dataset: Dataset, reading: ReadOptions) -> Dataset:
    pairs_of = dataset.splits.items()
    return replace(
        dataset, splits={s: tuple(replace(pair, reading=reading) for pair in pairs) for s, pairs in pairs_of}
    )


def find_pairs(path: str | os.PathLike[str], split: str | None = None) -> tuple[Pair, ...]:
    """The pairs in a folder or file, as `find_dataset` finds them. Raises: DatasetError."""
    return find_dataset(path).pairs(split)


def _own_labels(folder: Path, found: Dataset) -> LabelSpace | None:
    """The classes named in the data. Raises: DatasetError if a YAML file and the files next to it disagree."""
    in_folder = _labels_in(folder)
    if in_folder is None or found.labels is None or found.root.suffix.lower() not in (".yaml", ".yml"):
        return in_folder or found.labels
    stated = [space for space in (in_folder, found.labels) if "raw_ids" not in space.assumed]
    if in_folder.names != found.labels.names or (len(stated) == 2 and _ids(in_folder) != _ids(found.labels)):
        other = folder / ("labels.json" if (folder / "labels.json").is_file() else "classes.txt")
        raise DatasetError(
            f"{found.root} and {other} have different classes or ids; delete the wrong one, or choose with --labels."
        )
    return stated[0] if stated else in_folder


def _ids(labels: LabelSpace) -> list[frozenset[int]]:
    return [frozenset(c.raw_ids) for c in labels.classes]


def _labels_in(folder: Path) -> LabelSpace | None:
    """The classes in a folder's labels.json, or in its classes.txt, which has one name per line."""
    if (folder / "labels.json").is_file():
        return load_labels(folder / "labels.json")
    if (folder / "classes.txt").is_file():
        return read_class_list(folder / "classes.txt", folder.resolve().name)
    return None


def _child(folder: Path, names: Iterable[str]) -> Path | None:
    """The folder with the first of these names that exists, in any case."""
    present = {p.name.lower(): p for p in sorted(folder.iterdir()) if p.is_dir()}
    return next((present[name.lower()] for name in names if name.lower() in present), None)


def _splits_of(folder: Path) -> dict[str, Path]:
    """Subfolders with the name of a split. Raises: DatasetError if two are the same split."""
    found: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        split = SPLIT_SYNONYMS.get(path.name.lower()) if path.is_dir() else None
        if split in found:
            raise DatasetError(
                f"{folder}: {found[split].name}/ and {path.name}/ are both the {split} split; rename or delete one."
            )
        if split is not None:
            found[split] = path
    return found


def _pair_trees(images: Path, masks: Path, skipped: list[Skipped]) -> tuple[list[Pair], list[Path]]:
    """Pairs of two folder trees by relative path, and the files without a partner."""
    trees: list[dict[Path, Path]] = []
    duplicates = []
    for root in (images, masks):
        places: dict[Path, Path] = {}
        # If files differ only in their extension, a PNG is used, because it is lossless.
        for path in sorted(image_files(root, skipped), key=lambda p: (p.suffix.lower() != ".png", p)):
            place = _place(path, root)
            if place in places:
                duplicates.append(path)
            else:
                places[place] = path
        trees.append(dict(sorted(places.items())))
    pairs, partnerless = pair_files(*trees)
    return pairs, partnerless + duplicates


def _place(path: Path, root: Path) -> Path:
    """The path below a root without its extension, normalised because macOS stores accents as separate characters."""
    return Path(unicodedata.normalize("NFC", str(path.relative_to(root).with_suffix(""))))


def pair_files(images: Mapping[Path, Path], masks: Mapping[Path, Path]) -> tuple[list[Pair], list[Path]]:
    """Pair images and masks, given by their path below a root without extension.

    The stem of a mask is that of its image, perhaps with a suffix: a common one such as `_mask`, or another suffix that
    more than half of the masks have. A suffix starts with neither a letter nor a digit: `10` is not a mask of `1`.

    Returns: pairs in the order of the images, and the files without a partner.

    Raises: DatasetError if images have several masks, such as one per class.
    """
    bare = {_without(place, _IMAGE_SUFFIXES): place for place in images}
    odd = Counter(suffix for place in masks if (suffix := _suffix(place, bare)) and suffix not in _KNOWN_SUFFIXES)
    common = [suffix for suffix, count in odd.most_common(2) if 2 * count > min(len(masks), len(images))]
    if len(common) > 1:
        raise DatasetError(
            f"{next(iter(masks.values())).parent}: images have several masks each ({', '.join(sorted(odd))}); merge "
            "them into one mask with a number per class."
        )
    suffixes = ["", *_MASK_SUFFIXES, *common]
    # The same name first, for all images: x_1 is the mask of x only if there is no image x_1.
    mask_of = {place: place for place, image in images.items() if masks.get(place, image) != image}
    used = set(mask_of)
    for place, image in images.items():
        stem = _without(place, _IMAGE_SUFFIXES)
        for candidate in (stem.with_name(stem.name + suffix) for suffix in suffixes):
            if place not in mask_of and candidate in masks and candidate not in used and masks[candidate] != image:
                mask_of[place] = candidate
                used.add(candidate)
    pairs = [Pair(image, masks[mask_of[place]]) for place, image in images.items() if place in mask_of]
    paired = {pair.image for pair in pairs}
    partnerless = [image for image in images.values() if image not in paired]
    for place, mask in masks.items():
        suffix = _suffix(place, bare)
        # Further masks of a paired image are no problem if they are of a known kind: Cityscapes has four per image.
        spare = suffix in _KNOWN_SUFFIXES and images[bare[_without(place, (suffix,))]] in paired
        if place not in used and not spare:
            partnerless.append(mask)
    return pairs, partnerless


def _suffix(place: Path, names: Mapping[Path, Path]) -> str:
    """The suffix of a mask's stem after the longest name that it starts with; "" if there is none."""
    for length in range(len(place.name) - 1, 0, -1):
        if not place.name[length].isalnum() and place.with_name(place.name[:length]) in names:
            return place.name[length:]
    return ""


def _without(place: Path, suffixes: Iterable[str]) -> Path:
    suffix = next((s for s in suffixes if place.name.endswith(s) and place.name != s), "")
    return place.with_name(place.name.removesuffix(suffix))


def _dataset(root: Path, layout: str, parts: Mapping[str, tuple[Path, Path]], labels: str | None) -> Dataset:
    """A dataset from one pair of folder trees per split."""
    splits: dict[str, tuple[Pair, ...]] = {}
    unpaired: list[Path] = []
    skipped: list[Skipped] = []
    for split in sorted(parts, key=SPLITS.index):
        pairs, partnerless = _pair_trees(*parts[split], skipped)
        splits[split] = tuple(pairs)
        unpaired += partnerless
    space = load_labels(labels) if labels else None
    return Dataset(root, layout, splits, space, tuple(unpaired), skipped=tuple(skipped))


def _cityscapes(root: Path) -> Dataset | None:
    images, masks = root / "leftImg8bit", root / "gtFine"
    if not (images.is_dir() and masks.is_dir()):
        return None
    mask_splits = _splits_of(masks)
    # The public masks of the test split are empty: all pixels are ignored.
    parts = {s: (p, mask_splits[s]) for s, p in _splits_of(images).items() if s in mask_splits and s != "test"}
    return _dataset(root, "Cityscapes", parts, "cityscapes")


def _ade20k(root: Path) -> Dataset | None:
    images, masks = root / "images", root / "annotations"
    if not all((folder / part).is_dir() for folder in (images, masks) for part in ("training", "validation")):
        return None
    mask_splits = _splits_of(masks)
    parts = {s: (p, mask_splits[s]) for s, p in _splits_of(images).items() if s in mask_splits}
    return _with_unassigned(_dataset(root, "ADE20K", parts, "ade20k"), images, masks, parts)


def _with_unassigned(dataset: Dataset, images: Path, masks: Path, parts: Mapping[str, tuple[Path, Path]]) -> Dataset:
    """The dataset with files outside all split folders added to the unpaired ones."""
    assigned = {folder for both in parts.values() for folder in both}
    rest = [path for path in (*image_files(images), *image_files(masks)) if not assigned & set(path.parents)]
    return replace(dataset, unpaired=(*dataset.unpaired, *rest))


def _segnet(root: Path) -> Dataset | None:
    parts = {s: (p, p.with_name(f"{p.name}annot")) for s, p in _splits_of(root).items()}
    parts = {s: folders for s, folders in parts.items() if folders[1].is_dir()}
    return _dataset(root, "the SegNet tutorial's CamVid", parts, "camvid") if parts else None


def _trees(root: Path) -> Dataset | None:
    images, masks = _child(root, _IMAGE_FOLDERS), _child(root, _MASK_FOLDERS)
    if images and masks:
        mask_splits = _splits_of(masks)
        parts = {s: (p, mask_splits[s]) for s, p in _splits_of(images).items() if s in mask_splits} or {
            ALL: (images, masks)
        }
        found = _dataset(root, f"{images.name}/ and {masks.name}/", parts, None)
        return _with_unassigned(found, images, masks, parts)
    parts = {}
    for split, folder in _splits_of(root).items():
        images, masks = _child(folder, _IMAGE_FOLDERS), _child(folder, _MASK_FOLDERS)
        if images and masks:
            parts[split] = (images, masks)
    return _dataset(root, "splits with images and masks in each", parts, None) if parts else None


def _side_by_side(root: Path) -> Dataset | None:
    """Images and masks in one folder, such as x.jpg and x_mask.png.

    A file with a mask's suffix is an image if there is no file without the suffix, such as surgical_mask.png.
    """
    parts = _splits_of(root) or {ALL: root}
    splits: dict[str, tuple[Pair, ...]] = {}
    unpaired: list[Path] = []
    skipped: list[Skipped] = []
    without: list[str] = []
    for split in sorted(parts, key=SPLITS.index):
        places: dict[Path, list[Path]] = {}
        for path in image_files(parts[split], skipped):
            places.setdefault(_place(path, parts[split]), []).append(path)
        masks = {
            p: files
            for p, files in places.items()
            if _without(p, _MASK_SUFFIXES) != p and _without(p, _MASK_SUFFIXES) in places
        }
        if not masks:
            without.append(split)
        pairs, partnerless = pair_files(
            {place: files[0] for place, files in places.items() if place not in masks},
            {place: files[0] for place, files in masks.items()},
        )
        splits[split] = tuple(pairs)
        unpaired += [*partnerless, *(path for files in places.values() for path in files[1:])]
    if len(without) == len(parts):
        return None
    splits = {split: pairs for split, pairs in splits.items() if split not in without}
    return Dataset(root, "masks next to their images", splits, None, tuple(unpaired), skipped=tuple(skipped))


def _from_list(path: Path) -> Dataset:
    from evitseg.data.annotations.mask_folders import pair_list

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
            raise DatasetError(f"{path}: {split} must be a single folder; move its images below one.")
        images = base / where
        masks = _mask_folder(base, Path(where), content["masks_dir"])
        for folder in (images, masks):
            if not _is_folder(folder):
                raise DatasetError(f"{path}: {split}: {str(folder)[:200]} is not a folder.")
        pairs, partnerless = _pair_trees(images, masks, skipped)
        splits[split] = tuple(pairs)
        unpaired += partnerless
    return Dataset(path, "a YAML file", splits, yaml_labels(path, content), tuple(unpaired), skipped=tuple(skipped))


def _is_folder(path: Path) -> bool:
    try:
        return path.is_dir()
    except (OSError, ValueError):  # not a possible file name
        return False


def _mask_folder(base: Path, images: Path, masks: str) -> Path:
    """The folder of images with the last `images` in its path replaced by `masks`."""
    parts = list(images.parts)
    for i in reversed(range(len(parts))):
        if parts[i] == "images":
            return base.joinpath(*parts[:i], masks, *parts[i + 1 :])
    return base / masks / images
