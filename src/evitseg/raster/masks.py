"""Read mask files exactly as they are stored."""

from __future__ import annotations

import os
import stat
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from evitseg.errors import ConfigError, DatasetError, EvitsegError, ImageError
from evitseg.image import MAX_PIXELS, Mask
from evitseg.labels import LabelSpace
from evitseg.raster.formats import format_of
from evitseg.raster.mask_values import DistinctValues, class_indices
from evitseg.raster.orientation import TRANSPOSES, orientation_of, upright_array

if TYPE_CHECKING:
    from evitseg.raster.tiff import Page

LARGEST_ID = 65_535
_EXACT = ("PNG", "TIFF", "BMP", "GIF", "WEBP")
_LOSSY = "JPEG", "AVIF", "HEIF", "JPEG2000"
_SAVE_AS_PNG = "save masks as PNG, which keeps every value"
_LOSSY_TIFF = {6: "JPEG", 7: "JPEG", 34712: "JPEG 2000", 34892: "JPEG", 50001: "WebP", 50002: "JPEG XL"}
_PILLOW_TIFF = {1, 2, 3, 4, 5, 8, 32773, 32946}


@dataclass(frozen=True)
class MaskFile:
    """A mask as its file stores it.

    Attributes:
        values: (H, W) integers, of the kind in `distinct.kind`.
        distinct: the distinct values with their counts and colours.
    """

    values: NDArray[np.integer]
    distinct: DistinctValues

    def classes(self, labels: LabelSpace) -> Mask:
        """(H, W) class indices. Raises: ConfigError, with the value, for a value without a class."""
        indices: Mask = class_indices(self.distinct, labels).astype(labels.dtype)
        if self.distinct.kind == "colors":
            return np.asarray(indices[np.searchsorted(np.array(self.distinct.values), self.values)])
        is_small = self.values.dtype == np.uint8 and labels.dtype == np.uint8
        table = np.zeros(256 if is_small else self.distinct.values[-1] + 1, labels.dtype)
        table[list(self.distinct.values)] = indices
        if is_small:  # bytes.translate is much faster than indexing in numpy
            found = np.frombuffer(bytearray(self.values.tobytes().translate(table.tobytes())), np.uint8)
            return found.reshape(self.values.shape)
        return np.asarray(table[self.values])


def read_mask(path: str | os.PathLike[str]) -> Mask:
    """(H, W) integers as a mask file stores them: 8- or 16-bit grey levels or palette indices, not colours.

    Raises: ImageError.
    """
    mask = read_raw_mask(path)
    if mask.ndim != 2:
        raise ImageError(f"{path}: a mask has one number per pixel, but this file holds colours.")
    return mask


def read_raw_mask(path: str | os.PathLike[str]) -> Mask:
    """(H, W) integers as a mask file stores them, or (H, W, 3) uint8 if it holds colours.

    Raises: ImageError.
    """
    file = read_mask_file(path)
    if file.distinct.kind != "colors":
        return file.values
    return np.stack([file.values >> shift & 255 for shift in (16, 8, 0)], axis=2).astype(np.uint8)


def read_truth(path: str | os.PathLike[str], labels: LabelSpace) -> Mask:
    """(H, W) class indices of a mask file, as `class_indices` assigns them.

    Raises: ImageError for unreadable files, DatasetError, with the value, for a value without a class.
    """
    file = read_mask_file(path)
    try:
        return file.classes(labels)
    except ConfigError as error:
        raise DatasetError(f"{path}: {error}") from error


def read_mask_file(path: str | os.PathLike[str]) -> MaskFile:
    """A mask file in PNG, TIFF, BMP, GIF or lossless WebP, holding integers up to 65535, a palette, or colours.

    Raises: ImageError, with the file's name and the reason.
    """
    name = str(path)
    with _opened(Path(path), name) as (stream, start):
        kind = format_of(start)
        if kind is not None and kind.name == "TIFF":
            return _read_tiff(Path(path), stream, name)
        with _decoded(stream) as image:
            if getattr(image, "n_frames", 1) > 1:
                raise ImageError(f"{name}: contains {image.n_frames} images; a mask file has one.")  # type: ignore[attr-defined]
            place = stream.tell()
            depth = _depth(name, start, stream, image)
            turn = TRANSPOSES.get(orientation_of(stream, kind)) if kind is not None else None
            stream.seek(place)  # where Pillow continues to read
            return _mask_of(name, image if turn is None else image.transpose(turn), depth)


def is_plain(path: str | os.PathLike[str]) -> bool:
    """Whether a file is a PNG of 8- or 16-bit grey levels, whose meaning does not depend on other masks."""
    try:
        if not stat.S_ISREG(Path(path).stat().st_mode):
            return False
        with open(path, "rb") as stream:
            start = stream.read(26)
    except (OSError, ValueError):
        return False
    return start.startswith(b"\x89PNG") and start[24:26] in (b"\x08\0", b"\x10\0")


@contextmanager
def _opened(path: Path, name: str) -> Iterator[tuple[BinaryIO, bytes]]:
    """The open file and its first bytes. Errors of the system and of decoders become an ImageError."""
    start = b""
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise ImageError(f"{name}: not a regular file; give a mask file.")
        with open(path, "rb") as stream:
            start = stream.read(64)
            kind = format_of(start)
            if kind is not None and kind.name in _LOSSY:
                raise ImageError(f"{name}: {kind.title} compression alters values; {_SAVE_AS_PNG}.")
            stream.seek(0)
            yield stream, start
    except EvitsegError:
        raise
    except FileNotFoundError as error:
        raise ImageError(f"{name}: no such file.") from error
    except PermissionError as error:
        raise ImageError(f"{name}: cannot be read (permission denied).") from error
    except UnidentifiedImageError as error:
        what = "an empty file" if not start else "not in a supported mask format"
        raise ImageError(f"{name}: {what}; {_SAVE_AS_PNG}.") from error
    except Image.DecompressionBombError as error:
        raise ImageError(
            f"{name}: more than {MAX_PIXELS:,} pixels, the limit against decompression bombs; shrink it first."
        ) from error
    except MemoryError as error:
        raise ImageError(f"{name[:200]}: not enough memory to decode it.") from error
    except Exception as error:  # Pillow's decoders raise any type of error for a damaged file
        raise ImageError(f"{name}: truncated or damaged ({error or type(error).__name__}).") from error


@contextmanager
def _decoded(stream: BinaryIO) -> Iterator[Image.Image]:
    with Image.open(stream, formats=_EXACT) as image:
        if image.width * image.height > MAX_PIXELS:
            raise Image.DecompressionBombError
        yield image


def _depth(name: str, start: bytes, stream: BinaryIO, image: Image.Image) -> int:
    """Bits per grey level. Raises: ImageError for files that Pillow would read with altered values."""
    if image.format == "PNG":
        depth, color_type = start[24], start[25]
        if depth == 16 and color_type != 0:
            raise ImageError(f"{name}: 16-bit colours are neither class numbers nor 8-bit colours; {_SAVE_AS_PNG}.")
        return depth
    if image.format == "WEBP" and not _is_lossless_webp(stream):
        raise ImageError(f"{name}: lossy WebP compression alters values; {_SAVE_AS_PNG}.")
    return 1 if image.mode == "1" else 8


def _is_lossless_webp(stream: BinaryIO) -> bool:
    stream.seek(12)
    while len(head := stream.read(8)) == 8:
        kind, length = struct.unpack("<4sI", head)
        if kind in (b"VP8 ", b"VP8L"):
            return bool(kind == b"VP8L")
        stream.seek(length + length % 2, os.SEEK_CUR)
    return False


def _read_tiff(path: Path, stream: BinaryIO, name: str) -> MaskFile:
    """A mask in a TIFF, read by Pillow or GDAL as its tags require. Raises: ImageError, MissingPackageError."""
    from evitseg.raster.tiff import read_tiff

    file = read_tiff(stream, name)
    page = file.first
    if file.count > 1:
        raise ImageError(f"{name}: contains {file.count} images; a mask file has one.")
    if page.compression in _LOSSY_TIFF:
        raise ImageError(
            f"{name}: its compression ({_LOSSY_TIFF[page.compression]}) alters values; store the mask with a lossless "
            "one (deflate, LZW)."
        )
    if page.photometric == 0:
        raise ImageError(
            f"{name}: stores white as 0 (PhotometricInterpretation 0), so shown and stored values differ; "
            f"{_SAVE_AS_PNG}."
        )
    if page.photometric not in (1, 2, 3):
        raise ImageError(f"{name}: neither grey, a palette nor RGB (PhotometricInterpretation {page.photometric}).")
    if page.width * page.height * page.samples > MAX_PIXELS:
        raise Image.DecompressionBombError
    bits, is_unsigned = page.bits[0], set(page.formats) == {1}
    is_plain_tiff = page.fill_order == 1 and page.compression in _PILLOW_TIFF and is_unsigned
    is_upright = page.orientation == 1 or not page.is_placed
    is_single = page.samples == 1 and bits in ((1, 2, 4, 8) if page.photometric == 3 else (1, 2, 4, 8, 16))
    is_colored = page.photometric == 2 and set(page.bits) == {8} and not page.is_planar and page.samples in (3, 4)
    if is_plain_tiff and is_upright and (is_single or is_colored):
        stream.seek(0)
        with _decoded(stream) as image:
            return _mask_of(name, image, bits)
    return _read_with_gdal(path, name, page)


def _read_with_gdal(path: Path, name: str, page: Page) -> MaskFile:
    """A mask in a TIFF that Pillow does not decode exactly. Raises: ImageError, MissingPackageError."""
    from evitseg.raster.gdal import environment, import_rasterio, quiet_open

    rasterio = import_rasterio()
    try:
        with environment(), quiet_open(Path(os.path.abspath(path)), driver="GTiff") as dataset:
            if dataset.count not in (1, 3, 4) or (dataset.count > 1 and set(dataset.dtypes) != {"uint8"}):
                raise ImageError(
                    f"{name}: {dataset.count} bands of {dataset.dtypes[0]}; a mask has one band of integers, or "
                    "8-bit RGB colours."
                )
            pixels = np.moveaxis(dataset.read(), 0, 2)
    except rasterio.errors.RasterioError as error:
        raise ImageError(f"{name}: truncated or damaged ({error}).") from error
    if not page.is_placed and page.orientation != 1:
        pixels = upright_array(pixels, page.orientation)
    if pixels.shape[2] > 1:
        return _colors(name, pixels)
    if page.colormap is not None and pixels.dtype.kind == "u":
        return _indexed(pixels[..., 0], page.colormap.astype(np.int64))
    if pixels.dtype == np.uint8 and page.formats[0] == 2:
        pixels = pixels.view(np.int8)  # GDAL before 3.7 returns signed bytes as unsigned
    return _levels(name, pixels[..., 0], 8)


def _mask_of(name: str, image: Image.Image, depth: int) -> MaskFile:
    if image.mode == "P":
        return _indexed(np.array(image), np.array(image.getpalette("RGB"), np.int64).reshape(-1, 3))
    if image.mode == "PA":
        raise ImageError(f"{name}: a palette with an alpha channel; {_SAVE_AS_PNG}.")
    if image.mode in ("RGB", "RGBA", "RGBX"):
        return _colors(name, np.asarray(image))
    if image.mode in ("LA", "La"):
        pixels = np.asarray(image)
        return _levels(name, _without_alpha(name, pixels[..., 0].astype(np.int32), pixels[..., 1]), 8)
    if image.mode == "1":
        return _levels(name, np.asarray(image).astype(np.uint8), 1)
    if image.mode not in ("L", "I", "F", "I;16", "I;16B", "I;16L", "I;16N"):
        raise ImageError(f"{name}: a mask holds integers or RGB colours, but this file has mode {image.mode}.")
    levels = np.array(image)
    if image.mode == "L" and depth in (2, 4):
        levels //= 255 // (2**depth - 1)  # Pillow stretches them to 8 bits
        return _levels(name, levels, depth)
    return _levels(name, levels, 8)


def _indexed(indices: NDArray[np.integer], palette: NDArray[np.int64]) -> MaskFile:
    counts = _counts(indices)
    values = np.flatnonzero(counts)
    is_gray = bool((palette == palette[:, :1]).all())
    codes = -1 - np.arange(max(len(palette), int(values[-1]) + 1))  # indices beyond the palette have no colour
    codes[: len(palette)] = palette @ np.array([1 << 16, 1 << 8, 1])
    distinct = DistinctValues(
        "palette", tuple(values.tolist()), tuple(counts[values].tolist()), tuple(codes[values].tolist()), is_gray
    )
    return MaskFile(indices, distinct)


def _levels(name: str, levels: NDArray[Any], depth: int) -> MaskFile:
    """A mask of grey levels. Raises: ImageError for values other than integers from 0 to 65535."""
    if levels.dtype.kind not in "uif":
        raise ImageError(f"{name}: holds {levels.dtype} values; class numbers are integers from 0 to {LARGEST_ID}.")
    if levels.dtype.kind == "f":
        is_whole = levels == np.floor(levels)
        if not is_whole.all():  # NaN is not equal to itself
            raise ImageError(
                f"{name}: holds {levels[~is_whole][0]:g}; class numbers are integers from 0 to {LARGEST_ID}."
            )
    low, high = levels.min(), levels.max()
    if low < 0 or high > LARGEST_ID:
        raise ImageError(
            f"{name}: holds {low if low < 0 else high:g}; class numbers are integers from 0 to {LARGEST_ID}."
        )
    if levels.dtype != np.uint8:
        levels = levels.astype(np.uint16 if high > 255 or levels.dtype.itemsize == 2 else np.uint8)
    counts = _counts(levels)
    values = np.flatnonzero(counts)
    shown = values * (255 // (2**depth - 1)) if depth < 8 else values
    # No class can have the colour of a level above 255.
    colors = np.where(shown < 256, shown * 0x010101, -1 - shown)
    distinct = DistinctValues(
        "levels", tuple(values.tolist()), tuple(counts[values].tolist()), tuple(colors.tolist()), True, depth
    )
    return MaskFile(levels, distinct)


def _counts(values: NDArray[np.integer]) -> NDArray[np.int64]:
    """Number of pixels per value, indexed by the value."""
    if values.dtype == np.uint8:
        return np.array(Image.fromarray(values).histogram(), np.int64)  # much faster than bincount
    return np.bincount(values.ravel())


def _colors(name: str, pixels: NDArray[np.uint8]) -> MaskFile:
    codes = pixels[..., 0].astype(np.int32) << 16
    codes |= pixels[..., 1].astype(np.int32) << 8
    codes |= pixels[..., 2]
    if pixels.shape[2] == 4:
        codes = _without_alpha(name, codes, pixels[..., 3])
    values, counts = np.unique(codes, return_counts=True)
    if len(values) > LARGEST_ID:
        raise ImageError(
            f"{name}: {len(values):,} different colours, so this is a photograph and not a mask; give the mask file."
        )
    is_gray = bool(np.isin(values, np.arange(256) * 0x010101).all())
    found = tuple(values.tolist())
    return MaskFile(codes, DistinctValues("colors", found, tuple(counts.tolist()), found, is_gray))


def _without_alpha(name: str, codes: NDArray[np.int32], alpha: NDArray[np.uint8]) -> NDArray[np.int32]:
    """The colours without alpha. Raises: ImageError if alpha distinguishes pixels of the same colour."""
    if alpha.min() != alpha.max():
        both = codes.astype(np.int64) << 8 | alpha
        if len(np.unique(both)) != len(np.unique(codes)):
            raise ImageError(
                f"{name}: pixels of the same colour differ in transparency; flatten the mask so that every class has "
                "one opaque colour."
            )
    return codes
