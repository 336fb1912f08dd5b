"""Run models in OpenVINO."""

from __future__ import annotations

import logging
import threading
from collections import OrderedDict
from math import prod
from pathlib import Path
from queue import SimpleQueue
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from evitseg.architecture import LOGIT_STRIDE
from evitseg.engine import EngineInfo, Precision
from evitseg.errors import EngineError, WeightsError
from evitseg.manifest import METADATA_KEY, Manifest
from evitseg.runtime.checkpoint import read_checkpoint
from evitseg.runtime.mobile_engines import one_by_one
from evitseg.runtime.model_file import check_graph, first_line, manifest_inside, read
from evitseg.runtime.onnx_file import check_onnx
from evitseg.runtime.openvino_any_size import any_size_graph
from evitseg.runtime.openvino_core import openvino_core
from evitseg.runtime.openvino_graph import fast_graph, read_weights, writes_fast
from evitseg.runtime.weights import Weights
from evitseg.system.machine import free_memory, physical_cores

if TYPE_CHECKING:
    import openvino

_LOG = logging.getLogger(__name__)
_TYPES = {"f32": "float32", "f16": "float16", "bf16": "bfloat16"}


OWN_GRAPH_PIXELS = 2**18
"""Images of at least this size run in a graph compiled for their size, smaller ones in one graph for any size.

Only the image's own size decides: the two kinds of graph round differently, and a mask must not depend on the images
before it. Compiling takes about a third of a second, which pays off from about this size.
"""


GRAPHS_BYTES = 512 * 2**20
"""Memory limit for all graphs compiled for one size, except the latest; at most a quarter of the free memory."""


_GRAPH_BYTES, _GRAPH_BYTES_PER_PIXEL = 30 * 2**20, 24
"""Measured memory of such a graph, in total and per pixel and stream."""


_SHAPES = 64
"""Shapes for which the graph for any size caches its preparations; OpenVINO's default is 5,000, of 6 MiB each."""


class OpenVinoEngine:
    """A model in OpenVINO, on the CPU: an ONNX file, OpenVINO's own .xml with its .bin next to it, or a checkpoint.

    In float32 and bfloat16 on x86 processors, large images run in `openvino_graph`, which is compiled for each image
    size and cached. Small images and other processors use the graph in the file.

    Args:
        streams: images that run at the same time when several threads call; they divide the threads.
    """

    def __init__(
        self, model_file: Path, precision: Precision = "auto", threads: int | None = None, streams: int = 1
    ) -> None:
        self._core = openvino_core()
        import openvino

        chosen = openvino_precision(precision, self._core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"))
        self._settings = thread_settings(threads or physical_cores(), streams)
        if chosen is not None:
            self._settings["INFERENCE_PRECISION_HINT"] = next(hint for hint, name in _TYPES.items() if name == chosen)
        self._model_file = model_file
        try:
            self._model, self.manifest = _openvino_model(self._core, model_file)
            _check_ends(self._model, self.manifest, model_file)
            runs = self._probe()
        except (RuntimeError, ValueError) as error:
            raise EngineError(f"{model_file}: OpenVINO cannot run it ({first_line(error)}).") from error
        self.info = EngineInfo(
            engine="OpenVINO",
            version=openvino.__version__.split("-")[0],
            precision=_TYPES.get(runs, runs),  # OpenVINO's own name on other processors
            threads=int(self._settings["INFERENCE_NUM_THREADS"]),
            device=str(self._core.get_property("CPU", "FULL_DEVICE_NAME")).strip(),
            streams=streams,
        )
        self._weights: list[Weights] | None = None
        if writes_fast(self.info.precision):
            self._weights = read_weights(self._model, self.manifest.model, model_file)
        self._lock = threading.Lock()
        self._any_size: _Compiled | None = None
        self._sizes: OrderedDict[tuple[int, int], _Compiled] = OrderedDict()
        self._room = min(GRAPHS_BYTES, free_memory() // 4)

    def _probe(self) -> str:
        """The precision that OpenVINO really uses on this processor."""
        import openvino
        from openvino import opset13

        some = opset13.parameter([1], np.float32)
        compiled = self._core.compile_model(openvino.Model([opset13.relu(some)], [some]), "CPU", self._settings)
        return str(compiled.get_property("INFERENCE_PRECISION_HINT").to_string())

    def __call__(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        return one_by_one(self._run, images)

    def _run(self, image: NDArray[np.uint8]) -> NDArray[np.float32]:
        _, height, width, _ = image.shape
        logits = np.empty(
            (1, self.manifest.model.num_classes, height // LOGIT_STRIDE, width // LOGIT_STRIDE), np.float32
        )
        self._compiled((height, width)).run(image, logits)
        return logits

    def graph(self, size: tuple[int, int] | None) -> openvino.Model:
        """The graph for images of this (height, width), or of any size: `openvino_graph`'s, or the file's."""
        if size is not None and self._weights is not None:
            return fast_graph(self.manifest.model, self.manifest.preprocess, self._weights, size, self.info.precision)
        model = self._model.clone()
        if size is not None:
            model.reshape([1, *size, 3])
        if self.info.precision == "bfloat16":
            _keep_biases(model)
        return model

    def compile(self, size: tuple[int, int] | None, **settings: str) -> openvino.CompiledModel:
        """The compiled `graph`. Raises: EngineError."""
        try:
            return self._core.compile_model(self.graph(size), "CPU", self._settings | settings)
        except (RuntimeError, ValueError) as error:
            raise EngineError(f"{self._model_file}: OpenVINO cannot run it ({first_line(error)}).") from error

    def _compiled(self, size: tuple[int, int]) -> _Compiled:
        """The compiled graph for a size: its own, or the one for all sizes; see `OWN_GRAPH_PIXELS`."""
        with self._lock:
            fixed = self.manifest.preprocess.fixed is not None
            if self._weights is None or (prod(size) < OWN_GRAPH_PIXELS and not fixed):
                self._any_size = self._any_size or _Compiled(self._compile_any_size(), self.info.streams)
                return self._any_size
            if size in self._sizes:
                _LOG.debug("graph for %d×%d pixels: compiled before", size[1], size[0])
                self._sizes.move_to_end(size)
                return self._sizes[size]
            while self._sizes and self._bytes_of(size) + sum(map(self._bytes_of, self._sizes)) > self._room:
                self._sizes.popitem(last=False)
            _LOG.info("compiling the graph for %d×%d pixels", size[1], size[0])
            self._sizes[size] = _Compiled(self.compile(size), self.info.streams)
            return self._sizes[size]

    def _compile_any_size(self) -> openvino.CompiledModel:
        _LOG.info("compiling the graph for images of any size")
        try:
            return self.compile(None, CPU_RUNTIME_CACHE_CAPACITY=str(_SHAPES))
        except EngineError:  # the setting is undocumented, so a version may not have it
            return self.compile(None)

    def _bytes_of(self, size: tuple[int, int]) -> int:
        return _GRAPH_BYTES + _GRAPH_BYTES_PER_PIXEL * self.info.streams * prod(size)


class _Compiled:
    """A compiled graph with a request for every stream."""

    def __init__(self, compiled: openvino.CompiledModel, streams: int) -> None:
        self._free: SimpleQueue[openvino.InferRequest] = SimpleQueue()
        for _ in range(streams):
            self._free.put(compiled.create_infer_request())

    def run(self, image: NDArray[np.uint8], logits: NDArray[np.float32]) -> None:
        """Fill `logits`; waits if every stream is busy."""
        import openvino

        request = self._free.get()
        try:
            request.set_output_tensor(openvino.Tensor(logits, shared_memory=True))
            request.infer([image], share_inputs=True, share_outputs=True)
        finally:
            self._free.put(request)


def thread_settings(threads: int, streams: int) -> dict[str, str]:
    """Settings of OpenVINO's CPU plugin for so many threads and streams.

    By default the plugin pins its threads to cores and always starts with the first core: two engines with one thread
    each, in one process or in two, would share it and leave the others idle
    (https://github.com/openvinotoolkit/openvino/issues/32444). With fewer threads than cores, threads are not pinned.
    """
    settings = {"NUM_STREAMS": str(streams), "INFERENCE_NUM_THREADS": str(threads)}
    return settings | ({"ENABLE_CPU_PINNING": "NO"} if threads < physical_cores() else {})


def openvino_precision(wanted: Precision, capabilities: list[str]) -> str | None:
    """The precision to request from OpenVINO; None for its default, float16 on Arm and float32 elsewhere."""
    native = {"float32": True, "float16": "FP16" in capabilities, "bfloat16": "BF16" in capabilities}
    if wanted == "auto":
        return "bfloat16" if native["bfloat16"] else None
    if not native[wanted]:
        able = ", ".join(precision for precision, has in native.items() if has)
        raise EngineError(f"this processor has no {wanted} arithmetic; it has {able}.")
    return wanted


def openvino_manifest(model_file: Path) -> Manifest:
    """The manifest of a file that OpenVINO reads. Raises: WeightsError, ConfigError, EngineError."""
    try:
        return _openvino_model(openvino_core(), model_file)[1]
    except (RuntimeError, ValueError) as error:
        raise EngineError(f"{model_file}: OpenVINO cannot read it ({first_line(error)}).") from error


def _openvino_model(core: openvino.Core, model_file: Path) -> tuple[openvino.Model, Manifest]:
    import openvino

    if model_file.suffix == ".safetensors":
        manifest, weights = read_checkpoint(model_file)
        return any_size_graph(manifest.model, manifest.preprocess, weights), manifest
    # From memory: a file that refers to other files for its weights must not make us read them.
    content = read(model_file)
    if model_file.suffix == ".xml":
        stored = np.frombuffer(read(model_file.with_suffix(".bin")), np.uint8)
        model = core.read_model(content, openvino.Tensor(stored))
    else:
        check_onnx(content, model_file)
        model = core.read_model(content)
    where = ["framework", METADATA_KEY]
    text = str(model.get_rt_info(where).value) if model.has_rt_info(where) else None
    return model, manifest_inside(text, model_file)


def _check_ends(model: openvino.Model, manifest: Manifest, model_file: Path) -> None:
    """Refuse a graph whose input or output contradicts its manifest. Raises: WeightsError."""
    inputs, outputs = model.inputs, model.outputs
    if len(inputs) != 1 or len(outputs) != 1:
        raise WeightsError(
            f"{model_file}: has {len(inputs)} inputs and {len(outputs)} outputs, not one of each, so evitseg did not "
            "write it; give a file that evitseg export wrote."
        )
    given, logits = (
        [None if side.is_dynamic else side.get_length() for side in end.partial_shape] for end in (*inputs, *outputs)
    )
    check_graph(inputs[0].element_type.to_string(), given, logits, manifest, model_file)


def openvino_graph(
    model_file: Path, precision: Precision = "auto", purpose: str = "a network in parts"
) -> tuple[openvino.Core, openvino.Model, list[Weights] | None, Manifest, dict[str, str]]:
    """A model's graph, for callers that run it in parts.

    Args:
        purpose: what needs OpenVINO, for the message if it is not installed.

    Returns: OpenVINO's core; the graph; the weights, if this processor runs graphs of our own; the manifest; and the
    settings to compile with.

    Raises: EngineError, WeightsError, MissingPackageError.
    """
    core = openvino_core(purpose)
    chosen = openvino_precision(precision, core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"))
    settings = {}
    if chosen is not None:
        settings["INFERENCE_PRECISION_HINT"] = next(hint for hint, name in _TYPES.items() if name == chosen)
    try:
        model, manifest = _openvino_model(core, model_file)
        _check_ends(model, manifest, model_file)
    except (RuntimeError, ValueError) as error:
        raise EngineError(f"{model_file}: OpenVINO cannot run it ({first_line(error)}).") from error
    weights = read_weights(model, manifest.model, model_file) if writes_fast(chosen or "float32") else None
    if chosen == "bfloat16":
        _keep_biases(model)
    return core, model, weights, manifest, settings


def _keep_biases(model: openvino.Model) -> None:
    """Keep the convolutions' biases in float32, which OpenVINO 2026.4 would round to bfloat16.

    Rounded biases cause most of bfloat16's error: on CamVid test the bundled model loses 0.8 points of mIoU with them
    and 0.05 without (`benchmarks/precision.py`). OpenVINO adds a bias in float32 if it does not directly follow its
    convolution, so a clamp whose limits no value reaches goes between the two.
    """
    import openvino.opset13 as ops

    for add in model.get_ordered_ops():
        if add.get_type_name() != "Add":
            continue
        convolution, bias = (add.input_value(i).get_node() for i in (0, 1))
        if convolution.get_type_name() in ("Convolution", "GroupConvolution") and bias.get_type_name() in (
            "Constant",
            "Reshape",
        ):
            limited = ops.clamp(convolution.output(0), -1e30, 1e30)
            add.input(0).replace_source_output(limited.output(0))
    model.validate_nodes_and_infer_types()
