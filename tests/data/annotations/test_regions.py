from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from evitseg.data.annotations import regions
from evitseg.data.annotations.regions import Runs, ShapeError
from tests.optional import needs


def drawn(runs: Runs, size: tuple[int, int]) -> NDArray[np.uint8]:
    canvas = np.zeros(size[0] * size[1], np.uint8)
    regions.paint(canvas, runs, 1)
    return np.ascontiguousarray(canvas.reshape(size[::-1]).T)


@pytest.mark.parametrize("kind", ["near", "whole", "tenths", "far"])
def test_polygons_are_drawn_as_pycocotools_draws_them(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    needs("pycocotools")
    from pycocotools import mask

    monkeypatch.setattr(regions, "_CHUNK", 64)  # several parts even of small polygons
    monkeypatch.setattr(regions, "_LONG_RUN", 8)
    rng = np.random.default_rng(0)
    for _ in range(300):
        height, width = (int(side) for side in rng.integers(1, 60, 2))
        points = rng.uniform(*((-3000, 3000) if kind == "far" else (-20, 80)), (int(rng.integers(3, 12)), 2))
        points = np.round(points, {"whole": 0, "tenths": 1}.get(kind, 9))
        expected = mask.decode(mask.frPyObjects([points.ravel().tolist()], height, width))[..., 0]
        runs = regions.polygon(regions.coordinates(points.ravel().tolist(), (height, width)), (height, width))
        np.testing.assert_array_equal(drawn(runs, (height, width)), expected)
        assert runs.area == expected.sum()


def test_run_lengths_bitmaps_and_unions_are_the_pixels_they_stand_for() -> None:
    needs("pycocotools")
    from pycocotools import mask

    rng = np.random.default_rng(1)
    for _ in range(100):
        height, width = (int(side) for side in rng.integers(1, 40, 2))
        first, second = (rng.random((2, height, width)) < rng.random((2, 1, 1))).astype(np.uint8)
        counts = regions.compressed_run_lengths(mask.encode(np.asfortranarray(first))["counts"])
        runs = regions.run_lengths(counts, (height, width))
        other = regions.bitmap(second.astype(bool), 0, 0, (height, width))
        np.testing.assert_array_equal(drawn(runs, (height, width)), first)
        np.testing.assert_array_equal(drawn(other, (height, width)), second)
        both = regions.union([runs, other])
        np.testing.assert_array_equal(drawn(both, (height, width)), first | second)
        assert both.area == (first | second).sum()


@pytest.mark.parametrize("density", [0.0, 0.001, 0.3, 1.0])
@pytest.mark.parametrize("size", [(1, 1), (7, 5), (300, 401)])
def test_run_lengths_are_compressed_as_pycocotools_compresses_them(size: tuple[int, int], density: float) -> None:
    needs("pycocotools")
    from pycocotools import mask

    pixels = np.random.default_rng(0).random(size) < density
    expected = mask.encode(np.asfortranarray(pixels.astype(np.uint8)))["counts"].decode()
    assert regions.compress_run_lengths(pixels) == expected


def test_a_bitmap_that_leaves_the_image_is_cut_off() -> None:
    expected = np.zeros((4, 5), np.uint8)
    expected[:2, 3:] = 1
    np.testing.assert_array_equal(drawn(regions.bitmap(np.ones((3, 9), bool), -1, 3, (4, 5)), (4, 5)), expected)
    assert regions.bitmap(np.ones((3, 9), bool), 70, 3, (4, 5)).area == 0


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ([float("nan"), 0, 1, 1, 2, 2], "not finite"),
        ([float("inf"), 0, 1, 1, 2, 2], "not finite"),
        ([10**400, 0, 1, 1, 2, 2], "not finite"),
        ([1e300, 0, 1, 1, 2, 2], "far outside"),
        ([-1e8, 0, 1, 1, 2, 2], "far outside"),
        ([1, 1, 2, 2, 3], "5 numbers"),
        ([0, 0], "1 points"),
        ([1, 1, 2, 2], "2 points"),
        ([], "0 points"),
        ([[1, 1], [2, 2], [3]], "not a number"),
        (["1", 1, 2, 2, 3, 3], "not a number"),
        ([True, 1, 2, 2, 3, 3], "not a number"),
        ({}, "not a list"),
        (None, "not a list"),
    ],
)
def test_coordinates_that_cannot_be_drawn_are_refused(values: object, reason: str) -> None:
    with pytest.raises(ShapeError, match=reason):
        regions.polygon(regions.coordinates(values, (6, 8)), (6, 8))


@pytest.mark.parametrize(
    "text", ["zzzzz~~~", "o", "\u00e9", "oooooooooooooooooooo0", "PPPPPPPPPPPPP", "00", "1", " ", "/"]
)
def test_damaged_run_lengths_are_refused(text: str) -> None:
    with pytest.raises(ShapeError, match="run lengths"):
        regions.run_lengths(regions.compressed_run_lengths(text), (60, 80))


@pytest.mark.parametrize("counts", [[1, 2], [4801], [-1, 4801], [2**63, 4800], [2**62] * 4, [4800.0], [None], [True]])
def test_run_lengths_of_another_image_are_refused(counts: list[object]) -> None:
    with pytest.raises(ShapeError, match="run lengths"):
        regions.run_lengths(counts, (60, 80))


def test_a_large_polygon_costs_its_outline_not_its_area() -> None:
    turn = np.linspace(0, 2 * np.pi, 500, endpoint=False)
    points = 3000 + 2900 * np.stack([np.cos(turn), np.sin(turn)], axis=1)
    runs = regions.polygon(points, (6000, 6000))
    assert runs.starts.nbytes + runs.ends.nbytes < 200_000
    assert runs.area == pytest.approx(np.pi * 2900**2, rel=1e-3)


def test_ellipses_and_boxes_have_their_area() -> None:
    ellipse = regions.ellipse(50, 40, 30, 20, 0, (80, 100))
    assert ellipse.area == pytest.approx(np.pi * 30 * 20, rel=0.01)
    assert regions.ellipse(50, 40, 20, 30, 90, (80, 100)).area == pytest.approx(ellipse.area, rel=0.01)
    expected = np.zeros((6, 8), np.uint8)
    expected[1:4, 2:7] = 1
    np.testing.assert_array_equal(drawn(regions.box(2, 1, 7, 4, (6, 8)), (6, 8)), expected)
