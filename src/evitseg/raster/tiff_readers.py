"""Which library reads a TIFF, and which TIFFs no library here reads."""

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
"""None, CCITT's three, LZW, JPEG, deflate, PackBits, LZMA, Zstandard."""


def choose_page(name: str, tiff: Tiff, options: ReadOptions, quietly: bool = False) -> int:
    """Place in the chain of the directory to read; warns where there are several. Raises: ImageError."""
    total = f"more than {MAX_PAGES}" if tiff.is_cut else str(tiff.count)
    if options.page is None:
        if tiff.count > 1 and not quietly:
            warn_first(name, total)
        return tiff.pages[0]
    if options.page > max(tiff.count, len(tiff.pages)):
        raise ImageError(f"{name}: there is no page {options.page} (--page); it has {total}.")
    if options.page > len(tiff.pages):
        raise ImageError(
            f"{name}: its {tiff.count} images lie behind one directory, of which only the first is read; save them as "
            "separate files or pages first."
        )
    return tiff.pages[options.page - 1]


def warn_first(name: str, total: str, what: str = "pages") -> None:
    warn(f"{name}: the first of {total} {what} is read (--page chooses).", stacklevel=3)


def is_for_tifffile(tiff: Tiff) -> bool:
    """Whether tifffile reads the file, whole and in windows."""
    if tiff.kind in ("ome", "imagej"):
        return len(tiff.pages) > 1 or tiff.first.has_subifds
    return tiff.kind == "slide"


def pillow_reads(page: Page, is_little: bool, options: ReadOptions, path: Path | None) -> bool:
    """Whether Pillow reads the page whole, with the pixels that GDAL gives.

    Args:
        path: of the file, beside which GDAL's own metadata may lie.
    """
    if len(set(page.bits)) > 1 or set(page.formats) != {UNSIGNED} or page.compression not in PILLOW_COMPRESSIONS:
        return False
    bits, samples, extra = page.bits[0], page.samples, page.extra
    if page.is_placed and page.orientation != 1:
        return False  # which stays as it is stored
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
    """Whether a file beside it says what bands, colours or nodata are: GDAL alone reads it."""
    try:
        with open(f"{path}.aux.xml", "rb") as file:
            content = file.read(MAX_TAG_BYTES)
    except (OSError, ValueError):
        return False
    return any(word in content for word in (b"<ColorInterp", b"<Description", b"<NoDataValue", b"<ColorTable"))


def refusal(page: Page) -> str:
    """Why nobody here reads the page, by its tags; "" where GDAL does."""
    if page.photometric not in (MIN_IS_WHITE, MIN_IS_BLACK, RGB, PALETTE, SEPARATED, YCBCR):
        what = _PHOTOMETRIC.get(page.photometric, "unknown")
        return f"PhotometricInterpretation {page.photometric} ({what}) is not read; convert the image to RGB first"
    if page.photometric == YCBCR and page.compression not in (6, JPEG):
        return "PhotometricInterpretation 6 (YCbCr) is read from JPEG compression only; convert the image to RGB first"
    if page.photometric == SEPARATED and (page.samples < 4 or page.ink_set != 1):
        return "PhotometricInterpretation 5 with inks other than CMYK is not read; convert the image to RGB first"
    if len(set(page.bits)) > 1 or len(set(page.formats)) > 1:
        return f"BitsPerSample {page.bits} and SampleFormat {page.formats} differ by band; convert the image first"
    if page.photometric in (PALETTE, SEPARATED, YCBCR) and page.formats[0] != UNSIGNED:
        return (
            f"SampleFormat {page.formats[0]} with PhotometricInterpretation {page.photometric} is not read; convert "
            "the image to RGB first"
        )
    if page.formats[0] == SIGNED and page.bits[0] not in (8, 16, 32, 64):
        return f"SampleFormat 2 (signed) with BitsPerSample {page.bits[0]} is not read; convert the image first"
    return ""


def kind_in_words(page: Page) -> str:
    """The tags that make the page GDAL's, for the sentence that GDAL is missing."""
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
    """(H, W, 3) from (H, W, 4), without a colour profile, as libtiff, and so GDAL, does it."""
    light = 255 - inks.astype(np.uint32)
    return (light[..., :3] * light[..., 3:] // 255).astype(np.uint8)


def no_raw(path: Path, name: str) -> None:
    """Raises: ImageError for a camera's raw file, whose first page is a thumbnail."""
    if path.suffix.lower() in RAW_EXTENSIONS:
        raise ImageError(f"{name}: a camera's raw file; develop it to JPEG, PNG or TIFF first.")
