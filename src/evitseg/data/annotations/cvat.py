"""CVAT: "CVAT for images 1.1", one XML file for many images, with polygons, masks and ellipses."""

from __future__ import annotations

import re
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np

from evitseg.data.annotations import regions
from evitseg.data.annotations.objects import (
    AnnotatedImage,
    Annotations,
    Damaged,
    Drawn,
    ImageFolder,
    Item,
    Shape,
    class_name,
    count,
    image_name,
    short,
    split_of,
    whole,
)
from evitseg.data.annotations.regions import Runs, ShapeError
from evitseg.errors import DatasetError
from evitseg.image import MAX_PIXELS
from evitseg.labels import Color

TOOL = 'a CVAT export ("CVAT for images 1.1")'
_NO_AREA = ("box", "polyline", "points", "cuboid", "skeleton", "tag")
_AREAS = ("polygon", "mask", "ellipse")
_HEAD = 4096


def is_cvat(path: Path) -> bool:
    """Whether a file looks like CVAT's own XML format."""
    try:
        if not path.is_file():
            return False
        with path.open("rb") as file:
            return re.search(rb"<annotations[\s>]", file.read(_HEAD)) is not None
    except OSError:
        return False


def read_cvat(path: Path, images: Path | None) -> Annotations:
    """Read polygons, masks and ellipses; shapes with a larger z_order are drawn over the others.

    Raises: DatasetError for XML that is damaged, defines entities, or contains the tracks of a video.
    """
    found = Annotations(TOOL, path, [], [])
    folder = ImageFolder(path.parent, images, ("images",))
    without_area: Counter[str] = Counter()
    where_label: set[str] = set()
    try:
        with path.open("rb") as file:
            # Nested entities can expand a small file to gigabytes. CVAT writes none.
            for block in iter(lambda: file.read(1 << 20), b""):
                if b"<!DOCTYPE" in block or b"<!ENTITY" in block:
                    raise DatasetError(f"{path}: refused: has a document type or entities, which CVAT never writes.")
        for _, element in ElementTree.iterparse(path):
            if element.tag == "meta":
                _labels(element, found)
            elif element.tag == "track":
                raise DatasetError(
                    f"{path}: contains tracks (CVAT for video); export the task as CVAT for images 1.1 instead."
                )
            elif element.tag == "image":
                _image(element, found, folder, without_area, where_label)
                element.clear()
    except (ElementTree.ParseError, LookupError, ValueError) as error:  # LookupError: an unknown encoding
        raise DatasetError(f"{path}: cannot be read as XML ({error}).") from error
    except OSError as error:
        raise DatasetError(f"{path}: cannot be read ({error.strerror or error}).") from error
    found.names += sorted(where_label - set(found.names))
    for kind, number in without_area.items():
        found.notes.append(f"{count(number, 'shape')} of type {kind} skipped: only {', '.join(_AREAS)} are areas.")
    return found


def _labels(meta: ElementTree.Element, found: Annotations) -> None:
    for label in meta.iter("label"):
        try:
            name = class_name(label.findtext("name"))
        except DatasetError as error:
            found.problems.append(f"{found.source}: a label {error}.")
            continue
        if name not in found.names:
            found.names.append(name)
            color = re.fullmatch(r"#([0-9a-fA-F]{6})", label.findtext("color") or "")
            if color:
                found.colors[name] = _color(color[1])


def _color(text: str) -> Color:
    return int(text[:2], 16), int(text[2:4], 16), int(text[4:], 16)


def _image(
    element: ElementTree.Element,
    found: Annotations,
    folder: ImageFolder,
    without_area: Counter[str],
    seen: set[str],
) -> None:
    where = f"{found.source}: image {short(element.get('id'))}"
    try:
        name = image_name(element.get("name"))
        size = whole(element.get("height"), "height"), whole(element.get("width"), "width")
        if min(size) <= 0 or size[0] * size[1] > MAX_PIXELS:
            raise DatasetError(f"has {short(size[1])}×{short(size[0])} pixels, which is impossible")
    except DatasetError as error:
        found.problems.append(f"{where} {error}.")
        return
    items = []
    for i, shape in enumerate(element):
        if shape.tag in _NO_AREA:
            without_area[shape.tag] += 1
        elif shape.tag in _AREAS:
            item = _item(dict(shape.attrib), shape.tag, f"{where}, shape {i + 1} ({shape.tag})")
            items.append(item)
            if item[1].label is not None:
                seen.add(item[1].label)
    ordered = [item for _, item in sorted(items, key=lambda pair: pair[0])]
    subset = element.get("subset") or ""
    file = folder.find(f"{subset}/{name}") if subset else None
    found.images.append(
        AnnotatedImage(name, where, size, partial(list, ordered), split_of(subset), file or folder.find(name))
    )


def _item(shape: dict[str, str], kind: str, where: str) -> tuple[int, Item]:
    try:
        order = int(shape.get("z_order", "0"))
        label = class_name(shape.get("label"))
    except (ValueError, DatasetError) as error:
        return 0, Item(where, None, Damaged(f"has a damaged label or z_order ({error})"))
    drawn: Shape = Drawn(partial({"polygon": _polygon, "mask": _mask, "ellipse": _ellipse}[kind], shape))
    return order, Item(where, label, drawn)


def _number(shape: dict[str, Any], key: str) -> float:
    try:
        return float(shape[key])
    except (KeyError, ValueError):
        raise ShapeError(f"has the {key} {short(shape.get(key))}, which is not a number") from None


def _polygon(shape: dict[str, str], size: tuple[int, int]) -> Runs:
    try:
        points = [[float(number) for number in pair.split(",")] for pair in shape.get("points", "").split(";") if pair]
    except ValueError:
        raise ShapeError(f"has points that are not numbers ({short(shape.get('points'))})") from None
    if any(len(pair) != 2 for pair in points):
        raise ShapeError("has a point that is not x and y")
    return regions.polygon(regions.coordinates(points, size), size)


def _ellipse(shape: dict[str, str], size: tuple[int, int]) -> Runs:
    x, y, across, down = (_number(shape, key) for key in ("cx", "cy", "rx", "ry"))
    return regions.ellipse(x, y, across, down, _number({"rotation": 0} | shape, "rotation"), size)


def _mask(shape: dict[str, str], size: tuple[int, int]) -> Runs:
    """A mask from the row-by-row run lengths of a box in the image; the first run is zeros."""
    left, top, width, height = (_number(shape, key) for key in ("left", "top", "width", "height"))
    if not all(0 <= value <= max(size) and value == int(value) for value in (left, top, width, height)):
        raise ShapeError("has a box outside its image")
    try:
        counts = [int(number) for number in shape.get("rle", "").split(",")]
    except ValueError:
        raise ShapeError("has run lengths that are not numbers") from None
    box = int(height), int(width)
    # Row by row in the box is column by column in the transposed box.
    runs = regions.run_lengths(counts, box[::-1])
    canvas = np.zeros(box[0] * box[1], np.uint8)
    regions.paint(canvas, runs, 1)
    return regions.bitmap(canvas.reshape(box).astype(bool), int(top), int(left), size)
