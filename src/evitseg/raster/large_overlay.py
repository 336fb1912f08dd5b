"""Draw the overlay of an image of any size from its mask file, in bounded memory."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from evitseg.errors import ConfigError, ImageError
from evitseg.image import Mask
from evitseg.labels import LabelSpace
from evitseg.raster.files import MAX_JPEG_SIDE, save_image
from evitseg.raster.gdal import environment, import_rasterio, quiet_open, translate_gdal_errors
from evitseg.raster.geotiff_write import check_written
from evitseg.raster.mask_bands import MaskBands, class_reader, open_mask, read_classes
from evitseg.raster.window import CACHE_BYTES, TILE, Georeference, Origin, Source, origin_of, writing
from evitseg.system.authorship import SOFTWARE
from evitseg.system.files import temporary_folder
from evitseg.system.machine import physical_cores
from evitseg.system.parallel import ordered_map
from evitseg.visualize import OPACITY, class_counts, colored, fractions_of, tinted, with_legend

REDUCED_PIXELS = 8_000_000
"""Pixels of the largest reduced overlay."""
PYRAMID_ENDINGS = (".tif", ".tiff")
REDUCED_ENDINGS = (".jpg", ".jpeg", ".png")
_COLUMNS = 1024
"""Width of the windows that are drawn at once; a multiple of the tiles' width."""
_MAX_THREADS = 4
"""More would only take more memory: windows are compressed and put together in one thread."""
_WINDOW_BYTES = 14
"""Per pixel of a window: the image twice, its classes as indices and in colour, and both blended."""
_QUALITY = 85
_T = TypeVar("_T")


def write_overlay(
    source: Source,
    mask: str | os.PathLike[str],
    out: str | os.PathLike[str],
    labels: LabelSpace | None = None,
    legend: bool = True,
    progress: Callable[[float], None] = lambda fraction: None,
) -> None:
    """Draw an image with its classes in colour, in bounded memory.

    `.jpg` and `.png` are reduced by a power of two, to at most `REDUCED_PIXELS`. `.tif` is a pyramid of all pixels: a
    GeoTIFF of JPEG tiles with overviews and the image's georeference, transparent where it has no data.

    Args:
        source: the image, from `open_raster`.
        mask: its mask file.
        labels: the classes; None uses those that the mask file lists.
        legend: draw a legend below a reduced overlay; a pyramid has none.
        progress: called with the finished fraction, 0 to 1.

    Raises: ImageError, ConfigError for a mask of another size or without classes, FileError, MissingPackageError.
    """
    out, name = Path(out), str(out)
    if out.suffix.lower() not in (*PYRAMID_ENDINGS, *REDUCED_ENDINGS):
        raise ImageError(f"{name}: overlays are written as .jpg or .png, reduced, or as .tif, a pyramid of all pixels.")
    with open_mask(Path(os.path.abspath(mask)), str(mask)) as bands:
        labels = labels or bands.labels
        if labels is None:
            raise ConfigError(f"{mask}: does not list its classes; name them (--labels camvid for the bundled model).")
        if bands.size != source.size:
            (height, width), (rows, columns) = source.size, bands.size
            raise ConfigError(
                f"{mask}: has {columns}×{rows} pixels, but the image has {width}×{height}; give the image's own mask."
            )
        bands = replace(bands, read=class_reader(bands, labels))
        if out.suffix.lower() in PYRAMID_ENDINGS:
            _write_pyramid(source, bands, labels, out, progress)
        else:
            _write_reduced(source, bands, labels, out, legend, progress)


def overlay_bytes(size: tuple[int, int], out: str | os.PathLike[str]) -> int:
    """Bytes that `write_overlay` needs at most, apart from the image and the mask file that it reads."""
    height, width = size
    is_pyramid, factor = Path(out).suffix.lower() in PYRAMID_ENDINGS, _reduction(size)
    rows = TILE if is_pyramid else max(TILE, factor)
    window = min(rows, height) * min(max(_COLUMNS, rows), width) * _WINDOW_BYTES
    at_once = min(physical_cores(), _MAX_THREADS) + 1
    canvas = CACHE_BYTES if is_pyramid else 2 * 3 * (height // factor + 1) * (width // factor + 1)  # and its legend
    return canvas + 2 * rows * width + at_once * window


def _reduction(size: tuple[int, int]) -> int:
    """The power of two by which an overlay is reduced."""
    height, width = size
    factor = 1
    while height * width > factor**2 * REDUCED_PIXELS or max(height, width) > factor * MAX_JPEG_SIDE:
        factor *= 2
    return factor


@dataclass(frozen=True)
class _Window:
    """The corner of a window, and its part of the mask."""

    top: int
    left: int
    mask: Mask


def _write_reduced(
    source: Source, mask: MaskBands, labels: LabelSpace, out: Path, legend: bool, progress: Callable[[float], None]
) -> None:
    height, width = source.size
    factor = _reduction(source.size)
    canvas = Image.new("RGB", (-(-width // factor), -(-height // factor)))
    counts = np.zeros(len(labels.classes), np.int64)

    def draw(window: _Window) -> tuple[Image.Image, NDArray[np.int64]]:
        image, _ = _pixels(source, window)
        # Reduced before they are blended, which is faster and gives the same colours up to rounding.
        reduced, classes = (part.reduce(factor) for part in (Image.fromarray(image), colored(window.mask, labels)))
        return Image.blend(reduced, classes, OPACITY), class_counts(window.mask, len(counts))

    for window, (image, found) in _drawn(mask, labels, max(TILE, factor), draw, progress):
        canvas.paste(image, (window.left // factor, window.top // factor))
        counts += found
    if legend:
        canvas = with_legend(canvas, fractions_of(counts, height * width, labels), labels)
    save_image(canvas, out)


def _write_pyramid(
    source: Source, mask: MaskBands, labels: LabelSpace, out: Path, progress: Callable[[float], None]
) -> None:
    rasterio = import_rasterio()
    name, origin = str(out), origin_of(source)
    place = origin.georeference or Georeference()
    profile: dict[str, Any] = {
        "driver": "GTiff", "height": source.size[0], "width": source.size[1], "count": 3, "dtype": "uint8",
        "tiled": True, "blockxsize": TILE, "blockysize": TILE, "compress": "jpeg", "photometric": "ycbcr",
        "interleave": "pixel", "jpeg_quality": _QUALITY, "bigtiff": "if_safer",
    }  # fmt: skip
    profile |= {key: value for key, value in (("crs", place.crs), ("transform", place.transform)) if value is not None}
    options = {
        "GDAL_TIFF_INTERNAL_MASK": True, "GDAL_TIFF_OVR_BLOCKSIZE": TILE, "COMPRESS_OVERVIEW": "JPEG",
        "PHOTOMETRIC_OVERVIEW": "YCBCR", "INTERLEAVE_OVERVIEW": "PIXEL", "JPEG_QUALITY_OVERVIEW": _QUALITY,
        "BIGTIFF_OVERVIEW": "IF_SAFER",
    }  # fmt: skip

    def draw(window: _Window) -> tuple[Image.Image, NDArray[np.bool_] | None]:
        image, is_whole = _pixels(source, window)
        valid = source.valid(window.top, window.left, *window.mask.shape)
        if not is_whole:
            valid = np.asarray(window.mask != labels.ignore_index)
        return tinted(image, window.mask, labels), valid

    with writing(name), temporary_folder(out.parent) as folder:
        temporary = folder / "overlay.tif"
        with translate_gdal_errors(name), environment(), rasterio.Env(**options):
            with quiet_open(temporary, "w", **profile) as dataset:
                _describe(dataset, place, origin)
                transparency = _Transparency(dataset)
                for window, (image, valid) in _drawn(
                    mask, labels, TILE, draw, lambda fraction: progress(0.8 * fraction)
                ):
                    part = rasterio.windows.Window(window.left, window.top, *image.size)
                    dataset.write(np.moveaxis(np.asarray(image), 2, 0), window=part)
                    transparency.write(part, valid)
            check_written(temporary, source.size)
            factors = [2**level for level in range(1, 32) if max(source.size) > TILE * 2 ** (level - 1)]
            if factors:
                with quiet_open(temporary, "r+", driver="GTiff") as dataset:
                    dataset.build_overviews(factors, rasterio.enums.Resampling.average)
        temporary.replace(out)
    progress(1.0)


class _Transparency:
    """The mask of a GeoTIFF, which is made at the first pixel without data: then it must cover earlier windows, too."""

    def __init__(self, dataset: Any) -> None:
        self._dataset = dataset
        self._whole: list[Any] | None = []

    def write(self, window: Any, valid: NDArray[np.bool_] | None) -> None:
        if self._whole is not None:
            self._whole.append(window)
            if valid is None:
                return
            whole, self._whole = self._whole, None
            for earlier in whole:
                self._dataset.write_mask(np.ones((earlier.height, earlier.width), np.bool_), window=earlier)
        if valid is None:
            valid = np.ones((window.height, window.width), np.bool_)
        self._dataset.write_mask(valid, window=window)


def _describe(dataset: Any, place: Georeference, origin: Origin) -> None:
    if place.gcps is not None:
        dataset.gcps = place.gcps
    if place.rpcs is not None:
        dataset.rpcs = place.rpcs
    tags = {"TIFFTAG_SOFTWARE": SOFTWARE}
    if place.area_or_point is not None:
        tags["AREA_OR_POINT"] = place.area_or_point
    if origin.pixel_size_um is not None:
        for axis, size_um in zip("YX", origin.pixel_size_um, strict=True):
            tags[f"TIFFTAG_{axis}RESOLUTION"] = f"{10_000 / size_um:.6f}"
        tags["TIFFTAG_RESOLUTIONUNIT"] = "3"  # pixels per centimetre
    dataset.update_tags(**tags)


def _drawn(
    mask: MaskBands,
    labels: LabelSpace,
    rows: int,
    draw: Callable[[_Window], _T],
    progress: Callable[[float], None],
) -> Iterator[tuple[_Window, _T]]:
    """What `draw` makes of every window, row by row; windows are drawn in several threads."""
    height, width = mask.size
    across = max(_COLUMNS, rows)

    def windows() -> Iterator[_Window]:
        for top in range(0, height, rows):
            band: Mask = read_classes(mask, labels, top, min(rows, height - top))
            for left in range(0, width, across):
                yield _Window(top, left, np.ascontiguousarray(band[:, left : left + across]))

    for window, drawn in ordered_map(
        windows(), lambda window: (window, draw(window)), min(physical_cores(), _MAX_THREADS), 1
    ):
        yield window, drawn
        of_band = window.mask.shape[0] * (window.left + window.mask.shape[1])
        progress((window.top * width + of_band) / (height * width))


def _pixels(source: Source, window: _Window) -> tuple[NDArray[np.uint8], bool]:
    """The pixels of a window, black where they cannot be read, and whether all could be read."""
    top, left, (height, width) = window.top, window.left, window.mask.shape
    try:
        return source.read(top, left, height, width), True
    except ImageError:
        pass
    image = np.zeros((height, width, 3), np.uint8)
    for y in range(top // source.tile[0] * source.tile[0], top + height, source.tile[0]):
        for x in range(left // source.tile[1] * source.tile[1], left + width, source.tile[1]):
            y0, x0 = max(y, top), max(x, left)
            y1, x1 = min(y + source.tile[0], top + height), min(x + source.tile[1], left + width)
            try:
                image[y0 - top : y1 - top, x0 - left : x1 - left] = source.read(y0, x0, y1 - y0, x1 - x0)
            except ImageError:
                continue
    return image, False
