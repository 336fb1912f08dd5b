"""A network cut at its attention sums, ready to run segment by segment."""

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
from evitseg.tiling.graph_cut import ALONE, IMAGE, LOGITS, Cut, Piece
from evitseg.tiling.segment_graphs import fast_piece
from evitseg.tiling.windows import Window

if TYPE_CHECKING:
    import openvino

Arrays: TypeAlias = dict[str, NDArray[Any]]


Run: TypeAlias = Callable[..., Arrays]


WORKERS = 2
"""Tiles in hand at once, each with half of the threads, so that none waits for another's numpy and disk; with all
threads on one tile the whole took a fifteenth longer."""


class Network:
    """An artefact, cut, and ready to run its pieces on windows of any size; several threads may.

    Args:
        threads: at most; None for every physical core.

    Raises: EngineError, WeightsError.
    """

    def __init__(
        self, artefact: str | os.PathLike[str], precision: Precision = "auto", threads: int | None = None
    ) -> None:
        from evitseg.runtime.openvino_engine import openvino_graph, thread_settings

        path = Path(artefact)
        if path.suffix not in (".onnx", ".xml"):
            raise EngineError(f"{path}: tiles run in OpenVINO, which takes .onnx and .xml; export one.")
        self.path = path
        self._core, model, self._weights, self.manifest, self._settings = openvino_graph(path, precision)
        if self.manifest.preprocess.fixed is not None:
            height, width = self.manifest.preprocess.fixed
            raise EngineError(
                f"{path}: takes images of {height}x{width} alone and cannot run on tiles; export it without --size."
            )
        self.digest = hashlib.sha256(read(path)).hexdigest()
        if path.suffix == ".xml":
            self.digest = hashlib.sha256(read(path) + read(path.with_suffix(".bin"))).hexdigest()
        self.cut = Cut(model, path)
        self.threads = threads or physical_cores()
        self.workers = min(WORKERS, self.threads)
        self._settings |= thread_settings(self.threads, self.workers)
        self._compiled: tuple[tuple[int, int, int], queue.SimpleQueue[Any]] | None = None
        # A tiny window says in which precision it runs.
        compiled = self._core.compile_model(self.cut.model(self.cut.whole, STRIDE, STRIDE), "CPU", self._settings)
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
    def kept(self) -> str:
        """Number format of features between pieces, where numpy has it; bfloat16 is "uint16", its bits."""
        if self.info.precision == "float32":
            return "float32"
        return "float16" if self._weights is None else "uint16"

    @contextmanager
    def ready(self, piece: Piece, window: Window) -> Iterator[Run]:
        """A function that runs the piece on windows of this size, from several threads.

        It is given the inputs, and for some of the outputs what of them is wanted; its results are the caller's.
        Features are in the number format `kept`.

        Only one size of one piece is compiled at a time: memory is for tiles.
        """
        key = (piece.number, window.height, window.width)
        if self._compiled is None or self._compiled[0] != key:
            self._compiled = None
            try:
                compiled = self._core.compile_model(self._model(piece, window), "CPU", self._settings)
            except RuntimeError as error:
                raise EngineError(
                    f"OpenVINO cannot run a tile of {window.width}×{window.height} ({first_line(error)})."
                ) from error
            requests: queue.SimpleQueue[Any] = queue.SimpleQueue()
            for _ in range(self.workers):
                requests.put(compiled.create_infer_request())
            self._compiled = key, requests
        requests = self._compiled[1]
        names = self.cut.outputs_of(piece)
        features = {f.name for f in (*piece.inputs, *piece.outputs)}

        def run(inputs: Arrays, wanted: dict[str, tuple[int | slice, ...]] | None = None) -> Arrays:
            given = {name: self._given(values) if name in features else values for name, values in inputs.items()}
            request = requests.get()
            try:
                found = request.infer(given, share_inputs=True, share_outputs=True)
                outputs = {name: found[i][(wanted or {}).get(name, ())] for i, name in enumerate(names)}
                if LOGITS in outputs:
                    finite(outputs[LOGITS], self.manifest, self.info)
                return {
                    name: self._to_keep(values) if name in features else values.copy()
                    for name, values in outputs.items()
                }
            finally:
                requests.put(request)

        yield run

    def _given(self, values: NDArray[Any]) -> Any:
        """Features as they are kept, as the engine takes them."""
        if self.kept != "uint16":
            return np.asarray(values, np.float32)
        import openvino

        return openvino.Tensor(values, values.shape, openvino.Type.bf16)

    def _to_keep(self, values: NDArray[Any]) -> NDArray[Any]:
        """Features from the engine's memory, as they are kept. Raises: EngineError."""
        if self.kept != "float16":  # of bfloat16 numpy knows nothing, and is told that it is float16
            own: NDArray[Any] = (values if self.kept == "float32" else values.view(np.uint16)).copy()
            return own
        with np.errstate(over="ignore"):  # told below
            halves = values.astype(np.float16)
        # The largest finite number is what OpenVINO makes of larger ones. By bits: several times as fast as isfinite.
        if (halves.view(np.uint16) & 0x7FFF).max() >= 0x7BFF:
            raise EngineError("features exceed what float16 holds; take --precision float32.")
        return halves

    def _model(self, piece: Piece, window: Window) -> openvino.Model:
        size = (window.height, window.width)
        about = self.manifest
        if self._weights is None:
            return self.cut.model(piece, *size)
        if piece.number == ALONE:
            model = fast_graph(about.model, about.preprocess, self._weights, size, self.info.precision)
            model.inputs[0].get_tensor().set_names({IMAGE})
            return model
        return fast_piece(self.cut, piece, about.model, about.preprocess, self._weights, size, self.info.precision)

    def free(self) -> None:
        """Let go of what was compiled last."""
        self._compiled = None
