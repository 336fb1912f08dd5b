from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from tests.exported import verified_on_small_images
from tests.optional import needs

needs("torch", "onnx")

from evitseg.errors import ExportError
from evitseg.exporters import best
from evitseg.exporters.best import AS_FAST, export_best
from evitseg.exporters.formats import FORMATS
from evitseg.loading import network_of
from evitseg.runtime.engines import open_engine
from tests.exporters.converters import needs_format


@pytest.fixture(autouse=True)
def _larger_images() -> Iterator[None]:
    with verified_on_small_images(4):
        yield


@pytest.mark.converters
def test_the_fastest_is_kept_and_every_other_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    needs_format("openvino", "ncnn")
    monkeypatch.setattr(best, "RUNS", {name: best.RUNS[name] for name in ("openvino", "ncnn")})
    told: list[str] = []
    path, kept, tried = export_best(*network_of("b0-camvid"), tmp_path / "m", size=(256, 384), tell=told.append)
    assert {(one.to, one.weights) for one in tried} == {
        (to, weights) for to in ("openvino", "ncnn") for weights in ("float32", "float16")
    }
    assert all(one.problem == "" and one.median_ms < float("inf") for one in tried)
    fastest = min(one.median_ms for one in tried)
    assert kept.median_ms <= AS_FAST * fastest
    assert kept.size_bytes == min(one.size_bytes for one in tried if one.median_ms <= AS_FAST * fastest)
    assert open_engine(path, kept.engine).manifest.preprocess.fixed == (256, 384)
    assert {file.name.split(".")[0] for file in tmp_path.iterdir()} == {"m"}
    assert told[-1] == "timing 4 candidates on images of 256x384"


def test_formats_of_one_size_wait_for_one(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(best, "RUNS", {"ncnn": "ncnn"})
    with pytest.raises(ExportError, match="nothing runs here: takes images of one size, and none was given"):
        export_best(*network_of("b0-camvid"), tmp_path / "m")
    assert list(tmp_path.iterdir()) == []


def test_what_scores_too_low_is_out_of_the_running(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    class Scores:
        miou = 70.0

        def __init__(self, *arguments: object) -> None:
            self.left = [60.0, 70.0]

        def score(self, engine: object) -> float:
            return self.left.pop(0)

    monkeypatch.setattr(best, "RUNS", {"openvino": "openvino"})
    monkeypatch.setattr(best, "Scored", Scores)
    monkeypatch.setattr(best, "PRECISIONS", ("float32",))
    form = replace(FORMATS["openvino"], weights=("float32", "float16"))
    monkeypatch.setitem(FORMATS, "openvino", form)
    _, kept, tried = export_best(*network_of("b0-camvid"), tmp_path / "m", size=(256, 384), data=tmp_path)
    assert [one.problem for one in tried] == ["loses 10.00 points of mIoU", ""]
    assert kept is tried[1]
