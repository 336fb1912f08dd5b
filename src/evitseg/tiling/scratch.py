"""The scratch folder of an image in tiles: features between segments, attention sums, the mask, and progress."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import sys
import threading
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from evitseg.errors import FileError
from evitseg.system.files import LOCK, STATE, replacing
from evitseg.tiling.windows import Window

SHARED = "features"
_MAX_STATE_BYTES = 64 * 1024**2


@dataclass(frozen=True)
class Layout:
    """An array (height, width, channels) on disk, stored block after block.

    A block is the output of one tile, so that each tile is written in one go.

    Attributes:
        name: name of the array.
        rows, columns: edges of the blocks, down and across.
    """

    name: str
    rows: tuple[int, ...]
    columns: tuple[int, ...]
    channels: int
    dtype: str

    @property
    def height(self) -> int:
        return self.rows[-1]

    @property
    def width(self) -> int:
        return self.columns[-1]

    @property
    def value_bytes(self) -> int:
        """Bytes of the channels at one position."""
        return self.channels * np.dtype(self.dtype).itemsize

    @property
    def bytes(self) -> int:
        return self.height * self.width * self.value_bytes

    def blocks(self, window: Window) -> Iterator[tuple[Window, int]]:
        """The blocks that overlap a window, each with its offset in bytes."""
        for top, bottom in touched(self.rows, window.top, window.bottom):
            for left, right in touched(self.columns, window.left, window.right):
                place = top * self.width + (bottom - top) * left
                yield Window(top, left, bottom - top, right - left), place * self.value_bytes


def touched(edges: Sequence[int], begin: int, end: int) -> Iterator[tuple[int, int]]:
    """Pairs of neighbouring edges whose interval overlaps the one from `begin` to `end`."""
    for i in range(bisect_right(edges, begin) - 1, bisect_left(edges, end)):
        yield edges[i], edges[i + 1]


@dataclass(frozen=True)
class LiveRange:
    """A layout, with the indices of the segment that writes it and of the last that reads it."""

    layout: Layout
    first: int
    last: int


Extents: TypeAlias = list[tuple[int, int]]
"""Parts of a file: (begin, end) in bytes."""


def allocate(live_ranges: Sequence[LiveRange]) -> dict[str, Extents]:
    """Places for all layouts in one file, by name: first fit, reusing the places of layouts that are no longer live.

    The file is as long as the live layouts at their peak. Its reused parts are usually still in the system's cache,
    whereas growing a file can cost as much time as computing its content.
    """
    places: dict[str, Extents] = {}
    free: Extents = [(0, sys.maxsize)]
    ended: set[str] = set()
    for now in sorted({each.first for each in live_ranges}):
        for each in live_ranges:
            if each.last < now and each.layout.name not in ended:
                free += places[each.layout.name]
                ended.add(each.layout.name)
        free.sort()
        for each in (each for each in live_ranges if each.first == now):
            left, place = each.layout.bytes, []
            while left:
                begin, end = free.pop(0)
                used = min(left, end - begin)
                place.append((begin, begin + used))
                left -= used
                if begin + used < end:
                    free.insert(0, (begin + used, end))
            places[each.layout.name] = place
    return places


class Store(Protocol):
    """Storage through which tiles exchange features, sums and the mask."""

    def read(self, layout: Layout, window: Window) -> NDArray[Any]:
        """(height, width, channels) of a window."""
        ...

    def write(self, layout: Layout, window: Window, values: NDArray[Any]) -> None:
        """Store (height, width, channels) values in a window, which covers whole rows of blocks."""
        ...


class Scratch:
    """A store on disk with a state, which outlive the process. Several threads may read and write at once.

    Raises: FileError if the folder cannot be used.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._places: dict[str, Extents] = {}
        self._own = threading.local()
        self._open: list[Any] = []
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise FileError(f"{folder}: cannot be used as a scratch folder ({error.strerror or error}).") from error

    def allocate(self, live_ranges: Sequence[LiveRange]) -> None:
        """Store these layouts in one file, as `allocate` places them; each of the others has a file of its own."""
        self._places = allocate(live_ranges)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Lock the folder against other processes for the duration of the block; a lock ends with its process.

        Raises: FileError if another process holds the lock.
        """
        path = self.folder / LOCK
        while True:
            try:
                self.folder.mkdir(parents=True, exist_ok=True)
                file = open(path, "a+b")  # noqa: SIM115  # closed below
            except FileNotFoundError:  # removed by the previous owner in the meantime
                continue
            except OSError as error:
                raise FileError(
                    f"{self.folder}: cannot be used as a scratch folder ({error.strerror or error})."
                ) from error
            with file:
                if not _lock(file):
                    file.seek(0)
                    # Empty if the other process has only just started.
                    who = file.read(32).decode(errors="replace").strip()
                    raise FileError(
                        f"{self.folder}: {f'process {who}' if who else 'another process'} is working on this image; "
                        "wait for it to finish, or choose another scratch folder (--scratch)."
                    )
                try:  # the previous owner may have removed the folder before it released the lock
                    is_there = os.path.samestat(path.stat(), os.fstat(file.fileno()))
                except FileNotFoundError:
                    is_there = False
                if not is_there:
                    continue
                file.truncate(0)
                file.write(str(os.getpid()).encode())
                file.flush()
                yield
            if sys.platform == "win32":  # `discard` cannot remove an open file there
                with contextlib.suppress(OSError):
                    if [left.name for left in self.folder.iterdir()] == [LOCK]:
                        shutil.rmtree(self.folder, ignore_errors=True)
            return

    def state(self) -> dict[str, Any] | None:
        """The saved state; None without one, or if it is damaged."""
        path = self.folder / STATE
        try:
            if path.stat().st_size > _MAX_STATE_BYTES:
                return None
            found = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError):
            return None
        return found if isinstance(found, dict) else None

    def save(self, state: dict[str, Any]) -> None:
        """Replace the state."""
        with replacing(self.folder / STATE) as file:
            file.write(json.dumps(state).encode())

    def count_tile(self, index: int) -> None:
        """Record that one more tile of a segment is done: one byte, much cheaper than saving the state."""
        name = _progress_file(index)
        file = self._file(name)
        with self._writing(name):
            file.seek(0, os.SEEK_END)
            file.write(b"x")

    def tiles_done(self, index: int) -> int:
        """Number of tiles of a segment that are done."""
        try:
            return (self.folder / _progress_file(index)).stat().st_size
        except FileNotFoundError:
            return 0

    def check_room(self, needed: int) -> None:
        """Raises: FileError if the disk has less free space than the work still needs."""
        held = 0
        for path in self.folder.iterdir():
            with contextlib.suppress(OSError):
                stat = path.stat()
                held += getattr(stat, "st_blocks", stat.st_size // 512) * 512
        free = shutil.disk_usage(self.folder).free
        if needed - held > free:
            raise FileError(
                f"{self.folder}: this image needs {_gib(needed - held)} of disk space and {_gib(free)} are free; "
                "choose a scratch folder on a larger disk (--scratch)."
            )

    def read(self, layout: Layout, window: Window) -> NDArray[Any]:
        """(height, width, channels) of a window."""
        out = np.empty((window.height, window.width, layout.channels), layout.dtype)
        for block, start in layout.blocks(window):
            part = block.common(window)
            assert part is not None
            # Whole rows of the block are contiguous: one read is faster than one per row of the window.
            rows = np.empty((part.height, block.width, layout.channels), layout.dtype)
            start += (part.top - block.top) * block.width * layout.value_bytes
            for name, file, bytes_ in self._spans(layout, start, rows.reshape(-1).view(np.uint8).data):
                if file.readinto(bytes_) != len(bytes_):
                    raise FileError(f"{self.folder / name}: truncated; remove the folder and start again.")
            out[part.inside(window)] = rows[:, part.inside(block)[1]]
        return out

    def write(self, layout: Layout, window: Window, values: NDArray[Any]) -> None:
        """Store (height, width, channels) values in a window, which covers whole rows of blocks."""
        assert values.shape == (window.height, window.width, layout.channels)
        for block, start in layout.blocks(window):
            part = block.common(window)
            assert part is not None
            assert part.width == block.width
            rows = np.ascontiguousarray(values[part.inside(window)], layout.dtype)
            start += (part.top - block.top) * block.width * layout.value_bytes
            for name, file, bytes_ in self._spans(layout, start, rows.reshape(-1).view(np.uint8).data):
                with self._writing(name):
                    while bytes_:
                        bytes_ = bytes_[file.write(bytes_) :]

    def _spans(self, layout: Layout, start: int, bytes_: memoryview) -> Iterator[tuple[str, Any, memoryview]]:
        """For each extent of bytes from `start` of a layout on: the file's name, the file at that offset, the bytes."""
        name, done = (SHARED if layout.name in self._places else layout.name), 0
        file = self._file(name)
        for begin, end in self._places.get(layout.name, [(0, sys.maxsize)]):
            if done == len(bytes_):
                break
            if start >= end - begin:
                start -= end - begin
                continue
            count = min(len(bytes_) - done, end - begin - start)
            with self._writing(name):
                file.seek(begin + start)
            yield name, file, bytes_[done : done + count]
            done, start = done + count, 0

    def clear(self) -> None:
        """Remove all files except the lock."""
        self.close()
        for path in self.folder.iterdir():
            if path.name != LOCK:
                path.unlink(missing_ok=True)

    def close(self) -> None:
        """Close all files. No thread may read or write meanwhile."""
        for file in self._open:
            file.close()
        self._open, self._own = [], threading.local()

    def discard(self) -> None:
        """Remove the folder."""
        self.close()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _file(self, name: str) -> Any:
        """The file, opened once per thread, because an open file has only one position."""
        files: dict[str, Any] = self._own.__dict__
        if name not in files:
            path = self.folder / name
            with self._writing(name):
                path.touch()
                files[name] = path.open("r+b", buffering=0)
                self._open.append(files[name])
        return files[name]

    @contextmanager
    def _writing(self, name: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise FileError(f"{self.folder / name}: cannot be written ({error.strerror or error}).") from error


def _progress_file(index: int) -> str:
    return f"done_{index}"


def _gib(count: float) -> str:
    return f"{count / 1024**3:.2f} GiB"


def _lock(file: Any) -> bool:
    """Lock a file for this process; False if another holds it."""
    try:
        if sys.platform == "win32":
            import msvcrt

            file.seek(1024)  # past the content: a lock there does not keep readers out
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True
