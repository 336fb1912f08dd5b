"""Image and mask files: whole or window by window, and polygons from masks."""

from __future__ import annotations

from evitseg.raster.open import (
    MASK_ENDINGS,
    SLIDE_ENDINGS,
    Part,
    check_place,
    is_zarr,
    mask_ending,
    open_mask_writer,
    open_raster,
    part_of,
)
from evitseg.raster.window import (
    MAX_BLOCK_BYTES,
    MAX_PIXELS,
    ArraySink,
    ArraySource,
    Georeference,
    Origin,
    Sink,
    Source,
)

__all__ = [
    "MASK_ENDINGS", "MAX_BLOCK_BYTES", "MAX_PIXELS", "SLIDE_ENDINGS", "ArraySink", "ArraySource", "Georeference",
    "Origin", "Part", "Sink", "Source", "check_place", "is_zarr", "mask_ending", "open_mask_writer", "open_raster",
    "part_of",
]  # fmt: skip
