from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from evitseg.coco import convert_coco
from evitseg.dataset import find_dataset, inspect, read_truth
from evitseg.errors import DatasetError

SIZE = (6, 8)


def square(top: int, left: int, bottom: int, right: int) -> list[list[float]]:
    return [[left, top, right, top, right, bottom, left, bottom]]


def runs(region: np.ndarray[Any, Any]) -> dict[str, Any]:
    """Uncompressed run lengths, column by column, beginning with zeros."""
    flat, counts, value = region.T.ravel().tolist(), [0], False
    for pixel in flat:
        if pixel != value:
            counts.append(0)
            value = pixel
        counts[-1] += 1
    return {"size": list(region.shape), "counts": counts}


def write(folder: Path, annotations: list[dict[str, Any]], name: str = "deep/a.png") -> Path:
    (folder / "photos/deep").mkdir(parents=True, exist_ok=True)
    Image.new("RGB", SIZE[::-1]).save(folder / "photos/deep/a.png")
    content = {
        "images": [{"id": 7, "file_name": name, "height": SIZE[0], "width": SIZE[1]}],
        "categories": [{"id": 3, "name": "cat"}, {"id": 90, "name": "dog"}],
        "annotations": [{"image_id": 7} | a for a in annotations],
    }
    (folder / "coco.json").write_text(json.dumps(content))
    return folder / "coco.json"


def truth_of(folder: Path, **options: Any) -> np.ndarray[Any, Any]:
    dataset = find_dataset(convert_coco(folder / "coco.json", folder / "photos", folder / "out", **options))
    assert dataset.labels is not None
    assert inspect(dataset, 0).problems == []
    return read_truth(dataset.pairs()[0].mask, dataset.labels)


@pytest.mark.parametrize("form", ["polygon", "runs", "compressed"])
def test_a_region_is_drawn_where_it_is(form: str, tmp_path: Path) -> None:
    region = np.zeros(SIZE, bool)
    region[1:4, 2:7] = True
    segmentation: Any = {"polygon": square(1, 2, 4, 7), "runs": runs(region)}.get(form)
    if form == "compressed":
        from pycocotools import mask

        segmentation = mask.encode(np.asfortranarray(region.astype(np.uint8)))
        segmentation["counts"] = segmentation["counts"].decode()
    write(tmp_path, [{"category_id": 90, "segmentation": segmentation}])
    np.testing.assert_array_equal(truth_of(tmp_path), np.where(region, 2, 0))


def test_the_smaller_object_lies_above_and_background_can_be_ignored(tmp_path: Path) -> None:
    write(
        tmp_path,
        [
            {"category_id": 90, "segmentation": square(2, 2, 4, 4)},
            {"category_id": 3, "segmentation": square(1, 1, 6, 8)},
        ],
    )
    expected = np.full(SIZE, 255)
    expected[1:6, 1:8] = 0
    expected[2:4, 2:4] = 1
    np.testing.assert_array_equal(truth_of(tmp_path, ignore_background=True), expected)


@pytest.mark.parametrize("name", ["../a.png", "/etc/a.png", "deep/../../a.png", ""])
def test_a_name_that_leads_out_is_refused(name: str, tmp_path: Path) -> None:
    write(tmp_path, [], name)
    with pytest.raises(DatasetError, match="leads out of the folder"):
        convert_coco(tmp_path / "coco.json", tmp_path / "photos", tmp_path / "out")
    assert not (tmp_path / "a.png").exists()


@pytest.mark.parametrize(
    "annotation",
    [
        {"category_id": 5, "segmentation": square(1, 1, 2, 2)},
        {"category_id": 3},
        {"category_id": 3, "segmentation": {"size": [6, 8], "counts": [1, 2]}},
        {"category_id": 3, "segmentation": {"size": [600, 8], "counts": [4800]}},
        {"category_id": 3, "segmentation": "nothing"},
    ],
)
def test_an_annotation_that_cannot_be_drawn_is_one_sentence(annotation: dict[str, Any], tmp_path: Path) -> None:
    write(tmp_path, [annotation])
    with pytest.raises(DatasetError, match="not COCO's form") as error:
        convert_coco(tmp_path / "coco.json", tmp_path / "photos", tmp_path / "out")
    assert "\n" not in str(error.value)


def test_files_that_are_not_coco_are_one_sentence(tmp_path: Path) -> None:
    for text in ("", "[]", "{}", "[" * 100_000):
        (tmp_path / "a.json").write_text(text)
        with pytest.raises(DatasetError, match=r"a\.json: not"):
            convert_coco(tmp_path / "a.json", tmp_path, tmp_path / "out")
    with pytest.raises(DatasetError, match="cannot be read"):
        convert_coco(tmp_path / "absent.json", tmp_path, tmp_path / "out")
