from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.optional import needs

needs("torch", "onnx", "onnxruntime")

import onnx
import torch

import evitseg
from evitseg.architecture import BACKBONES, ModelConfig, model_config
from evitseg.errors import ConfigError, ExportError, WeightsError
from evitseg.exporters import export as export_module
from evitseg.exporters.export import export
from evitseg.exporters.onnx import onnx_graph, write_onnx
from evitseg.exporters.verify import TOLERANCE, example_images, rounded_to_bfloat16, verify
from evitseg.labels import numbered
from evitseg.manifest import Manifest, Training
from evitseg.model.engine import TorchEngine
from evitseg.model.fold import folded
from evitseg.model.layers import ConvNormAct
from evitseg.model.network import EfficientViT
from evitseg.preprocess import Preprocess
from evitseg.runtime.engines import open_engine
from tests.networks import lively


def manifest_of(model: EfficientViT, size: int | None = 256) -> Manifest:
    return Manifest(
        "test", model.config, numbered(model.config.num_classes), Preprocess(size), Training("generated", "CC0")
    )


@pytest.fixture(scope="module")
def model() -> EfficientViT:
    return lively(evitseg.build("b0", 5))


CONFIGS: dict[str, ModelConfig] = {
    "b0": model_config("b0", 5),
    "b0-relu": model_config("b0-relu", 3),
    "b1 for ade20k": model_config("b1", 150, "b1-ade20k"),
    "l0": model_config("l0", 5),
    "l1 for ade20k": model_config("l1", 5, "l1-ade20k"),
    "timm's epsilon": replace(model_config("b0", 3), backbone=replace(BACKBONES["b0"], attention_eps=1e-2)),
    "three scales": replace(model_config("b0", 3), backbone=replace(BACKBONES["b0"], attention_kernels=(3, 5, 7))),
    "one scale": replace(model_config("b0", 3), backbone=replace(BACKBONES["b0"], attention_kernels=())),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_the_exported_model_gives_the_networks_logits_at_any_size(name: str, tmp_path: Path) -> None:
    model = lively(EfficientViT(CONFIGS[name]))
    write_onnx(model, manifest_of(model), tmp_path / "a.onnx")
    engines = [open_engine(tmp_path / "a.onnx", engine, "float32") for engine in ("openvino", "onnxruntime")]
    network = TorchEngine(model, manifest_of(model))
    rng = np.random.default_rng(0)
    for batch, height, width in ((1, 32, 32), (2, 64, 160), (3, 96, 32)):
        images = rng.integers(0, 256, (batch, height, width, 3), np.uint8)
        expected = network(images)
        for engine in engines:
            actual = engine(images)
            assert actual.shape == expected.shape == (batch, model.config.num_classes, height // 8, width // 8)
            assert np.abs(actual - expected).max() / np.abs(expected).max() < 1e-4, engine.info.engine


def test_the_exported_file_is_verified_and_carries_its_manifest(
    model: EfficientViT, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(export_module, "example_images", example_images)  # whole, as people's exports have them
    path, manifest = export((model, manifest_of(model)), "onnx", tmp_path / "new" / "a.onnx")
    assert manifest.verification is not None
    assert manifest.verification.images == len(example_images())
    assert open_engine(path).manifest == manifest
    assert [p.name for p in path.parent.iterdir()] == ["a.onnx"]


def test_float16_weights_halve_the_file_and_keep_the_masks(b0_checkpoint: Path, tmp_path: Path) -> None:
    small = Preprocess(256)
    full, _ = export(b0_checkpoint, out=tmp_path / "full.onnx", preprocess=small)
    half, manifest = export(b0_checkpoint, out=tmp_path / "half.onnx", weights="float16", preprocess=small)
    assert half.stat().st_size < 0.6 * full.stat().st_size
    assert manifest.verification is not None
    assert 1e-4 < manifest.verification.largest_difference < TOLERANCE["float16"][0]  # rounded, and no more than that
    with pytest.raises(ExportError, match="larger than float16"):
        model = lively(evitseg.build("b0", 3))
        model.state_dict()["head.outputs.classify.conv.weight"][0] = 1e6
        write_onnx(model, replace(manifest_of(model), weights="float16"), tmp_path / "large.onnx")


@pytest.fixture
def broken_writer(monkeypatch: pytest.MonkeyPatch) -> None:
    """A converter that gets one weight wrong."""
    import evitseg.exporters.onnx as module

    def wrong(conv: ConvNormAct) -> tuple[NDArray[np.float64], NDArray[np.float64] | None]:
        weight, bias = folded(conv)
        if weight.shape == (8, 3, 3, 3):
            weight = weight.copy()
            weight[0] *= 1.5
        return weight, bias

    monkeypatch.setattr(module, "folded", wrong)


def test_an_exported_model_that_disagrees_is_not_kept(model: EfficientViT, broken_writer: None, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="disagrees with its checkpoint and was discarded"):
        export((model, manifest_of(model)), out=tmp_path / "a.onnx")
    assert list(tmp_path.iterdir()) == []


def test_verification_sees_a_broken_weight_in_the_file(model: EfficientViT, tmp_path: Path) -> None:
    path, manifest = export((model, manifest_of(model)), out=tmp_path / "a.onnx")
    proto = onnx.load(path)
    kernel = max(proto.graph.initializer, key=lambda i: len(i.raw_data))
    values = np.frombuffer(kernel.raw_data, np.float32).copy()
    values[: len(values) // 2] = 0
    kernel.raw_data = values.tobytes()
    onnx.save(proto, path)
    with pytest.raises(ExportError, match="disagrees"):
        verify("a.onnx", open_engine(path), TorchEngine(model, manifest), manifest, example_images())


def test_float16_may_differ_as_much_as_rounding_to_bfloat16_moves_this_network(
    model: EfficientViT, monkeypatch: pytest.MonkeyPatch
) -> None:
    network, images = manifest_of(model), example_images()[2:]
    reference = TorchEngine(model, network)
    batch = network.preprocess.apply(images[0])[None]
    logits = reference(batch)
    rounded = TorchEngine(rounded_to_bfloat16(model), network)(batch)
    moved = float(np.abs(rounded - logits).max() / np.abs(logits).max())
    monkeypatch.setitem(TOLERANCE, "float16 arithmetic", (moved / 2, 0.99))

    class Half:
        """The reference, but for the logits of one place, which keep their order."""

        manifest, info = network, replace(reference.info, precision="float16")

        def __init__(self, error: float) -> None:
            self.logits: NDArray[np.float32] = logits.copy()
            self.logits[0, :, 3, 5] += error * np.abs(logits).max()

        def __call__(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
            return self.logits

    with pytest.raises(ExportError, match="disagrees"):
        verify("a", Half(0.8 * moved), reference, network, images)
    verify("a", Half(0.8 * moved), reference, network, images, model)
    with pytest.raises(ExportError, match="disagrees"):
        verify("a", Half(1.1 * moved), reference, network, images, model)


def test_a_checkpoint_with_nan_is_refused(tmp_path: Path) -> None:
    model = lively(evitseg.build("b0", 3))
    model.state_dict()["head.outputs.classify.conv.bias"][0] = torch.nan
    with pytest.raises(WeightsError, match="classify.conv.bias holds numbers that are not finite"):
        export((model, manifest_of(model)), out=tmp_path / "a.onnx")


def test_the_callers_network_stays_as_it_was(tmp_path: Path) -> None:
    model = lively(evitseg.build("b0", 3)).train().to(torch.bfloat16)
    export((model, manifest_of(model)), out=tmp_path / "a.onnx")
    assert model.training
    assert model.dtype == torch.bfloat16


def test_wrong_words_are_errors(model: EfficientViT, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="unknown format 'onxn'; did you mean 'onnx'"):
        export((model, manifest_of(model)), "onxn", tmp_path / "a.onnx")
    with pytest.raises(ExportError, match=r"onnx files end in \.onnx"):
        export((model, manifest_of(model)), out=tmp_path / "a.bin")
    with pytest.raises(ExportError, match="out="):
        export((model, manifest_of(model)))


def test_the_file_says_nothing_about_the_machine(model: EfficientViT, tmp_path: Path) -> None:
    path, _ = export((model, manifest_of(model)), out=tmp_path / "a.onnx")
    content = path.read_bytes()
    for word in (b"/home", b"/root", b"site-packages", str(tmp_path).encode(), b"stack_trace"):
        assert word not in content


def test_operators_are_plain(model: EfficientViT) -> None:
    used = {node.op_type for node in onnx_graph(model, Preprocess()).graph.node}
    assert not used & {"Loop", "If", "Scan", "NonZero", "Pad", "Where", "Softmax", "Einsum"}


def test_the_same_network_gives_the_same_bytes_in_another_process() -> None:
    script = (
        "import sys, torch, evitseg; from evitseg.preprocess import Preprocess;"
        "from evitseg.exporters.onnx import onnx_graph;"
        "torch.manual_seed(0); model = evitseg.build('b0', 3).eval();"
        "sys.stdout.buffer.write(onnx_graph(model, Preprocess()).SerializeToString())"
    )
    elsewhere = subprocess.run([sys.executable, "-c", script], capture_output=True, check=True).stdout
    torch.manual_seed(0)
    assert onnx_graph(evitseg.build("b0", 3).eval(), Preprocess()).SerializeToString() == elsewhere
    assert len(elsewhere) > 2_000_000
