"""Find and remove what interrupted and killed runs left behind."""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias

from evitseg.errors import FileError
from evitseg.system.files import STATE, is_temporary_name, remove_temporary, temporary_in_use

LeftoverState: TypeAlias = Literal["in use", "resumable", "outdated", "unfinished"]
"""A process works in it; a run can resume it; its image changed or is gone; it is of no use to anybody."""
_MAX_STATE_BYTES = 64 * 1024**2


@dataclass(frozen=True)
class Leftover:
    """A hidden file or folder of a run that did not end, or has not ended yet.

    Attributes:
        image: the image that was being segmented; "" if unknown.
        size_bytes: space that it takes on the disk.
        age_s: time since it was last written to.
    """

    path: Path
    state: LeftoverState
    image: str
    size_bytes: int
    age_s: float

    def remove(self) -> bool:
        """Remove it unless a process works in it; returns whether it is gone."""
        with contextlib.suppress(OSError):
            return remove_temporary(self.path)
        return False


def find_leftovers(folder: str | os.PathLike[str]) -> list[Leftover]:
    """The leftovers in a folder and its subfolders, the largest first.

    Links and hidden folders are not followed; folders that cannot be listed are left out.

    Raises: FileError if the folder itself cannot be listed.
    """
    try:
        os.scandir(folder).close()
    except OSError as error:
        raise FileError(f"{folder}: cannot be listed ({error.strerror or error}).") from error
    found: list[Leftover] = []
    for place, folders, files in os.walk(folder):
        for name in filter(is_temporary_name, (*folders, *files)):
            with contextlib.suppress(OSError):  # it was finished in the meantime
                found.append(_about(Path(place, name)))
        folders[:] = [name for name in folders if not name.startswith(".")]
    return sorted(found, key=lambda each: -each.size_bytes)


def _about(path: Path) -> Leftover:
    entries = [entry.stat(follow_symlinks=False) for entry in _content(path)] or [path.lstat()]
    # Files with holes take less space than their length says. Windows does not tell.
    size_bytes = sum(about.st_blocks * 512 if hasattr(about, "st_blocks") else about.st_size for about in entries)
    age_s = max(0.0, time.time() - max(about.st_mtime for about in entries))
    source = _source_of(path / STATE)
    state: LeftoverState = "unfinished"
    if temporary_in_use(path):
        state = "in use"
    elif source is not None:
        state = "outdated" if is_outdated(source) else "resumable"
    return Leftover(path, state, (source or "").rsplit(" ", 2)[0], size_bytes, age_s)


def _content(path: Path) -> Iterator[os.DirEntry[str]]:
    if path.is_dir() and not path.is_symlink():
        with os.scandir(path) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    yield from _content(Path(entry.path))
                else:
                    yield entry


def _source_of(state: Path) -> str | None:
    """The identity of the image that interrupted work belongs to; None if there is nothing to resume."""
    try:
        if state.stat().st_size > _MAX_STATE_BYTES:
            return None
        source = json.loads(state.read_text(encoding="utf-8"))["identity"]["source"]
    except (OSError, ValueError, RecursionError, KeyError, TypeError):
        return None
    return source if isinstance(source, str) else ""


def is_outdated(source: str) -> bool:
    """Whether an image changed since its identity (path, length, time of change) was noted, or is gone.

    False for an image that is no file, on a disk that is not mounted now, or in a folder that cannot be searched.
    """
    name, *about = source.rsplit(" ", 2)
    path = Path(name)
    if len(about) != 2 or not path.is_absolute() or not path.parent.is_dir():
        return False
    try:
        now = path.stat()
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return [str(now.st_size), str(now.st_mtime_ns)] != about
