"""The image formats: how their names end, how their files begin, what reads them, and how they are turned."""

from __future__ import annotations

import re
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO

from PIL import Image

ORIENTATION = 0x0112
"""EXIF's and TIFF's tag."""
_MOST_BLOCKS = 100_000
_LARGEST_EXIF = 2**20


@dataclass(frozen=True)
class ImageFormat:
    """A format that is read.

    Attributes:
        name: Pillow's for it, "" where Pillow never reads it.
        title: what people call it.
        endings: of file names.
        magic: pattern of a file's first 64 bytes.
        gdal: driver of GDAL that reads windows of files too large to be read whole, "" if there is none.
        plugin: the package that adds the format to Pillow, where Pillow's own wheels lack it.
        has_frames: whether a file may hold several images that `ReadOptions.page` chooses from.
    """

    name: str
    title: str
    endings: tuple[str, ...]
    magic: bytes
    gdal: str = ""
    plugin: str = ""
    has_frames: bool = False


FORMATS = (
    ImageFormat("JPEG", "JPEG", (".jpg", ".jpeg", ".jfif", ".jpe", ".jif"), rb"\xff\xd8\xff", gdal="JPEG"),
    ImageFormat("PNG", "PNG", (".png", ".apng"), rb"\x89PNG\r\n\x1a\n", gdal="PNG", has_frames=True),
    ImageFormat("WEBP", "WebP", (".webp",), rb"RIFF....WEBP", has_frames=True),
    ImageFormat("TIFF", "TIFF", (".tif", ".tiff"), rb"II\*\0|MM\0\*|II\+\0|MM\0\+", gdal="GTiff"),
    ImageFormat("BMP", "BMP", (".bmp", ".dib"), rb"BM", gdal="BMP"),
    ImageFormat("GIF", "GIF", (".gif",), rb"GIF8[79]a", has_frames=True),
    ImageFormat("AVIF", "AVIF", (".avif",), rb"....ftyp(avif|avis)", plugin="pillow>=11.3", has_frames=True),
    ImageFormat(
        "HEIF", "HEIC", (".heic", ".heif", ".hif"), rb"....ftyp(hei[cxms]|hev[cxms]|mif1|msf1)", plugin="pillow-heif"
    ),
    # Not by GDAL, whose JP2OpenJPEG (3.10) never ends on a box with a wrong length.
    ImageFormat(
        "JPEG2000", "JPEG 2000", (".jp2", ".j2k", ".j2c", ".jpx", ".jpf"),
        rb"\0\0\0\x0cjP  \r\n\x87\n|\xff\x4f\xff\x51\0", plugin="pillow",
    ),
)  # fmt: skip
EXTENSIONS = frozenset(ending for row in FORMATS for ending in row.endings)
"""Endings of image files that are read."""
_RAW = "3fr arw cr2 dng erf iiq nef nrw orf pef rw2 sr2 srw"
_OTHERS = (
    "cr3 crw dcm dds ecw eps exr fits hdr ico img jxl jxr mrw nii pbm pcx pgm pnm ppm psd raf raw sid svg tga wdp xcf"
)
RAW_EXTENSIONS = frozenset(f".{ending}" for ending in _RAW.split())
"""Endings of cameras' raw files, which are TIFFs whose first page is a thumbnail."""
UNREAD_EXTENSIONS = RAW_EXTENSIONS | {f".{ending}" for ending in (*_OTHERS.split(), "vrt")}
"""Endings of image files that are not read, so that a search of a folder can report them."""
READABLE = "JPEG, PNG, WebP, TIFF, BMP, GIF, AVIF, HEIC and JPEG 2000 can be read"


def format_of(start: bytes) -> ImageFormat | None:
    """The format of a file, from its first 64 bytes."""
    return next((row for row in FORMATS if re.match(row.magic, start, re.DOTALL)), None)


TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""How to undo each of EXIF's orientations."""


def orientation_of(stream: BinaryIO, kind: ImageFormat) -> int:
    """How a JPEG, PNG or WebP is turned, 1 (upright) to 8, from EXIF or else XMP; 1 where it does not say.

    Only the file's blocks are looked at, never the pixels. A damaged EXIF block says nothing: the pixels may be whole.
    """
    finders = {"JPEG": _jpeg_blocks, "PNG": _png_blocks, "WEBP": _webp_blocks}
    if kind.name not in finders:
        return 1
    xmp = 1
    for what, data in finders[kind.name](stream):
        value = _from_exif(data) if what == "exif" else _from_xmp(data)
        if what == "exif" and value != 1:
            return value
        xmp = value if what == "xmp" else xmp
    return xmp


def exif_orientation(image: Image.Image) -> int:
    """How an opened image is turned, 1 (upright) to 8, by its EXIF or TIFF tag alone; 1 where that is damaged."""
    try:
        value = image.getexif().get(ORIENTATION, 1)
    except Exception:  # Pillow's parser raises whatever a damaged entry makes it stumble over
        return 1
    # Only a whole number is one of the eight: a fraction, text or several numbers are damage.
    return value if type(value) is int and value in range(1, 9) else 1


def png_frames(stream: BinaryIO) -> int:
    """How many images a PNG holds: its frames, and an image that is no frame."""
    stream.seek(8)
    count, is_animated = 1, False
    for _ in range(_MOST_BLOCKS):
        head = stream.read(8)
        if len(head) < 8:
            return 1
        if head[4:] == b"IDAT":
            return max(1, count) + (count > 1 and not is_animated)
        length = int.from_bytes(head[:4], "big")
        if head[4:] == b"acTL":
            count, length = int.from_bytes(stream.read(4), "big"), length - 4
        is_animated |= head[4:] == b"fcTL"
        stream.seek(length + 4, 1)
    return 1


def jpeg_bits(stream: BinaryIO) -> int | None:
    """Of a sample of a JPEG; None where its header is damaged."""
    stream.seek(2)
    for _ in range(_MOST_BLOCKS):
        marker = stream.read(2)
        while marker == b"\xff\xff":  # fill bytes
            marker = b"\xff" + stream.read(1)
        if len(marker) < 2 or marker[0] != 0xFF or marker[1] in (0xDA, 0xD9):
            return None
        if marker[1] == 0x01 or 0xD0 <= marker[1] <= 0xD8:
            continue
        length = int.from_bytes(stream.read(2), "big")
        if length < 2:
            return None
        if 0xC0 <= marker[1] <= 0xCF and marker[1] not in (0xC4, 0xC8, 0xCC):
            return next(iter(stream.read(1)), None)
        stream.seek(length - 2, 1)
    return None


def has_jpeg_end(stream: BinaryIO) -> bool:
    """Whether a JPEG's mark of its end comes after the header where `jpeg_bits` stops."""
    before = b""
    while part := stream.read(2**20):
        if b"\xff\xd9" in before + part:
            return True
        before = part[-1:]
    return False


def jpeg2000_bits(stream: BinaryIO) -> int:
    """Of the deepest band of a JPEG 2000; 8 where its header is damaged."""
    stream.seek(0)
    place = 0
    if stream.read(4) != b"\xff\x4f\xff\x51":
        for _ in range(_MOST_BLOCKS):
            stream.seek(place)
            head = stream.read(16)
            length = int.from_bytes(head[:4], "big")
            begin = 16 if length == 1 else 8
            if head[4:8] == b"jp2c":
                place += begin
                break
            length = int.from_bytes(head[8:16], "big") if length == 1 else length
            if len(head) < 8 or length < begin:
                return 8
            place += length
    stream.seek(place)
    head = stream.read(42)
    if len(head) < 42 or head[:4] != b"\xff\x4f\xff\x51":
        return 8
    bands = stream.read(3 * int.from_bytes(head[40:42], "big"))
    return max(((depth & 0x7F) + 1 for depth in bands[::3]), default=8)


def _from_exif(data: bytes) -> int:
    exif = Image.Exif()
    try:
        exif.load(data if data.startswith(b"Exif\0\0") else b"Exif\0\0" + data)
        value = exif.get(ORIENTATION, 1)
    except Exception:  # Pillow's parser raises whatever a damaged entry makes it stumble over
        return 1
    # Only a whole number is one of the eight: a fraction, text or several numbers are damage.
    return value if type(value) is int and value in range(1, 9) else 1


def _from_xmp(data: bytes) -> int:
    found = re.search(rb"tiff:Orientation(?:=[\"']|>)([1-8])[\"'<]", data)
    return int(found[1]) if found else 1


def _jpeg_blocks(stream: BinaryIO) -> Iterator[tuple[str, bytes]]:
    stream.seek(2)
    for _ in range(_MOST_BLOCKS):
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
    for _ in range(_MOST_BLOCKS):
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
    """EXIF as ImageMagick writes it into a PNG's text: its length, then hexadecimal digits."""
    try:
        if is_packed:
            text = zlib.decompressobj().decompress(text[1:], _LARGEST_EXIF)
        return bytes.fromhex("".join(text.decode("ascii").split()[2:]))
    except (ValueError, zlib.error):
        return b""


def _webp_blocks(stream: BinaryIO) -> Iterator[tuple[str, bytes]]:
    stream.seek(12)
    for _ in range(_MOST_BLOCKS):
        head = stream.read(8)
        if len(head) < 8:
            return
        (length,) = struct.unpack("<I", head[4:])
        wanted = head[:4] in (b"EXIF", b"XMP ") and length <= _LARGEST_EXIF
        if wanted:
            yield ("exif" if head[:4] == b"EXIF" else "xmp"), stream.read(length)
        stream.seek((0 if wanted else length) + length % 2, 1)
