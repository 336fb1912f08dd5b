"""The export formats as a table."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from evitseg.engine import Engine
from evitseg.exporters.coreml import CoreMlReader, write_coreml
from evitseg.exporters.executorch import write_executorch
from evitseg.exporters.int8 import Rounding, by_table, per_channel
from evitseg.exporters.litert import write_litert
from evitseg.exporters.ncnn import write_ncnn
from evitseg.exporters.onnx import set_onnx_manifest, write_onnx
from evitseg.exporters.openvino import set_openvino_manifest, write_openvino
from evitseg.manifest import Manifest
from evitseg.model.network import EfficientViT
from evitseg.runtime.engines import open_engine
from evitseg.runtime.model_file import manifest_file, set_manifest_beside

WEIGHTS = ("float32", "float16", "int8")


@dataclass(frozen=True)
class Format:
    """A kind of artefact.

    Attributes:
        ending: of the file's name.
        write: converts a network to the file.
        set_manifest: gives a written file its manifest.
        beside: what stands in place of the ending in the names of further files that belong to it.
        one_size: whether it takes images of one size; its manifest lies beside it then.
        weights: the number formats it can store them in.
        rounding: to what its 8 bits can say.
        run: opens a written file, to compare it with its checkpoint.
    """

    ending: str
    write: Callable[[EfficientViT, Manifest, Path], None]
    set_manifest: Callable[[Path, Manifest], None] = set_manifest_beside
    beside: tuple[str, ...] = ()
    one_size: bool = True
    weights: tuple[str, ...] = WEIGHTS
    rounding: Rounding = per_channel
    run: Callable[[Path], Engine] = lambda path: open_engine(path, precision="float32")

    def name(self, stem: str | os.PathLike[str]) -> Path:
        """The file's name for a model that is called so."""
        return Path(f"{os.fspath(stem)}{self.ending}")

    def size_bytes(self, artefact: Path) -> int:
        """Of all that belong to an artefact."""
        every = (file for top in self.files(artefact) for file in (top, *top.rglob("*")))
        return sum(file.stat().st_size for file in every if file.is_file())

    def files(self, artefact: Path) -> list[Path]:
        """All that belong to an artefact, itself last."""
        stem = artefact.name.removesuffix(self.ending)
        further = [artefact.with_name(stem + ending) for ending in self.beside]
        return [*further, *([manifest_file(artefact)] if self.one_size else []), artefact]


FORMATS: dict[str, Format] = {
    "onnx": Format(".onnx", write_onnx, set_onnx_manifest, one_size=False),
    "openvino": Format(".xml", write_openvino, set_openvino_manifest, beside=(".bin",), one_size=False),
    "litert": Format(".tflite", write_litert),
    "executorch": Format(".pte", write_executorch, weights=("float32",)),
    "ncnn": Format(".ncnn.param", write_ncnn, beside=(".ncnn.bin",), rounding=by_table),
    "coreml": Format(".mlpackage", write_coreml, run=CoreMlReader),
}
