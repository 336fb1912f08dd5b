"""Decode the values that a file stores, and convert them to RGB."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image, TiffImagePlugin

from evitseg.errors import ImageError, UnreadableHereError
from evitseg.image import ImageArray, ReadOptions
from evitseg.raster import tiff
from evitseg.raster.bands import Band, choose_bands
from evitseg.raster.formats import jpeg2000_bits
from evitseg.raster.levels import cells_of, choose_levels, warn_if_dark
from evitseg.raster.tiff_readers import cmyk_to_rgb
from evitseg.raster.window import rgb

_BAND_PIXELS = 1 << 16
_RGB = (Band("red"), Band("green"), Band("blue"))


@dataclass(frozen=True)
class StoredValues:
    """Decoded values, before bands and range are chosen.

    Attributes:
        values: (H, W, bands) as stored; colours if the file holds a palette or inks.
        bands: the file's metadata of each band.
        colors: (colours, 3) of a palette.
        bits: significant bits that the file states.
        is_inverted: whether 0 is white.
        has_lost: whether only the upper 8 of 16 bits are left.
        nodata: a pixel with this value in every band does not count.
    """

    values: NDArray[Any]
    bands: tuple[Band, ...]
    colors: NDArray[np.uint8] | None = None
    bits: int | None = None
    is_inverted: bool = False
    has_lost: bool = False
    nodata: int | None = None


def loaded(image: Image.Image) -> Image.Image:
    image.load()
    return image


def stored_values(image: Image.Image, name: str) -> StoredValues:
    """The stored values of a PIL image that is not a TIFF."""
    mode = image.mode
    if mode == "RGB":
        return StoredValues(_rgb_array(image), _RGB)
    if mode == "RGBA":
        return StoredValues(np.asarray(image), (*_RGB, Band("alpha")))
    if mode in ("L", "1"):
        return StoredValues(np.asarray(image.convert("L"))[..., None], (Band("grey"),))
    if mode == "LA":
        return StoredValues(np.asarray(image), (Band("grey"), Band("alpha")))
    if mode.startswith("I;16"):
        return StoredValues(np.asarray(image).astype(np.uint16)[..., None], (Band("grey"),))
    if mode == "I":
        values = np.asarray(image)
        if image.format == "PNG":  # older versions of Pillow widen 16 bits
            values = values.astype(np.uint16)
        return StoredValues(values[..., None], (Band("grey"),))
    if mode == "F":
        return StoredValues(np.asarray(image)[..., None], (Band("grey"),))
    if mode in ("P", "PA"):
        if "transparency" in image.info:  # Pillow would warn about it
            image = image.copy()
            del image.info["transparency"]
        return StoredValues(np.asarray(image.convert("RGB")), (Band("palette"),))
    return StoredValues(np.asarray(image.convert("RGB")), _RGB)


def _rgb_array(image: Image.Image) -> NDArray[np.uint8]:
    """(H, W, 3) pixels of an RGB image, by bands of rows that stay in the cache.

    `numpy.array` copies the image twice on the way, and the system must find memory for the copies.
    """
    width, height = image.size
    pixels, rows = np.empty((height, width, 3), np.uint8), max(1, _BAND_PIXELS // width)
    for top in range(0, height, rows):
        bottom = min(height, top + rows)
        pixels[top:bottom] = np.asarray(image.crop((0, top, width, bottom)))
    return pixels


def jpeg2000_values(stream: BinaryIO, image: Image.Image, name: str, options: ReadOptions) -> StoredValues:
    """The stored values of a JPEG 2000. With more than 8 bits, Pillow only decodes a single band correctly."""
    bits = jpeg2000_bits(stream)
    if bits <= 8:
        return stored_values(loaded(image), name)
    if image.mode.startswith("I;16"):
        stored = stored_values(loaded(image), name)
        values = stored.values >> (16 - bits)  # Pillow shifts them to the left
        stored = replace(stored, values=values, bits=bits)
    else:
        try:
            import imagecodecs
        except ImportError as error:
            what = f"{name}: reading a JPEG 2000 of {bits} bits in several bands"
            raise UnreadableHereError(what, "slides") from error
        image.load()  # reports a truncated file
        stream.seek(0)
        values = imagecodecs.jpeg2k_decode(stream.read())
        count = 1 if values.ndim == 2 else values.shape[2]
        bands = (Band("grey"), Band("alpha")) if count < 3 else (*_RGB, Band("alpha"))
        if values.dtype != np.uint16 or count > 4:
            raise ImageError(
                f"{name}: JPEG 2000 with {count} bands of {values.dtype} is not supported; convert it to TIFF first."
            )
        stored = StoredValues(values.reshape(*values.shape[:2], count), bands[:count], bits=bits)
    if options.value_range is None:  # satellite reflectances use few of their 15 bits
        colors = 3 if len(stored.bands) >= 3 else 1
        warn_if_dark(name, int(stored.values[..., :colors].max()), bits)
    return stored


def to_rgb(stored: StoredValues, name: str, options: ReadOptions) -> ImageArray:
    """(H, W, 3) pixels: the chosen bands in 8 bits. Raises: ImageError."""
    is_cmyk = stored.bands[0].color == "cyan" and options.bands is None
    places = (0, 1, 2, 3) if is_cmyk else choose_bands(name, stored.bands, options)
    values = stored.values
    if stored.bands[places[0]].color == "palette":
        if options.value_range is not None:
            raise ImageError(f"{name}: --range does not apply to a palette; leave it out.")
        return np.array(values if stored.colors is None else stored.colors[values[..., 0]])
    if places != tuple(range(values.shape[2])):
        values = values[..., places[0] : places[0] + 1] if len(places) == 1 else values[..., list(places)]
    sample = cells_of(values)
    if stored.nodata is not None and (stored.has_lost or values.dtype == np.uint16):
        nodata = stored.nodata >> 8 if stored.has_lost else stored.nodata
        valid = values[(values != nodata).any(2)]
        sample = cells_of(valid[None]) if valid.size else sample
    if stored.has_lost:
        warn_if_dark(name, max(int(part.max()) for part in sample()) << 8 | 255)
    levels = choose_levels(name, values.dtype, options, sample, stored.bits, stored.is_inverted)(values)
    pixels = cmyk_to_rgb(levels) if is_cmyk else rgb(levels)
    return pixels if pixels.flags.writeable else pixels.copy()


def tiff_values(stream: BinaryIO, name: str, page: tiff.Page, pages: int) -> StoredValues:
    """The stored values of a TIFF page of a kind that Pillow reads correctly."""
    stream.seek(0)
    with Image.open(stream, formats=("TIFF",)) as image:
        assert isinstance(image, TiffImagePlugin.TiffImageFile)
        # Without a file name Pillow does not memory-map; Pillow 13 ignores the orientation of mapped pixels.
        image.filename = ""
        if page.ifd:
            image.seek(page.ifd)
        _keep_premultiplied(image)
        image.load()
        values = np.asarray(image)
        bits, mode = page.bits[0], image.mode
    if values.ndim == 2:
        values = values[..., None]
    inverted = page.photometric == tiff.MIN_IS_WHITE
    if page.photometric == tiff.PALETTE:
        assert page.colormap is not None
        colors = np.zeros((256, 3), np.uint8)
        colors[: len(page.colormap)] = page.colormap[:256]
        return StoredValues(values, (Band("palette"),), colors)
    if page.photometric == tiff.SEPARATED:
        return StoredValues(values, (Band("cyan"), Band("magenta"), Band("yellow"), Band("black")))
    if page.photometric in (tiff.MIN_IS_WHITE, tiff.MIN_IS_BLACK):
        bands = (Band("grey"), Band("alpha"))[: values.shape[2]]
        if mode == "1":
            values = values.astype(np.uint8)
        elif bits < 8:
            values = values // np.uint8(255 // (2**bits - 1))  # undo Pillow's scaling
        if inverted and bits <= 8:  # undo Pillow's inversion
            values = np.subtract(2**bits - 1, values, dtype=np.uint8)
        return StoredValues(values, bands, None, page.stated_bits, inverted, nodata=_number(page.nodata))
    extra = (Band("alpha") if page.has_alpha else Band(),) if values.shape[2] == 4 else ()
    is_deep = bits == 16
    nodata = _number(page.nodata)
    return StoredValues(values, (*_RGB, *extra), None, page.stated_bits, has_lost=is_deep, nodata=nodata)


def _number(nodata: str) -> int | None:
    """GDAL's nodata tag as a number, if it is a 16-bit value."""
    text = nodata.strip()
    return int(text) if re.fullmatch(r"[0-9]{1,5}", text) and int(text) < 2**16 else None


def _keep_premultiplied(image: TiffImagePlugin.TiffImageFile) -> None:
    """Keep Pillow from dividing colours by associated alpha, because stored colours count."""
    tiles: Any = image.tile

    def plain(value: Any) -> Any:
        return re.sub("^RGBa", "RGBA", value) if isinstance(value, str) else value

    image.tile = [
        tile._replace(args=tuple(map(plain, tile.args)) if isinstance(tile.args, tuple) else plain(tile.args))
        for tile in tiles
    ]
