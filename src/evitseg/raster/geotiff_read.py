"""Read GeoTIFF, PNG, JPEG and BMP window by window."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from evitseg.errors import ImageError
from evitseg.image import AS_STATED, ReadOptions
from evitseg.raster.bands import Band, choose_bands
from evitseg.raster.gdal import Handles, NotOpenedError, georeference_in, import_rasterio
from evitseg.raster.levels import cells, check_range, choose_levels
from evitseg.raster.places import upright
from evitseg.raster.tiff import MIN_IS_BLACK, MIN_IS_WHITE, PALETTE, Page
from evitseg.raster.tiff_readers import cmyk_to_rgb, refusal
from evitseg.raster.window import (
    CACHE_BYTES,
    Origin,
    RawFile,
    Upright,
    check_block,
    check_size,
    check_window,
    damaged,
    identity_of,
    rgb,
)

_HELD = 40 * 2**20 + CACHE_BYTES
"""Bytes of memory that GDAL takes, with its libraries and its cache."""
_WIDE = 8192
"""Row length in pixels above which compressed strips are decoded once, to disk, not again for every window."""
_COPY_BYTES = 8 * 2**20
_REDUCED_AT_ONCE = 4096
"""Side in pixels of the windows in which an image is reduced."""
_STREAMS = ("PNG", "JPEG")
_STREAM_ROWS = 16
"""Rows per block, for formats that have no blocks."""


class GdalSource:
    """Windows of a file, decoded by GDAL as they are needed."""

    held = _HELD

    def __init__(
        self, name: str, handles: Handles, driver: str, identity: str, options: ReadOptions, page: Page | None
    ) -> None:
        """`page`: the tags of the TIFF page to read; None for other formats."""
        self._name, self._handles, self.identity = name, handles, identity
        rasterio = import_rasterio()
        if page is not None and refusal(page):
            raise ImageError(f"{name}: {refusal(page)}.")
        with handles.one() as dataset:
            self.size = (dataset.height, dataset.width)
            check_size(name, self.size)
            if driver == "JPEG":
                # With damaged EXIF, the first question to GDAL fails although the pixels are intact.
                with contextlib.suppress(rasterio._err.CPLE_BaseError):
                    _ = dataset.colorinterp
            bands = _bands_of(dataset, page)
            self._is_cmyk = bands[0].color == "cyan" and len(bands) >= 4 and options.bands is None
            places = (0, 1, 2, 3) if self._is_cmyk else choose_bands(name, bands, options)
            self._bands = tuple(place + 1 for place in places)
            self._dtype = dtype = np.result_type(*(dataset.dtypes[b - 1] for b in self._bands))
            self._colors = self._palette(dataset, page) if bands[places[0]].color == "palette" else None
            if self._colors is None:
                check_range(name, dtype, options)
            elif options.value_range is not None:
                raise ImageError(f"{name}: --range does not apply to a palette; leave it out.")
            height, width = dataset.block_shapes[0]
            image = dataset.tags(ns="IMAGE_STRUCTURE")
            together = dataset.count if image.get("INTERLEAVE") == "PIXEL" else 1
            size_bytes = height * width * together * np.dtype(dataset.dtypes[0]).itemsize
            self.tile = (height, width)
            self.is_striped = width == self.size[1] and image.get("COMPRESSION") is not None
            if driver == "GTiff" and image.get("COMPRESSION") is not None:
                check_block(name, self.tile, size_bytes)
            flags = [flag for b in self._bands for flag in dataset.mask_flag_enums[b - 1]]
            # As in `read_image`, transparent pixels of photographs count with their stored colours.
            self.has_nodata = driver == "GTiff" and any(f.name != "all_valid" for f in flags)
            self.is_float = dtype.kind == "f"
            grey = dataset.tags(1, ns="IMAGE_STRUCTURE")
            bits = page.stated_bits if page is not None else int(grey.get("NBITS", 0)) or None
            inverted = page is not None and page.photometric == MIN_IS_WHITE
            overviews = tuple(dataset.overviews(1))
            self.origin = Origin(
                kind="tiff" if driver == "GTiff" else "other",
                georeference=georeference_in(dataset),
                overviews=overviews,
                is_cog=image.get("LAYOUT") == "COG",
                levels=1 + len(overviews),
            )

        self._is_stream = driver in _STREAMS
        self._levels = None
        if self._colors is None:
            self._levels = choose_levels(name, dtype, options, self._sample, bits, inverted)

    def _sample(self) -> Iterator[NDArray[Any]]:
        """Valid stored values, from which the range is found."""
        band: NDArray[Any] | None = None  # rows, for formats that are decoded from the beginning
        row = -1
        for top, left, height, width in cells(self.size):
            try:
                if self._is_stream:
                    if band is None or row != top:
                        band, row = self._stored(top, 0, height, self.size[1]), top
                    yield band[:, left : left + width].reshape(-1)
                    continue
                values = self._stored(top, left, height, width)
                valid = self.valid(top, left, height, width)
                yield values.reshape(-1) if valid is None else values[valid].reshape(-1)
            except ImageError:
                continue  # damage is reported when it is read

    def _palette(self, dataset: Any, page: Page | None) -> NDArray[np.uint8]:
        if dataset.dtypes[0] not in ("uint8", "uint16"):
            raise ImageError(
                f"{self._name}: palettes of {dataset.dtypes[0]} indices are not supported; convert it to RGB first."
            )
        colors = np.zeros((2 ** (8 * np.dtype(dataset.dtypes[0]).itemsize), 3), np.uint8)
        if page is not None and page.colormap is not None:
            colors[: len(page.colormap)] = page.colormap[: len(colors)]
            return colors
        for index, color in dataset.colormap(self._bands[0]).items():
            if 0 <= index < len(colors):
                colors[index] = color[:3]
        return colors

    def _stored(
        self, top: int, left: int, height: int, width: int, reduced: tuple[int, int] | None = None
    ) -> NDArray[Any]:
        """(height, width, bands) as stored; or of the size `reduced`, from an overview if the file has one."""
        window = import_rasterio().windows.Window(left, top, width, height)
        with self._handles.one() as dataset, self._decoding(top, left, height, width):
            stored = np.empty((*(reduced or (height, width)), len(self._bands)), self._dtype)
            # GDAL gives pixels whose bands lie side by side faster than numpy would move them there.
            dataset.read(self._bands, window=window, out=np.moveaxis(stored, 2, 0))
            return stored

    def read(self, top: int, left: int, height: int, width: int) -> NDArray[np.uint8]:
        check_window(self.size, top, left, height, width)
        return self._colored(self._stored(top, left, height, width))

    def reduced(self, top: int, left: int, height: int, width: int, factor: int) -> NDArray[np.uint8]:
        check_window(self.size, top, left, height, width)
        rows, columns = -(-height // factor), -(-width // factor)
        reduced = np.empty((rows, columns, 3), np.uint8)
        # GDAL reads line by line. If a line touches more blocks than the cache holds, each line decodes them anew.
        step = max(1, _REDUCED_AT_ONCE // factor)
        for y in range(0, rows, step):
            for x in range(0, columns, step):
                down, across = min(step, rows - y), min(step, columns - x)
                place = top + y * factor, left + x * factor
                sides = min(down * factor, top + height - place[0]), min(across * factor, left + width - place[1])
                reduced[y : y + down, x : x + across] = self._colored(self._stored(*place, *sides, (down, across)))
        return reduced

    def _colored(self, stored: NDArray[Any]) -> NDArray[np.uint8]:
        if self._colors is not None:
            return np.asarray(self._colors[stored[..., 0]])
        assert self._levels is not None
        levels = self._levels(stored)
        return cmyk_to_rgb(levels) if self._is_cmyk else rgb(levels)

    def valid(self, top: int, left: int, height: int, width: int) -> NDArray[np.bool_] | None:
        check_window(self.size, top, left, height, width)
        if not self.has_nodata and not self.is_float:
            return None
        try:
            valid = self._mask(top, left, height, width)
        except ImageError:
            # Read tile by tile, so that only damaged tiles are lost.
            valid = np.full((height, width), False)
            rows, columns = self.tile
            for y in range(top // rows * rows, top + height, rows):
                for x in range(left // columns * columns, left + width, columns):
                    y0, x0 = max(y, top), max(x, left)
                    y1, x1 = min(y + rows, top + height), min(x + columns, left + width)
                    with contextlib.suppress(ImageError):
                        valid[y0 - top : y1 - top, x0 - left : x1 - left] = self._mask(y0, x0, y1 - y0, x1 - x0)
        return None if valid.all() else valid

    def _mask(self, top: int, left: int, height: int, width: int) -> NDArray[np.bool_]:
        window = import_rasterio().windows.Window(left, top, width, height)
        with self._handles.one() as dataset, self._decoding(top, left, height, width):
            # A pixel is valid if any of its bands is, because the nodata value of one band may be part of a colour.
            valid = np.full((height, width), True)
            if self.has_nodata:
                valid = np.asarray(dataset.dataset_mask(window=window) != 0)
            if self.is_float:
                valid &= np.isfinite(dataset.read(self._bands, window=window)).all(0)
            return valid

    @contextmanager
    def _decoding(self, top: int, left: int, height: int, width: int) -> Iterator[None]:
        rasterio = import_rasterio()
        try:
            yield
        except (rasterio.errors.RasterioError, rasterio._err.CPLE_BaseError) as error:
            raise damaged(self._name, top, left, height, width, error.__cause__ or error) from error


class DecodedCopy:
    """A file decoded into a temporary file, because every window of it would decode whole rows again."""

    held = _HELD

    def __init__(self, name: str, source: GdalSource, is_stream: bool, scratch: str | os.PathLike[str] | None) -> None:
        """`is_stream`: whether rows after a damaged one cannot be decoded either."""
        self.size, self.origin, self.identity, self._name = source.size, source.origin, source.identity, name
        self.tile = (_STREAM_ROWS, source.size[1]) if is_stream else source.tile
        height, width = source.size
        self._has_nodata = source.has_nodata or source.is_float
        self._pixels = RawFile(name, (height, width, 4 if self._has_nodata else 3), np.uint8, scratch)
        self._broken: list[tuple[int, int, ImageError]] = []  # first row, row after the last, reason; disjoint
        try:
            self._fill(source, is_stream)
        except BaseException:
            self._pixels.close()
            raise

    def _fill(self, source: GdalSource, is_stream: bool) -> None:
        height, width = self.size
        strip = 1 if is_stream else source.tile[0]
        rows = max(1, _COPY_BYTES // (width * self._pixels.shape[2] * strip)) * strip
        for top in range(0, height, rows):
            try:
                self._copy(source, top, min(rows, height - top))
            except ImageError:
                # Copy block by block, so that only damaged blocks are lost.
                for start in range(top, min(top + rows, height), strip):
                    try:
                        self._copy(source, start, min(strip, height - start))
                    except ImageError as error:
                        stop = height if is_stream else start + strip
                        if self._broken and self._broken[-1][1] == start:
                            self._broken[-1] = (self._broken[-1][0], stop, self._broken[-1][2])
                        else:
                            self._broken.append((start, stop, error))
                        if is_stream:
                            if start == 0:
                                raise
                            return

    def _copy(self, source: GdalSource, top: int, height: int) -> None:
        width = self.size[1]
        pixels = source.read(top, 0, height, width)
        if self._has_nodata:
            valid = source.valid(top, 0, height, width)
            alpha = np.full((height, width), True) if valid is None else valid
            pixels = np.dstack([pixels, alpha.astype(np.uint8)])
        self._pixels.write(top, 0, pixels)

    def read(self, top: int, left: int, height: int, width: int) -> NDArray[np.uint8]:
        check_window(self.size, top, left, height, width)
        for start, stop, error in self._broken:
            if top < stop and start < top + height:
                raise damaged(self._name, top, left, height, width, error.__cause__ or error)
        return np.ascontiguousarray(self._pixels.read(top, left, height, width)[..., :3])

    def reduced(self, top: int, left: int, height: int, width: int, factor: int) -> NDArray[np.uint8]:
        check_window(self.size, top, left, height, width)
        for start, stop, error in self._broken:
            if top < stop and start < top + height:
                raise damaged(self._name, top, left, height, width, error.__cause__ or error)
        return np.ascontiguousarray(self._pixels.read(top, left, height, width, factor)[..., :3])

    def valid(self, top: int, left: int, height: int, width: int) -> NDArray[np.bool_] | None:
        check_window(self.size, top, left, height, width)
        if not self._has_nodata:
            return None
        # Damaged pixels were never written and read as 0.
        valid: NDArray[np.bool_] = self._pixels.read(top, left, height, width)[..., 3] != 0
        return None if valid.all() else valid

    def close(self) -> None:
        self._pixels.close()


def _bands_of(dataset: Any, page: Page | None) -> list[Band]:
    bands = []
    for interpretation, description in zip(dataset.colorinterp, dataset.descriptions, strict=True):
        color = {"gray": "grey", "undefined": "", "Y": "ycbcr", "Cb": "ycbcr", "Cr": "ycbcr"}.get(
            interpretation.name, interpretation.name
        )
        # GDAL presents bilevel images and those that store white as 0 as palettes.
        is_grey = page is not None and (
            page.photometric == MIN_IS_WHITE or (page.photometric == MIN_IS_BLACK and page.bits[0] == 1)
        )
        if color == "palette" and is_grey:
            color = "grey"
        bands.append(Band(color, description or ""))
    if page is not None and page.photometric == PALETTE:
        bands[0] = Band("palette", bands[0].name)
    return bands


@contextmanager
def open_gdal(
    path: Path,
    name: str,
    driver: str,
    scratch: str | os.PathLike[str] | None,
    options: ReadOptions = AS_STATED,
    page: Page | None = None,
    orientation: int = 1,
) -> Iterator[GdalSource | DecodedCopy | Upright]:
    """A file that GDAL reads, to read window by window.

    Args:
        page: the page of a TIFF to read.
        orientation: a photograph's EXIF orientation, 1 to 8.

    Raises: ImageError, FileError, MissingPackageError.
    """
    rasterio = import_rasterio()
    handles = Handles(path, driver, page.ifd if page is not None else 0)
    with contextlib.ExitStack() as stack:
        stack.callback(handles.close)
        try:
            source = GdalSource(name, handles, driver, identity_of(path), options, page)
        except (rasterio.errors.RasterioError, rasterio._err.CPLE_BaseError) as error:
            raise NotOpenedError(f"{name}: truncated or damaged, or of an unsupported kind ({error}).") from error
        except UnicodeError as error:
            raise ImageError(f"{name}: GDAL only opens files whose names are UTF-8; rename the file.") from error
        result: GdalSource | DecodedCopy = source
        if driver in (*_STREAMS, "BMP") or (driver == "GTiff" and source.is_striped and source.size[1] > _WIDE):
            result = DecodedCopy(name, source, driver in _STREAMS, scratch)
            stack.callback(result.close)
        if page is not None and source.origin.georeference is None:
            orientation = page.orientation
        if orientation not in range(2, 9):
            yield result
            return
        turned = Upright(result, orientation)
        if turned.origin.georeference is not None:
            place = upright(turned.origin.georeference, orientation, result.size)
            turned.origin = replace(turned.origin, georeference=place)
        yield turned
