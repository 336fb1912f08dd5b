"""`evitseg verify`."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from evitseg.runtime.evit_file import set_evit_manifest
from tests.runtime.checked import checked_model

Cli = Callable[..., Any]


def test_a_model_that_agrees_is_a_success(cli: Cli, tmp_path: Path) -> None:
    path, _ = checked_model(tmp_path)
    run = cli("verify", path, "--precision", "float32")
    assert run.status == 0, run.stderr
    first, difference, equal, engine, device, fell_back = run.stdout.splitlines()
    assert first == f"{path}: agrees on an image of 64x96"
    assert difference == "largest difference: 0.0e+00 of the largest logit (at most 0.001)"
    assert equal == "equal classes: 96 of 96 places (at least 90%)"
    assert engine.startswith("engine: evitseg core (")
    assert device.startswith("device: ")
    assert fell_back.startswith("fell back: no operator (the core runs every operation itself")


def test_the_bundled_model_gives_pytorchs_logits_in_the_core(cli: Cli) -> None:
    run = cli("verify", "b0-camvid", "--precision", "float32", "--json")
    assert run.status == 0, run.stderr
    found = json.loads(run.stdout)
    assert found["agrees"]
    assert 0 < found["largest_difference"] < 1e-4  # PyTorch sums in another order
    assert found["tolerance"] == 1e-3
    assert found["model"] == "b0-camvid"
    assert cli("verify", "b0-camvid").stdout.startswith("b0-camvid: agrees on an image of 256x384")


@pytest.mark.parametrize("name", ["b0-cityscapes", "photo.jpg"])
def test_what_is_no_exported_model_is_a_sentence_that_says_what_is(name: str, cli: Cli) -> None:
    run = cli("verify", name)
    assert run.status == 1
    assert run.stderr.startswith(f"error: {name}: only exported models (.onnx, ")
    assert run.stderr.endswith(") and b0-camvid can be verified; export it first.\n")


def test_a_model_that_disagrees_is_a_failure_with_its_numbers(cli: Cli, tmp_path: Path) -> None:
    path, manifest = checked_model(tmp_path)
    check = manifest.self_check
    assert check is not None
    half = len(check.logits) // 8 * 4  # a whole number of bytes: the map's halves change places
    set_evit_manifest(
        path, replace(manifest, self_check=replace(check, logits=check.logits[half:] + check.logits[:half]))
    )
    run = cli("verify", path, "--precision", "float32", "--json")
    assert run.status == 1
    found = json.loads(run.stdout)
    assert found["agrees"] is False
    assert found["largest_difference"] > 0.1 > found["tolerance"] == 1e-3
    assert 0 <= found["equal_classes"] < found["min_equal"] == 0.9
    assert (found["places"], found["size"], found["model"]) == (96, [64, 96], "test")
    assert found["fell_back"] == {}
    assert "disagrees with the logits that the file says it must give" in found["error"]
    assert "DISAGREES" in cli("verify", path, "--precision", "float32").stdout
