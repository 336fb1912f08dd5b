"""Write masks as annotations to correct, in the formats of Labelme, CVAT and COCO."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from evitseg._version import __version__
from evitseg.data.annotations import regions
from evitseg.data.annotations.outlines import IGNORED_LABEL, Outline, OutlinedImage, filled
from evitseg.labels import BACKGROUNDS, LabelSpace
from evitseg.raster.vector_files import doubled_area
from evitseg.system.files import replacing

_BY = f"pre-annotations by evitseg {__version__}"


@dataclass(frozen=True)
class PreAnnotations:
    """What was written.

    Attributes:
        images, regions: their numbers.
    """

    images: int
    regions: int

    def __add__(self, other: PreAnnotations) -> PreAnnotations:
        return PreAnnotations(self.images + other.images, self.regions + other.regions)


def write_labelme(image: OutlinedImage, path: Path) -> PreAnnotations:
    """Write an image's regions as the JSON file of Labelme.

    Args:
        image: its name is the path of the image, relative to the JSON file.

    Raises: FileError.
    """
    height, width = image.size
    shape: dict[str, Any] = {"group_id": None, "description": "", "shape_type": "polygon", "flags": {}, "mask": None}
    content: dict[str, Any] = {
        "version": "5.5.0",
        "flags": {},
        "shapes": [{"label": outline.label, "points": outline.points} | shape for outline in image.outlines],
        "imagePath": image.name,
        "imageData": None,
        "imageHeight": height,
        "imageWidth": width,
    }
    with replacing(path) as file:
        file.write(json.dumps(content, ensure_ascii=False).encode())
    return PreAnnotations(1, len(image.outlines))


def write_label_list(labels: LabelSpace, path: Path) -> None:
    """Write the names of the classes, one per line, for `labelme --labels`. Raises: FileError."""
    with replacing(path) as file:
        file.write("".join(f"{name}\n" for name in labels.names).encode())


def write_cvat(images: Iterable[OutlinedImage], path: Path, labels: LabelSpace) -> PreAnnotations:
    """Write the regions of all images as "CVAT for images 1.1". Regions in the holes of others have a larger z_order.

    Raises: FileError.
    """
    done = count = 0
    with replacing(path) as file:
        file.write(b'<?xml version="1.0" encoding="utf-8"?>\n<annotations>\n<version>1.1</version>\n')
        meta = ElementTree.Element("meta")
        listed = ElementTree.SubElement(ElementTree.SubElement(meta, "task"), "labels")
        for each in labels.classes:
            label = ElementTree.SubElement(listed, "label")
            ElementTree.SubElement(label, "name").text = each.name
            ElementTree.SubElement(label, "color").text = "#" + bytes(each.color).hex()
            ElementTree.SubElement(label, "attributes")
        file.write(ElementTree.tostring(meta) + b"\n")
        for image in images:
            height, width = image.size
            about = {"id": str(done), "name": image.name, "width": str(width), "height": str(height)}
            element = ElementTree.Element("image", about)
            for outline in image.outlines:
                points = ";".join(f"{x},{y}" for x, y in outline.points)
                of_polygon = {"label": outline.label, "source": "auto", "occluded": "0", "points": points}
                ElementTree.SubElement(element, "polygon", of_polygon | {"z_order": str(outline.depth)})
            file.write(ElementTree.tostring(element) + b"\n")
            done, count = done + 1, count + len(image.outlines)
        file.write(b"</annotations>\n")
    return PreAnnotations(done, count)


def write_coco(
    images: Iterable[OutlinedImage], path: Path, labels: LabelSpace, model: str, min_pixels: int = 1
) -> PreAnnotations:
    """Write the regions of all images as COCO instances: polygons, or run lengths where a region has holes.

    Args:
        model: name of the model, for the file's description.
        min_pixels: smaller holes are filled, because they hold no region that was kept.

    Raises: FileError.
    """
    names = [name for name in labels.names if name not in BACKGROUNDS]
    category = {name: number for number, name in enumerate([*names, IGNORED_LABEL], start=1)}
    written: list[dict[str, Any]] = []
    count, is_ignoring = 0, False
    with replacing(path) as file:
        info = {"description": f"{_BY}, model {model}"}
        file.write(b'{"info": %s,\n"annotations": [' % json.dumps(info, ensure_ascii=False).encode())
        for image in images:
            height, width = image.size
            number = len(written) + 1
            written.append({"id": number, "file_name": image.name, "height": height, "width": width})
            for outline in image.outlines:
                if outline.label not in category:
                    continue  # background in a hole, which run lengths leave open
                about = {"id": count + 1, "image_id": number, "category_id": category[outline.label]}
                about |= _coco_shape(outline, image.size, min_pixels) | {"iscrowd": 0}
                file.write((",\n" if count else "\n").encode() + json.dumps(about).encode())
                count, is_ignoring = count + 1, is_ignoring or outline.label == IGNORED_LABEL
        used = [*names, *([IGNORED_LABEL] if is_ignoring else [])]
        categories = [{"id": category[name], "name": name, "supercategory": ""} for name in used]
        rest = {"images": written, "categories": categories}
        file.write(b"\n],\n" + json.dumps(rest, ensure_ascii=False)[1:].encode() + b"\n")
    return PreAnnotations(len(written), count)


def _coco_shape(outline: Outline, size: tuple[int, int], min_pixels: int) -> dict[str, Any]:
    outer, *holes = outline.rings
    holes = [hole for hole in holes if -doubled_area(hole) / 2 >= min_pixels]
    (left, top), (right, bottom) = outer.min(axis=0).tolist(), outer.max(axis=0).tolist()
    box = [left, top, right - left, bottom - top]
    if not holes:
        flat = [number for point in outline.points for number in point]
        return {"segmentation": [flat], "area": doubled_area(outer) / 2, "bbox": box}
    inside = regions.union([filled(hole, size) for hole in holes])
    runs = regions.without(filled(outer, size), inside)
    text = {"size": list(size), "counts": regions.compress_runs(runs, size)}
    return {"segmentation": text, "area": runs.area, "bbox": box}


PRE_ANNOTATION_FORMATS = ("labelme", "cvat", "coco")
