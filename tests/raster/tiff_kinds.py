"""TIFF files of every kind, written byte by byte, because no library writes them all; and what they should be read as.

The writer knows the TIFF 6.0 specification only. `raw_values` reads a file back with tifffile and GDAL, so that a
mistake of the writer cannot pass for one of the package; `expected` is the package's stated rule in plain numpy.
"""

from __future__ import annotations

import struct
import warnings
import zlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import imagecodecs
import numpy as np
import rasterio
import tifffile
from numpy.typing import NDArray

HEIGHT, WIDTH = 21, 45
TILE_HEIGHT, TILE_WIDTH, STRIP = 16, 32, 8

Kind = Literal["unsigned", "signed", "float"]
PHOTOMETRIC = {
    "miniswhite": 0, "minisblack": 1, "rgb": 2, "palette": 3, "separated": 5, "ycbcr": 6, "cielab": 8,
}  # fmt: skip
COLORS = {"miniswhite": 1, "minisblack": 1, "rgb": 3, "palette": 1, "separated": 4, "ycbcr": 3, "cielab": 3}
"""Bands that the photometric interpretation itself stands for; the others are extra samples."""
SAMPLE_FORMAT = {"unsigned": 1, "signed": 2, "float": 3}
BITS = (1, 2, 4, 8, 10, 12, 16, 32, 64)
LOSSLESS = ("none", "lzw", "deflate", "packbits", "zstd", "lzma")
COMPRESSION = {
    "none": 1, "lzw": 5, "jpeg": 7, "deflate": 8, "packbits": 32773, "jpeg2000": 34712, "lzma": 34925, "zstd": 50000,
    "webp": 50001,
}  # fmt: skip
_CODECS: dict[str, Callable[[bytes], bytes | bytearray]] = {
    "none": bytes,
    "lzw": imagecodecs.lzw_encode,
    "deflate": zlib.compress,
    "packbits": imagecodecs.packbits_encode,
    "lzma": imagecodecs.lzma_encode,
    "zstd": imagecodecs.zstd_encode,
}


@dataclass(frozen=True)
class TiffKind:
    """What a TIFF file says of itself.

    Attributes:
        extra: TIFF's ExtraSamples value of the last band that the photometric interpretation does not explain:
            0 unspecified, 1 associated alpha, 2 unassociated alpha; None leaves the tag out.
    """

    bits: int
    kind: Kind = "unsigned"
    bands: int = 1
    photometric: str = "minisblack"
    planar: bool = False
    big_endian: bool = False
    tiled: bool = False
    compression: str = "none"
    extra: int | None = None

    def __str__(self) -> str:
        parts = [
            f"{self.kind}{self.bits}", f"{self.bands} bands", self.photometric, "planar" if self.planar else "chunky",
            ">" if self.big_endian else "<", "tiles" if self.tiled else "strips", self.compression,
            f"extra {self.extra}",
        ]  # fmt: skip
        return " ".join(parts)

    def exists(self) -> bool:
        """Whether the compression can hold such values."""
        if self.compression in LOSSLESS:
            return True
        planes = 1 if self.planar else self.bands
        if (self.bits, self.kind) != (8, "unsigned") or self.photometric in ("palette", "cielab"):
            return False
        if self.compression == "webp":
            return planes in (3, 4) and not self.planar and self.photometric == "rgb"
        if self.photometric == "ycbcr":
            return self.compression == "jpeg" and planes == 3
        return planes in (1, 3)


def values_of(kind: TiffKind, seed: int = 0) -> NDArray[Any]:
    """(H, W, bands): numbers of the whole range; a slope where the compression loses something."""
    rng = np.random.default_rng((seed, kind.bits, kind.bands))
    shape = (HEIGHT, WIDTH, kind.bands)
    if kind.kind == "float" and kind.bits in (16, 32, 64):
        return rng.uniform(-1, 2, shape).astype(f"f{kind.bits // 8}")
    if kind.compression not in LOSSLESS:
        slope = np.linspace(20, 160, HEIGHT)[:, None, None] + np.linspace(0, 60, WIDTH)[None, :, None]
        return (slope + np.arange(kind.bands) * 9).astype(np.uint8)
    dtype = f"{'i' if kind.kind == 'signed' else 'u'}{max(1, -(-kind.bits // 8)) if kind.bits not in (10, 12) else 2}"
    low, high = (-(2 ** (kind.bits - 1)), 2 ** (kind.bits - 1)) if kind.kind == "signed" else (0, 2**kind.bits)
    return rng.integers(low, high - 1, shape, dtype=dtype, endpoint=True)


def color_map(kind: TiffKind) -> NDArray[np.uint16]:
    """(colours, 3), 16 bits each."""
    return np.random.default_rng(5).integers(0, 65536, (2 ** min(kind.bits, 16), 3), dtype=np.uint16)


def _packed(rows: NDArray[Any], kind: TiffKind) -> bytes:
    """Rows of samples (h, n) as TIFF stores them: from the most significant bit on, each row from a new byte."""
    if kind.bits in (8, 16, 32, 64):
        return rows.astype(rows.dtype.newbyteorder(">" if kind.big_endian else "<")).tobytes()
    unsigned = rows.astype(np.int64) & (2**kind.bits - 1)
    bits = (unsigned[..., None] >> np.arange(kind.bits - 1, -1, -1)) & 1
    return np.packbits(bits.reshape(len(rows), -1).astype(np.uint8), axis=1).tobytes()


def _encoded(part: NDArray[Any], kind: TiffKind) -> bytes:
    """One strip or tile (h, w, samples)."""
    if kind.compression in _CODECS:
        return bytes(_CODECS[kind.compression](_packed(part.reshape(len(part), -1), kind)))
    pixels = np.ascontiguousarray(part[..., 0] if part.shape[2] == 1 else part)
    if kind.compression == "webp":
        return bytes(imagecodecs.webp_encode(pixels, lossless=True))
    if kind.compression == "jpeg2000":
        return bytes(imagecodecs.jpeg2k_encode(pixels, codecformat="j2k", reversible=True, mct=False))
    inside, outside = ("RGB", "YCBCR" if kind.photometric == "ycbcr" else "RGB") if pixels.ndim == 3 else (None, None)
    return bytes(imagecodecs.jpeg_encode(pixels, level=95, subsampling="444", colorspace=inside, outcolorspace=outside))


def write_tiff(path: Path, values: NDArray[Any], kind: TiffKind) -> Path:
    """A classic TIFF of the values (H, W, bands)."""
    height, width, bands = values.shape
    rows, columns = (TILE_HEIGHT, TILE_WIDTH) if kind.tiled else (STRIP, width)
    planes = [values[..., [b]] for b in range(bands)] if kind.planar else [values]
    pieces = []
    for plane in planes:
        for top in range(0, height, rows):
            for left in range(0, width, columns):
                part = plane[top : top + rows, left : left + columns]
                if kind.tiled:  # a tile is whole, also at the border
                    missing = ((0, rows - part.shape[0]), (0, columns - part.shape[1]), (0, 0))
                    part = np.pad(part, missing, mode="edge")
                pieces.append(_encoded(part, kind))
    order = ">" if kind.big_endian else "<"
    body, places = b"", []
    for piece in pieces:
        places.append(8 + len(body))
        body += piece + b"\0" * (len(piece) % 2)
    tags: list[tuple[int, str, list[int]]] = [
        (256, "I", [width]), (257, "I", [height]), (258, "H", [kind.bits] * bands),
        (259, "H", [COMPRESSION[kind.compression]]), (262, "H", [PHOTOMETRIC[kind.photometric]]),
        (277, "H", [bands]), (284, "H", [2 if kind.planar else 1]),
        (339, "H", [SAMPLE_FORMAT[kind.kind]] * bands),
    ]  # fmt: skip
    if kind.tiled:
        tags += [(322, "I", [columns]), (323, "I", [rows]), (324, "I", places), (325, "I", [len(p) for p in pieces])]
    else:
        tags += [(273, "I", places), (278, "I", [rows]), (279, "I", [len(p) for p in pieces])]
    extra = bands - COLORS[kind.photometric]
    if extra > 0 and kind.extra is not None:
        tags.append((338, "H", [0] * (extra - 1) + [kind.extra]))
    if kind.photometric == "palette":
        tags.append((320, "H", color_map(kind).T.ravel().tolist()))
    if kind.photometric == "ycbcr":
        tags.append((530, "H", [1, 1]))
    directory, outside = b"", b""
    start = 8 + len(body)
    beyond = start + 2 + 12 * len(tags) + 4
    for tag, letter, numbers in sorted(tags):
        content = struct.pack(f"{order}{len(numbers)}{letter}", *numbers)
        if len(content) > 4:
            place = struct.pack(order + "I", beyond + len(outside))
            outside += content + b"\0" * (len(content) % 2)
            content = place
        directory += struct.pack(order + "HHI", tag, {"H": 3, "I": 4}[letter], len(numbers)) + content.ljust(4, b"\0")
    head = struct.pack(order + "2sHI", b"MM" if kind.big_endian else b"II", 42, start)
    count = struct.pack(order + "H", len(tags))
    path.write_bytes(head + body + count + directory + b"\0\0\0\0" + outside)
    return path


def raw_values(path: Path, kind: TiffKind) -> NDArray[Any] | None:
    """(H, W, bands) as tifffile reads the file, else as GDAL does; None where neither can."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            with tifffile.TiffFile(path) as file:
                page = file.pages.first
                values: NDArray[Any] = page.asarray()
            values = values.reshape(kind.bands, HEIGHT, WIDTH) if kind.planar else values
            return np.moveaxis(values, 0, 2) if kind.planar else values.reshape(HEIGHT, WIDTH, kind.bands)
        except Exception:  # whatever a file that it does not know makes it stumble over
            pass
        try:
            with rasterio.open(path) as dataset:
                content: NDArray[Any] = np.moveaxis(dataset.read(), 0, 2)
            return content if content.shape == (HEIGHT, WIDTH, kind.bands) else None
        except Exception:
            return None


def is_what_was_written(stored: NDArray[Any], values: NDArray[Any], kind: TiffKind) -> bool:
    """Whether libraries read what was meant; they take signed numbers of fewer than 8 bits for unsigned ones."""
    if kind.compression in ("jpeg", "webp"):
        return True
    if kind.kind == "signed" and kind.bits not in (8, 16, 32, 64):
        return np.array_equal(stored.astype(np.int64) % 2**kind.bits, values.astype(np.int64) % 2**kind.bits)
    return np.array_equal(stored, values)


@dataclass(frozen=True)
class Reading:
    """What may come of reading a file: one of these images, within a tolerance, or, if allowed, a refusal."""

    images: tuple[NDArray[np.uint8], ...]
    may_refuse: bool
    tolerance: int = 0

    def accepts(self, image: NDArray[np.uint8]) -> bool:
        return any(
            image.shape == own.shape and np.abs(image.astype(int) - own.astype(int)).max() <= self.tolerance
            for own in self.images
        )


REFUSED = Reading((), may_refuse=True)


def to_eight_bits(values: NDArray[Any], bits: int) -> NDArray[np.uint8]:
    """The stated rule: the upper 8 bits, and fewer than 8 stretched to 255."""
    if bits < 8:
        levels = values.astype(np.uint16) * (255 // (2**bits - 1))
    else:
        levels = values >> (bits - 8)
    return np.asarray(levels).astype(np.uint8)


def stretched(values: NDArray[Any], value_range: tuple[float, float]) -> NDArray[np.uint8]:
    low, high = value_range
    return _bytes(np.asarray((values.astype(np.float64) - low) / (high - low)))


def expected(values: NDArray[Any] | None, kind: TiffKind, value_range: tuple[float, float] | None = None) -> Reading:
    """What the package's rule makes of a file whose stored values are these."""
    if values is None:
        return REFUSED
    has_no_range = kind.kind != "unsigned" or kind.bits > 16
    if has_no_range and value_range is None:
        return REFUSED
    # A float of 8 bits, a signed number of 2: nothing writes them.
    odd = (kind.kind == "float" and kind.bits not in (16, 32, 64)) or (kind.kind == "signed" and kind.bits % 8 != 0)
    if kind.compression == "jpeg2000":
        odd = True  # some builds of GDAL lack the codec
    if kind.photometric == "palette":
        return _colors(values, kind, value_range)
    levels = to_eight_bits(values, kind.bits) if value_range is None else stretched(values, value_range)
    tolerance = 0 if value_range is None else 1
    if kind.compression not in LOSSLESS:
        tolerance = 2  # another build of the same codec
    extra = max(0, kind.bands - COLORS[kind.photometric])
    if kind.photometric in ("separated", "ycbcr", "cielab"):
        if kind.photometric == "ycbcr" and kind.compression == "jpeg" and kind.bands == 3:
            return Reading((levels,), may_refuse=False, tolerance=tolerance)  # the decoder gives RGB
        if kind.bands < COLORS[kind.photometric]:
            return REFUSED
        if value_range is not None:
            return REFUSED
        images = {"separated": _from_cmyk, "ycbcr": _from_ycbcr, "cielab": _from_lab}[kind.photometric](values, kind)
        return Reading(images, may_refuse=True, tolerance=3)
    if kind.photometric == "rgb" and kind.bands < 3:
        odd = True
    if kind.photometric == "miniswhite":
        odd = odd or kind.bands > 1
        levels = 255 - levels
    colors = kind.bands - (1 if extra and kind.extra in (1, 2) else 0)
    if colors == 2 and kind.photometric != "rgb":
        return REFUSED
    chosen = levels[..., :3] if colors >= 3 else np.repeat(levels[..., :1], 3, axis=2)
    return Reading((chosen,), may_refuse=odd, tolerance=tolerance)


def _colors(values: NDArray[Any], kind: TiffKind, value_range: tuple[float, float] | None) -> Reading:
    if kind.kind != "unsigned" or kind.bits > 16 or value_range is not None:
        return REFUSED
    index = values[..., 0].astype(int)
    table = color_map(kind)
    is_usual = kind.bits <= 8 and kind.bands == 1
    return Reading(((table[index] >> 8).astype(np.uint8),), may_refuse=not is_usual)


def _unit(values: NDArray[Any], kind: TiffKind) -> NDArray[np.float64]:
    return np.asarray(values.astype(np.float64) / (2**kind.bits - 1))


def _bytes(unit: NDArray[np.float64]) -> NDArray[np.uint8]:
    return np.asarray(np.rint(np.clip(unit, 0, 1) * 255), np.uint8)


def _from_cmyk(values: NDArray[Any], kind: TiffKind) -> tuple[NDArray[np.uint8], ...]:
    ink = _unit(values[..., :4], kind)
    return (_bytes((1 - ink[..., :3]) * (1 - ink[..., 3:])),)


def _from_ycbcr(values: NDArray[Any], kind: TiffKind) -> tuple[NDArray[np.uint8], ...]:
    """ITU-R BT.601, full range."""
    y, cb, cr = np.moveaxis(_unit(values[..., :3], kind) * 255, 2, 0)
    cb, cr = cb - 128, cr - 128
    rgb = np.stack([y + 1.402 * cr, y - 0.344136 * cb - 0.714136 * cr, y + 1.772 * cb], axis=2)
    return (_bytes(rgb / 255),)


def _from_lab(values: NDArray[Any], kind: TiffKind) -> tuple[NDArray[np.uint8], ...]:
    """CIE 1976 L*a*b* of D50, as TIFF 6.0 stores it (a, b signed), through Bradford's matrix to sRGB."""
    scale = 2 ** (kind.bits - 8)
    lightness = values[..., 0].astype(np.float64) / (2**kind.bits - 1) * 100
    signed = values[..., 1:3].astype(np.float64)
    signed = np.where(signed >= 2 ** (kind.bits - 1), signed - 2**kind.bits, signed) / scale
    fy = (lightness + 16) / 116
    f = np.stack([fy + signed[..., 0] / 500, fy, fy - signed[..., 1] / 200], axis=2)
    xyz = np.where(f > 6 / 29, f**3, 3 * (6 / 29) ** 2 * (f - 4 / 29)) * (0.9642, 1.0, 0.8249)
    to_linear = np.array(
        [
            [3.1338561, -1.6168667, -0.4906146],
            [-0.9787684, 1.9161415, 0.0334540],
            [0.0719453, -0.2289914, 1.4052427],
        ]
    )
    linear = np.clip(xyz @ to_linear.T, 0, 1)
    return (_bytes(np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)),)


def without_storage(kind: TiffKind) -> TiffKind:
    return replace(kind, big_endian=False, tiled=False, compression="none")
