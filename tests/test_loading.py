from __future__ import annotations

import dataclasses
import pickle
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from numpy.typing import NDArray

import evitseg
from evitseg.architecture import PUBLISHED_SEGMENTATION
from evitseg.bundled import DEFAULT_MODEL, bundled_models
from evitseg.errors import ConfigError, EngineError, WeightsError
from evitseg.loading import model_file
from tests.optional import needs

if TYPE_CHECKING:
    from evitseg.model.network import EfficientViT


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


def test_names_and_paths_of_files_for_engines_are_told_from_what_needs_pytorch() -> None:
    assert model_file(None) == model_file(DEFAULT_MODEL) == bundled_models()[DEFAULT_MODEL]
    assert model_file("my/model.tflite") == Path("my/model.tflite")
    assert model_file("my/model.safetensors") == Path("my/model.safetensors")
    assert model_file("my/model.pt") is None
    assert model_file("b0-cityscapes") is None


@pytest.mark.parametrize("engine", ["openvino", "native", None])
def test_an_exported_model_runs_on_the_cpu_only(engine: str | None) -> None:
    with pytest.raises(EngineError, match="only the torch engine runs on cuda"):
        evitseg.load("model.onnx", engine=engine, device="cuda")
    if engine is not None:
        with pytest.raises(EngineError, match="only the torch engine runs on cuda"):
            evitseg.load(engine=engine, device="cuda")


def test_a_checkpoint_that_is_not_there_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="no such file"):
        evitseg.load(tmp_path / "run.safetensors")
    for engine in ("litert", "openvino"):
        with pytest.raises(EngineError, match="export it first"):
            evitseg.load(tmp_path / "run.safetensors", engine=engine)


def network() -> EfficientViT:
    import torch

    torch.manual_seed(0)
    return evitseg.build("b0", num_classes=5)


def test_a_network_in_pytorch_runs_as_its_saved_checkpoint(photograph: NDArray[np.uint8], tmp_path: Path) -> None:
    needs("torch")
    made = network().train()
    segment = evitseg.load(made, precision="float32", size=64, threads=1)
    assert segment.info.engine.startswith("evitseg core")
    assert len(segment.labels.classes) == 5
    evitseg.save_checkpoint(made, segment.manifest, tmp_path / "run.safetensors")
    saved = evitseg.load(tmp_path / "run.safetensors", precision="float32", size=64)
    expected = saved.logits(photograph)
    np.testing.assert_array_equal(segment.logits(photograph), expected)
    for values in made.parameters():
        values.data.zero_()
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(segment)).logits(photograph), expected)
    in_torch = evitseg.load(tmp_path / "run.safetensors", engine="torch", size=64)
    np.testing.assert_allclose(in_torch.logits(photograph), expected, atol=1e-5 * np.abs(expected).max())


def test_what_is_no_segmentation_network_cannot_be_loaded() -> None:
    needs("torch")
    import torch

    with pytest.raises(ConfigError, match="a Linear cannot be loaded"):
        evitseg.load(torch.nn.Linear(1, 1))  # type: ignore[arg-type]
    with pytest.raises(EngineError, match="the network: runs in native or torch; for openvino, export it first"):
        evitseg.load(network(), engine="openvino")


def test_weights_without_a_manifest_run_in_the_core(photograph: NDArray[np.uint8], tmp_path: Path) -> None:
    needs("torch")
    import torch
    from safetensors.torch import save_file

    state = network().state_dict()
    torch.save(state, tmp_path / "run.pt")
    save_file(state, tmp_path / "run.safetensors")
    one, other = (evitseg.load(tmp_path / f"run.{ending}", size=64) for ending in ("pt", "safetensors"))
    assert one.info.engine.startswith("evitseg core")
    np.testing.assert_array_equal(one.logits(photograph), other.logits(photograph))
