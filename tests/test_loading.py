from __future__ import annotations

import dataclasses
import pickle
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

import evitseg
from evitseg.architecture import PUBLISHED_SEGMENTATION
from evitseg.bundled import DEFAULT_MODEL, bundled_models
from evitseg.errors import EngineError, WeightsError
from evitseg.loading import exported_path


def test_every_model_with_a_name_is_listed_once_and_one_is_the_default() -> None:
    models = evitseg.list_models()
    assert [m.name for m in models] == [*bundled_models(), *PUBLISHED_SEGMENTATION]
    assert [m.name for m in models if m.is_default] == [DEFAULT_MODEL]
    assert {m.name for m in models if m.origin == "bundled"} == set(bundled_models())


def test_a_listed_model_is_what_its_manifest_says() -> None:
    for model in evitseg.list_models():
        if model.origin == "bundled":
            manifest = evitseg.load(model.name).manifest
            assert model.name == manifest.name
            assert model.variant == manifest.model.variant
            assert model.dataset == manifest.labels.name
            assert model.parameters == manifest.cost.parameters
    with pytest.raises(dataclasses.FrozenInstanceError):
        model.name = "other"  # type: ignore[misc]


def test_a_loaded_segmenter_survives_pickling(photograph: NDArray[np.uint8]) -> None:
    segment = evitseg.load(size=64, threads=1, precision="float32", device="cpu")
    again = pickle.loads(pickle.dumps(segment))
    assert again.info == segment.info
    np.testing.assert_array_equal(again(photograph).mask, segment(photograph).mask)


def test_names_and_paths_of_exported_models_are_told_from_those_of_checkpoints() -> None:
    assert exported_path(None) == exported_path(DEFAULT_MODEL) == bundled_models()[DEFAULT_MODEL]
    assert exported_path("my/model.tflite") == Path("my/model.tflite")
    assert exported_path("my/model.safetensors") is None
    assert exported_path("b0-cityscapes") is None


@pytest.mark.parametrize("engine", ["openvino", "native", None])
def test_an_exported_model_runs_on_the_cpu_only(engine: str | None) -> None:
    with pytest.raises(EngineError, match="only the torch engine runs on cuda"):
        evitseg.load(engine=engine, device="cuda")


def test_a_checkpoint_that_is_not_there_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="no such file"):
        evitseg.load(tmp_path / "run.safetensors")
    with pytest.raises(EngineError, match="export it first"):
        evitseg.load(tmp_path / "run.safetensors", engine="litert")
