"""Find image files below a folder, and record the files that are skipped and why."""

from __future__ import annotations

import stat
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from evitseg.errors import DatasetError
from evitseg.raster.formats import EXTENSIONS, UNREAD_EXTENSIONS
from evitseg.system.files import walk

_ARRAYS = frozenset({".npy", ".npz", ".mat"})
"""Extensions of array files in which some tools store masks."""


@dataclass(frozen=True)
class Skipped:
    """A file that is not read, and the reason: its format, or that it cannot be opened safely."""

    path: Path
    reason: str


def image_files(folder: Path, skipped: list[Skipped] | None = None) -> list[Path]:
    """Image files at any depth, sorted; hidden files and folders are left out, and links to folders are followed.

    FIFOs, sockets and devices are never opened.

    Args:
        skipped: files that look like images but are not read are appended to it.

    Raises: DatasetError for a folder that cannot be read, because the files in it would be missing.
    """

    def unreadable(error: OSError) -> None:
        raise DatasetError(
            f"{error.filename}: the folder cannot be read ({error.strerror or error}); give read permission, or move "
            "it out of the dataset."
        ) from error

    found: list[Path] = []
    for path in walk(folder, unreadable):
        extension = path.suffix.lower()
        if extension not in EXTENSIONS | UNREAD_EXTENSIONS | _ARRAYS:
            continue
        reason = f"{extension} files, which are not read" if extension not in EXTENSIONS else _irregular(path)
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
    """Number of skipped files per reason, the most frequent reason first."""
    return dict(Counter(each.reason for each in skipped).most_common())
