"""The self-check of exported files, in every engine and on the devices that engines offer here."""

from __future__ import annotations

import copy
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import NoReturn, cast

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.optional import needs

needs("torch", "onnx", "openvino")

import onnx
import torch
from torch import nn

from evitseg.architecture import model_config
from evitseg.engine import Engine
from evitseg.errors import EngineError
from evitseg.exporters.export import export
from evitseg.exporters.verify import self_check_of
from evitseg.labels import numbered
from evitseg.loading import network_of
from evitseg.manifest import Manifest, Training
from evitseg.model.engine import TorchEngine
from evitseg.model.layers import ConvNormAct
from evitseg.model.network import EfficientViT
from evitseg.preprocess import Preprocess
from evitseg.runtime import self_check
from evitseg.runtime.device_check import check_on_device
from evitseg.runtime.openvino_device import elsewhere
from tests.networks import lively

SIZE = (64, 96)


@pytest.fixture(scope="module")
def network() -> tuple[EfficientViT, Manifest]:
    model = lively(EfficientViT(model_config("b0", 5)))
    return model, Manifest("test", model.config, numbered(5), Preprocess(64), Training("generated", "CC0"))


@pytest.fixture(scope="module")
def exported(network: tuple[EfficientViT, Manifest], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path, _ = export(network, "onnx", tmp_path_factory.mktemp("exported") / "m.onnx", size=SIZE)
    return path


def test_the_stored_logits_are_the_checkpoints_in_float32(
    network: tuple[EfficientViT, Manifest], exported: Path
) -> None:
    check, image = self_check.input_of(check_on_device(exported).manifest, exported)
    assert check.size == SIZE
    stored = self_check.expected_logits(check, 5, exported)
    logits = TorchEngine(*network, "float32")(image[None])[0]
    np.testing.assert_array_equal(stored, logits)  # 8x12 places: all of them
    assert check.tolerance == 1e-3
    assert 1e-3 < check.half_tolerance < 0.5


@pytest.mark.parametrize("engine", ["native", "openvino", "onnxruntime"])
def test_every_engine_of_a_file_agrees(engine: str, exported: Path) -> None:
    needs(engine if engine != "native" else "onnx")
    exact = check_on_device(exported, engine, precision="float32")
    assert exact.agreement.largest_difference < 1e-4
    assert exact.agreement.equal_fraction == 1
    assert exact.placement.fell_back == {}
    assert check_on_device(exported, engine).agreement.agrees  # in the engine's own precision


def test_a_broken_weight_is_found(exported: Path, tmp_path: Path) -> None:
    proto = onnx.load(exported)
    largest = max(proto.graph.initializer, key=lambda tensor: len(tensor.raw_data))
    values = np.frombuffer(largest.raw_data, np.float32).copy()
    values[: len(values) // 8] *= -1
    largest.raw_data = values.tobytes()
    onnx.save(proto, tmp_path / "broken.onnx")
    for engine in ("native", "openvino"):
        assert not check_on_device(tmp_path / "broken.onnx", engine).agreement.agrees


def test_onnx_runtime_says_which_operators_another_provider_left_to_the_cpu(exported: Path) -> None:
    needs("onnxruntime")
    from evitseg.runtime.onnxruntime_engine import providers

    if "AzureExecutionProvider" not in providers():
        pytest.skip("needs a build of ONNX Runtime with a second provider")
    found = check_on_device(exported, "onnxruntime", "azure")  # this provider takes no operator of ours
    assert found.agreement.agrees
    assert found.placement.device == "CPUExecutionProvider"
    assert found.placement.fell_back is not None
    assert found.placement.fell_back["MatMul"] == 8
    assert found.placement.fell_back["Conv"] > 30
    with pytest.raises(EngineError, match="has nothing that runs on ABACUS; it has"):
        check_on_device(exported, "onnxruntime", "abacus")


def test_openvino_says_which_devices_ran(exported: Path) -> None:
    found = check_on_device(exported, "openvino", "HETERO:CPU")
    assert found.agreement.agrees
    assert (found.placement.device, found.placement.fell_back) == ("CPU", {})
    assert check_on_device(exported, "openvino", "auto").placement.device == "CPU"
    for device in ("FPGA", "HETERO:FPGA,CPU"):
        with pytest.raises(EngineError, match="OpenVINO finds no device FPGA on this machine; it has CPU"):
            check_on_device(exported, "openvino", device)


def test_operators_on_another_device_than_the_first_fell_back() -> None:
    kinds = {"a": "Convolution", "b": "MatMul", "c": "Constant", "d": "MatMul", "e": "Divide"}
    placed = {"a": "NPU", "b": "CPU", "d": "NPU", "c": "CPU"}
    assert elsewhere(kinds, placed, "HETERO:NPU,CPU", ["NPU", "CPU"]) == Counter(MatMul=1, Divide=1)
    assert elsewhere(kinds, dict.fromkeys("abde", "GPU.0"), "GPU", ["GPU.0"]) == Counter()
    assert elsewhere(kinds, dict.fromkeys("abde", "MULTI"), "MULTI:GPU,CPU", ["GPU", "CPU"]) is None
    assert elsewhere(kinds, {}, "AUTO", ["CPU"]) == Counter()


def test_a_file_for_huge_images_only_has_no_self_check(network: tuple[EfficientViT, Manifest]) -> None:
    def runs_nothing(image: object) -> NoReturn:
        raise AssertionError

    model, manifest = network
    huge = replace(manifest, preprocess=Preprocess(fixed=(4096, 4128)))
    engine = cast(Engine, runs_nothing)
    assert self_check_of(engine, engine, model, huge) is None


def test_an_image_whose_logits_rounding_decides_is_not_taken() -> None:
    model, manifest = network_of("b0-camvid")
    model = copy.deepcopy(model)
    random = torch.Generator().manual_seed(5)  # found by trying: few networks have a query so near 0 in the first scene
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            module.weight.data *= 1 + 0.02 * torch.randn(module.weight.shape, generator=random)
    manifest = replace(manifest, preprocess=Preprocess(fixed=(128, 192)))
    reference = TorchEngine(model, manifest, "float32")
    check = self_check_of(reference, reference, model, manifest)
    assert check is not None
    assert (check.image, check.tolerance) == ("scene-2", 1e-3)

    def with_errors(sign: int) -> TorchEngine:
        """Every convolution has errors a little larger than those of float32."""
        changed = copy.deepcopy(model)
        errors = torch.Generator().manual_seed(0)
        for module in changed.modules():
            if isinstance(module, ConvNormAct):
                module.register_forward_hook(
                    lambda module, given, result: (
                        result + sign * 5e-7 * result.abs().amax() * torch.randn(result.shape, generator=errors)
                    )
                )
        return TorchEngine(changed, manifest, "float32")

    # In one of the two, a query of "scene-1" is 0; smooth changes cancel in the sum.
    jumps = []
    for number in (1, 2):
        image = self_check.scene(128, 192, number)[None]
        expected = reference(image)
        both = sum(with_errors(sign)(image) - expected for sign in (1, -1))
        jumps.append(float(np.abs(both).max() / np.abs(expected).max()))
    assert jumps[0] > 20 * jumps[1]


def test_limits_that_wrong_logits_would_pass_are_not_written(network: tuple[EfficientViT, Manifest]) -> None:
    model, manifest = network
    exact = TorchEngine(*network, "float32")

    def wrong(image: NDArray[np.uint8]) -> NDArray[np.float32]:
        return exact(image)[:, ::-1]

    small = replace(manifest, preprocess=Preprocess(fixed=SIZE))
    check = self_check_of(cast(Engine, wrong), exact, model, small)
    assert check is not None
    assert (check.tolerance, check.half_tolerance, check.min_equal) == (0.9, 0.9, 0.5)


def test_a_file_for_all_sizes_is_checked_at_a_small_one(network: tuple[EfficientViT, Manifest], tmp_path: Path) -> None:
    path, manifest = export(network, "native", tmp_path / "m.evit")
    assert manifest.self_check is not None
    assert manifest.self_check.size == self_check.SIZE
    assert check_on_device(path).agreement.agrees
    again, rewritten = export((network[0], manifest), "native", tmp_path / "n.evit", size=(64, 64))
    assert rewritten.self_check is not None
    assert rewritten.self_check.size == (64, 64)
    assert check_on_device(again).agreement.agrees
