"""Exported models on disk: their bytes, their manifests, and whether the two belong together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

from evitseg.errors import WeightsError
from evitseg.manifest import Manifest, parse_manifest
from evitseg.system.files import replacing

MAX_ARTEFACT_BYTES = 2 * 1024**3
"""Of an ONNX file; protobuf holds no more."""
MAX_MANIFEST_BYTES = 16 * 1024**2


def read(model_file: Path, limit: int = MAX_ARTEFACT_BYTES) -> bytes:
    try:
        if model_file.stat().st_size > limit:
            raise WeightsError(
                f"{model_file}: larger than any such file can be; give an exported model of evitseg export."
            )
        return model_file.read_bytes()
    except FileNotFoundError as error:
        raise WeightsError(
            f"{model_file}: no such file; evitseg info lists the models that come with the package."
        ) from error
    except OSError as error:
        raise WeightsError(f"{model_file}: cannot be read ({error.strerror}).") from error


def manifest_file(model_file: Path) -> Path:
    """Where the manifest of a format is that has no place for it inside."""
    return model_file.with_name(f"{model_file.name}.json")


def digest(*contents: bytes) -> str:
    """What ties a manifest to the files it lies beside: sha256 of one after the other."""
    return sha256(b"".join(contents)).hexdigest()


def set_manifest_beside(model_file: Path, manifest: Manifest) -> None:
    """Write the manifest of such an exported model, tied to its files as they are now."""
    tied = replace(manifest, files_sha256=digest(*_contents(model_file)))
    with replacing(manifest_file(model_file)) as file:
        file.write(tied.to_json().encode())


def _contents(model_file: Path) -> list[bytes]:
    """Of the exported model's files; none for a folder."""
    if model_file.is_dir():
        return []
    further = [model_file.with_suffix(".bin")] if model_file.suffix == ".param" else []
    return [read(path) for path in (model_file, *further)]


def manifest_beside(model_file: Path, contents: Sequence[bytes] = ()) -> Manifest:
    """The manifest of such an exported model.

    Args:
        contents: of the exported model's files, to see that it is theirs.

    Raises: WeightsError, ConfigError.
    """
    path = manifest_file(model_file)
    if not model_file.exists():
        raise WeightsError(f"{model_file}: no such file; evitseg export writes one.")
    if not path.exists():
        raise WeightsError(
            f"{model_file}: its manifest {path.name} is not beside it; copy both, or make them with evitseg export."
        )
    try:
        text = read(path, MAX_MANIFEST_BYTES).decode()
    except UnicodeDecodeError as error:
        raise WeightsError(f"{path}: not a manifest; make one with evitseg export.") from error
    manifest = parse_manifest(text, path)
    if manifest.preprocess.fixed is None:
        raise WeightsError(f"{path}: says no size, which such a file must have; export it again.")
    if contents and digest(*contents) != manifest.files_sha256:
        raise WeightsError(
            f"{model_file}: {path.name} beside it is another file's, or one of the two is damaged; copy both, or "
            "export again."
        )
    return manifest


def manifest_inside(text: str | None, model_file: Path) -> Manifest:
    if text is None:
        raise WeightsError(
            f"{model_file}: not an evitseg export, it carries no manifest; make one with evitseg export."
        )
    return parse_manifest(text, model_file)


def check_graph(
    kind: str, given: list[int | None], logits: list[int | None], manifest: Manifest, model_file: Path
) -> None:
    """Refuse a graph that is not what its manifest says; None stands for a free size."""
    classes, fixed = manifest.model.num_classes, manifest.preprocess.fixed
    expected = [None, None, None, 3] if fixed is None else [1, *fixed, 3]
    if kind != "u8" or given != expected or len(logits) != 4 or logits[1] != classes:
        sizes = "any size" if fixed is None else f"{fixed[0]}x{fixed[1]}"
        raise WeightsError(
            f"{model_file}: its graph is not what its manifest says (uint8 images of {sizes} in, {classes} classes "
            "out); export it again."
        )


def first_line(error: Exception) -> str:
    """The line of an engine's message that says what is wrong; the others give its source files."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return next((line for line in lines if not line.startswith(("Exception from", "Check"))), type(error).__name__)[
        :300
    ]
