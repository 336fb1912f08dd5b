from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from evitseg.cli import app
from evitseg.data.annotations.mask_folders import voc_color
from evitseg.data.dataset import Dataset
from evitseg.data.inspect import inspect
from evitseg.data.layouts import find_dataset
from evitseg.errors import DatasetError
from evitseg.raster.masks import read_truth


def truths(root: Path) -> tuple[Dataset, dict[str, Any]]:
    dataset = find_dataset(root)
    assert dataset.labels is not None
    assert inspect(dataset).problems == []
    return dataset, {pair.image.name: read_truth(pair.mask, dataset.labels) for pair in dataset.pairs()}


def names(dataset: Dataset) -> dict[str, list[str]]:
    return {split: [pair.image.name for pair in pairs] for split, pairs in dataset.splits.items()}


def save_palette(path: Path, mask: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(np.asarray(mask, np.uint8)).convert("L")
    image.putpalette([level for i in range(256) for level in voc_color(i)])
    image.save(path)


def save_colors(path: Path, mask: Any, colors: list[tuple[int, int, int]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.array(colors, np.uint8)[mask]).save(path)


def test_the_colours_are_pascal_vocs() -> None:
    expected = {0: (0, 0, 0), 1: (128, 0, 0), 2: (0, 128, 0), 9: (192, 0, 0), 20: (0, 64, 128), 255: (224, 224, 192)}
    assert {i: voc_color(i) for i in expected} == expected


def test_pascal_voc_is_found_by_its_lists(
    photo: Callable[..., Path], square: Callable[..., Any], tmp_path: Path
) -> None:
    root = tmp_path / "VOC2012"
    mask = square((5, 5, 20, 20, 15), (4, 4, 5, 20, 255), (30, 30, 40, 40, 7))
    for name in ("2007_000032", "2007_000039", "2007_000063", "not_segmented"):
        photo(root / f"JPEGImages/{name}.jpg")
        if name[0] == "2":
            save_palette(root / f"SegmentationClass/{name}.png", mask)
            save_palette(root / f"SegmentationObject/{name}.png", mask)
    (root / "Annotations").mkdir()
    lists = root / "ImageSets/Segmentation"
    lists.mkdir(parents=True)
    (lists / "train.txt").write_text("2007_000032\n2007_000063\n")
    (lists / "val.txt").write_text("2007_000039\n")
    (lists / "trainval.txt").write_text("2007_000032\n2007_000039\n2007_000063\n")
    dataset, found = truths(root)
    assert names(dataset) == {"train": ["2007_000032.jpg", "2007_000063.jpg"], "val": ["2007_000039.jpg"]}
    assert dataset.labels is not None
    assert (dataset.labels.names[15], len(dataset.labels.classes)) == ("person", 21)
    np.testing.assert_array_equal(found["2007_000032.jpg"], mask)
    run = CliRunner().invoke(app, ["check", str(root), "--workers", "1"])
    assert run.exit_code == 0, run.output


def test_cvats_segmentation_mask_is_read_by_the_colours_of_labelmap(
    photo: Callable[..., Path], square: Callable[..., Any], tmp_path: Path
) -> None:
    root = tmp_path / "task"
    mask = square((5, 5, 20, 20, 1), (20, 20, 30, 30, 2))
    colors = [(0, 0, 0), (176, 112, 32), (48, 112, 32)]
    photo(root / "JPEGImages/seq/a.png")
    save_colors(root / "SegmentationClass/seq/a.png", mask, colors)
    save_colors(root / "SegmentationObject/seq/a.png", mask, [(0, 0, 0), (128, 0, 0), (0, 128, 0)])
    (root / "ImageSets/Segmentation").mkdir(parents=True)
    (root / "ImageSets/Segmentation/default.txt").write_text("seq/a\n")
    (root / "labelmap.txt").write_text(
        "# label:color_rgb:parts:actions\ncat:48,112,32::\nbackground:0,0,0::\ndog:176,112,32::\n"
    )
    dataset, found = truths(root)
    assert dataset.labels is not None
    assert dataset.labels.names == ("cat", "background", "dog")
    assert names(dataset) == {"all": ["a.png"]}
    np.testing.assert_array_equal(found["a.png"], np.array([1, 2, 0])[mask])
    (root / "labelmap.txt").write_text("cat:48,112\n")
    with pytest.raises(DatasetError, match=r"labelmap\.txt, line 1"):
        find_dataset(root)


def test_masks_exported_without_their_images_are_said(photo: Callable[..., Path], tmp_path: Path) -> None:
    save_colors(tmp_path / "SegmentationClass/a.png", np.zeros((40, 60), int), [(0, 0, 0)])
    (tmp_path / "labelmap.txt").write_text("background:0,0,0::\n")
    with pytest.raises(DatasetError, match="without the folder JPEGImages"):
        find_dataset(tmp_path)
    photo(tmp_path / "images/a.png")
    assert [pair.image.name for pair in find_dataset(tmp_path).pairs()] == ["a.png"]


@pytest.mark.parametrize("folder", ["SegmentationClassPNG", "SegmentationClass"])
def test_labelme2vocs_folders_are_read_with_their_class_names(
    folder: str, photo: Callable[..., Path], square: Callable[..., Any], tmp_path: Path
) -> None:
    mask = square((5, 5, 20, 20, 1), (0, 0, 2, 2, 255))
    photo(tmp_path / "JPEGImages/a.jpg")
    save_palette(tmp_path / folder / "a.png", mask)
    if folder != "SegmentationClass":
        (tmp_path / "SegmentationClass").mkdir()
        np.save(tmp_path / "SegmentationClass/a.npy", np.where(mask == 255, -1, mask).astype(np.int32))
    (tmp_path / "SegmentationClassVisualization").mkdir()
    photo(tmp_path / "SegmentationClassVisualization/a.jpg")
    (tmp_path / "class_names.txt").write_text("_background_\ncar")
    dataset, found = truths(tmp_path)
    assert dataset.labels is not None
    assert dataset.labels.names == ("background", "car")
    np.testing.assert_array_equal(found["a.jpg"], mask)


def test_cvats_camvid_is_read_by_its_list_and_colours(
    photo: Callable[..., Path], square: Callable[..., Any], tmp_path: Path
) -> None:
    mask = square((5, 5, 20, 20, 1), (20, 20, 30, 30, 2))
    colors = [(0, 0, 0), (64, 0, 128), (192, 192, 128)]
    for subset, name in (("default", "a b"), ("train", "c"), ("train", "unannotated")):
        photo(tmp_path / subset / f"{name}.png")
        if name != "unannotated":
            save_colors(tmp_path / f"{subset}annot/{name}.png", mask, colors)
    (tmp_path / "default.txt").write_text('"/default/a b.png" "defaultannot/a b.png"\n')
    (tmp_path / "train.txt").write_text("/train/c.png trainannot/c.png\n/train/unannotated.png \n")
    (tmp_path / "label_colors.txt").write_text("0 0 0 background\n64 0 128 car\n192 192 128 traffic sign\n")
    dataset = find_dataset(tmp_path)
    assert dataset.labels is not None
    assert dataset.labels.names == ("background", "car", "traffic sign")
    assert names(dataset) == {"train": ["c.png"], "all": ["a b.png"]}
    assert [path.name for path in dataset.unpaired] == ["unannotated.png"]
    for pair in dataset.pairs():
        np.testing.assert_array_equal(read_truth(pair.mask, dataset.labels), mask)


def test_a_list_whose_paths_begin_at_the_root_of_another_machine_is_followed(
    photo: Callable[..., Path], square: Callable[..., Any], tmp_path: Path
) -> None:
    photo(tmp_path / "train/a.png")
    save_colors(tmp_path / "trainannot/a.png", square((5, 5, 20, 20, 1)), [(0, 0, 0), (9, 9, 9)])
    (tmp_path / "train.txt").write_text("/SegNet/CamVid/train/a.png /SegNet/CamVid/trainannot/a.png\n")
    (tmp_path / "label_colors.txt").write_text("0 0 0\tVoid\n9 9 9\tCar\n")
    dataset, found = truths(tmp_path)
    assert names(dataset) == {"train": ["a.png"]}
    np.testing.assert_array_equal(found["a.png"], square((5, 5, 20, 20, 1)))
    assert truths(tmp_path / "train.txt")[1].keys() == {"a.png"}
    (tmp_path / "label_colors.txt").unlink()
    (pair,) = find_dataset(tmp_path / "train.txt").pairs()
    assert pair.mask == tmp_path / "trainannot/a.png"


def test_roboflows_semantic_masks_are_paired_side_by_side(
    photo: Callable[..., Path], square: Callable[..., Any], tmp_path: Path
) -> None:
    mask = square((5, 5, 20, 20, 1), (20, 20, 30, 30, 2))
    for folder, name in (("train", "a_jpg.rf.0f"), ("valid", "b_jpg.rf.1e"), ("test", "surgical_mask_jpg.rf.2d")):
        photo(tmp_path / folder / f"{name}.jpg")
        Image.fromarray(mask).save(tmp_path / folder / f"{name}_mask.png")
        (tmp_path / folder / "_classes.csv").write_text("Pixel Value, Class\n0, background\n1, car\n2, road, wet\n")
    with pytest.raises(DatasetError, match=r"_classes\.csv, line 4"):
        find_dataset(tmp_path)
    for folder in ("train", "valid", "test"):
        (tmp_path / folder / "_classes.csv").write_text("Pixel Value, Class\n0, background\n1, car\n2, road\n")
    dataset, found = truths(tmp_path)
    assert dataset.labels is not None
    assert dataset.labels.names == ("background", "car", "road")
    assert names(dataset) == {
        "train": ["a_jpg.rf.0f.jpg"],
        "val": ["b_jpg.rf.1e.jpg"],
        "test": ["surgical_mask_jpg.rf.2d.jpg"],
    }
    for truth in found.values():
        np.testing.assert_array_equal(truth, mask)
    (tmp_path / "valid/_classes.csv").write_text("Pixel Value, Class\n0, background\n1, road\n")
    with pytest.raises(DatasetError, match="other classes than"):
        find_dataset(tmp_path)


@pytest.mark.parametrize("layout", ["roboflow", "coco", "cvat"])
def test_coco_files_of_several_splits_are_one_dataset(
    layout: str, convert: Callable[..., Any], photo: Callable[..., Path], square: Callable[..., Any], tmp_path: Path
) -> None:
    root = tmp_path / "data"
    places = {
        "roboflow": {split: (f"{split}/_annotations.coco.json", f"{split}/a.jpg") for split in ("train", "valid")},
        "coco": {s: (f"annotations/instances_{s}2017.json", f"{s}2017/a.jpg") for s in ("train", "val")},
        "cvat": {"default": ("annotations/instances_default.json", "images/a.jpg")},
    }[layout]
    for i, (file, image) in enumerate(places.values()):
        photo(root / image, 50 + i)
        (root / file).parent.mkdir(parents=True, exist_ok=True)
        content = {
            "info": {},
            "licenses": [],
            "images": [{"id": 1, "file_name": "a.jpg", "width": 60, "height": 40}],
            "categories": [{"id": 1, "name": "car", "supercategory": ""}],
            "annotations": [
                {
                    "id": 1,
                    "image_id": 1,
                    "category_id": 1,
                    "segmentation": [[5 + i, 5, 20, 5, 20, 20, 5 + i, 20]],
                    "area": 225.0,
                    "bbox": [5, 5, 15, 15],
                    "iscrowd": 0,
                }
            ],
        }
        (root / file).write_text(json.dumps(content))
    if layout == "coco":
        (root / "annotations/captions_train2017.json").write_text(
            json.dumps({"images": [], "annotations": [], "info": {}, "licenses": []})
        )
    done = convert(root)
    assert done.status == 0, done.output
    expected = {"roboflow": ["train", "val"], "coco": ["train", "val"], "cvat": ["all"]}[layout]
    assert list(done.splits) == expected
    for i, split in enumerate(expected):
        pair = find_dataset(tmp_path / "converted").splits[split][0]
        np.testing.assert_array_equal(np.asarray(Image.open(pair.mask)), square((5, 5 + i, 20, 20, 1)))
        assert Image.open(pair.image).getpixel((0, 0)) == (50 + i,) * 3


def test_tools_whose_files_are_not_read_are_named(photo: Callable[..., Path], tmp_path: Path) -> None:
    for place, reason in (
        ("a/task-1-annotation-2-by-1-tag-car-0.png", "Label Studio"),
        ("b/meta.json", "Supervisely"),
        ("c/classes/classes.json", "SuperAnnotate"),
        ("d/export.zip", "unpack"),
        ("f/labels/a.txt", "without class names"),
        ("e/x.txt", "not an export of a known tool"),
    ):
        path = tmp_path / place
        path.parent.mkdir(parents=True)
        path.write_text("0 0.1 0.1 0.2 0.1 0.2 0.2\n" if path.name == "a.txt" else "{}")
        source = path if path.suffix == ".zip" else tmp_path / place[0]
        run = CliRunner().invoke(app, ["convert", str(source), "--out", str(tmp_path / "out")])
        assert run.exit_code == 1
        assert reason in run.output.replace("\n", " ")
        assert run.output.count("error:") == 1


def test_folders_of_masks_are_converted_too(
    convert: Callable[..., Any], photo: Callable[..., Path], square: Callable[..., Any], tmp_path: Path
) -> None:
    root = tmp_path / "task"
    mask = square((5, 5, 20, 20, 1), (20, 20, 30, 30, 2))
    colors = [(176, 112, 32), (0, 0, 0), (48, 112, 32)]
    for name in ("seq/a", "seq/b"):
        photo(root / f"JPEGImages/{name}.png")
        save_colors(root / f"SegmentationClass/{name}.png", mask[:30] if name == "seq/b" else mask, colors)
    (root / "labelmap.txt").write_text("cat:48,112,32::\nbackground:0,0,0::\ndog:176,112,32::\n")
    done = convert(root)
    assert done.status == 1
    assert "60×30 pixels, but its image has 60×40" in done.output
    assert done.names == ("background", "cat", "dog")
    np.testing.assert_array_equal(done.masks["a.png"], np.array([2, 0, 1])[mask])
    again = find_dataset(tmp_path / "converted").labels
    assert again is not None
    assert again.classes[2].color == (176, 112, 32)


def test_a_table_of_classes_with_a_cell_of_megabytes_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "_classes.csv").write_text("Pixel Value, Class\n0, " + "a" * 2**18)
    with pytest.raises(DatasetError, match=r"_classes\.csv: not a table"):
        find_dataset(tmp_path)
