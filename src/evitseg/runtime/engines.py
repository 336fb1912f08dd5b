"""Open a model file in an engine that runs its kind."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from evitseg.engine import PRECISIONS, Engine, Precision
from evitseg.errors import EngineError, WeightsError, unknown
from evitseg.manifest import Manifest
from evitseg.runtime.model_file import manifest_beside

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class EngineKind:
    """A way to run model files.

    Attributes:
        endings: endings of the files that it runs.
        open: makes the engine from a file, a precision, a number of threads and, with `has_streams`, of streams.
        has_streams: whether it can run several calls at the same time.
    """

    endings: tuple[str, ...]
    open: Callable[..., Engine]
    has_streams: bool = False


def _in(module: str, name: str) -> Callable[..., Any]:
    """A function or class of an engine's module, which is imported when it is called."""

    def call(*arguments: object) -> Any:
        return getattr(import_module(f"evitseg.runtime.{module}"), name)(*arguments)

    return call


ENGINES: dict[str, EngineKind] = {
    "native": EngineKind((".safetensors", ".onnx", ".evit"), _in("native", "open_native"), has_streams=True),
    "openvino": EngineKind((".onnx", ".xml"), _in("openvino_engine", "OpenVinoEngine"), has_streams=True),
    "onnxruntime": EngineKind((".onnx",), _in("onnxruntime_engine", "OnnxRuntimeEngine")),
    "litert": EngineKind((".tflite",), _in("mobile_engines", "LiteRtEngine")),
    "executorch": EngineKind((".pte",), _in("mobile_engines", "ExecuTorchEngine")),
    "ncnn": EngineKind((".param",), _in("mobile_engines", "NcnnEngine")),
}
"""Every engine by name; the first one that runs a kind of file is its default."""


def open_engine(
    model_file: str | os.PathLike[str],
    engine: str | None = None,
    precision: Precision = "auto",
    threads: int | None = None,
    streams: int = 1,
) -> Engine:
    """An engine that runs a model file.

    Args:
        model_file: path of a file that `evitseg export` wrote, or of a checkpoint (.safetensors) with its manifest.
        engine: a key of `ENGINES`; None for the file's default.
        precision: numerical precision; "auto" leaves the choice to the engine.
        threads: maximum number of threads; None for one per physical core.
        streams: calls that may run at the same time, if the engine can do that; otherwise calls wait for each other.

    Raises: EngineError for a request that the engine or this processor cannot fulfil, WeightsError for a file that is
    no model, ConfigError for an unknown name.
    """
    engine = engine_for(model_file, engine)
    check_request(precision, threads, streams)
    _LOG.info("%s: engine %s, precision %s", model_file, engine, precision)
    kind = ENGINES[engine]
    return kind.open(Path(model_file), precision, threads, *([streams] if kind.has_streams else []))


def engine_for(model_file: str | os.PathLike[str], engine: str | None = None) -> str:
    """The name of the engine that runs a model file: the one that is asked for, or the file's default.

    Raises: EngineError if that engine does not run such files, WeightsError for a file that is missing or no model,
    ConfigError for an unknown name.
    """
    if engine is not None and engine not in ENGINES:
        raise unknown("engine", engine, ENGINES)
    ending = Path(model_file).suffix
    if ending == ".mlpackage":
        raise EngineError(f"{model_file}: Core ML files run on Apple devices only; evitseg info describes them.")
    able = [name for name, kind in ENGINES.items() if ending in kind.endings]
    if not able:
        endings = ", ".join(dict.fromkeys(ending for kind in ENGINES.values() for ending in kind.endings))
        raise WeightsError(f"{model_file}: not a model; models end in {endings}.")
    if engine is not None and engine not in able:
        raise EngineError(f"{model_file}: {engine} does not run {ending} files; {' and '.join(able)} can.")
    if not Path(model_file).exists():  # checked before a missing package, which would not help
        raise WeightsError(f"{model_file}: no such file; `evitseg models` lists the models with a name.")
    return engine or able[0]


def check_request(precision: Precision, threads: int | None, streams: int) -> None:
    """Refuse settings that no engine has. Raises: EngineError, ConfigError for an unknown precision."""
    if precision not in PRECISIONS:
        raise unknown("precision", precision, PRECISIONS)
    if threads is not None and threads < 1:
        raise EngineError(f"threads is {threads}; give 1 or more.")
    if streams < 1:
        raise EngineError(f"streams is {streams}; give 1 or more.")


def read_manifest(model_file: Path) -> Manifest:
    """The manifest of an exported model or a checkpoint (.safetensors).

    Raises: WeightsError, ConfigError; MissingPackageError for OpenVINO's own files without OpenVINO.
    """
    readers = {
        ".safetensors": _in("checkpoint", "read_checkpoint_manifest"),
        ".onnx": _in("onnx_weights", "read_onnx_manifest"),
        ".evit": _in("evit_file", "read_evit_manifest"),
        ".xml": _in("openvino_engine", "openvino_manifest"),
    }
    manifest: Manifest = readers.get(model_file.suffix, manifest_beside)(model_file)
    return manifest
