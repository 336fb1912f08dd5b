"""Exact mask tiles on disk: a pyramid that fills while the mask is computed, in a folder of bounded size."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import sys
import threading
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import product
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from evitseg.errors import FileError
from evitseg.labels import LabelSpace
from evitseg.raster.window import Sink
from evitseg.system.files import LOCK, remove_folder, replacing, sweep_once
from evitseg.viewer.pyramid import TILE, Pyramid

MaskArray = NDArray[np.integer]

DEFAULT_BYTES = 2 * 2**30
"""Largest size of the cache folder."""
_ABOUT = "about.json"
_FORMAT = 1


def cache_folder() -> Path:
    """The folder of this user for files that can be made again."""
    home = Path.home()
    if sys.platform == "win32":
        base = Path(os.environ.get("LOCALAPPDATA") or home / "AppData/Local")
    elif sys.platform == "darwin":
        base = home / "Library/Caches"
    else:
        base = Path(os.environ.get("XDG_CACHE_HOME") or home / ".cache")
    return base / "evitseg" / "view"


@contextmanager
def open_entry(cache: Path, key: str, limit: int = DEFAULT_BYTES) -> Iterator[Path]:
    """The folder of one mask in the cache, locked while it is used.

    The least recently used folders are removed first, until the cache is smaller than its limit.

    Args:
        key: everything that the mask depends on, as a digest.

    Raises: FileError.
    """
    folder = cache / key
    lock: int | None = None
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / LOCK).touch()
        os.utime(folder)
        if sys.platform != "win32":
            import fcntl

            lock = os.open(folder / LOCK, os.O_RDONLY)
            with contextlib.suppress(OSError):  # a file system without locks, or another viewer of the same mask
                fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        # The folder may hold other things: only what this function made is removed.
        others = [entry for entry in cache.iterdir() if _is_entry(entry) and entry != folder]
        sizes = {entry: _size(entry) for entry in others}
        used = sum(sizes.values()) + _size(folder)
        for entry in sorted(others, key=lambda entry: entry.stat().st_mtime):
            if used <= limit:
                break
            with contextlib.suppress(OSError):
                if remove_folder(entry):
                    used -= sizes[entry]
    except OSError as error:
        raise FileError(
            f"{folder}: cannot be written ({error.strerror or error}); choose another folder with --cache."
        ) from error
    try:
        sweep_once(folder)
        yield folder
    finally:
        if lock is not None:
            os.close(lock)


def _is_entry(folder: Path) -> bool:
    """Whether a folder in the cache holds a mask: it has a digest as its name, and our lock."""
    return re.fullmatch(r"[0-9a-f]{16,64}", folder.name) is not None and (folder / LOCK).is_file()


def _size(folder: Path) -> int:
    total = 0
    for place, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(OSError):
                total += Path(place, name).stat().st_size
    return total


class MaskTiles(Sink):
    """A pyramid of mask tiles in a folder. It is a sink: windows of the mask arrive in any order.

    A pixel of a smaller level has the class that most of its four pixels have.

    Attributes:
        changes: grows with every tile that is written.
    """

    tile = (TILE, TILE)
    ordered = False

    def __init__(self, folder: Path, pyramid: Pyramid, labels: LabelSpace, limit: int = DEFAULT_BYTES) -> None:
        self.pyramid, self.labels, self.changes = pyramid, labels, 0
        self._folder, self._limit = folder, limit
        self._dtype: np.dtype[np.integer] = np.dtype(labels.dtype)
        self._lock = threading.RLock()
        self._sizes: dict[tuple[int, int, int], int] = {}
        self._bytes = 0
        self._counts: dict[tuple[int, int], NDArray[np.int64]] = {}
        self._done = np.zeros(pyramid.grid(0), np.bool_)
        for path in folder.glob("[0-9]*/[0-9]*/[0-9]*.z"):
            with contextlib.suppress(ValueError, OSError):
                key = (int(path.parts[-3]), int(path.parts[-2]), int(path.stem))
                if pyramid.has(*key):
                    self._remember(key, path.stat().st_size)
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            about = json.loads((folder / _ABOUT).read_text())
            if about["format"] == _FORMAT:
                self._total: NDArray[np.int64] | None = np.array(about["counts"], np.int64)
                self._done[:] = True
                return
        self._total = None

    @property
    def fraction(self) -> float:
        """The fraction of the full-size tiles that were written."""
        return float(self._done.mean())

    @property
    def is_complete(self) -> bool:
        return bool(self._done.all())

    def missing(self) -> list[tuple[int, int]]:
        """Row and column of the full-size tiles that were not written."""
        return [(int(row), int(column)) for row, column in np.argwhere(~self._done)]

    def counts(self) -> NDArray[np.int64] | None:
        """Number of pixels per class index, the last for `ignore_index`; None until the mask is complete."""
        with self._lock:
            if self._total is None and self.is_complete:
                rows, columns = self.pyramid.grid(0)
                for place in product(range(rows), range(columns)):
                    if place not in self._counts:  # written by an earlier viewer
                        tile = self.read(0, *place)
                        if tile is None:
                            return None
                        self._counts[place] = self._counted(tile)
                self._total = np.sum(list(self._counts.values()), axis=0)
                about = {"format": _FORMAT, "counts": self._total.tolist()}
                with replacing(self._folder / _ABOUT) as file:
                    file.write(json.dumps(about).encode())
            return self._total

    def write(self, top: int, left: int, mask: MaskArray) -> None:
        for y, x in product(range(0, mask.shape[0], TILE), range(0, mask.shape[1], TILE)):
            self._write((0, (top + y) // TILE, (left + x) // TILE), mask[y : y + TILE, x : x + TILE])

    def read(self, level: int, row: int, column: int) -> MaskArray | None:
        """(height, width) class indices of a tile; None if it was not written yet."""
        path = self._path((level, row, column))
        _, _, height, width = self.pyramid.tile(level, row, column)
        try:
            packed = path.read_bytes()
        except OSError:
            return None
        try:
            indices = np.frombuffer(zlib.decompress(packed), self._dtype).reshape(height, width)
        except (zlib.error, ValueError):  # damaged: made again
            return None
        return indices

    def _write(self, key: tuple[int, int, int], mask: MaskArray) -> None:
        level, row, column = key
        mask = np.ascontiguousarray(mask, self._dtype)
        packed = zlib.compress(mask.tobytes(), 1)
        with replacing(self._path(key)) as file:
            file.write(packed)
        with self._lock:
            self._remember(key, len(packed))
            self.changes += 1
            if level == 0:
                self._counts[row, column] = self._counted(mask)
            self._trim()
        if level + 1 < self.pyramid.levels:
            self._make_parent(level + 1, row // 2, column // 2)

    def _counted(self, mask: MaskArray) -> NDArray[np.int64]:
        length = self.labels.ignore_index + 1
        return np.bincount(mask.ravel(), minlength=length)[:length]

    def _make_parent(self, level: int, row: int, column: int) -> None:
        rows, columns = self.pyramid.grid(level - 1)
        places = product(range(2 * row, min(rows, 2 * row + 2)), range(2 * column, min(columns, 2 * column + 2)))
        children = {place: self._sizes.get((level - 1, *place)) for place in places}
        if None in children.values():
            return
        _, _, height, width = self.pyramid.tile(level, row, column)
        whole = np.empty((2 * height, 2 * width), self._dtype)
        for y, x in children:
            part = self.read(level - 1, y, x)
            if part is None:
                return
            top, left = (y - 2 * row) * TILE, (x - 2 * column) * TILE
            whole[top : top + part.shape[0], left : left + part.shape[1]] = part
            if top + part.shape[0] < whole.shape[0] and y == rows - 1:
                whole[top + part.shape[0] :, left : left + part.shape[1]] = part[-1:]
            if left + part.shape[1] < whole.shape[1] and x == columns - 1:
                whole[top : top + part.shape[0], left + part.shape[1] :] = part[:, -1:]
                whole[top + part.shape[0] :, left + part.shape[1] :] = part[-1, -1]
        self._write((level, row, column), halved(whole))

    def _remember(self, key: tuple[int, int, int], size: int) -> None:
        self._bytes += size - self._sizes.pop(key, 0)
        self._sizes[key] = size
        if key[0] == 0:
            self._done[key[1:]] = True

    def _trim(self) -> None:
        """Remove the full-size tiles that were written first, if there are too many. They can be made again."""
        if self._bytes <= self._limit:
            return
        for key in [key for key in self._sizes if key[0] == 0]:
            if self._bytes <= self._limit * 0.9:
                break
            self._bytes -= self._sizes.pop(key)
            self._path(key).unlink(missing_ok=True)

    def _path(self, key: tuple[int, int, int]) -> Path:
        level, row, column = key
        return self._folder / str(level) / str(row) / f"{column}.z"

    def clear(self) -> None:
        """Remove all tiles."""
        with self._lock:
            for level in range(self.pyramid.levels):
                shutil.rmtree(self._folder / str(level), ignore_errors=True)
            (self._folder / _ABOUT).unlink(missing_ok=True)
            self._sizes.clear()
            self._counts.clear()
            self._bytes, self._total = 0, None
            self._done[:] = False


def halved(mask: MaskArray) -> MaskArray:
    """A mask of half the size: the class that most of four pixels have, one of two if they are level."""
    a, b, c, d = mask[::2, ::2], mask[::2, 1::2], mask[1::2, ::2], mask[1::2, 1::2]
    # If another pixel has the class of `a`, the remaining two can only tie with it.
    return np.where((b == c) | (b == d), b, np.where(c == d, c, a))
