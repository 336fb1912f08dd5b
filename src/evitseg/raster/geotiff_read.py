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
"""Bytes of memory: GDAL and what it brings, and its cache."""
_WIDE = 8192
"""Pixels of a row from which on compressed strips are decoded once, to disk, instead of anew for every window."""
_COPY_BYTES = 8 * 2**20
_STREAMS = ("PNG", "JPEG")
_STREAM_ROWS = 16
"""Of the pieces that a format without pieces is said to be made of."""


class GdalSource:
    """Windows of a file that GDAL reads."""

    held = _HELD

    def __init__(
        self, name: str, handles: Handles, driver: str, identity: str, options: ReadOptions, page: Page | None
    ) -> None:
        """`page`: what the tags of a TIFF say."""
        self._name, self._handles, self.identity = name, handles, identity
        rasterio = import_rasterio()
        if page is not None and refusal(page):
            raise ImageError(f"{name}: {refusal(page)}.")
        with handles.one() as dataset:
            self.size = (dataset.height, dataset.width)
            check_size(name, self.size)
            if driver == "JPEG":
                # Damaged EXIF, over which GDAL stumbles with the first question, leaves the pixels whole.
                with contextlib.suppress(rasterio._err.CPLE_BaseError):
                    _ = dataset.colorinterp
            bands = _bands_of(dataset, page)
            self._is_cmyk = bands[0].color == "cyan" and len(bands) >= 4 and options.bands is None
            places = (0, 1, 2, 3) if self._is_cmyk else choose_bands(name, bands, options)
            self._bands = tuple(place + 1 for place in places)
            dtype = np.result_type(*(dataset.dtypes[b - 1] for b in self._bands))
            self._colors = self._palette(dataset, page) if bands[places[0]].color == "palette" else None
            if self._colors is None:
                check_range(name, dtype, options)
            elif options.value_range is not None:
                raise ImageError(f"{name}: a palette's colours have no range; leave out --range.")
            height, width = dataset.block_shapes[0]
            image = dataset.tags(ns="IMAGE_STRUCTURE")
            together = dataset.count if image.get("INTERLEAVE") == "PIXEL" else 1
            size_bytes = height * width * together * np.dtype(dataset.dtypes[0]).itemsize
            self.tile = (height, width)
            self.is_striped = width == self.size[1] and image.get("COMPRESSION") is not None
            if driver == "GTiff" and image.get("COMPRESSION") is not None:
                check_block(name, self.tile, size_bytes)
            flags = [flag for b in self._bands for flag in dataset.mask_flag_enums[b - 1]]
            # In a photograph, stored colours count also where they are transparent, as in `read_image`.
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
        """Valid stored values, for the range."""
        band: NDArray[Any] | None = None  # of rows, of a format that is decoded from its beginning
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
                continue  # a damaged part is reported where it is read

    def _palette(self, dataset: Any, page: Page | None) -> NDArray[np.uint8]:
        if dataset.dtypes[0] not in ("uint8", "uint16"):
            raise ImageError(f"{self._name}: a palette of {dataset.dtypes[0]} indices is not read.")
        colors = np.zeros((2 ** (8 * np.dtype(dataset.dtypes[0]).itemsize), 3), np.uint8)
        if page is not None and page.colormap is not None:
            colors[: len(page.colormap)] = page.colormap[: len(colors)]
            return colors
        for index, color in dataset.colormap(self._bands[0]).items():
            if 0 <= index < len(colors):
                colors[index] = color[:3]
        return colors

    def _stored(self, top: int, left: int, height: int, width: int) -> NDArray[Any]:
        """(height, width, bands) as the file holds them."""
        window = import_rasterio().windows.Window(left, top, width, height)
        with self._handles.one() as dataset, self._decoding(top, left, height, width):
            return np.moveaxis(dataset.read(self._bands, window=window), 0, 2)

    def read(self, top: int, left: int, height: int, width: int) -> NDArray[np.uint8]:
        check_window(self.size, top, left, height, width)
        stored = self._stored(top, left, height, width)
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
            # Tile by tile, to lose no more than what is damaged.
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
            # By band, a pixel with a value in any of them is valid: black that is nodata in one band may be a colour.
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
    """A source whose rows were all decoded to disk, because windows of it would decode whole rows again and again."""

    held = _HELD

    def __init__(self, name: str, source: GdalSource, is_stream: bool, scratch: str | os.PathLike[str] | None) -> None:
        """`is_stream`: what comes after a damaged row cannot be decoded either."""
        self.size, self.origin, self.identity, self._name = source.size, source.origin, source.identity, name
        self.tile = (_STREAM_ROWS, source.size[1]) if is_stream else source.tile
        height, width = source.size
        self._has_nodata = source.has_nodata or source.is_float
        self._pixels = RawFile(name, (height, width, 4 if self._has_nodata else 3), np.uint8, scratch)
        self._broken: list[tuple[int, int, ImageError]] = []  # first row, row after the last, why; apart
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
                # Piece by piece, to lose no more than what is damaged.
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

    def valid(self, top: int, left: int, height: int, width: int) -> NDArray[np.bool_] | None:
        check_window(self.size, top, left, height, width)
        if not self._has_nodata:
            return None
        # What is damaged was never written, and reads as 0.
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
        # GDAL makes a palette of white as 0, and of two levels of grey.
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
    """Windows of a file in the format of one driver of GDAL's.

    Args:
        page: the directory of a TIFF that is read.
        orientation: how a photograph is turned, 1 to 8.

    Raises: ImageError, FileError, MissingPackageError.
    """
    rasterio = import_rasterio()
    handles = Handles(path, driver, page.ifd if page is not None else 0)
    with contextlib.ExitStack() as stack:
        stack.callback(handles.close)
        try:
            source = GdalSource(name, handles, driver, identity_of(path), options, page)
        except (rasterio.errors.RasterioError, rasterio._err.CPLE_BaseError) as error:
            raise NotOpenedError(f"{name}: truncated or damaged, or of a kind that is not read ({error}).") from error
        except UnicodeError as error:
            raise ImageError(f"{name}: its name is not UTF-8, which GDAL needs; rename the file.") from error
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
