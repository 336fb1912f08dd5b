"""Read and write model files of the core (.evit): a manifest, then a program, as `core/src/model_file.h` reads them."""

from __future__ import annotations

from pathlib import Path

from evitseg.errors import WeightsError
from evitseg.manifest import Manifest
from evitseg.runtime.model_file import MAX_MANIFEST_BYTES, manifest_inside, read
from evitseg.runtime.program import is_complete
from evitseg.system.files import replacing

ENDING = ".evit"
_MAGIC, _ALIGNMENT = b"EVITFILE", 64
_START = len(_MAGIC) + 8
"""The manifest follows the magic bytes and its own length, a little-endian number of 8 bytes."""


def write_evit(path: Path, manifest: Manifest, program: bytes) -> None:
    """Write a model file.

    Args:
        program: made by `evitseg.runtime.program.compile_program`.
    """
    text = manifest.to_json().encode()
    head = _MAGIC + len(text).to_bytes(8, "little") + text
    with replacing(path) as file:
        file.write(head + bytes(-len(head) % _ALIGNMENT) + program)


def read_evit(path: Path) -> tuple[Manifest, bytes]:
    """The manifest and the program of a model file. Raises: WeightsError, ConfigError."""
    content = read(path)
    if not content.startswith(_MAGIC) or len(content) < _START:
        raise WeightsError(f"{path}: not a model file of evitseg; make one with evitseg export --to native.")
    end = _START + int.from_bytes(content[len(_MAGIC) : _START], "little")
    if end > len(content) or end > _START + MAX_MANIFEST_BYTES:
        raise WeightsError(f"{path}: damaged or incomplete; copy it again, or export it again.")
    try:
        text = content[_START:end].decode()
    except UnicodeDecodeError as error:
        raise WeightsError(f"{path}: its manifest is damaged; copy it again, or export it again.") from error
    program = content[end + -end % _ALIGNMENT :]
    if not is_complete(program):
        raise WeightsError(
            f"{path}: damaged or incomplete, or made by another version of evitseg; copy it again, or export it again."
        )
    return manifest_inside(text, path), program


def read_evit_manifest(path: Path) -> Manifest:
    """The manifest of a model file. Raises: WeightsError, ConfigError."""
    return read_evit(path)[0]


def set_evit_manifest(path: Path, manifest: Manifest) -> None:
    """Replace the manifest in a model file. Raises: WeightsError, ConfigError."""
    write_evit(path, manifest, read_evit(path)[1])
