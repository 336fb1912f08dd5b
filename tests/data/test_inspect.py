from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from evitseg.data.inspect import contact_sheet, inspect
from evitseg.data.layouts import find_dataset
from evitseg.errors import DatasetError, EvitsegWarning
from evitseg.labels import load_labels
from tests.data.test_layouts import image, mask


def test_a_folder_is_read_by_the_yaml_file_in_it(tmp_path: Path) -> None:
    image(tmp_path / "images/train/a.jpg", (2, 2))
    mask(tmp_path / "masks/train/a.png", np.array([[7, 7], [7, 3]], np.uint8))
    yaml = tmp_path / "data.yaml"
    yaml.write_text("train: images/train\nmasks_dir: masks\nnames: [soil, wheat]\nlabel_mapping: {3: 0, 7: 1}\n")
    (tmp_path / "other.yaml").write_text("names: [x, y]\n")
    inspection = inspect(find_dataset(tmp_path))
    assert inspection.labels.names == ("soil", "wheat")
    assert inspection.frequencies().tolist() == [0.25, 0.75]
    (tmp_path / "classes.txt").write_text("soil\nwheat\n")  # names alone do not take the place of ids
    assert inspect(find_dataset(tmp_path)).frequencies().tolist() == [0.25, 0.75]
    (tmp_path / "classes.txt").write_text("wheat\nsoil\n")
    for data in (tmp_path, yaml):
        with pytest.raises(DatasetError, match=r"data\.yaml and .*classes\.txt have different classes or ids"):
            find_dataset(data)
    (tmp_path / "second.yml").write_text(yaml.read_text())
    with pytest.raises(DatasetError, match="both describe masks"):
        find_dataset(tmp_path)


def test_one_pair_is_not_said_to_be_none(tmp_path: Path) -> None:
    image(tmp_path / "images/a.jpg")
    mask(tmp_path / "masks/a.png", np.array([[0, 1] * 6] * 8, np.uint8))
    assert "one usable pair to train on, and none to validate" in inspect(find_dataset(tmp_path)).obstacle


@pytest.mark.parametrize("workers", [0, 2])
def test_inspection_names_every_bad_pair(workers: int, tmp_path: Path) -> None:
    for i in range(60):
        size = (8 + i % 3, 12)
        image(tmp_path / f"images/{i:07}.png", size)
        mask(tmp_path / f"masks/{i:07}.png", size=size)
    (tmp_path / "images/0000003.png").write_bytes(b"")
    (tmp_path / "masks/0000004.png").write_text("no mask")
    mask(tmp_path / "masks/0000005.png", size=(5, 5))
    mask(tmp_path / "masks/0000006.png", np.full((8, 12), 255, np.uint8))
    done: list[int] = []
    inspection = inspect(find_dataset(tmp_path), workers, done.append)
    assert sum(done) == 60
    assert len(inspection.usable) == 56
    assert inspection.trains
    assert len(inspection.problems) == 4
    for name, reason in (
        ("3", "an empty file"),
        ("4", "not in a supported mask format"),
        ("5", "5×5 pixels"),
        ("6", "is ignored"),
    ):
        assert sum(f"000000{name}.png: " in p and reason in p for p in inspection.problems) == 1
    assert inspection.frequencies().sum() == pytest.approx(1)


def test_frequencies_are_counted_pixels(tmp_path: Path) -> None:
    image(tmp_path / "images/a.png", (1, 5))
    mask(tmp_path / "masks/a.png", np.array([[0, 1, 1, 1, 255]], np.uint8))
    inspection = inspect(find_dataset(tmp_path), 0)
    np.testing.assert_allclose(inspection.frequencies(), [0.25, 0.75])
    assert not inspection.trains  # one pair cannot be divided


def test_an_id_outside_the_label_space_would_stop_training(tmp_path: Path) -> None:
    image(tmp_path / "images/a.png")
    mask(tmp_path / "masks/a.png", np.full((8, 12), 34, np.uint8))
    inspection = inspect(find_dataset(tmp_path, load_labels("cityscapes")), 0)
    assert not inspection.trains
    assert "id 34 is not in label space 'cityscapes'" in inspection.problems[0]


def test_the_same_image_in_two_splits_is_found_by_content(tmp_path: Path) -> None:
    original = image(tmp_path / "train/images/a.png")
    mask(tmp_path / "train/masks/a.png")
    (tmp_path / "val/images").mkdir(parents=True)
    Image.open(original).save(tmp_path / "val/images/other-name.bmp")
    mask(tmp_path / "val/masks/other-name.png")
    ((first, second),) = inspect(find_dataset(tmp_path), 0).leaks
    assert (first.split, second.split) == ("train", "val")


def test_a_contact_sheet_shows_the_images(tmp_path: Path) -> None:
    for i in range(9):
        image(tmp_path / f"images/{i}.png", (30, 40))
        mask(tmp_path / f"masks/{i}.png", size=(30, 40))
    for count in (9, 24):
        sheet = contact_sheet(inspect(find_dataset(tmp_path), 0), count=count, width=80)
        assert sheet.width == 6 * 80
        tiles = np.asarray(sheet)[:120].reshape(2, 60, 6, 80, 3).swapaxes(1, 2).reshape(12, -1)
        assert (tiles.std(1) > 1).sum() == 9


def test_what_is_not_read_is_counted_by_reason(tmp_path: Path) -> None:
    for name in ("a.PNG", "b c.jpg", "#d,e.png", "bad.png", "alone.png", "other.png"):
        image(tmp_path / "images" / name)
    for name in ("a.Png", "b c.png", "#d,e.png", "bad.png", "other.png"):
        mask(tmp_path / "masks" / name)
    for name in ("raw.CR2", "layers.psd", "also.psd", ".hidden.psd", "notes.txt"):
        (tmp_path / "images" / name).touch()
    (tmp_path / "images/bad.png").write_bytes(b"no image")
    mask(tmp_path / "masks/other.png", size=(5, 5))
    os.mkfifo(tmp_path / "images/pipe.png")
    (tmp_path / "masks/broken.png").symlink_to(tmp_path / "nowhere.png")
    inspection = inspect(find_dataset(tmp_path), 0)
    assert len(inspection.usable) == 3
    assert inspection.skipped == {
        "images that cannot be read": 1,
        "masks of another size than the image": 1,
        "files without a partner": 1,
        ".psd files, which are not read": 2,
        ".cr2 files, which are not read": 1,
        "files that are not regular (FIFOs, sockets, devices)": 1,
        "files that cannot be read (No such file or directory)": 1,
    }


def test_a_mask_of_the_stored_size_of_a_turned_image_is_told(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    for kind in ("jpg", "png"):
        image(tmp_path / f"{kind}/images/a.{kind}", (8, 12))
        with Image.open(tmp_path / f"{kind}/images/a.{kind}") as plain:
            plain.save(tmp_path / f"{kind}/images/a.{kind}", exif=exif)
        mask(tmp_path / f"{kind}/masks/a.png", size=(8, 12))
        (problem,) = inspect(find_dataset(tmp_path / kind), 0).problems
        assert "12×8 pixels, but its image has 8×12; the image is rotated by its EXIF" in problem
        mask(tmp_path / f"{kind}/masks/a.png", size=(12, 8))
        assert inspect(find_dataset(tmp_path / kind), 0).findings[0].exif_rotated


def test_warnings_of_other_processes_are_passed_on(tmp_path: Path) -> None:
    frames = [Image.new("L", (12, 8), level) for level in (0, 255)]
    image(tmp_path / "images/b.png")
    frames[0].save(tmp_path / "images/a.tif", save_all=True, append_images=frames[1:])
    for name in ("a", "b"):
        mask(tmp_path / f"masks/{name}.png")
    for workers in (0, 2):
        with pytest.warns(EvitsegWarning, match=r"a\.tif: reading the first of 2 pages"):
            inspect(find_dataset(tmp_path), workers)


def test_every_file_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import evitseg.data.inspect as module

    for i in range(3):
        image(tmp_path / f"images/{i}.png")
        mask(tmp_path / f"masks/{i}.png")
    read: list[Path] = []

    def noting(function: Callable[..., Any], path: Path, *more: Any) -> Any:
        read.append(path)
        return function(path, *more)

    for name in ("read_image", "read_mask_file"):
        function = getattr(module, name)
        monkeypatch.setattr(module, name, partial(noting, function))
    inspect(find_dataset(tmp_path), 0)  # without labels: the classes are inferred
    assert len(read) == len(set(read)) == 6


@pytest.mark.skipif(os.name == "nt", reason="names are text there")
def test_data_in_a_folder_whose_name_is_not_utf_8_can_be_inspected(tmp_path: Path) -> None:
    folder = Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9"))
    for i in range(3):
        image(folder / f"images/{i}.png")
        mask(folder / f"masks/{i}.png")
    (folder / "classes.txt").write_text("a\nb\nc\n")
    inspection = inspect(find_dataset(folder), 0)
    assert inspection.trains
    inspection.labels.name.encode()
