"""COCO panoptic: a PNG per image whose colours are segment ids, and a JSON file with the segments' categories."""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from evitseg.data.annotations import regions
from evitseg.data.annotations.coco import categories_of, id_of, images_of, known_id
from evitseg.data.annotations.objects import (
    AnnotatedImage,
    Annotations,
    Damaged,
    Drawn,
    ImageFolder,
    Item,
    image_name,
    short,
    split_of,
)
from evitseg.data.annotations.regions import Runs, ShapeError
from evitseg.errors import DatasetError
from evitseg.image import MAX_PIXELS

TOOL = "COCO panoptic annotations"
_KEYS = {"images", "categories", "annotations"}


def is_panoptic(content: Any) -> bool:
    """Whether the content of a JSON file is COCO panoptic."""
    if not isinstance(content, dict) or not set(content) >= _KEYS or not isinstance(content["annotations"], list):
        return False
    return any(isinstance(a, dict) and "segments_info" in a for a in content["annotations"][:1])


def read_panoptic(content: dict[str, Any], path: Path, images: Path | None) -> Annotations:
    """Read the segments of a panoptic file, whose PNGs are next to it or in a folder of its name."""
    found = Annotations(TOOL, path, [], [])
    if not all(isinstance(content[key], list) for key in _KEYS):
        raise DatasetError(f"{path}: not in COCO's panoptic format: images, categories and annotations must be lists.")
    name_of = categories_of(content["categories"], found)
    stem = path.stem
    photos = ImageFolder(path.parent, images, [stem.removeprefix("panoptic_")])
    usable = images_of(content["images"], found, photos)
    ids = {key for key, *_ in usable}
    entries: dict[Any, dict[str, Any]] = {}
    for i, entry in enumerate(content["annotations"]):
        key = known_id(entry.get("image_id"), ids) if isinstance(entry, dict) else None
        if key is None or key in entries:
            reason = (
                "belongs to an image that has one already"
                if key is not None
                else "has an image_id that no usable image has"
            )
            found.problems.append(f"{path}: annotations[{i}] {reason}.")
        else:
            entries[key] = entry
    masks = ImageFolder(path.parent, None, [stem])
    for key, name, size in usable:
        if key not in entries:
            found.problems.append(f"{path}: image {key} ({name}) has no annotation.")
            continue
        where = f"{path}: image {key}"
        items = partial(_items, entries[key], masks, name_of, where)
        found.images.append(AnnotatedImage(name, where, size, items, split_of(stem), photos.find(name)))
    return found


def _items(entry: dict[str, Any], masks: ImageFolder, name_of: dict[Any, str], where: str) -> Iterable[Item]:
    try:
        file = masks.find(image_name(entry.get("file_name")))
    except DatasetError as error:
        yield Item(where, None, Damaged(str(error)))
        return
    segments = entry.get("segments_info")
    if file is None or not isinstance(segments, list):
        yield Item(where, None, Damaged(f"has no segments_info, or no PNG {short(entry.get('file_name'))}"))
        return
    for i, segment in enumerate(segments):
        here = (
            f"{where}, segment {short(segment.get('id'))}" if isinstance(segment, dict) else f"{where}, segments[{i}]"
        )
        try:
            number, category = id_of(segment["id"]), known_id(segment["category_id"], name_of)
        except (DatasetError, KeyError, TypeError):
            yield Item(here, None, Damaged("has no numeric id, or no category_id"))
            continue
        if category is None:
            yield Item(
                here, None, Damaged(f"has the category_id {short(segment['category_id'])}, which no category has")
            )
        elif not isinstance(number, int):
            yield Item(here, None, Damaged("has an id that is not a number"))
        else:
            yield Item(here, name_of[category], Drawn(partial(_segment, file, number)))


def _segment(file: Path, number: int, size: tuple[int, int]) -> Runs:
    numbers = _numbers(file)
    if numbers.shape != size:
        raise ShapeError(
            f"is in a PNG of {numbers.shape[1]}×{numbers.shape[0]} pixels, but its image has {size[1]}×{size[0]}"
        )
    return regions.bitmap(numbers == number, 0, 0, size)


@lru_cache(maxsize=1)
def _numbers(file: Path) -> NDArray[np.int64]:
    """(H, W) segment ids: red + 256 × green + 65536 × blue."""
    try:
        with Image.open(file, formats=["PNG"]) as image:
            if image.width * image.height > MAX_PIXELS:
                raise ShapeError("is in a PNG of more pixels than an image may have")
            red, green, blue = np.asarray(image.convert("RGB")).astype(np.int64).transpose(2, 0, 1)
            return np.asarray(red + 256 * green + 65536 * blue, np.int64)
    except ShapeError:
        raise
    except Exception as error:  # Pillow's decoders raise all kinds of errors for damaged files
        raise ShapeError(f"is in a PNG that cannot be read ({type(error).__name__})") from None
