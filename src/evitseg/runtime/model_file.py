"""Read exported models and their manifests from disk, and check that the two belong together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

from evitseg.errors import WeightsError
from evitseg.manifest import Manifest, parse_manifest
from evitseg.system.files import replacing

MAX_MODEL_BYTES = 2 * 1024**3
"""Largest ONNX file, a limit of protobuf."""
MAX_MANIFEST_BYTES = 16 * 1024**2


def read(model_file: Path, limit: int = MAX_MODEL_BYTES) -> bytes:
    """A file's content. Raises: WeightsError for a file that is missing, unreadable or too large."""
    try:
        if model_file.stat().st_size > limit:
            raise WeightsError(
                f"{model_file}: more than {limit >> 20} MiB, too large for an exported model; give another file."
            )
        return model_file.read_bytes()
    except FileNotFoundError as error:
        advice = "`evitseg models` lists the models with a name"
        if model_file.suffix == ".bin":  # belongs to another file, which the person named
            advice = f"copy it to this folder, next to {model_file.stem}.xml or {model_file.stem}.param"
        raise WeightsError(f"{model_file}: no such file; {advice}.") from error
    except OSError as error:
        raise WeightsError(f"{model_file}: cannot be read ({error.strerror}).") from error


def manifest_file(model_file: Path) -> Path:
    """Path of the sidecar manifest, for formats that cannot embed one."""
    return model_file.with_name(f"{model_file.name}.json")


def digest(*contents: bytes) -> str:
    """The sha256 of all files together, which ties a sidecar manifest to them."""
    return sha256(b"".join(contents)).hexdigest()


def set_manifest_beside(model_file: Path, manifest: Manifest) -> None:
    """Write a sidecar manifest, tied to the exported model's files as they are now."""
    tied = replace(manifest, files_sha256=digest(*_contents(model_file)))
    with replacing(manifest_file(model_file)) as file:
        file.write(tied.to_json().encode())


def _contents(model_file: Path) -> list[bytes]:
    """The contents of an exported model's files; none for a folder."""
    if model_file.is_dir():
        return []
    further = [model_file.with_suffix(".bin")] if model_file.suffix == ".param" else []
    return [read(path) for path in (model_file, *further)]


def manifest_beside(model_file: Path, contents: Sequence[bytes] = ()) -> Manifest:
    """An exported model's sidecar manifest.

    Args:
        contents: of the exported model's files; the manifest must be tied to them.

    Raises: WeightsError, ConfigError.
    """
    path = manifest_file(model_file)
    if not model_file.exists():
        raise WeightsError(f"{model_file}: no such file; evitseg export writes one.")
    if not path.exists():
        raise WeightsError(
            f"{model_file}: its manifest {path.name} is missing next to it; copy both, or export it again."
        )
    try:
        text = read(path, MAX_MANIFEST_BYTES).decode()
    except UnicodeDecodeError as error:
        raise WeightsError(f"{path}: not a manifest; make one with evitseg export.") from error
    manifest = parse_manifest(text, path)
    if manifest.preprocess.fixed is None:
        raise WeightsError(f"{path}: has no image size, which this format needs; export it again.")
    if contents and digest(*contents) != manifest.files_sha256:
        raise WeightsError(
            f"{model_file}: {path.name} next to it belongs to another file, or one of the two is damaged; copy both, "
            "or export it again."
        )
    return manifest


def manifest_inside(text: str | None, model_file: Path) -> Manifest:
    """The manifest in an exported model's metadata. Raises: WeightsError if there is none, ConfigError."""
    if text is None:
        raise WeightsError(
            f"{model_file}: has no manifest, so evitseg did not write it; make an exported model with evitseg export."
        )
    return parse_manifest(text, model_file)


def check_graph(
    kind: str, given: list[int | None], logits: list[int | None], manifest: Manifest, model_file: Path
) -> None:
    """Refuse a graph that contradicts its manifest; None stands for a free size. Raises: WeightsError."""
    classes, fixed = manifest.model.num_classes, manifest.preprocess.fixed
    expected = [None, None, None, 3] if fixed is None else [1, *fixed, 3]
    if kind != "u8" or given != expected or len(logits) != 4 or logits[1] != classes:
        sizes = "any size" if fixed is None else f"{fixed[0]}x{fixed[1]}"
        raise WeightsError(
            f"{model_file}: its graph contradicts its manifest (uint8 images of {sizes} in, {classes} classes out); "
            "export it again."
        )


def first_line(error: Exception) -> str:
    """The line of an engine's message that states the problem; other lines give its source files."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return next((line for line in lines if not line.startswith(("Exception from", "Check"))), type(error).__name__)[
        :300
    ]
