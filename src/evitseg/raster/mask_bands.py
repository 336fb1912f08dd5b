"""Read mask files of any size in bands of rows."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from evitseg.errors import ConfigError, ImageError
from evitseg.labels import LabelClass, LabelSpace
from evitseg.raster.gdal import environment, import_rasterio, quiet_open
from evitseg.raster.mask_values import code_of
from evitseg.raster.window import MAX_PIXELS, check_block, check_window, damaged

BAND_BYTES = 8 * 2**20


@dataclass(frozen=True)
class MaskBands:
    """Class indices, row by row, and what the file says of them."""

    name: str
    size: tuple[int, int]
    read: Callable[[int, int], NDArray[np.integer]]  # first row, rows -> (rows, width)
    labels: LabelSpace | None
    crs: Any = None
    transform: Any = None
    palette: dict[int, int] | None = None  # colours as 0xRRGGBB by stored number
    is_png: bool = False


@contextmanager
def open_mask(path: Path, name: str) -> Iterator[MaskBands]:
    from evitseg.raster.open import kind_of

    kind = kind_of(path, name)
    if kind == "zarr":
        from evitseg.raster.zarr_format import open_zarr

        with open_zarr(path, name) as source:
            yield MaskBands(name, source.size, source.indices, _labels(source.attributes.get("evitseg")))
        return
    if kind == "whole":
        raise ImageError(f"{name}: a mask is a TIFF, a PNG or a Zarr.")
    rasterio = import_rasterio()
    try:
        with environment(), quiet_open(path, driver="GTiff" if kind == "tiff" else kind) as dataset:
            if dataset.count != 1 or dataset.dtypes[0] not in ("uint8", "uint16"):
                raise ImageError(f"{name}: a mask has one band of 8 or 16 bits, this has {dataset.count} of another.")
            size = (dataset.height, dataset.width)
            if size[0] * size[1] > MAX_PIXELS:
                raise ImageError(f"{name}: more than {MAX_PIXELS:,} pixels; cut it into parts.")
            check_block(name, dataset.block_shapes[0], int(np.prod(dataset.block_shapes[0])) * 2)

            def read(top: int, rows: int) -> NDArray[np.integer]:
                check_window(size, top, 0, rows, size[1])
                window = rasterio.windows.Window(0, top, size[1], rows)
                try:
                    indices: NDArray[np.integer] = dataset.read(1, window=window)
                except rasterio.errors.RasterioError as error:
                    raise damaged(name, top, 0, rows, size[1], error.__cause__ or error) from error
                return indices

            said = dataset.tags(1).get("EVITSEG_CLASSES")
            described = dataset.tags().get("TIFFTAG_IMAGEDESCRIPTION", "")
            labels = _labels(_parsed(said)) if said else _labels(_from_ome(described))
            is_placed = dataset.crs is not None and dataset.transform != rasterio.Affine.identity()
            transform = dataset.transform if is_placed else None
            palette = None
            if dataset.colorinterp[0].name == "palette":
                palette = {index: code_of(color) for index, color in dataset.colormap(1).items()}
            yield MaskBands(name, size, read, labels, dataset.crs, transform, palette, kind == "PNG")
    except rasterio.errors.RasterioError as error:
        raise ImageError(f"{name}: truncated or damaged ({error}).") from error


def _from_ome(description: str) -> Any:
    from xml.etree import ElementTree

    if not description.lstrip().startswith("<?xml"):
        return None
    try:
        found = ElementTree.fromstring(description).find(".//{*}Description")
    except ElementTree.ParseError:
        return None  # another program's words: no classes are found in them
    return _parsed(found.text) if found is not None else None


def _parsed(text: str | None) -> Any:
    try:
        return json.loads(text or "null")
    except (ValueError, RecursionError):
        return None  # as above


def _labels(said: Any) -> LabelSpace | None:
    """The label space of a mask that `open_mask_writer` wrote; None where another program did."""
    try:
        table = said["classes"] if isinstance(said, dict) else said
        classes = tuple(
            LabelClass(str(entry["name"]), (place,), tuple(map(int, entry["color"]))[:3])  # type: ignore[arg-type]
            for place, entry in enumerate(table)
            if int(entry["value"]) == place
        )
        return LabelSpace("of the mask", classes, ignored_ids=()) if len(classes) == len(table) else None
    except (KeyError, TypeError, ValueError, ConfigError):
        return None
