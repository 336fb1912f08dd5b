"""The scratch folder of an image: feature maps and attention sums between segments, and progress."""

from __future__ import annotations

import contextlib
import json
import mmap
import os
import shutil
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from evitseg.errors import FileError
from evitseg.runtime.core_windows import ALIGNMENT
from evitseg.system.files import LOCK, STATE, replacing

_CONTENT = "features"
_PAGE = 4096
_PIECE = 16 * 1024
"""Bytes that are written at once. The system takes memory for its cache in blocks of about this size. Larger blocks are
often those that a virtual machine gave back to its host, and their first use costs several times as much as the copy:
see `python benchmarks/large_images.py pieces`."""
_MAX_STATE_BYTES = 64 * 1024**2


@dataclass(frozen=True)
class LiveRange:
    """Something to store, with the indices of the segment that writes it and of the last that reads it."""

    bytes: int
    first: int
    last: int


def allocate(live_ranges: Sequence[LiveRange]) -> tuple[list[int], int]:
    """Offsets of all live ranges in one file, in their order: first fit, reusing what is no longer live.

    The file is about as long as what is live at the peak. Its reused parts are usually still in the system's cache,
    whereas growing a file can cost as much time as computing its content.

    Returns: the offsets, multiples of a page, and the length of the file.
    """
    places: list[tuple[int, int, LiveRange]] = []
    offsets = [0] * len(live_ranges)
    for i in sorted(range(len(live_ranges)), key=lambda i: live_ranges[i].first):
        one, at = live_ranges[i], 0
        for begin, end, other in sorted(places, key=lambda place: place[0]):
            together = other.first <= one.last and one.first <= other.last
            if together and begin < at + one.bytes and at < end:
                at = end
        offsets[i] = at
        places.append((at, -(-(at + one.bytes) // _PAGE) * _PAGE, one))
    return offsets, max((end for _, end, _ in places), default=0)


def aligned_bytes(length: int) -> NDArray[np.uint8]:
    """Memory for rows of feature maps."""
    own = np.empty(length + ALIGNMENT, np.uint8)
    return own[-own.ctypes.data % ALIGNMENT :][:length]


class Store(Protocol):
    """Bytes for the features and sums of an image, with a record of what is done."""

    @property
    def bytes(self) -> NDArray[np.uint8]:
        """The stored bytes, from a multiple of 64 on, after `open`."""
        ...

    def open(self, length: int) -> None:
        """Provide `bytes` of this length."""
        ...

    @contextmanager
    def to_write(self, extents: list[tuple[int, int]]) -> Iterator[list[int]]:
        """Addresses for bytes that are written whole during the block, for pairs of offset and length."""
        ...

    def wait(self) -> None:
        """Wait until what was written can be read."""
        ...

    def release(self) -> None:
        """Give memory back to the system where the bytes are kept elsewhere."""
        ...

    def count_window(self, segment: int) -> None:
        """Record that one more window of a segment is done."""
        ...

    def windows_done(self, segment: int) -> int:
        """Number of windows of a segment that are done."""
        ...

    def save(self, state: dict[str, Any]) -> None:
        """Replace the state."""
        ...

    def close(self) -> object:
        """Free what `open` provided."""
        ...


class MemoryStore:
    """A store in memory, for images whose features fit there. Nothing outlives the process.

    Args:
        used: bytes of a store that was closed, from `close`. New memory costs more to write to for the first time.
    """

    def __init__(self, used: NDArray[np.uint8] | None = None) -> None:
        self._bytes: NDArray[np.uint8] | None = None
        self._used = used
        self._done: dict[int, int] = {}

    @property
    def bytes(self) -> NDArray[np.uint8]:
        assert self._bytes is not None
        return self._bytes

    def open(self, length: int) -> None:
        used, self._used = self._used, None
        fits = used is not None and length <= len(used) <= 2 * length
        self._bytes = used if fits else aligned_bytes(length)

    def wait(self) -> None:
        pass

    @contextmanager
    def to_write(self, extents: list[tuple[int, int]]) -> Iterator[list[int]]:
        yield [self.bytes.ctypes.data + offset for offset, _ in extents]

    def release(self) -> None:
        pass

    def count_window(self, segment: int) -> None:
        self._done[segment] = self._done.get(segment, 0) + 1

    def windows_done(self, segment: int) -> int:
        return self._done.get(segment, 0)

    def save(self, state: dict[str, Any]) -> None:
        pass

    def close(self) -> NDArray[np.uint8] | None:
        """Returns: the bytes, for another store."""
        self._bytes, used = None, self._bytes
        return used


class Scratch:
    """Bytes on disk that are used like memory, with a state; both outlive the process.

    Raises: FileError if the folder cannot be used.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._map: mmap.mmap | None = None
        self._bytes: NDArray[np.uint8] | None = None
        self._file: int | None = None
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="evitseg")
        self._writes: list[Future[None]] = []
        self._written: NDArray[np.uint8] | None = None
        self._spare: NDArray[np.uint8] | None = None
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise FileError(f"{folder}: cannot be used as a scratch folder ({error.strerror or error}).") from error

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

    def count_window(self, segment: int) -> None:
        """Record that one more window of a segment is done, once its bytes are in the file.

        That adds one byte to a file, which is much cheaper than saving the state.
        """
        self._writes.append(self._writer.submit(self._count, segment))

    def _count(self, segment: int) -> None:
        with self._writing(_progress_file(segment)), open(self.folder / _progress_file(segment), "ab") as file:
            file.write(b"x")

    def windows_done(self, segment: int) -> int:
        """Number of windows of a segment that are done."""
        try:
            return (self.folder / _progress_file(segment)).stat().st_size
        except FileNotFoundError:
            return 0

    def open(self, length: int) -> None:
        """Provide `bytes` of this length; those of an earlier process keep their content.

        Raises: FileError if the disk has no room for them.
        """
        self._check_room(length)
        path = self.folder / _CONTENT
        with (
            self._writing(_CONTENT),
            open(os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_BINARY", 0), 0o600), "r+b") as file,
        ):
            if file.seek(0, os.SEEK_END) < length:
                file.truncate(length)
            if hasattr(os, "posix_fallocate"):  # writing to mapped memory could not report a full disk
                os.posix_fallocate(file.fileno(), 0, length)
            self._map = mmap.mmap(file.fileno(), length)
            self._file = os.dup(file.fileno())
        self._bytes = np.frombuffer(self._map, np.uint8)

    @property
    def bytes(self) -> NDArray[np.uint8]:
        """The stored bytes; they begin at a page."""
        assert self._bytes is not None
        return self._bytes

    @contextmanager
    def to_write(self, extents: list[tuple[int, int]]) -> Iterator[list[int]]:
        """Addresses for bytes that are written whole during the block, for pairs of offset and length.

        They are a buffer that is then written to the file, where it is after `wait`. That is several times as fast as
        writing to mapped memory for the first time, which the system clears page by page.
        """
        if not hasattr(os, "pwrite"):  # Windows, where a mapped file need not agree with one that is written
            yield [self.bytes.ctypes.data + offset for offset, _ in extents]
            return
        starts = [0]
        for _, length in extents:
            starts.append(starts[-1] + -(-length // ALIGNMENT) * ALIGNMENT)
        buffer = self._buffer(starts[-1])
        parts = [buffer[start : start + length] for start, (_, length) in zip(starts[:-1], extents, strict=True)]
        yield [part.ctypes.data for part in parts]
        self.wait()  # at most one window is being written while the next one runs
        self._writes = [
            self._writer.submit(self._write, part, at) for part, (at, _) in zip(parts, extents, strict=True)
        ]
        self._written = buffer

    def _buffer(self, length: int) -> NDArray[np.uint8]:
        """A buffer that is not being written. One that fits is used again: new memory costs more than a copy."""
        spare, self._spare = self._spare, None
        return spare[:length] if spare is not None and length <= len(spare) <= 2 * length else aligned_bytes(length)

    def _write(self, part: NDArray[np.uint8], offset: int) -> None:
        assert self._file is not None
        left = part.data
        with self._writing(_CONTENT):
            while left:
                done = os.pwrite(self._file, left[:_PIECE], offset)
                left, offset = left[done:], offset + done

    def wait(self) -> None:
        """Wait until everything is in the file. Raises: FileError."""
        writes, self._writes = self._writes, []
        for write in writes:
            write.result()
        if self._written is not None:
            self._spare, self._written = self._written, None

    def release(self) -> None:
        """Give the memory of the stored bytes back to the system, which writes them to disk in its own time."""
        if self._map is not None and hasattr(mmap, "MADV_DONTNEED"):
            self._map.madvise(mmap.MADV_DONTNEED)

    def _check_room(self, needed: int) -> None:
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

    def clear(self) -> None:
        """Remove all files except the lock."""
        self.close()
        for path in self.folder.iterdir():
            if path.name != LOCK:
                path.unlink(missing_ok=True)

    def close(self) -> None:
        """Close the file. No array of its bytes may be used afterwards."""
        with contextlib.suppress(FileError):  # reported where it was waited for
            self.wait()
        self._bytes = self._written = self._spare = None
        if self._file is not None:
            os.close(self._file)
            self._file = None
        if self._map is not None:
            with contextlib.suppress(BufferError):  # an array still refers to it, in the traceback of an error
                self._map.close()
            self._map = None

    def discard(self) -> None:
        """Remove the folder."""
        self.close()
        shutil.rmtree(self.folder, ignore_errors=True)

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
