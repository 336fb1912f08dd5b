"""Read whole images, by Pillow or through the readers of windows.

`evitseg.raster.open` gives the same pixels window by window. The rules are in `evitseg.raster.tiff_readers`, `bands`
and `levels`.
"""

from __future__ import annotations

import contextlib
import importlib.util
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, BinaryIO

from PIL import Image

from evitseg.errors import ImageError, MissingPackageError, UnreadableHereError
from evitseg.image import AS_STATED, ImageArray, ReadOptions, Reduced
from evitseg.raster import tiff
from evitseg.raster.file_checks import (
    check_bmp,
    check_jpeg,
    check_pixels,
    check_plugin,
    open_image_file,
    translate_errors,
)
from evitseg.raster.formats import ImageFormat
from evitseg.raster.orientation import TRANSPOSES, exif_orientation, orientation_of, upright_array
from evitseg.raster.stored_values import jpeg2000_values, loaded, stored_values, tiff_values, to_rgb
from evitseg.raster.tiff_readers import (
    choose_page,
    is_for_tifffile,
    kind_in_words,
    no_raw,
    pillow_reads,
    refusal,
    warn_first,
)
from evitseg.system.files import is_folder

Least = Callable[[tuple[int, int]], tuple[int, int]]


def read_whole(source: Path | bytes, name: str, options: ReadOptions, least: Least | None = None) -> Reduced:
    """The image in a file, or in its bytes.

    Args:
        name: how messages call the image.
        least: returns the smallest useful (height, width) for the image's own; a JPEG may then be decoded at 1/2, 1/4
            or 1/8.

    Raises: ImageError, MissingPackageError.
    """
    if isinstance(source, Path) and is_folder(source):
        return _through_windows(source, name, options)
    with open_image_file(source, name) as (stream, kind):
        if kind.name != "TIFF":
            return _read(stream, source, kind, name, options, least)
        if isinstance(source, Path):
            no_raw(source, name)
        file = tiff.read_tiff(stream, name)
        path = source if isinstance(source, Path) else None
        if not is_for_tifffile(file):
            ifd = choose_page(name, file, options, quietly=True)
            page = file.first if ifd == file.first.ifd else tiff.read_page(stream, name, ifd)
            check_pixels(name, page.size)
            # GDAL's JPEG library interpolates subsampled colours differently from Pillow's.
            is_gdals = page.photometric == tiff.YCBCR and importlib.util.find_spec("rasterio") is not None
            if not is_gdals and pillow_reads(page, file.is_little, options, path):
                choose_page(name, file, options)
                stored = tiff_values(stream, name, page, len(file.pages))
                return _whole(to_rgb(stored, name, options))
            if why := refusal(page):
                raise ImageError(f"{name}: {why}.")
            reason = f"{name}: reading a TIFF of this kind ({kind_in_words(page)})"
        else:
            reason = f"{name}: reading a TIFF with several planes or levels"
    with _needing("geo", reason):
        return _through_windows(source, name, options)


def size_whole(source: Path | bytes, name: str, options: ReadOptions) -> tuple[int, int]:
    """(height, width) of the image that `read_whole` would return, from the file's header. Raises: ImageError."""
    if isinstance(source, Path) and is_folder(source):
        from evitseg.raster.open import open_raster

        with open_raster(source, options=options) as windows:
            check_pixels(name, windows.size)
            return windows.size
    with open_image_file(source, name) as (stream, kind):
        if kind.name == "TIFF":
            file = tiff.read_tiff(stream, name)
            if is_for_tifffile(file):
                size = file.first.size
            else:
                ifd = choose_page(name, file, options, quietly=True)
                size = (file.first if ifd == file.first.ifd else tiff.read_page(stream, name, ifd)).size
            check_pixels(name, size)
            return size
        with _pillow(stream, kind, name) as image:
            return _upright(image.size, _orientation(stream, kind, image))


@contextlib.contextmanager
def _needing(extra: str, what: str) -> Iterator[None]:
    """Turn a missing package into an UnreadableHereError, so that other files can still be read."""
    try:
        yield
    except UnreadableHereError:
        raise
    except MissingPackageError as error:
        raise UnreadableHereError(what, extra if "[geo]" in str(error) else "geo,slides") from error


def _through_windows(source: Path | bytes, name: str, options: ReadOptions) -> Reduced:
    from evitseg.raster.open import open_raster

    if isinstance(source, bytes):
        # GDAL and tifffile only read files.
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "image")
            path.write_bytes(source)
            with open_raster(path, options=options, name=name) as windows:
                check_pixels(name, windows.size)
                return _whole(windows.read(0, 0, *windows.size))
    with open_raster(source, options=options, name=name) as windows:
        check_pixels(name, windows.size)
        return _whole(windows.read(0, 0, *windows.size))


def _whole(pixels: ImageArray) -> Reduced:
    return Reduced(pixels, (pixels.shape[0], pixels.shape[1]))


@contextlib.contextmanager
def _pillow(stream: BinaryIO, kind: ImageFormat, name: str) -> Iterator[Image.Image]:
    check_plugin(kind, name)
    if kind.name == "BMP":
        check_bmp(stream, name)
    elif kind.name == "JPEG":
        check_jpeg(stream, name)
    stream.seek(0)
    # No other format: Pillow hands some of them to outside programs.
    with Image.open(stream, formats=(kind.name,)) as image:
        check_pixels(name, (image.height, image.width))
        yield image


def _orientation(stream: BinaryIO, kind: ImageFormat, image: Image.Image) -> int:
    if kind.name in ("JPEG", "PNG", "WEBP"):
        place = stream.tell()
        value = orientation_of(stream, kind)
        stream.seek(place)
        return value
    return exif_orientation(image)


def _upright(size: tuple[int, int], orientation: int) -> tuple[int, int]:
    """(height, width) of the upright image from Pillow's (width, height)."""
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
    """The image in a file other than a TIFF."""
    with _pillow(stream, kind, name) as image:
        orientation = _orientation(stream, kind, image)
        size = _upright(image.size, orientation)
        _choose_frame(image, kind, name, options)
        # Pillow keeps only the upper 8 bits of 16-bit colours.
        has_lost = kind.name == "PNG" and image.mode not in ("I;16", "I") and _is_16_bit(image)
        if not (has_lost and options.value_range is not None):
            if kind.name == "JPEG" and least is not None and image.format == "JPEG":
                height, width = least(size)
                if 2 * height <= size[0] and 2 * width <= size[1]:
                    image.draft(None, (width, height) if orientation < 5 else (height, width))
            is_jpeg2000 = kind.name == "JPEG2000"
            stored = (
                jpeg2000_values(stream, image, name, options) if is_jpeg2000 else stored_values(loaded(image), name)
            )
            if orientation != 1:
                stored = replace(stored, values=upright_array(stored.values, orientation))
            return Reduced(to_rgb(replace(stored, has_lost=has_lost), name, options), size)
    with _needing("geo", f"{name}: a range for a PNG with 16-bit colours"):
        return _through_windows(source, name, options)


def _choose_frame(image: Image.Image, kind: ImageFormat, name: str, options: ReadOptions) -> None:
    count = getattr(image, "n_frames", 1) if kind.has_frames else 1
    if options.page is None:
        if count > 1:
            warn_first(name, str(count), "frames")
    elif options.page > count:
        raise ImageError(f"{name}: --page {options.page} does not exist; the file has {count}.")
    elif options.page > 1:
        image.seek(options.page - 1)


def _is_16_bit(image: Image.Image) -> bool:
    tiles: Any = getattr(image, "tile", ())
    return any(";16B" in str(part[3]) for part in tiles)


def of_image(image: Image.Image, name: str, options: ReadOptions = AS_STATED) -> ImageArray:
    """(H, W, 3) pixels of a PIL image, with its EXIF orientation applied. Raises: ImageError."""
    with translate_errors(name):
        check_pixels(name, (image.height, image.width))
        if not image.width or not image.height:
            raise ImageError(f"{name} has no pixels.")
        turn = TRANSPOSES.get(exif_orientation(image)) if image.format != "TIFF" else None
        if turn is not None:
            image = image.transpose(turn)
        return to_rgb(stored_values(image, name), name, options)
