from __future__ import annotations

import contextlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from evitseg.data.annotations.label_studio import brush_alpha
from evitseg.data.annotations.regions import ShapeError

SIZE = (40, 60)


def encoded(values: NDArray[np.integer], literal: bool = False, widths: tuple[int, ...] = (3, 4, 8, 16)) -> list[int]:
    """Label Studio's run lengths of the values, written after its description: bit by bit."""
    bits = f"{len(values):032b}{7:05b}" + "".join(f"{width - 1:04b}" for width in widths)
    at = 0
    while at < len(values):
        length = 1
        while at + length < len(values) and (literal or values[at + length] == values[at]):
            length += 1
        length = min(length, 2 ** widths[3])
        index = next(i for i, width in enumerate(widths) if length <= 2**width)
        bits += f"{0 if literal else 1}{index:02b}{length - 1:0{widths[index]}b}"
        bits += "".join(f"{value:08b}" for value in values[at : at + (length if literal else 1)])
        at += length
    bits += "0" * (-len(bits) % 8)
    return [int(bits[i : i + 8], 2) for i in range(0, len(bits), 8)]


def brush(mask: NDArray[np.bool_], **options: Any) -> list[int]:
    """RGBA as the browser has it: a colour where the brush was, nothing elsewhere."""
    rgba = np.zeros((*mask.shape, 4), np.uint8)
    rgba[mask] = (12, 200, 7, 255)
    return encoded(rgba.ravel(), **options)


def result(kind: str, value: dict[str, Any], label: str | None, **more: Any) -> dict[str, Any]:
    labels = {} if label is None else {kind: [label]}
    return {
        "id": f"r-{kind}-{label}",
        "type": kind,
        "value": value | labels,
        "origin": "manual",
        "to_name": "image",
        "from_name": "tag",
        "image_rotation": 0,
        "original_width": SIZE[1],
        "original_height": SIZE[0],
    } | more


def polygon(top: float, left: float, bottom: float, right: float, label: str = "car", **more: Any) -> dict[str, Any]:
    """Corners in per cent."""
    points = [[left, top], [right, top], [right, bottom], [left, bottom]]
    value = {"points": [[100 * x / SIZE[1], 100 * y / SIZE[0]] for x, y in points], "closed": True}
    return result("polygonlabels", value, label, **more)


def task(number: int, image: str, results: list[Any], **more: Any) -> dict[str, Any]:
    annotation = {
        "id": 100 + number,
        "completed_by": 1,
        "result": results,
        "was_cancelled": False,
        "ground_truth": False,
        "created_at": "2025-01-01T00:00:00.000000Z",
        "updated_at": "2025-01-01T00:00:00.000000Z",
        "lead_time": 9.5,
    }
    return {
        "id": number,
        "annotations": [annotation],
        "file_upload": image.rsplit("/", 1)[-1],
        "drafts": [],
        "predictions": [],
        "data": {"image": image},
        "meta": {},
        "project": 3,
    } | more


def write(path: Path, tasks: list[Any]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(tasks))
    return path


@pytest.mark.parametrize("literal", [False, True])
def test_a_brush_is_decoded_whatever_its_runs_are(literal: bool) -> None:
    rng = np.random.default_rng(0)
    for widths in ((3, 4, 8, 16), (1, 2, 4, 12)):
        mask = rng.random(SIZE) < 0.3
        mask[:20] = False
        np.testing.assert_array_equal(brush_alpha(brush(mask, literal=literal, widths=widths), SIZE) > 0, mask)


def test_damaged_brushes_are_refused_before_memory_is_taken() -> None:
    good = brush(np.eye(*SIZE, dtype=bool))
    huge = [255, 255, 255, 255, *good[4:]]
    for bad in (good[:-3], good[:5], [], huge, [1, 2, -3], [1, 2, 300], ["1"], None, "x", [0] * 4000, [255] * 4000):
        with pytest.raises(ShapeError, match="brush"):
            brush_alpha(bad, SIZE)
    with pytest.raises(ShapeError, match="brush"):
        brush_alpha(good, (41, 60))
    rng = np.random.default_rng(0)
    for _ in range(300):
        bad = list(good)
        bad[int(rng.integers(4, len(bad)))] ^= 1 << int(rng.integers(8))
        with contextlib.suppress(ShapeError):
            assert brush_alpha(bad, SIZE).shape == SIZE


def test_every_kind_of_area_of_a_json_export_is_drawn(
    convert: Callable[..., Any], photo: Callable[..., Path], square: Callable[..., Any], tmp_path: Path
) -> None:
    photo(tmp_path / "images/0a1b2c3d-street.png")
    photo(tmp_path / "images/deep/second.png")
    stroke = np.zeros(SIZE, bool)
    stroke[30:36, 10:50] = True
    box = {"x": 0, "y": 0, "width": 10, "height": 25, "rotation": 0}
    source = write(
        tmp_path / "project-3-at-2025.json",
        [
            task(
                1,
                "/data/upload/3/0a1b2c3d-street.png",
                [
                    polygon(5, 10, 25, 40),
                    result("brushlabels", {"format": "rle", "rle": brush(stroke)}, "road"),
                    result("rectanglelabels", box, "sign"),
                    result("keypointlabels", {"x": 1, "y": 1, "width": 1}, "sign"),
                    # With <Labels> beside <Polygon> a shape and its class are two results of one id.
                    result("polygon", polygon(12, 20, 18, 30)["value"] | {"polygonlabels": []}, None, id="twin"),
                    result("labels", polygon(12, 20, 18, 30)["value"] | {"polygonlabels": []}, "sign", id="twin"),
                ],
            ),
            task(2, "/data/local-files/?d=images/deep/second.png", [polygon(0, 0, 40, 60)]),
        ],
    )
    done = convert(source)
    assert done.status == 0, done.output
    assert done.names == ("background", "car", "road", "sign")
    expected = square((5, 10, 25, 40, 1), (30, 10, 36, 50, 2), (0, 0, 10, 6, 3), (12, 20, 18, 30, 3))
    np.testing.assert_array_equal(done.masks["0a1b2c3d-street.png"], expected)
    np.testing.assert_array_equal(done.masks["second.png"], square((0, 0, 40, 60, 1)))
    assert "type keypointlabels" in done.output


def test_json_min_gives_the_same_masks(
    convert: Callable[..., Any], photo: Callable[..., Path], square: Callable[..., Any], tmp_path: Path
) -> None:
    photo(tmp_path / "a.png")
    stroke = np.zeros(SIZE, bool)
    stroke[30:36, 10:50] = True
    size = {"original_width": 60, "original_height": 40}
    row = {
        "image": "/data/upload/1/a.png",
        "id": 4,
        "tag": [{"format": "rle", "rle": brush(stroke), "brushlabels": ["road"]} | size],
        "shape": [polygon(5, 10, 25, 40)["value"] | size],
        "choice": "sunny",
        "annotator": 1,
        "annotation_id": 7,
        "created_at": "2025-01-01T00:00:00Z",
        "updated_at": "2025-01-01T00:00:00Z",
        "lead_time": 1.5,
    }
    done = convert(write(tmp_path / "min.json", [row]))
    assert done.status == 0, done.output
    np.testing.assert_array_equal(done.masks["a.png"], square((5, 10, 25, 40, 1), (30, 10, 36, 50, 2)))


def test_the_newest_finished_annotation_counts(
    convert: Callable[..., Any], photo: Callable[..., Path], square: Callable[..., Any], tmp_path: Path
) -> None:
    photo(tmp_path / "a.png")
    photo(tmp_path / "b.png")
    many = task(1, "a.png", [polygon(0, 0, 5, 5)])
    newer = many["annotations"][0] | {"result": [polygon(5, 5, 9, 9)], "updated_at": "2025-02-01T00:00:00Z"}
    cancelled = newer | {"result": [], "was_cancelled": True, "updated_at": "2025-03-01T00:00:00Z"}
    many["annotations"] = [newer, *many["annotations"], cancelled]
    done = convert(write(tmp_path / "x.json", [many, task(2, "b.png", [], annotations=[cancelled])]))
    assert done.status == 0, done.output
    np.testing.assert_array_equal(done.masks["a.png"], square((5, 5, 9, 9, 1)))
    assert list(done.masks) == ["a.png"]
    assert "1 task with several annotations" in done.output
    assert "1 task without a finished annotation" in done.output


BAD = [
    polygon(0, 0, float("nan"), 5),
    polygon(0, 0, 1e9, 5),
    polygon(0, 0, 5, 5, image_rotation=90),
    polygon(0, 0, 5, 5) | {"value": {"points": [[1, 1], [2, 2], [3, 3]], "closed": False, "polygonlabels": ["car"]}},
    result("polygonlabels", {"points": [[1, 1], [2]]}, "car"),
    result("polygonlabels", {"points": 5}, "car"),
    result("brushlabels", {"format": "rle", "rle": [1, 2, 3]}, "car"),
    result("rectanglelabels", {"x": None, "y": 0, "width": 5, "height": 5}, "car"),
    result("bitmasklabels", {"imageDataURL": "data:,"}, "car"),
    result("polygonlabels", {"points": [], "polygonlabels": ["a", "b"]}, None),
    result("polygonlabels", {"points": [], "polygonlabels": [{}]}, None),
    {"type": "polygonlabels", "value": 7},
]


@pytest.mark.parametrize("bad", BAD, ids=range(len(BAD)))
def test_a_damaged_result_is_reported_and_the_others_are_drawn(
    bad: Any, convert: Callable[..., Any], photo: Callable[..., Path], square: Callable[..., Any], tmp_path: Path
) -> None:
    photo(tmp_path / "a.png")
    photo(tmp_path / "b.png")
    good = polygon(5, 5, 9, 9)
    done = convert(write(tmp_path / "x.json", [task(1, "a.png", [good, bad]), task(2, "b.png", [good])]))
    assert done.status == 1, done.output
    assert "task 1, annotation 101" in done.output
    assert set(np.unique(done.masks["a.png"])) == {1, 255}
    np.testing.assert_array_equal(done.masks["b.png"], square((5, 5, 9, 9, 1)))


@pytest.mark.parametrize(
    "bad",
    [
        5,
        {"id": 9},
        task(9, "a.png", [5]),
        task(9, "nothing", []),
        task(9, "absent.png", [polygon(0, 0, 5, 5)]),
        task(9, "a.png", [polygon(0, 0, 5, 5, original_width="x")]),
        task(9, "a.png", [polygon(0, 0, 5, 5, original_width=10**9)]),
        task(9, "a.png", [polygon(0, 0, 5, 5, original_width=600)]),
        task(9, "a.png", [polygon(0, 0, 5, 5), polygon(0, 0, 5, 5, original_width=61)]),
        task(9, "http://[bad/a.jpg", [polygon(0, 0, 5, 5)]),
        task(9, "/data/x/..%2F..%2F\0.png", [polygon(0, 0, 5, 5)]),
    ],
    ids=range(11),
)
def test_a_damaged_task_does_not_stop_the_others(
    bad: Any, convert: Callable[..., Any], photo: Callable[..., Path], tmp_path: Path
) -> None:
    photo(tmp_path / "a.png")
    photo(tmp_path / "b.png")
    done = convert(write(tmp_path / "x.json", [task(2, "b.png", [polygon(5, 5, 9, 9)]), bad]))
    assert (done.status, list(done.masks)) == (1, ["b.png"]), done.output
