"""Read microscope slides and OME-TIFF window by window, from the full-size level, through tifffile."""

from __future__ import annotations

import contextlib
import logging
import math
import os
import re
import struct
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

from evitseg.errors import ImageError, MissingPackageError
from evitseg.image import AS_STATED, ReadOptions
from evitseg.raster.bands import Band, choose_bands
from evitseg.raster.levels import Levels, cells, check_range, choose_levels
from evitseg.raster.tiff_readers import warn_first
from evitseg.raster.window import (
    CACHE_BYTES,
    Origin,
    check_block,
    check_size,
    check_window,
    damaged,
    from_level,
    identity_of,
    rgb,
)

_NONE, _JPEG = 1, (6, 7, 34892)
_COMPRESSIONS = {_NONE, 5, 8, 32773, 32946, 33003, 33005, 34712, 50000, *_JPEG}
"""TIFF's numbers for none, LZW, deflate, PackBits, JPEG 2000, Zstandard and JPEG."""
_IMAGES = (*_JPEG, 33003, 33005, 34712)
"""Compressions whose tiles are images with a size of their own."""
_MIN_IS_WHITE, _MIN_IS_BLACK, _RGB, _PALETTE, _YCBCR = 0, 1, 2, 3, 6
_SEPARATE_PLANES = 2
_LIBRARY_BYTES = 8 * 2**20
"""Memory of tifffile and imagecodecs."""


def import_tifffile() -> ModuleType:
    """The module `tifffile`. Raises: MissingPackageError."""
    try:
        import tifffile
    except ImportError as error:
        raise MissingPackageError("reading and writing TIFF window by window", "geo,slides") from error
    # Our own message reports a bad file once. Programs that configure logging still get tifffile's.
    logger = logging.getLogger("tifffile")
    if not logger.handlers:
        logger.addHandler(logging.NullHandler())
    return tifffile


def _require_imagecodecs(name: str) -> None:
    # Deflate needs it too: with Python's zlib, which tifffile would use, a tile may inflate to any size.
    try:
        import imagecodecs  # noqa: F401
    except ImportError as error:
        raise MissingPackageError(f"{name}: reading compressed slides", "slides") from error


@contextmanager
def _opened(path: Path, name: str) -> Iterator[Any]:
    tifffile = import_tifffile()
    try:
        # Without _multifile, tifffile would open other files that this one refers to.
        file = tifffile.TiffFile(os.fspath(path), _multifile=False)
    except Exception as error:  # tifffile raises any type of error for a damaged header
        raise ImageError(f"{name}: truncated or damaged ({str(error) or type(error).__name__}).") from error
    with file:
        if not file.pages:
            raise ImageError(f"{name}: truncated or damaged (there is no image in it).")
        yield file


@contextmanager
def _parsing(name: str) -> Iterator[None]:
    try:
        yield
    except (ImageError, MissingPackageError):
        raise
    except Exception as error:  # tifffile raises any type of error for a damaged header
        raise ImageError(f"{name}: truncated or damaged ({str(error) or type(error).__name__}).") from error


class SlideSource:
    """Windows of the largest image in a file, at its full size."""

    def __init__(
        self, name: str, file: Any, identity: str, options: ReadOptions = AS_STATED, whole: SlideSource | None = None,
        number: int = 0,
    ) -> None:  # fmt: skip
        """`whole`, `number`: for a smaller level, the source at full size, and the level's place in the pyramid."""
        self._name, self._file, self.identity, self._options = name, file, identity, options
        self._chosen: tuple[Any, list[int], list[Band]]
        self._chosen = _choose(name, file, options) if whole is None else whole._chosen
        series, planes, bands = self._chosen
        level = series.levels[number]
        lengths = dict(zip(level.axes, level.shape, strict=True))
        self.size = (lengths["Y"], lengths["X"])
        check_size(name, self.size)
        key = level.keyframe
        self._key = key
        if key.compression not in _COMPRESSIONS:
            raise ImageError(f"{name}: compression {key.compression!r} is not supported; store it as deflate or JPEG.")
        if key.compression != _NONE or key.predictor != 1:
            _require_imagecodecs(name)
        allowed = {_MIN_IS_WHITE, _MIN_IS_BLACK, _RGB, _PALETTE} | ({_YCBCR} if key.compression in _JPEG else set())
        if key.photometric not in allowed:
            raise ImageError(
                f"{name}: colours stored as {key.photometric!r} are not supported; convert it to RGB first."
            )
        self._samples = 1 if key.planarconfig == _SEPARATE_PLANES else key.samplesperpixel
        self._planes_inside = key.samplesperpixel if key.planarconfig == _SEPARATE_PLANES else 1
        if len(planes) * key.samplesperpixel != len(bands) or key.imagedepth != 1:
            raise ImageError(f"{name}: {len(planes)} pages of {key.samplesperpixel} bands do not make one image.")
        if key.bitspersample not in (8, 16, 32, 64) or isinstance(key.bitspersample, tuple):
            raise ImageError(f"{name}: BitsPerSample {key.bitspersample} in a file of several planes is not read.")
        self._pages = [level.pages[plane] for plane in planes]
        self._bands = choose_bands(name, bands, options)
        if key.photometric != _PALETTE:
            check_range(name, level.dtype, options)
        elif options.value_range is not None:
            raise ImageError(f"{name}: --range does not apply to a palette; leave it out.")
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
        self._smaller: list[SlideSource] | None = None if whole is None else []
        self._smaller_lock = threading.Lock()
        self._levels: Levels | None = None
        if whole is not None:
            self._levels = whole._levels  # one map from values to levels for all sizes
        elif key.photometric != _PALETTE:
            found = re.search(r'SignificantBits="(\d{1,2})"', file.pages.first.description)
            bits = int(found[1]) if found and int(found[1]) else None
            self._levels = choose_levels(
                name, level.dtype, options, self._sample, bits, key.photometric == _MIN_IS_WHITE
            )

    def _sample(self) -> Iterator[NDArray[Any]]:
        """Stored values, from which the range is found."""
        for window in cells(self.size):
            with contextlib.suppress(ImageError):  # damage is reported when it is read
                yield self._stored(*window).reshape(-1)

    def _stored(self, top: int, left: int, height: int, width: int) -> NDArray[Any]:
        """(height, width, bands) as stored."""
        try:
            if len(self._pages) * self._planes_inside == 1:
                whole = self._plane(0, top, left, height, width)
                return whole if self._bands == tuple(range(whole.shape[2])) else whole[..., self._bands]
            return np.dstack([self._plane(band, top, left, height, width) for band in self._bands])
        except Exception as error:  # codecs raise any type of error for a damaged tile
            raise damaged(self._name, top, left, height, width, error) from error

    def read(self, top: int, left: int, height: int, width: int) -> NDArray[np.uint8]:
        check_window(self.size, top, left, height, width)
        stored = self._stored(top, left, height, width)
        if self._levels is None:
            colors: NDArray[np.uint8] = (self._key.colormap.T >> 8).astype(np.uint8)
            return np.asarray(colors[stored[..., 0]])
        return rgb(self._levels(stored))

    def valid(self, top: int, left: int, height: int, width: int) -> NDArray[np.bool_] | None:
        check_window(self.size, top, left, height, width)
        return None

    def reduced(self, top: int, left: int, height: int, width: int, factor: int) -> NDArray[np.uint8]:
        check_window(self.size, top, left, height, width)
        levels = [self, *self._smaller_levels()]
        # Writers round the sizes of levels, so a level that should be 8 times smaller may be 8.01 times smaller.
        level = next((each for each in levels[::-1] if self.size[0] <= 1.01 * factor * each.size[0]), self)
        return from_level(level, self.size, top, left, height, width, factor)

    def _smaller_levels(self) -> list[SlideSource]:
        """The file's smaller levels that can be read, the largest first."""
        with self._smaller_lock:
            if self._smaller is None:
                self._smaller = []
                for number in range(1, len(self._chosen[0].levels)):
                    with contextlib.suppress(ImageError):  # the image is then reduced from a larger one
                        level = SlideSource(self._name, self._file, self.identity, self._options, self, number)
                        self._smaller.append(level)
            return self._smaller

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
            raise ValueError("the file ends too early")
        return data

    def _segment(self, place: int, page: Any, index: int) -> NDArray[Any]:
        """(height, width, samples) of a decoded tile or strip."""
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
        if data is not None and key.compression in _IMAGES:
            _check_inner(data, self.tile)
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


def _choose(name: str, file: Any, options: ReadOptions) -> tuple[Any, list[int], list[Band]]:
    """The series to read, the indices of a level's pages that belong to the image, and their bands.

    Raises: ImageError.
    """
    series = max(file.series, key=lambda s: s.levels[0].size)
    alike = [s for s in file.series if s.levels[0].shape == series.levels[0].shape] if file.is_ome else [series]
    level = series.levels[0]
    lengths = dict(zip(level.axes, level.shape, strict=True))
    if "Y" not in lengths or "X" not in lengths or len(lengths) != len(level.axes):
        raise ImageError(f"{name}: an array with the axes {level.axes} is not an image.")
    if lengths.get("S", 1) > 1 and lengths.get("C", 1) > 1:
        raise ImageError(
            f"{name}: several colour images in one array ({level.axes}, {level.shape}); save one as its own file."
        )
    leading = [axis for axis in level.axes if axis not in "YXS"]
    shape = [lengths[axis] for axis in leading]
    if math.prod(shape) != len(level.pages):
        raise ImageError(f"{name}: its metadata claim {math.prod(shape)} planes, but it has {len(level.pages)} pages.")
    each = math.prod(lengths[axis] for axis in leading if axis != "C")
    total = each * len(alike)
    page = options.page or 1
    if page > total:
        raise ImageError(f"{name}: --page {page} does not exist; the file has {total}.")
    if total > 1 and options.page is None:
        axes = ", ".join(f"{lengths[axis]} along {axis}" for axis in leading if axis != "C" and lengths[axis] > 1)
        warn_first(name, str(total), f"images ({axes})" if axes else "images")
    series = alike[(page - 1) // each]
    numbers = np.arange(len(level.pages)).reshape(shape)
    if "C" in leading:
        numbers = np.moveaxis(numbers, leading.index("C"), -1).reshape(-1, lengths["C"])
    else:
        numbers = numbers.reshape(-1, 1)
    planes = numbers[(page - 1) % each].tolist()
    level = series.levels[0]
    count = max(lengths.get("S", 1), lengths.get("C", 1))
    return series, planes, _bands_of(file, series, level.keyframe, count)


def _bands_of(file: Any, series: Any, key: Any, count: int) -> list[Band]:
    if key.samplesperpixel > 1:
        colors = ["red", "green", "blue"] if key.photometric in (_RGB, _YCBCR) else ["grey"]
        extra = ["alpha" if value in (1, 2) else "" for value in key.extrasamples]
        return [Band(color) for color in [*colors, *extra, *[""] * count][:count]]
    if count == 1:
        return [Band("palette" if key.photometric == _PALETTE else "grey")]
    bands = [Band()] * count
    if file.is_ome:
        images = [e for e in ElementTree.fromstring(file.ome_metadata).iter() if e.tag.endswith("}Pixels")]
        place = getattr(series, "index", 0)
        pixels = images[place] if isinstance(place, int) and place < len(images) else images[0]
        channels = [e for e in pixels.iter() if e.tag.endswith("}Channel")]
        if len(channels) == count:
            bands = [Band(_color_of(e.get("Color", "-1")), e.get("Name", "")) for e in channels]
    elif file.is_imagej:
        tables = (file.imagej_metadata or {}).get("LUTs") or []
        if len(tables) == count:
            bands = [Band(_color_of_table(table)) for table in tables]
    return bands


def _color_of(text: str) -> str:
    """The name of a colour in OME's form, a signed integer of four bytes: red, green, blue, alpha."""
    try:
        color = (int(text) & 0xFFFFFFFF) >> 8
    except ValueError:
        return ""
    return {0xFF0000: "red", 0x00FF00: "green", 0x0000FF: "blue"}.get(color, "")


def _color_of_table(table: Any) -> str:
    red, green, blue = (int(row[-1]) for row in np.asarray(table).reshape(3, -1))
    return {(255, 0, 0): "red", (0, 255, 0): "green", (0, 0, 255): "blue"}.get((red, green, blue), "")


def _check_inner(data: bytes, tile: tuple[int, int]) -> None:
    """Check that the size in the header of a compressed tile is the tile's. Raises: ValueError."""
    width = height = parts = 0
    if data[:4] == b"\xff\x4f\xff\x51" or data[4:8] == b"jP  ":
        start = data.find(b"\xff\x4f\xff\x51")
        if start < 0 or len(data) < start + 44:
            raise ValueError("the tile has no size")
        x1, y1, x0, y0 = struct.unpack(">4I", data[start + 8 : start + 24])
        width, height, (parts,) = x1 - x0, y1 - y0, struct.unpack(">H", data[start + 40 : start + 42])
    elif data[:2] == b"\xff\xd8":
        at = 2
        while at + 9 < len(data) and data[at] == 0xFF:
            marker = data[at + 1]
            if marker == 0xFF or marker == 0x01 or 0xD0 <= marker <= 0xD8:
                at += 1 if marker == 0xFF else 2
                continue
            if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
                height, width, parts = struct.unpack(">HHB", data[at + 5 : at + 10])
                break
            if marker == 0xDA:
                break
            at += 2 + int.from_bytes(data[at + 2 : at + 4], "big")
    # Encoders may round a tile up to whole blocks.
    if width > tile[1] + 64 or height > tile[0] + 64 or parts > 16:
        raise ValueError(f"a tile of {tile[1]}×{tile[0]} pixels claims {width}×{height}")


def _pixel_size(file: Any) -> tuple[float, float] | None:
    """(height, width) of a pixel in micrometres, if OME's or Aperio's description states it."""
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
def open_slide(path: Path, name: str, options: ReadOptions = AS_STATED) -> Iterator[SlideSource]:
    """A slide or OME-TIFF, to read window by window. Raises: ImageError, MissingPackageError."""
    with _opened(path, name) as file:
        with _parsing(name):
            source = SlideSource(name, file, identity_of(path), options)
        yield source
