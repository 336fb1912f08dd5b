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
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from evitseg.errors import FileError
from evitseg.files import replacing
from evitseg.runtime.windows import Window

STATE, LOCK = "state.json", "lock"
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
        self._files: dict[str, tuple[Any, threading.Lock]] = {}
        self._guard = threading.Lock()
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise FileError(f"{folder}: cannot be used as scratch folder ({error.strerror or error}).") from error

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
            except OSError as error:
                raise FileError(
                    f"{self.folder}: cannot be used as scratch folder ({error.strerror or error})."
                ) from error
            with file:
                if not _lock(file):
                    file.seek(0)
                    who = file.read(32).decode(errors="replace").strip()
                    raise FileError(
                        f"{self.folder}: process {who} works on this picture there; wait for it, "
                        "or give another scratch folder (--scratch)."
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
        except (OSError, ValueError):
            return None
        return found if isinstance(found, dict) else None

    def save(self, state: dict[str, Any]) -> None:
        with replacing(self.folder / STATE) as file:
            file.write(json.dumps(state).encode())

    def mark(self, piece: int) -> None:
        """Note that one more tile of a piece is done: a byte, where a state would cost as much as a small tile."""
        file, lock = self._file(_marks(piece))
        with lock, self._writing(_marks(piece)):
            file.seek(0, os.SEEK_END)
            file.write(b"x")

    def marks(self, piece: int) -> int:
        """How many tiles of a piece are done."""
        try:
            return (self.folder / _marks(piece)).stat().st_size
        except FileNotFoundError:
            return 0

    def check_room(self, layouts: list[Layout], needed: int) -> None:
        """Raises: FileError where the disk has less free than the work needs, beside what these files hold already."""
        held = 0
        for layout in layouts:
            with contextlib.suppress(OSError):
                stat = (self.folder / layout.name).stat()
                held += getattr(stat, "st_blocks", stat.st_size // 512) * 512
        free = shutil.disk_usage(self.folder).free
        if needed - held > free:
            raise FileError(
                f"{self.folder}: the work needs {_gib(needed - held)} there and {_gib(free)} are free; give a scratch "
                "folder on a larger disk (--scratch)."
            )

    def read(self, layout: Layout, window: Window) -> NDArray[Any]:
        """(height, width, channels) of a window."""
        file, lock = self._file(layout.name, layout.bytes)
        out = np.empty((window.height, window.width, layout.channels), layout.dtype)
        for block, start in layout.blocks(window):
            part = block.common(window)
            assert part is not None
            # Whole rows of the block, which lie together: sooner read than picked one by one.
            rows = np.empty((part.height, block.width, layout.channels), layout.dtype)
            view = rows.reshape(-1).view(np.uint8).data
            with lock:
                file.seek(start + (part.top - block.top) * block.width * layout.value_bytes)
                if file.readinto(view) != len(view):
                    raise FileError(f"{self.folder / layout.name}: shorter than it was written; begin again.")
            out[part.inside(window)] = rows[:, part.inside(block)[1]]
        return out

    def write(self, layout: Layout, window: Window, values: NDArray[Any]) -> None:
        """Set a window, whole rows of blocks; values (height, width, channels)."""
        file, lock = self._file(layout.name, layout.bytes)
        assert values.shape == (window.height, window.width, layout.channels)
        for block, start in layout.blocks(window):
            part = block.common(window)
            assert part is not None
            assert part.width == block.width
            rows = np.ascontiguousarray(values[part.inside(window)], layout.dtype)
            view = rows.reshape(-1).view(np.uint8).data
            with lock, self._writing(layout.name):
                file.seek(start + (part.top - block.top) * block.width * layout.value_bytes)
                while view:
                    view = view[file.write(view) :]

    def remove(self, layout: Layout) -> None:
        """A file that is no longer needed."""
        with self._guard:
            if layout.name in self._files:
                self._files.pop(layout.name)[0].close()
            (self.folder / layout.name).unlink(missing_ok=True)

    def clear(self) -> None:
        """Remove all files but the lock: what another piece of work left."""
        self.close()
        for path in self.folder.iterdir():
            if path.name != LOCK:
                path.unlink(missing_ok=True)

    def close(self) -> None:
        with self._guard:
            for file, _ in self._files.values():
                file.close()
            self._files.clear()

    def discard(self) -> None:
        """Remove the folder."""
        self.close()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _file(self, name: str, size: int | None = None) -> tuple[Any, threading.Lock]:
        """Args: size: that it has from the beginning; None for one that grows."""
        with self._guard:
            if name not in self._files:
                path = self.folder / name
                with self._writing(name):
                    path.touch()
                    file = path.open("r+b", buffering=0)
                    if size is not None:
                        file.truncate(size)
                self._files[name] = file, threading.Lock()
            return self._files[name]

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
