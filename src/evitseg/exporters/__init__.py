"""From a checkpoint to a file for a device, verified before it is kept."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from evitseg import __version__
from evitseg.errors import ExportError, FileError, unknown
from evitseg.exporters.onnx import set_onnx_manifest, write_onnx
from evitseg.exporters.openvino import set_openvino_manifest, write_openvino
from evitseg.exporters.verify import example_pictures, verify
from evitseg.files import temporary_name
from evitseg.image import Picture, Preprocess, read_picture
from evitseg.labels import LabelSpace
from evitseg.manifest import Manifest, Training
from evitseg.model.network import EfficientViT
from evitseg.model.weights import load_checkpoint


@dataclass(frozen=True)
class Format:
    """A kind of artefact.

    Attributes:
        ending: of the file's name.
        write: converts a network to a file that carries the manifest.
        set_manifest: gives a written file another manifest.
        beside: endings of further files that belong to it.
    """

    ending: str
    write: Callable[[EfficientViT, Manifest, Path], None]
    set_manifest: Callable[[Path, Manifest], None]
    beside: tuple[str, ...] = ()


FORMATS: dict[str, Format] = {
    "onnx": Format(".onnx", write_onnx, set_onnx_manifest),
    "openvino": Format(".xml", write_openvino, set_openvino_manifest, beside=(".bin",)),
}


def export(
    checkpoint: str | os.PathLike[str] | tuple[EfficientViT, Manifest],
    to: str = "onnx",
    out: str | os.PathLike[str] | None = None,
    *,
    weights: str = "float32",
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
        pictures: to verify on; by default the photograph that ships with the package.
        labels, preprocess, name, training: replace what the checkpoint's manifest says.

    Returns: the file, and the manifest it carries.

    Raises: ExportError where the artefact disagrees with its checkpoint, and then nothing is written; FileError,
    PictureError, WeightsError, ConfigError, MissingPackageError.
    """
    if to not in FORMATS:
        raise unknown("format", to, FORMATS)
    if weights not in ("float32", "float16"):
        raise unknown("number format of weights", weights, ("float32", "float16"))
    form = FORMATS[to]
    if isinstance(checkpoint, tuple):
        model, manifest = checkpoint
        if out is None:
            raise ExportError("a network in memory has no place on disk; say which file to write (out=).")
        out = Path(out)
    else:
        model, manifest = load_checkpoint(checkpoint)
        out = Path(out) if out is not None else Path(checkpoint).with_suffix(form.ending)
    if out.suffix != form.ending:
        raise ExportError(f"{out}: {to} files end in {form.ending}; name it {out.with_suffix(form.ending).name}.")

    changes = {"labels": labels, "preprocess": preprocess, "name": name, "training": training}
    manifest = replace(
        manifest,
        weights=weights,
        evitseg_version=__version__,
        **{key: value for key, value in changes.items() if value is not None},  # type: ignore[arg-type]
    )
    reals: list[Picture] = [read_picture(path) for path in pictures] or example_pictures()

    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=out.parent, prefix=temporary_name()) as folder:
            temporary = Path(folder) / out.name
            form.write(model, manifest, temporary)
            manifest = replace(manifest, verification=verify(temporary, model, manifest, reals))
            form.set_manifest(temporary, manifest)
            for ending in form.beside:
                temporary.with_suffix(ending).replace(out.with_suffix(ending))
            temporary.replace(out)  # last: it is what makes the artefact one
    except OSError as error:
        raise FileError(f"{out}: cannot be written ({error.strerror or error}).") from error
    return out, manifest
