"""Open an exported model in the engine that runs its kind of file."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from evitseg.engine import PRECISIONS, Engine, Precision
from evitseg.errors import EngineError, WeightsError, unknown
from evitseg.runtime.mobile_engines import ExecuTorchEngine, LiteRtEngine, NcnnEngine
from evitseg.runtime.native import NativeEngine
from evitseg.runtime.onnxruntime_engine import OnnxRuntimeEngine
from evitseg.runtime.openvino_engine import OpenVinoEngine

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class EngineKind:
    """A way to run exported models.

    Attributes:
        endings: endings of the files that it runs.
        open: makes the engine from a file, a precision, a number of threads and, with `has_streams`, of streams.
        has_streams: whether it can run several calls at the same time.
    """

    endings: tuple[str, ...]
    open: Callable[..., Engine]
    has_streams: bool = False


ENGINES: dict[str, EngineKind] = {
    "openvino": EngineKind((".onnx", ".xml"), OpenVinoEngine, has_streams=True),
    "onnxruntime": EngineKind((".onnx",), OnnxRuntimeEngine),
    "native": EngineKind((".onnx", ".safetensors", ".evit"), NativeEngine, has_streams=True),
    "litert": EngineKind((".tflite",), LiteRtEngine),
    "executorch": EngineKind((".pte",), ExecuTorchEngine),
    "ncnn": EngineKind((".param",), NcnnEngine),
}
"""Every engine by name; the first one that runs a kind of file is its default."""


def open_engine(
    model_file: str | os.PathLike[str],
    engine: str | None = None,
    precision: Precision = "auto",
    threads: int | None = None,
    streams: int = 1,
) -> Engine:
    """An engine that runs an exported model.

    Args:
        model_file: path of a file that `evitseg export` wrote.
        engine: a key of `ENGINES`; None for the file's default.
        precision: of the arithmetic; "auto" uses bfloat16 if the processor supports it, else the engine's own choice.
        threads: maximum number of threads; None for one per physical core.
        streams: calls that may run at the same time, if the engine can do that; otherwise calls wait for each other.

    Raises: EngineError for a request that the engine or this processor cannot fulfil, WeightsError for a file that is
    no exported model, ConfigError for an unknown name.
    """
    if engine is not None and engine not in ENGINES:
        raise unknown("engine", engine, ENGINES)
    ending = Path(model_file).suffix
    if ending == ".mlpackage":
        raise EngineError(f"{model_file}: Core ML files run on Apple devices only; evitseg info describes them.")
    able = [name for name, kind in ENGINES.items() if ending in kind.endings]
    if not able:
        endings = ", ".join(dict.fromkeys(ending for kind in ENGINES.values() for ending in kind.endings))
        raise WeightsError(f"{model_file}: not an exported model; exported models end in {endings}.")
    engine = engine or able[0]
    if engine not in able:
        raise EngineError(f"{model_file}: {engine} does not run {ending} files; {' and '.join(able)} can.")
    if not Path(model_file).exists():  # checked before a missing package, which would not help
        raise WeightsError(f"{model_file}: no such file; evitseg info lists the models that come with the package.")
    if precision not in PRECISIONS:
        raise unknown("precision", precision, PRECISIONS)
    if threads is not None and threads < 1:
        raise EngineError(f"threads is {threads}; give 1 or more.")
    if streams < 1:
        raise EngineError(f"streams is {streams}; give 1 or more.")
    _LOG.info("%s: engine %s of %s, precision %s", model_file, engine, ", ".join(able), precision)
    kind = ENGINES[engine]
    return kind.open(Path(model_file), precision, threads, *([streams] if kind.has_streams else []))
