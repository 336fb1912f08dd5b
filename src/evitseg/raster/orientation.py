"""Find and undo the EXIF orientation of images that are stored rotated or mirrored."""

from __future__ import annotations

import re
import struct
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from evitseg.raster.formats import MAX_BLOCKS, ImageFormat, format_of

ORIENTATION = 0x0112
"""The orientation tag of EXIF and TIFF."""
_LARGEST_EXIF = 2**20
TRANSPOSES = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""The transposition that undoes each EXIF orientation."""


def orientation_of(stream: BinaryIO, kind: ImageFormat) -> int:
    """The orientation of a JPEG, PNG or WebP, 1 (upright) to 8, from EXIF or else XMP; 1 if neither states it.

    Reads the file's blocks without decoding pixels. A damaged EXIF block is ignored, because the pixels may be intact.
    """
    if kind.name not in _BLOCKS:
        return 1
    xmp = 1
    for what, data in _BLOCKS[kind.name](stream):
        if what == "xmp":
            xmp = _from_xmp(data)
        elif stated := _from_exif(data):
            return stated
    return xmp


def orientation_of_file(path: Path) -> int:
    """The orientation that reading the file undoes, 1 (upright) to 8; 1 for a file that cannot be read."""
    try:
        with open(path, "rb") as stream:
            kind = format_of(stream.read(64))
            if kind is None or kind.name in _BLOCKS:
                return orientation_of(stream, kind) if kind is not None else 1
            # Only this format: for some others Pillow starts external programs.
            return _from_pillow(lambda: Image.open(stream, formats=(kind.name,)).getexif()) or 1
    except OSError:  # whoever reads its pixels reports it
        return 1


def exif_orientation(image: Image.Image) -> int:
    """The orientation of an opened image, 1 (upright) to 8, from its EXIF or TIFF tag; 1 if the tag is damaged."""
    return _from_pillow(image.getexif) or 1


def _from_exif(data: bytes) -> int | None:
    def load() -> Image.Exif:
        exif = Image.Exif()
        exif.load(data if data.startswith(b"Exif\0\0") else b"Exif\0\0" + data)
        return exif

    return _from_pillow(load)


def _from_pillow(load: Callable[[], Image.Exif]) -> int | None:
    """The orientation that the tag states, or None."""
    try:
        value = load().get(ORIENTATION)
    except Exception:  # Pillow's parsers raise any type of error for a damaged file
        return None
    # A fraction, a text or several numbers are damage.
    return value if type(value) is int and value in range(1, 9) else None


def _from_xmp(data: bytes) -> int:
    found = re.search(rb"tiff:Orientation(?:=[\"']|>)([1-8])[\"'<]", data)
    return int(found[1]) if found else 1


def _jpeg_blocks(stream: BinaryIO) -> Iterator[tuple[str, bytes]]:
    stream.seek(2)
    for _ in range(MAX_BLOCKS):
        marker = stream.read(2)
        while marker == b"\xff\xff":  # fill bytes
            marker = b"\xff" + stream.read(1)
        if len(marker) < 2 or marker[0] != 0xFF or marker[1] in (0xDA, 0xD9):
            return
        if marker[1] == 0x01 or 0xD0 <= marker[1] <= 0xD8:
            continue
        length = int.from_bytes(stream.read(2), "big")
        if length < 2:
            return
        data = stream.read(length - 2)
        if marker[1] == 0xE1 and data.startswith(b"Exif\0"):
            yield "exif", b"Exif\0\0" + data[6:]
        elif marker[1] == 0xE1 and data.startswith(b"http://ns.adobe.com/xap/1.0/\0"):
            yield "xmp", data


def _png_blocks(stream: BinaryIO) -> Iterator[tuple[str, bytes]]:
    stream.seek(8)
    for _ in range(MAX_BLOCKS):
        head = stream.read(8)
        if len(head) < 8 or head[4:] == b"IEND":
            return
        length = int.from_bytes(head[:4], "big")
        wanted = head[4:] in (b"eXIf", b"iTXt", b"zTXt", b"tEXt") and length <= _LARGEST_EXIF
        if wanted:
            data = stream.read(length)
            if head[4:] == b"eXIf":
                yield "exif", data
            elif head[4:] == b"iTXt" and data.startswith(b"XML:com.adobe.xmp\0\0"):
                yield "xmp", data
            elif data.startswith((b"Raw profile type exif\0", b"Raw profile type APP1\0")):
                yield "exif", _raw_profile(data.partition(b"\0")[2], is_packed=head[4:] == b"zTXt")
        stream.seek(4 if wanted else length + 4, 1)


def _raw_profile(text: bytes, is_packed: bool) -> bytes:
    """The EXIF block that ImageMagick writes into a PNG's text: its length, then hexadecimal digits."""
    try:
        if is_packed:
            text = zlib.decompressobj().decompress(text[1:], _LARGEST_EXIF)
        return bytes.fromhex("".join(text.decode("ascii").split()[2:]))
    except (ValueError, zlib.error):
        return b""


def _webp_blocks(stream: BinaryIO) -> Iterator[tuple[str, bytes]]:
    stream.seek(12)
    for _ in range(MAX_BLOCKS):
        head = stream.read(8)
        if len(head) < 8:
            return
        (length,) = struct.unpack("<I", head[4:])
        wanted = head[:4] in (b"EXIF", b"XMP ") and length <= _LARGEST_EXIF
        if wanted:
            yield ("exif" if head[:4] == b"EXIF" else "xmp"), stream.read(length)
        stream.seek((0 if wanted else length) + length % 2, 1)


def upright_array(values: NDArray[Any], orientation: int) -> NDArray[Any]:
    """The upright form of an array (H, W, ...) that is stored with this orientation, 1 to 8."""
    # Flips first; then rows and columns are exchanged.
    if orientation in (3, 4, 6, 7):
        values = values[::-1]
    if orientation in (2, 3, 7, 8):
        values = values[:, ::-1]
    return np.ascontiguousarray(values.swapaxes(0, 1) if orientation in (5, 6, 7, 8) else values)


_BLOCKS = {"JPEG": _jpeg_blocks, "PNG": _png_blocks, "WEBP": _webp_blocks}
"""Readers of a file's EXIF and XMP blocks, by the name of its format."""
