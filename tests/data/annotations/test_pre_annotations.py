"""Masks as annotations to correct: what our readers, and pycocotools, make of them is the mask."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from tests.optional import needs

needs("rasterio", "shapely")

from evitseg.data.annotations.conversion import write_masks
from evitseg.data.annotations.outlines import OutlinedImage, stacked
from evitseg.data.annotations.pre_annotations import (
    PRE_ANNOTATION_FORMATS,
    write_coco,
    write_cvat,
    write_labelme,
)
from evitseg.data.annotations.reading import read_annotations
from evitseg.labels import LabelClass, LabelSpace
from evitseg.raster.masks import read_mask
from evitseg.raster.png import save_mask
from evitseg.raster.polygons import read_regions

Mask = NDArray[np.integer]
NAMES = ("road", "car", "tree & <bush>", "sky")
VOID = 255


def space(names: tuple[str, ...] = NAMES) -> LabelSpace:
    return LabelSpace("ours", tuple(LabelClass(n, (i,), (40 * i, 9, 200)) for i, n in enumerate(names)), (VOID,))


def noise(seed: int, side: int, classes: int = 4) -> Mask:
    """A mask of random squares: many regions touch in corners, and many have holes."""
    rng = np.random.default_rng(seed)
    small = rng.integers(0, 2 * classes, (48 // side, 66 // side), np.uint8)
    small[small >= classes] = 0
    return small.repeat(side, 0).repeat(side, 1)


def rings() -> Mask:
    """Rings in one another, which touch the border on one side."""
    y, x = np.mgrid[:48, :66]
    mask = np.zeros((48, 66), np.uint8)
    mask[:] = np.hypot(y - 20, x - 50) // 5 % 3
    return mask


def written(to: str, mask: Mask, labels: LabelSpace, folder: Path, simplify: float = 0.0, min_pixels: int = 1) -> Path:
    """The annotations of a mask of one image, images/a.png."""
    image = folder / "images/a.png"
    image.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.zeros((*mask.shape, 3), np.uint8)).save(image)
    save_mask(mask, folder / "mask.png", labels)
    size, regions = read_regions(folder / "mask.png", labels, min_pixels, simplify)
    outlined = OutlinedImage("a.png", size, stacked(regions, size, labels))
    out = folder / "annotations"
    if to == "labelme":
        write_labelme(OutlinedImage("../images/a.png", size, outlined.outlines), out / "a.json")
        return out
    if to == "cvat":
        write_cvat([outlined], out / "annotations.xml", labels)
        return out / "annotations.xml"
    write_coco([outlined], out / "annotations.json", labels, "a model", min_pixels)
    return out / "annotations.json"


def read_back(source: Path, labels: LabelSpace, folder: Path) -> Mask:
    found = read_annotations(source, folder / "images")
    assert found.problems == []
    done = write_masks(found, folder / "back", labels=labels)
    assert done.problems == ()
    (pairs,) = done.splits.values()
    return read_mask(pairs[0].mask)


MASKS = {
    "pixels": noise(0, 1),
    "squares": noise(1, 3),
    "rings": rings(),
    "one class": np.full((48, 66), 2, np.uint8),
    "without data": np.where(noise(3, 6) == 3, VOID, noise(2, 3)).astype(np.uint8),
}


@pytest.mark.parametrize("to", PRE_ANNOTATION_FORMATS)
@pytest.mark.parametrize("kind", MASKS)
def test_a_mask_comes_back_exactly(kind: str, to: str, tmp_path: Path) -> None:
    labels = space()
    source = written(to, MASKS[kind], labels, tmp_path)
    np.testing.assert_array_equal(read_back(source, labels, tmp_path), MASKS[kind])


@pytest.mark.parametrize("to", PRE_ANNOTATION_FORMATS)
@pytest.mark.parametrize("mask", [noise(4, 3), rings()], ids=["squares", "rings"])
def test_background_is_what_no_object_covers(mask: Mask, to: str, tmp_path: Path) -> None:
    labels = space(("background", "car", "tree", "sky"))
    source = written(to, mask, labels, tmp_path)
    np.testing.assert_array_equal(read_back(source, labels, tmp_path), mask)


def test_background_is_an_outline_only_in_the_hole_of_an_object(tmp_path: Path) -> None:
    labels = space(("background", "car", "tree", "sky"))
    mask = np.zeros((48, 66), np.uint8)
    mask[5:20, 5:20] = 1
    written("labelme", mask, labels, tmp_path)
    assert [shape["label"] for shape in shapes(tmp_path)] == ["car"]
    mask[8:12, 8:12] = 0
    written("labelme", mask, labels, tmp_path)
    assert [shape["label"] for shape in shapes(tmp_path)] == ["car", "background"]


def shapes(folder: Path) -> Any:
    return json.loads((folder / "annotations/a.json").read_text())["shapes"]


def test_pycocotools_reads_the_mask_from_the_coco_file(tmp_path: Path) -> None:
    needs("pycocotools")
    from pycocotools import mask as tool

    mask = MASKS["squares"]
    content = json.loads(written("coco", mask, space(), tmp_path).read_text())
    back = np.full(mask.shape, VOID, np.uint8)
    kinds = set()
    for annotation in content["annotations"]:
        shape = annotation["segmentation"]
        kinds.add(type(shape))
        runs = tool.merge(tool.frPyObjects(shape, *mask.shape)) if isinstance(shape, list) else shape
        pixels = tool.decode(runs).astype(bool)
        assert (back[pixels] == VOID).all()  # no two objects share a pixel
        back[pixels] = annotation["category_id"] - 1
        assert annotation["area"] == pixels.sum()
        ys, xs = np.nonzero(pixels)
        assert annotation["bbox"] == [xs.min(), ys.min(), np.ptp(xs) + 1, np.ptp(ys) + 1]
    assert kinds == {list, dict}
    np.testing.assert_array_equal(back, mask)
    assert [(c["id"], c["name"]) for c in content["categories"]] == list(enumerate(NAMES, start=1))
    assert content["images"] == [{"id": 1, "file_name": "a.png", "height": 48, "width": 66}]


@pytest.mark.parametrize("to", PRE_ANNOTATION_FORMATS)
def test_simplified_outlines_stay_near_the_borders(to: str, tmp_path: Path) -> None:
    labels, mask = space(), rings()
    source = written(to, mask, labels, tmp_path)
    file = source / "a.json" if source.is_dir() else source
    exact = file.stat().st_size
    written(to, mask, labels, tmp_path, simplify=2)
    assert file.stat().st_size < 0.7 * exact
    back = read_back(source, labels, tmp_path)
    wide = np.pad(mask, 2, mode="edge")
    near = np.zeros(mask.shape, bool)
    for y in range(5):
        for x in range(5):
            near |= wide[y : y + 48, x : x + 66] != mask
    assert (back == mask)[~near].all()
    assert (back == mask).mean() > 0.85


@pytest.mark.parametrize("simplify", [1, 2, 3, 5])
def test_simplified_outlines_along_the_right_and_lower_border_keep_their_order(simplify: int, tmp_path: Path) -> None:
    for seed in range(4):
        mask = noise(seed, side=2)
        source = written("labelme", mask, space(), tmp_path, simplify)
        assert (read_back(source, space(), tmp_path) == mask).mean() > 0.85


@pytest.mark.parametrize("to", PRE_ANNOTATION_FORMATS)
def test_what_is_too_small_is_part_of_the_region_around_it(to: str, tmp_path: Path) -> None:
    mask = np.zeros((48, 66), np.uint8)
    mask[10:12, 10:12] = 1  # 4 pixels
    mask[20:30, 20:30] = 2
    mask[24:26, 24:26] = 3
    source = written(to, mask, space(), tmp_path, min_pixels=5)
    expected = np.where(mask == 1, 0, np.where(mask == 3, 2, mask))
    np.testing.assert_array_equal(read_back(source, space(), tmp_path), expected)
