"""From a checkpoint to a file for a device, verified before it is kept."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from evitseg import __version__
from evitseg.engine import Engine
from evitseg.errors import ExportError, FileError, unknown
from evitseg.exporters.coreml import CoreMlReader, write_coreml
from evitseg.exporters.executorch import write_executorch
from evitseg.exporters.litert import write_litert
from evitseg.exporters.ncnn import write_ncnn
from evitseg.exporters.onnx import set_onnx_manifest, write_onnx
from evitseg.exporters.openvino import set_openvino_manifest, write_openvino
from evitseg.exporters.verify import example_pictures, verify
from evitseg.files import temporary_name
from evitseg.image import Picture, Preprocess, read_picture
from evitseg.labels import LabelSpace
from evitseg.manifest import Manifest, Training
from evitseg.model.network import EfficientViT
from evitseg.model.weights import load_checkpoint
from evitseg.runtime.artefact import manifest_file, set_manifest_beside
from evitseg.runtime.engines import open_engine


@dataclass(frozen=True)
class Format:
    """A kind of artefact.

    Attributes:
        ending: of the file's name.
        write: converts a network to the file.
        set_manifest: gives a written file its manifest.
        beside: what stands in place of the ending in the names of further files that belong to it.
        one_size: whether it takes pictures of one size; its manifest lies beside it then.
        weights: the number formats it can store them in.
        run: opens a written file, to compare it with its checkpoint.
    """

    ending: str
    write: Callable[[EfficientViT, Manifest, Path], None]
    set_manifest: Callable[[Path, Manifest], None] = set_manifest_beside
    beside: tuple[str, ...] = ()
    one_size: bool = True
    weights: tuple[str, ...] = ("float32", "float16")
    run: Callable[[Path], Engine] = lambda path: open_engine(path, precision="float32")

    def name(self, stem: str | os.PathLike[str]) -> Path:
        """The file's name for a model that is called so."""
        return Path(f"{os.fspath(stem)}{self.ending}")

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
    "ncnn": Format(".ncnn.param", write_ncnn, beside=(".ncnn.bin",)),
    "coreml": Format(".mlpackage", write_coreml, run=CoreMlReader),
}


def export(
    checkpoint: str | os.PathLike[str] | tuple[EfficientViT, Manifest],
    to: str = "onnx",
    out: str | os.PathLike[str] | None = None,
    *,
    weights: str = "float32",
    size: tuple[int, int] | None = None,
    pictures: Sequence[str | os.PathLike[str]] = (),
    labels: LabelSpace | None = None,
    preprocess: Preprocess | None = None,
    name: str | None = None,
    training: Training | None = None,
) -> tuple[Path, Manifest]:
    """Convert a checkpoint, run the result beside it on real pictures, and keep it only if they agree.

    Args:
        checkpoint: what `load_checkpoint` reads, or a network with its manifest.
        to: a key of `FORMATS`.
        out: the file to write; by default beside the checkpoint, with the format's ending.
        weights: "float32", or "float16" for a file of half the size; arithmetic is the engine's choice either way.
        size: (height, width) of the only pictures it takes, in pixels; formats of one size need it.
        pictures: to verify on; by default the photograph that ships with the package.
        labels, preprocess, name, training: replace what the checkpoint's manifest says.

    Returns: the file, and the manifest it carries.

    Raises: ExportError where the artefact disagrees with its checkpoint, and then nothing is written; FileError,
    PictureError, WeightsError, ConfigError, MissingPackageError.
    """
    if to not in FORMATS:
        raise unknown("format", to, FORMATS)
    form = FORMATS[to]
    if weights not in ("float32", "float16"):
        raise unknown("number format of weights", weights, ("float32", "float16"))
    if weights not in form.weights:
        raise ExportError(f"{to} files store weights as {' or '.join(form.weights)}, not as {weights}.")
    if isinstance(checkpoint, tuple):
        model, manifest = checkpoint
        if out is None:
            raise ExportError("a network in memory has no place on disk; say which file to write (out=).")
        out = Path(out)
    else:
        model, manifest = load_checkpoint(checkpoint)
        out = Path(out) if out is not None else form.name(Path(checkpoint).with_suffix(""))
    if not out.name.endswith(form.ending):
        raise ExportError(f"{out}: {to} files end in {form.ending}; name it {form.name(out.with_suffix('')).name}.")

    reals: list[Picture] = [read_picture(path) for path in pictures] or example_pictures()
    preprocess = preprocess or manifest.preprocess
    if size is not None:
        preprocess = replace(preprocess, fixed=size)
    if form.one_size and preprocess.fixed is None:
        height, width = preprocess.fit(reals[0].shape[:2])
        raise ExportError(
            f"{to} files take pictures of one size; say which (--size HEIGHTxWIDTH), such as {height}x{width}, to "
            f"which this model would bring a picture of {reals[0].shape[0]}x{reals[0].shape[1]}."
        )
    changes = {"labels": labels, "name": name, "training": training}
    manifest = replace(
        manifest,
        weights=weights,
        preprocess=preprocess,
        evitseg_version=__version__,
        **{key: value for key, value in changes.items() if value is not None},  # type: ignore[arg-type]
    )

    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=out.parent, prefix=temporary_name()) as folder:
            temporary = Path(folder) / out.name
            form.write(model, manifest, temporary)
            form.set_manifest(temporary, manifest)
            engine = form.run(temporary)
            manifest = replace(manifest, verification=verify(temporary.name, engine, model, manifest, reals))
            form.set_manifest(temporary, manifest)
            for new, final in zip(form.files(temporary), form.files(out), strict=True):
                if final.is_dir():  # which cannot be replaced in one step
                    final.replace(Path(folder) / "old")
                new.replace(final)  # the artefact last: it is what makes the others one
    except OSError as error:
        raise FileError(f"{out}: cannot be written ({error.strerror or error}).") from error
    return out, manifest
