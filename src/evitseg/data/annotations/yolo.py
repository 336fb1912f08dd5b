"""YOLO segmentation: one text file of normalised polygons per image, and a YAML file with the classes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from evitseg.data.annotations import regions
from evitseg.data.annotations.objects import (
    AnnotatedImage,
    Annotations,
    Damaged,
    Drawn,
    Item,
    class_name,
    count,
    files_below,
    short,
    text_lines,
)
from evitseg.data.annotations.regions import Runs, ShapeError
from evitseg.data.dataset import ALL
from evitseg.data.yaml_file import check_shape
from evitseg.errors import DatasetError
from evitseg.raster.formats import EXTENSIONS
from evitseg.system.text import decoded

TOOL = "a YOLO segmentation dataset"
_SPLITS = ("train", "val", "test")
_MAX_YAML = 1 << 20


def find_yaml(folder: Path) -> Path | None:
    """The YAML file of a YOLO dataset in this folder, or None."""
    names = ("data.yaml", "data.yml", "dataset.yaml")
    files = [folder / name for name in names if (folder / name).is_file()] or sorted(folder.glob("*.y*ml"))
    return next((file for file in files if is_yolo_yaml(file)), None)


def is_yolo_yaml(path: Path) -> bool:
    """Whether a YAML file describes a YOLO dataset."""
    try:
        content = _read_yaml(path)
    except DatasetError:
        return False
    return "names" in content and "masks_dir" not in content and any(split in content for split in _SPLITS)


def is_yolo_folder(folder: Path) -> bool:
    """Whether a folder has labels/*.txt and classes.txt, as Label Studio and labelImg write them without YAML."""
    return (folder / "classes.txt").is_file() and any((folder / "labels").glob("*.txt"))


def read_yolo(source: Path, images: Path | None) -> Annotations:
    """Read the polygons of a YAML file's dataset, or of a folder with images/, labels/ and classes.txt.

    Later polygons are drawn over earlier ones.

    Raises: DatasetError if there is no label file, or if all of them contain boxes.
    """
    found = Annotations(TOOL, source, [], [])
    if source.is_dir() and find_yaml(source) is None:
        names = [line for line in text_lines(source / "classes.txt") if line]
        found.names += names
        splits = {ALL: files_below(images or source / "images", EXTENSIONS)}
    else:
        yaml_file = source if source.is_file() else find_yaml(source)
        assert yaml_file is not None
        content = _read_yaml(yaml_file)
        names = _names(content.get("names"), yaml_file)
        found.names += names
        splits = _splits(content, yaml_file, images, found)
    kinds = Counter[str]()
    labelled = 0
    root = source if source.is_dir() else source.parent
    label_files = _label_files([file for files in splits.values() for file in files], root)
    for split, files in splits.items():
        for file in files:
            label_file = label_files.get(file)
            labelled += label_file is not None
            items = _items(label_file, names, kinds) if label_file else []
            name = _short_name(file, root)
            where = str(label_file or file)
            found.images.append(AnnotatedImage(name, where, None, partial(list, items), split, file))
    if not found.images and found.problems:
        raise DatasetError(found.problems[0])
    if not found.images:
        raise DatasetError(
            f"{source}: {TOOL}, but its images are not there; give their folder with evitseg convert --images DIR."
        )
    if not labelled:
        raise DatasetError(
            f"{source}: {TOOL}, but no image has a label file; put labels/, with one .txt per image, next to "
            "images/. If the dataset has masks, add masks_dir: FOLDER to the YAML file."
        )
    if kinds["box"] and not kinds["polygon"]:
        raise DatasetError(
            f"{source}: YOLO labels of boxes (5 numbers per line), not polygons; a box does not say which pixels "
            "belong to the object. Export the dataset for segmentation."
        )
    without = len(found.images) - labelled
    if without:
        found.notes.append(f"{count(without, 'image')} without a label file: all their pixels are background.")
    return found


def _items(file: Path, names: list[str], kinds: Counter[str]) -> list[Item]:
    items = []
    try:
        lines = text_lines(file)
    except DatasetError as error:
        return [Item(str(file), None, Damaged(f"cannot be used: {error}"))]
    for number, line in enumerate(lines, start=1):
        where = f"{file}: line {number}"
        parts = line.split()
        if not parts:
            continue
        try:
            values = [float(part) for part in parts]
        except ValueError:
            items.append(Item(where, None, Damaged(f"is not a class and coordinates ({short(line)})")))
            continue
        index = values[0]
        if not (index == index and 0 <= index < len(names)) or index != int(index):
            items.append(
                Item(where, None, Damaged(f"has the class {parts[0]}, but there are {count(len(names), 'name')}"))
            )
        elif len(values) == 5:
            kinds["box"] += 1
            items.append(Item(where, None, Damaged("is a box, not a polygon")))
        else:
            kinds["polygon"] += 1
            items.append(Item(where, names[int(index)], Drawn(partial(_polygon, values[1:]))))
    return items


def _polygon(values: list[float], size: tuple[int, int]) -> Runs:
    points = regions.coordinates(values, size)
    if points.size and (points.min() < -0.5 or points.max() > 1.5):
        raise ShapeError("has coordinates that are not fractions of the image's width and height")
    return regions.polygon(points * (size[1], size[0]), size)


def _read_yaml(path: Path) -> dict[str, Any]:
    import yaml

    if not path.is_file():
        raise DatasetError(f"{path}: not a regular file.")
    text = decoded(path, most=_MAX_YAML)
    try:
        check_shape(path, text)
        content = yaml.load(text, Loader=yaml.BaseLoader)  # BaseLoader keeps scalars as text: "no" is a name
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise DatasetError(f"{path}: cannot be read as YAML ({' '.join(str(error).split())[:160]}).") from error
    if not isinstance(content, dict):
        raise DatasetError(f"{path}: not the YAML file of a dataset, which has the keys names, train and val.")
    return content


def _names(names: Any, path: Path) -> list[str]:
    if isinstance(names, list):
        names = {str(i): name for i, name in enumerate(names)}
    if not isinstance(names, dict) or set(names) != {str(i) for i in range(len(names))} or not names:
        raise DatasetError(f"{path}: names must be a list, or number the classes from 0 without gaps.")
    try:
        return [class_name(names[str(i)]) for i in range(len(names))]
    except DatasetError as error:
        raise DatasetError(f"{path}: a class {error}.") from error


def _splits(content: dict[str, Any], path: Path, images: Path | None, found: Annotations) -> dict[str, list[Path]]:
    base = path.parent / str(content.get("path") or ".")
    bases = [images] if images else [base, path.parent, path.parent / Path(str(content.get("path") or ".")).name]
    splits: dict[str, list[Path]] = {}
    for split in _SPLITS:
        value = content.get(split)
        if not value or value in ("null", "~"):
            continue
        entries = value if isinstance(value, list) else [value]
        for entry in entries:
            place = _place(str(entry), bases)
            if place is None:
                found.problems.append(f"{path}: {split} is {short(entry)}, which does not exist.")
                continue
            files = files_below(place, EXTENSIONS) if place.is_dir() else _listed(place, bases, found)
            splits.setdefault(split, []).extend(files)
    return splits


def _place(entry: str, bases: list[Path]) -> Path | None:
    """A folder or list, even if its path is from another machine: Roboflow writes ../train/images."""
    entry = entry.replace("\\", "/")
    tries = [entry, entry.lstrip("./"), entry.removeprefix("/")]
    for text in dict.fromkeys(tries):
        for base in bases:
            try:
                if (base / text).exists():
                    return base / text
            except OSError:
                continue
    return None


def _listed(path: Path, bases: list[Path], found: Annotations) -> list[Path]:
    files = []
    for number, line in enumerate(text_lines(path), start=1):
        if not line:
            continue
        # Paths in CVAT's lists start with data/, a folder that its archive lacks.
        place = _place(line, [path.parent, *bases]) or _place(line.removeprefix("data/"), [path.parent, *bases])
        if place is None or not place.is_file():
            found.problems.append(f"{path}: line {number}: {short(line)} does not exist.")
        else:
            files.append(place)
    return files


def _label_files(images: Sequence[Path], root: Path) -> dict[Path, Path]:
    """The label file of every image that has one."""
    found = {image: file for image in images if (file := _label_file(image, root)) is not None}
    # Elsewhere by its name, which must not be that of several images.
    taken, often = set(found.values()), Counter(image.stem for image in dict.fromkeys(images))
    by_stem = _labels_by_stem(root)
    for image in images:
        file = by_stem.get(image.stem)
        if image not in found and file is not None and file not in taken and often[image.stem] == 1:
            found[image] = file
    return found


def _label_file(image: Path, root: Path) -> Path | None:
    """The text file at the image's path with `images` replaced by `labels`, or next to the image."""
    parts = list(image.parts)
    for i in reversed(range(len(root.parts), len(parts) - 1)):
        if parts[i] == "images":
            other = Path(*parts[:i], "labels", *parts[i + 1 :]).with_suffix(".txt")
            if other.is_file():
                return other
            break
    sibling = image.with_suffix(".txt")
    return sibling if sibling.is_file() else None


def _labels_by_stem(root: Path) -> dict[str, Path]:
    """Label files by stem, for images in other folders; stems that occur twice are left out."""
    found: dict[str, list[Path]] = {}
    for file in files_below(root, (".txt",)):
        if "labels" in file.relative_to(root).parts[:-1]:
            found.setdefault(file.stem, []).append(file)
    return {stem: files[0] for stem, files in found.items() if len(files) == 1}


def _short_name(file: Path, root: Path) -> str:
    try:
        return file.resolve().relative_to(root.resolve()).as_posix()
    except ValueError:
        return file.name
