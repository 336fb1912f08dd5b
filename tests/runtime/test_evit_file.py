"""Model files of the core: a manifest and a program in one file, for Python and for C."""

from __future__ import annotations

import ctypes
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import evitseg
from evitseg.bundled import EXAMPLE_IMAGE
from evitseg.errors import ConfigError, EngineError, EvitsegError, WeightsError
from evitseg.labels import numbered
from evitseg.runtime.core import Core, library
from evitseg.runtime.evit_file import read_evit, set_evit_manifest, write_evit
from tests.runtime.programs import CONFIGS, manifest, program

NETWORK = CONFIGS["mbconv"]


@pytest.fixture
def model_file(tmp_path: Path) -> Path:
    write_evit(tmp_path / "model.evit", manifest(NETWORK), program(NETWORK))
    return tmp_path / "model.evit"


def image(height: int, width: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


def test_a_model_file_returns_what_was_written(model_file: Path) -> None:
    assert read_evit(model_file) == (manifest(NETWORK), program(NETWORK))
    assert model_file.read_bytes().index(program(NETWORK)) % 64 == 0  # where vectors may begin, in memory that maps it
    renamed = replace(manifest(NETWORK), name="renamed" * 50)
    set_evit_manifest(model_file, renamed)
    assert read_evit(model_file) == (renamed, program(NETWORK))


def test_the_core_reads_the_file_and_its_manifest(model_file: Path) -> None:
    content, model = model_file.read_bytes(), ctypes.c_void_p()
    pixels = image(64, 32)
    np.testing.assert_array_equal(Core(content)(pixels), Core(program(NETWORK))(pixels))
    core = library()
    for data, expected in ((content, manifest(NETWORK).to_json()), (program(NETWORK), "")):
        assert core.evs_model_load(data, len(data), 0, None, ctypes.byref(model)) == 0
        assert core.evs_model_manifest(model).decode() == expected
        core.evs_model_free(model)


def test_load_predict_and_info_take_the_file(model_file: Path, cli: Callable[..., Any], tmp_path: Path) -> None:
    segment = evitseg.load(model_file, size="native", precision="float32")
    assert segment.info.engine.startswith("evitseg core")
    np.testing.assert_array_equal(segment.logits(image(64, 96)), Core(program(NETWORK))(image(64, 96)))
    run = cli("predict", str(EXAMPLE_IMAGE), "--model", str(model_file), "--out", str(tmp_path / "out"))
    assert run.status == 0, run.stderr
    assert (tmp_path / "out" / "street_mask.png").exists()
    run = cli("info", str(model_file), "--json")
    assert run.status == 0, run.stderr
    assert json.loads(run.stdout)["classes"] == list(manifest(NETWORK).labels.names)
    for engine in ("torch", "openvino"):
        with pytest.raises(EngineError, match="model.evit"):
            evitseg.load(model_file, engine=engine)


def changed(content: bytes, at: int, to: bytes) -> bytes:
    return content[:at] + to + content[at + len(to) :]


@pytest.mark.parametrize(
    ("damage", "error", "in_program"),
    [
        (lambda whole: b"", WeightsError, False),
        (lambda whole: whole[:12], WeightsError, False),
        (lambda whole: whole[:100], WeightsError, False),
        (lambda whole: whole[whole.index(b"EVITSEG2") :], WeightsError, False),
        (lambda whole: changed(whole, 8, b"\xff" * 8), WeightsError, False),
        (lambda whole: changed(whole, 8, b"\xff\xff\xff\x7f"), WeightsError, False),
        (lambda whole: changed(whole, 20, b"\xff"), WeightsError, False),
        (lambda whole: changed(whole, 16, b"["), ConfigError, False),
        (lambda whole: changed(whole, whole.index(b"EVITSEG2"), b"X"), WeightsError, True),
        (lambda whole: whole[:-4], WeightsError, True),
        (lambda whole: whole[: whole.index(b"EVITSEG2")], WeightsError, True),
    ],
)
def test_a_damaged_file_is_one_sentence(
    damage: Callable[[bytes], bytes], error: type[EvitsegError], in_program: bool, model_file: Path
) -> None:
    whole = damage(model_file.read_bytes())
    model_file.write_bytes(whole)
    with pytest.raises(error, match=r"^[^\n]+\.$"):
        evitseg.load(model_file)
    if whole[:8] != b"EVITSEG2":  # for C, a program may stand alone
        try:
            Core(whole)
        except EngineError:
            return
        assert not in_program  # what is wrong is inside the manifest, which the core does not read


def test_a_manifest_of_another_network_is_refused(model_file: Path) -> None:
    other = replace(NETWORK, head=replace(NETWORK.head, num_classes=7))
    set_evit_manifest(model_file, replace(manifest(NETWORK), model=other, labels=numbered(7)))
    with pytest.raises(WeightsError, match="5 classes and its manifest 7"):
        evitseg.load(model_file)
