"""Run a model's self-check on a chosen device, and find out which device really computed it."""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from evitseg.engine import Engine, EngineInfo, Precision
from evitseg.errors import EngineError
from evitseg.manifest import Manifest
from evitseg.runtime import self_check
from evitseg.runtime.engines import ENGINES, check_request, engine_for, open_engine, read_manifest
from evitseg.runtime.undelegated import undelegated_in_executorch, undelegated_in_litert


@dataclass(frozen=True)
class RanOn:
    """Where a network ran, as far as its engine tells.

    Attributes:
        device: the device that ran it, in the engine's words.
        fell_back: kinds and numbers of the operators that ran elsewhere than on the device that was asked for, or, on a
            CPU, without the engine's fast library; None if the engine does not tell.
        source: how this is known, or why it is not.
    """

    device: str
    fell_back: dict[str, int] | None
    source: str


@dataclass(frozen=True)
class Checked:
    """The result of a self-check.

    Attributes:
        manifest: the model's.
        size: (height, width) of the image.
        agreement: how far the logits are from the expected ones.
        info: the engine that ran.
        placement: the device that ran.
    """

    manifest: Manifest
    size: tuple[int, int]
    agreement: self_check.LogitAgreement
    info: EngineInfo
    placement: RanOn


@dataclass(frozen=True)
class _Opened:
    """An engine on a device, and a function that says after a run where it ran."""

    engine: Engine
    placement: Callable[[], RanOn]


def check_on_device(
    model_file: Path,
    engine: str | None = None,
    device: str | None = None,
    precision: Precision = "auto",
    threads: int | None = None,
) -> Checked:
    """Run an exported model's self-check on this machine.

    Args:
        engine: a key of `ENGINES`; None for the file's default.
        device: "CPU", "GPU", "NPU", or a name of the engine's own, such as "HETERO:NPU,CPU" for OpenVINO or "CUDA" for
            ONNX Runtime; None for the CPU.
        precision: numerical precision of the arithmetic; "auto" leaves the choice to the engine.
        threads: maximum number of threads; None for one per physical core.

    Raises: WeightsError if the file has no self-check; EngineError for a device that the engine does not find, or on
    which it cannot run the model; MissingPackageError.
    """
    engine = engine_for(model_file, engine)
    check_request(precision, threads, 1)
    manifest = read_manifest(model_file)
    check, image = self_check.input_of(manifest, model_file)
    expected = self_check.expected_logits(check, manifest.model.num_classes, model_file)
    wanted = (device or "CPU").upper()
    with tempfile.TemporaryDirectory() as folder:
        request = _Request(model_file, wanted, precision, threads, check.size, Path(folder))
        opened = _OPENERS[engine](request)
        logits = opened.engine(image[None])[0]
        placement = opened.placement()
    info = opened.engine.info  # after the run: an engine may have changed its precision
    return Checked(
        manifest, check.size, self_check.compare_logits(check, expected, logits, info.precision), info, placement
    )


@dataclass(frozen=True)
class _Request:
    model_file: Path
    device: str
    precision: Precision
    threads: int | None
    size: tuple[int, int]
    folder: Path

    def on_cpu(self, engine: str) -> Engine:
        return open_engine(self.model_file, engine, self.precision, self.threads)

    def refused(self, engine: str, devices: str) -> EngineError:
        return EngineError(f"{self.model_file}: {engine} runs on {devices}, not on {self.device[:40]}.")


def _native(request: _Request) -> _Opened:
    from evitseg.runtime.native import NativeEngine

    if request.device != "CPU":
        raise request.refused("the native engine", "the CPU")
    engine = request.on_cpu("native")
    assert isinstance(engine, NativeEngine)

    def placement() -> RanOn:
        source = f"the core runs every operation itself, with the instruction set {engine.core.isa}"
        return RanOn(engine.info.device, {}, source)

    return _Opened(engine, placement)


def _openvino(request: _Request) -> _Opened:
    from evitseg.runtime.openvino_device import OpenVinoDevice

    if request.device == "CPU":
        on_cpu = request.on_cpu("openvino")
        return _Opened(on_cpu, lambda: RanOn(on_cpu.info.device, {}, "OpenVINO runs the whole network on the CPU"))
    engine = OpenVinoDevice(request.model_file, request.device, request.size, request.precision)

    def placement() -> RanOn:
        elsewhere = engine.elsewhere()
        source = "OpenVINO's EXECUTION_DEVICES and query_model"
        if elsewhere is None:
            source = "OpenVINO does not tell which of these devices ran"
        return RanOn(", ".join(engine.devices()), None if elsewhere is None else dict(elsewhere), source)

    return _Opened(engine, placement)


_PROVIDERS = {
    "GPU": ("CUDA", "MIGraphX", "ROCM", "Dml", "CoreML", "WebGpu"),
    "NPU": ("QNN", "VitisAI", "CoreML", "Rknpu", "VSINPU", "CANN", "Nnapi"),
}
"""ONNX Runtime's execution providers for a kind of device, in the order in which they are tried."""


def _onnxruntime(request: _Request) -> _Opened:
    from evitseg.runtime.onnxruntime_engine import OnnxRuntimeEngine, providers

    available = providers()
    wanted = _PROVIDERS.get(request.device, (request.device,))
    provider = next((found for name in wanted for found in available if found.upper() == _provider(name)), None)
    if provider is None:
        names = ", ".join(name.removesuffix("ExecutionProvider") for name in available)
        raise EngineError(
            f"this build of ONNX Runtime has nothing that runs on {request.device[:40]}; it has {names}. Other devices "
            "have packages of their own, such as onnxruntime-gpu or onnxruntime-qnn."
        )
    engine = OnnxRuntimeEngine(
        request.model_file, request.precision, request.threads, provider, request.folder / "placement"
    )

    def placement() -> RanOn:
        ran = engine.placement()
        fell_back = sum((kinds for name, kinds in ran.items() if name != provider), Counter[str]())
        counts = ", ".join(f"{sum(kinds.values())} operators in {name}" for name, kinds in ran.items())
        return RanOn(", ".join(ran), dict(fell_back), f"ONNX Runtime's profile: {counts}")

    return _Opened(engine, placement)


def _provider(name: str) -> str:
    return f"{name.upper().removesuffix('EXECUTIONPROVIDER')}EXECUTIONPROVIDER"


def _litert(request: _Request) -> _Opened:
    if request.device == "CPU":
        on_cpu = request.on_cpu("litert")

        def in_xnnpack() -> RanOn:
            outside = dict(Counter(undelegated_in_litert(request.model_file)))
            return RanOn(on_cpu.info.device, outside, "LiteRT's operators outside of its XNNPACK delegate")

        return _Opened(on_cpu, in_xnnpack)
    if request.device not in ("GPU", "NPU"):
        raise request.refused("LiteRT", "CPU, GPU or NPU")
    from evitseg.runtime.litert_device import LiteRtDevice

    engine = LiteRtDevice(request.model_file, request.device, request.precision)

    def placement() -> RanOn:
        engine.close()
        if engine.runs_everything:
            return RanOn(request.device, {}, f"LiteRT runs it with the {request.device} alone")
        source = f"LiteRT cannot run it with the {request.device} alone, and does not tell what the CPU ran"
        return RanOn(f"CPU, and perhaps {request.device}", None, source)

    return _Opened(engine, placement)


def _executorch(request: _Request) -> _Opened:
    if request.device != "CPU":
        raise request.refused("ExecuTorch", "the device that the file was exported for, the CPU")
    engine = request.on_cpu("executorch")

    def placement() -> RanOn:
        outside = dict(Counter(undelegated_in_executorch(request.model_file)))
        return RanOn(engine.info.device, outside, "the file's operators outside of XNNPACK")

    return _Opened(engine, placement)


def _ncnn(request: _Request) -> _Opened:
    from evitseg.runtime.mobile_engines import NcnnEngine

    if request.device not in ("CPU", "GPU"):
        raise request.refused("ncnn", "CPU or GPU")
    gpu = request.device == "GPU"
    engine = NcnnEngine(request.model_file, request.precision, request.threads, gpu)

    def placement() -> RanOn:
        fell_back = dict(engine.without_vulkan()) if gpu else {}
        source = "ncnn's layers without Vulkan" if gpu else "ncnn runs every layer on the CPU"
        return RanOn(engine.info.device, fell_back, source)

    return _Opened(engine, placement)


_OPENERS: dict[str, Callable[[_Request], _Opened]] = {
    "native": _native,
    "openvino": _openvino,
    "onnxruntime": _onnxruntime,
    "litert": _litert,
    "executorch": _executorch,
    "ncnn": _ncnn,
}
assert _OPENERS.keys() == ENGINES.keys()
