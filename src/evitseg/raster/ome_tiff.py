"""Write masks as OME-TIFF pyramids."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from evitseg.labels import LabelSpace
from evitseg.raster.png import MaskFormat
from evitseg.raster.slides import import_tifffile
from evitseg.raster.window import TILE, Origin, RawFile, class_table, writing
from evitseg.system.authorship import SOFTWARE
from evitseg.system.files import replacing


class OmeTiffWriter:
    """Writes tiles of an OME-TIFF in any order, into a temporary file from which the pyramid is made at the end."""

    tile = (TILE, TILE)
    ordered = False

    def __init__(self, raw: RawFile, size: tuple[int, int], labels: LabelSpace) -> None:
        self._raw, self._size = raw, size
        self._ignored, self._dtype = labels.ignore_index, np.dtype(labels.dtype)
        # Unwritten parts of a file read as zeros, so indices are stored with the bits of "no class" flipped.
        self._flip = self._dtype.type(labels.ignore_index)

    def write(self, top: int, left: int, mask: NDArray[np.integer]) -> None:
        self._raw.write(top, left, (mask.astype(self._dtype, copy=False) ^ self._flip)[..., None])

    def tiles(self, step: int) -> Iterator[NDArray[np.integer]]:
        """Tiles of the mask reduced to every `step`-th row and column, in reading order."""
        for top in range(0, self._size[0], TILE * step):
            for left in range(0, self._size[1], TILE * step):
                height, width = (
                    min(TILE * step, side - start) for side, start in zip(self._size, (top, left), strict=True)
                )
                part = self._raw.read(top, left, height, width, step)[..., 0] ^ self._flip
                tile = np.full((TILE, TILE), self._ignored, self._dtype)
                tile[: part.shape[0], : part.shape[1]] = part
                yield tile


@contextmanager
def ome_tiff_writer(
    path: Path,
    name: str,
    size: tuple[int, int],
    origin: Origin,
    labels: LabelSpace,
    mask_format: MaskFormat = "palette",
) -> Iterator[OmeTiffWriter]:
    """A tiled, compressed OME-TIFF mask with the image's levels and pixel size, and class names and colours."""
    tifffile = import_tifffile()
    raw = RawFile(name, (*size, 1), labels.dtype, path.parent)
    try:
        sink = OmeTiffWriter(raw, size, labels)
        yield sink
        with writing(name), replacing(path) as stream:
            _write_pyramid(tifffile, stream, sink, size, origin, labels, mask_format)
    finally:
        raw.close()


def _write_pyramid(
    tifffile: ModuleType,
    stream: Any,
    sink: OmeTiffWriter,
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
            own: dict[str, Any] = {"subfiletype": 1}
            if level == 0:
                own = {"subifds": levels - 1, "metadata": metadata, "software": SOFTWARE}
            writer.write(sink.tiles(step), shape=shape, **own, **options)
