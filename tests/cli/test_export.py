"""`evitseg export`."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.optional import needs

needs("torch", "onnx")

from evitseg.errors import EngineError
from evitseg.exporters import best
from evitseg.exporters.export import export as converted
from evitseg.exporters.formats import FORMATS
from evitseg.manifest import Manifest
from evitseg.model.network import EfficientViT
from evitseg.runtime.engines import open_engine
from tests.exported import verified_on_small_images

Export = Callable[..., Any]


@pytest.fixture(scope="module")
def exported_once(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Export]:
    """`export`, which converts a format and its weights once and then copies the files."""
    made: dict[tuple[str, str], Path] = {}

    def export(network: tuple[EfficientViT, Manifest], to: str, path: Path, *, weights: str, **options: Any) -> None:
        form = FORMATS[to]
        if (to, weights) not in made:
            made[to, weights] = form.name(tmp_path_factory.mktemp("exported") / "m")
            converted(network, to, made[to, weights], weights=weights, **options)
        for own, copied in zip(form.files(made[to, weights]), form.files(path), strict=True):
            shutil.copy(own, copied)

    with verified_on_small_images(4):
        yield export


@pytest.fixture
def export_best(
    cli: Callable[..., Any], exported_once: Export, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Export:
    """Runs `evitseg export b0-camvid --to best` with two formats, on a machine where one of them does not run."""

    def only_openvino(path: Path, engine: str, *settings: Any) -> Any:
        if engine != "openvino":
            raise EngineError("this engine does not run here.")
        return open_engine(path, engine, *settings)

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(best, "RUNS", {"openvino": "openvino", "onnx": "onnxruntime"})
    monkeypatch.setattr(best, "ROUNDS", 1)
    monkeypatch.setattr(best, "open_engine", only_openvino)
    monkeypatch.setattr(best, "export", exported_once)
    return lambda *options: cli("export", "b0-camvid", "--to", "best", "--size", "256x384", *options)


def test_to_best_writes_the_winner_and_reports_every_candidate(export_best: Export, tmp_path: Path) -> None:
    needs("onnxruntime")
    run = export_best("--out", "m.safetensors", "--json")  # the winner's ending takes the place of this one
    assert run.status == 0, run.stderr
    content = json.loads(run.stdout)
    assert content["file"] == "m.xml"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m.bin", "m.xml"]
    assert {(one["to"], one["weights"]) for one in content["tried"]} == {
        (to, weights) for to in ("openvino", "onnx") for weights in ("float32", "float16")
    }
    for one in content["tried"]:
        assert (one["median_ms"] is None) == bool(one["problem"]) == (one["to"] == "onnx")
    assert content["best"] in content["tried"]


def test_to_best_prints_a_table_and_the_next_command(export_best: Export) -> None:
    needs("onnxruntime")
    run = export_best("--out", "m.ncnn.param")
    assert run.status == 0, run.stderr
    assert run.stdout.count("chosen") == 1
    assert "not measured: onnx: this engine does not run here" in run.stdout
    assert "keep next to it: m.bin" in run.stdout
    assert "evitseg predict IMAGES --model m.xml --engine openvino" in run.stdout
