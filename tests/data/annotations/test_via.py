from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from evitseg.cli import app


def region(name: str, value: Any = "car", **shape: Any) -> dict[str, Any]:
    return {"shape_attributes": {"name": name} | shape, "region_attributes": {"class": value}}


GOOD = region("polygon", all_points_x=[5, 20, 20, 5], all_points_y=[5, 5, 20, 20])


def write(path: Path, images: dict[str, Any], project: bool = False) -> Path:
    entries = {
        f"{name}123": {"filename": name, "size": 123, "regions": shapes, "file_attributes": {}}
        for name, shapes in images.items()
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"_via_settings": {}, "_via_img_metadata": entries} if project else entries))
    return path


@pytest.mark.parametrize("form", ["version 1", "version 2", "project"])
def test_regions_are_drawn_in_their_order(
    form: str, convert: Callable[..., Any], photo: Callable[..., Path], square: Callable[..., Any], tmp_path: Path
) -> None:
    photo(tmp_path / "d/a.png")
    shapes: Any = [
        GOOD,
        region("rect", {"road": True, "car": False}, x=10, y=15, width=30, height=10),
        region("point", cx=5, cy=5),
    ]
    if form == "version 1":
        shapes = {str(i): shape for i, shape in enumerate(shapes)}
    write(tmp_path / "d/via_region_data.json", {"a.png": shapes}, form == "project")
    done = convert(tmp_path / "d")
    assert done.status == 0, done.output
    assert done.names == ("background", "car", "road")
    np.testing.assert_array_equal(done.masks["a.png"], square((5, 5, 20, 20, 1), (15, 10, 25, 40, 2)))
    assert "1 region of type point" in done.output


def test_circles_and_ellipses_have_their_area(
    convert: Callable[..., Any], photo: Callable[..., Path], tmp_path: Path
) -> None:
    photo(tmp_path / "d/a.png")
    shapes = [region("circle", cx=15, cy=20, r=10), region("ellipse", "b", cx=45, cy=20, rx=12, ry=6, theta=0.5)]
    mask = convert(write(tmp_path / "d/x.json", {"a.png": shapes})).masks["a.png"]
    assert abs((mask == 2).sum() - np.pi * 100) < 8
    assert abs((mask == 1).sum() - np.pi * 72) < 8


@pytest.mark.parametrize(
    "bad",
    [
        region("polygon", all_points_x=[5, 20], all_points_y=[5, 5, 20]),
        region("polygon", all_points_x=[5, 20, float("nan")], all_points_y=[5, 5, 20]),
        region("polygon", all_points_x=[5, 20, 1e9], all_points_y=[5, 5, 20]),
        region("polygon", all_points_x=None, all_points_y=[5, 5, 20]),
        region("circle", cx=None, cy=1, r=2),
        region("ellipse", cx=1, cy=1, rx=2, ry=3, theta="x"),
        region("cloud"),
        region("rect", "", x=1, y=1, width=3, height=3),
        region("rect", {"a": True, "b": True}, x=1, y=1, width=3, height=3),
        {"region_attributes": {}},
        5,
    ],
    ids=range(11),
)
def test_a_damaged_region_is_reported_and_the_others_are_drawn(
    bad: Any, convert: Callable[..., Any], photo: Callable[..., Path], square: Callable[..., Any], tmp_path: Path
) -> None:
    photo(tmp_path / "d/a.png")
    photo(tmp_path / "d/b.png")
    done = convert(write(tmp_path / "d/x.json", {"a.png": [GOOD, bad], "b.png": [GOOD]}))
    assert done.status == 1
    assert "region 1" in done.output
    assert set(np.unique(done.masks["a.png"])) == {1, 255}
    np.testing.assert_array_equal(done.masks["b.png"], square((5, 5, 20, 20, 1)))


def test_it_must_be_clear_which_attribute_is_the_class(photo: Callable[..., Path], tmp_path: Path) -> None:
    photo(tmp_path / "d/a.png")
    shape = GOOD | {"region_attributes": {"colour": "red", "make": "x"}}
    source = write(tmp_path / "d/x.json", {"a.png": [shape]})
    run = CliRunner().invoke(app, ["convert", str(source), "--out", str(tmp_path / "out")])
    assert run.exit_code == 1
    assert "several attributes (colour, make)" in run.output.replace("\n", " ")


def test_an_angle_longer_than_any_float_damages_its_own_region_alone(
    convert: Callable[..., Any], photo: Callable[..., Path], tmp_path: Path
) -> None:
    photo(tmp_path / "d/a.png")
    shapes = [region("ellipse", cx=45, cy=20, rx=12, ry=6, theta=10**400), GOOD]
    done = convert(write(tmp_path / "d/x.json", {"a.png": shapes}))
    assert done.status == 1
    assert "region 0" in done.output
    assert "not finite" in done.output
    assert (done.masks["a.png"] == 1).sum() == 225
