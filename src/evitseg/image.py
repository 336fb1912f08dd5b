"""Pictures and masks on disk and in memory, and how a picture becomes network input.

The only place that reads a picture: training, evaluation, export and the device all see the same pixels.
"""

from __future__ import annotations

import io
import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias, cast

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont, PngImagePlugin

from evitseg.authorship import SOFTWARE
from evitseg.config import STRIDE
from evitseg.errors import ConfigError, PictureError
from evitseg.files import replacing
from evitseg.formats import EXTENSIONS as EXTENSIONS
from evitseg.labels import LabelSpace

Picture: TypeAlias = NDArray[np.uint8]
"""(H, W, 3) RGB."""
Mask: TypeAlias = NDArray[np.integer]
"""(H, W) class indices."""
Size: TypeAlias = int | Literal["native"] | None
"""A working size a person asks for: the short side in pixels, the picture's own size, or the model's rule."""

MAX_PIXELS = 178_956_970
"""Pixels of the largest picture that is read whole, the limit at which Pillow, too, refuses."""
OPACITY = 0.55
"""Of the classes' colours on a picture."""
MAX_JPEG_SIDE = 65_500
"""In pixels; what the library behind Pillow writes."""
WRITTEN = frozenset({".jpg", ".jpeg", ".png", ".webp", ".tif", ".tiff", ".bmp"})
"""Endings of images that are written."""


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


class TooManyPixelsError(PictureError):
    """A picture that is not read whole."""


@dataclass(frozen=True)
class Preprocess:
    """How a picture becomes network input. Written into every artefact, so that training and device cannot drift apart.

    The picture is scaled so that its short side has `short_side` pixels, but enlarged at most `max_enlarge` times;
    then each side goes to the nearest multiple of 32, the network's stride, by the same single resampling. A picture
    that has this size already is not resampled.

    Attributes:
        short_side: in pixels; None leaves the picture at its own size (but for the multiple of 32).
        max_enlarge: because enlarging adds no detail, only cost.
        mean, std: per RGB channel, for pixels scaled to 0–1; part of the network, folded into artefacts.
        fixed: (height, width) in pixels of the only input there is, for artefacts that take one size: every picture is
            stretched to it, and the rule above does not apply.
    """

    short_side: int | None = None
    max_enlarge: float = 2.0
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)
    fixed: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        if self.short_side is not None:
            check_size(self.short_side)
        if not 1 <= self.max_enlarge <= 16:
            raise ConfigError(f"max_enlarge is {self.max_enlarge}; it must be between 1 and 16.")
        if not all(math.isfinite(value) for value in (*self.mean, *self.std)) or min(self.std) <= 0:
            raise ConfigError(f"mean {self.mean} and std {self.std} must be finite, and every std above 0.")
        if self.fixed is not None:
            check_sides(self.fixed)

    def fit(self, picture_size: tuple[int, int], size: Size = None, limit: int | None = MAX_PIXELS) -> tuple[int, int]:
        """(height, width) of the network input for a picture of this (height, width).

        Args:
            size: overrides the rule: a short side in pixels (without the limit on enlarging), or "native".
            limit: most pixels of the input; None for work in tiles.

        Raises: ConfigError where the input would have more than `limit`, or for any `size` where there is but one.
        """
        if self.fixed is not None:
            if size is not None:
                height, width = self.fixed
                raise ConfigError(
                    f"this model takes pictures of {height}x{width} (height x width) and no others; leave out the "
                    "size, or export it again with another."
                )
            return self.fixed
        scale = 1.0
        if size is None and self.short_side is not None:
            scale = min(self.short_side / min(picture_size), self.max_enlarge)
        elif size is not None and size != "native":
            scale = check_size(size) / min(picture_size)
        height, width = (max(1, round(side * scale / STRIDE)) * STRIDE for side in picture_size)
        if limit is not None and height * width > limit:
            raise ConfigError(
                f"a picture of {picture_size[1]}×{picture_size[0]} pixels would go through the network at "
                f"{width}×{height}, more than {limit:,} pixels; choose a smaller size."
            )
        return height, width

    def apply(self, picture: Picture, size: Size = None) -> Picture:
        """Network input (h, w, 3), uint8, from a picture (H, W, 3), uint8; h and w as `fit` says."""
        return resampled(picture, self.fit(picture.shape[:2], size))


def resampled(picture: Picture, size: tuple[int, int]) -> Picture:
    """A picture at another (height, width); its own pixels where that is its size."""
    if picture.shape[:2] == size:
        return np.ascontiguousarray(picture)
    # Pillow's bilinear averages over all pixels it shrinks, so that fine structures do not alias. First along the
    # rows, then along the columns: left to itself Pillow 13 takes the order that is less work, older ones this.
    height, width = size
    across = Image.fromarray(picture).resize((width, picture.shape[0]), Image.Resampling.BILINEAR)
    return np.asarray(across.resize((width, height), Image.Resampling.BILINEAR))


def check_size(short_side: int) -> int:
    """The short side, if a network can work at it. Raises: ConfigError."""
    if not isinstance(short_side, int) or not STRIDE <= short_side <= 16_384:
        raise ConfigError(f"size {short_side} is out of range; give the short side, {STRIDE} to 16384 pixels.")
    return short_side


def check_sides(sides: tuple[int, int]) -> tuple[int, int]:
    """(height, width), if it can be the network's only input. Raises: ConfigError."""
    if not all(isinstance(side, int) and 1 <= side <= 16_384 for side in sides):
        raise ConfigError(f"size {sides[0]}x{sides[1]} is out of range; a side has {STRIDE} to 16384 pixels.")
    if any(side % STRIDE for side in sides):
        fits = [max(1, round(side / STRIDE)) * STRIDE for side in sides]
        raise ConfigError(
            f"size {sides[0]}x{sides[1]}: both sides must be multiples of {STRIDE}, the network's stride; "
            f"{fits[0]}x{fits[1]} fits."
        )
    return sides


def read_picture(
    source: str | os.PathLike[str] | Image.Image | NDArray[np.integer], options: ReadOptions = AS_STATED
) -> Picture:
    """(H, W, 3) uint8 RGB from a file, a PIL image or an array.

    EXIF orientation is applied, but for georeferenced files. Grey becomes three equal channels, a palette its colours;
    CMYK is converted, and an alpha channel is dropped: the stored colours count. What bands, 16 bits, pages and frames
    mean: `evitseg.raster.bands`, `levels` and `tiff`. The file's content decides who reads it.

    Raises: PictureError for whatever cannot be read, with the file's name and the reason.
    """
    from evitseg.raster.whole import of_image, read_whole

    if isinstance(source, np.ndarray):
        return _from_array(source, options)
    if isinstance(source, Image.Image):
        return of_image(source, "the PIL image", options)
    if not isinstance(source, (str, os.PathLike)):
        raise PictureError(f"a {type(source).__name__} is not a picture; give a path, a PIL image or a numpy array.")
    return read_whole(Path(source), str(source), options).pixels


def read_reduced(
    source: str | os.PathLike[str] | bytes,
    least: Callable[[tuple[int, int]], tuple[int, int]],
    name: str | None = None,
    options: ReadOptions = AS_STATED,
) -> Reduced:
    """A picture file at a half, a quarter or an eighth of its size, where a JPEG decoder gives that for a fraction of
    the time, and where the result is no smaller than asked for.

    Args:
        source: the file, or its bytes.
        least: gives the (height, width) that is needed from the (height, width) that there is.
        name: of the picture in messages; None for the file's.

    Raises: PictureError.
    """
    from evitseg.raster.whole import read_whole

    if isinstance(source, bytes):
        return read_whole(source, name or "the picture", options, least)
    return read_whole(Path(source), name or str(source), options, least)


@dataclass(frozen=True)
class Reduced:
    """A picture that may be smaller than its file's.

    Attributes:
        pixels: (h, w, 3).
        size: (height, width) of the picture in the file, upright.
    """

    pixels: Picture
    size: tuple[int, int]


def picture_size(path: str | os.PathLike[str], options: ReadOptions = AS_STATED) -> tuple[int, int]:
    """(height, width) of a picture file as `read_picture` gives it, from its header. Raises: PictureError."""
    from evitseg.raster.whole import size_whole

    return size_whole(Path(path), str(path), options)


def _from_array(array: NDArray[Any], options: ReadOptions) -> Picture:
    from evitseg.raster.levels import cells_of, choose_levels

    if (array.ndim != 2 and (array.ndim != 3 or array.shape[2] != 3)) or 0 in array.shape:
        raise PictureError(f"an array of shape {array.shape} is not a picture; give (H, W, 3) in RGB order.")
    if array.shape[0] * array.shape[1] > MAX_PIXELS:
        raise PictureError(f"an array of shape {array.shape} has more than {MAX_PIXELS:,} pixels; cut it into parts.")
    if array.dtype != np.uint8 or options.value_range is not None:
        if array.dtype != np.uint16 and options.value_range is None:
            raise PictureError(f"an array of {array.dtype} is not a picture; give uint8 (H, W, 3) in RGB order.")
        array = choose_levels("the array", array.dtype, options, cells_of(array))(array)
    if array.ndim == 2:
        array = np.repeat(array[..., None], 3, axis=2)
    return cast(Picture, array)


def save_picture(image: Image.Image, path: str | os.PathLike[str]) -> None:
    """A picture in the format that the name's ending says.

    Raises: PictureError for an ending or a size that cannot be written, FileError for a place.
    """
    suffix = Path(path).suffix.lower()
    if suffix not in WRITTEN:
        raise PictureError(f"{path}: unknown ending; {', '.join(sorted(WRITTEN))} can be written.")
    if suffix in (".jpg", ".jpeg") and max(image.size) > MAX_JPEG_SIDE:
        raise PictureError(f"{path}: a JPEG has at most {MAX_JPEG_SIDE} pixels a side; write a PNG.")
    kind = Image.registered_extensions()[suffix]
    marks: dict[str, dict[str, Any]] = {"JPEG": {"comment": SOFTWARE}, "PNG": {"pnginfo": png_mark()}}
    _save(image, path, kind, quality=90, **marks.get(kind, {}))


def png_mark() -> PngImagePlugin.PngInfo:
    """By which `evitseg.authorship` knows our own files."""
    mark = PngImagePlugin.PngInfo()
    mark.add_text("Software", SOFTWARE)
    return mark


def _save(image: Image.Image, path: str | os.PathLike[str], kind: str, **options: Any) -> None:
    # Encoded in memory first: writing to a full disk itself, Pillow's JPEG encoder loses the end without a word.
    content = io.BytesIO()
    image.save(content, kind, **options)
    with replacing(path) as file:
        file.write(content.getbuffer())


def overlay(picture: Picture, mask: Mask, labels: LabelSpace, opacity: float = OPACITY) -> Image.Image:
    """The picture with every class in its colour, and below it a legend of the classes that occur, by area."""
    return with_legend(tinted(picture, mask, labels, opacity), class_fractions(mask, labels), labels)


def tinted(picture: Picture, mask: Mask, labels: LabelSpace, opacity: float = OPACITY) -> Image.Image:
    """The picture with every class in its colour; white where a mask has `ignore_index`."""
    if mask.dtype == np.uint8 and labels.dtype == np.uint8:
        indexed = Image.fromarray(mask)
        indexed.putpalette(labels.palette.tobytes())
        drawn = indexed.convert("RGB")  # several times as fast as numpy's indexing
    else:
        colors = np.full((labels.ignore_index + 1, 3), 255, np.uint8)
        colors[: len(labels.classes)] = [c.color for c in labels.classes]
        drawn = Image.fromarray(colors[mask])
    return Image.blend(Image.fromarray(picture), drawn, opacity)


def class_fractions(mask: Mask, labels: LabelSpace) -> dict[str, float]:
    """Share of the pixels of every class that occurs, largest first."""
    if mask.dtype == np.uint8:
        counts = np.array(Image.fromarray(mask).histogram())  # several times as fast as bincount
    else:
        counts = np.bincount(mask.ravel(), minlength=len(labels.classes))
    counts = counts[: len(labels.classes)]
    order = np.argsort(-counts, kind="stable")
    return {labels.names[i]: float(counts[i] / mask.size) for i in order if counts[i]}


def with_legend(image: Image.Image, fractions: dict[str, float], labels: LabelSpace) -> Image.Image:
    """The image with classes, their colours and shares below it."""
    size = max(12, min(image.size) // 36)
    font = ImageFont.load_default(size)
    gap, swatch = size // 2, size
    colors = {c.name: c.color for c in labels.classes}
    entries = [(name, f"{name} {_percent(share)}") for name, share in fractions.items()]
    widths = [gap + swatch + gap // 2 + int(font.getlength(text)) + gap for _, text in entries]

    rows: list[list[int]] = [[]]
    for i, width in enumerate(widths):
        if rows[-1] and sum(widths[j] for j in rows[-1]) + width > image.width:
            rows.append([])
        rows[-1].append(i)
    line = size + gap
    # A thumbnail narrower than one entry gets a canvas wide enough to read it.
    canvas = Image.new(
        "RGB", (max(image.width, max(widths, default=0)), image.height + line * len(rows) + gap), (255, 255, 255)
    )
    canvas.paste(image)
    draw = ImageDraw.Draw(canvas)
    for r, row in enumerate(rows):
        x, y = 0, image.height + gap + r * line
        for i in row:
            name, text = entries[i]
            draw.rectangle((x + gap, y, x + gap + swatch, y + swatch), fill=colors[name], outline=(0, 0, 0))
            draw.text((x + gap + swatch + gap // 2, y + swatch // 2), text, (0, 0, 0), font, anchor="lm")
            x += widths[i]
    return canvas


def _percent(share: float) -> str:
    return f"{share:.0%}" if share >= 0.01 else "<1%"
