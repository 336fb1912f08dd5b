"""Choose the library that reads a TIFF, the same whether it is read whole or in windows.

- tifffile reads microscope slides, and OME-TIFF and ImageJ files with several planes.
- Pillow reads whole images of the kinds in `pillow_reads`, which need no extra package.
- GDAL reads all others, and windows of those that Pillow reads whole, with equal pixels.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from evitseg.errors import ImageError, warn
from evitseg.image import ReadOptions
from evitseg.raster.formats import RAW_EXTENSIONS
from evitseg.raster.tiff import (
    JPEG,
    MAX_PAGES,
    MAX_TAG_BYTES,
    MIN_IS_BLACK,
    MIN_IS_WHITE,
    PALETTE,
    RGB,
    SEPARATED,
    SIGNED,
    UNSIGNED,
    YCBCR,
    Page,
    Tiff,
)

_PHOTOMETRIC = {
    4: "transparency mask", 8: "CIELab", 9: "ICCLab", 10: "ITULab", 32803: "colour filter array", 32844: "LogL",
    32845: "LogLuv", 34892: "linear raw", 51177: "depth",
}  # fmt: skip
PILLOW_COMPRESSIONS = {1, 2, 3, 4, 5, JPEG, 8, 32773, 32946, 34925, 50000}
"""None, the three of CCITT, LZW, JPEG, deflate, PackBits, LZMA and Zstandard."""


def choose_page(name: str, tiff: Tiff, options: ReadOptions, quietly: bool = False) -> int:
    """Index of the directory to read. Warns if there are several to choose from. Raises: ImageError."""
    total = f"more than {MAX_PAGES}" if tiff.is_cut else str(tiff.count)
    if options.page is None:
        if tiff.count > 1 and not quietly:
            warn_first(name, total)
        return tiff.pages[0]
    if options.page > max(tiff.count, len(tiff.pages)):
        raise ImageError(f"{name}: --page {options.page} does not exist; the file has {total}.")
    if options.page > len(tiff.pages):
        raise ImageError(
            f"{name}: its {tiff.count} images share one directory, so only the first can be read; save them "
            "as separate files or pages first."
        )
    return tiff.pages[options.page - 1]


def warn_first(name: str, total: str, what: str = "pages") -> None:
    """Warn that only the first of several images in a file is read."""
    warn(f"{name}: reading the first of {total} {what}; --page chooses another.", stacklevel=3)


def is_for_tifffile(tiff: Tiff) -> bool:
    """Whether tifffile reads the file."""
    if tiff.kind in ("ome", "imagej"):
        return len(tiff.pages) > 1 or tiff.first.has_subifds
    return tiff.kind == "slide"


def pillow_reads(page: Page, is_little: bool, options: ReadOptions, path: Path | None) -> bool:
    """Whether Pillow reads the page whole with the same pixels as GDAL.

    Args:
        path: the file, which may have a companion with metadata for GDAL.
    """
    if len(set(page.bits)) > 1 or set(page.formats) != {UNSIGNED} or page.compression not in PILLOW_COMPRESSIONS:
        return False
    bits, samples, extra = page.bits[0], page.samples, page.extra
    if page.is_placed and page.orientation != 1:
        return False  # georeferenced images keep their stored orientation
    if 'role="colorinterp"' in page.metadata or 'role="description"' in page.metadata:
        return False
    has_companion = path is not None and _has_companion(path)
    if has_companion or (isinstance(options.value_range, str) and (page.nodata or page.has_alpha)):
        return False
    if page.fill_order != 1 and bits != 1:
        return False
    if page.photometric in (MIN_IS_WHITE, MIN_IS_BLACK):
        if samples == 1 and not extra:
            return bits in (1, 2, 4, 8) or (bits == 16 and (page.photometric == MIN_IS_BLACK or is_little))
        return samples == 2 and bits == 8 and extra == (2,) and not page.is_planar and page.photometric == MIN_IS_BLACK
    if page.photometric == PALETTE:
        return samples == 1 and bits in (1, 2, 4, 8)
    if page.photometric == RGB:
        if samples not in (3, 4) or len(extra) != samples - 3:
            return False
        if page.is_planar:
            return bits == 8 and samples == 3
        return bits == 8 or (bits == 16 and options.value_range is None and page.stated_bits is None)
    if page.photometric == SEPARATED:
        return bits == 8 and samples == 4 and not extra and page.ink_set == 1 and not page.is_planar
    return page.photometric == YCBCR and page.compression == JPEG and samples == 3 and bits == 8 and not page.is_planar


def _has_companion(path: Path) -> bool:
    """Whether a companion file, which only GDAL reads, describes bands, colours or nodata."""
    try:
        with open(f"{path}.aux.xml", "rb") as file:
            content = file.read(MAX_TAG_BYTES)
    except (OSError, ValueError):
        return False
    return any(word in content for word in (b"<ColorInterp", b"<Description", b"<NoDataValue", b"<ColorTable"))


def refusal(page: Page) -> str:
    """The reason why no library here reads the page; "" if GDAL reads it."""
    if page.photometric not in (MIN_IS_WHITE, MIN_IS_BLACK, RGB, PALETTE, SEPARATED, YCBCR):
        what = _PHOTOMETRIC.get(page.photometric, "unknown")
        return f"PhotometricInterpretation {page.photometric} ({what}) is not supported; convert the image to RGB first"
    if page.photometric == YCBCR and page.compression not in (6, JPEG):
        return "PhotometricInterpretation 6 (YCbCr) is only supported with JPEG compression; convert it to RGB first"
    if page.photometric == SEPARATED and (page.samples < 4 or page.ink_set != 1):
        return "PhotometricInterpretation 5 with inks other than CMYK is not supported; convert the image to RGB first"
    if len(set(page.bits)) > 1 or len(set(page.formats)) > 1:
        return f"BitsPerSample {page.bits} and SampleFormat {page.formats} differ by band; convert the image first"
    if page.photometric in (PALETTE, SEPARATED, YCBCR) and page.formats[0] != UNSIGNED:
        return (
            f"SampleFormat {page.formats[0]} with PhotometricInterpretation {page.photometric} is not supported; "
            "convert the image to RGB first"
        )
    if page.formats[0] == SIGNED and page.bits[0] not in (8, 16, 32, 64):
        return f"SampleFormat 2 (signed) with BitsPerSample {page.bits[0]} is not supported; convert the image first"
    return ""


def kind_in_words(page: Page) -> str:
    """The tags of a page that needs GDAL, for the message that GDAL is missing."""
    words = [f"{page.samples} bands of {page.bits[0]} bits"]
    if page.formats[0] != UNSIGNED:
        words.append(f"SampleFormat {page.formats[0]}")
    if page.is_planar:
        words.append("PlanarConfiguration 2")
    words.append(f"PhotometricInterpretation {page.photometric}")
    if page.extra:
        words.append(f"ExtraSamples {', '.join(map(str, page.extra))}")
    if page.compression not in PILLOW_COMPRESSIONS:
        words.append(f"Compression {page.compression}")
    return ", ".join(words)


def cmyk_to_rgb(inks: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """(H, W, 3) from (H, W, 4), without a colour profile, by the formula of libtiff and GDAL."""
    light = 255 - inks.astype(np.uint32)
    return (light[..., :3] * light[..., 3:] // 255).astype(np.uint8)


def no_raw(path: Path, name: str) -> None:
    """Raises: ImageError for a camera raw file, whose first page is only a thumbnail."""
    if path.suffix.lower() in RAW_EXTENSIONS:
        raise ImageError(f"{name} is a camera raw file; convert it to JPEG, PNG or TIFF first.")
