"""The image formats: file endings, first bytes, readers, and checks of headers."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import BinaryIO

MAX_BLOCKS = 100_000


@dataclass(frozen=True)
class ImageFormat:
    """An image format that evitseg reads.

    Attributes:
        name: Pillow's name of the format; "" if Pillow does not read it.
        title: the common name.
        endings: endings of file names.
        magic: pattern of a file's first 64 bytes.
        gdal: the GDAL driver that reads windows of large files; "" if there is none.
        plugin: the package that adds the format to Pillow, if Pillow's own wheels lack it.
        has_frames: whether a file may hold several images, of which `ReadOptions.page` chooses one.
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
    # No GDAL driver: JP2OpenJPEG of GDAL 3.10 never returns if a box has a wrong length.
    ImageFormat(
        "JPEG2000", "JPEG 2000", (".jp2", ".j2k", ".j2c", ".jpx", ".jpf"),
        rb"\0\0\0\x0cjP  \r\n\x87\n|\xff\x4f\xff\x51\0", plugin="pillow",
    ),
)  # fmt: skip
EXTENSIONS = frozenset(ending for row in FORMATS for ending in row.endings)
"""Endings of image files that evitseg reads."""
_RAW = "3fr arw cr2 dng erf iiq nef nrw orf pef rw2 sr2 srw"
_OTHERS = (
    "cr3 crw dcm dds ecw eps exr fits hdr ico img jxl jxr mrw nii pbm pcx pgm pnm ppm psd raf raw sid svg tga wdp xcf"
)
RAW_EXTENSIONS = frozenset(f".{ending}" for ending in _RAW.split())
"""Endings of cameras' raw files. They are TIFFs whose first page is a thumbnail."""
UNREAD_EXTENSIONS = RAW_EXTENSIONS | {f".{ending}" for ending in (*_OTHERS.split(), "vrt")}
"""Endings of image files that evitseg does not read, so that a search of a folder can report them."""
READABLE = "supported are JPEG, PNG, WebP, TIFF, BMP, GIF, AVIF, HEIC and JPEG 2000"


def format_of(start: bytes) -> ImageFormat | None:
    """The format of a file, from its first 64 bytes."""
    return next((row for row in FORMATS if re.match(row.magic, start, re.DOTALL)), None)


def png_frames(stream: BinaryIO) -> int:
    """Number of images in a PNG: its frames, and the default image if it is not one of them."""
    stream.seek(8)
    count, is_animated = 1, False
    for _ in range(MAX_BLOCKS):
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
    """Bits per sample of a JPEG; None if its header is damaged."""
    stream.seek(2)
    for _ in range(MAX_BLOCKS):
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
    """Whether a JPEG has its end marker; reads from where `jpeg_bits` stopped."""
    before = b""
    while part := stream.read(2**20):
        if b"\xff\xd9" in before + part:
            return True
        before = part[-1:]
    return False


def jpeg2000_bits(stream: BinaryIO) -> int:
    """Bits of the deepest band of a JPEG 2000; 8 if its header is damaged."""
    stream.seek(0)
    place = 0
    if stream.read(4) != b"\xff\x4f\xff\x51":
        for _ in range(MAX_BLOCKS):
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
