"""Files that appear whole or not at all."""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from evitseg.errors import FileError

TEMPORARY = ".evitseg-"
"""What the names of files begin with that are on their way to another."""


@contextlib.contextmanager
def replacing(path: str | os.PathLike[str], durable: bool = False) -> Iterator[BinaryIO]:
    """A binary file that takes the place of `path` once the block ends, and leaves nothing behind if it fails.

    Missing folders are made. With `durable` the content is on the disk before it takes the place, so that after a
    power cut one of the two is there whole; that waits for the disk.

    Raises: FileError where the place cannot be written.
    """
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(temporary_name())
        # Not tempfile's: its files are private, and a result has the rights of any new file.
        file = open(temporary, "xb")  # noqa: SIM115  # closed below, where its errors are told
    except OSError as error:
        raise FileError(f"{path}: cannot be written ({error.strerror or error}).") from error
    try:
        with file:
            yield file
            if durable:
                file.flush()
                os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        if isinstance(error, OSError):
            raise FileError(f"{path}: cannot be written ({error.strerror or error}).") from error
        raise


def temporary_name() -> str:
    """A name for a file or folder on its way to another: hidden, and short whatever that other is called."""
    return f"{TEMPORARY}{secrets.token_hex(6)}"
