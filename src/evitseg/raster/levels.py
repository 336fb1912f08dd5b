"""Convert stored values to 8 bits, by one rule for every format, whole or in windows.

1. `--range LOW,HIGH` maps LOW to 0 and HIGH to 255, linearly, rounded half up, and clips (as `gdal_translate -scale`).
   `--range auto` takes the smallest and largest valid value of the bands that are read, together; `--range percentile`
   their 2nd and 98th percentile. Both use every pixel of an image of up to `SAMPLED_PIXELS`, and cells spread evenly
   over a larger one, so that the range is the same whether the image is read whole or in windows. Nodata, NaN and
   infinities do not count.
2. Without `--range`, unsigned integers of up to 16 bits are read by their significant bits. The file states their
   number N: TIFF's BitsPerSample, GDAL's NBITS, OME's SignificantBits, or an OME-Zarr window from 0 to 2^N - 1. For
   N >= 8, the upper 8 bits count: value >> (N - 8). Fewer bits are scaled to 255: value * 255 // (2^N - 1). Larger
   values become 255.
3. Without such a statement, 16-bit values have 16 significant bits. If the largest value (of the same pixels as in 1)
   is less than half the range, a warning says so, because the image comes out dark or black.
4. Signed, floating-point and wider integer values have no agreed range. They are an error without `--range`; complex
   numbers are always an error.
5. If white is stored as 0 (TIFF's PhotometricInterpretation 0), the result is inverted: 255 - level.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from evitseg.errors import ImageError, warn
from evitseg.image import ReadOptions

PERCENTILES = (2, 98)
CELL = 512
"""Side in pixels of the cells in which a large image is sampled."""
CELLS = 64
SAMPLED_PIXELS = CELLS * CELL**2
Sample = Callable[[], Iterable[NDArray[Any]]]
"""A function that returns the valid stored values of the bands to read, cell by cell."""


@dataclass(frozen=True)
class Levels:
    """The map from stored values to 8 bits.

    Attributes:
        bits: significant bits, used if `span` is None.
        span: the stored values that become 0 and 255.
        is_inverted: whether 0 is white.
    """

    bits: int = 8
    span: tuple[float, float] | None = None
    is_inverted: bool = False

    def __call__(self, values: NDArray[Any]) -> NDArray[np.uint8]:
        """8-bit levels in the same shape."""
        if values.dtype == np.bool_:
            values = values.astype(np.uint8)
        if self.span is None and self.bits == 8 and values.dtype == np.uint8:
            levels: NDArray[np.uint8] = values
        elif values.dtype.kind in "ui" and values.dtype.itemsize <= 2 and values.size > 2**16:
            # A table of all possible values costs less than mapping every pixel.
            every = np.arange(2 ** (8 * values.dtype.itemsize), dtype=np.uint32)
            unsigned = np.dtype(f"u{values.dtype.itemsize}")
            table = self._map(every.astype(unsigned).view(values.dtype.newbyteorder("=")))
            levels = table[values.astype(values.dtype.newbyteorder("="), copy=False).view(unsigned)]
        else:
            levels = self._map(values)
        return np.subtract(255, levels, dtype=np.uint8) if self.is_inverted else levels

    def _map(self, values: NDArray[Any]) -> NDArray[np.uint8]:
        if self.span is not None:
            low, high = self.span
            with np.errstate(all="ignore"):
                scaled = np.floor((values.astype(np.float64) - low) * 255 / (high - low) + 0.5)
            # NaN cannot be converted. It becomes black, and its pixel is not valid.
            scaled = np.clip(np.nan_to_num(scaled, nan=0.0, posinf=255.0, neginf=0.0), 0, 255)
            return cast("NDArray[np.uint8]", scaled.astype(np.uint8))
        if self.bits >= 8:
            return cast("NDArray[np.uint8]", np.minimum(values >> (self.bits - 8), 255).astype(np.uint8))
        most = 2**self.bits - 1
        return np.asarray(np.minimum(values, most).astype(np.uint16) * 255 // most).astype(np.uint8)


def choose_levels(
    name: str,
    dtype: np.dtype[Any] | str,
    options: ReadOptions,
    sample: Sample,
    stated_bits: int | None = None,
    is_inverted: bool = False,
) -> Levels:
    """The map for a file, by the rule of this module.

    Args:
        name: how messages call the file.
        dtype: type of the stored values.
        sample: called only if the map depends on the values; see `cells`.
        stated_bits: significant bits that the file states; None if it states none.
        is_inverted: whether 0 is white.

    Raises: ImageError.
    """
    dtype = np.dtype(dtype)
    check_range(name, dtype, options)
    if isinstance(options.value_range, str):
        return Levels(span=_stretched(name, dtype, sample, options.value_range), is_inverted=is_inverted)
    if options.value_range is not None:
        return Levels(span=options.value_range, is_inverted=is_inverted)
    width = 1 if dtype.kind == "b" else 8 * dtype.itemsize
    if stated_bits is None and width == 16:
        warn_if_dark(name, max((int(values.max()) for values in sample() if values.size), default=65_535))
    return Levels(bits=min(stated_bits or width, width), is_inverted=is_inverted)


def check_range(name: str, dtype: np.dtype[Any] | str, options: ReadOptions) -> None:
    """Raises: ImageError for values without an agreed range if `options` state none."""
    dtype = np.dtype(dtype)
    if dtype.kind not in "buif":
        raise ImageError(f"{name}: {dtype.name} pixels are not supported; convert them to real numbers first.")
    if options.value_range is None and (dtype.kind not in "bu" or dtype.itemsize > 2):
        raise ImageError(
            f"{name}: {dtype.name} pixels have no agreed range; choose one with --range LOW,HIGH, --range auto or "
            "--range percentile, or convert the image to 8 or 16 bits (gdal_translate -ot Byte -scale)."
        )


def warn_if_dark(name: str, largest: int, bits: int = 16) -> None:
    """Warn of an image whose largest value is small for its bits, if the file states no range."""
    if largest < 2 ** (bits - 1):
        how = "nearly black" if largest < 2 ** (bits - 3) else "dark"
        warn(
            f"{name}: its largest {bits}-bit value is {largest} of {2**bits - 1} and the file states no range, so the "
            f"image is {how}; --range LOW,HIGH, --range auto or --range percentile stretches it.",
            stacklevel=3,
        )


def _stretched(name: str, dtype: np.dtype[Any], sample: Sample, how: str) -> tuple[float, float]:
    if dtype.kind in "bu" and dtype.itemsize <= 2:
        counts = np.zeros(2 ** (8 * dtype.itemsize), np.int64)
        for values in sample():
            counts += np.bincount(values.ravel(), minlength=len(counts))
        total, known = int(counts.sum()), np.flatnonzero(counts)
        if total and how == "auto":
            low, high = float(known[0]), float(known[-1])
        elif total:
            # The smallest value that this fraction of the pixels does not exceed.
            low, high = (float(np.searchsorted(counts.cumsum(), total * p / 100)) for p in PERCENTILES)
    else:
        parts = [_finite(values) for values in sample()]
        total = sum(part.size for part in parts)
        if total and how == "auto":
            low = min(float(part.min()) for part in parts if part.size)
            high = max(float(part.max()) for part in parts if part.size)
        elif total:
            step = -(-total // SAMPLED_PIXELS)
            every = np.concatenate([part[::step] for part in parts])
            low, high = (float(v) for v in np.percentile(every, PERCENTILES, method="inverted_cdf"))
    if not total:
        raise ImageError(
            f"{name}: has no valid pixel from which --range {how} could find a range; give --range LOW,HIGH."
        )
    if low == high:
        warn(
            f"{name}: --range {how} finds only the value {low:g}, so the image is black.",
            stacklevel=4,
        )
        high = low + max(1.0, abs(low))
    return low, high


def _finite(values: NDArray[Any]) -> NDArray[Any]:
    values = values.ravel()
    return values[np.isfinite(values)] if values.dtype.kind == "f" else values


def cells(size: tuple[int, int]) -> Iterator[tuple[int, int, int, int]]:
    """(top, left, height, width) of the cells to sample, row by row: the whole image, or `CELLS` spread evenly."""
    rows, columns = (-(-side // CELL) for side in size)
    step_y = step_x = 1
    while -(-rows // step_y) * -(-columns // step_x) > CELLS:
        if rows // step_y >= columns // step_x:
            step_y += 1
        else:
            step_x += 1
    for row in range((step_y - 1) // 2 if rows > step_y else 0, rows, step_y):
        for column in range((step_x - 1) // 2 if columns > step_x else 0, columns, step_x):
            top, left = row * CELL, column * CELL
            yield top, left, min(CELL, size[0] - top), min(CELL, size[1] - left)


def cells_of(values: NDArray[Any]) -> Sample:
    """A sample of an image in memory, (H, W, bands) or (H, W)."""
    size = (values.shape[0], values.shape[1])

    def sample() -> Iterator[NDArray[Any]]:
        for top, left, height, width in cells(size):
            yield values[top : top + height, left : left + width].ravel()

    return sample
