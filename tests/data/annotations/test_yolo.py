from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from evitseg.cli import app
from evitseg.data.layouts import find_dataset
from evitseg.raster.masks import read_truth

AREA = "1 0.1 0.25 0.5 0.25 0.5 0.75 0.1 0.75"  # (10, 6, 30, 30) of 40×60 pixels


def test_a_dataset_as_ultralytics_writes_it(
    convert: Callable[..., Any], photo: Callable[..., Path], square: Callable[..., Any], tmp_path: Path
) -> None:
    root = tmp_path / "data"
    for split, name in (("train", "a"), ("train", "b"), ("val", "c")):
        photo(root / f"images/{split}/{name}.png")
        (root / f"labels/{split}").mkdir(parents=True, exist_ok=True)
        if name != "b":
            (root / f"labels/{split}/{name}.txt").write_text(f"{AREA}\n0 0 0 0.5 0 0.5 0.5 0 0.5\n")
    (root / "data.yaml").write_text(
        "path: .\ntrain: images/train\nval: images/val\ntest:\nnames:\n  0: road\n  1: car\n"
    )
    for source in (root, root / "data.yaml"):
        done = convert(source)
        assert done.status == 0, done.output
        assert done.names == ("background", "road", "car")
        assert done.splits == {"train": ["a.png", "b.png"], "val": ["c.png"]}
        np.testing.assert_array_equal(done.masks["a.png"], square((10, 6, 30, 30, 2), (0, 0, 20, 30, 1)))
        np.testing.assert_array_equal(done.masks["b.png"], square())
        assert "1 image without a label file" in done.output


def test_a_dataset_as_roboflow_writes_it(
    convert: Callable[..., Any], photo: Callable[..., Path], square: Callable[..., Any], tmp_path: Path
) -> None:
    root = tmp_path / "data"
    for folder, name in (("train", "a_jpg.rf.1f"), ("valid", "b_jpg.rf.2e"), ("test", "c_jpg.rf.3d")):
        photo(root / folder / f"images/{name}.jpg")
        (root / folder / "labels").mkdir()
        (root / folder / f"labels/{name}.txt").write_text(AREA)
    (root / "data.yaml").write_text(
        "train: ../train/images\nval: ../valid/images\ntest: ../test/images\n\nnc: 2\nnames: [no, 1.50]\n\n"
        "roboflow:\n  workspace: w\n  project: p\n  version: 1\n"
    )
    done = convert(root)
    assert done.status == 0, done.output
    assert done.names == ("background", "no", "1.50")  # as written, not as YAML's truth values and numbers
    assert done.splits == {"train": ["a_jpg.rf.1f.jpg"], "val": ["b_jpg.rf.2e.jpg"], "test": ["c_jpg.rf.3d.jpg"]}
    np.testing.assert_array_equal(done.masks["a_jpg.rf.1f.jpg"], square((10, 6, 30, 30, 2)))


def test_a_dataset_as_cvat_writes_it(convert: Callable[..., Any], photo: Callable[..., Path], tmp_path: Path) -> None:
    root = tmp_path / "data"
    photo(root / "images/train/a.jpg")
    (root / "labels/train").mkdir(parents=True)
    (root / "labels/train/a.txt").write_text(AREA)
    (root / "train.txt").write_text("data/images/train/a.jpg\n")
    (root / "data.yaml").write_text("names:\n  0: road\n  1: car\npath: .\ntrain: train.txt\n")
    done = convert(root)
    assert done.status == 0, done.output
    assert done.splits == {"train": ["a.jpg"]}


def test_a_dataset_as_label_studio_writes_it(
    convert: Callable[..., Any], photo: Callable[..., Path], tmp_path: Path
) -> None:
    root = tmp_path / "data"
    photo(root / "images/0a1b2c3d-a.jpg")
    (root / "labels").mkdir()
    (root / "labels/0a1b2c3d-a.txt").write_text(AREA)
    (root / "classes.txt").write_text("road\ncar\n")
    (root / "notes.json").write_text('{"categories": [{"id": 0, "name": "road"}], "info": {}}')
    done = convert(root)
    assert (done.status, list(done.masks)) == (0, ["0a1b2c3d-a.jpg"]), done.output
    (root / "images").rename(tmp_path / "photos")
    done = convert(root, "--images", str(tmp_path / "photos"))
    assert (done.status, list(done.masks)) == (0, ["0a1b2c3d-a.jpg"]), done.output


@pytest.mark.parametrize(
    "line",
    [
        "2 0.1 0.1 0.2 0.1 0.2 0.2",
        "-1 0.1 0.1 0.2 0.1 0.2 0.2",
        "0.5 0.1 0.1 0.2 0.1 0.2 0.2",
        "nan 0.1 0.1 0.2 0.1 0.2 0.2",
        "0 nan 0.1 0.2 0.1 0.2 0.2",
        "0 1e300 0.1 0.2 0.1 0.2 0.2",
        "0 12 30 40 50 60 70",
        "0 0.1 0.1 0.2 0.1 0.2",
        "0 0.1 0.1 0.2",
        "0 0.5 0.5 0.1 0.1",
        "0",
        "road 0.1 0.1 0.2 0.1 0.2 0.2",
        "\ufeff\x00",
    ],
)
def test_a_damaged_line_is_reported_and_the_others_are_drawn(
    line: str, convert: Callable[..., Any], photo: Callable[..., Path], square: Callable[..., Any], tmp_path: Path
) -> None:
    root = tmp_path / "data"
    for name, text in (("a", f"{AREA}\n{line}\n"), ("b", AREA)):
        photo(root / f"images/{name}.png")
        (root / "labels").mkdir(exist_ok=True)
        (root / f"labels/{name}.txt").write_text(text, encoding="utf-8")
    (root / "data.yaml").write_text("train: images\nnames: [road, car]\n")
    done = convert(root)
    assert done.status == 1, done.output
    assert "a.txt: line 2" in done.output
    assert set(np.unique(done.masks["a.png"])) == {2, 255}
    np.testing.assert_array_equal(done.masks["b.png"], square((10, 6, 30, 30, 2)))


def test_what_cannot_be_converted_is_one_sentence(photo: Callable[..., Path], tmp_path: Path) -> None:
    root = tmp_path / "data"
    photo(root / "images/a.png")
    (root / "labels").mkdir()
    (root / "empty").mkdir()

    def error(yaml: str, text: str | None) -> str:
        shutil.rmtree(tmp_path / "out", ignore_errors=True)
        (root / "data.yaml").write_text(yaml)
        (root / "labels/a.txt").unlink(missing_ok=True)
        if text is not None:
            (root / "labels/a.txt").write_text(text)
        run = CliRunner().invoke(app, ["convert", str(root), "--out", str(tmp_path / "out")])
        assert run.exit_code == 1
        assert isinstance(run.exception, SystemExit), run.exception
        return run.output

    assert "evitseg convert --images DIR" in error("train: empty\nnames: [x]\n", None)
    assert "labels of boxes" in error("train: images\nnames: [x]\n", "0 0.5 0.5 0.1 0.1\n")
    assert "no image has a label file" in error("train: images\nnames: [x]\n", None)
    assert "without gaps" in error("train: images\nnames: {0: x, 2: y}\n", AREA)
    assert "does not exist" in error("train: absent\nnames: [x, y]\n", AREA)


def test_check_reads_it_as_it_is(photo: Callable[..., Path], tmp_path: Path) -> None:
    root = tmp_path / "data"
    photo(root / "images/train/a.png")
    (root / "labels/train").mkdir(parents=True)
    (root / "labels/train/a.txt").write_text(AREA)
    (root / "data.yaml").write_text("train: images/train\nnames: [x, y]\n")
    photo(root / "images/train/b.png", 10)
    for data in (root, root / "data.yaml"):
        run = CliRunner().invoke(app, ["check", str(data), "--workers", "1"])
        assert run.exit_code == 0, run.output
        assert "a YOLO segmentation dataset" in run.output
        assert f"evitseg convert {data}" in run.output
        assert "y" in run.output


def test_an_image_without_labels_does_not_get_those_of_another_split(
    photo: Callable[..., Path], tmp_path: Path
) -> None:
    root = tmp_path / "data"
    for split in ("train", "val"):
        photo(root / f"images/{split}/a.png")
    (root / "labels/train").mkdir(parents=True)
    (root / "labels/train/a.txt").write_text(AREA)
    (root / "data.yaml").write_text("train: images/train\nval: images/val\nnames: [road, car]\n")
    dataset = find_dataset(root)
    assert any("1 image without a label file" in note for note in dataset.notes)
    labels = dataset.labels
    assert labels is not None
    largest = {split: int(read_truth(pair.mask, labels).max()) for split, (pair,) in dataset.splits.items()}
    assert largest == {"train": 2, "val": 0}
