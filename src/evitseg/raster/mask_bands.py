"""Read mask files of any size, a band of rows at a time."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from evitseg.errors import ConfigError, ImageError
from evitseg.labels import LabelClass, LabelSpace, by_index
from evitseg.raster.gdal import environment, import_rasterio, quiet_open
from evitseg.raster.mask_values import DistinctValues, class_indices, code_of, color_of
from evitseg.raster.window import MAX_PIXELS, check_block, check_window, damaged
from evitseg.visualize import class_counts

BAND_BYTES = 8 * 2**20
"""Size of a band of rows of a mask; one band at a time is in memory."""


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


def class_reader(mask: MaskBands, labels: LabelSpace) -> Callable[[int, int], NDArray[np.integer]]:
    """Reads class indices, even if a PNG optimiser has reordered the mask's palette."""
    colors = [code_of(c.color) for c in labels.classes]
    is_own = mask.palette is not None and [mask.palette.get(index) for index in range(len(colors))] == colors
    if is_own or (mask.palette is None and not mask.is_png):
        return mask.read
    height, width = mask.size
    rows = max(1, min(height, BAND_BYTES // width))
    counts = np.zeros(2**16, np.int64)
    for top in range(0, height, rows):
        counts += np.bincount(mask.read(top, min(rows, height - top)).ravel(), minlength=len(counts))
    values = tuple(np.flatnonzero(counts).tolist())
    is_assumed = "ignored_ids" in labels.assumed and labels.classes[-1].raw_ids == (1,)
    if len(labels.classes) == 2 and is_assumed and 255 in values and 1 not in values:
        raise ConfigError(
            f"{mask.name}: holds 255 but no 1, the class index of {labels.names[1]!r}; an evitseg mask holds class "
            "indices, in which 255 is not a class."
        )
    shown = mask.palette if mask.palette is not None else {value: value * 0x010101 for value in range(256)}
    held = DistinctValues(
        "levels" if mask.palette is None else "palette", values, tuple(counts[list(values)].tolist()),
        tuple(shown.get(value, -1 - value) for value in values),
        mask.palette is None or all(len(set(color_of(code))) == 1 for code in mask.palette.values()),
    )  # fmt: skip
    try:
        indices = class_indices(held, replace(by_index(labels), ignored_ids=(labels.ignore_index,)))
    except ConfigError as error:
        if held.kind == "levels":
            return mask.read  # the unknown value is reported when its row is read
        raise ConfigError(f"{mask.name}: {error} Give the label space that the mask was made with.") from error
    table = np.zeros(values[-1] + 1, labels.dtype)
    table[list(values)] = indices
    return lambda top, count: np.asarray(table[mask.read(top, count)])


def read_classes(mask: MaskBands, labels: LabelSpace, top: int, count: int) -> NDArray[np.integer]:
    """(count, W) class indices of a band of rows. Raises: ImageError, ConfigError for values that are no class."""
    indices = mask.read(top, count)
    void = int(np.iinfo(indices.dtype).max)
    found = np.flatnonzero(class_counts(indices, void + 1))
    for label in labels.classes:
        if void in label.raw_ids and void in found:
            raise ConfigError(
                f"{mask.name}: holds {void}, the raw id of {label.name!r}, but an evitseg mask holds class indices, "
                f"in which {void} is not a class; give a mask written by evitseg predict."
            )
    unknown_values = found[(found >= len(labels.classes)) & (found != void)]
    if unknown_values.size:
        raise ConfigError(
            f"{mask.name}: holds {int(unknown_values[0])}, which is not a class of {labels.name!r} "
            f"(0 to {len(labels.classes) - 1}); give the label space that the mask was made with."
        )
    return indices


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
