"""Pictures of microscopes, pyramids in TIFF, through tifffile: level 0 is read tile by tile."""

from __future__ import annotations

import json
import logging
import os
import re
import threading
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any
from xml.etree import ElementTree

import numpy as np
from numpy.typing import NDArray

from evitseg.errors import MissingPackageError, PictureError
from evitseg.files import replacing
from evitseg.labels import LabelSpace
from evitseg.masks import MaskFormat
from evitseg.raster.window import (
    CACHE_BYTES,
    TILE,
    Origin,
    RawFile,
    bands_used,
    check_block,
    check_picture,
    check_window,
    class_table,
    damaged,
    eight_bits,
    identity_of,
    rgb,
    writing,
)

_MICROSCOPES = ("bif", "indica", "ndpi", "ome", "philips", "qpi", "scn", "svs")
"""Of tifffile's names for what wrote a file, those that this module reads."""
_NONE, _JPEG = 1, (6, 7, 34892)
_COMPRESSIONS = {_NONE, 5, 8, 32773, 32946, 33003, 33005, 34712, 50000, *_JPEG}
"""TIFF's numbers: none, LZW, deflate, PackBits, JPEG 2000, Zstandard, JPEG; each bounded by the size of its tile."""
_MIN_IS_WHITE, _MIN_IS_BLACK, _RGB, _PALETTE, _YCBCR = 0, 1, 2, 3, 6
_ORIENTATION, _PLANES_APART = 274, 2


_LIBRARY_BYTES = 8 * 2**20
"""Of memory: tifffile and imagecodecs."""


def import_tifffile() -> ModuleType:
    try:
        import tifffile
    except ImportError as error:
        raise MissingPackageError("reading and writing TIFF window by window", "geo,slides") from error
    # What it has to say of a file is said once, in our sentence; to a program that keeps a log it still speaks.
    logger = logging.getLogger("tifffile")
    if not logger.handlers:
        logger.addHandler(logging.NullHandler())
    return tifffile


def _require_imagecodecs(name: str) -> None:
    # Also for deflate: Python's own, which tifffile would take, unpacks a tile to any size.
    try:
        import imagecodecs  # noqa: F401
    except ImportError as error:
        raise MissingPackageError(f"{name}: reading compressed slides", "slides") from error


@contextmanager
def _opened(path: Path, name: str) -> Iterator[Any]:
    tifffile = import_tifffile()
    try:
        # Not by its name: a file is what it contains, and files that it names are not opened.
        file = tifffile.TiffFile(os.fspath(path), _multifile=False)
    except Exception as error:  # as many kinds as there are ways to damage a header
        raise PictureError(f"{name}: truncated or damaged ({str(error) or type(error).__name__}).") from error
    with file:
        if not file.pages:
            raise PictureError(f"{name}: truncated or damaged (there is no picture in it).")
        yield file


def is_slide(path: Path, name: str) -> bool:
    """Whether a TIFF without georeference is a microscope's, or a pyramid in sub-images; GDAL reads all others."""
    with _opened(path, name) as file, _parsing(name):
        if file.is_geotiff:
            return False
        return any(getattr(file, f"is_{kind}") for kind in _MICROSCOPES) or bool(file.pages.first.subifds)


def tiff_orientation(path: Path, name: str) -> int:
    """How a TIFF's rows and columns lie, 1 (upright) to 8."""
    with _opened(path, name) as file, _parsing(name):
        value = file.pages.first.tags.valueof(_ORIENTATION, 1)
        return value if value in range(1, 9) else 1


@contextmanager
def _parsing(name: str) -> Iterator[None]:
    try:
        yield
    except (PictureError, MissingPackageError):
        raise
    except Exception as error:  # tifffile raises whatever a damaged header makes it stumble over
        raise PictureError(f"{name}: truncated or damaged ({str(error) or type(error).__name__}).") from error


class SlideSource:
    """Windows of the largest picture in the file, at its full size."""

    def __init__(self, name: str, file: Any, identity: str) -> None:
        self._name, self._file, self.identity = name, file, identity
        series = max(file.series, key=lambda s: s.levels[0].size)
        level = series.levels[0]
        axes = [(axis, length) for axis, length in zip(level.axes, level.shape, strict=True)]
        extra = [f"{length} along {axis}" for axis, length in axes if axis not in "YXSC" and length > 1]
        if extra or "Y" not in level.axes or "X" not in level.axes:
            raise PictureError(f"{name}: a stack ({', '.join(extra) or level.axes}), not one picture; choose a plane.")
        lengths = dict(axes)
        if lengths.get("S", 1) > 1 and lengths.get("C", 1) > 1:
            raise PictureError(f"{name}: several colour pictures in one ({level.axes}, {level.shape}); choose one.")
        self.size = (lengths["Y"], lengths["X"])
        check_picture(name, self.size, level.dtype)
        bands = max(lengths.get("S", 1), lengths.get("C", 1))
        self._bands = bands_used(name, bands)
        self._pages = list(level.pages)
        key = level.keyframe
        self._key = key
        if key.compression not in _COMPRESSIONS:
            raise PictureError(f"{name}: compression {key.compression!r} is not read; store it as deflate or JPEG.")
        if key.compression != _NONE or key.predictor != 1:
            _require_imagecodecs(name)
        allowed = {_MIN_IS_WHITE, _MIN_IS_BLACK, _RGB, _PALETTE} | ({_YCBCR} if key.compression in _JPEG else set())
        if key.photometric not in allowed:
            raise PictureError(f"{name}: colours stored as {key.photometric!r} are not read; convert it to RGB first.")
        self._samples = 1 if key.planarconfig == _PLANES_APART else key.samplesperpixel
        self._planes_inside = key.samplesperpixel if key.planarconfig == _PLANES_APART else 1
        if len(self._pages) * key.samplesperpixel != bands or key.imagedepth != 1 or key.bitspersample not in (8, 16):
            raise PictureError(f"{name}: {len(self._pages)} pages of {key.samplesperpixel} bands are not one picture.")
        self._loose = key.compression == _NONE and not key.is_tiled and key.predictor == 1 and key.fillorder == 1
        if key.is_tiled:
            self.tile = (key.tilelength, key.tilewidth)
        else:
            self.tile = (min(key.rowsperstrip, self.size[0]), self.size[1])
        itemsize = np.dtype(level.dtype).itemsize
        self._block_bytes = self.tile[0] * self.tile[1] * self._samples * itemsize
        if not self._loose:
            check_block(name, self.tile, self._block_bytes)
        self._columns = -(-self.size[1] // self.tile[1])
        self._per_plane = self._columns * -(-self.size[0] // self.tile[0])
        self._cache: OrderedDict[tuple[int, int], NDArray[Any]] = OrderedDict()
        self._cached_bytes = 0
        self.held = max(CACHE_BYTES, 0 if self._loose else self._block_bytes) + _LIBRARY_BYTES
        self._cache_lock, self._file_lock = threading.Lock(), threading.Lock()
        self.origin = Origin(kind="slide", levels=len(series.levels), pixel_size_um=_pixel_size(file))

    def read(self, top: int, left: int, height: int, width: int) -> NDArray[np.uint8]:
        check_window(self.size, top, left, height, width)
        try:
            if len(self._pages) * self._planes_inside == 1:
                levels = self._plane(0, top, left, height, width)[..., : len(self._bands)]
            else:
                levels = np.dstack([self._plane(band, top, left, height, width) for band in self._bands])
        except Exception as error:  # a codec raises what a damaged tile makes it stumble over
            raise damaged(self._name, top, left, height, width, error) from error
        if self._key.photometric == _PALETTE:
            colors: NDArray[np.uint8] = (self._key.colormap.T >> 8).astype(np.uint8)
            return np.asarray(colors[levels[..., 0]])
        levels = eight_bits(levels)
        return rgb(255 - levels if self._key.photometric == _MIN_IS_WHITE else levels)

    def valid(self, top: int, left: int, height: int, width: int) -> NDArray[np.bool_] | None:
        check_window(self.size, top, left, height, width)
        return None

    def _plane(self, plane: int, top: int, left: int, height: int, width: int) -> NDArray[Any]:
        """(height, width, samples) as stored."""
        content = np.empty((height, width, self._samples), self._key.dtype)
        rows, columns = self.tile
        for row in range(top // rows, (top + height - 1) // rows + 1):
            for column in range(left // columns, (left + width - 1) // columns + 1):
                start_y, start_x = row * rows, column * columns
                y0, y1 = max(top, start_y), min(top + height, start_y + rows)
                x0, x1 = max(left, start_x), min(left + width, start_x + columns)
                index = plane % self._planes_inside * self._per_plane + row * self._columns + column
                page = self._pages[plane // self._planes_inside]
                if self._loose:
                    part = self._rows(page, index, y0 - start_y, y1 - start_y)[:, x0:x1]
                else:
                    part = self._segment(plane // self._planes_inside, page, index)
                    part = part[y0 - start_y : y1 - start_y, x0 - start_x : x1 - start_x]
                content[y0 - top : y1 - top, x0 - left : x1 - left] = part
        return content

    def _rows(self, page: Any, index: int, first: int, after: int) -> NDArray[Any]:
        """Rows of an uncompressed strip, however long it is."""
        stored = np.dtype(self._key.dtype).newbyteorder(self._file.byteorder)
        row_bytes = self.size[1] * self._samples * stored.itemsize
        data = self._bytes(page.dataoffsets[index] + first * row_bytes, (after - first) * row_bytes)
        return np.frombuffer(data, stored).reshape(after - first, self.size[1], self._samples)

    def _bytes(self, offset: int, count: int) -> bytes:
        handle = self._file.filehandle
        with self._file_lock:
            handle.seek(offset)
            data: bytes = handle.read(count)
        if len(data) < count:
            raise ValueError("the file ends before it")
        return data

    def _segment(self, place: int, page: Any, index: int) -> NDArray[Any]:
        """(height, width, samples) of a tile or strip, decoded."""
        with self._cache_lock:
            known = self._cache.get((place, index))
            if known is not None:
                self._cache.move_to_end((place, index))
                return known
        offset, count = page.dataoffsets[index], page.databytecounts[index]
        if count > 2 * self._block_bytes + 2**20:
            raise ValueError(f"{count:,} bytes for a tile of {self._block_bytes:,}")
        data = self._bytes(offset, count) if count else None
        key = self._key
        tables = {"jpegtables": key.jpegtables, "jpegheader": key.jpegheader} if key.compression in _JPEG else {}
        decoded, _, shape = key.decode(data, index, **tables)
        if decoded is None:
            segment = np.full((*shape[1:3], self._samples), key.nodata, key.dtype)
        else:
            segment = np.asarray(decoded)[0]
        with self._cache_lock:
            self._cache[place, index] = segment
            self._cached_bytes += segment.nbytes
            while self._cached_bytes > CACHE_BYTES and len(self._cache) > 1:
                self._cached_bytes -= self._cache.popitem(last=False)[1].nbytes
        return segment


def _pixel_size(file: Any) -> tuple[float, float] | None:
    """(height, width) in micrometres, where OME's or Aperio's description says it."""
    if file.is_svs:
        found = re.search(r"MPP\s*=\s*([0-9.]+)", file.pages.first.description)
        return (float(found[1]), float(found[1])) if found else None
    if not file.is_ome:
        return None
    units = {"µm": 1.0, "um": 1.0, "nm": 1e-3, "mm": 1e3}
    for element in ElementTree.fromstring(file.ome_metadata).iter():
        if element.tag.endswith("}Pixels"):
            sizes = [element.get(f"PhysicalSize{axis}") for axis in "YX"]
            scales = [units.get(element.get(f"PhysicalSize{axis}Unit", "µm")) for axis in "YX"]
            if None not in sizes and None not in scales:
                height, width = (float(s) * u for s, u in zip(sizes, scales, strict=True) if s and u)
                return height, width
    return None


@contextmanager
def open_slide(path: Path, name: str) -> Iterator[SlideSource]:
    """Raises: PictureError, MissingPackageError."""
    with _opened(path, name) as file:
        with _parsing(name):
            source = SlideSource(name, file, identity_of(path))
        yield source


class SlideSink:
    """Tiles of an OME-TIFF in any order: its pyramid is written at the end, from a copy on disk of a byte a pixel."""

    tile = (TILE, TILE)
    ordered = False

    def __init__(self, raw: RawFile, size: tuple[int, int], labels: LabelSpace) -> None:
        self._raw, self._size = raw, size
        self._ignored, self._dtype = labels.ignore_index, np.dtype(labels.dtype)
        # A hole in a file reads as zeros: indices are stored turned over, so that these mean "no class".
        self._turn = self._dtype.type(labels.ignore_index)

    def write(self, top: int, left: int, mask: NDArray[np.integer]) -> None:
        self._raw.write(top, left, (mask.astype(self._dtype, copy=False) ^ self._turn)[..., None])

    def tiles(self, step: int) -> Iterator[NDArray[np.integer]]:
        """Of the mask with every `step`-th row and column, in reading order."""
        for top in range(0, self._size[0], TILE * step):
            for left in range(0, self._size[1], TILE * step):
                height, width = (
                    min(TILE * step, side - start) for side, start in zip(self._size, (top, left), strict=True)
                )
                part = self._raw.read(top, left, height, width, step)[..., 0] ^ self._turn
                tile = np.full((TILE, TILE), self._ignored, self._dtype)
                tile[: part.shape[0], : part.shape[1]] = part
                yield tile


@contextmanager
def slide_sink(
    path: Path,
    name: str,
    size: tuple[int, int],
    origin: Origin,
    labels: LabelSpace,
    mask_format: MaskFormat = "palette",
) -> Iterator[SlideSink]:
    """A tiled, compressed OME-TIFF with as many levels as the picture, the classes' colours, names and pixel size."""
    tifffile = import_tifffile()
    raw = RawFile(name, (*size, 1), labels.dtype, path.parent)
    try:
        sink = SlideSink(raw, size, labels)
        yield sink
        with writing(name), replacing(path) as stream:
            _write_pyramid(tifffile, stream, sink, size, origin, labels, mask_format)
    finally:
        raw.close()


def _write_pyramid(
    tifffile: ModuleType,
    stream: Any,
    sink: SlideSink,
    size: tuple[int, int],
    origin: Origin,
    labels: LabelSpace,
    mask_format: MaskFormat,
) -> None:
    levels = max(1, min(origin.levels, min(size).bit_length()))
    metadata: dict[str, Any] = {
        "axes": "YX", "Name": f"class index, {labels.name}",
        "Description": json.dumps({"classes": class_table(labels), "ignore_index": labels.ignore_index}),
    }  # fmt: skip
    if origin.pixel_size_um is not None:
        for axis, length in zip("YX", origin.pixel_size_um, strict=True):
            metadata |= {f"PhysicalSize{axis}": length, f"PhysicalSize{axis}Unit": "µm"}
    options: dict[str, Any] = {"dtype": labels.dtype, "tile": (TILE, TILE), "compression": "zlib"}
    if labels.dtype == np.uint8 and mask_format == "palette":
        options |= {"photometric": "palette", "colormap": labels.palette.T.astype(np.uint16) * 257}
    else:
        options |= {"photometric": "minisblack"}
    is_big = size[0] * size[1] * np.dtype(labels.dtype).itemsize > 2**31
    with tifffile.TiffWriter(stream, ome=True, bigtiff=is_big) as writer:
        for level in range(levels):
            step = 2**level
            shape = tuple(-(-side // step) for side in size)
            own = {"subifds": levels - 1, "metadata": metadata} if level == 0 else {"subfiletype": 1}
            writer.write(sink.tiles(step), shape=shape, **own, **options)
