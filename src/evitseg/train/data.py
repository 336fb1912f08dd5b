"""From pairs on disk to batches: every sample is decided by the seed, the epoch and its number alone.

So a run that was interrupted sees the same pieces again, whichever process reads them, and no state of a random
generator has to be saved. Everything that changes an image is done by Pillow in the processes that read them.
"""

from __future__ import annotations

import io
import math
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from PIL import Image, ImageFilter
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from evitseg.data.lists import Pair
from evitseg.errors import EvitsegError, TrainError
from evitseg.image import ImageArray, Mask
from evitseg.labels import LabelSpace
from evitseg.preprocess import Preprocess
from evitseg.raster.files import read_image
from evitseg.raster.masks import read_truth
from evitseg.train.config import TrainConfig

Sample = tuple[Tensor, Tensor]
Key = tuple[int, int]
"""(epoch, number of the pair)."""

LUMA = (0.299, 0.587, 0.114)
JPEG_QUALITY = (20, 80)
BLUR_PX = (0.3, 2.0)
ROTATED = 0.5
"""Share of the pieces that are turned at all: the others keep the pixels they have."""


class Crops(Dataset[Sample]):
    """Random pieces of images with their masks: (3, h, w) uint8 and (h, w) int16 or int32, by `Key`."""

    def __init__(self, pairs: Sequence[Pair], labels: LabelSpace, config: TrainConfig) -> None:
        self.pairs, self._labels, self._config = pairs, labels, config

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, key: Key) -> Sample:
        config = self._config
        rng = np.random.default_rng((config.seed, *key))
        pixels, truth = self._piece(key[1], rng)
        if config.classmix and rng.random() < config.classmix:
            other, its_truth = self._piece(int(rng.integers(len(self.pairs))), rng)
            pixels, truth = classmix(pixels, truth, other, its_truth, self._labels.ignore_index, rng)
        image = torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1)))
        return image, torch.from_numpy(truth.astype(np.int16 if self._labels.dtype is np.uint8 else np.int32))

    def _piece(self, number: int, rng: np.random.Generator) -> tuple[ImageArray, Mask]:
        pair, config = self.pairs[number], self._config
        image, truth = read_image(pair.image, pair.reading), read_truth(pair.mask, self._labels)
        image, truth = cropped(image, truth, config, self._labels.ignore_index, rng)
        if rng.random() < 0.5:
            image, truth = image[:, ::-1], truth[:, ::-1]
        return retouched(image, config, rng), truth


def cropped(
    pixels: ImageArray, truth: Mask, config: TrainConfig, ignore_index: int, rng: np.random.Generator
) -> tuple[ImageArray, Mask]:
    """A piece of the crop's size of the randomly scaled and turned pixels; beyond its border black, and ignored."""
    height, width = config.crop
    factor = float(np.exp(rng.uniform(*np.log(config.scale))))
    if config.size:
        # As `Preprocess` does when the result is used, which does not enlarge without limit.
        factor *= min(config.size / min(truth.shape), Preprocess().max_enlarge)
    full = [max(1, round(side * factor)) for side in truth.shape]
    # Where the piece lies in the scaled pixels; only that part is resampled.
    top, left = (
        int(rng.integers(0, max(0, side - part) + 1)) for side, part in zip(full, (height, width), strict=True)
    )
    image, mask = Image.fromarray(pixels), Image.fromarray(truth)
    if config.rotate and rng.random() < ROTATED:
        if factor < 1:  # Pillow's transform does not average what it thins out, its resize does
            image = image.resize((full[1], full[0]), Image.Resampling.BILINEAR)
            mask = mask.resize((full[1], full[0]), Image.Resampling.NEAREST)
            factor = 1.0
        angle = math.radians(rng.uniform(-config.rotate, config.rotate))
        cos, sin = math.cos(angle) / factor, math.sin(angle) / factor
        middle = (left + min(width, full[1]) / 2) / factor, (top + min(height, full[0]) / 2) / factor
        # From a pixel of the piece to one of the pixels, about their middles.
        matrix = (
            cos, -sin, middle[0] - cos * width / 2 + sin * height / 2,
            sin, cos, middle[1] - sin * width / 2 - cos * height / 2,
        )  # fmt: skip
        affine = Image.Transform.AFFINE
        turned = image.transform((width, height), affine, matrix, Image.Resampling.BILINEAR)
        # Pillow turns masks of 32 bits, not of 16.
        wide = Image.fromarray(np.asarray(mask).astype(np.int32))
        its_mask = wide.transform((width, height), affine, matrix, Image.Resampling.NEAREST, fillcolor=ignore_index)
        return np.asarray(turned), np.asarray(its_mask).astype(truth.dtype)
    bottom, right = min(top + height, full[0]), min(left + width, full[1])
    box = (left / factor, top / factor, min(right / factor, truth.shape[1]), min(bottom / factor, truth.shape[0]))
    size = (right - left, bottom - top)
    piece = np.zeros((height, width, 3), np.uint8)
    piece[: size[1], : size[0]] = np.asarray(image.resize(size, Image.Resampling.BILINEAR, box))
    its_truth = np.full((height, width), ignore_index, truth.dtype)
    # Nearest, not bilinear: a class index has no halfway value.
    its_truth[: size[1], : size[0]] = np.asarray(mask.resize(size, Image.Resampling.NEAREST, box))
    return piece, its_truth


def retouched(pixels: ImageArray, config: TrainConfig, rng: np.random.Generator) -> ImageArray:
    """The same view by another camera: other brightness, contrast and saturation, blurred, or a poor JPEG."""
    image = Image.fromarray(np.ascontiguousarray(pixels))
    if config.jitter:
        brightness, contrast, saturation = 1 + config.jitter * rng.uniform(-1, 1, 3)
        # All three are one matrix: pixel -> b·(c·(s·pixel + (1 - s)·luma) + (1 - c)·mean).
        colors = saturation * np.eye(3) + (1 - saturation) * np.tile(LUMA, (3, 1))
        mean = float(pixels[::4, ::4].mean())
        matrix = np.hstack([brightness * contrast * colors, np.full((3, 1), brightness * (1 - contrast) * mean)])
        image = image.convert("RGB", tuple(matrix.ravel().tolist()))
    if config.blur and rng.random() < config.blur:
        image = image.filter(ImageFilter.GaussianBlur(float(np.exp(rng.uniform(*np.log(BLUR_PX))))))
    if config.jpeg and rng.random() < config.jpeg:
        file = io.BytesIO()
        image.save(file, "JPEG", quality=int(rng.integers(*JPEG_QUALITY)))
        image = Image.open(file)
    return np.asarray(image)


def classmix(
    image: ImageArray, truth: Mask, other: ImageArray, its_truth: Mask, ignore_index: int, rng: np.random.Generator
) -> tuple[ImageArray, Mask]:
    """The piece with half of the other's classes pasted on it (arXiv:2007.07936)."""
    classes = np.setdiff1d(np.unique(its_truth), [ignore_index])
    chosen = rng.permutation(classes)[: (len(classes) + 1) // 2]
    pasted = np.isin(its_truth, chosen)
    return np.where(pasted[..., None], other, image), np.where(pasted, its_truth, truth)


def batches(config: TrainConfig, images: int, epoch: int) -> list[list[Key]]:
    """An epoch's batches as keys of `Crops`: every image once, in an order that seed and epoch decide.

    The last batch is filled up with images from the order's beginning, so that all have the same size.
    """
    order = np.random.default_rng((config.seed, epoch)).permutation(images).tolist()
    steps = -(-images // config.batch)
    order = (order * (-(-steps * config.batch // images)))[: steps * config.batch]
    return [[(epoch, number) for number in order[at : at + config.batch]] for at in range(0, len(order), config.batch)]


class _Told(Dataset["Sample | str"]):
    """In the place of a sample that cannot be read, the sentence that says so: it crosses processes unharmed."""

    def __init__(self, crops: Crops) -> None:
        self._crops = crops

    def __getitem__(self, key: Key) -> Sample | str:
        try:
            return self._crops[key]
        except EvitsegError as error:
            return str(error)


def _collated(samples: list[Sample | str]) -> Sample | str:
    for sample in samples:
        if isinstance(sample, str):
            return sample
    images, truths = zip(*samples, strict=True)
    return torch.stack(images), torch.stack(truths)


class Batches:
    """Reads batches in their order, by processes that live as long as this does.

    Args:
        crops: what they are made of.
        config: how many processes.
    """

    def __init__(self, crops: Crops, config: TrainConfig, pinned: bool = False) -> None:
        self._keys: list[list[Key]] = []
        self._loader: DataLoader[Sample | str] = DataLoader(
            _Told(crops), batch_sampler=self._keys, num_workers=config.workers, collate_fn=_collated,
            persistent_workers=config.workers > 0, pin_memory=pinned,
        )  # fmt: skip

    def read(self, keys: Sequence[list[Key]]) -> Iterator[Sample]:
        """Images (batch, 3, h, w) uint8 and truth (batch, h, w). Raises: TrainError for what cannot be read."""
        self._keys[:] = keys
        try:
            for batch in self._loader:
                if isinstance(batch, str):
                    raise TrainError(f"{batch} It was readable when the run began; mend it, and go on with --resume.")
                yield batch
        except RuntimeError as error:
            if "worker" not in str(error):
                raise
            raise TrainError(
                "a process that reads images was ended from outside, perhaps for want of memory; "
                "go on with --resume, with fewer --workers."
            ) from error
