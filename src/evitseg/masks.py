"""Mask files: what numbers they hold, and how evitseg writes its own."""

from __future__ import annotations

import io
import os
import zlib
from pathlib import Path
from typing import Literal, TypeAlias

import numpy as np
from PIL import Image

from evitseg.errors import PictureError
from evitseg.files import replacing
from evitseg.image import Mask, _open, png_mark
from evitseg.labels import LabelSpace

MaskFormat: TypeAlias = Literal["palette", "gray"]
"""How a mask of at most 255 classes is written: class indices with the classes' colours as a palette, or as plain grey
levels for programs that turn a palette into colours. Masks of more classes are 16-bit grey levels in both."""


def read_mask(path: str | os.PathLike[str]) -> Mask:
    """(H, W) integers as a mask file stores them: grey levels, 16-bit levels or palette indices, never colours.

    Raises: PictureError.
    """
    mask = read_raw_mask(path)
    if mask.ndim != 2:
        raise PictureError(f"{path}: a mask holds one number a pixel, but this picture has colours.")
    return mask


def read_raw_mask(path: str | os.PathLike[str]) -> Mask:
    """(H, W) integers as a mask file stores them, or (H, W, 3) uint8 where it holds colours.

    Raises: PictureError.
    """
    with _open(Path(path)) as image:
        if image.mode == "1":
            return np.asarray(image).astype(np.uint8)
        if image.mode in ("RGB", "RGBA"):
            return np.array(image)[..., :3]
        if image.mode not in ("L", "P", "I", "I;16", "I;16B"):
            raise PictureError(f"{path}: a mask holds numbers or RGB colours, but this picture has mode {image.mode}.")
        return np.array(image)


def save_mask(
    mask: Mask, path: str | os.PathLike[str], labels: LabelSpace, mask_format: MaskFormat = "palette"
) -> None:
    """Write class indices as a PNG of 8 bits, or of 16 bits for more than 255 classes.

    Raises: PictureError for a name that does not end in .png, FileError for a place that cannot be written.
    """
    if Path(path).suffix.lower() != ".png":
        raise PictureError(f"{path}: a mask is written as PNG, which keeps class indices exactly; end it in .png.")
    with replacing(path) as file:
        file.write(mask_png(mask, labels, mask_format))


def mask_png(mask: Mask, labels: LabelSpace, mask_format: MaskFormat = "palette") -> bytes:
    """What `save_mask` writes."""
    image = Image.fromarray(mask)
    if mask.dtype == np.uint8 and mask_format == "palette":
        image.putpalette(labels.palette.tobytes())
    content = io.BytesIO()
    # Masks are flat: run lengths make smaller files than the default search for repetitions, in half the time.
    image.save(content, "PNG", compress_level=1, compress_type=zlib.Z_RLE, pnginfo=png_mark())
    return content.getvalue()
