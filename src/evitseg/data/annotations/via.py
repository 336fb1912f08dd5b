"""VGG Image Annotator (VIA) 1 and 2: one JSON file for many images, with their regions."""

from __future__ import annotations

import math
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

from evitseg.data.annotations import regions
from evitseg.data.annotations.objects import (
    AnnotatedImage,
    Annotations,
    Damaged,
    Drawn,
    ImageFolder,
    Item,
    Polygons,
    Shape,
    class_name,
    count,
    image_name,
    short,
)
from evitseg.data.annotations.regions import Runs, ShapeError
from evitseg.errors import DatasetError

TOOL = "VGG Image Annotator annotations"
_NO_AREA = ("point", "polyline", "line")
_USUAL = ("class", "label", "name", "category", "type")


def _entries(content: Any) -> dict[str, Any] | None:
    """The images by VIA's key, from an exported file or a saved project."""
    if not isinstance(content, dict):
        return None
    entries = content.get("_via_img_metadata", content)
    if not isinstance(entries, dict) or not entries:
        return None
    first = next(iter(entries.values()))
    return entries if isinstance(first, dict) and {"filename", "regions"} <= set(first) else None


def is_via(content: Any) -> bool:
    """Whether the content of a JSON file is VIA's."""
    return _entries(content) is not None


def read_via(content: Any, path: Path, images: Path | None) -> Annotations:
    """Read the regions of a VIA file; later regions are drawn over earlier ones.

    The class is the region attribute called class, label, name, category or type, else the only attribute.

    Raises: DatasetError if none of several attributes has such a name.
    """
    found = Annotations(TOOL, path, [], [])
    folder = ImageFolder(path.parent, images)
    entries = _entries(content) or {}
    attribute = _class_attribute(entries, path)
    seen: set[str] = set()
    skipped: Counter[str] = Counter()
    for key, entry in entries.items():
        where = f"{path}: {short(key)}"
        try:
            if not isinstance(entry, dict):
                raise DatasetError(f"is not an image with regions ({short(entry)})")
            name = image_name(entry.get("filename"))
            shapes = _regions(entry)
        except DatasetError as error:
            found.problems.append(f"{where} {error}.")
            continue
        items = []
        for i, region in enumerate(shapes):
            item = _item(region, attribute, f"{where}, region {i}", skipped)
            if item is not None:
                items.append(item)
                if item.label is not None:
                    seen.add(item.label)
        found.images.append(AnnotatedImage(name, where, None, partial(list, items), file=folder.find(name)))
    found.names += sorted(seen)
    for kind, number in skipped.items():
        found.notes.append(f"{count(number, 'region')} of type {kind} skipped: not an area.")
    return found


def _regions(entry: dict[str, Any]) -> list[Any]:
    shapes = entry.get("regions")
    if isinstance(shapes, dict):  # version 1
        return list(shapes.values())
    if not isinstance(shapes, list):
        raise DatasetError("has no list of regions")
    return shapes


def _class_attribute(entries: dict[str, Any], path: Path) -> str:
    used: Counter[str] = Counter()
    for entry in entries.values():
        shapes = entry.get("regions") if isinstance(entry, dict) else None
        for region in shapes.values() if isinstance(shapes, dict) else shapes if isinstance(shapes, list) else ():
            attributes = region.get("region_attributes") if isinstance(region, dict) else None
            used.update(list(attributes) if isinstance(attributes, dict) else ())
    named = [key for key in _USUAL if key in used] or list(used)
    if len(used) != 1 and not any(key in used for key in _USUAL):
        raise DatasetError(
            f"{path}: {TOOL} whose regions have {'no attribute' if not used else 'several attributes'} "
            f"({', '.join(sorted(used)[:5])}); rename the one with the class to 'class'."
        )
    return named[0]


def _item(region: Any, attribute: str, where: str, skipped: Counter[str]) -> Item | None:
    shape = region.get("shape_attributes") if isinstance(region, dict) else None
    if not isinstance(shape, dict):
        return Item(where, None, Damaged("has no shape_attributes"))
    if shape.get("name") in _NO_AREA:
        skipped[str(shape["name"])] += 1
        return None
    attributes = region.get("region_attributes")
    value = attributes.get(attribute) if isinstance(attributes, dict) else None
    if isinstance(value, dict):  # check boxes
        chosen = [key for key, on in value.items() if on]
        value = chosen[0] if len(chosen) == 1 else None
    try:
        return Item(where, class_name(value), _shape(shape))
    except DatasetError:
        return Item(where, None, Damaged(f"has no single class as {attribute!r} ({short(value)})"))


def _shape(shape: dict[str, Any]) -> Shape:
    kind = shape.get("name")
    if kind == "polygon":
        xs, ys = shape.get("all_points_x"), shape.get("all_points_y")
        if not isinstance(xs, list) or not isinstance(ys, list) or len(xs) != len(ys):
            return Damaged("has different numbers of x and y coordinates")
        return Polygons([[list(pair) for pair in zip(xs, ys, strict=True)]])
    if kind in ("rect", "circle", "ellipse"):
        return Drawn(partial(_measured, str(kind), shape))
    return Damaged(f"has the unknown shape {short(kind)}")


def _measured(kind: str, shape: dict[str, Any], size: tuple[int, int]) -> Runs:
    keys = {
        "rect": ("x", "y", "width", "height"),
        "circle": ("cx", "cy", "r", "r"),
        "ellipse": ("cx", "cy", "rx", "ry"),
    }[kind]
    values = [shape.get(key) for key in keys]
    a, b, c, d = regions.coordinates(values, size).ravel().tolist()
    if kind == "rect":
        return regions.box(a, b, a + c, b + d, size)
    theta = shape.get("theta", 0)
    if isinstance(theta, bool) or not isinstance(theta, (int, float)):
        raise ShapeError(f"has the angle {short(theta)}, which is not a number")
    regions.coordinates([theta, 0], size)  # an integer in JSON may be too long for a float
    return regions.ellipse(a, b, c, d, math.degrees(theta), size)
