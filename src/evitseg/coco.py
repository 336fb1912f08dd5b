"""Masks from COCO annotations: polygons and run lengths, drawn by the format's own library."""

from __future__ import annotations

import json
import os
from collections import defaultdict
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from evitseg.errors import DatasetError, MissingPackageError
from evitseg.files import replacing
from evitseg.image import MAX_PIXELS
from evitseg.labels import LabelClass, LabelSpace, distinct_color, mask_dtype
from evitseg.masks import save_mask

BACKGROUND = "background"


def convert_coco(
    annotations: str | os.PathLike[str],
    images: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    ignore_background: bool = False,
    progress: Callable[[int], None] = lambda done: None,
) -> Path:
    """Write a mask for every picture, a list of pairs, and the classes.

    Where objects overlap, the smaller one is drawn over the larger. Pixels of no object are the class "background",
    the first, unless they are to be ignored.

    Args:
        annotations: a COCO file with images, categories and annotations.
        images: the folder that its file names start from.
        out: gets `masks/`, `pairs.txt` and `labels.json`; `find_dataset` takes `pairs.txt`.
        progress: called with 1 for every picture done.

    Returns: the list of pairs.

    Raises: DatasetError for a file that is not COCO's, FileError for a place that cannot be written,
    MissingPackageError.
    """
    annotations, images, out = Path(annotations), Path(images), Path(out)
    content = _read(annotations)
    try:
        labels, index_of = _classes(content, annotations, ignore_background)
        objects: dict[int, list[dict[str, Any]]] = defaultdict(list)
        for annotation in content["annotations"]:
            objects[annotation["image_id"]].append(annotation)
        lines = []
        for entry in content["images"]:
            name = _inside(str(entry["file_name"]), annotations)
            height, width = int(entry["height"]), int(entry["width"])
            if not 0 < height * width <= MAX_PIXELS:
                raise DatasetError(f"{annotations}: {name} has {width}×{height} pixels, which cannot be.")
            mask = _draw(objects[entry["id"]], index_of, (height, width), labels, ignore_background)
            place = (out / "masks" / name).with_suffix(".png")
            save_mask(mask, place, labels)
            picture = os.path.relpath(images / name, out)
            lines.append(f"{picture},{place.relative_to(out)}")
            progress(1)
    except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
        raise DatasetError(
            f"{annotations}: not COCO's form ({type(error).__name__}: {error}); it has images (id, file_name, height, "
            "width), categories (id, name) and annotations (image_id, category_id, segmentation)."
        ) from error
    space = {
        "name": labels.name,
        "ignored_ids": list(labels.ignored_ids),
        "classes": [asdict(c) for c in labels.classes],
    }
    with replacing(out / "labels.json") as file:
        file.write((json.dumps(space, indent=1, ensure_ascii=False) + "\n").encode())
    with replacing(out / "pairs.txt") as file:
        file.write(("\n".join(lines) + "\n").encode())
    return out / "pairs.txt"


def _read(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise DatasetError(f"{path}: cannot be read ({error}).") from error
    except (ValueError, RecursionError) as error:
        raise DatasetError(f"{path}: not JSON ({error}).") from error
    if not isinstance(content, dict) or not {"images", "categories", "annotations"} <= set(content):
        raise DatasetError(f"{path}: not COCO's form; it needs images, categories and annotations.")
    return content


def _classes(content: dict[str, Any], path: Path, ignore_background: bool) -> tuple[LabelSpace, dict[int, int]]:
    names = [] if ignore_background else [BACKGROUND]
    index_of = {}
    for category in sorted(content["categories"], key=lambda c: c["id"]):
        name = str(category["name"])
        if name not in names:  # two categories of one name are one class; "background" may be one of them
            names.append(name)
        index_of[category["id"]] = names.index(name)
    classes = tuple(
        LabelClass(name, (i,), (40, 40, 40) if name == BACKGROUND else distinct_color(i))
        for i, name in enumerate(names)
    )
    return LabelSpace(path.stem, classes, (int(np.iinfo(mask_dtype(len(classes))).max),)), index_of


def _inside(name: str, where: Path) -> Path:
    """The file's name, which may have folders but must not lead out of them."""
    path = Path(name)
    if path.is_absolute() or ".." in path.parts or not path.name:
        raise DatasetError(f"{where}: the file name {name!r} leads out of the folder of pictures; mend it.")
    return path


def _draw(
    objects: list[dict[str, Any]],
    index_of: dict[int, int],
    size: tuple[int, int],
    labels: LabelSpace,
    ignore_background: bool,
) -> NDArray[np.integer]:
    """(H, W) class indices."""
    mask = np.full(size, labels.ignore_index if ignore_background else 0, labels.dtype)
    drawn = [(_region(item["segmentation"], size), index_of[item["category_id"]]) for item in objects]
    for region, index in sorted(drawn, key=lambda pair: -int(pair[0].sum())):
        mask[region] = index
    return mask


def _region(segmentation: Any, size: tuple[int, int]) -> NDArray[np.bool_]:
    try:
        from pycocotools import mask as coco
    except ImportError as error:
        raise MissingPackageError("converting COCO annotations", "coco") from error
    height, width = size
    if isinstance(segmentation, list):  # polygons
        if not segmentation:
            return np.zeros(size, bool)
        runs = coco.merge(coco.frPyObjects(segmentation, height, width))
    elif list(segmentation["size"]) != [height, width]:
        raise ValueError(f"run lengths for {segmentation['size']} pixels, in a picture of {[height, width]}")
    elif isinstance(segmentation["counts"], list):
        if sum(segmentation["counts"]) != height * width or min(segmentation["counts"], default=0) < 0:
            raise ValueError("run lengths that do not add up to the picture's pixels")
        runs = coco.frPyObjects(segmentation, height, width)
    else:
        runs = segmentation
    region: NDArray[np.bool_] = coco.decode(runs).astype(bool)
    return region
