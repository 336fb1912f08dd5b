"""What a long piece of work keeps on disk while it lasts: features between stages, sums, how far it has come."""

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
    """A file of numbers: (height, width, channels) of `dtype`, in blocks that lie one after the other.

    A block is what one tile makes, so that it is written at once.

    Attributes:
        name: of the file.
        rows, columns: where blocks begin, and where the last ends.
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
        """Of one place's channels."""
        return self.channels * np.dtype(self.dtype).itemsize

    @property
    def bytes(self) -> int:
        return self.height * self.width * self.value_bytes

    def blocks(self, window: Window) -> Iterator[tuple[Window, int]]:
        """Those that have a part in a window, each with its place in the file, in bytes."""
        for top, bottom in touched(self.rows, window.top, window.bottom):
            for left, right in touched(self.columns, window.left, window.right):
                place = top * self.width + (bottom - top) * left
                yield Window(top, left, bottom - top, right - left), place * self.value_bytes


def touched(edges: Sequence[int], begin: int, end: int) -> Iterator[tuple[int, int]]:
    """Of what lies between neighbouring edges, that which has a part between `begin` and `end`."""
    for i in range(bisect_right(edges, begin) - 1, bisect_left(edges, end)):
        yield edges[i], edges[i + 1]


@dataclass(frozen=True)
class Life:
    """A layout that is there from the piece that makes it to the last one that reads it."""

    layout: Layout
    first: int
    last: int


Extents: TypeAlias = list[tuple[int, int]]
"""Parts of a file, one after the other: where they begin and end, in bytes."""


def arranged(lives: Sequence[Life]) -> dict[str, Extents]:
    """A place for every layout in one file, the first that is free when it begins; by its name.

    Room is used again: it is on the disk already and in memory, where a new part of a file costs as much as computing
    it on some machines. The file is as long as what is alive at the fullest.
    """
    places: dict[str, Extents] = {}
    free: Extents = [(0, sys.maxsize)]
    ended: set[str] = set()
    for now in sorted({life.first for life in lives}):
        for life in lives:
            if life.last < now and life.layout.name not in ended:
                free += places[life.layout.name]
                ended.add(life.layout.name)
        free.sort()
        for life in (life for life in lives if life.first == now):
            left, place = life.layout.bytes, []
            while left:
                begin, end = free.pop(0)
                used = min(left, end - begin)
                place.append((begin, begin + used))
                left -= used
                if begin + used < end:
                    free.insert(0, (begin + used, end))
            places[life.layout.name] = place
    return places


class Store(Protocol):
    """Where tiles find what others have left, and leave what others need."""

    def read(self, layout: Layout, window: Window) -> NDArray[Any]:
        """(height, width, channels) of a window."""
        ...

    def write(self, layout: Layout, window: Window, values: NDArray[Any]) -> None:
        """Set a window, whole rows of blocks; values (height, width, channels)."""
        ...


class Scratch:
    """A folder of such files and a state, which outlive the process. Several threads may read and write.

    Raises: FileError where the folder cannot be used.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._places: dict[str, Extents] = {}
        self._own = threading.local()
        self._open: list[Any] = []
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise FileError(f"{folder}: cannot be used as scratch folder ({error.strerror or error}).") from error

    def share(self, lives: Sequence[Life]) -> None:
        """From now on these layouts lie in one file, see `arranged`; every other has its own."""
        self._places = arranged(lives)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keeps other processes out for as long as the block lasts; the system lets go of a process that died.

        Raises: FileError where another one is at work here.
        """
        path = self.folder / LOCK
        while True:
            try:
                self.folder.mkdir(parents=True, exist_ok=True)
                file = open(path, "a+b")  # noqa: SIM115  # closed below
            except FileNotFoundError:  # removed in between, by whoever had it before
                continue
            except OSError as error:
                raise FileError(
                    f"{self.folder}: cannot be used as scratch folder ({error.strerror or error})."
                ) from error
            with file:
                if not _lock(file):
                    file.seek(0)
                    # Nothing yet, where the other one has just begun.
                    who = file.read(32).decode(errors="replace").strip()
                    raise FileError(
                        f"{self.folder}: {f'process {who}' if who else 'another process'} works on this image there; "
                        "wait for it, or give another scratch folder (--scratch)."
                    )
                try:  # whoever had it may have removed the folder before it let go
                    is_there = os.path.samestat(path.stat(), os.fstat(file.fileno()))
                except FileNotFoundError:
                    is_there = False
                if not is_there:
                    continue
                file.truncate(0)
                file.write(str(os.getpid()).encode())
                file.flush()
                yield
            if sys.platform == "win32":  # where `discard` could not remove the lock, because it was open
                with contextlib.suppress(OSError):
                    if [left.name for left in self.folder.iterdir()] == [LOCK]:
                        shutil.rmtree(self.folder, ignore_errors=True)
            return

    def state(self) -> dict[str, Any] | None:
        """What was saved last; None where nothing was, or what is there is damaged."""
        path = self.folder / STATE
        try:
            if path.stat().st_size > _MAX_STATE_BYTES:
                return None
            found = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError):
            return None
        return found if isinstance(found, dict) else None

    def save(self, state: dict[str, Any]) -> None:
        with replacing(self.folder / STATE) as file:
            file.write(json.dumps(state).encode())

    def mark(self, piece: int) -> None:
        """Note that one more tile of a piece is done: a byte, where a state would cost as much as a small tile."""
        name = _marks(piece)
        file = self._file(name)
        with self._writing(name):
            file.seek(0, os.SEEK_END)
            file.write(b"x")

    def marks(self, piece: int) -> int:
        """How many tiles of a piece are done."""
        try:
            return (self.folder / _marks(piece)).stat().st_size
        except FileNotFoundError:
            return 0

    def check_room(self, needed: int) -> None:
        """Raises: FileError where the disk has less free than the work needs, beside what the folder holds already."""
        held = 0
        for path in self.folder.iterdir():
            with contextlib.suppress(OSError):
                stat = path.stat()
                held += getattr(stat, "st_blocks", stat.st_size // 512) * 512
        free = shutil.disk_usage(self.folder).free
        if needed - held > free:
            raise FileError(
                f"{self.folder}: the work needs {_gib(needed - held)} there and {_gib(free)} are free; give a scratch "
                "folder on a larger disk (--scratch)."
            )

    def read(self, layout: Layout, window: Window) -> NDArray[Any]:
        """(height, width, channels) of a window."""
        out = np.empty((window.height, window.width, layout.channels), layout.dtype)
        for block, start in layout.blocks(window):
            part = block.common(window)
            assert part is not None
            # Whole rows of the block, which lie together: sooner read than picked one by one.
            rows = np.empty((part.height, block.width, layout.channels), layout.dtype)
            start += (part.top - block.top) * block.width * layout.value_bytes
            for name, file, bytes_ in self._spans(layout, start, rows.reshape(-1).view(np.uint8).data):
                if file.readinto(bytes_) != len(bytes_):
                    raise FileError(f"{self.folder / name}: shorter than it was written; begin again.")
            out[part.inside(window)] = rows[:, part.inside(block)[1]]
        return out

    def write(self, layout: Layout, window: Window, values: NDArray[Any]) -> None:
        """Set a window, whole rows of blocks; values (height, width, channels)."""
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
        """Where bytes lie that begin at `start` of a layout: the name of a file, the file, set there, and which."""
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
        """Remove all files but the lock: what another piece of work left."""
        self.close()
        for path in self.folder.iterdir():
            if path.name != LOCK:
                path.unlink(missing_ok=True)

    def close(self) -> None:
        """To be called while no thread reads or writes."""
        for file in self._open:
            file.close()
        self._open, self._own = [], threading.local()

    def discard(self) -> None:
        """Remove the folder."""
        self.close()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _file(self, name: str) -> Any:
        """Each thread opens it for itself: one file has but one place where it is read."""
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


def _marks(piece: int) -> str:
    return f"done_{piece}"


def _gib(count: float) -> str:
    return f"{count / 1024**3:.2f} GiB"


def _lock(file: Any) -> bool:
    """Take a file for this process alone; False where another has it."""
    try:
        if sys.platform == "win32":
            import msvcrt

            file.seek(1024)  # behind what others want to read: there a lock keeps readers out
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True
