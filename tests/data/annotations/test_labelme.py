from __future__ import annotations

import base64
import io
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from evitseg.cli import app
from evitseg.data.layouts import find_dataset
from evitseg.errors import DatasetError
from evitseg.raster.masks import read_truth


def shape(label: Any, points: Any, kind: str = "polygon", **more: Any) -> dict[str, Any]:
    """As Labelme 5 and 6 write it."""
    return {
        "label": label,
        "points": points,
        "group_id": None,
        "description": "",
        "shape_type": kind,
        "flags": {},
        "mask": None,
    } | more


def box(top: float, left: float, bottom: float, right: float) -> list[list[float]]:
    return [[left, top], [right, top], [right, bottom], [left, bottom]]


def write(path: Path, shapes: list[dict[str, Any]], **more: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    content: dict[str, Any] = {
        "version": "5.5.0",
        "flags": {},
        "shapes": shapes,
        "imagePath": f"{path.stem}.jpg",
        "imageData": None,
        "imageHeight": 40,
        "imageWidth": 60,
    }
    path.write_text(json.dumps(content | more, ensure_ascii=False, indent=2), encoding="utf-8")
    return path


def png(mask: Any) -> str:
    file = io.BytesIO()
    Image.fromarray(np.asarray(mask, np.uint8)).save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


def test_every_shape_with_an_area_is_drawn_in_the_files_order(
    convert: Callable[..., Any], photo: Callable[..., Path], square: Callable[..., Any], tmp_path: Path
) -> None:
    photo(tmp_path / "d/a.jpg")
    brush = np.eye(4, 5)
    write(
        tmp_path / "d/a.json",
        [
            shape("road", box(10, 0, 40, 60)),
            shape("car", [[5, 5], [15, 20]], "rectangle"),
            shape("car", [[50, 39], [40, 30]], "rectangle"),
            shape("__ignore__", box(0, 0, 4, 4)),
            shape("_background_", box(20, 20, 30, 30)),
            shape("tree", [[30, 2], [34, 5]], "mask", mask=png(brush)),
            shape("sign", [[0, 0], [9, 9]], "line"),
        ],
    )
    done = convert(tmp_path / "d")
    assert done.status == 0, done.output
    assert done.names == ("background", "car", "road", "tree")
    expected = square(
        (10, 0, 40, 60, 2), (5, 5, 20, 15, 1), (30, 40, 39, 50, 1), (0, 0, 4, 4, 255), (20, 20, 30, 30, 0)
    )
    expected[2:6, 30:35][brush > 0] = 3
    np.testing.assert_array_equal(done.masks["a.jpg"], expected)
    assert "1 shape of type line skipped" in done.output


def test_a_circle_is_round(convert: Callable[..., Any], photo: Callable[..., Path], tmp_path: Path) -> None:
    photo(tmp_path / "d/a.jpg")
    write(tmp_path / "d/a.json", [shape("ball", [[30, 20], [30, 32]], "circle")])
    mask = convert(tmp_path / "d").masks["a.jpg"]
    rows, columns = np.mgrid[:40, :60] + 0.5
    expected = (columns - 30) ** 2 + (rows - 20) ** 2 < 12**2
    assert (mask == 1)[expected].mean() > 0.98
    assert abs(int(mask.sum()) - int(expected.sum())) < 12


def test_images_may_be_inside_the_json_or_anywhere_it_names(
    convert: Callable[..., Any], photo: Callable[..., Path], tmp_path: Path
) -> None:
    area = [shape("x", box(1, 1, 9, 9))]
    data = photo(tmp_path / "elsewhere/in.jpg").read_bytes()
    photo(tmp_path / "photos/up.jpg")
    write(tmp_path / "d/train/up.json", area, imagePath="..\\..\\photos\\up.jpg")
    write(tmp_path / "d/train/in.json", area, imageData=base64.b64encode(data).decode())
    write(tmp_path / "d/val/lost.json", area)
    write(tmp_path / "d/val/b.json", area)
    photo(tmp_path / "d/val/b.jpg")
    done = convert(tmp_path / "d")
    assert done.status == 1
    assert "lost.json" in done.output
    assert done.splits == {"train": ["in.jpg", "up.jpg"], "val": ["b.jpg"]}
    assert (tmp_path / "converted/images/train/in.jpg").read_bytes() == data


BAD = [
    shape("x", [[1, 1], [2, 2]]),
    shape("x", [[1, 1], [2, float("nan")], [3, 3]]),
    shape("x", [[1, 1], [2, 1e9], [3, 3]]),
    shape("x", None),
    shape("x", "points"),
    shape("x", [[1, 1]], "circle"),
    shape("x", [[1, 1], [float("inf"), 2]], "circle"),
    shape("x", [[1, 1], [2, 2], [3, 3]], "rectangle"),
    shape("x", box(1, 1, 9, 9), "spline"),
    shape(None, box(1, 1, 9, 9)),
    shape("a\nb", box(1, 1, 9, 9)),
    shape("x", [[1, 1], [5, 5]], "mask", mask="%%%"),
    shape("x", [[1, 1], [5, 5]], "mask", mask=png(np.ones((9, 9)))),
    shape("x", [[1, 1], [5, 5]], "mask"),
    5,
]


@pytest.mark.parametrize("bad", BAD, ids=range(len(BAD)))
def test_a_damaged_shape_is_reported_and_the_others_are_drawn(
    bad: Any, convert: Callable[..., Any], photo: Callable[..., Path], square: Callable[..., Any], tmp_path: Path
) -> None:
    photo(tmp_path / "d/a.jpg")
    photo(tmp_path / "d/b.jpg")
    write(tmp_path / "d/a.json", [shape("x", box(1, 1, 9, 9)), bad])
    write(tmp_path / "d/b.json", [shape("x", box(1, 1, 9, 9))])
    done = convert(tmp_path / "d")
    assert done.status == 1
    assert "a.json: shapes[1]" in done.output.replace("\n", "")
    assert set(np.unique(done.masks["a.jpg"])) == {1, 255}
    np.testing.assert_array_equal(done.masks["b.jpg"], square((1, 1, 9, 9, 1)))


@pytest.mark.parametrize(
    "text",
    ["", "[", "[]", '{"shapes": 5, "imagePath": "a"}', '{"shapes": [], "imagePath": 5}', "[" * 99999, "\0",
     '{"shapes": [], "imagePath": "a.jpg", "imageHeight": "x", "imageWidth": 5}',
     '{"shapes": [], "imagePath": "a.jpg", "imageHeight": 50, "imageWidth": 60}'],
)  # fmt: skip
def test_a_damaged_file_does_not_stop_the_others(
    text: str, convert: Callable[..., Any], photo: Callable[..., Path], tmp_path: Path
) -> None:
    photo(tmp_path / "d/a.jpg")
    photo(tmp_path / "d/b.jpg")
    write(tmp_path / "d/b.json", [shape("x", box(1, 1, 9, 9))])
    (tmp_path / "d/a.json").write_text(text)
    done = convert(tmp_path / "d")
    assert (done.status, list(done.masks)) == (1, ["b.jpg"])
    assert "a.json" in done.output


def test_labels_txt_gives_the_order_of_classes_and_so_does_the_option(
    convert: Callable[..., Any], photo: Callable[..., Path], tmp_path: Path
) -> None:
    photo(tmp_path / "d/a.jpg")
    write(tmp_path / "d/a.json", [shape("x", box(1, 1, 9, 9)), shape("y", box(10, 10, 20, 20))])
    photo(tmp_path / "d/later.jpg")
    (tmp_path / "d/settings.json").write_text('{"theme": "dark"}')
    labels = tmp_path / "d/labels.txt"
    labels.write_text("__ignore__\n_background_\ny\nx\n")
    done = convert(tmp_path / "d")
    assert (done.status, done.names) == (0, ("background", "y", "x"))
    assert "1 image without a JSON file skipped" in done.output
    assert "1 JSON file of another kind skipped" in done.output
    shutil.move(labels, tmp_path / "names.txt")
    (tmp_path / "names.txt").write_text("y\n_background_\n")
    done = convert(tmp_path / "d", "--labels", str(tmp_path / "names.txt"))
    assert done.names == ("y", "background")
    assert "1 object of class 'x', which is not in --labels" in done.output
    assert (done.masks["a.jpg"][[5, 15, 30], [5, 15, 30]] == [255, 0, 1]).all()


def test_check_reads_the_folder_as_it_is_and_names_the_command_that_keeps_the_masks(
    photo: Callable[..., Path], square: Callable[..., Any], tmp_path: Path
) -> None:
    for level, name in enumerate("abc"):
        photo(tmp_path / f"my data/{name}.jpg", level)
        write(tmp_path / f"my data/{name}.json", [shape("x", box(1, 1, 9, 9))] + [shape("y", [[1, 1]])] * (name == "c"))
    run = CliRunner().invoke(app, ["check", str(tmp_path / "my data"), "--workers", "1"])
    assert run.exit_code == 0, run.output
    assert "Labelme annotations" in run.output
    assert "ready to train" in run.output
    assert "c.json: shapes[1] (c.jpg) has a polygon of 1 points" in run.output
    assert f"evitseg convert '{tmp_path}/my data' --out DATA keeps them" in run.output
    assert sorted(path.name for path in (tmp_path / "my data").iterdir()) == [
        f"{n}.{e}" for n in "abc" for e in ("jpg", "json")
    ]
    dataset = find_dataset(tmp_path / "my data")
    assert dataset.labels is not None
    first = dataset.pairs()[0]
    assert first.image == tmp_path / "my data/a.jpg"
    np.testing.assert_array_equal(read_truth(first.mask, dataset.labels), square((1, 1, 9, 9, 1)))


def test_eval_measures_against_shapes_and_reports_the_damaged_ones(
    convert: Callable[..., Any], photo: Callable[..., Path], tmp_path: Path
) -> None:
    for name in "ab":
        photo(tmp_path / f"d/{name}.jpg")
        write(tmp_path / f"d/{name}.json", [shape("x", box(1, 1, 9, 9))])
    convert(tmp_path / "d")
    write(tmp_path / "d/b.json", [shape("x", box(1, 1, 9, 9)), shape("x", [[1, 1]])])
    run = CliRunner().invoke(app, ["eval", str(tmp_path / "d"), "--masks", str(tmp_path / "converted/masks"), "--json"])
    assert run.exit_code == 0, run.output
    assert "b.json: shapes[1] (b.jpg) has a polygon of 1 points" in run.output
    assert json.loads(run.stdout)["miou"] == 1.0


def test_a_label_space_without_background_ignores_it_and_says_so(
    convert: Callable[..., Any], photo: Callable[..., Path], square: Callable[..., Any], tmp_path: Path
) -> None:
    photo(tmp_path / "d/a.jpg")
    photo(tmp_path / "d/b.jpg")
    write(tmp_path / "d/a.json", [shape("car", box(1, 1, 9, 9))])
    write(tmp_path / "d/b.json", [shape("car", [[1, 1]])])
    done = convert(tmp_path / "d", "--labels", "camvid")
    assert done.status == 1
    assert "have no background" in done.output
    assert "1 image skipped, the first b.jpg" in done.output
    assert set(np.unique(done.masks["a.jpg"])) == {done.names.index("car"), 255}


def test_masks_drawn_for_a_run_are_gone_after_it(photo: Callable[..., Path], tmp_path: Path) -> None:
    photo(tmp_path / "d/a.jpg")
    write(tmp_path / "d/a.json", [shape("x", box(1, 1, 9, 9))])
    code = (
        f"from evitseg import find_pairs; mask = find_pairs({str(tmp_path / 'd')!r})[0].mask; "
        "print(mask, mask.is_file())"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    mask, was_there = run.stdout.rsplit(maxsplit=1)
    assert was_there == "True"
    assert not Path(mask).parents[1].exists()


def test_many_images_are_to_be_converted_once(
    photo: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("evitseg.data.annotations.reading.MOST_DRAWN", 1)
    for name in "ab":
        photo(tmp_path / f"d/{name}.jpg")
        write(tmp_path / f"d/{name}.json", [shape("x", box(1, 1, 9, 9))])
    with pytest.raises(DatasetError, match=f"draw them once with: evitseg convert {tmp_path}/d --out DATA"):
        find_dataset(tmp_path / "d")
