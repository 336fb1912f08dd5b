"""COCO: one JSON file for many images, with objects as polygons or run lengths."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Container, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from evitseg.data.annotations import regions
from evitseg.data.annotations.objects import (
    AnnotatedImage,
    Annotations,
    Damaged,
    ImageFolder,
    Item,
    Polygons,
    Shape,
    class_name,
    image_name,
    short,
    split_of,
    whole,
)
from evitseg.data.annotations.regions import Runs, ShapeError
from evitseg.errors import DatasetError
from evitseg.image import MAX_PIXELS

Id = int | str
_KEYS = {"images", "categories", "annotations"}
FORM = (
    "it has images (id, file_name, height, width), categories (id, name) and annotations (image_id, category_id, "
    "segmentation)"
)


def is_coco(content: Any) -> bool:
    """Whether the content of a JSON file has the keys of COCO."""
    return isinstance(content, dict) and set(content) >= _KEYS


def read_coco(content: Any, path: Path, images: Path | None, split: str | None = None) -> Annotations:
    """Read the objects of a COCO file; smaller objects are drawn over larger ones.

    Args:
        content: the parsed JSON.
        path: the file, for messages and to find the images near it.
        images: the folder that file names are relative to; None to look for it.
        split: split of all images; None to take it from the file's name.

    Raises: DatasetError for a file that is not in COCO's format.
    """
    if not is_coco(content) or not all(isinstance(content[key], list) for key in _KEYS):
        raise DatasetError(f"{path}: not in COCO's format: {FORM}.")
    found = Annotations("COCO annotations", path, [], [], larger_first=True)
    name_of = categories_of(content["categories"], found)
    stem = path.stem
    folder = ImageFolder(path.parent, images, _usual_folders(stem))
    usable = images_of(content["images"], found, folder)
    objects: dict[Id, list[tuple[str, dict[str, Any]]]] = defaultdict(list)
    as_text = 0
    ids: set[Id] = {key for key, *_ in usable}
    for i, annotation in enumerate(content["annotations"]):
        if not isinstance(annotation, dict):
            found.problems.append(f"{path}: annotations[{i}] is not an object ({short(annotation)}).")
            continue
        where = f"annotation {short(annotation['id'])}" if "id" in annotation else f"annotations[{i}]"
        image_id = annotation.get("image_id")
        key = known_id(image_id, ids)
        if key is None:
            found.problems.append(f"{path}: {where} has the image_id {short(image_id)}, which no usable image has.")
            continue
        as_text += isinstance(image_id, str) and isinstance(key, int)
        objects[key].append((where, annotation))
    if as_text:
        found.notes.append(f"{as_text} annotations have an image id that is text; it is read as a number.")
    for key, name, size in usable:
        found.images.append(
            AnnotatedImage(
                name,
                f"{path}: image {key}",
                size,
                partial(_items, objects.get(key, []), name_of, path),
                split or split_of(stem),
                folder.find(name),
            )
        )
    return found


def _usual_folders(stem: str) -> list[str]:
    """Folders of images by the annotations' name: train2017/ and images/train2017/ for instances_train2017.json."""
    last = stem.split("_")[-1]
    return [f"{prefix}{name}" for name in dict.fromkeys((last, stem)) for prefix in ("", "images/")]


def id_of(value: Any) -> Id:
    """An id; digits are a number, even if they are written as text. Raises: DatasetError."""
    if isinstance(value, str) and value and value.isprintable() and not value.strip().isdecimal():
        return value
    return whole(value, "id")


def known_id(value: Any, ids: Container[Id]) -> Id | None:
    """The id, or None if it is not among `ids`."""
    try:
        key = id_of(value)
    except DatasetError:
        return None
    return key if key in ids else None


def categories_of(categories: list[Any], found: Annotations) -> dict[Id, str]:
    """Class names by category id; also appends them to `found.names`. Raises: DatasetError for an id with two names."""
    name_of: dict[Id, str] = {}
    entries = []
    for i, category in enumerate(categories):
        try:
            if not isinstance(category, dict):
                raise DatasetError(f"is not an object ({short(category)})")
            key = id_of(category.get("id"))
            entries.append((key, class_name(category.get("name"))))
        except DatasetError as error:
            found.problems.append(f"{found.source}: categories[{i}] {error}.")
    for key, name in sorted(entries, key=lambda entry: (isinstance(entry[0], str), entry[0])):
        if name_of.setdefault(key, name) != name:
            raise DatasetError(
                f"{found.source}: category {key} is both {name_of[key]!r} and {name!r}; give each category its own id."
            )
    found.names += name_of.values()  # categories of the same name are one class
    return name_of


def images_of(
    entries: list[Any], found: Annotations, folder: ImageFolder | None = None
) -> list[tuple[Id, str, tuple[int, int]]]:
    """Id, name and (height, width) of the images that can be used; the others are reported in `found.problems`."""
    usable: dict[Id, tuple[Id, str, tuple[int, int]]] = {}
    twice: dict[Id, set[str]] = defaultdict(set)
    exact = {name for entry in entries if isinstance(name := _get(entry, "file_name"), str)}
    for i, entry in enumerate(entries):
        try:
            if not isinstance(entry, dict):
                raise DatasetError(f"is not an object ({short(entry)})")
            key = id_of(entry.get("id"))
            file_name = entry.get("file_name")
            twice[key].add(short(file_name))
            image = (
                key,
                image_name(folder.tail(file_name, exact) if folder else file_name),
                (
                    whole(entry.get("height"), "height"),
                    whole(entry.get("width"), "width"),
                ),
            )
            height, width = image[2]
            if min(height, width) <= 0 or height * width > MAX_PIXELS:
                raise DatasetError(f"has {short(width)}×{short(height)} pixels, which is impossible")
            usable.setdefault(key, image)
        except DatasetError as error:
            found.problems.append(f"{found.source}: images[{i}], id {short(_get(entry, 'id'))}, {error}.")
    for key, names in twice.items():
        if len(names) > 1:
            found.problems.append(
                f"{found.source}: image id {key} is shared by {' and '.join(sorted(names))}; they are skipped, because "
                "annotations of this id are ambiguous."
            )
            usable.pop(key, None)
    by_name: dict[str, list[Id]] = defaultdict(list)
    for key, name, _ in usable.values():
        by_name[name].append(key)
    for name, same in by_name.items():
        if len(same) < 2:
            continue
        found.problems.append(
            f"{found.source}: images {', '.join(map(str, same))} are all {name}; it is skipped, because each "
            "of them has only some of its objects."
        )
        for key in same:
            usable.pop(key)
    return list(usable.values())


def _get(entry: Any, key: str) -> Any:
    return entry.get(key) if isinstance(entry, dict) else None


def _items(annotations: Iterable[tuple[str, dict[str, Any]]], name_of: dict[Id, str], path: Path) -> Iterable[Item]:
    for where, annotation in annotations:
        where = f"{path}: {where}"
        category = annotation.get("category_id")
        key = known_id(category, name_of)
        if key is None:
            yield Item(where, None, Damaged(f"has the category_id {short(category)}, which no category has"))
        else:
            yield Item(where, name_of[key], _shape(annotation.get("segmentation")))


def _shape(segmentation: Any) -> Shape:
    if isinstance(segmentation, dict):
        return RunLengths(segmentation.get("counts"), segmentation.get("size"))
    if isinstance(segmentation, list):
        return Polygons(segmentation)
    return Damaged(f"has a segmentation that is neither polygons nor run lengths ({short(segmentation)})")


@dataclass(frozen=True)
class RunLengths:
    """A shape from COCO's run lengths, which are numbers or text."""

    counts: Any
    size: Any

    def runs(self, size: tuple[int, int]) -> Runs:
        if self.size != list(size):
            raise ShapeError(f"has run lengths for {short(self.size)} pixels, in an image of {list(size)}")
        counts = self.counts
        if isinstance(counts, (str, bytes)):
            counts = regions.compressed_run_lengths(counts)
        elif not isinstance(counts, list):
            raise ShapeError(f"has run lengths that are neither a list nor text ({short(counts)})")
        return regions.run_lengths(counts, size)
