"""Label Studio: tasks whose shapes are in percent of the image, and brush strokes in its own encoding."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import numpy as np
from numpy.typing import NDArray

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
    whole,
)
from evitseg.data.annotations.regions import Runs, ShapeError
from evitseg.errors import DatasetError
from evitseg.image import MAX_PIXELS

TOOL = "a Label Studio export (JSON)"
_TOOL_MIN = "a Label Studio export (JSON-MIN)"
_IMAGE = re.compile(r"\.(jpe?g|jfif|png|webp|tiff?|bmp|gif|avif|heic|jp2)\b", re.IGNORECASE)
_NO_AREA = ("keypoint", "vector", "choices", "textarea", "number", "rating", "taxonomy", "relation", "pairwise")


def is_label_studio(content: Any) -> bool:
    """Whether the content of a JSON file is an export of Label Studio."""
    return isinstance(content, list) and bool(content) and (_is_task(content[0]) or _is_row(content[0]))


def _is_task(entry: Any) -> bool:
    return isinstance(entry, dict) and isinstance(entry.get("data"), dict) and _annotations_of(entry) is not None


def _is_row(entry: Any) -> bool:
    return isinstance(entry, dict) and "annotation_id" in entry and "annotator" in entry and "id" in entry


def _annotations_of(task: dict[str, Any]) -> list[Any] | None:
    return next((task[k] for k in ("annotations", "completions") if isinstance(task.get(k), list)), None)


def read_label_studio(content: list[Any], source: Path, images: Path | None) -> Annotations:
    """Read the shapes of a JSON or JSON-MIN export; later shapes are drawn over earlier ones.

    If a task has several annotations, the one marked as ground truth is used, else the newest that was not cancelled.
    """
    minimal = not _is_task(content[0])
    found = Annotations(_TOOL_MIN if minimal else TOOL, source, [], [])
    folder = ImageFolder(source.parent, images, ("upload", "media/upload"))
    seen: set[str] = set()
    skipped: Counter[str] = Counter()
    for where, data, results in _rows(content, found) if minimal else _tasks(content, found):
        try:
            name, file = _image(data, folder)
            entries = [e for e in results if isinstance(e, dict)]
            if len(entries) < len(results):
                raise DatasetError("has results that are not objects")
            size = _size(entries)
        except DatasetError as error:
            found.problems.append(f"{source}: {where} {error}.")
            continue
        items = []
        for k, entry in enumerate(entries):
            item = _item(entry, f"{source}: {where}, result {short(entry.get('id', k))}", entries, size, skipped)
            if item is not None:
                items.append(item)
                if item.label is not None:
                    seen.add(item.label)
        found.images.append(AnnotatedImage(name, f"{source}: {where}", size, partial(list, items), file=file))
    found.names += sorted(seen)
    for kind, number in skipped.items():
        found.notes.append(f"{count(number, 'result')} of type {kind} skipped: not an area with a class.")
    return found


def _tasks(content: list[Any], found: Annotations) -> Iterator[tuple[str, dict[str, Any], list[Any]]]:
    several = empty = 0
    for i, task in enumerate(content):
        if not _is_task(task):
            found.problems.append(f"{found.source}: [{i}] is not a task with data and annotations.")
            continue
        where = f"task {short(task.get('id', i))}"
        done = [
            a
            for a in _annotations_of(task) or []
            if isinstance(a, dict)
            and isinstance(a.get("result"), list)
            and not (a.get("was_cancelled") or a.get("skipped"))
        ]
        if not done:
            empty += 1
            continue
        several += len(done) > 1
        best = max(
            done, key=lambda a: (bool(a.get("ground_truth")), str(a.get("updated_at") or a.get("created_at") or ""))
        )
        yield f"{where}, annotation {short(best.get('id'))}", task | task["data"], best["result"]
    if several:
        found.notes.append(f"{count(several, 'task')} with several annotations: the newest one is used.")
    if empty:
        found.notes.append(f"{count(empty, 'task')} without a finished annotation skipped.")


def _rows(content: list[Any], found: Annotations) -> Iterator[tuple[str, dict[str, Any], list[Any]]]:
    newest: dict[str, dict[str, Any]] = {}
    for i, row in enumerate(content):
        if not _is_row(row):
            found.problems.append(f"{found.source}: [{i}] is not a task of a JSON-MIN export.")
            continue
        key = str(row["id"])
        if key not in newest or str(row.get("updated_at", "")) >= str(newest[key].get("updated_at", "")):
            newest[key] = row
    for row in newest.values():
        results = [
            {"type": next((k for k in entry if k.endswith("labels")), None), "value": entry} | entry
            for value in row.values()
            if isinstance(value, list)
            for entry in value
            if isinstance(entry, dict)
        ]
        yield f"task {short(row['id'])}, annotation {short(row['annotation_id'])}", row, results


def _image(data: dict[str, Any], folder: ImageFolder) -> tuple[str, Path | None]:
    """The image's name and file; only the last part of a URL is searched for, as it points to a server or bucket."""
    texts = [data.get("image"), *data.values()]
    address = next((t for t in texts if isinstance(t, str) and len(t) < 4000 and _IMAGE.search(t)), None)
    if address is None:
        raise DatasetError("names no image in its data")
    try:
        parts = urlsplit(address)
    except ValueError:
        parts = urlsplit("")
    path = parse_qs(parts.query).get("d", [parts.path])[0] if "local-files" in parts.path else parts.path
    path = unquote(path or address).replace("\\", "/")
    name = image_name(PurePosixPath(path).name)
    uploaded = re.fullmatch(r"[0-9a-f]{8}-(.+)", name)
    candidates = [path.lstrip("/"), name, *([uploaded[1]] if uploaded else [])]
    for candidate in candidates:
        if ".." not in candidate and candidate.isprintable() and (file := folder.find(candidate)) is not None:
            return name, file
    return name, None


def _size(entries: list[dict[str, Any]]) -> tuple[int, int] | None:
    sizes = {
        (whole(e["original_height"], "original_height"), whole(e["original_width"], "original_width"))
        for e in entries
        if e.get("original_height") is not None and e.get("original_width") is not None
    }
    if len(sizes) > 1:
        raise DatasetError(f"has results for images of different sizes ({short(sorted(sizes))})")
    size = next(iter(sizes), None)
    if size is not None and (min(size) <= 0 or size[0] * size[1] > MAX_PIXELS):
        raise DatasetError(f"has an image of {short(size[1])}×{short(size[0])} pixels, which is impossible")
    return size


def _item(
    entry: dict[str, Any],
    where: str,
    entries: list[dict[str, Any]],
    size: tuple[int, int] | None,
    skipped: Counter[str],
) -> Item | None:
    kind, value = entry.get("type"), entry.get("value")
    if not isinstance(kind, str) or not isinstance(value, dict):
        return Item(where, None, Damaged("has no type and value"))
    named = _labels(value)
    if not named:
        twin = entry.get("id") is not None and any(
            other is not entry and other.get("id") == entry["id"] and _labels(other.get("value")) for other in entries
        )
        if not twin:  # the class of a shape may be in another result with the same id
            skipped[f"{kind} without a label"] += 1
        return None
    if kind.startswith(_NO_AREA) or not isinstance(value, dict):
        skipped[kind] += 1
        return None
    try:
        label = class_name(named[0])
    except DatasetError as error:
        return Item(where, None, Damaged(str(error)))
    if len(named) > 1:
        return Item(where, None, Damaged(f"has {len(named)} labels, but a pixel has only one class"))
    if entry.get("image_rotation"):
        return Item(where, label, Damaged(f"was drawn on an image rotated by {short(entry['image_rotation'])} degrees"))
    return Item(where, label, _shape(value))


def _labels(value: Any) -> list[Any]:
    if not isinstance(value, dict):
        return []
    return next((v for k, v in value.items() if k.endswith("labels") and isinstance(v, list) and v), [])


def _shape(value: dict[str, Any]) -> Shape:
    if "rle" in value:
        return Drawn(partial(_brush, value["rle"]))
    if "points" in value:
        if value.get("closed") is False:
            return Damaged("has a polygon that is not closed")
        return Drawn(partial(_polygon, value["points"]))
    if "radiusX" in value:
        return Drawn(partial(_ellipse, value))
    if "width" in value and "x" in value:
        return Drawn(partial(_rectangle, value))
    return Damaged(f"has an unknown shape ({', '.join(sorted(map(str, value))[:6])})")


def _scaled(points: Any, size: tuple[int, int]) -> NDArray[np.float64]:
    """Pixel coordinates from percentages."""
    return regions.coordinates(points, size) * (size[1] / 100, size[0] / 100)


def _polygon(points: Any, size: tuple[int, int]) -> Runs:
    pixels = _scaled(points, size)
    return regions.polygon(regions.coordinates(pixels.tolist(), size), size)


def _numbers(value: dict[str, Any], keys: tuple[str, ...], size: tuple[int, int]) -> list[float]:
    numbers = [value.get(key, 0) for key in keys]
    regions.coordinates([*numbers, 0] if len(numbers) % 2 else numbers, size)
    return [float(number) for number in numbers]


def _rectangle(value: dict[str, Any], size: tuple[int, int]) -> Runs:
    x, y, width, height, angle = _numbers(value, ("x", "y", "width", "height", "rotation"), size)
    x, width, y, height = x * size[1] / 100, width * size[1] / 100, y * size[0] / 100, height * size[0] / 100
    # The rotation is clockwise about the upper left corner.
    cos, sin = np.cos(np.deg2rad(angle)), np.sin(np.deg2rad(angle))
    corners = [
        (x + u * cos - v * sin, y + u * sin + v * cos) for u, v in ((0, 0), (width, 0), (width, height), (0, height))
    ]
    return regions.polygon(regions.coordinates([float(n) for corner in corners for n in corner], size), size)


def _ellipse(value: dict[str, Any], size: tuple[int, int]) -> Runs:
    x, y, across, down, angle = _numbers(value, ("x", "y", "radiusX", "radiusY", "rotation"), size)
    height, width = size
    return regions.ellipse(x * width / 100, y * height / 100, across * width / 100, down * height / 100, angle, size)


def _brush(rle: Any, size: tuple[int, int]) -> Runs:
    return regions.bitmap(brush_alpha(rle, size) > 0, 0, 0, size)


def brush_alpha(rle: Any, size: tuple[int, int]) -> NDArray[np.uint8]:
    """(H, W) opacity from the run lengths of a brush stroke.

    The run lengths are a stream of bits for RGBA values, row by row. Its header: 32 bits, the number of values (4 per
    pixel); 5 bits, the number of bits of a value minus 1; four times 4 bits, the four widths of a run's length minus 1.
    Each run: 1 bit, set if one value is repeated; 2 bits, which of the four widths its length has; its length minus 1;
    and either the repeated value or all values.

    Raises: ShapeError for a stream that does not fill the image exactly, before memory for a longer one is allocated.
    """
    height, width = size
    if not isinstance(rle, list) or not all(type(byte) is int and 0 <= byte < 256 for byte in rle):
        raise ShapeError("has brush run lengths that are not a list of bytes")
    data = np.frombuffer(bytes(rle), np.uint8)
    bits = np.unpackbits(data)
    text = (bits + ord("0")).tobytes().decode()
    if len(text) < 53:
        raise ShapeError("has brush run lengths that are cut off")
    total, word = int(text[:32], 2), int(text[32:37], 2) + 1
    widths = [int(text[37 + 4 * i : 41 + 4 * i], 2) + 1 for i in range(4)]
    if total != height * width * 4:
        raise ShapeError(f"has brush run lengths for {total:,} values, in an image of {width}×{height} pixels")
    if word > 8:
        raise ShapeError(f"has brush run lengths of {word} bits per value; at most 8 are possible")
    alpha = np.zeros(height * width, np.uint8)
    weights = 1 << np.arange(word - 1, -1, -1)
    at, place = 53, 0
    while place < total:
        bits_of_length = widths[int(text[at + 1 : at + 3] or "0", 2)]
        length = int(text[at + 3 : at + 3 + bits_of_length] or "0", 2) + 1
        repeated = text[at : at + 1] == "1"
        at += 3 + bits_of_length
        end = at + (word if repeated else word * length)
        if end > len(text) or place + length > total:
            raise ShapeError("has brush run lengths that are cut off or longer than its image")
        # The opacity is every fourth value.
        first, last = -((3 - place) // 4), -((3 - place - length) // 4)
        if repeated:
            alpha[first:last] = int(text[at:end], 2)
        elif last > first:
            values = bits[at:end].reshape(length, word) @ weights
            alpha[first:last] = values[4 * first + 3 - place :: 4]
        at, place = end, place + length
    return alpha.reshape(height, width)
