"""The export formats as a table, which needs neither PyTorch nor a converter until a format is written."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evitseg.engine import Engine
from evitseg.manifest import Manifest
from evitseg.runtime.engines import open_engine
from evitseg.runtime.evit_file import set_evit_manifest
from evitseg.runtime.model_file import manifest_file, set_manifest_beside

if TYPE_CHECKING:
    from evitseg.exporters.int8 import Rounding
    from evitseg.exporters.integer_simulation import IntegerNetwork
    from evitseg.model.network import EfficientViT

WEIGHTS = ("float32", "float16", "int8")
INTEGERS = "w8a8"
"""In place of a number format of weights: weights and activations are integers."""


def _in(module: str, name: str) -> Callable[..., Any]:
    """A function or class of a converter's module, which is imported when it is called."""

    def call(*arguments: object) -> Any:
        return getattr(import_module(f"evitseg.exporters.{module}"), name)(*arguments)

    return call


_PER_CHANNEL = _in("int8", "per_channel")


@dataclass(frozen=True)
class Format:
    """A kind of exported model.

    Attributes:
        ending: the end of the file's name; "" for any.
        extra: the extra of the package that installs the converter.
        engine: the engine that `--to best` measures it in; None if it runs on other machines only.
        write: converts a network to the file.
        set_manifest: gives a written file its manifest.
        beside: endings of further files that belong to it, in place of `ending`.
        one_size: whether it takes images of one size; its manifest is then a file next to it.
        weights: the number formats that it can store weights in.
        rounding: rounds weights to values that its 8 bits can represent.
        run: opens a written file, to compare it with its checkpoint.
        folder: a file that every model of this format contains, if its models are folders.
        default_ending: the end of the name that is chosen for a model without one, where `ending` is "".
        write_integers: writes a network of integers; None if the format has none.
        run_integers: opens such a file.
    """

    ending: str
    extra: str
    engine: str | None
    write: Callable[[EfficientViT, Manifest, Path], None]
    set_manifest: Callable[[Path, Manifest], None] = set_manifest_beside
    beside: tuple[str, ...] = ()
    one_size: bool = True
    weights: tuple[str, ...] = WEIGHTS
    rounding: Rounding = _PER_CHANNEL
    run: Callable[[Path], Engine] = lambda path: open_engine(path, precision="float32")
    folder: str | None = None
    default_ending: str = ""
    write_integers: Callable[[IntegerNetwork, Path], None] | None = None
    run_integers: Callable[[Path], Engine] = open_engine

    def name(self, stem: str | os.PathLike[str]) -> Path:
        """Name of the file for a model of this name."""
        return Path(f"{os.fspath(stem)}{self.ending or self.default_ending}")

    def may_replace(self, folder: Path) -> bool:
        """Whether an export may take the place of a folder: of an earlier export, or an empty one."""
        return self.folder is not None and ((folder / self.folder).is_file() or not any(folder.iterdir()))

    def size_bytes(self, model_file: Path) -> int:
        """Size of an exported model with all files that belong to it."""
        every = (file for top in self.files(model_file) for file in (top, *top.rglob("*")))
        return sum(file.stat().st_size for file in every if file.is_file())

    def files(self, model_file: Path) -> list[Path]:
        """All files that belong to an exported model, itself last."""
        stem = model_file.name.removesuffix(self.ending)
        further = [model_file.with_name(stem + ending) for ending in self.beside]
        return [*further, *([manifest_file(model_file)] if self.one_size else []), model_file]


FORMATS: dict[str, Format] = {
    "onnx": Format(
        ".onnx", "export", "onnxruntime", _in("onnx", "write_onnx"), _in("onnx", "set_onnx_manifest"), one_size=False,
        run=lambda path: open_engine(path, "openvino", "float32"),  # the native engine would not run its graph
        write_integers=_in("integer_onnx", "write_integer_onnx"),
        run_integers=lambda path: open_engine(path, "onnxruntime"),
    ),
    "openvino": Format(
        ".xml", "export", "openvino", _in("openvino", "write_openvino"), _in("openvino", "set_openvino_manifest"),
        beside=(".bin",), one_size=False,
    ),
    "native": Format(
        ".evit", "torch", "native", _in("evit", "write_evit"), set_evit_manifest, one_size=False,
        weights=("float32",),
    ),
    "web": Format(
        "", "torch", None, _in("web", "write_web"), _in("web", "set_web_manifest"), one_size=False,
        weights=("float32",), run=_in("web", "open_web"), folder="model.check", default_ending="-web",
    ),
    "litert": Format(
        ".tflite", "litert-export", "litert", _in("litert", "write_litert"),
        write_integers=_in("integer_litert", "write_integer_litert"),
    ),
    "executorch": Format(
        ".pte", "executorch", "executorch", _in("executorch", "write_executorch"), weights=("float32",)
    ),
    "ncnn": Format(
        ".ncnn.param", "ncnn-export", "ncnn", _in("ncnn", "write_ncnn"), beside=(".ncnn.bin",),
        rounding=_in("int8", "by_table"),
    ),
    "coreml": Format(
        ".mlpackage", "coreml", None, _in("coreml", "write_coreml"), run=_in("coreml", "CoreMlReader"),
        folder="Manifest.json",
    ),
}  # fmt: skip


def format_of(file: Path) -> Format | None:
    """The format whose files have such a name; None for any other, such as a checkpoint or the folder of a page."""
    return next((form for form in FORMATS.values() if form.ending and file.name.endswith(form.ending)), None)
