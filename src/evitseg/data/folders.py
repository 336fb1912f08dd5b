"""Files below a folder: links are followed once, hidden files never; what is not read is kept with its reason."""

from __future__ import annotations

import os
import stat
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from evitseg.errors import DatasetError
from evitseg.raster.formats import EXTENSIONS, UNREAD_EXTENSIONS

_ARRAYS = frozenset({".npy", ".npz", ".mat"})
"""Endings of files in which masks are stored that are no images."""


@dataclass(frozen=True)
class Skipped:
    """A file that is not read, and why: an image of another format, or no file that can be opened safely."""

    path: Path
    reason: str


def image_files(folder: Path, skipped: list[Skipped] | None = None) -> list[Path]:
    """Image files at any depth, in the order of their names.

    Linked folders are followed, each once. Hidden files and folders are left out. FIFOs, sockets and devices are never
    opened.

    Args:
        skipped: gets files that look like images and are not read.

    Raises: DatasetError for a folder that cannot be read: what lies in it would be missing.
    """
    found: list[Path] = []
    seen: set[str] = set()

    def unreadable(error: OSError) -> None:
        raise DatasetError(
            f"{error.filename}: the folder cannot be read ({error.strerror or error}); give read permission, or move "
            "it out of the dataset."
        ) from error

    for place, folders, names in os.walk(folder, onerror=unreadable, followlinks=True):
        real = os.path.realpath(place)
        if real in seen:  # links may lead in a circle
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in names:
            ending = Path(name).suffix.lower()
            if name.startswith(".") or ending not in EXTENSIONS | UNREAD_EXTENSIONS | _ARRAYS:
                continue
            path = Path(place, name)
            reason = f"{ending} files, which are not read" if ending not in EXTENSIONS else _irregular(path)
            if not reason:
                found.append(path)
            elif skipped is not None:
                skipped.append(Skipped(path, reason))
    return sorted(found)


def _irregular(path: Path) -> str:
    try:
        mode = path.stat().st_mode
    except OSError as error:
        return f"files that cannot be read ({error.strerror or error})"
    return "" if stat.S_ISREG(mode) else "files that are not regular (FIFOs, sockets, devices)"


def reasons(skipped: Iterable[Skipped]) -> dict[str, int]:
    """How many files were skipped, by reason, the most frequent first."""
    return dict(Counter(each.reason for each in skipped).most_common())
