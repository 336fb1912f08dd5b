"""Types of images and masks, and the options for reading image files."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, TypeAlias, cast

import numpy as np
from numpy.typing import NDArray

from evitseg.errors import ConfigError, ImageError

ImageArray: TypeAlias = NDArray[np.uint8]
"""(H, W, 3) RGB pixels."""

Mask: TypeAlias = NDArray[np.integer]
"""(H, W) class indices."""

Size: TypeAlias = int | Literal["native"] | None
"""Size at which an image goes through the network: short side in pixels, own size, or None for the model's rule."""

MAX_PIXELS = 178_956_970
"""Most pixels of an image that is read as a whole; also the limit above which Pillow refuses images."""


@dataclass(frozen=True)
class ReadOptions:
    """How to read image files that can be read in several ways.

    Attributes:
        bands: 1-based numbers of the bands to use as red, green and blue, or of one band to use as grey. None uses the
            file's metadata (colour interpretation, band descriptions, channel names), else the first band or the first
            three.
        value_range: the stored values (low, high) that become 0 and 255; "auto" for the smallest and largest valid
            value in the file; "percentile" for its 2nd and 98th percentile. None uses the range stated in the file.
        page: 1-based page of a file with several images. None uses the first page and warns; for a Zarr with a stack of
            images it is an error.
    """

    bands: tuple[int, ...] | None = None
    value_range: tuple[float, float] | Literal["auto", "percentile"] | None = None
    page: int | None = None

    def __post_init__(self) -> None:
        if self.bands is not None and (len(self.bands) not in (1, 3) or min(self.bands) < 1):
            raise ConfigError(
                f"bands {self.bands}: give one band number or three (red, green, blue); numbers start at 1."
            )
        if isinstance(self.value_range, str):
            if self.value_range not in ("auto", "percentile"):
                raise ConfigError(f'value range {self.value_range!r}: give (low, high), "auto" or "percentile".')
        elif self.value_range is not None:
            low, high = self.value_range
            if not (math.isfinite(low) and math.isfinite(high) and low < high):
                raise ConfigError(f"value range {low:g} to {high:g}: the first number must be smaller than the second.")
        if self.page is not None and self.page < 1:
            raise ConfigError(f"page {self.page}: pages start at 1.")

    @classmethod
    def parse(cls, bands: str = "", value_range: str = "", page: int | None = None) -> ReadOptions:
        """Options from text such as "4,3,2" and "0,4095", "auto" or "percentile"; "" stands for None.

        Raises: ConfigError.
        """
        try:
            numbers = tuple(_whole(part) for part in bands.split(",")) if bands else None
        except ValueError as error:
            raise ConfigError(f"bands {bands!r}: give band numbers such as 4,3,2, or a single number.") from error
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
"""Read files as their metadata says."""


class TooManyPixelsError(ImageError):
    """The image has more than `MAX_PIXELS` pixels, so it is not read as a whole."""


@dataclass(frozen=True)
class Reduced:
    """An image that may have been decoded at a reduced size.

    Attributes:
        pixels: (h, w, 3) decoded pixels.
        size: (height, width) of the image in the file, after its EXIF rotation.
    """

    pixels: ImageArray
    size: tuple[int, int]
