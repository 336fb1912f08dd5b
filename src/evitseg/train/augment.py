"""Random changes to images and masks, made with Pillow in the processes that load them."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from evitseg.errors import ConfigError
from evitseg.image import ImageArray, Mask
from evitseg.preprocess import Preprocess
from evitseg.train.config import AugmentConfig

LUMA = (0.299, 0.587, 0.114)
JPEG_QUALITY = (20, 80)
BLUR_PX = (0.3, 2.0)
ROTATED = 0.5
"""Fraction of the crops that are rotated at all: rotation resamples, and the others keep their pixels."""


def random_crop(
    image: ImageArray,
    mask: Mask,
    crop: tuple[int, int],
    short_side: int,
    augment: AugmentConfig,
    ignore_index: int,
    rng: np.random.Generator,
) -> tuple[ImageArray, Mask]:
    """A crop of the randomly scaled and rotated image and mask; outside the image it is black and ignored.

    Args:
        crop: (height, width) in pixels.
        short_side: that images are scaled to first; 0 keeps their size.
    """
    height, width = crop
    factor = float(np.exp(rng.uniform(*np.log(augment.scale))))
    if short_side:
        # The same limit as in `Preprocess`, which prepares the images when the trained model is used.
        factor *= min(short_side / min(mask.shape), Preprocess().max_enlarge)
    full = [max(1, round(side * factor)) for side in mask.shape]
    # The crop's position in the scaled image; only that part is resampled.
    top, left = (
        int(rng.integers(0, max(0, side - part) + 1)) for side, part in zip(full, (height, width), strict=True)
    )
    pil_image, pil_mask = Image.fromarray(image), Image.fromarray(mask)
    if augment.rotate and rng.random() < ROTATED:
        if factor < 1:  # Pillow's resize averages the pixels it drops, its transform does not
            pil_image = pil_image.resize((full[1], full[0]), Image.Resampling.BILINEAR)
            pil_mask = pil_mask.resize((full[1], full[0]), Image.Resampling.NEAREST)
            factor = 1.0
        angle = math.radians(rng.uniform(-augment.rotate, augment.rotate))
        cos, sin = math.cos(angle) / factor, math.sin(angle) / factor
        middle = (left + min(width, full[1]) / 2) / factor, (top + min(height, full[0]) / 2) / factor
        # Maps a pixel of the crop to one of the image, centre to centre.
        matrix = (
            cos, -sin, middle[0] - cos * width / 2 + sin * height / 2,
            sin, cos, middle[1] - sin * width / 2 - cos * height / 2,
        )  # fmt: skip
        affine = Image.Transform.AFFINE
        rotated = pil_image.transform((width, height), affine, matrix, Image.Resampling.BILINEAR)
        # Pillow transforms masks of 32 bits, but not of 16.
        wide = Image.fromarray(np.asarray(pil_mask).astype(np.int32))
        rotated_mask = wide.transform((width, height), affine, matrix, Image.Resampling.NEAREST, fillcolor=ignore_index)
        return np.asarray(rotated), np.asarray(rotated_mask).astype(mask.dtype)
    bottom, right = min(top + height, full[0]), min(left + width, full[1])
    box = (left / factor, top / factor, min(right / factor, mask.shape[1]), min(bottom / factor, mask.shape[0]))
    size = (right - left, bottom - top)
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[: size[1], : size[0]] = np.asarray(pil_image.resize(size, Image.Resampling.BILINEAR, box))
    indices = np.full((height, width), ignore_index, mask.dtype)
    # Nearest, not bilinear: a class index has no halfway value.
    indices[: size[1], : size[0]] = np.asarray(pil_mask.resize(size, Image.Resampling.NEAREST, box))
    return pixels, indices


def vary_appearance(image: ImageArray, augment: AugmentConfig, rng: np.random.Generator) -> ImageArray:
    """The image with other brightness, contrast and saturation, blurred, or with JPEG artefacts."""
    pil_image = Image.fromarray(np.ascontiguousarray(image))
    if augment.color_jitter:
        brightness, contrast, saturation = 1 + augment.color_jitter * rng.uniform(-1, 1, 3)
        # All three are one matrix: pixel -> b·(c·(s·pixel + (1 - s)·luma) + (1 - c)·mean).
        colors = saturation * np.eye(3) + (1 - saturation) * np.tile(LUMA, (3, 1))
        mean = float(image[::4, ::4].mean())
        matrix = np.hstack([brightness * contrast * colors, np.full((3, 1), brightness * (1 - contrast) * mean)])
        pil_image = pil_image.convert("RGB", tuple(matrix.ravel().tolist()))
    if augment.blur_prob and rng.random() < augment.blur_prob:
        pil_image = pil_image.filter(ImageFilter.GaussianBlur(float(np.exp(rng.uniform(*np.log(BLUR_PX))))))
    if augment.jpeg_prob and rng.random() < augment.jpeg_prob:
        file = io.BytesIO()
        pil_image.save(file, "JPEG", quality=int(rng.integers(*JPEG_QUALITY)))
        pil_image = Image.open(file)
    return np.asarray(pil_image)


def classmix(
    image: ImageArray, mask: Mask, other: ImageArray, other_mask: Mask, ignore_index: int, rng: np.random.Generator
) -> tuple[ImageArray, Mask]:
    """The crop with half of the other crop's classes pasted in (arXiv:2007.07936)."""
    classes = np.setdiff1d(np.unique(other_mask), [ignore_index])
    return _pasted(image, mask, other, other_mask, rng.permutation(classes)[: (len(classes) + 1) // 2])


def rare_classes(frequencies: NDArray[np.float64], augment: AugmentConfig) -> list[int]:
    """Indices of the classes that `paste_rare` pastes.

    Args:
        frequencies: fraction of the labelled pixels that belong to each class.

    Raises: ConfigError if rare classes are to be pasted, but no class is rare.
    """
    rare = [int(index) for index in np.flatnonzero((frequencies > 0) & (frequencies < augment.rare_below))]
    if augment.paste_prob and not rare:
        rarest = min(frequencies[frequencies > 0], default=0.0)
        raise ConfigError(
            f"augment.paste_prob is set, but every class has at least augment.rare_below={augment.rare_below:g} of the "
            f"pixels; the rarest has {rarest:.3g}, so set augment.rare_below above that."
        )
    return rare


def paste_rare(
    image: ImageArray, mask: Mask, other: ImageArray, other_mask: Mask, rare: Sequence[int], rng: np.random.Generator
) -> tuple[ImageArray, Mask]:
    """The crop with some of the other crop's rare classes pasted in, each with probability 0.5.

    Each is drawn alone, so that two that are always seen together, such as bicycles and riders, are also seen apart.
    """
    drawn = rng.random(len(rare)) < 0.5
    return _pasted(image, mask, other, other_mask, np.asarray(rare)[drawn])


def _pasted(
    image: ImageArray, mask: Mask, other: ImageArray, other_mask: Mask, classes: NDArray[np.integer]
) -> tuple[ImageArray, Mask]:
    pasted = np.isin(other_mask, classes)
    return np.where(pasted[..., None], other, image), np.where(pasted, other_mask, mask)
