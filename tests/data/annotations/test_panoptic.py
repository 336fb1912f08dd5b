from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image


def write(root: Path, segments: list[Any], ids: Any) -> Path:
    """A file and its folder of PNGs as COCO has them; an id is red + 256 green + 65536 blue."""
    ids = np.asarray(ids)
    colors = np.stack([ids % 256, ids // 256 % 256, ids // 65536], axis=2).astype(np.uint8)
    folder = root / "annotations/panoptic_val2017"
    folder.mkdir(parents=True)
    Image.fromarray(colors).save(folder / "000000000139.png")
    content = {
        "info": {},
        "images": [{"id": 139, "file_name": "000000000139.jpg", "height": 40, "width": 60}],
        "annotations": [{"image_id": 139, "file_name": "000000000139.png", "segments_info": segments}],
        "categories": [
            {"id": 1, "name": "person", "supercategory": "person", "isthing": 1},
            {"id": 184, "name": "tree-merged", "supercategory": "plant", "isthing": 0},
        ],
    }
    (root / "annotations/panoptic_val2017.json").write_text(json.dumps(content))
    return root


def segment(number: Any, category: Any) -> dict[str, Any]:
    return {"id": number, "category_id": category, "iscrowd": 0, "bbox": [0, 0, 1, 1], "area": 1}


def test_segments_become_the_classes_of_their_categories(
    convert: Callable[..., Any], photo: Callable[..., Path], square: Callable[..., Any], tmp_path: Path
) -> None:
    photo(tmp_path / "data/val2017/000000000139.jpg")
    classes = square((5, 5, 20, 20, 1), (20, 20, 40, 60, 2), (0, 50, 5, 60, 1))
    ids = np.array([0, 3_226_956, 70_000])[classes]
    ids[:5, 50:] = 259
    root = write(tmp_path / "data", [segment(3_226_956, 1), segment(259, 1), segment(70_000, 184)], ids)
    done = convert(root)
    assert done.status == 0, done.output
    assert done.names == ("background", "person", "tree-merged")
    assert done.splits == {"val": ["000000000139.jpg"]}
    np.testing.assert_array_equal(done.masks["000000000139.jpg"], classes)


@pytest.mark.parametrize("bad", [segment(7, 99), segment(None, 1), segment(float("inf"), 1), {}, 5, segment([], 1)])
def test_a_damaged_segment_is_reported_and_the_others_are_drawn(
    bad: Any, convert: Callable[..., Any], photo: Callable[..., Path], square: Callable[..., Any], tmp_path: Path
) -> None:
    photo(tmp_path / "data/val2017/000000000139.jpg")
    classes = square((5, 5, 20, 20, 1))
    done = convert(write(tmp_path / "data", [segment(70_000, 1), bad], np.array([0, 70_000])[classes]))
    assert done.status == 1
    assert "image 139, segment" in done.output
    np.testing.assert_array_equal(done.masks["000000000139.jpg"], np.where(classes, 1, 255))
