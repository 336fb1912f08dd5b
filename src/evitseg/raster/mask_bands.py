"""Read mask files of any size, a band of rows at a time."""

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


@dataclass(frozen=True)
class MaskBands:
    """A mask that is read in bands of rows, with the metadata of its file.

    Attributes:
        read: returns (rows, W) stored values for the first row and a number of rows.
        labels: the classes, if the file lists them.
        crs, transform: the mask's georeference, as rasterio's objects; None without one.
        palette: colours as 0xRRGGBB by stored value; None without a palette.
    """

    name: str
    size: tuple[int, int]
    read: Callable[[int, int], NDArray[np.integer]]
    labels: LabelSpace | None
    crs: Any = None
    transform: Any = None
    palette: dict[int, int] | None = None
    is_png: bool = False


@contextmanager
def open_mask(path: Path, name: str) -> Iterator[MaskBands]:
    """A mask in a TIFF, PNG or Zarr. Raises: ImageError, MissingPackageError."""
    from evitseg.raster.open import kind_of

    kind = kind_of(path, name)
    if kind == "zarr":
        from evitseg.raster.zarr_format import open_zarr

        with open_zarr(path, name) as source:
            yield MaskBands(name, source.size, source.indices, _labels(source.attributes.get("evitseg")))
        return
    if kind == "whole":
        raise ImageError(f"{name}: unsupported mask format; convert it to TIFF, PNG or Zarr.")
    rasterio = import_rasterio()
    try:
        with environment(), quiet_open(path, driver="GTiff" if kind == "tiff" else kind) as dataset:
            if dataset.count != 1 or dataset.dtypes[0] not in ("uint8", "uint16"):
                raise ImageError(
                    f"{name}: a mask has one band of 8 or 16 bits, but this file has {dataset.count} of "
                    f"{dataset.dtypes[0]}; give a mask that evitseg predict wrote."
                )
            size = (dataset.height, dataset.width)
            if size[0] * size[1] > MAX_PIXELS:
                raise ImageError(f"{name}: more than {MAX_PIXELS:,} pixels; split it into parts.")
            check_block(name, dataset.block_shapes[0], int(np.prod(dataset.block_shapes[0])) * 2)

            def read(top: int, rows: int) -> NDArray[np.integer]:
                check_window(size, top, 0, rows, size[1])
                window = rasterio.windows.Window(0, top, size[1], rows)
                try:
                    indices: NDArray[np.integer] = dataset.read(1, window=window)
                except rasterio.errors.RasterioError as error:
                    raise damaged(name, top, 0, rows, size[1], error.__cause__ or error) from error
                return indices

            stated = dataset.tags(1).get("EVITSEG_CLASSES")
            description = dataset.tags().get("TIFFTAG_IMAGEDESCRIPTION", "")
            labels = _labels(_parsed(stated)) if stated else _labels(_from_ome(description))
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
        # The standard parser is safe for hostile files: expat has limited the expansion of entities since 2.4.1, which
        # all supported Python versions ship, and it loads no external ones. So defusedxml would add nothing.
        found = ElementTree.fromstring(description).find(".//{*}Description")
    except ElementTree.ParseError:
        return None  # a description by another program
    return _parsed(found.text) if found is not None else None


def _parsed(text: str | None) -> Any:
    try:
        return json.loads(text or "null")
    except (ValueError, RecursionError):
        return None  # metadata of another program


def _labels(stated: Any) -> LabelSpace | None:
    """The label space in the metadata of a mask by `open_mask_writer`; None for other programs' masks."""
    try:
        table = stated["classes"] if isinstance(stated, dict) else stated
        classes = tuple(
            LabelClass(str(entry["name"]), (place,), tuple(map(int, entry["color"]))[:3])  # type: ignore[arg-type]
            for place, entry in enumerate(table)
            if int(entry["value"]) == place
        )
        return LabelSpace("of the mask", classes, ignored_ids=()) if len(classes) == len(table) else None
    except (KeyError, TypeError, ValueError, ConfigError):
        return None
