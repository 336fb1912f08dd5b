"""Write PNG masks row by row, because Pillow can only encode an image that is in memory."""

from __future__ import annotations

import struct
import threading
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from evitseg.errors import ImageError
from evitseg.labels import LabelSpace
from evitseg.raster.masks import MaskFormat
from evitseg.raster.window import TILE
from evitseg.system.authorship import png_chunk
from evitseg.system.files import replacing

_MAX_SIDE = 2**31 - 1
_INDEXED, _GREY = 3, 0  # PNG's colour types
_CHUNK_BYTES = 1 << 20


class PngWriter:
    """Writes the same PNG as `save_mask`, holding one row of tiles in memory."""

    tile = (TILE, TILE)
    ordered = True

    def __init__(
        self, file: BinaryIO, size: tuple[int, int], labels: LabelSpace, mask_format: MaskFormat = "palette"
    ) -> None:
        self._file, self._size = file, size
        self._dtype = np.dtype(labels.dtype)
        self._ignored = labels.ignore_index
        # As in `masks.mask_png`: run-length encoding suits the flat regions of masks.
        self._compress = zlib.compressobj(1, strategy=zlib.Z_RLE)
        self._packed = bytearray()
        self._top, self._filled = 0, 0
        self._rows = self._empty(min(TILE, size[0]))
        self._lock = threading.Lock()
        height, width = size
        file.write(b"\x89PNG\r\n\x1a\n")
        kind = _INDEXED if self._dtype == np.uint8 and mask_format == "palette" else _GREY
        self._chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8 * self._dtype.itemsize, kind, 0, 0, 0))
        if kind == _INDEXED:
            self._chunk(b"PLTE", labels.palette.tobytes())
        self._chunk(b"tEXt", png_chunk())

    def _empty(self, height: int) -> NDArray[np.integer]:
        return np.full((height, self._size[1]), self._ignored, self._dtype)

    def _chunk(self, kind: bytes, content: bytes | bytearray) -> None:
        self._file.write(struct.pack(">I", len(content)) + kind)
        self._file.write(content)
        self._file.write(struct.pack(">I", zlib.crc32(content, zlib.crc32(kind))))

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
        height, width = self._rows.shape
        lines = np.zeros(
            (height, 1 + width * self._dtype.itemsize), np.uint8
        )  # each row begins with its filter type; 0 is none
        lines[:, 1:] = self._rows.astype(self._dtype.newbyteorder(">")).view(np.uint8).reshape(height, -1)
        self._packed += self._compress.compress(lines.data)
        while len(self._packed) >= _CHUNK_BYTES:
            self._chunk(b"IDAT", self._packed[:_CHUNK_BYTES])
            del self._packed[:_CHUNK_BYTES]
        self._top, self._filled = self._top + height, 0
        self._rows = self._empty(min(TILE, self._size[0] - self._top))

    def finish(self) -> None:
        while self._top < self._size[0]:
            self._flush()
        self._packed += self._compress.flush()
        for at in range(0, len(self._packed), _CHUNK_BYTES):
            self._chunk(b"IDAT", self._packed[at : at + _CHUNK_BYTES])
        self._chunk(b"IEND", b"")


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
