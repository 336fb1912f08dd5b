"""Write masks as PNG, whole or row by row, with the core's encoder for flat regions."""

from __future__ import annotations

import ctypes
import io
import os
import struct
import threading
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, BinaryIO, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from evitseg.errors import ImageError
from evitseg.image import Mask
from evitseg.labels import LabelSpace
from evitseg.raster.window import TILE
from evitseg.system.authorship import png_chunk
from evitseg.system.core_library import check, open_library
from evitseg.system.files import replacing

MaskFormat: TypeAlias = Literal["palette", "gray"]
"""How a mask of at most 255 classes is stored: class indices with the classes' colours as a palette, or plain grey
levels for programs that convert palettes to colours. Masks of more classes are always 16-bit grey levels."""

_MAX_SIDE = 2**31 - 1
_INDEXED, _GREY = 3, 0  # PNG's colour types


def save_mask(
    mask: Mask, path: str | os.PathLike[str], labels: LabelSpace, mask_format: MaskFormat = "palette"
) -> None:
    """Write class indices as an 8-bit PNG, or a 16-bit PNG for more than 255 classes.

    Raises: ImageError for a name that does not end in .png, FileError if the file cannot be written.
    """
    if Path(path).suffix.lower() != ".png":
        raise ImageError(f"{path}: masks are written as PNG, which is lossless; use the ending .png.")
    with replacing(path) as file:
        file.write(mask_png(mask, labels, mask_format))


def mask_png(mask: Mask, labels: LabelSpace, mask_format: MaskFormat = "palette") -> bytes:
    """The bytes of the PNG that `save_mask` writes."""
    file = io.BytesIO()
    png = _Png(file, mask.shape, mask.dtype, labels, mask_format)
    for top in range(0, len(mask), TILE):
        png.write(mask[top : top + TILE])
    return file.getvalue()


class _Png:
    """A PNG file that gets its rows from top to bottom, several at a time."""

    def __init__(
        self, file: BinaryIO, size: tuple[int, ...], dtype: np.dtype[Any], labels: LabelSpace, mask_format: MaskFormat
    ) -> None:
        self._file, self._left = file, size[0]
        self._stored = dtype.newbyteorder(">")
        self._above: NDArray[np.integer] | None = None
        self._adler = ctypes.c_uint32()
        is_indexed = dtype == np.uint8 and mask_format == "palette"
        file.write(b"\x89PNG\r\n\x1a\n")
        kind = _INDEXED if is_indexed else _GREY
        self._chunk(b"IHDR", struct.pack(">IIBBBBB", size[1], size[0], 8 * dtype.itemsize, kind, 0, 0, 0))
        if is_indexed:
            self._chunk(b"PLTE", labels.palette.tobytes())
        self._chunk(b"tEXt", png_chunk())

    def _chunk(self, kind: bytes, content: bytes | memoryview) -> None:
        self._file.write(struct.pack(">I", len(content)) + kind)
        self._file.write(content)
        self._file.write(struct.pack(">I", zlib.crc32(content, zlib.crc32(kind))))

    def write(self, rows: NDArray[np.integer]) -> None:
        """Write the next rows, and the end of the file after the last."""
        core = _encoder()
        pixels = np.ascontiguousarray(rows, self._stored)
        self._left -= len(pixels)
        row_bytes, written = pixels.shape[1] * pixels.itemsize, ctypes.c_size_t()
        out = np.empty(core.evs_png_bound(len(pixels), row_bytes), np.uint8)
        above = None if self._above is None else self._above.ctypes.data
        check(
            core.evs_png_rows(
                pixels.ctypes.data, len(pixels), row_bytes, pixels.itemsize, above, not self._left,
                ctypes.byref(self._adler), out.ctypes.data, ctypes.byref(written),
            )
        )  # fmt: skip
        self._chunk(b"IDAT", out[: written.value].data)
        self._above = pixels[-1].copy()
        if not self._left:
            self._chunk(b"IEND", b"")


@cache
def _encoder() -> ctypes.CDLL:
    core, pointer, size, number = open_library(), ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int
    core.evs_png_bound.restype, core.evs_png_bound.argtypes = size, [number, size]
    core.evs_png_rows.argtypes = [pointer, number, size, number, pointer, number, pointer, pointer, pointer]
    return core


class PngWriter:
    """Writes the same PNG as `save_mask`, holding one row of tiles in memory."""

    tile = (TILE, TILE)
    ordered = True

    def __init__(
        self, file: BinaryIO, size: tuple[int, int], labels: LabelSpace, mask_format: MaskFormat = "palette"
    ) -> None:
        self._size = size
        self._dtype = np.dtype(labels.dtype)
        self._ignored = labels.ignore_index
        self._png = _Png(file, size, self._dtype, labels, mask_format)
        self._top, self._filled = 0, 0
        self._rows = self._empty(min(TILE, size[0]))
        self._lock = threading.Lock()

    def _empty(self, height: int) -> NDArray[np.integer]:
        return np.full((height, self._size[1]), self._ignored, self._dtype)

    def write(self, top: int, left: int, mask: NDArray[np.integer]) -> None:
        with self._lock:
            if top % TILE or (top, left) < (self._top, self._filled):
                raise ValueError(f"the window at {(top, left)} is not in order: {(self._top, self._filled)} is written")
            for start in range(top, top + mask.shape[0], TILE):
                part = mask[start - top : start - top + TILE]
                if start > top and mask.shape[1] < self._size[1]:
                    raise ValueError("a window of several rows of tiles must be as wide as the image")
                while self._top < start:
                    self._flush()
                self._rows[: len(part), left : left + part.shape[1]] = part
                self._filled = left + part.shape[1]

    def _flush(self) -> None:
        height = len(self._rows)
        self._png.write(self._rows)
        self._top, self._filled = self._top + height, 0
        self._rows = self._empty(min(TILE, self._size[0] - self._top))

    def finish(self) -> None:
        while self._top < self._size[0]:
            self._flush()


@contextmanager
def png_writer(
    file: Path, size: tuple[int, int], labels: LabelSpace, mask_format: MaskFormat = "palette"
) -> Iterator[PngWriter]:
    """A PNG mask to write window by window. Raises: ImageError, FileError."""
    if max(size) > _MAX_SIDE:
        raise ImageError(f"{file}: a side of a PNG has at most {_MAX_SIDE:,} pixels; write a .tif.")
    with replacing(file) as stream:
        sink = PngWriter(stream, size, labels, mask_format)
        yield sink
        sink.finish()
