"""Read and write whole image files."""

from __future__ import annotations

import io
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol, TypeAlias, cast, runtime_checkable

import numpy as np
from numpy.typing import NDArray
from PIL import Image, PngImagePlugin

from evitseg.errors import ImageError
from evitseg.image import AS_STATED, MAX_PIXELS, ImageArray, ReadOptions, Reduced
from evitseg.system.authorship import SOFTWARE
from evitseg.system.files import replacing

MAX_JPEG_SIDE = 65_500
"""Longest side, in pixels, that libjpeg writes."""
WRITTEN = {
    ".jpg": "JPEG", ".jpeg": "JPEG", ".png": "PNG", ".webp": "WEBP", ".tif": "TIFF", ".tiff": "TIFF", ".bmp": "BMP"
}  # fmt: skip
"""Endings that `save_image` supports."""


@runtime_checkable
class BinaryFile(Protocol):
    """An open binary file, or anything else whose `read()` returns bytes."""

    def read(self) -> bytes: ...


ImageSource: TypeAlias = str | os.PathLike[str] | bytes | BinaryFile | Image.Image | NDArray[np.integer]
"""An image: a path, a file's bytes, an open binary file, a PIL image, or an (H, W, 3) uint8 RGB array."""


def read_image(source: ImageSource, options: ReadOptions = AS_STATED) -> ImageArray:
    """(H, W, 3) uint8 RGB from a file, its bytes, an open binary file, a PIL image or an array.

    EXIF orientation is applied, except to georeferenced files. Grey becomes three equal channels, palette indices
    become their colours, and CMYK is converted. An alpha channel is dropped without blending. The module docstrings of
    `evitseg.raster.bands` and `evitseg.raster.levels` define how bands and 16-bit values are read.

    Raises: ImageError, with the file's name and the reason, for anything that cannot be read.
    """
    from evitseg.raster.whole import of_image, read_whole

    if isinstance(source, np.ndarray):
        return _from_array(source, options)
    if isinstance(source, Image.Image):
        return of_image(source, "the PIL image", options)
    encoded, name = file_or_bytes(source)
    return read_whole(encoded if isinstance(encoded, bytes) else Path(encoded), name, options).pixels


def file_or_bytes(source: str | os.PathLike[str] | bytes | BinaryFile) -> tuple[str | os.PathLike[str] | bytes, str]:
    """A path as it is, or the bytes of an open file; with the image's name for messages.

    Raises: ImageError for anything else.
    """
    if isinstance(source, bytes):
        return source, "the image"
    if isinstance(source, (str, os.PathLike)):
        return source, str(source)
    if not isinstance(source, BinaryFile):
        kind = type(source)
        advice = "give a path, bytes, an open binary file, a PIL image or a numpy array"
        if kind.__module__.partition(".")[0] in ("torch", "jax", "tensorflow"):
            advice = "convert it to a numpy array (H, W, 3), uint8 RGB"
        raise ImageError(f"a {kind.__name__} is not an image; {advice}.")
    stated = getattr(source, "name", None)
    name = stated if isinstance(stated, str) else "the image"
    content: object = source.read()
    if not isinstance(content, bytes):
        raise ImageError(f"{name}: read() returned {type(content).__name__}, not bytes; open the file in mode 'rb'.")
    return content, name


def read_reduced(
    source: str | os.PathLike[str] | bytes,
    least: Callable[[tuple[int, int]], tuple[int, int]],
    name: str | None = None,
    options: ReadOptions = AS_STATED,
) -> Reduced:
    """An image file, decoded at 1/2, 1/4 or 1/8 of its size if it is a JPEG and the result is still large enough.

    Args:
        source: the file, or its bytes.
        least: returns the smallest useful (height, width) for the image's own (height, width).
        name: how messages call the image; None uses the file's path.

    Raises: ImageError.
    """
    from evitseg.raster.whole import read_whole

    if isinstance(source, bytes):
        return read_whole(source, name or "the image", options, least)
    return read_whole(Path(source), name or str(source), options, least)


def image_size(path: str | os.PathLike[str], options: ReadOptions = AS_STATED) -> tuple[int, int]:
    """(height, width) of the image that `read_image` would return, from the file's header. Raises: ImageError."""
    from evitseg.raster.whole import size_whole

    return size_whole(Path(path), str(path), options)


def _from_array(array: NDArray[Any], options: ReadOptions) -> ImageArray:
    from evitseg.raster.levels import cells_of, choose_levels

    if (array.ndim != 2 and (array.ndim != 3 or array.shape[2] != 3)) or 0 in array.shape:
        raise ImageError(
            f"an array of shape {array.shape} is not an image; give (H, W, 3) in RGB order{_shape_advice(array.shape)}."
        )
    if array.shape[0] * array.shape[1] > MAX_PIXELS:
        raise ImageError(f"an array of shape {array.shape} has more than {MAX_PIXELS:,} pixels; split it into parts.")
    if array.dtype != np.uint8 or options.value_range is not None:
        if array.dtype != np.uint16 and options.value_range is None:
            advice = "; for values from 0 to 1: (array * 255).round().astype('uint8')" * (array.dtype.kind == "f")
            raise ImageError(f"an array of {array.dtype} is not an image; give uint8 (H, W, 3) in RGB order{advice}.")
        array = choose_levels("the array", array.dtype, options, cells_of(array))(array)
    if array.ndim == 2:
        array = np.repeat(array[..., None], 3, axis=2)
    return cast(ImageArray, array)


def _shape_advice(shape: tuple[int, ...]) -> str:
    """How to make an image of an array in another common layout."""
    if 0 in shape:
        return ""
    if len(shape) == 3 and shape[2] == 4:
        return ", without the fourth channel: array[..., :3], or array[..., 2::-1] if it is BGRA"
    if len(shape) == 3 and shape[0] == 3:
        return ": array.transpose(1, 2, 0)"
    if len(shape) == 4:
        return "; of a batch, give a list: list(array)"
    return ""


def save_image(image: Image.Image, path: str | os.PathLike[str]) -> None:
    """Write an image in the format of the name's ending.

    Raises: ImageError for unsupported endings and sizes, FileError if the file cannot be written.
    """
    suffix = Path(path).suffix.lower()
    if suffix not in WRITTEN:
        raise ImageError(f"{path}: unsupported ending; use one of {', '.join(sorted(WRITTEN))}.")
    if suffix in (".jpg", ".jpeg") and max(image.size) > MAX_JPEG_SIDE:
        raise ImageError(f"{path}: a side of a JPEG has at most {MAX_JPEG_SIDE} pixels; write a PNG.")
    kind = WRITTEN[suffix]
    marks: dict[str, dict[str, Any]] = {"JPEG": {"comment": SOFTWARE}, "PNG": {"pnginfo": png_mark()}}
    _save(image, path, kind, quality=90, **marks.get(kind, {}))


def png_mark() -> PngImagePlugin.PngInfo:
    """The metadata by which `evitseg.system.authorship` recognises evitseg's own PNGs."""
    mark = PngImagePlugin.PngInfo()
    mark.add_text("Software", SOFTWARE)
    return mark


def _save(image: Image.Image, path: str | os.PathLike[str], kind: str, **options: Any) -> None:
    # Encode in memory first: on a full disk, Pillow's JPEG encoder drops the end of the file without an error.
    content = io.BytesIO()
    image.save(content, kind, **options)
    with replacing(path) as file:
        file.write(content.getbuffer())
