"""Labelme: one JSON file per image, usually next to it."""

from __future__ import annotations

import base64
import binascii
import io
import math
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

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
    read_json,
    short,
    split_of,
    text_lines,
    whole,
)
from evitseg.data.annotations.regions import Runs, ShapeError
from evitseg.errors import DatasetError, EvitsegError
from evitseg.image import MAX_PIXELS
from evitseg.raster.formats import EXTENSIONS

TOOL = "Labelme annotations"
_NO_AREA = ("line", "linestrip", "point", "points")


def is_labelme(content: Any) -> bool:
    """Whether the content of a JSON file is Labelme's."""
    return isinstance(content, dict) and isinstance(content.get("shapes"), list) and "imagePath" in content


def read_labelme(files: Iterable[Path], source: Path, images: Path | None) -> Annotations:
    """Read the shapes of Labelme's files; later shapes are drawn over earlier ones, as Labelme does.

    Classes are in the order of `labels.txt` in the source's folder; other classes follow in alphabetical order.

    Args:
        files: the JSON files; those of other programs are skipped and reported.
        source: the file or folder that the user chose.
        images: the folder of the images; None for the paths in the JSON files.

    Raises: DatasetError if no file is Labelme's.
    """
    root = source if source.is_dir() else source.parent
    found = Annotations(TOOL, source, [], [])
    seen: set[str] = set()
    without_area: Counter[str] = Counter()
    others: list[Path] = []
    folder = ImageFolder(root, images)
    for file in files:
        try:
            content = read_json(file)
            if isinstance(content, dict) and not {"shapes", "imagePath"} & set(content):
                others.append(file)
                continue
            if not is_labelme(content):
                raise DatasetError(f"{file}: not a Labelme file, which has shapes and imagePath.")
            image = _image(content, file, root, folder, images is not None)
        except EvitsegError as error:
            found.problems.append(str(error))
            continue
        items = []
        for i, shape in enumerate(content["shapes"]):
            where = f"{file}: shapes[{i}]"
            kind = shape.get("shape_type") if isinstance(shape, dict) else None
            if kind in _NO_AREA:
                without_area[kind] += 1
                continue
            item = _item(shape, where)
            if item.label is not None:
                seen.add(item.label)
            items.append(item)
        found.images.append(replace(image, items=partial(list, items)))
    if not found.images and not found.problems:
        raise DatasetError(f"{source}: has no Labelme file.")
    for kind, number in without_area.items():
        found.notes.append(f"{count(number, 'shape')} of type {kind} skipped: not an area.")
    if others:
        found.notes.append(f"{count(len(others), 'JSON file')} of another kind skipped, the first {others[0]}.")
    used = {image.file.resolve() for image in found.images if image.file is not None}
    folders = {file.parent for file in used} if source.is_dir() else ()
    without_file = [
        path
        for place in sorted(folders)
        for path in sorted(place.iterdir())
        if path.suffix.lower() in EXTENSIONS and path.resolve() not in used
    ]
    if without_file:
        found.notes.append(
            f"{count(len(without_file), 'image')} without a JSON file skipped, the first {without_file[0]}."
        )
    listed = []
    if (root / "labels.txt").is_file():
        listed = [line for line in text_lines(root / "labels.txt") if line]
        found.notes.append(f"the classes are in the order of {root / 'labels.txt'}.")
    found.names += [*listed, *sorted(seen - set(listed))]
    return found


def _image(content: dict[str, Any], file: Path, root: Path, folder: ImageFolder, given: bool) -> AnnotatedImage:
    size = None
    try:
        if content.get("imageHeight") is not None or content.get("imageWidth") is not None:
            size = whole(content.get("imageHeight"), "imageHeight"), whole(content.get("imageWidth"), "imageWidth")
    except DatasetError as error:
        raise DatasetError(f"{file} {error}.") from error
    path = content["imagePath"]
    if not isinstance(path, str) or not path.isprintable():
        raise DatasetError(f"{file} has an imagePath that is not printable text ({short(path)}).")
    path = path.replace("\\", "/")
    name = PurePosixPath(path).name or f"{file.stem}.jpg"
    below = file.relative_to(root).parent
    # The path is relative to the JSON file and may contain "..", which is safe because the image is only read.
    place = None if given or not path or len(path) > 4000 else _if_file(file.parent / path)
    place = (
        place
        or (None if given else _if_file(file.parent / name))
        or folder.find(str(below / name))
        or folder.find(name)
    )
    data = content.get("imageData")
    embedded = partial(_embedded, file) if isinstance(data, str) and data else None
    # Named after the JSON file, because several files may name the same image.
    own = (below / f"{file.stem}{PurePosixPath(name).suffix or '.jpg'}").as_posix()
    return AnnotatedImage(own, str(file), size, list, split_of(below.as_posix()), place, embedded)


def _if_file(path: Path) -> Path | None:
    try:
        return path if path.is_file() else None
    except OSError:  # a name that is too long
        return None


def _embedded(file: Path) -> bytes:
    try:
        return base64.b64decode(read_json(file)["imageData"], validate=False)
    except (binascii.Error, ValueError, TypeError, KeyError) as error:
        raise DatasetError(f"{file}: its imageData is not base64 ({error}).") from error


def _item(shape: Any, where: str) -> Item:
    if not isinstance(shape, dict):
        return Item(where, None, Damaged(f"is not an object ({short(shape)})"))
    try:
        label = class_name(shape.get("label"))
    except DatasetError:
        return Item(where, None, Damaged(f"has a label that is not printable text ({short(shape.get('label'))})"))
    return Item(where, label, _shape(shape))


def _shape(shape: dict[str, Any]) -> Shape:
    points, kind = shape.get("points"), shape.get("shape_type") or "polygon"
    if kind in ("polygon", "oriented_rectangle"):
        return Polygons([points])
    draws: dict[str, Callable[[Any, tuple[int, int]], Runs]] = {
        "rectangle": _rectangle,
        "circle": _circle,
        "mask": partial(_mask, shape.get("mask")),
    }
    draw = draws.get(str(kind))
    return Drawn(partial(draw, points)) if draw else Damaged(f"has the unknown shape_type {short(kind)}")


def _two(points: Any, size: tuple[int, int], what: str) -> NDArray[np.float64]:
    corners = regions.coordinates(points, size)
    if len(corners) != 2:
        raise ShapeError(f"is a {what} of {len(corners)} points instead of 2")
    return corners


def _rectangle(points: Any, size: tuple[int, int]) -> Runs:
    if isinstance(points, list) and len(points) == 4:
        return regions.polygon(regions.coordinates(points, size), size)
    (x, y), (right, bottom) = _two(points, size, "rectangle")
    return regions.box(x, y, right, bottom, size)


def _circle(points: Any, size: tuple[int, int]) -> Runs:
    (x, y), (on_x, on_y) = _two(points, size, "circle")
    radius = math.hypot(on_x - x, on_y - y)
    return regions.ellipse(x, y, radius, radius, 0, size)


def _mask(png: Any, points: Any, size: tuple[int, int]) -> Runs:
    (left, top), (right, bottom) = np.trunc(_two(points, size, "mask")).astype(int)
    region = png_mask(png)
    if region.shape != (bottom - top + 1, right - left + 1):
        raise ShapeError(
            f"has a mask of {region.shape[1]}×{region.shape[0]} pixels in a box of "
            f"{right - left + 1}×{bottom - top + 1}"
        )
    return regions.bitmap(region, int(top), int(left), size)


def png_mask(text: Any) -> NDArray[np.bool_]:
    """(H, W) booleans, true for the non-zero pixels of a base64-encoded PNG. Raises: ShapeError."""
    if not isinstance(text, str):
        raise ShapeError(f"has a mask that is not text ({short(text)})")
    try:
        with Image.open(io.BytesIO(base64.b64decode(text)), formats=["PNG"]) as image:
            if image.width * image.height > MAX_PIXELS:
                raise ShapeError("has a mask of more pixels than an image may have")
            pixels = np.asarray(image)
    except ShapeError:
        raise
    except Exception as error:  # Pillow's decoders raise all kinds of errors for damaged files
        raise ShapeError(f"has a mask that is not a PNG in base64 ({type(error).__name__})") from None
    return np.asarray(pixels.reshape(*pixels.shape[:2], -1).any(axis=2), bool)
