"""Recognise files written by evitseg. Others are never overwritten, and results are not used as input."""

from __future__ import annotations

import contextlib
import json
import os
import re
import stat
import struct
from pathlib import Path
from typing import Any, BinaryIO

SOFTWARE = "evitseg"
"""Mark in a PNG (text `Software`), a JPEG (comment), a TIFF (tag Software) and a Zarr (attribute)."""
VIDEO_COMMENT = "written by evitseg"
"""Mark in a video, as its comment."""
POLYGONS = "polygons written by evitseg"
"""Mark in polygons: in a GeoPackage's table of contents, at the start of a GeoJSON file, or at the end of a GeoParquet
file."""
TIMES_FILE = "times.csv"
"""Times of a video's frames, in the folder of their masks."""
_SOFTWARE_TAG = 305
_ENDS_BYTES = 64 * 1024
"""Size of the end of a file, or of a video's two ends, that contains its metadata."""
_MAX_ATTRIBUTES_BYTES = 4 * 1024**2


def is_ours(path: str | os.PathLike[str]) -> bool:
    """Whether evitseg wrote this mask, overlay, video or other result; False for a file that cannot be read."""
    try:
        mode = Path(path).stat().st_mode
        if stat.S_ISDIR(mode):
            return _in_zarr(Path(path)) or _in_frames(Path(path))
        if not stat.S_ISREG(mode):
            return False
        with open(path, "rb") as file:
            start = file.read(12)
            file.seek(0)
            if start.startswith(b"\x89PNG\r\n\x1a\n"):
                return _in_png(file)
            if start.startswith(b"\xff\xd8\xff"):
                return _in_jpeg(file)
            if start[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
                return _in_tiff(file, start)
            if start.startswith(b"PK"):
                return _in_context(file)
            if start.startswith(b"SQLite"):
                return _in_geopackage(Path(path))
            if start.startswith(b"PAR1"):
                file.seek(max(0, file.seek(0, os.SEEK_END) - _ENDS_BYTES))
                return POLYGONS.encode() in file.read(_ENDS_BYTES)
            if start.startswith(b"{"):
                return POLYGONS.encode() in file.read(256)
            return _at_ends(file)
    except (OSError, ValueError, struct.error):
        return False


def png_chunk() -> bytes:
    """The content of the tEXt chunk that marks a PNG."""
    return b"Software\0" + SOFTWARE.encode()


def _in_png(file: BinaryIO) -> bool:
    file.seek(8)
    for _ in range(64):
        length, kind = struct.unpack(">I4s", file.read(8))
        if kind in (b"IDAT", b"IEND"):
            return False
        if kind == b"tEXt" and length < 256:
            if file.read(length) == png_chunk():
                return True
            length = 0
        file.seek(length + 4, os.SEEK_CUR)
    return False


def _in_jpeg(file: BinaryIO) -> bool:
    file.seek(2)
    for _ in range(64):
        mark, length = struct.unpack(">HH", file.read(4))
        if mark >> 8 != 0xFF or mark == 0xFFDA or length < 2:
            return False
        if mark == 0xFFFE and length < 256:
            if file.read(length - 2) == SOFTWARE.encode():
                return True
            length = 2
        file.seek(length - 2, os.SEEK_CUR)
    return False


def _in_tiff(file: BinaryIO, start: bytes) -> bool:
    """Check the tag Software of the first directory."""
    order = "<" if start.startswith(b"II") else ">"
    is_big = start[2:4] in (b"+\0", b"\0+")
    # struct formats of an offset, of the number of entries, and of an entry with its value.
    offset, number, entry = ("Q", "Q", "HHQ8s") if is_big else ("I", "H", "HHI4s")
    file.seek(8 if is_big else 4)
    (place,) = _unpacked(file, order + offset)
    file.seek(place)
    (count,) = _unpacked(file, order + number)
    for _ in range(min(count, 1000)):
        tag, _, length, value = _unpacked(file, order + entry)
        if tag == _SOFTWARE_TAG:
            if length > len(value):
                if length > 256:
                    return False
                file.seek(struct.unpack(order + offset, value)[0])
                value = file.read(length)
            return bool(value[:length].rstrip(b"\0 ") == SOFTWARE.encode())
    return False


def _unpacked(file: BinaryIO, layout: str) -> tuple[Any, ...]:
    return struct.unpack(layout, file.read(struct.calcsize(layout)))


def _at_ends(file: BinaryIO) -> bool:
    """Check both ends of a video: MP4 and MOV have metadata at the end, Matroska at the start."""
    length = file.seek(0, os.SEEK_END)
    for place in (0, max(0, length - _ENDS_BYTES)):
        file.seek(place)
        if VIDEO_COMMENT.encode() in file.read(_ENDS_BYTES):
            return True
    return False


def _in_context(file: BinaryIO) -> bool:
    import zipfile

    try:
        with zipfile.ZipFile(file) as members:
            return "about.npy" in members.namelist()
    except zipfile.BadZipFile:
        return False


def _in_geopackage(path: Path) -> bool:
    import sqlite3

    try:
        with contextlib.closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)) as base:
            return (POLYGONS,) in base.execute("SELECT description FROM gpkg_contents").fetchmany(100)
    except (sqlite3.Error, UnicodeError):
        return False


def _in_frames(folder: Path) -> bool:
    """Whether a folder holds the masks of a video's frames and their times, and nothing else."""
    names = sorted(entry.name for entry in folder.iterdir())
    masks = [name for name in names if re.fullmatch(r"[0-9]{6,}\.png", name)]
    return len(masks) > 0 and names == [*masks, TIMES_FILE] and is_ours(folder / masks[0])


def _in_zarr(folder: Path) -> bool:
    for name, key in (("zarr.json", "attributes"), (".zattrs", None)):
        file = folder / name
        if file.is_file() and file.stat().st_size <= _MAX_ATTRIBUTES_BYTES:
            try:
                found = json.loads(file.read_text(encoding="utf-8"))
            except RecursionError:
                return False
            about = found.get(key, {}) if key and isinstance(found, dict) else found
            return isinstance(about, dict) and SOFTWARE in about
    return False
