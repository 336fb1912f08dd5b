"""Run formats for phones and boards, LiteRT, ExecuTorch and ncnn, on this machine's CPU.

These files take images of one size and have a sidecar manifest. The engine here is the library that runs on the
device, so `evitseg eval` measures the device's results.
"""

from __future__ import annotations

import contextlib
import os
import platform
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from evitseg.architecture import LOGIT_STRIDE
from evitseg.engine import EngineInfo, Precision
from evitseg.errors import EngineError, MissingPackageError, WeightsError
from evitseg.manifest import Manifest
from evitseg.runtime.model_file import first_line, manifest_beside, read
from evitseg.system.machine import physical_cores, processor_name
from evitseg.system.silence import silenced

INPUT, LOGITS = "in0", "out0"
"""Names that pnnx gives to the input and the output of an ncnn network."""


class LiteRtLogits:
    """The logits of a .tflite file, which stores them as 8-bit integers if all of its arithmetic is in integers.

    Args:
        details: what LiteRT's interpreter says about the output.
    """

    def __init__(self, details: Mapping[str, Any]) -> None:
        self.is_whole = details["dtype"] == np.int8
        self.dtype: type = np.int8 if self.is_whole else np.float32
        self._step, self._zero = (float(number) for number in details["quantization"])

    def restored(self, stored: NDArray[Any]) -> NDArray[np.float32]:
        """The logits as floating-point numbers."""
        return (stored.astype(np.float32) - self._zero) * np.float32(self._step) if self.is_whole else stored


class LiteRtEngine:
    """A .tflite file in LiteRT, with its XNNPACK delegate."""

    def __init__(self, model_file: Path, precision: Precision = "auto", threads: int | None = None) -> None:
        try:
            with silenced():
                from ai_edge_litert.interpreter import Interpreter
        except ImportError as error:
            raise MissingPackageError("the LiteRT engine", "litert") from error
        _only_float32("LiteRT", precision)
        content = read(model_file)
        self.manifest = manifest_beside(model_file, [content])
        threads = threads or physical_cores()
        try:
            with silenced():
                self._interpreter = Interpreter(model_content=content, num_threads=threads)
                self._interpreter.allocate_tensors()
        except (RuntimeError, ValueError) as error:
            raise EngineError(f"{model_file}: LiteRT cannot run it ({first_line(error)}).") from error
        (given,), (logits,) = self._interpreter.get_input_details(), self._interpreter.get_output_details()
        if (given["dtype"], tuple(given["shape"])) != (np.uint8, _input_shape(self.manifest)):
            raise _contradicts_manifest(model_file)
        if tuple(logits["shape"]) != _logits_shape(self.manifest):
            raise _contradicts_manifest(model_file)
        self._input, self._logits, self._lock = given["index"], logits["index"], threading.Lock()
        self._form = LiteRtLogits(logits)
        self.info = _info("LiteRT", "ai-edge-litert", "int8" if self._form.is_whole else "float32", threads)

    def __call__(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        return one_by_one(self._run, images)

    def _run(self, image: NDArray[np.uint8]) -> NDArray[np.float32]:
        with self._lock:
            self._interpreter.set_tensor(self._input, image)
            self._interpreter.invoke()
            logits = self._interpreter.get_tensor(self._logits)  # a copy
        return self._form.restored(logits)


class ExecuTorchEngine:
    """A .pte file in ExecuTorch, with its XNNPACK backend. Its input is (1, 3, height, width) float32 from 0 to 255.

    Its Python binding needs torch; its C++ library does not.
    """

    def __init__(self, model_file: Path, precision: Precision = "auto", threads: int | None = None) -> None:
        try:
            with silenced():
                import torch
                from executorch.extension.pybindings import portable_lib
                from executorch.runtime import Runtime
        except ImportError as error:
            raise MissingPackageError("the ExecuTorch engine", "executorch") from error
        _only_float32("ExecuTorch", precision)
        self._content = read(model_file)  # the program refers to these bytes
        self.manifest = manifest_beside(model_file, [self._content])
        threads = threads or physical_cores()
        try:
            with silenced():
                portable_lib._unsafe_reset_threadpool(threads)  # for the whole process; there is no other setting
                self._program = Runtime.get().load_program(self._content)
                self._method = self._program.load_method("forward")
        except (RuntimeError, ValueError) as error:
            raise EngineError(f"{model_file}: ExecuTorch cannot run it ({first_line(error)}).") from error
        about = self._method.metadata
        shapes = [tuple(tensor.sizes()) for tensor in (about.input_tensor_meta(0), about.output_tensor_meta(0))]
        if shapes != [_planes_shape(self.manifest), _logits_shape(self.manifest)]:
            raise _contradicts_manifest(model_file)
        self._tensor, self._lock = torch.from_numpy, threading.Lock()
        self.info = _info("ExecuTorch", "executorch", "float32", threads)

    def __call__(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        return one_by_one(self._run, images)

    def _run(self, image: NDArray[np.uint8]) -> NDArray[np.float32]:
        planes = _planes(image)
        with self._lock:
            return np.array(self._method.execute([self._tensor(planes)])[0].numpy())


class NcnnEngine:
    """A .param file with its .bin in ncnn. Its input is (3, height, width) float32 RGB from 0 to 255.

    Args:
        gpu: run it with Vulkan, on the first GPU that has it.
    """

    def __init__(
        self, model_file: Path, precision: Precision = "auto", threads: int | None = None, gpu: bool = False
    ) -> None:
        try:
            with _patient_threads():
                import ncnn
        except ImportError as error:
            raise MissingPackageError("the ncnn engine", "ncnn") from error
        if precision == "bfloat16":
            raise EngineError("ncnn's bfloat16 gives wrong masks with this network; leave out the precision.")
        with silenced():
            if gpu and not ncnn.get_gpu_count():
                raise EngineError("ncnn finds no GPU with Vulkan on this machine; leave out the device.")
        if precision == "float16" and not gpu and platform.machine() not in ("aarch64", "arm64"):
            raise EngineError("ncnn has float16 arithmetic on Arm only; leave out the precision.")
        self.manifest = manifest_beside(model_file, [read(model_file), read(model_file.with_suffix(".bin"))])
        threads = threads or physical_cores()
        self._net = ncnn.Net()
        options = self._net.opt
        options.num_threads = threads
        options.use_vulkan_compute = gpu
        half = precision == "float16"
        options.use_fp16_packed = options.use_fp16_storage = options.use_fp16_arithmetic = half
        options.use_bf16_packed = options.use_bf16_storage = False
        with silenced():
            failed = self._net.load_param(str(model_file)) or self._net.load_model(str(model_file.with_suffix(".bin")))
        if failed:
            raise EngineError(f"{model_file}: ncnn cannot read it; export it again.")
        if (list(self._net.input_names()), list(self._net.output_names())) != ([INPUT], [LOGITS]):
            raise _contradicts_manifest(model_file)
        self._mat, self._model_file = ncnn.Mat, model_file
        self.info = _info("ncnn", "ncnn", "float16" if half else "float32", threads)
        if gpu:
            self.info = replace(self.info, device=ncnn.get_gpu_info(ncnn.get_default_gpu_index()).device_name())

    def __call__(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        return one_by_one(self._run, images)

    def _run(self, image: NDArray[np.uint8]) -> NDArray[np.float32]:
        planes = _planes(image)[0]  # ncnn reads it without holding it
        extractor = self._net.create_extractor()
        extractor.input(INPUT, self._mat(planes))
        failed, logits = extractor.extract(LOGITS)
        answer = np.array(logits)[None]
        if failed or answer.shape != _logits_shape(self.manifest):
            raise _contradicts_manifest(self._model_file)
        return answer

    def without_vulkan(self) -> Counter[str]:
        """Kinds and numbers of the layers that cannot run on a GPU; the CPU runs them."""
        return Counter(layer.type for layer in self._net.layers() if not layer.support_vulkan)


@contextlib.contextmanager
def _patient_threads() -> Iterator[None]:
    """Let the threads of an OpenMP library that is loaded in the block sleep while they wait for each other.

    By default they spin, which made ncnn fifty times slower when another program used one of the cores.
    """
    name = "OMP_WAIT_POLICY"
    before = os.environ.get(name)
    os.environ.setdefault(name, "PASSIVE")
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]


def one_by_one(
    run: Callable[[NDArray[np.uint8]], NDArray[np.float32]], images: NDArray[np.uint8]
) -> NDArray[np.float32]:
    """A batch through an engine that takes single images."""
    return np.concatenate([run(images[i : i + 1]) for i in range(len(images))])


def _only_float32(engine: str, precision: Precision) -> None:
    if precision not in ("auto", "float32"):
        raise EngineError(
            f"{engine} computes in the precision of the file, not in {precision}; leave out the precision."
        )


def _input_shape(manifest: Manifest) -> tuple[int, ...]:
    assert manifest.preprocess.fixed is not None  # manifest_beside has checked it
    return (1, *manifest.preprocess.fixed, 3)


def _planes_shape(manifest: Manifest) -> tuple[int, ...]:
    _, height, width, channels = _input_shape(manifest)
    return (1, channels, height, width)


def _planes(images: NDArray[np.uint8]) -> NDArray[np.float32]:
    return np.ascontiguousarray(images.transpose(0, 3, 1, 2), np.float32)


def _logits_shape(manifest: Manifest) -> tuple[int, ...]:
    _, height, width, _ = _input_shape(manifest)
    return (1, manifest.model.num_classes, height // LOGIT_STRIDE, width // LOGIT_STRIDE)


def _contradicts_manifest(model_file: Path) -> WeightsError:
    return WeightsError(f"{model_file}: its network contradicts its manifest; export it again.")


def _info(engine: str, package: str, precision: str, threads: int) -> EngineInfo:
    from importlib.metadata import version

    return EngineInfo(engine, version(package), precision, threads, processor_name())
