"""Draw images for people: overlays, legends, error maps and sheets of tiles."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from functools import cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from evitseg.image import ImageArray, Mask
from evitseg.labels import LabelSpace
from evitseg.system.core_library import open_library

OPACITY = 0.55
"""Opacity of the class colours on an image."""


def overlay(image: ImageArray, mask: Mask, labels: LabelSpace, opacity: float = OPACITY) -> Image.Image:
    """The image tinted with its classes, above a legend of those that occur, the largest first."""
    return with_legend(tinted(image, mask, labels, opacity), class_fractions(mask, labels), labels)


def tinted(image: ImageArray, mask: Mask, labels: LabelSpace, opacity: float = OPACITY) -> Image.Image:
    """The image with each class in its colour; white where the mask has `ignore_index`."""
    return Image.blend(Image.fromarray(image), colored(mask, labels), opacity)


def colored(mask: Mask, labels: LabelSpace) -> Image.Image:
    """The mask in its classes' colours; white where it has `ignore_index`."""
    if mask.dtype == np.uint8 and labels.dtype == np.uint8:
        # Pillow's palette, because numpy's indexing is several times slower.
        indexed = Image.fromarray(mask)
        indexed.putpalette(labels.palette.tobytes())
        return indexed.convert("RGB")
    colors = np.full((labels.ignore_index + 1, 3), 255, np.uint8)
    colors[: len(labels.classes)] = [c.color for c in labels.classes]
    return Image.fromarray(colors[mask])


def class_fractions(mask: Mask, labels: LabelSpace) -> dict[str, float]:
    """Fraction of the pixels per class, for classes that occur, the largest first."""
    return fractions_of(class_counts(mask, len(labels.classes)), mask.size, labels)


def class_counts(mask: Mask, length: int) -> NDArray[np.int64]:
    """(length,) number of pixels per class index."""
    if mask.dtype != np.uint8:
        return np.bincount(mask.ravel(), minlength=length)[:length]
    mask, counts = np.ascontiguousarray(mask), np.zeros(256, np.int64)
    _core().evs_count_classes(mask.ctypes.data, mask.size, counts.ctypes.data)
    return counts[:length]


@cache
def _core() -> ctypes.CDLL:
    core = open_library()
    core.evs_count_classes.restype = None
    core.evs_count_classes.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_void_p]
    return core


def fractions_of(counts: NDArray[np.int64], pixels: int, labels: LabelSpace) -> dict[str, float]:
    """Fraction of the pixels per class, for classes that occur, the largest first."""
    order = np.argsort(-counts, kind="stable")
    return {labels.names[i]: float(counts[i] / pixels) for i in order if counts[i]}


def with_legend(image: Image.Image, fractions: dict[str, float], labels: LabelSpace) -> Image.Image:
    """The image above a legend of class names, colours and fractions."""
    size = max(12, min(image.size) // 36)
    font = ImageFont.load_default(size)
    gap, swatch = size // 2, size
    colors = {c.name: c.color for c in labels.classes}
    entries = [(name, f"{name} {_percent(fraction)}") for name, fraction in fractions.items()]
    widths = [gap + swatch + gap // 2 + int(font.getlength(text)) + gap for _, text in entries]

    rows: list[list[int]] = [[]]
    for i, width in enumerate(widths):
        if rows[-1] and sum(widths[j] for j in rows[-1]) + width > image.width:
            rows.append([])
        rows[-1].append(i)
    line = size + gap
    # A thumbnail may be narrower than one entry of its legend.
    canvas = Image.new(
        "RGB", (max(image.width, max(widths, default=0)), image.height + line * len(rows) + gap), (255, 255, 255)
    )
    canvas.paste(image)
    draw = ImageDraw.Draw(canvas)
    for r, row in enumerate(rows):
        x, y = 0, image.height + gap + r * line
        for i in row:
            name, text = entries[i]
            draw.rectangle((x + gap, y, x + gap + swatch, y + swatch), fill=colors[name], outline=(0, 0, 0))
            draw.text((x + gap + swatch + gap // 2, y + swatch // 2), text, (0, 0, 0), font, anchor="lm")
            x += widths[i]
    return canvas


def _percent(fraction: float) -> str:
    return f"{fraction:.0%}" if fraction >= 0.01 else "<1%"


def error_map(image: ImageArray, truth: Mask, prediction: Mask, labels: LabelSpace) -> Image.Image:
    """The image in grey, with wrong pixels in red and ignored pixels in light grey."""
    return _marked(image, truth == labels.ignore_index, [(truth != prediction, RED)])


def difference_map(image: ImageArray, truth: Mask, first: Mask, second: Mask, labels: LabelSpace) -> Image.Image:
    """The image in grey, and in colour where two predictions differ.

    Green where only the second is right, red where only the first is, yellow where both are wrong. Ignored pixels are
    light grey.
    """
    differ = first != second
    better, worse = differ & (second == truth), differ & (first == truth)
    return _marked(image, truth == labels.ignore_index, [(differ, YELLOW), (better, GREEN), (worse, RED)])


RED, GREEN, YELLOW = (230, 30, 20), (30, 170, 60), (240, 190, 0)


def _marked(
    image: ImageArray, ignored: NDArray[np.bool_], marks: Sequence[tuple[NDArray[np.bool_], tuple[int, int, int]]]
) -> Image.Image:
    """The image in grey, with colours where the marks are; later ones cover earlier ones."""
    grey = np.asarray(Image.fromarray(image).convert("L").convert("RGB")).astype(np.float32)
    drawn: NDArray[np.float32] = grey.copy()
    for where, color in marks:
        drawn[where] = 0.35 * grey[where] + 0.65 * np.array(color)
    drawn[ignored] = 0.3 * grey[ignored] + 0.7 * 210
    return Image.fromarray(drawn.astype(np.uint8))


def tile_sheet(rows: Sequence[Sequence[Image.Image]]) -> Image.Image:
    """Rows of images of one width as one image; white where a row is short or a tile is low."""
    width = rows[0][0].width
    heights = [max(tile.height for tile in row) for row in rows]
    sheet = Image.new("RGB", (width * max(map(len, rows)), sum(heights)), (255, 255, 255))
    top = 0
    for row, height in zip(rows, heights, strict=True):
        for column, tile in enumerate(row):
            sheet.paste(tile, (column * width, top))
        top += height
    return sheet
