"""`evitseg compare`."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from evitseg.data.lists import Pair
from evitseg.evaluation.evaluate import evaluate, pair_predictor
from evitseg.labels import LabelSpace, numbered
from evitseg.loading import load
from evitseg.profiling import contestants, worker
from evitseg.runtime.evit_file import write_evit
from tests.runtime.programs import CONFIGS, manifest, program

Cli = Callable[..., Any]


@pytest.fixture
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Two models of five classes, the second one in the folder of a run, and images of two splits in data/."""
    monkeypatch.setattr(contestants, "ROUNDS", 2)
    monkeypatch.setattr(worker, "PAUSE_S", 0.0)
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    for split in ("train", "val"):
        for kind, shape in (("images", (64, 96, 3)), ("masks", (64, 96))):
            (tmp_path / "data" / kind / split).mkdir(parents=True)
            for i in range(3):
                pixels = rng.integers(0, 256 if kind == "images" else 5, shape, dtype=np.uint8)
                Image.fromarray(pixels).save(tmp_path / "data" / kind / split / f"{split}{i}.png")
    network = CONFIGS["mbconv"]
    made = program(network)
    write_evit(tmp_path / "a.evit", manifest(network), made)
    other = bytearray(made)
    weights = np.frombuffer(other, np.float32, offset=len(made) // 4 * 3)
    other[len(made) // 4 * 3 :] = (weights * np.float32(0.9)).tobytes()
    write_evit(tmp_path / "b.evit", replace(manifest(network), name="other"), bytes(other))
    return [Path("a.evit"), Path("b.evit")]


def test_runs_are_compared_with_the_first(models: list[Path], cli: Cli) -> None:
    run = cli("compare", *models, "--data", "data", "--resamples", "150", "--report", "c.html", "--json")
    assert run.status == 0, run.stderr
    found = json.loads(run.stdout)
    assert (found["split"], found["images"], found["resamples"], found["skipped"]) == ("val", 3, 150, [])
    first, second = found["runs"]
    assert [first["name"], second["name"], second["model"]] == ["a.evit", "b.evit", "other"]
    expected = [evaluate(load(model), "data") for model in models]
    assert [first["miou"]["value"], second["miou"]["value"]] == [report.miou for report in expected]
    assert first["miou_difference"] is None
    assert second["miou_difference"]["value"] == expected[1].miou - expected[0].miou
    assert second["miou_difference"]["low"] <= second["miou_difference"]["high"]
    assert list(second["iou_difference"]) == list(numbered(5).names)
    assert second["size_bytes"] == models[1].stat().st_size
    assert second["network_ms"] > 0
    assert found["most_different"][0]["different_pixels"] > 0
    assert "b.evit − a.evit" in Path("c.html").read_text(encoding="utf-8")


def test_the_table_names_the_models_and_classes(models: list[Path], cli: Cli) -> None:
    run = cli("compare", *models, "--data", "data", "--resamples", "100")
    assert run.status == 0, run.stderr
    assert "mIoU %" in run.stdout
    assert "class 4" in run.stdout
    assert run.stdout.splitlines()[-1].endswith("confidence intervals over the images")
    assert "3 images, split val; differences" in run.stdout


def test_one_image_has_no_intervals_and_images_without_masks_are_named(models: list[Path], cli: Cli) -> None:
    for name in ("val1", "val2"):
        Path(f"data/masks/val/{name}.png").unlink()
    run = cli("compare", *models, "--data", "data", "--report", "c.html")
    assert run.status == 0, run.stderr
    assert "1 image, split val; differences from a.evit in points, with no intervals" in run.stdout
    left_out = "left out: 2 files have no matching mask or image of the same name (data/images/val/val1.png, "
    assert left_out in run.stderr + run.stdout
    page = Path("c.html").read_text(encoding="utf-8")
    assert "<p>1 image. Differences" in page
    assert "confidence intervals need more than one image" in page
    assert "<circle" in page  # each difference is drawn, and within the scale
    run = cli("eval", "data", "--model", models[0])
    assert left_out in run.stderr + run.stdout


@pytest.mark.parametrize(("report", "problem"), [("c.pdf", "must end in .html or .htm"), ("d.html", "is a folder")])
def test_a_report_that_cannot_be_written_is_refused_first(
    models: list[Path], cli: Cli, report: str, problem: str
) -> None:
    Path("d.html").mkdir()
    for command in (("compare", *models, "--data"), ("eval", "--model", models[0])):
        run = cli(*command, "data", "--report", report)
        assert run.status == 2
        assert problem in run.stderr


def test_what_cannot_be_compared_is_a_sentence(models: list[Path], cli: Cli, tmp_path: Path) -> None:
    run = cli("compare", models[0], "--data", "data")
    assert run.status == 2
    assert "needs at least two models" in run.stderr
    network = CONFIGS["fused"]
    write_evit(tmp_path / "c.evit", manifest(network), program(network))
    run = cli("compare", models[0], "c.evit", "--data", "data")
    assert run.status == 1
    assert "c.evit has other classes than a.evit" in run.stderr


def test_classes_in_another_order_are_the_same_classes(models: list[Path]) -> None:
    labels = numbered(5)
    backwards = LabelSpace("backwards", labels.classes[::-1])
    one = contestants.load_contestants(["a.evit", "b.evit"], size=64)[0]
    # A large JPEG, which a segmenter decodes at a reduced size.
    image = np.random.default_rng(1).integers(0, 256, (64, 96, 3), dtype=np.uint8)
    Image.fromarray(image).resize((960, 640)).save("large.jpg")
    mask = one.segment(Path("large.jpg")).mask
    assert len(np.unique(mask)) > 1
    assert (mask != one.segment.mask(np.asarray(Image.open("large.jpg")))).any()
    reordered = pair_predictor(contestants.predictor(one, backwards))
    np.testing.assert_array_equal(reordered(Pair(Path("large.jpg"), Path("no mask"))), 4 - mask)
    assert contestants.predictor(one, labels) is one.segment


@pytest.mark.parametrize(
    ("sources", "names"),
    [
        (["runs/a/best.safetensors", "runs/b/best.safetensors"], ["a/best.safetensors", "b/best.safetensors"]),
        (["runs/old", "b0-camvid", "m.onnx"], ["old", "b0-camvid", "m.onnx"]),
        (["m.onnx", "m.onnx"], ["m.onnx (1)", "m.onnx (2)"]),
        (["m.onnx", "x/m.onnx"], ["m.onnx", "x/m.onnx"]),
        (["hf://anna/fields@v2", "hf://ben/fields"], ["anna/fields", "ben/fields"]),
        (["hf://anna/fields@v2", "hf://anna/fields/small.onnx"], ["fields", "small.onnx"]),
    ],
)
def test_names_are_as_short_as_they_can_be(sources: list[str], names: list[str]) -> None:
    assert contestants.short_names(sources) == names
