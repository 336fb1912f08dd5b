"""Read the tags of a TIFF without decoding pixels.

Everything has a limit before it is read: directories, entries, and the bytes of a tag.
"""

from __future__ import annotations

import os
import re
import struct
from dataclasses import dataclass
from typing import BinaryIO, Literal

import numpy as np
from numpy.typing import NDArray

from evitseg.errors import ImageError
from evitseg.raster.window import check_size

MAX_PAGES = 10_000
"""Maximum number of directories that are read."""
_MOST_ENTRIES = 4096
MAX_TAG_BYTES = 2**20
_LONGEST_TEXT = 16 * 2**20
"""Maximum bytes of a text tag, such as OME's XML."""
_SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8, 17: 8, 18: 8}
_CODES = {1: "B", 3: "H", 4: "I", 6: "b", 7: "B", 8: "h", 9: "i", 13: "I", 16: "Q", 17: "q", 18: "Q"}
MIN_IS_WHITE, MIN_IS_BLACK, RGB, PALETTE, SEPARATED, YCBCR = 0, 1, 2, 3, 5, 6
UNSIGNED, SIGNED, FLOAT = 1, 2, 3
JPEG = 7


@dataclass(frozen=True)
class Page:
    """One directory of a TIFF: an image and its tags.

    Attributes:
        ifd: index in the chain of directories, from 0.
        bits, formats: BitsPerSample and SampleFormat of every sample.
        extra: ExtraSamples, the kinds of the samples after the colours.
        is_planar: whether bands are stored separately (PlanarConfiguration 2).
        colormap: (colours, 3) uint8.
        nodata: GDAL's nodata tag; "" without one.
        is_placed: whether the page has a georeference.
        is_reduced: whether the page is a smaller copy or a mask of another one.
    """

    ifd: int
    width: int
    height: int
    bits: tuple[int, ...]
    formats: tuple[int, ...]
    photometric: int
    extra: tuple[int, ...]
    is_planar: bool
    compression: int
    fill_order: int
    orientation: int
    ink_set: int
    colormap: NDArray[np.uint8] | None
    nodata: str
    is_placed: bool
    is_reduced: bool
    description: str
    software: str
    metadata: str
    has_subifds: bool

    @property
    def samples(self) -> int:
        return len(self.bits)

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) of the upright image."""
        if self.orientation in (5, 6, 7, 8) and not self.is_placed:
            return self.width, self.height
        return self.height, self.width

    @property
    def stated_bits(self) -> int | None:
        """Significant bits per sample, if the file states fewer than it stores."""
        if self.bits[0] not in (8, 16, 32, 64):
            return self.bits[0]
        found = re.search(r'SignificantBits="(\d{1,2})"', self.description)
        return int(found[1]) if found and 1 <= int(found[1]) <= self.bits[0] else None

    @property
    def has_alpha(self) -> bool:
        return 1 in self.extra or 2 in self.extra


@dataclass(frozen=True)
class Tiff:
    """A TIFF's directories.

    Attributes:
        kind: "slide" for a microscope slide, otherwise the kind of writer.
        pages: indices of the full-size images among the directories.
        count: number of images; more than `pages` if one directory stands for several.
        first: the first full-size image.
        is_little: whether the byte order is little-endian.
        is_cut: whether there are more than `MAX_PAGES` directories.
    """

    kind: Literal["plain", "ome", "imagej", "slide"]
    pages: tuple[int, ...]
    count: int
    first: Page
    is_little: bool
    is_cut: bool


class _Reader:
    """Reads the structure of a TIFF file: directories, entries and values."""

    def __init__(self, stream: BinaryIO, name: str) -> None:
        self._stream, self._name = stream, name
        stream.seek(0, os.SEEK_END)
        self.length = stream.tell()
        start = self.bytes_at(0, 16, least=8)
        self.order = "<" if start[:2] == b"II" else ">"
        self.is_big = self._unpack("H", start[2:4])[0] == 43
        if self.is_big and (len(start) < 16 or self._unpack("HH", start[4:8]) != (8, 0)):
            raise self.damaged("not a BigTIFF")
        self.first = self._unpack("Q", start[8:16])[0] if self.is_big else self._unpack("I", start[4:8])[0]

    def damaged(self, why: str) -> ImageError:
        return ImageError(f"{self._name}: truncated or damaged ({why}).")

    def _unpack(self, code: str, data: bytes) -> tuple[int, ...]:
        return struct.unpack(self.order + code, data)

    def bytes_at(self, offset: int, count: int, least: int | None = None) -> bytes:
        self._stream.seek(min(offset, self.length))
        data = self._stream.read(count)
        if len(data) < (count if least is None else least):
            raise self.damaged("the file ends inside its directory")
        return data

    def directory(self, offset: int) -> tuple[dict[int, tuple[int, int, bytes]], int]:
        """(type, count, value or its offset) by tag, and the offset of the next directory."""
        head, entry = (8, 20) if self.is_big else (2, 12)
        count = self._unpack("Q" if self.is_big else "H", self.bytes_at(offset, head))[0]
        if not 1 <= count <= _MOST_ENTRIES:
            raise self.damaged(f"a directory of {count} entries")
        width = 8 if self.is_big else 4
        data = self.bytes_at(offset + head, count * entry + width, least=count * entry)
        code = self.order + ("HHQ8s" if self.is_big else "HHI4s")
        entries = {tag: (kind, n, value) for tag, kind, n, value in struct.iter_unpack(code, data[: count * entry])}
        after = data[count * entry :]
        return entries, self._unpack("Q" if self.is_big else "I", after)[0] if len(after) == width else 0

    def raw(self, entry: tuple[int, int, bytes] | None, most: int = MAX_TAG_BYTES) -> bytes:
        """The bytes of an entry; empty if it is absent, too long or outside the file."""
        if entry is None or entry[0] not in _SIZES:
            return b""
        size = entry[1] * _SIZES[entry[0]]
        if size <= len(entry[2]):
            return entry[2][:size]
        offset = self._unpack("Q" if self.is_big else "I", entry[2])[0]
        if size > most or offset + size > self.length:
            return b""
        return self.bytes_at(offset, size)

    def numbers(self, entry: tuple[int, int, bytes] | None, default: tuple[int, ...] = ()) -> tuple[int, ...]:
        data = self.raw(entry)
        if not data or entry is None or entry[0] not in _CODES:
            return default
        return self._unpack(f"{entry[1]}{_CODES[entry[0]]}", data)

    def text(self, entry: tuple[int, int, bytes] | None) -> str:
        return self.raw(entry, _LONGEST_TEXT).rstrip(b"\0").decode("utf-8", "replace")


def read_tiff(stream: BinaryIO, name: str) -> Tiff:
    """The directories of a TIFF. Raises: ImageError for a damaged one."""
    reader = _Reader(stream, name)
    first_entries, _ = reader.directory(reader.first)
    sizes: list[tuple[int, int, bool]] = []  # width, height, whether it is reduced or a mask
    offset, seen = reader.first, set[int]()
    while offset and offset not in seen and len(seen) < MAX_PAGES:
        seen.add(offset)
        try:
            entries, after = reader.directory(offset)
        except ImageError:
            if not sizes:
                raise
            break  # the directories before it are intact
        subfile = reader.numbers(entries.get(254), (0,))[0]
        is_reduced = bool(subfile & 5) or reader.numbers(entries.get(255), (0,))[0] == 2
        width, height = (reader.numbers(entries.get(tag), (0,))[0] for tag in (256, 257))
        sizes.append((width, height, is_reduced))
        offset = after
    kind = _kind(reader, first_entries)
    pages = _full_size(sizes)
    first = _page(reader, name, first_entries, 0)
    count = len(pages)
    if kind == "imagej":
        found = re.search(r"^images=(\d{1,9})", first.description, re.MULTILINE)
        count = max(count, int(found[1]) if found else 1)
    elif 33629 in first_entries:  # MetaMorph's stack
        count = max(count, first_entries[33629][1])
    if pages[0] != 0:
        first = read_page(stream, name, pages[0])
    return Tiff(kind, pages, count, first, reader.order == "<", is_cut=bool(offset) and len(seen) == MAX_PAGES)


def read_page(stream: BinaryIO, name: str, ifd: int) -> Page:
    """The directory at this index in the chain. Raises: ImageError."""
    reader = _Reader(stream, name)
    offset = reader.first
    for _ in range(ifd):
        _, offset = reader.directory(offset)
    return _page(reader, name, reader.directory(offset)[0], ifd)


def _full_size(sizes: list[tuple[int, int, bool]]) -> tuple[int, ...]:
    """Indices of the directories that are images of their own, not masks or smaller copies of another one."""
    chosen = [place for place, (_, _, is_reduced) in enumerate(sizes) if not is_reduced] or [0]
    width, height, _ = sizes[chosen[0]]
    kept, smallest = [chosen[0]], width
    for place in chosen[1:]:
        # Some pyramids do not mark their levels: the sides are those of the first image, halved once or more.
        w, h, _ = sizes[place]
        ratio = round(width / w) if w else 0
        halved = w < smallest and ratio > 1 and ratio & (ratio - 1) == 0
        if halved and all(abs(side / ratio - small) <= 1 for side, small in ((width, w), (height, h))):
            smallest = w
            continue
        kept.append(place)
    return tuple(kept)


def _kind(reader: _Reader, entries: dict[int, tuple[int, int, bytes]]) -> Literal["plain", "ome", "imagej", "slide"]:
    """The kind of writer, by the same marks that tifffile uses."""
    description, software = reader.text(entries.get(270)), reader.text(entries.get(305))
    end = description[-20:].strip()
    if 34735 in entries:  # GDAL reads every GeoTIFF
        return "plain"
    is_slide = (
        description.startswith("Aperio ")
        or end.endswith(("</scn>", "</DataObject>"))
        or (65420 in entries and 271 in entries)  # NDPI
        or software.startswith(("PerkinElmer-QPI", "IndicaLabsImageWriter"))
        or (700 in entries and ("Ventana" in software or software.startswith("ScanOutputManager")))
    )
    if is_slide:
        return "slide"
    if end.endswith("OME>"):
        return "ome"
    if description.startswith("ImageJ="):
        return "imagej"
    return "slide" if 330 in entries else "plain"  # a pyramid in sub-images


def _page(reader: _Reader, name: str, entries: dict[int, tuple[int, int, bytes]], ifd: int) -> Page:
    def one(tag: int, default: int) -> int:
        return reader.numbers(entries.get(tag), (default,))[0]

    if 50706 in entries:
        raise ImageError(f"{name} is a camera raw file (DNG); convert it to JPEG, PNG or TIFF first.")
    width, height = one(256, 0), one(257, 0)
    if width < 1 or height < 1:
        raise reader.damaged("its size is missing")
    check_size(name, (height, width))
    samples = one(277, 1)
    if not 1 <= samples <= 65_535:
        raise reader.damaged(f"{samples} samples per pixel")
    compression = one(259, 1)
    # Old JPEG may omit the tag, because its stream states the colour space.
    photometric = one(262, YCBCR if compression in (6, JPEG) and samples == 3 else MIN_IS_WHITE)
    bits = _each(reader.numbers(entries.get(258), (1,)), samples)
    formats = _each(reader.numbers(entries.get(339), (UNSIGNED,)), samples)
    _check_blocks(reader, entries, width, height, samples if one(284, 1) == 2 else 1)
    colormap = None
    if photometric == PALETTE:
        colors = np.array(reader.numbers(entries.get(320)), np.uint16)
        if not colors.size or colors.size % 3:
            raise reader.damaged("its colour map is missing")
        # The standard prescribes 16 bits, but some writers store 8.
        colormap = (colors >> 8 if colors.max() > 255 else colors).astype(np.uint8).reshape(3, -1).T
    return Page(
        ifd=ifd, width=width, height=height, bits=bits, formats=formats, photometric=photometric,
        extra=reader.numbers(entries.get(338)), is_planar=one(284, 1) == 2 and samples > 1, compression=compression,
        fill_order=one(266, 1), orientation=one(274, 1) if one(274, 1) in range(1, 9) else 1, ink_set=one(332, 1),
        colormap=colormap, nodata=reader.text(entries.get(42113)).strip(),
        is_placed=any(tag in entries for tag in (33550, 33922, 34264, 34735, 50844)),
        is_reduced=bool(one(254, 0) & 5), description=reader.text(entries.get(270)),
        software=reader.text(entries.get(305)), metadata=reader.text(entries.get(42112)), has_subifds=330 in entries,
    )  # fmt: skip


def _each(values: tuple[int, ...], samples: int) -> tuple[int, ...]:
    """One value per sample, because some writers store one for all, or too many."""
    return values[:samples] if len(values) >= samples else (values[0],) * samples


def _check_blocks(
    reader: _Reader, entries: dict[int, tuple[int, int, bytes]], width: int, height: int, planes: int
) -> None:
    """Check that the strips or tiles can hold the image's size. Raises: ImageError."""
    tag = 324 if 324 in entries else 273
    if tag not in entries:
        raise reader.damaged("it has neither strips nor tiles")
    if tag == 324:
        across, down = (reader.numbers(entries.get(t), (0,))[0] for t in (322, 323))
    else:
        across, down = width, min(height, reader.numbers(entries.get(278), (height,))[0])
    if across < 1 or down < 1:
        raise reader.damaged("its tiles have no size")
    needed = planes * -(-width // across) * -(-height // down)
    kind, count, _ = entries[tag]
    if count < needed or count * _SIZES.get(kind, 1) > reader.length:
        raise reader.damaged(f"{needed} strips or tiles are needed, its directory has {min(count, reader.length)}")
