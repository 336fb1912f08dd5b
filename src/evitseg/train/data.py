"""From pairs on disk to batches: every sample is decided by the seed, the epoch and its number alone.

So a run that was interrupted sees the same pieces again, whichever process reads them, and no state of a random
generator has to be saved.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from evitseg.dataset import Pair, read_truth
from evitseg.image import read_picture
from evitseg.labels import LabelSpace
from evitseg.train.config import TrainConfig

Sample = tuple[Tensor, Tensor]


class Crops(Dataset[Sample]):
    """Random pieces of pictures with their masks: (3, h, w) uint8 and (h, w) int64.

    A key is (epoch, number of the pair).
    """

    def __init__(self, pairs: Sequence[Pair], labels: LabelSpace, config: TrainConfig) -> None:
        self._pairs, self._labels, self._config = pairs, labels, config

    def __len__(self) -> int:
        return len(self._pairs)

    def __getitem__(self, key: tuple[int, int]) -> Sample:
        epoch, number = key
        pair = self._pairs[number]
        rng = np.random.default_rng((self._config.seed, epoch, number))
        picture, truth = read_picture(pair.picture), read_truth(pair.mask, self._labels)
        picture, truth = self._piece(picture, truth, rng)
        if rng.random() < 0.5:
            picture, truth = picture[:, ::-1], truth[:, ::-1]
        image = torch.from_numpy(np.ascontiguousarray(picture.transpose(2, 0, 1)))
        return image, torch.from_numpy(truth.astype(np.int64))

    def _piece(
        self, picture: NDArray[np.uint8], truth: NDArray[np.integer], rng: np.random.Generator
    ) -> tuple[NDArray[np.uint8], NDArray[np.integer]]:
        """A piece of the crop's size of the randomly scaled picture; beyond its border black, and ignored."""
        config = self._config
        height, width = config.crop
        factor = float(np.exp(rng.uniform(*np.log(config.scale))))
        if config.size is not None:
            factor *= config.size / min(truth.shape)
        full = [max(1, round(side * factor)) for side in truth.shape]
        # Where the piece lies in the scaled picture; only that part is resampled.
        top, left = (
            int(rng.integers(0, max(0, side - part) + 1)) for side, part in zip(full, (height, width), strict=True)
        )
        bottom, right = min(top + height, full[0]), min(left + width, full[1])
        box = (left / factor, top / factor, min(right / factor, truth.shape[1]), min(bottom / factor, truth.shape[0]))
        size = (right - left, bottom - top)
        piece = np.zeros((height, width, 3), np.uint8)
        scaled = Image.fromarray(picture).resize(size, Image.Resampling.BILINEAR, box)
        piece[: size[1], : size[0]] = np.asarray(scaled)
        mask = np.full((height, width), self._labels.ignore_index, truth.dtype)
        # Nearest, not bilinear: a class index has no halfway value.
        mask[: size[1], : size[0]] = np.asarray(Image.fromarray(truth).resize(size, Image.Resampling.NEAREST, box))
        return piece, mask


def batches(config: TrainConfig, pictures: int, epoch: int) -> list[list[tuple[int, int]]]:
    """An epoch's batches as keys of `Crops`: every picture once, in an order that seed and epoch decide.

    The last batch is filled up with pictures from the order's beginning, so that all have the same size.
    """
    order = np.random.default_rng((config.seed, epoch)).permutation(pictures).tolist()
    steps = -(-pictures // config.batch)
    order = (order * (-(-steps * config.batch // pictures)))[: steps * config.batch]
    return [[(epoch, number) for number in order[at : at + config.batch]] for at in range(0, len(order), config.batch)]


def loader(crops: Crops, keys: Sequence[list[tuple[int, int]]], config: TrainConfig) -> DataLoader[Sample]:
    """Reads the batches in their order."""
    return DataLoader(crops, batch_sampler=keys, num_workers=config.workers)


def jittered(images: Tensor, config: TrainConfig, generator: torch.Generator) -> Tensor:
    """Pixels from 0 to 1 with brightness, contrast and saturation changed, each picture its own way.

    Args:
        images: (batch, 3, h, w) uint8.
    """
    pixels = images.float() / 255
    if not config.jitter:
        return pixels

    def factors() -> Tensor:
        drawn = torch.rand(len(images), 1, 1, 1, generator=generator)
        return (1 + config.jitter * (2 * drawn - 1)).to(pixels.device)

    pixels = pixels * factors()
    mean = pixels.mean(dim=(1, 2, 3), keepdim=True)
    pixels = mean + (pixels - mean) * factors()
    grey = (pixels * torch.tensor([0.299, 0.587, 0.114], device=pixels.device).view(1, 3, 1, 1)).sum(1, keepdim=True)
    return (grey + (pixels - grey) * factors()).clamp(0, 1)
