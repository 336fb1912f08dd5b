"""Open image files of unknown origin, and turn everything that can be wrong with them into an ImageError."""

from __future__ import annotations

import contextlib
import io
import os
import re
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from PIL import Image, UnidentifiedImageError

from evitseg.errors import EvitsegError, ImageError
from evitseg.image import MAX_PIXELS, TooManyPixelsError
from evitseg.raster.formats import READABLE, ImageFormat, format_of, has_jpeg_end, jpeg_bits


@contextlib.contextmanager
def open_image_file(source: Path | bytes, name: str) -> Iterator[tuple[BinaryIO, ImageFormat]]:
    """The open file and its format. Raises: ImageError for anything that is not an image."""
    with translate_errors(name), contextlib.ExitStack() as stack:
        stream: BinaryIO
        if isinstance(source, bytes):
            stream = io.BytesIO(source)
        else:
            # Only regular files, because opening a named pipe waits for its other end.
            mode = os.stat(source).st_mode  # noqa: PTH116  # also works for names that are not UTF-8
            if stat.S_ISDIR(mode):
                raise IsADirectoryError
            if not stat.S_ISREG(mode):
                raise ImageError(f"{name}: not a regular file.")
            stream = stack.enter_context(open(source, "rb"))
        start = stream.read(64)
        stream.seek(0)
        kind = format_of(start)
        if kind is None:
            what = "an empty file" if not start else "not in a supported image format"
            raise ImageError(f"{name}: {what}; {READABLE}.")
        yield stream, kind


@contextlib.contextmanager
def translate_errors(name: str) -> Iterator[None]:
    """Turn every error about a bad file into an ImageError."""
    try:
        yield
    except EvitsegError:
        raise
    except FileNotFoundError as error:
        raise ImageError(f"{name}: no such file.") from error
    except IsADirectoryError as error:
        raise ImageError(f"{name} is a folder, not an image.") from error
    except PermissionError as error:
        raise ImageError(f"{name}: cannot be read (permission denied).") from error
    except UnidentifiedImageError as error:  # its text is the repr of an open file
        raise ImageError(f"{name[:200]}: truncated or damaged, or of an unsupported kind.") from error
    except OSError as error:
        if error.errno is None:  # Pillow's, for damaged files
            raise ImageError(f"{name[:200]}: truncated or damaged ({_words_of(error)}).") from error
        raise ImageError(f"{name[:200]}: cannot be read ({error.strerror or error}).") from error
    except Image.DecompressionBombError as error:
        raise too_many_pixels(name) from error
    except Warning:
        raise  # a program turned warnings into errors
    except MemoryError as error:
        raise ImageError(f"{name[:200]}: not enough memory to decode it.") from error
    except Exception as error:  # Pillow's decoders raise any type of error for a damaged file
        raise ImageError(f"{name[:200]}: truncated or damaged ({_words_of(error)}).") from error


def _words_of(error: Exception) -> str:
    """A library's message in one line, or the error's type if the message shows an object in memory."""
    text = " ".join(str(error).split())
    return type(error).__name__ if not text or re.search(r"<[\w.]+ [^<>]*>", text) else text


def too_many_pixels(name: str) -> TooManyPixelsError:
    return TooManyPixelsError(
        f"{name}: more than {MAX_PIXELS:,} pixels, the limit that guards against decompression bombs; "
        "split or shrink the image first."
    )


def check_pixels(name: str, size: tuple[int, int]) -> None:
    if size[0] * size[1] > MAX_PIXELS:
        raise too_many_pixels(name)


def check_plugin(kind: ImageFormat, name: str) -> None:
    """Raises: ImageError if this Pillow cannot read the format."""
    if kind.name == "HEIF":
        try:
            import pillow_heif
        except ImportError as error:
            raise ImageError(
                f"{name}: reading HEIC needs a package that is not installed: python -m pip install pillow-heif."
            ) from error
        pillow_heif.register_heif_opener()
    elif kind.plugin:
        Image.init()
        if kind.name not in Image.OPEN or not _supports(kind.name):
            raise ImageError(
                f"{name}: this build of Pillow does not read {kind.title}: python -m pip install --upgrade "
                f"'{kind.plugin}'."
            )


def _supports(format_name: str) -> bool:
    from PIL import features

    name = {"AVIF": "avif", "JPEG2000": "jpg_2000"}[format_name]
    # Older versions warn about names that they do not know.
    return name in {*features.modules, *features.codecs, *features.features} and bool(features.check(name))


def check_bmp(stream: BinaryIO, name: str) -> None:
    """Check that an uncompressed BMP is as long as its header promises. Raises: ImageError."""
    stream.seek(0)
    head = stream.read(34)
    length = stream.seek(0, os.SEEK_END)
    if len(head) < 34 or int.from_bytes(head[14:18], "little") < 40:
        return
    width, height = (int.from_bytes(head[at : at + 4], "little", signed=True) for at in (18, 22))
    bits, compression = int.from_bytes(head[28:30], "little"), int.from_bytes(head[30:34], "little")
    needed = int.from_bytes(head[10:14], "little") + (width * bits + 31) // 32 * 4 * abs(height)
    if compression in (0, 3) and needed > length:
        raise ImageError(
            f"{name}: truncated or damaged (its header promises {width}×{abs(height)} pixels, which take {needed:,} "
            f"bytes; the file has {length:,})."
        )


def check_jpeg(stream: BinaryIO, name: str, to_its_end: bool = False) -> None:
    """Check that a JPEG has 8 bits, the only depth that Pillow reads.

    Args:
        to_its_end: also check that the end is there, because GDAL does not.

    Raises: ImageError.
    """
    bits = jpeg_bits(stream)
    if bits not in (None, 8):
        raise ImageError(f"{name}: JPEGs of {bits} bits are not supported; convert it to PNG or TIFF first.")
    if to_its_end and bits is not None and not has_jpeg_end(stream):
        raise ImageError(f"{name}: truncated or damaged (its last bytes are missing).")
