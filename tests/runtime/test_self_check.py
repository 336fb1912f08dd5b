from __future__ import annotations

import base64
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from evitseg.errors import ConfigError, EngineError, WeightsError
from evitseg.manifest import Manifest, parse_manifest
from evitseg.runtime import self_check
from evitseg.runtime.device_check import check_on_device
from evitseg.runtime.engines import open_engine
from evitseg.runtime.evit_file import read_evit, set_evit_manifest
from tests.runtime.checked import checked_model


def pixel(y: int, x: int, height: int, width: int, number: int) -> list[int]:
    """A pixel of the image by the formula in docs/reference/models.md."""
    v, u = 256 * y // height, 256 * x // width
    if v >= 170:
        color = [225, 225, 220] if abs(u - 128) < 4 and v // 12 % 2 == 0 else [90, 88, 94]
    elif u < 84 and v >= 28:
        color = [52, 60, 74] if u % 21 >= 11 and v % 24 >= 12 else [166, 118, 92]
    elif (u - 190) ** 2 + (v - 104) ** 2 < 2500:
        color = [56, 104, 48]
    elif v >= 150:
        color = [176, 170, 160]
    else:
        color = [120 + v // 2, 160 + v // 3, 228]
    p, q = (x + number - 1) % 31, y % 31
    return [part + (7 * p * p + 13 * q * q + 5 * p * q) % 31 - 15 for part in color]


@pytest.mark.parametrize(("size", "number"), [((64, 96), 1), ((96, 32), 4), ((256, 384), 2)])
def test_the_image_is_drawn_by_the_documented_formula(size: tuple[int, int], number: int) -> None:
    drawn = self_check.scene(*size, number)
    expected = [[pixel(y, x, *size, number) for x in range(size[1])] for y in range(size[0])]
    np.testing.assert_array_equal(drawn, expected)
    assert len(np.unique(drawn.reshape(-1, 3), axis=0)) > 100


@pytest.mark.parametrize(
    ("size", "classes", "grid"),
    [((64, 96), 5, (8, 12)), ((512, 1024), 11, (13, 27)), ((1024, 32), 19, (83, 2)), ((64, 64), 9000, (1, 1))],
)
def test_the_stored_places_are_spread_over_the_whole_image(
    size: tuple[int, int], classes: int, grid: tuple[int, int]
) -> None:
    assert self_check.grid_for(size, classes) == grid
    rows, columns = size[0] // 8, size[1] // 8
    logits = np.arange(rows * columns, dtype=np.float32).reshape(1, rows, columns)
    stored = self_check.stored_places(logits, grid)
    expected = [
        [(i * rows // grid[0]) * columns + j * columns // grid[1] for j in range(grid[1])] for i in range(grid[0])
    ]
    np.testing.assert_array_equal(stored[0], expected)


def test_the_core_agrees_with_itself_bit_for_bit(tmp_path: Path) -> None:
    path, manifest = checked_model(tmp_path)
    found = check_on_device(path, precision="float32")
    assert found.manifest == manifest
    assert found.agreement.agrees
    assert found.agreement.largest_difference == 0
    assert (found.agreement.equal_places, found.agreement.places) == (96, 96)
    assert found.agreement.tolerance == 1e-3
    assert found.placement.fell_back == {}
    assert found.info.precision == "float32"


def with_logits(path: Path, manifest: Manifest, logits: Any) -> None:
    assert manifest.self_check is not None
    text = base64.b64encode(np.asarray(logits, "<f4").tobytes()).decode()
    set_evit_manifest(path, replace(manifest, self_check=replace(manifest.self_check, logits=text)))


def test_other_logits_than_the_stored_ones_disagree(tmp_path: Path) -> None:
    path, manifest = checked_model(tmp_path)
    assert manifest.self_check is not None
    stored = self_check.expected_logits(manifest.self_check, 5, path)
    moved = stored.copy()
    moved[2, 3, 4] += 0.1 * np.abs(stored).max()
    with_logits(path, manifest, moved)
    found = check_on_device(path, precision="float32").agreement
    assert not found.agrees
    assert found.largest_difference == pytest.approx(0.1 * np.abs(stored).max() / np.abs(moved).max())
    with_logits(path, manifest, stored[[1, 0, 2, 3, 4]])  # as after a mistake with channels
    assert not check_on_device(path, precision="float32").agreement.agrees


def test_arithmetic_in_fewer_bits_has_its_own_limits(tmp_path: Path) -> None:
    path, manifest = checked_model(tmp_path)
    check = manifest.self_check
    assert check is not None
    expected = self_check.expected_logits(check, 5, path)
    logits = expected.copy()
    logits[0] += 0.1 * np.abs(expected).max()
    assert self_check.compare_logits(check, expected, expected, "float32").agrees
    found = {
        name: self_check.compare_logits(check, expected, logits, name) for name in ("float32", "bfloat16", "other")
    }
    assert {name: each.tolerance for name, each in found.items()} == {"float32": 1e-3, "bfloat16": 0.2, "other": 0.2}
    logits[:] = expected[::-1]  # most places have another class
    assert not self_check.compare_logits(replace(check, half_tolerance=1.0), expected, logits, "float16").agrees


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_logits_that_are_not_finite_never_agree(value: float, tmp_path: Path) -> None:
    path, manifest = checked_model(tmp_path)
    check = manifest.self_check
    assert check is not None
    expected = self_check.expected_logits(check, 5, path)
    logits = expected.copy()
    logits[1, 2, 3] = value
    found = self_check.compare_logits(check, expected, logits, "float16")
    assert found.largest_difference == np.inf
    assert not found.agrees


@pytest.mark.parametrize("damage", ["", "AAAA", "no base64!", "é", "with_nan"])
def test_damaged_logits_are_refused(damage: str, tmp_path: Path) -> None:
    path, manifest = checked_model(tmp_path)
    assert manifest.self_check is not None
    if damage == "with_nan":
        with_logits(path, manifest, np.full((5, 8, 12), np.nan))
    else:
        set_evit_manifest(path, replace(manifest, self_check=replace(manifest.self_check, logits=damage)))
    with pytest.raises(WeightsError, match="logits of its self-check are damaged"):
        check_on_device(path)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("size", [64, 100], "multiples of 32"),
        ("size", [16384, 16384], "more than .* pixels"),
        ("size", [64], "self_check"),
        ("grid", [0, 4], "must be between 1x1 and 8x12"),
        ("grid", [8, 13], "must be between 1x1 and 8x12"),
        ("tolerance", float("nan"), "between 0 and 1"),
        ("half_tolerance", 2.0, "between 0 and 1"),
        ("logits", None, "manifest.self_check.logits is None, not text"),
        ("lgoits", "", "lgoits"),
    ],
)
def test_a_manifest_with_an_impossible_self_check_is_refused(
    key: str, value: Any, message: str, tmp_path: Path
) -> None:
    _, manifest = checked_model(tmp_path)
    content = json.loads(manifest.to_json())
    content["self_check"][key] = value
    with pytest.raises(ConfigError, match=message):
        parse_manifest(json.dumps(content), "a.onnx")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"size": (8192, 16384)}, "has 8192x16384 pixels, and evitseg draws at most 16,777,216"),
        ({"tolerance": 1.0}, r"with a difference of up to 1 \(at most 0.9\)"),
        ({"half_tolerance": 0.95}, r"with a difference of up to 0.95 \(at most 0.9\)"),
        ({"min_equal": 0.0}, r"with 0% of equal classes \(at least 50%\)"),
    ],
)
def test_a_self_check_that_is_costly_or_passes_wrong_logits_is_refused(
    changes: dict[str, Any], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, manifest = checked_model(tmp_path)
    assert manifest.self_check is not None
    set_evit_manifest(path, replace(manifest, self_check=replace(manifest.self_check, **changes)))
    assert open_engine(path)(np.zeros((1, 32, 32, 3), np.uint8)).shape == (1, 5, 4, 4)  # the model itself runs

    def must_not_draw(*_: int) -> None:
        raise AssertionError

    monkeypatch.setattr(self_check, "scene", must_not_draw)
    with pytest.raises(WeightsError, match=message):
        check_on_device(path)


def test_what_cannot_be_checked_is_a_sentence(tmp_path: Path) -> None:
    path, manifest = checked_model(tmp_path)
    check = manifest.self_check
    assert check is not None
    with pytest.raises(EngineError, match="runs on the CPU, not on NPU"):
        check_on_device(path, device="npu")
    set_evit_manifest(path, replace(manifest, self_check=replace(check, image="scene-5")))
    with pytest.raises(WeightsError, match="uses the image 'scene-5'; update evitseg"):
        check_on_device(path)
    fixed = replace(manifest.preprocess, fixed=(64, 128))
    set_evit_manifest(path, replace(manifest, preprocess=fixed))
    with pytest.raises(WeightsError, match="another size than its images"):
        check_on_device(path)
    set_evit_manifest(path, replace(manifest, self_check=None))
    assert "self_check" not in json.loads(read_evit(path)[0].to_json())  # older versions can read it
    with pytest.raises(WeightsError, match="has no self-check; files that evitseg export writes have one"):
        check_on_device(path)
