"""Folders of masks exported by annotation tools: PASCAL VOC, CVAT, labelme2voc, CamVid, Roboflow."""

from __future__ import annotations

import csv
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np

from evitseg.data.annotations.objects import (
    AnnotatedImage,
    Annotations,
    Drawn,
    Item,
    class_name,
    files_below,
    short,
    space_name,
    split_of,
    text_lines,
)
from evitseg.data.annotations.regions import Runs, ShapeError, bitmap
from evitseg.data.dataset import ALL, SPLITS, Dataset, infer_labels
from evitseg.data.lists import Pair, read_pairs
from evitseg.errors import DatasetError
from evitseg.labels import Color, LabelClass, LabelSpace, distinct_color
from evitseg.raster.formats import EXTENSIONS
from evitseg.raster.masks import read_truth

_VOC_IMAGES = ("JPEGImages", "images", "Images", "imgs", "img")
"""PASCAL VOC's folder of images, and other folders to which people add them after an export without images."""
VOC_NAMES = (
    "background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow",
    "diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
)  # fmt: skip


def mask_layout(root: Path) -> Dataset | None:
    """The dataset in a folder of masks that an annotation tool exported, or None for another folder.

    Raises: DatasetError for a folder that is recognised but incomplete.
    """
    found = (layout(root) for layout in (_lists, _voc, _camvid, _roboflow))
    return next((dataset for dataset in found if dataset is not None), None)


def read_masks(dataset: Dataset) -> Annotations:
    """The masks of a dataset as annotations, with one object per class in each image."""
    labels = dataset.labels or infer_labels(dataset.pairs())
    found = Annotations(dataset.layout, dataset.root, list(labels.names), [])
    found.colors |= {c.name: c.color for c in labels.classes}
    found.notes += [f"{path}: has no matching mask or image of the same name." for path in dataset.unpaired]
    for split, pairs in dataset.splits.items():
        for pair in pairs:
            name = Path(os.path.relpath(pair.image, dataset.root)).as_posix()
            name = name if ".." not in name.split("/") else pair.image.name
            items = partial(_classes_of, pair.mask, labels)
            found.images.append(AnnotatedImage(name, str(pair.mask), None, items, split, pair.image))
    return found


def _classes_of(mask: Path, labels: LabelSpace) -> Iterator[Item]:
    truth = read_truth(mask, labels)  # an error is reported for the whole image

    def draw(value: int, size: tuple[int, int]) -> Runs:
        if truth.shape != size:
            raise ShapeError(f"has {truth.shape[1]}×{truth.shape[0]} pixels, but its image has {size[1]}×{size[0]}")
        return bitmap(truth == value, 0, 0, size)

    for value in np.unique(truth).tolist():
        label = labels.names[value] if value < len(labels.classes) else None
        yield Item(str(mask), label, Drawn(partial(draw, value)))


def _lists(root: Path) -> Dataset | None:
    """Lists of pairs as written by `evitseg convert`: pairs.txt, or train.txt, val.txt and test.txt."""
    for names in ((ALL,), SPLITS[:3]):
        splits, wrong = _read_lists(root, names)
        if any(splits.values()) and all(p.mask.is_file() for pairs in splits.values() for p in pairs[:1]):
            if wrong:  # without it, its pairs would be in another split, or in none
                raise DatasetError(f"{wrong[0]} Other lists in {root} are of pairs; correct or delete this one.")
            return Dataset(root, "lists of pairs", splits, None, ())
    return None


def unused_lists(root: Path) -> str:
    """A sentence about lists of splits in a folder that are no lists of pairs; empty if there are none."""
    _, wrong = _read_lists(root, SPLITS[:3])
    if not wrong:
        return ""
    return f"the lists of splits in {root} are not lists of pairs and are not used ({str(wrong[0]).rstrip('.')})"


def _read_lists(root: Path, names: Sequence[str]) -> tuple[dict[str, tuple[Pair, ...]], list[DatasetError]]:
    """The pairs of each list that is one, and what is wrong with the others."""
    splits: dict[str, tuple[Pair, ...]] = {}
    wrong: list[DatasetError] = []
    for name in names:
        file = root / f"{'pairs' if name == ALL else name}.txt"
        if file.is_file():
            try:
                splits[name] = read_pairs(file)
            except DatasetError as error:
                wrong.append(error)
    return splits, wrong


def voc_color(index: int) -> Color:
    """PASCAL VOC's colour of a class index, whose bits go to red, green and blue in turn, highest bit first."""
    channels = [0, 0, 0]
    for bit in range(8):
        for channel in range(3):
            channels[channel] |= (index >> (3 * bit + channel) & 1) << (7 - bit)
    return channels[0], channels[1], channels[2]


def _voc(root: Path) -> Dataset | None:
    """PASCAL VOC's folders, CVAT's "Segmentation mask" with labelmap.txt, or the output of labelme2voc."""
    names = ("SegmentationClassPNG", "SegmentationClass")  # labelme2voc writes .npy files to the second
    masks = next((root / name for name in names if any((root / name).rglob("*.png"))), None)
    if masks is None:
        return None
    labels, layout = _voc_labels(root)
    images = next((root / name for name in _VOC_IMAGES if (root / name).is_dir()), None)
    if images is None:
        if labels is None:
            return None
        raise DatasetError(f"{root}: {layout}, but without the folder JPEGImages; export it again with its images.")
    by_image = _by_place(images)
    by_mask = _by_place(masks)
    sets = _image_sets(root / "ImageSets" / "Segmentation") or {ALL: sorted(by_mask)}
    splits: dict[str, tuple[Pair, ...]] = {}
    unpaired = []
    for split in sorted(sets, key=SPLITS.index):
        pairs = [Pair(by_image[n], by_mask[n]) for n in sets[split] if n in by_image and n in by_mask]
        unpaired += [
            by_mask.get(n) or by_image.get(n, images / n) for n in sets[split] if not (n in by_image and n in by_mask)
        ]
        splits[split] = tuple(pairs)
    return Dataset(root, layout, splits, labels, tuple(unpaired))


def _voc_labels(root: Path) -> tuple[LabelSpace | None, str]:
    if (root / "labelmap.txt").is_file():
        return _colored(root / "labelmap.txt", _labelmap(root / "labelmap.txt")), 'CVAT\'s "Segmentation mask"'
    if (root / "class_names.txt").is_file():
        names = [line for line in text_lines(root / "class_names.txt") if line]
        names = ["background" if name == "_background_" else name for name in names if name != "__ignore__"]
        return _named(root, names), "labelme2voc's folders"
    if (root / "Annotations").is_dir():
        return _named(root, VOC_NAMES), "PASCAL VOC"
    return None, "PASCAL VOC's folders"


def _named(root: Path, names: Sequence[str]) -> LabelSpace:
    classes = tuple(LabelClass(name, (i,), voc_color(i)) for i, name in enumerate(names))
    return LabelSpace(space_name(root), classes)


def _labelmap(path: Path) -> list[tuple[str, Color]]:
    """Classes from CVAT's lines `name:red,green,blue:parts:actions`."""
    rows: list[tuple[str, Color]] = []
    for number, line in enumerate(text_lines(path), start=1):
        if not line or line.startswith("#"):
            continue
        found = re.fullmatch(r"(.+?):(\d{1,3}),\s*(\d{1,3}),\s*(\d{1,3})(:.*)?", line)
        if found is None and re.fullmatch(r"[^:]+:::", line):  # a label without a colour gets that of its index
            rows.append((line[:-3], voc_color(len(rows))))
            continue
        if found is None:
            raise DatasetError(f"{path}, line {number}: {short(line)} is not NAME:RED,GREEN,BLUE::.")
        rows.append((found[1], (int(found[2]), int(found[3]), int(found[4]))))
    return rows


def _colored(path: Path, rows: Iterable[tuple[str, Color]]) -> LabelSpace:
    classes: list[LabelClass] = []
    for name, color in rows:
        try:
            classes.append(LabelClass(class_name(name), (len(classes),), color))
        except DatasetError as error:
            raise DatasetError(f"{path}: a class {error}.") from error
    colors = [c.color for c in classes]
    twice = next((c for c in classes if colors.count(c.color) > 1), None)
    if twice is not None:
        raise DatasetError(
            f"{path}: several classes have the colour {twice.color}, for example {twice.name!r}; give each its own."
        )
    return LabelSpace(space_name(path.parent), tuple(classes))


def _image_sets(folder: Path) -> dict[str, list[str]]:
    """Names per split; VOC's trainval is train and val together, and is used only without them."""
    found = {path.stem: [n for n in text_lines(path) if n] for path in sorted(folder.glob("*.txt"))}
    if {"train", "val"} & set(found):
        found.pop("trainval", None)
    sets: dict[str, list[str]] = {}
    for stem, names in found.items():
        split = split_of(stem) if stem != "trainval" else ALL
        # CVAT quotes names that contain spaces.
        sets.setdefault(split, []).extend(dict.fromkeys(name.strip('"') for name in names))
    return {split: names for split, names in sets.items() if names}


def _by_place(folder: Path) -> dict[str, Path]:
    """Image files by their path below the folder, without its extension."""
    files = files_below(folder, EXTENSIONS)
    return {path.relative_to(folder).with_suffix("").as_posix(): path for path in files}


def _camvid(root: Path) -> Dataset | None:
    """CamVid with label_colors.txt and lists of pairs, whose paths CVAT and SegNet start at some other root."""
    colors = root / "label_colors.txt"
    lists = [path for path in sorted(root.glob("*.txt")) if path != colors]
    return _camvid_lists(root, lists) if colors.is_file() and lists else None


def pair_list(path: Path) -> Dataset:
    """The dataset of a list of pairs, which may be CamVid's list next to label_colors.txt.

    Raises: DatasetError.
    """
    if (path.parent / "label_colors.txt").is_file() and path.suffix == ".txt":
        camvid = _camvid_lists(path.parent, [path])
        if camvid is not None:
            return replace(camvid, root=path)
    pairs = [
        pair
        if pair.image.is_file() or pair.mask.is_file()
        else replace(pair, image=_below(path.parent, str(pair.image)), mask=_below(path.parent, str(pair.mask)))
        for pair in read_pairs(path)
    ]
    return Dataset(path, "a list of pairs", {ALL: tuple(pairs)}, None, ())


def _camvid_lists(root: Path, lists: Sequence[Path]) -> Dataset | None:
    colors = root / "label_colors.txt"
    rows = []
    for number, line in enumerate(text_lines(colors), start=1):
        if not line or line.startswith("#"):
            continue
        found = re.fullmatch(r"(\d{1,3})\s+(\d{1,3})\s+(\d{1,3})\s+(.+)", line)
        if found is None:
            raise DatasetError(f"{colors}, line {number}: {short(line)} is not RED GREEN BLUE NAME.")
        rows.append((found[4], (int(found[1]), int(found[2]), int(found[3]))))
    splits: dict[str, list[Pair]] = {}
    unpaired: list[Path] = []
    for path in lists:
        for number, line in enumerate(text_lines(path), start=1):
            if not line:
                continue
            parts = re.findall(r'"([^"]*)"|(\S+)', line)
            files = [_below(root, quoted or plain) for quoted, plain in parts if quoted or plain]
            if len(files) == 1:
                unpaired.append(files[0])  # an image without annotation
            elif len(files) == 2:
                splits.setdefault(split_of(path.stem), []).append(Pair(files[0], files[1]))
            else:
                raise DatasetError(f"{path}, line {number}: {short(line)} is not an image and a mask.")
    if not splits:
        return None
    ordered = {split: tuple(splits[split]) for split in sorted(splits, key=SPLITS.index)}
    return Dataset(root, "CamVid with label_colors.txt", ordered, _colored(colors, rows), tuple(unpaired))


def _below(root: Path, name: str) -> Path:
    """The file for a path whose root may be on another machine: its longest tail that exists below `root`."""
    parts = [part for part in name.replace("\\", "/").split("/") if part not in ("", ".", "..")]
    for i in range(len(parts)):
        if root.joinpath(*parts[i:]).is_file():
            return root.joinpath(*parts[i:])
    return Path(name) if Path(name).is_absolute() else root.joinpath(*parts)


def _roboflow(root: Path) -> Dataset | None:
    """Roboflow's "Semantic Segmentation Masks": x.jpg next to x_mask.png, and _classes.csv in each split."""
    tables = [path for path in (root / "_classes.csv", *sorted(root.glob("*/_classes.csv"))) if path.is_file()]
    if not tables:
        return None
    spaces = [_roboflow_classes(path) for path in tables]
    for path, rows in zip(tables, spaces, strict=True):
        if rows != spaces[0]:
            raise DatasetError(
                f"{path}: has other classes than {tables[0]}; all splits of a dataset must have the same."
            )
    splits: dict[str, list[Pair]] = {}
    unpaired: list[Path] = []
    for folder in (path.parent for path in tables):
        split = split_of(folder.name) if folder != root else ALL
        files = {p.stem: p for p in sorted(folder.iterdir()) if p.suffix.lower() in EXTENSIONS}
        masks = {stem.removesuffix("_mask"): p for stem, p in files.items() if stem.endswith("_mask")}
        images = {stem: p for stem, p in files.items() if p not in masks.values()}
        splits.setdefault(split, []).extend(Pair(images[s], masks[s]) for s in images if s in masks)
        unpaired += [p for both in (images, masks) for s, p in both.items() if not (s in images and s in masks)]
    ordered = {split: tuple(splits[split]) for split in sorted(splits, key=SPLITS.index)}
    return Dataset(root, "Roboflow's semantic segmentation masks", ordered, _numbered(root, spaces[0]), tuple(unpaired))


def _roboflow_classes(path: Path) -> dict[int, str]:
    rows: dict[int, str] = {}
    try:
        table = list(csv.reader(text_lines(path)))
    except csv.Error as error:
        raise DatasetError(f"{path}: not a table of pixel values and classes ({error}).") from error
    for number, row in enumerate(table, start=1):
        cells = [cell.strip() for cell in row]
        if not any(cells) or (number == 1 and not cells[0].isdecimal()):
            continue  # a header
        if len(cells) != 2 or not cells[0].isdecimal() or int(cells[0][:6]) > 65_535 or int(cells[0][:6]) in rows:
            raise DatasetError(f"{path}, line {number}: {short(','.join(row))} is not a pixel value and a class.")
        try:
            rows[int(cells[0])] = class_name(cells[1])
        except DatasetError as error:
            raise DatasetError(f"{path}, line {number}: {error}.") from error
    if not rows:
        raise DatasetError(f"{path}: contains no class.")
    return rows


def _numbered(root: Path, rows: Mapping[int, str]) -> LabelSpace:
    classes = tuple(
        LabelClass(name, (value,), distinct_color(i)) for i, (value, name) in enumerate(sorted(rows.items()))
    )
    return LabelSpace(space_name(root), classes, () if 255 in rows else (255,))
