"""A model partitioned at its attention sums, ready to run segment by segment."""

from __future__ import annotations

import hashlib
import os
import queue
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from evitseg.architecture import STRIDE
from evitseg.engine import EngineInfo, Precision
from evitseg.errors import EngineError
from evitseg.labels import LabelSpace
from evitseg.runtime.model_file import first_line, read
from evitseg.runtime.openvino_graph import fast_graph, writes_fast
from evitseg.runtime.segmenter import finite
from evitseg.system.machine import physical_cores, processor_name
from evitseg.tiling.graph_cut import IMAGE, LOGITS, Partition, Segment
from evitseg.tiling.segment_graphs import fast_segment
from evitseg.tiling.windows import Window

if TYPE_CHECKING:
    import openvino

Arrays: TypeAlias = dict[str, NDArray[Any]]
Run: TypeAlias = Callable[..., Arrays]
"""Runs a segment: a dictionary of inputs, and optionally the wanted part of each output, to a dictionary of outputs."""

WORKERS = 2
"""Tiles that run at the same time, each with half of the threads: while one computes, the other reads and writes."""


class Network:
    """A model that runs in tiles. It can be used for any number of images, one after the other.

    Args:
        model: path of a checkpoint (.safetensors), or of an exported model, .onnx or .xml, with free sizes.
        precision: as in `evitseg.load`.
        threads: maximum number of threads; None for one per physical core.

    Raises: EngineError, WeightsError, MissingPackageError.
    """

    def __init__(
        self, model: str | os.PathLike[str], precision: Precision = "auto", threads: int | None = None
    ) -> None:
        from evitseg.runtime.openvino_engine import openvino_graph, thread_settings

        path = Path(model)
        if path.suffix not in (".safetensors", ".onnx", ".xml"):
            raise EngineError(
                f"{path}: tiles run in OpenVINO, which reads .safetensors, .onnx and .xml; export the model first."
            )
        self.path, self.precision = path, precision
        self._core, graph, self._weights, self.manifest, self._settings = openvino_graph(
            path, precision, "an image in tiles"
        )
        if self.manifest.preprocess.fixed is not None:
            height, width = self.manifest.preprocess.fixed
            raise EngineError(
                f"{path}: exported for images of {height}x{width} only, so it cannot run in tiles; export it again "
                "without --size."
            )
        self.digest = hashlib.sha256(read(path)).hexdigest()
        if path.suffix == ".xml":
            self.digest = hashlib.sha256(read(path) + read(path.with_suffix(".bin"))).hexdigest()
        self.partition = Partition(graph, path)
        self.threads = threads or physical_cores()
        self.workers = min(WORKERS, self.threads)
        self._settings |= thread_settings(self.threads, self.workers)
        self._compiled: tuple[tuple[str, int, int, int], queue.SimpleQueue[Any]] | None = None
        # Only a compiled model reports its precision; a tiny window compiles fast.
        compiled = self._core.compile_model(
            self.partition.model(self.partition.whole, STRIDE, STRIDE), "CPU", self._settings
        )
        import openvino

        runs = compiled.get_property("INFERENCE_PRECISION_HINT").to_string()
        names = {"f32": "float32", "f16": "float16", "bf16": "bfloat16"}
        self.info = EngineInfo(
            engine="OpenVINO",
            version=openvino.__version__.split("-")[0],
            precision=names.get(runs, runs),
            threads=self.threads,
            device=processor_name(),
        )
        if not writes_fast(self.info.precision):
            self._weights = None

    @property
    def labels(self) -> LabelSpace:
        return self.manifest.labels

    @property
    def feature_dtype(self) -> str:
        """Type of stored features; "uint16" holds the bits of bfloat16, which numpy does not have."""
        if self.info.precision == "float32":
            return "float32"
        return "float16" if self._weights is None else "uint16"

    @contextmanager
    def ready(self, segment: Segment, window: Window) -> Iterator[Run]:
        """A function that runs the segment on windows of this size; several threads may call it at once.

        Its results belong to the caller. Features have the type `feature_dtype`. Only one size of one segment is
        compiled at a time, to leave memory for tiles.
        """
        key = (segment.kind, segment.index, window.height, window.width)
        if self._compiled is None or self._compiled[0] != key:
            self._compiled = None
            try:
                compiled = self._core.compile_model(self._model(segment, window), "CPU", self._settings)
            except RuntimeError as error:
                raise EngineError(
                    f"OpenVINO cannot run tiles of {window.width}×{window.height} pixels ({first_line(error)})."
                ) from error
            requests: queue.SimpleQueue[Any] = queue.SimpleQueue()
            for _ in range(self.workers):
                requests.put(compiled.create_infer_request())
            self._compiled = key, requests
        requests = self._compiled[1]
        names = self.partition.outputs_of(segment)
        features = {f.name for f in (*segment.inputs, *segment.outputs)}

        def run(inputs: Arrays, wanted: dict[str, tuple[int | slice, ...]] | None = None) -> Arrays:
            given = {name: self._to_engine(values) if name in features else values for name, values in inputs.items()}
            request = requests.get()
            try:
                found = request.infer(given, share_inputs=True, share_outputs=True)
                outputs = {name: found[i][(wanted or {}).get(name, ())] for i, name in enumerate(names)}
                if LOGITS in outputs:
                    finite(outputs[LOGITS], self.manifest, self.info)
                return {
                    name: self._to_stored(values) if name in features else values.copy()
                    for name, values in outputs.items()
                }
            finally:
                requests.put(request)

        yield run

    def _to_engine(self, values: NDArray[Any]) -> Any:
        """Stored features, as the engine reads them."""
        if self.feature_dtype != "uint16":
            return np.asarray(values, np.float32)
        import openvino

        return openvino.Tensor(values, values.shape, openvino.Type.bf16)

    def _to_stored(self, values: NDArray[Any]) -> NDArray[Any]:
        """A copy of the engine's features, as they are stored. Raises: EngineError."""
        if self.feature_dtype != "float16":  # numpy sees bfloat16 as float16
            own: NDArray[Any] = (values if self.feature_dtype == "float32" else values.view(np.uint16)).copy()
            return own
        with np.errstate(over="ignore"):  # reported below
            halves = values.astype(np.float16)
        # OpenVINO turns larger numbers into the largest finite one. Comparing bits is faster than isfinite.
        if (halves.view(np.uint16) & 0x7FFF).max() >= 0x7BFF:
            raise EngineError("features exceed the range of float16; use --precision float32.")
        return halves

    def _model(self, segment: Segment, window: Window) -> openvino.Model:
        size = (window.height, window.width)
        about = self.manifest
        if self._weights is None:
            return self.partition.model(segment, *size)
        if segment.kind == "standalone":
            model = fast_graph(about.model, about.preprocess, self._weights, size, self.info.precision)
            model.inputs[0].get_tensor().set_names({IMAGE})
            return model
        return fast_segment(
            self.partition, segment, about.model, about.preprocess, self._weights, size, self.info.precision
        )

    def free(self) -> None:
        """Release the compiled segment."""
        self._compiled = None
