"""Open an exported model in the engine that runs its kind of file."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from evitseg.engine import PRECISIONS, Engine, Precision
from evitseg.errors import EngineError, WeightsError, unknown
from evitseg.runtime.mobile_engines import ExecuTorchEngine, LiteRtEngine, NcnnEngine
from evitseg.runtime.native import NativeEngine
from evitseg.runtime.onnxruntime_engine import OnnxRuntimeEngine
from evitseg.runtime.openvino_engine import OpenVinoEngine

if TYPE_CHECKING:
    pass


_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class EngineKind:
    """A way to run exported models.

    Attributes:
        endings: of the files it runs.
        open: makes the engine from a file, a precision and a number of threads, and of streams where it has them.
        has_streams: whether it can run several calls at the same time.
    """

    endings: tuple[str, ...]
    open: Callable[..., Engine]
    has_streams: bool = False


ENGINES: dict[str, EngineKind] = {
    "openvino": EngineKind((".onnx", ".xml"), OpenVinoEngine, has_streams=True),
    "onnxruntime": EngineKind((".onnx",), OnnxRuntimeEngine),
    "native": EngineKind((".onnx", ".safetensors"), NativeEngine, has_streams=True),
    "litert": EngineKind((".tflite",), LiteRtEngine),
    "executorch": EngineKind((".pte",), ExecuTorchEngine),
    "ncnn": EngineKind((".param",), NcnnEngine),
}
"""By name; of several that run a file the first is taken."""


def open_engine(
    model_file: str | os.PathLike[str],
    engine: str | None = None,
    precision: Precision = "auto",
    threads: int | None = None,
    streams: int = 1,
) -> Engine:
    """An exported model, ready to run.

    Args:
        model_file: path of a file that `evitseg export` wrote.
        engine: a key of `ENGINES`; None for the first that runs such a file.
        precision: of the arithmetic; "auto" takes bfloat16 where the processor has it, else what the engine chooses.
        threads: at most; None for every physical core.
        streams: calls that may run at the same time, if the engine can do that; else one waits for the other.

    Raises: EngineError for a request that the engine or this processor cannot fulfil, WeightsError for a file that is
    no exported model, ConfigError for an unknown name.
    """
    if engine is not None and engine not in ENGINES:
        raise unknown("engine", engine, ENGINES)
    ending = Path(model_file).suffix
    if ending == ".mlpackage":
        raise EngineError(f"{model_file}: Core ML runs on Apple's devices alone; evitseg info says what is in it.")
    able = [name for name, kind in ENGINES.items() if ending in kind.endings]
    if not able:
        endings = ", ".join(dict.fromkeys(ending for kind in ENGINES.values() for ending in kind.endings))
        raise WeightsError(f"{model_file}: not an exported model; exported models end in {endings}.")
    engine = engine or able[0]
    if engine not in able:
        raise EngineError(f"{model_file}: {engine} does not run {ending} files; {' and '.join(able)} can.")
    if not Path(model_file).exists():  # said before a package is missed that would not help
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
