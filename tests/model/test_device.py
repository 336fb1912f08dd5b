"""The device that PyTorch runs a checkpoint on."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.optional import needs

needs("torch", "safetensors")

import torch

import evitseg
from evitseg.errors import ConfigError, EngineError, EvitsegError
from evitseg.labels import load_labels
from evitseg.manifest import Manifest, Training
from evitseg.model.checkpoints import save_checkpoint
from evitseg.preprocess import Preprocess
from tests.exported import bundled_onnx

GPU = torch.cuda.is_available() or torch.backends.mps.is_available()


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    labels = load_labels("camvid")
    network = evitseg.build("b0", num_classes=len(labels.classes))
    path = tmp_path / "b0.safetensors"
    save_checkpoint(
        network, Manifest("b0", network.config, labels, Preprocess(64), Training("random numbers", "none")), path
    )
    return path


def test_the_device_cpu_is_the_default(checkpoint: Path) -> None:
    image = np.random.default_rng(0).integers(0, 255, (1, 64, 96, 3), np.uint8)
    default = evitseg.load(checkpoint).engine(image)
    assert np.array_equal(evitseg.load(checkpoint, device="cpu").engine(image), default)


@pytest.mark.skipif(GPU, reason="auto chooses the GPU")
def test_auto_is_the_cpu_where_there_is_no_gpu(checkpoint: Path) -> None:
    assert evitseg.load(checkpoint, device="auto").info.device == evitseg.load(checkpoint).info.device


@pytest.mark.parametrize(
    ("device", "error", "word"),
    [
        ("cuda:99", EngineError, "no device cuda:99"),
        ("gpu", ConfigError, "unknown device 'gpu'"),
        ("cuda:x", ConfigError, "unknown device"),
        ("cpu:1", ConfigError, "unknown device"),
    ],
)
def test_a_device_that_is_not_there_is_an_error(
    device: str, error: type[EvitsegError], word: str, checkpoint: Path
) -> None:
    with pytest.raises(error, match=word):
        evitseg.load(checkpoint, device=device)


def test_engines_for_exported_models_run_on_the_cpu() -> None:
    with pytest.raises(EngineError, match="only the torch engine runs on cuda"):
        evitseg.load(bundled_onnx(), device="cuda")
