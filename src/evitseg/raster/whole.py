"""Images read whole: the decision who reads a file, and Pillow's part of it.

`open_source` gives the same pixels window by window; `evitseg.raster.tiff`, `bands` and `levels` hold the rules.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import os
import re
import stat
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image, TiffImagePlugin, UnidentifiedImageError

from evitseg.errors import EvitsegError, ImageError, MissingPackageError, UnreadableHereError
from evitseg.image import AS_STATED, MAX_PIXELS, ImageArray, ReadOptions, Reduced, TooManyPixelsError
from evitseg.raster import tiff
from evitseg.raster.bands import Band, choose_bands
from evitseg.raster.formats import (
    READABLE,
    TURNS,
    ImageFormat,
    exif_orientation,
    format_of,
    has_jpeg_end,
    jpeg2000_bits,
    jpeg_bits,
    orientation_of,
)
from evitseg.raster.levels import cells_of, choose_levels, warn_if_dark
from evitseg.raster.window import rgb
from evitseg.system.files import is_folder

Least = Callable[[tuple[int, int]], tuple[int, int]]
_RGB = (Band("red"), Band("green"), Band("blue"))


@dataclass(frozen=True)
class _Stored:
    """Decoded values, before bands and range are chosen.

    Attributes:
        values: (H, W, bands) as the file holds them; colours where it holds a palette or inks.
        bands: what the file says about them.
        colors: of a palette, (colours, 3).
        bits: significant ones that the file states.
        has_lost: only the upper 8 of 16 bits are left.
        nodata: a value that does not count where every band has it.
    """

    values: NDArray[Any]
    bands: tuple[Band, ...]
    colors: NDArray[np.uint8] | None = None
    bits: int | None = None
    is_inverted: bool = False
    has_lost: bool = False
    nodata: int | None = None


def read_whole(source: Path | bytes, name: str, options: ReadOptions, least: Least | None = None) -> Reduced:
    """The image in a file, or in its bytes.

    Args:
        name: for messages.
        least: gives the (height, width) that is needed from the (height, width) that there is; a JPEG may then be
            decoded at a half, a quarter or an eighth.

    Raises: ImageError, MissingPackageError.
    """
    if isinstance(source, Path) and is_folder(source):
        return _through_windows(source, name, options)
    with opened(source, name) as (stream, kind):
        if kind.name != "TIFF":
            return _read(stream, source, kind, name, options, least)
        if isinstance(source, Path):
            tiff.no_raw(source, name)
        file = tiff.read_tiff(stream, name)
        path = source if isinstance(source, Path) else None
        if not tiff.is_for_tifffile(file):
            ifd = tiff.choose_page(name, file, options, quietly=True)
            page = file.first if ifd == file.first.ifd else tiff.read_page(stream, name, ifd)
            _check_pixels(name, page.size)
            # GDAL's JPEG library smooths colours of half the resolution otherwise than Pillow's.
            is_gdals = page.photometric == tiff.YCBCR and importlib.util.find_spec("rasterio") is not None
            if not is_gdals and tiff.pillow_reads(page, file.is_little, options, path):
                tiff.choose_page(name, file, options)
                stored = _tiff(stream, name, page, len(file.pages))
                return _whole(_rendered(stored, name, options))
            if why := tiff.refusal(page):
                raise ImageError(f"{name}: {why}.")
            reason = f"{name}: reading a TIFF of this kind ({tiff.kind_in_words(page)})"
        else:
            reason = f"{name}: reading a TIFF of several planes or levels"
    with _needing("geo", reason):
        return _through_windows(source, name, options)


def size_whole(source: Path | bytes, name: str, options: ReadOptions) -> tuple[int, int]:
    """(height, width) of the image that `read_whole` gives, from the file's header. Raises: ImageError."""
    if isinstance(source, Path) and is_folder(source):
        from evitseg.raster import open_source

        with open_source(source, options=options) as windows:
            _check_pixels(name, windows.size)
            return windows.size
    with opened(source, name) as (stream, kind):
        if kind.name == "TIFF":
            file = tiff.read_tiff(stream, name)
            if tiff.is_for_tifffile(file):
                size = file.first.size
            else:
                ifd = tiff.choose_page(name, file, options, quietly=True)
                size = (file.first if ifd == file.first.ifd else tiff.read_page(stream, name, ifd)).size
            _check_pixels(name, size)
            return size
        with _pillow(stream, kind, name) as image:
            return _upright(image.size, _orientation(stream, kind, image))


@contextlib.contextmanager
def opened(source: Path | bytes, name: str) -> Iterator[tuple[BinaryIO, ImageFormat]]:
    """The file and its format. Raises: ImageError for what is no image."""
    with decoding(name), contextlib.ExitStack() as stack:
        stream: BinaryIO
        if isinstance(source, bytes):
            stream = io.BytesIO(source)
        else:
            # Only regular files: opening a named pipe waits for its other end.
            mode = os.stat(source).st_mode  # noqa: PTH116  # a Path of what is not UTF-8 is fine, too
            if stat.S_ISDIR(mode):
                raise IsADirectoryError
            if not stat.S_ISREG(mode):
                raise ImageError(f"{name}: not a regular file.")
            stream = stack.enter_context(open(source, "rb"))
        start = stream.read(64)
        stream.seek(0)
        kind = format_of(start)
        if kind is None:
            what = "an empty file" if not start else "not an image in a format that can be read"
            raise ImageError(f"{name}: {what}; {READABLE}.")
        yield stream, kind


@contextlib.contextmanager
def decoding(name: str) -> Iterator[None]:
    """Whatever may be said about a bad file becomes a ImageError."""
    try:
        yield
    except EvitsegError:
        raise
    except FileNotFoundError as error:
        raise ImageError(f"{name}: no such file.") from error
    except IsADirectoryError as error:
        raise ImageError(f"{name}: a folder, not an image.") from error
    except PermissionError as error:
        raise ImageError(f"{name}: may not be read (permission denied).") from error
    except UnidentifiedImageError as error:  # its text is the repr of an open file
        raise ImageError(f"{name[:200]}: truncated or damaged, or of a kind that is not read.") from error
    except OSError as error:
        if error.errno is None:  # as Pillow's of damaged files
            raise ImageError(f"{name[:200]}: truncated or damaged ({_words_of(error)}).") from error
        raise ImageError(f"{name[:200]}: cannot be read ({error.strerror or error}).") from error
    except Image.DecompressionBombError as error:
        raise _too_many(name) from error
    except Warning:
        raise  # where warnings are errors
    except MemoryError as error:
        raise ImageError(f"{name[:200]}: decoding it takes more memory than is free.") from error
    except Exception as error:  # Pillow's decoders raise whatever a damaged file makes them stumble over
        raise ImageError(f"{name[:200]}: truncated or damaged ({_words_of(error)}).") from error


def _words_of(error: Exception) -> str:
    """What a library says, in one line; its type where that tells of an object in memory."""
    text = " ".join(str(error).split())
    return type(error).__name__ if not text or re.search(r"<[\w.]+ [^<>]*>", text) else text


@contextlib.contextmanager
def _needing(extra: str, what: str) -> Iterator[None]:
    """A package that is missing makes the file unreadable here, no more: others can be read."""
    try:
        yield
    except UnreadableHereError:
        raise
    except MissingPackageError as error:
        raise UnreadableHereError(what, extra if "[geo]" in str(error) else "geo,slides") from error


def _through_windows(source: Path | bytes, name: str, options: ReadOptions) -> Reduced:
    from evitseg.raster import open_source

    if isinstance(source, bytes):
        # GDAL and tifffile read files.
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "image")
            path.write_bytes(source)
            with open_source(path, options=options, name=name) as windows:
                _check_pixels(name, windows.size)
                return _whole(windows.read(0, 0, *windows.size))
    with open_source(source, options=options, name=name) as windows:
        _check_pixels(name, windows.size)
        return _whole(windows.read(0, 0, *windows.size))


def _whole(pixels: ImageArray) -> Reduced:
    return Reduced(pixels, (pixels.shape[0], pixels.shape[1]))


def _too_many(name: str) -> TooManyPixelsError:
    return TooManyPixelsError(
        f"{name}: more than {MAX_PIXELS:,} pixels, the limit that guards against decompression bombs; "
        "cut or shrink the image first."
    )


def _check_pixels(name: str, size: tuple[int, int]) -> None:
    if size[0] * size[1] > MAX_PIXELS:
        raise _too_many(name)


@contextlib.contextmanager
def _pillow(stream: BinaryIO, kind: ImageFormat, name: str) -> Iterator[Image.Image]:
    _check_plugin(kind, name)
    if kind.name == "BMP":
        check_bmp(stream, name)
    elif kind.name == "JPEG":
        check_jpeg(stream, name)
    stream.seek(0)
    # No other format: Pillow hands some of them to outside programs.
    with Image.open(stream, formats=(kind.name,)) as image:
        _check_pixels(name, (image.height, image.width))
        yield image


def _check_plugin(kind: ImageFormat, name: str) -> None:
    """Raises: ImageError where Pillow lacks the format."""
    if kind.name == "HEIF":
        try:
            import pillow_heif
        except ImportError as error:
            raise ImageError(
                f"{name}: reading HEIC needs a package that is not installed: python -m pip install pillow-heif."
            ) from error
        pillow_heif.register_heif_opener()
    elif kind.plugin:
        Image.init()
        if kind.name not in Image.OPEN or not _supports(kind.name):
            raise ImageError(
                f"{name}: this build of Pillow does not read {kind.title}: python -m pip install --upgrade "
                f"'{kind.plugin}'."
            )


def _supports(format_name: str) -> bool:
    from PIL import features

    name = {"AVIF": "avif", "JPEG2000": "jpg_2000"}[format_name]
    # Older versions do not know each name, and warn.
    return name in {*features.modules, *features.codecs, *features.features} and bool(features.check(name))


def check_bmp(stream: BinaryIO, name: str) -> None:
    """An uncompressed BMP must have the bytes that its header promises. Raises: ImageError."""
    stream.seek(0)
    head = stream.read(34)
    length = stream.seek(0, os.SEEK_END)
    if len(head) < 34 or int.from_bytes(head[14:18], "little") < 40:
        return
    width, height = (int.from_bytes(head[at : at + 4], "little", signed=True) for at in (18, 22))
    bits, compression = int.from_bytes(head[28:30], "little"), int.from_bytes(head[30:34], "little")
    needed = int.from_bytes(head[10:14], "little") + (width * bits + 31) // 32 * 4 * abs(height)
    if compression in (0, 3) and needed > length:
        raise ImageError(
            f"{name}: truncated or damaged (its header promises {width}×{abs(height)} pixels, which take {needed:,} "
            f"bytes; the file has {length:,})."
        )


def check_jpeg(stream: BinaryIO, name: str, to_its_end: bool = False) -> None:
    """A JPEG must have 8 bits, because Pillow reads no others.

    Args:
        to_its_end: whether it must also have its end, which GDAL does not miss.

    Raises: ImageError.
    """
    bits = jpeg_bits(stream)
    if bits not in (None, 8):
        raise ImageError(f"{name}: a JPEG of {bits} bits is not read; convert it to PNG or TIFF first.")
    if to_its_end and bits is not None and not has_jpeg_end(stream):
        raise ImageError(f"{name}: truncated or damaged (its last bytes are missing).")


def _orientation(stream: BinaryIO, kind: ImageFormat, image: Image.Image) -> int:
    if kind.name in ("JPEG", "PNG", "WEBP"):
        place = stream.tell()
        value = orientation_of(stream, kind)
        stream.seek(place)
        return value
    return exif_orientation(image)


def _upright(size: tuple[int, int], orientation: int) -> tuple[int, int]:
    """(height, width) from Pillow's (width, height)."""
    width, height = size
    return (width, height) if orientation in (5, 6, 7, 8) else (height, width)


def _read(
    stream: BinaryIO,
    source: Path | bytes,
    kind: ImageFormat,
    name: str,
    options: ReadOptions,
    least: Least | None,
) -> Reduced:
    """A file that is no TIFF."""
    with _pillow(stream, kind, name) as image:
        orientation = _orientation(stream, kind, image)
        size = _upright(image.size, orientation)
        _choose_frame(image, kind, name, options)
        # What Pillow leaves of 16-bit colours is their upper half.
        has_lost = kind.name == "PNG" and image.mode not in ("I;16", "I") and _is_16_bit(image)
        if not (has_lost and options.value_range is not None):
            if kind.name == "JPEG" and least is not None and image.format == "JPEG":
                height, width = least(size)
                if 2 * height <= size[0] and 2 * width <= size[1]:
                    image.draft(None, (width, height) if orientation < 5 else (height, width))
            is_jpeg2000 = kind.name == "JPEG2000"
            stored = _jpeg2000(stream, image, name, options) if is_jpeg2000 else _stored(_loaded(image), name)
            turn = TURNS.get(orientation)
            if turn is not None:
                stored = replace(stored, values=_turned(stored.values, turn))
            return Reduced(_rendered(replace(stored, has_lost=has_lost), name, options), size)
    with _needing("geo", f"{name}: a range for a PNG with 16-bit colours"):
        return _through_windows(source, name, options)


def _choose_frame(image: Image.Image, kind: ImageFormat, name: str, options: ReadOptions) -> None:
    count = getattr(image, "n_frames", 1) if kind.has_frames else 1
    if options.page is None:
        if count > 1:
            tiff.warn_first(name, str(count), "frames")
    elif options.page > count:
        raise ImageError(f"{name}: there is no page {options.page} (--page); it has {count}.")
    elif options.page > 1:
        image.seek(options.page - 1)


def _is_16_bit(image: Image.Image) -> bool:
    tiles: Any = getattr(image, "tile", ())
    return any(";16B" in str(part[3]) for part in tiles)


def _loaded(image: Image.Image) -> Image.Image:
    image.load()
    return image


def of_image(image: Image.Image, name: str, options: ReadOptions = AS_STATED) -> ImageArray:
    """(H, W, 3) of an image in Pillow's hands, turned as its EXIF says. Raises: ImageError."""
    with decoding(name):
        _check_pixels(name, (image.height, image.width))
        if not image.width or not image.height:
            raise ImageError(f"{name}: has no pixels.")
        turn = TURNS.get(exif_orientation(image)) if image.format != "TIFF" else None
        if turn is not None:
            image = image.transpose(turn)
        return _rendered(_stored(image, name), name, options)


def _stored(image: Image.Image, name: str) -> _Stored:
    """What an image of a format other than TIFF holds."""
    mode = image.mode
    if mode == "RGB":
        return _Stored(np.array(image), _RGB)
    if mode == "RGBA":
        return _Stored(np.asarray(image), (*_RGB, Band("alpha")))
    if mode in ("L", "1"):
        return _Stored(np.asarray(image.convert("L"))[..., None], (Band("grey"),))
    if mode == "LA":
        return _Stored(np.asarray(image), (Band("grey"), Band("alpha")))
    if mode.startswith("I;16"):
        return _Stored(np.asarray(image).astype(np.uint16)[..., None], (Band("grey"),))
    if mode == "I":
        values = np.asarray(image)
        if image.format == "PNG":  # which older versions of Pillow widen
            values = values.astype(np.uint16)
        return _Stored(values[..., None], (Band("grey"),))
    if mode == "F":
        return _Stored(np.asarray(image)[..., None], (Band("grey"),))
    if mode in ("P", "PA"):
        if "transparency" in image.info:  # of which Pillow would warn
            image = image.copy()
            del image.info["transparency"]
        return _Stored(np.asarray(image.convert("RGB")), (Band("palette"),))
    return _Stored(np.asarray(image.convert("RGB")), _RGB)


def _jpeg2000(stream: BinaryIO, image: Image.Image, name: str, options: ReadOptions) -> _Stored:
    """What a JPEG 2000 holds: more than 8 bits are decoded right by Pillow for a single band only."""
    bits = jpeg2000_bits(stream)
    if bits <= 8:
        return _stored(_loaded(image), name)
    if image.mode.startswith("I;16"):
        stored = _stored(_loaded(image), name)
        values = stored.values >> (16 - bits)  # which Pillow shifts to the left
        stored = replace(stored, values=values, bits=bits)
    else:
        try:
            import imagecodecs
        except ImportError as error:
            what = f"{name}: reading a JPEG 2000 of {bits} bits in several bands"
            raise UnreadableHereError(what, "slides") from error
        image.load()  # which tells of a file that is cut off
        stream.seek(0)
        values = imagecodecs.jpeg2k_decode(stream.read())
        count = 1 if values.ndim == 2 else values.shape[2]
        bands = (Band("grey"), Band("alpha")) if count < 3 else (*_RGB, Band("alpha"))
        if values.dtype != np.uint16 or count > 4:
            raise ImageError(
                f"{name}: a JPEG 2000 with {count} bands of {values.dtype} is not read; convert it to TIFF first."
            )
        stored = _Stored(values.reshape(*values.shape[:2], count), bands[:count], bits=bits)
    if options.value_range is None:  # satellites' reflectances come as 15 bits, of which they use few
        colors = 3 if len(stored.bands) >= 3 else 1
        warn_if_dark(name, int(stored.values[..., :colors].max()), bits)
    return stored


def _turned(values: NDArray[Any], turn: Image.Transpose) -> NDArray[Any]:
    turned = {
        Image.Transpose.FLIP_LEFT_RIGHT: lambda a: a[:, ::-1],
        Image.Transpose.ROTATE_180: lambda a: a[::-1, ::-1],
        Image.Transpose.FLIP_TOP_BOTTOM: lambda a: a[::-1],
        Image.Transpose.TRANSPOSE: lambda a: a.swapaxes(0, 1),
        Image.Transpose.ROTATE_270: lambda a: a[::-1].swapaxes(0, 1),
        Image.Transpose.TRANSVERSE: lambda a: a[::-1, ::-1].swapaxes(0, 1),
        Image.Transpose.ROTATE_90: lambda a: a.swapaxes(0, 1)[::-1],
    }
    return np.ascontiguousarray(turned[turn](values))


def _rendered(stored: _Stored, name: str, options: ReadOptions) -> ImageArray:
    """(H, W, 3): the bands that are chosen, in 8 bits."""
    is_cmyk = stored.bands[0].color == "cyan" and options.bands is None
    places = (0, 1, 2, 3) if is_cmyk else choose_bands(name, stored.bands, options)
    values = stored.values
    if stored.bands[places[0]].color == "palette":
        if options.value_range is not None:
            raise ImageError(f"{name}: a palette's colours have no range; leave out --range.")
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
    pixels = tiff.cmyk_to_rgb(levels) if is_cmyk else rgb(levels)
    return pixels if pixels.flags.writeable else pixels.copy()


def _tiff(stream: BinaryIO, name: str, page: tiff.Page, pages: int) -> _Stored:
    """A page of a kind that Pillow reads right."""
    stream.seek(0)
    with Image.open(stream, formats=("TIFF",)) as image:
        assert isinstance(image, TiffImagePlugin.TiffImageFile)
        # Without a name it is not mapped: Pillow 13 maps pixels that are stored turned as if they were not.
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
        return _Stored(values, (Band("palette"),), colors)
    if page.photometric == tiff.SEPARATED:
        return _Stored(values, (Band("cyan"), Band("magenta"), Band("yellow"), Band("black")))
    if page.photometric in (tiff.MIN_IS_WHITE, tiff.MIN_IS_BLACK):
        bands = (Band("grey"), Band("alpha"))[: values.shape[2]]
        if mode == "1":
            values = values.astype(np.uint8)
        elif bits < 8:
            values = values // np.uint8(255 // (2**bits - 1))  # as stored: Pillow scales them
        if inverted and bits <= 8:  # Pillow inverts these
            values = np.subtract(2**bits - 1, values, dtype=np.uint8)
        return _Stored(values, bands, None, page.stated_bits, inverted, nodata=_number(page.nodata))
    extra = (Band("alpha") if page.has_alpha else Band(),) if values.shape[2] == 4 else ()
    is_deep = bits == 16
    nodata = _number(page.nodata)
    return _Stored(values, (*_RGB, *extra), None, page.stated_bits, has_lost=is_deep, nodata=nodata)


def _number(nodata: str) -> int | None:
    """GDAL's tag, where it is a value of 16 bits."""
    text = nodata.strip()
    return int(text) if re.fullmatch(r"[0-9]{1,5}", text) and int(text) < 2**16 else None


def _keep_premultiplied(image: TiffImagePlugin.TiffImageFile) -> None:
    """Stored colours count: Pillow would divide those with associated alpha by it."""
    tiles: Any = image.tile

    def plain(value: Any) -> Any:
        return re.sub("^RGBa", "RGBA", value) if isinstance(value, str) else value

    image.tile = [
        tile._replace(args=tuple(map(plain, tile.args)) if isinstance(tile.args, tuple) else plain(tile.args))
        for tile in tiles
    ]
