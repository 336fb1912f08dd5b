from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from evitseg.cli import app

HEAD = """<?xml version="1.0" encoding="utf-8"?>
<annotations>
  <version>1.1</version>
  <meta>
    <task>
      <id>5</id>
      <name>streets</name>
      <size>2</size>
      <mode>annotation</mode>
      <overlap>0</overlap>
      <labels>
        <label><name>road</name><color>#a03010</color><type>any</type><attributes></attributes></label>
        <label><name>car</name><color>#00ff80</color><type>any</type><attributes></attributes></label>
        <label><name>sign</name><color>#0000ff</color><type>any</type><attributes></attributes></label>
      </labels>
    </task>
    <dumped>2025-01-01 00:00:00+00:00</dumped>
  </meta>
"""
GOOD = (
    '<polygon label="car" source="manual" occluded="0" points="5.00,5.00;9.00,5.00;9.00,9.00;5.00,9.00" z_order="0"/>'
)


def image(number: int, name: str, shapes: str, **more: str) -> str:
    extra = "".join(f' {key}="{value}"' for key, value in more.items())
    return f'<image id="{number}" name="{name}"{extra} width="60" height="40">{shapes}</image>\n'


def write(folder: Path, *images: str, head: str = HEAD) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "annotations.xml").write_text(head + "".join(images) + "</annotations>\n", encoding="utf-8")
    return folder


def test_polygons_masks_and_ellipses_are_drawn_by_z_order(
    convert: Callable[..., Any], photo: Callable[..., Path], square: Callable[..., Any], tmp_path: Path
) -> None:
    photo(tmp_path / "task/images/seq/a.png")
    # A box of 3 rows and 5 columns: run lengths row by row, zeros first.
    region = np.array([[0, 1, 1, 0, 0], [1, 1, 1, 1, 0], [0, 0, 1, 0, 1]])
    shapes = """
    <polygon label="car" source="manual" occluded="0" points="10.0,10.0;30.0,10.0;30.0,20.0;10.0,20.0" z_order="2">
      <attribute name="colour">red</attribute></polygon>
    <polygon label="road" source="manual" occluded="0" points="0,5;60,5;60,40;0,40" z_order="1"></polygon>
    <mask label="sign" source="manual" occluded="0" rle="1, 2, 2, 4, 3, 1, 1, 1" left="40" top="30" width="5" height="3"
      z_order="3"></mask>
    <box label="car" source="manual" occluded="0" xtl="1" ytl="1" xbr="9" ybr="9" z_order="0"></box>
    <polyline label="car" source="manual" points="1,1;2,2" z_order="0"></polyline>
    <tag label="car" source="manual"></tag>
    """
    done = convert(write(tmp_path / "task", image(0, "seq/a.png", shapes, subset="Train", task_id="5")))
    assert done.status == 0, done.output
    assert done.names == ("background", "road", "car", "sign")
    expected = square((5, 0, 40, 60, 1), (10, 10, 20, 30, 2))
    expected[30:33, 40:45][region > 0] = 3
    np.testing.assert_array_equal(done.masks["a.png"], expected)
    assert done.splits == {"train": ["a.png"]}
    for kind in ("box", "polyline", "tag"):
        assert f"1 shape of type {kind} skipped" in done.output


BAD = [
    GOOD.replace("5.00,5.00;", "nan,5.00;"),
    GOOD.replace("5.00,5.00;", "inf,5.00;"),
    GOOD.replace("5.00,5.00;", "1e9,5.00;"),
    GOOD.replace("5.00,5.00;", "5.00;"),
    GOOD.replace("5.00,5.00;", "x,5.00;"),
    GOOD.replace("5.00,5.00;9.00,5.00;", ""),
    GOOD.replace('label="car" ', ""),
    GOOD.replace('z_order="0"', 'z_order="first"'),
    '<polygon label="car"/>',
    '<mask label="car" rle="1, 2" left="0" top="0" width="5" height="3"/>',
    '<mask label="car" rle="-1, 16" left="0" top="0" width="5" height="3"/>',
    '<mask label="car" rle="x" left="0" top="0" width="5" height="3"/>',
    '<mask label="car" rle="15" left="0" top="0" width="5"/>',
    '<mask label="car" rle="99999999999999999999" left="0" top="0" width="5" height="3"/>',
    '<mask label="car" rle="15" left="0" top="0" width="5000000" height="3000000"/>',
    '<mask label="car" rle="15" left="nan" top="0" width="5" height="3"/>',
    '<ellipse label="car" cx="1" cy="inf" rx="3" ry="4"/>',
]


@pytest.mark.parametrize("bad", BAD, ids=range(len(BAD)))
def test_a_damaged_shape_is_reported_and_the_others_are_drawn(
    bad: str, convert: Callable[..., Any], photo: Callable[..., Path], square: Callable[..., Any], tmp_path: Path
) -> None:
    photo(tmp_path / "task/images/a.png")
    photo(tmp_path / "task/images/b.png")
    done = convert(write(tmp_path / "task", image(0, "a.png", GOOD + bad), image(1, "b.png", GOOD)))
    assert done.status == 1
    assert "image '0', shape 2" in done.output
    assert set(np.unique(done.masks["a.png"])) == {2, 255}
    np.testing.assert_array_equal(done.masks["b.png"], square((5, 5, 9, 9, 2)))


@pytest.mark.parametrize(
    "bad",
    [
        image(0, "../a.png", GOOD),
        image(0, "absent.png", GOOD),
        image(0, "", GOOD),
        image(0, "a.png", GOOD).replace('"60"', '"600"'),
        image(0, "a.png", GOOD).replace('"60"', '"x"'),
        image(0, "a.png", GOOD).replace('"60"', '"-60"'),
        image(0, "a.png", GOOD).replace('width="60"', ""),
    ],
    ids=range(7),
)
def test_a_damaged_image_does_not_stop_the_others(
    bad: str, convert: Callable[..., Any], photo: Callable[..., Path], tmp_path: Path
) -> None:
    photo(tmp_path / "task/images/a.png")
    photo(tmp_path / "task/images/b.png")
    done = convert(write(tmp_path / "task", bad, image(1, "b.png", GOOD)))
    assert (done.status, list(done.masks)) == (1, ["b.png"]), done.output


@pytest.mark.parametrize(
    ("head", "reason"),
    [
        (HEAD.replace("<annotations>", '<!DOCTYPE x [<!ENTITY a "b">]><annotations>'), "entities"),
        (HEAD + "<track></track>", "CVAT for images 1.1"),
        (HEAD + "<image", "as XML"),
        (HEAD.replace("utf-8", "utfN8"), "as XML"),
        (HEAD.replace("utf-8", "utf-7"), "as XML"),
        ("<annotations>", "no image is left"),
    ],
)
def test_xml_that_cannot_be_used_is_one_sentence(head: str, reason: str, tmp_path: Path) -> None:
    source = write(tmp_path / "task", head=head)
    run = CliRunner().invoke(app, ["convert", str(source), "--out", str(tmp_path / "out")])
    assert run.exit_code == 1
    assert reason in run.output
    assert "Traceback" not in run.output


def test_an_image_that_is_listed_twice_is_left_out(
    convert: Callable[..., Any], photo: Callable[..., Path], tmp_path: Path
) -> None:
    for name in ("a", "b"):
        photo(tmp_path / f"task/images/{name}.png")
    empty = GOOD.replace("car", "road")
    done = convert(write(tmp_path / "task", image(0, "a.png", GOOD), image(1, "b.png", GOOD), image(2, "a.png", empty)))
    assert done.status == 1
    assert list(done.masks) == ["b.png"]
    assert done.output.count("(a.png): the image is listed 2 times; left out.") == 2


def test_of_two_files_none_is_read_alone(photo: Callable[..., Path], tmp_path: Path) -> None:
    photo(tmp_path / "images/a.png")
    write(tmp_path, image(0, "a.png", GOOD))
    (tmp_path / "other.xml").write_bytes((tmp_path / "annotations.xml").read_bytes())
    run = CliRunner().invoke(app, ["check", str(tmp_path)])
    assert run.exit_code == 1
    assert "annotations.xml and other.xml are both" in run.output
    assert "pass only one of the files" in run.output
