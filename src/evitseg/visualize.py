"""Images for people: overlays, legends, error maps and contact sheets."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from evitseg.image import ImageArray, Mask
from evitseg.labels import LabelSpace

OPACITY = 0.55
"""Of the classes' colours on an image."""


def overlay(image: ImageArray, mask: Mask, labels: LabelSpace, opacity: float = OPACITY) -> Image.Image:
    """The image with every class in its colour, and below it a legend of the classes that occur, by area."""
    return with_legend(tinted(image, mask, labels, opacity), class_fractions(mask, labels), labels)


def tinted(image: ImageArray, mask: Mask, labels: LabelSpace, opacity: float = OPACITY) -> Image.Image:
    """The image with every class in its colour; white where a mask has `ignore_index`."""
    if mask.dtype == np.uint8 and labels.dtype == np.uint8:
        indexed = Image.fromarray(mask)
        indexed.putpalette(labels.palette.tobytes())
        drawn = indexed.convert("RGB")  # several times as fast as numpy's indexing
    else:
        colors = np.full((labels.ignore_index + 1, 3), 255, np.uint8)
        colors[: len(labels.classes)] = [c.color for c in labels.classes]
        drawn = Image.fromarray(colors[mask])
    return Image.blend(Image.fromarray(image), drawn, opacity)


def class_fractions(mask: Mask, labels: LabelSpace) -> dict[str, float]:
    """Share of the pixels of every class that occurs, largest first."""
    if mask.dtype == np.uint8:
        counts = np.array(Image.fromarray(mask).histogram())  # several times as fast as bincount
    else:
        counts = np.bincount(mask.ravel(), minlength=len(labels.classes))
    counts = counts[: len(labels.classes)]
    order = np.argsort(-counts, kind="stable")
    return {labels.names[i]: float(counts[i] / mask.size) for i in order if counts[i]}


def with_legend(image: Image.Image, fractions: dict[str, float], labels: LabelSpace) -> Image.Image:
    """The image with classes, their colours and shares below it."""
    size = max(12, min(image.size) // 36)
    font = ImageFont.load_default(size)
    gap, swatch = size // 2, size
    colors = {c.name: c.color for c in labels.classes}
    entries = [(name, f"{name} {_percent(share)}") for name, share in fractions.items()]
    widths = [gap + swatch + gap // 2 + int(font.getlength(text)) + gap for _, text in entries]

    rows: list[list[int]] = [[]]
    for i, width in enumerate(widths):
        if rows[-1] and sum(widths[j] for j in rows[-1]) + width > image.width:
            rows.append([])
        rows[-1].append(i)
    line = size + gap
    # A thumbnail narrower than one entry gets a canvas wide enough to read it.
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


def _percent(share: float) -> str:
    return f"{share:.0%}" if share >= 0.01 else "<1%"
