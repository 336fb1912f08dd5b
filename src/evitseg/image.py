"""Images and masks on disk and in memory, and how an image becomes network input.

The only place that reads an image: training, evaluation, export and the device all see the same pixels.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, TypeAlias, cast

import numpy as np
from numpy.typing import NDArray

from evitseg.errors import ConfigError, ImageError

ImageArray: TypeAlias = NDArray[np.uint8]
"""(H, W, 3) RGB."""


Mask: TypeAlias = NDArray[np.integer]
"""(H, W) class indices."""


Size: TypeAlias = int | Literal["native"] | None
"""A working size a person asks for: the short side in pixels, the image's own size, or the model's rule."""


MAX_PIXELS = 178_956_970
"""Pixels of the largest image that is read whole, the limit at which Pillow, too, refuses."""


@dataclass(frozen=True)
class ReadOptions:
    """How an image file is read where the file itself leaves a choice; the same in every verb.

    Attributes:
        bands: 1-based numbers of the bands taken as red, green and blue, or of a single band taken as grey. None: what
            the file says (colour interpretation, band descriptions, channel names), else the first one or three.
        value_range: (low, high), the stored values that become 0 and 255; "auto", the smallest and largest valid value
            of the file; "percentile", its 2nd and 98th percentile. None: the range that the file states.
        page: 1-based page of a file that holds several images. None: the first, with a warning; a stack in a Zarr is
            refused.
    """

    bands: tuple[int, ...] | None = None
    value_range: tuple[float, float] | Literal["auto", "percentile"] | None = None
    page: int | None = None

    def __post_init__(self) -> None:
        if self.bands is not None and (len(self.bands) not in (1, 3) or min(self.bands) < 1):
            raise ConfigError(
                f"bands {self.bands}: give three band numbers, red, green and blue, or one; they start at 1."
            )
        if isinstance(self.value_range, str):
            if self.value_range not in ("auto", "percentile"):
                raise ConfigError(f'value range {self.value_range!r}: give (low, high), "auto" or "percentile".')
        elif self.value_range is not None:
            low, high = self.value_range
            if not (math.isfinite(low) and math.isfinite(high) and low < high):
                raise ConfigError(f"value range {low:g} to {high:g}: the first number must be below the second.")
        if self.page is not None and self.page < 1:
            raise ConfigError(f"page {self.page}: pages start at 1.")

    @classmethod
    def parse(cls, bands: str = "", value_range: str = "", page: int | None = None) -> ReadOptions:
        """From text such as "4,3,2" and "0,4095", "auto" or "percentile"; "" leaves the choice to the file.

        Raises: ConfigError.
        """
        try:
            numbers = tuple(_whole(part) for part in bands.split(",")) if bands else None
        except ValueError as error:
            raise ConfigError(f"bands {bands!r}: give band numbers such as 4,3,2, or a single one.") from error
        chosen: tuple[float, float] | Literal["auto", "percentile"] | None = None
        if value_range in ("auto", "percentile"):
            chosen = cast("Literal['auto', 'percentile']", value_range)
        elif value_range:
            try:
                low, high = map(float, value_range.split(","))
            except ValueError as error:
                raise ConfigError(
                    f"value range {value_range!r}: give LOW,HIGH such as 0,4095, auto or percentile."
                ) from error
            chosen = low, high
        return cls(numbers, chosen, page)


def _whole(text: str) -> int:
    text = text.strip()
    if not text.isascii() or not text.isdecimal() or len(text) > 9:
        raise ValueError(text)
    return int(text)


AS_STATED = ReadOptions()
"""The file decides."""


class TooManyPixelsError(ImageError):
    """An image that is not read whole."""


@dataclass(frozen=True)
class Reduced:
    """An image that may be smaller than its file's.

    Attributes:
        pixels: (h, w, 3).
        size: (height, width) of the image in the file, upright.
    """

    pixels: ImageArray
    size: tuple[int, int]
