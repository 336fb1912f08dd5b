"""Write files atomically, clean up after killed processes, and walk folders."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import secrets
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from evitseg.errors import FileError

TEMPORARY = ".evitseg-"
"""Prefix of the names of files and folders that are not finished."""
STATE, LOCK = "state.json", "lock"
"""Files in a folder of interrupted work that a later call can resume."""
_OURS = re.compile(re.escape(TEMPORARY) + r"[0-9a-f]{12}")

_ATTEMPTS = 4
_swept: set[Path] = set()
"""Folders in which this process has already cleaned up after others."""


def is_there(path: str | os.PathLike[str]) -> bool:
    """Whether a file or folder exists; False for an impossible name or one that may not be looked up.

    `Path.exists` raises for such names. Here one bad name must not stop the others: whoever reads or writes the file
    reports it.
    """
    return os.path.exists(path)


def is_file(path: str | os.PathLike[str]) -> bool:
    """Whether a file exists; like `is_there` it never raises."""
    return os.path.isfile(path)  # noqa: PTH113


def is_folder(path: str | os.PathLike[str]) -> bool:
    """Whether a folder exists; like `is_there` it never raises."""
    return os.path.isdir(path)  # noqa: PTH112


def check_not_input(out: str | os.PathLike[str], inputs: Iterable[str | os.PathLike[str]]) -> None:
    """Check that a file to write is none of the files it is made from. Raises: FileError."""
    for each in inputs:
        if is_there(out) and is_there(each) and Path(out).samefile(each):
            raise FileError(f"{out}: is also the input, which would be lost; give another file to write (--out).")


def begin_to_read(path: str | os.PathLike[str]) -> None:
    """Make the system read a file into its cache, without waiting; nothing happens where it cannot."""
    if not hasattr(os, "posix_fadvise") or not is_file(path):
        return
    with contextlib.suppress(OSError):
        file = os.open(path, os.O_RDONLY)
        try:
            os.posix_fadvise(file, 0, 0, os.POSIX_FADV_WILLNEED)
        finally:
            os.close(file)


@contextmanager
def replacing(path: str | os.PathLike[str], durable: bool = False) -> Iterator[BinaryIO]:
    """A binary file that replaces `path` when the block ends, or disappears if the block fails.

    Missing folders are created. A killed process leaves a temporary file, which the next process that writes to the
    folder removes.

    Args:
        durable: flush the content to disk before the replacement, so that either the old or the new file survives a
            power cut. This waits for the disk.

    Raises: FileError if the file cannot be written.
    """
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        sweep_once(path.parent)
        file, temporary = _new_file(path.parent)
    except OSError as error:
        raise FileError(f"{path}: cannot be written ({error.strerror or error}).") from error
    lock = _duplicate(file.fileno())
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
        if lock is not None:
            os.close(lock)


@contextmanager
def temporary_folder(parent: Path) -> Iterator[Path]:
    """A hidden temporary folder in `parent`, removed with its content when the block ends.

    Raises: OSError if it cannot be created.
    """
    parent.mkdir(parents=True, exist_ok=True)
    sweep_once(parent)
    while True:
        folder = parent / temporary_name()
        folder.mkdir()
        lock = _lock_folder(folder)
        if folder.is_dir():  # another process's `sweep` may have removed it before it was locked
            break
        if lock is not None:
            os.close(lock)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        if lock is not None:
            os.close(lock)


def walk(
    folder: Path, on_error: Callable[[OSError], None], is_opaque: Callable[[Path], bool] = lambda folder: False
) -> Iterator[Path]:
    """Files at any depth below a folder, in no particular order.

    Links to folders are followed, but every folder is visited once. Hidden files and folders are left out.

    Args:
        on_error: called with the error, whose `filename` is the path, for a folder that cannot be listed.
        is_opaque: whether a folder is yielded as if it were a file, instead of being searched.
    """
    seen: set[tuple[int, int]] = set()
    links = [folder]
    while links:  # real folders before linked ones, so that a file has its real path if it can be reached by both
        waiting = [links.pop(0)]
        while waiting:
            place = waiting.pop()
            try:
                about = place.stat()
                if (about.st_dev, about.st_ino) in seen:
                    continue
                seen.add((about.st_dev, about.st_ino))
                with os.scandir(place) as entries:
                    content = sorted(entries, key=lambda entry: entry.name)
            except OSError as error:
                on_error(error)
                continue
            for entry in content:
                if entry.name.startswith("."):
                    continue
                path = place / entry.name
                if not _is_folder_entry(entry) or is_opaque(path):
                    yield path
                elif entry.is_symlink():
                    links.append(path)
                else:
                    waiting.append(path)


def _is_folder_entry(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a circular link
        return False


def temporary_name() -> str:
    """A name for an unfinished file or folder: hidden, and short enough whatever the final name is."""
    return f"{TEMPORARY}{secrets.token_hex(6)}"


def sweep_once(folder: Path) -> None:
    """Call `sweep` unless this process has already done so for the folder."""
    place = Path(os.path.abspath(folder))
    if place not in _swept:
        _swept.add(place)
        sweep(place)


def sweep(folder: Path) -> None:
    """Remove the temporary files and folders that killed processes left in a folder.

    A writer holds a lock on its temporary file, and the system releases the lock when the process ends for any reason.
    Only files that can be locked are removed. Interrupted work that can be resumed stays.
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


def is_temporary_name(name: str) -> bool:
    """Whether a file or folder of this name is not finished."""
    return _OURS.match(name) is not None


def temporary_in_use(path: Path) -> bool:
    """Whether a process works on a temporary file or folder; False where the system does not tell."""
    if sys.platform == "win32":
        return False
    place = path / LOCK if (path / LOCK).exists() else path
    file = os.open(place, os.O_RDONLY | os.O_NOFOLLOW)
    try:
        return not _lock(file)
    finally:
        os.close(file)


def remove_temporary(path: Path) -> bool:
    """Remove a temporary file or folder unless a process works on it; returns whether it is gone. Raises: OSError."""
    if path.is_dir() and not path.is_symlink():
        return remove_folder(path)
    _remove_file(os.fspath(path))
    return not path.exists()


def remove_folder(folder: Path) -> bool:
    """Remove a temporary folder unless a process works in it; returns whether it is gone."""
    if sys.platform == "win32":  # Windows does not remove open files
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
        # Not from tempfile, whose files only the owner may read: a result gets the permissions of any new file.
        file = open(temporary, "xb")  # noqa: SIM115  # the caller closes it and reports errors
        if sys.platform == "win32":
            return file, temporary
        _lock(file.fileno())
        with contextlib.suppress(OSError):
            if os.path.samestat(temporary.stat(), os.fstat(file.fileno())):
                return file, temporary
        if attempt == _ATTEMPTS - 1:
            return file, temporary
        file.close()  # another process's `sweep` removed it before it was locked
    raise AssertionError


def _duplicate(file: int) -> int | None:
    """A second descriptor, which keeps the lock of a file that is closed before it gets its final name."""
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
    """Lock an open file; False if another process has locked it or the file system has no locks."""
    if sys.platform == "win32":
        return False
    import fcntl

    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def file_sha256(path: str | os.PathLike[str]) -> str:
    """The digest of a file's content, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest() if hasattr(hashlib, "file_digest") else _sha256(file)


def _sha256(file: Any) -> str:
    digest = hashlib.sha256()  # Python 3.10 has no file_digest
    while block := file.read(1 << 20):
        digest.update(block)
    return digest.hexdigest()
