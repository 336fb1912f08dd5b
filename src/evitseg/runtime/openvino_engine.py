"""Run models in OpenVINO."""

from __future__ import annotations

import logging
from pathlib import Path
from queue import SimpleQueue
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from evitseg.architecture import LOGIT_STRIDE
from evitseg.engine import EngineInfo, Precision
from evitseg.errors import EngineError, WeightsError
from evitseg.manifest import METADATA_KEY, Manifest
from evitseg.runtime.mobile_engines import one_by_one
from evitseg.runtime.model_file import check_graph, first_line, manifest_inside, read
from evitseg.runtime.onnx_file import check_onnx
from evitseg.runtime.openvino_core import openvino_core
from evitseg.runtime.weights import check_finite
from evitseg.system.machine import physical_cores

if TYPE_CHECKING:
    import openvino

_LOG = logging.getLogger(__name__)
PRECISION_HINTS = {"f32": "float32", "f16": "float16", "bf16": "bfloat16"}
"""OpenVINO's names of precisions, with ours."""
_SHAPES = 64
"""Image sizes for which OpenVINO caches its preparations; its default is 5,000, of 6 MiB each."""


class OpenVinoEngine:
    """An exported model in OpenVINO, on the CPU: an ONNX file, or OpenVINO's own .xml with its .bin next to it.

    The graph in the file is compiled once, for all sizes of images that the file takes.

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
            self._settings["INFERENCE_PRECISION_HINT"] = next(
                hint for hint, name in PRECISION_HINTS.items() if name == chosen
            )
        self._model_file = model_file
        self._model, self.manifest = read_openvino(model_file)
        # Its activations turn NaN into numbers, so logits would not show it.
        constants = (node for node in self._model.get_ops() if node.get_type_name() == "Constant")
        check_finite((node.data for node in constants if node.data.dtype.kind == "f"), model_file)
        if chosen == "bfloat16":
            _keep_biases(self._model)
        _LOG.info("compiling the graph in %s", model_file)
        compiled = self._compile_for_many_sizes()
        runs = str(compiled.get_property("INFERENCE_PRECISION_HINT").to_string())
        self.info = EngineInfo(
            engine="OpenVINO",
            version=openvino.__version__.split("-")[0],
            precision=PRECISION_HINTS.get(runs, runs),  # OpenVINO's own name on other processors
            threads=int(self._settings["INFERENCE_NUM_THREADS"]),
            device=str(self._core.get_property("CPU", "FULL_DEVICE_NAME")).strip(),
            streams=streams,
        )
        self._free: SimpleQueue[openvino.InferRequest] = SimpleQueue()
        for _ in range(streams):
            self._free.put(compiled.create_infer_request())

    def __call__(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        return one_by_one(self._run, images)

    def _run(self, image: NDArray[np.uint8]) -> NDArray[np.float32]:
        """The logits of one image; waits if every stream is busy."""
        import openvino

        _, height, width, _ = image.shape
        logits = np.empty(
            (1, self.manifest.model.num_classes, height // LOGIT_STRIDE, width // LOGIT_STRIDE), np.float32
        )
        request = self._free.get()
        try:
            request.set_output_tensor(openvino.Tensor(logits, shared_memory=True))
            request.infer([image], share_inputs=True, share_outputs=True)
        finally:
            self._free.put(request)
        return logits

    def graph(self, size: tuple[int, int]) -> openvino.Model:
        """The graph in the file, for images of this (height, width)."""
        return for_size(self._model, size)

    def compile(self, graph: openvino.Model, **settings: str) -> openvino.CompiledModel:
        """A graph compiled with the engine's settings and further ones. Raises: EngineError."""
        try:
            return self._core.compile_model(graph, "CPU", self._settings | settings)
        except (RuntimeError, ValueError) as error:
            raise EngineError(f"{self._model_file}: OpenVINO cannot run it ({first_line(error)}).") from error

    def _compile_for_many_sizes(self) -> openvino.CompiledModel:
        try:
            return self.compile(self._model, CPU_RUNTIME_CACHE_CAPACITY=str(_SHAPES))
        except EngineError:  # the setting is undocumented, so a version may not have it
            return self.compile(self._model)


def for_size(model: openvino.Model, size: tuple[int, int]) -> openvino.Model:
    """A copy of an exported model's graph for images of this (height, width) only."""
    fixed = model.clone()
    fixed.reshape([1, *size, 3])
    return fixed


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
    return read_openvino(model_file)[1]


def read_openvino(model_file: Path) -> tuple[openvino.Model, Manifest]:
    """The graph and the manifest of a file that OpenVINO reads.

    Raises: WeightsError, also for a graph whose ends contradict the manifest; ConfigError, EngineError.
    """
    core = openvino_core()
    import openvino

    # From memory: a file that refers to other files for its weights must not make us read them.
    content = read(model_file)
    try:
        if model_file.suffix == ".xml":
            stored = np.frombuffer(read(model_file.with_suffix(".bin")), np.uint8)
            model = core.read_model(content, openvino.Tensor(stored))
        else:
            check_onnx(content, model_file)
            model = core.read_model(content)
        where = ["framework", METADATA_KEY]
        text = str(model.get_rt_info(where).value) if model.has_rt_info(where) else None
        manifest = manifest_inside(text, model_file)
        _check_ends(model, manifest, model_file)
    except (RuntimeError, ValueError) as error:
        raise EngineError(f"{model_file}: OpenVINO cannot read it ({first_line(error)}).") from error
    return model, manifest


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


def _keep_biases(model: openvino.Model) -> None:
    """Keep the convolutions' biases in float32, which OpenVINO 2026.4 would round to bfloat16.

    Rounded biases cause most of bfloat16's error: on CamVid test the bundled model loses 0.8 points of mIoU with them
    and 0.2 without. OpenVINO adds a bias in float32 if it does not directly follow its
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
