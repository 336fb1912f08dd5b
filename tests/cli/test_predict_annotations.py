"""`predict --as`: annotations of all images, by the names that their tools expect, and never over corrections."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image

from tests.optional import needs

needs("rasterio", "shapely")

from evitseg.bundled import EXAMPLE_IMAGE
from evitseg.labels import load_labels
from evitseg.raster.masks import read_mask
from evitseg.raster.png import save_mask

Cli = Callable[..., Any]
SMALL = ("--size", "64", "--precision", "float32", "--no-overlay")


def street(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with Image.open(EXAMPLE_IMAGE) as image:
        image.resize((96, 64)).save(path)
    return path


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("to", "source"), [("labelme", "out"), ("cvat", "out/annotations.xml"), ("coco", "out/annotations.json")]
)
def test_annotations_of_a_folder_are_its_masks(
    to: str, source: str, here: Path, cli: Cli, convert: Callable[..., Any]
) -> None:
    street(here / "photos/a.png")
    street(here / "photos/sub/b.jpg")
    done = cli("predict", "photos", "--as", to, "--out", "out", *SMALL, "--json")
    assert done.status == 0, done.stderr
    told = json.loads(done.stdout)["annotations"]
    assert (told["format"], told["images"]) == (to, 2)
    assert told["written"] == ("out" if to == "labelme" else source)
    images = [] if to == "labelme" else ["--images", "photos"]  # Labelme's files name their images by paths
    back = convert(here / source, "--labels", "camvid", *images)
    assert back.status == 0, back.output
    expected = {"a.png": "out/a_mask.png", "b.jpg": "out/sub/b_mask.png"}
    for name, mask in expected.items():
        np.testing.assert_array_equal(back.masks[name], read_mask(here / mask))


@pytest.mark.parametrize("to", ["labelme", "cvat", "coco"])
def test_an_image_whose_name_annotations_cannot_hold_is_one_sentence(to: str, here: Path, cli: Cli) -> None:
    street(here / "photos/a.png")
    strange = ["caf\udce9.png", "b\x01.png"]  # a name in Latin-1, and one with a control character
    for name in strange:
        (here / "photos" / name).write_bytes((here / "photos/a.png").read_bytes())
    done = cli("predict", "photos", "--as", to, *SMALL, "--json")
    assert done.status == 1
    assert done.stderr.count("annotations cannot hold a name") == 2
    assert json.loads(done.stdout)["annotations"]["images"] == 1
    if to == "cvat":
        ElementTree.parse(here / "predictions/annotations.xml")


def test_images_are_named_relative_to_the_folder_that_was_given(here: Path, cli: Cli) -> None:
    street(here / "photos/a.png")
    street(here / "photos/sub/b.png")
    assert cli("predict", "photos", "--as", "coco", *SMALL).status == 0
    content = json.loads((here / "predictions/annotations.json").read_text())
    assert [image["file_name"] for image in content["images"]] == ["a.png", "sub/b.png"]
    assert cli("predict", "photos", "--as", "labelme", *SMALL).status == 0
    below = json.loads((here / "predictions/sub/b.json").read_text())
    assert below["imagePath"] == "../../photos/sub/b.png"
    assert (here / "predictions/labels.txt").read_text().split() == list(load_labels("camvid").names)


def test_images_of_the_same_name_are_named_from_the_folder_above_both(here: Path, cli: Cli) -> None:
    for folder in ("x", "y"):
        street(here / folder / "a.png")
    assert cli("predict", "x/a.png", "y/a.png", "--as", "cvat", *SMALL).status == 0
    root = ElementTree.parse(here / "predictions/annotations.xml")
    assert [image.get("name") for image in root.iter("image")] == ["x/a.png", "y/a.png"]


@pytest.mark.parametrize("mode", [("--exact",), ("--sliding-window", "64")])
def test_images_in_tiles_have_annotations_too(
    mode: tuple[str, ...], here: Path, cli: Cli, convert: Callable[..., Any]
) -> None:
    street(here / "a.png")
    assert cli("predict", "a.png", *mode, "--as", "coco", "--no-overlay").status == 0
    back = convert(here / "predictions/annotations.json", "--labels", "camvid", "--images", str(here))
    np.testing.assert_array_equal(back.masks["a.png"], read_mask(here / "predictions/a_mask.png"))


@pytest.mark.parametrize(
    ("to", "file"), [("labelme", "a.json"), ("cvat", "annotations.xml"), ("coco", "annotations.json")]
)
def test_annotations_that_may_hold_corrections_are_never_replaced_unasked(
    to: str, file: str, here: Path, cli: Cli
) -> None:
    street(here / "a.png")
    place = here / "predictions" / file
    place.parent.mkdir()
    place.write_text("mine")
    done = cli("predict", "a.png", "--as", to, *SMALL)
    assert done.status == 1
    assert "may hold corrections" in done.stderr
    assert [path.name for path in place.parent.iterdir()] == [file]  # before anything was computed
    assert cli("predict", "a.png", "--as", to, *SMALL, "--overwrite").status == 0
    assert "mine" not in place.read_text()


def test_a_resumed_run_annotates_finished_images_and_leaves_corrected_ones(here: Path, cli: Cli) -> None:
    for name in ("a", "b"):
        street(here / f"photos/{name}.png")
    assert cli("predict", "photos", *SMALL).status == 0
    changed = np.full((64, 96), 3, np.uint8)
    save_mask(changed, here / "predictions/b_mask.png", load_labels("camvid"))
    (here / "predictions/a.json").write_text("corrected")
    done = cli("predict", "photos", "--as", "labelme", *SMALL, "--skip-existing")
    assert done.status == 0, done.stderr
    assert (here / "predictions/a.json").read_text() == "corrected"
    (shape,) = json.loads((here / "predictions/b.json").read_text())["shapes"]
    assert shape["label"] == "road"
    assert sorted(map(tuple, shape["points"])) == [(0, 0), (0, 64), (96, 0), (96, 64)]


def test_an_image_that_fails_has_no_annotations_and_the_others_have(here: Path, cli: Cli) -> None:
    street(here / "photos/a.png")
    (here / "photos/b.png").write_bytes(b"no image")
    save_mask(np.zeros((9, 9), np.uint8), here / "predictions/b_mask.png", load_labels("camvid"))  # of an earlier run
    done = cli("predict", "photos", "--as", "coco", *SMALL)
    assert done.status == 1
    content = json.loads((here / "predictions/annotations.json").read_text())
    assert [image["file_name"] for image in content["images"]] == ["a.png"]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("a.png", "--simplify", "2"), "add --polygons or --as"),
        (("a.png", "--minimum-pixels", "9"), "add --polygons or --as"),
        (("a.png", "--as", "yolo"), "unknown format 'yolo'"),
        (("-", "--as", "coco"), "give its file, and a folder as --out"),
        (("a.png", "--as", "coco", "--out", "-"), "give its file, and a folder as --out"),
    ],
)
def test_a_command_line_that_makes_no_sense_is_a_usage_error(
    arguments: tuple[str, ...], sentence: str, here: Path, cli: Cli
) -> None:
    street(here / "a.png")
    done = cli("predict", *arguments)
    assert done.status == 2
    assert sentence in done.stderr


def test_simplify_and_minimum_pixels_shape_polygons_and_annotations_alike(here: Path, cli: Cli) -> None:
    street(here / "a.png")
    counts = []
    for options in ((), ("--minimum-pixels", "30", "--simplify", "2")):
        done = cli("predict", "a.png", "--as", "coco", "--polygons", "p.geojson", *options, *SMALL, "--overwrite")
        assert done.status == 0, done.stderr
        polygons = json.loads((here / "p.geojson").read_text())["features"]
        annotations = json.loads((here / "predictions/annotations.json").read_text())["annotations"]
        assert len(polygons) == len(annotations)
        counts.append(len(polygons))
    assert 0 < counts[1] < counts[0]
