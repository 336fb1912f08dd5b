"""Files that appear whole or not at all, and what is left of those whose process died."""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from evitseg.errors import FileError

TEMPORARY = ".evitseg-"
"""What the names of files begin with that are on their way to another."""
STATE, LOCK = "state.json", "lock"
"""Files of a folder with interrupted work, which a later call resumes."""
_OURS = re.compile(re.escape(TEMPORARY) + r"[0-9a-f]{12}")

_ATTEMPTS = 4
_swept: set[Path] = set()
"""Folders that this process has looked through for what others left."""


def is_there(path: str | os.PathLike[str]) -> bool:
    """Whether there is a file or folder; unlike `Path.exists`, False where that may not be known or cannot be a name.

    Whoever reads or writes it tells why: one such name must not stop the others.
    """
    return os.path.exists(path)


def is_file(path: str | os.PathLike[str]) -> bool:
    """Whether there is a file, in the same way."""
    return os.path.isfile(path)  # noqa: PTH113


def is_folder(path: str | os.PathLike[str]) -> bool:
    """Whether there is a folder, in the same way."""
    return os.path.isdir(path)  # noqa: PTH112


@contextmanager
def replacing(path: str | os.PathLike[str], durable: bool = False) -> Iterator[BinaryIO]:
    """A binary file that takes the place of `path` once the block ends, and leaves nothing behind if it fails.

    Missing folders are made. With `durable` the content is on the disk before it takes the place, so that after a
    power cut one of the two is there whole; that waits for the disk. What is left of a process that was killed is
    removed by the next one that writes to the folder.

    Raises: FileError where the place cannot be written.
    """
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        sweep_once(path.parent)
        file, temporary = _new_file(path.parent)
    except OSError as error:
        raise FileError(f"{path}: cannot be written ({error.strerror or error}).") from error
    held = _held_open(file.fileno())
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
    finally:
        if held is not None:
            os.close(held)


@contextmanager
def temporary_folder(parent: Path) -> Iterator[Path]:
    """A hidden folder in `parent`, for what is on its way to its place beside it; removed at the end with all in it.

    Raises: OSError where none can be made.
    """
    parent.mkdir(parents=True, exist_ok=True)
    sweep_once(parent)
    while True:
        folder = parent / temporary_name()
        folder.mkdir()
        held = _lock_folder(folder)
        if folder.is_dir():  # another process's `sweep` may have come in between
            break
        if held is not None:
            os.close(held)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        if held is not None:
            os.close(held)


def temporary_name() -> str:
    """A name for a file or folder on its way to another: hidden, and short whatever that other is called."""
    return f"{TEMPORARY}{secrets.token_hex(6)}"


def sweep_once(folder: Path) -> None:
    """`sweep`, if this process has not yet done so."""
    place = Path(os.path.abspath(folder))
    if place not in _swept:
        _swept.add(place)
        sweep(place)


def sweep(folder: Path) -> None:
    """Remove the hidden files and folders that killed processes left here.

    Whoever writes one holds a lock on it, which the system releases when the process ends, however it ends; only what
    can be locked is removed. Interrupted work that can be resumed stays.
    """
    with contextlib.suppress(OSError):
        for entry in list(os.scandir(folder)):
            if not _OURS.match(entry.name):
                continue
            with contextlib.suppress(OSError):
                if entry.is_dir(follow_symlinks=False):
                    if not (Path(entry.path) / STATE).exists():
                        remove_folder(Path(entry.path))
                elif entry.is_file(follow_symlinks=False):
                    _remove_file(entry.path)


def remove_folder(folder: Path) -> bool:
    """Remove a hidden folder unless a process works in it; whether it is gone."""
    if sys.platform == "win32":  # which removes no file that is open
        with contextlib.suppress(OSError):
            (folder / LOCK).unlink(missing_ok=True)
            shutil.rmtree(folder)
        return not folder.exists()
    place = folder / LOCK if (folder / LOCK).exists() else folder
    file = os.open(place, os.O_RDONLY | os.O_NOFOLLOW)
    try:
        if _lock(file):
            shutil.rmtree(folder, ignore_errors=True)
    finally:
        os.close(file)
    return not folder.exists()


def _remove_file(path: str) -> None:
    if sys.platform == "win32":
        Path(path).unlink()
        return
    file = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
    try:
        if _lock(file):
            Path(path).unlink()
    finally:
        os.close(file)


def _new_file(folder: Path) -> tuple[BinaryIO, Path]:
    """A new hidden file, locked."""
    for attempt in range(_ATTEMPTS):
        temporary = folder / temporary_name()
        # Not tempfile's: its files are private, and a result has the rights of any new file.
        file = open(temporary, "xb")  # noqa: SIM115  # closed by the caller, where its errors are told
        if sys.platform == "win32":
            return file, temporary
        _lock(file.fileno())
        with contextlib.suppress(OSError):
            if os.path.samestat(temporary.stat(), os.fstat(file.fileno())):
                return file, temporary
        if attempt == _ATTEMPTS - 1:
            return file, temporary
        file.close()  # another process's `sweep` came in between
    raise AssertionError


def _held_open(file: int) -> int | None:
    """Keeps the lock of an open file until the file has its name, also after it is closed."""
    return None if sys.platform == "win32" else os.dup(file)


def _lock_folder(folder: Path) -> int | None:
    if sys.platform == "win32":
        return None
    with contextlib.suppress(OSError):
        file = os.open(folder, os.O_RDONLY)
        _lock(file)
        return file
    return None


def _lock(file: int) -> bool:
    """Take an open file for this process alone; False where another has it or the file system has no locks."""
    if sys.platform == "win32":
        return False
    import fcntl

    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True
