"""Batches of training crops; every crop is determined by the seed, the epoch and its number.

An interrupted run therefore sees the same crops again, whichever process loads them, without a saved random state.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from evitseg.data.lists import Pair
from evitseg.errors import EvitsegError, TrainError
from evitseg.image import ImageArray, Mask
from evitseg.labels import LabelSpace
from evitseg.raster.files import read_image
from evitseg.raster.masks import read_truth
from evitseg.system.parallel import interrupts_blocked, leave_interrupts_to_the_parent
from evitseg.train.augment import classmix, paste_rare, random_crop, vary_appearance
from evitseg.train.config import TrainConfig

Sample = tuple[Tensor, Tensor]
Key = tuple[int, int]
"""(epoch, number of the pair)."""


class Crops(Dataset[Sample]):
    """Random crops of images with their masks: (3, h, w) uint8 and (h, w) int16 or int32, by `Key`.

    Args:
        rare: classes that `augment.paste_prob` is about, as indices; see `rare_classes`.
    """

    def __init__(
        self, pairs: Sequence[Pair], labels: LabelSpace, config: TrainConfig, rare: Sequence[int] = ()
    ) -> None:
        self.pairs, self._labels, self._rare = pairs, labels, rare
        self._data, self._augment, self._seed = config.data, config.augment, config.seed

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, key: Key) -> Sample:
        mix, paste = self._augment.classmix_prob, self._augment.paste_prob
        rng = np.random.default_rng((self._seed, *key))
        image, mask = self._crop(key[1], rng)
        if mix and rng.random() < mix:
            image, mask = classmix(image, mask, *self._another(rng), self._labels.ignore_index, rng)
        if paste and rng.random() < paste:
            image, mask = paste_rare(image, mask, *self._another(rng), self._rare, rng)
        pixels = torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))
        return pixels, torch.from_numpy(mask.astype(np.int16 if self._labels.dtype is np.uint8 else np.int32))

    def _another(self, rng: np.random.Generator) -> tuple[ImageArray, Mask]:
        return self._crop(int(rng.integers(len(self.pairs))), rng)

    def _crop(self, number: int, rng: np.random.Generator) -> tuple[ImageArray, Mask]:
        pair, data = self.pairs[number], self._data
        image, mask = read_image(pair.image, pair.reading), read_truth(pair.mask, self._labels)
        image, mask = random_crop(image, mask, data.crop, data.size, self._augment, self._labels.ignore_index, rng)
        if rng.random() < 0.5:
            image, mask = image[:, ::-1], mask[:, ::-1]
        return vary_appearance(image, self._augment, rng), mask


def batch_keys(images: int, batch_size: int, seed: int, epoch: int) -> list[list[Key]]:
    """The batches of an epoch as keys of `Crops`: every image once, in an order given by seed and epoch.

    The last batch is filled up with images from the beginning of the order, so that all batches have the same size.
    """
    order = np.random.default_rng((seed, epoch)).permutation(images).tolist()
    steps = -(-images // batch_size)
    order = (order * (-(-steps * batch_size // images)))[: steps * batch_size]
    return [[(epoch, number) for number in order[at : at + batch_size]] for at in range(0, len(order), batch_size)]


class _ErrorsAsText(Dataset["Sample | str"]):
    """Crops, with the message of an error in place of a sample: a string survives pickling between processes."""

    def __init__(self, crops: Crops) -> None:
        self._crops = crops

    def __getitem__(self, key: Key) -> Sample | str:
        try:
            return self._crops[key]
        except EvitsegError as error:
            return str(error)


def _begin_worker(number: int) -> None:
    # PyTorch raises an error in the run's own process when a signal has killed a worker, before that process can say
    # what it has saved. SIGTERM is also how a worker is ended; it then ends as if nothing was wrong.
    leave_interrupts_to_the_parent("SIGINT", "SIGHUP")
    signal.signal(signal.SIGTERM, lambda number, frame: os._exit(0))


def _collated(samples: list[Sample | str]) -> Sample | str:
    for sample in samples:
        if isinstance(sample, str):
            return sample
    images, masks = zip(*samples, strict=True)
    return torch.stack(images), torch.stack(masks)


class Batches:
    """Loads batches in order, with worker processes that live as long as this object.

    Args:
        workers: number of processes; 0 loads in this process.
        pinned: copy batches to pinned memory, for a GPU.
    """

    def __init__(self, crops: Crops, workers: int, pinned: bool = False) -> None:
        self._keys: list[list[Key]] = []
        self._loader: DataLoader[Sample | str] = DataLoader(
            _ErrorsAsText(crops), batch_sampler=self._keys, num_workers=workers, collate_fn=_collated,
            persistent_workers=workers > 0, pin_memory=pinned, worker_init_fn=_begin_worker,
        )  # fmt: skip

    def read(self, keys: Sequence[list[Key]]) -> Iterator[Sample]:
        """Images (batch, 3, h, w) uint8 and masks (batch, h, w).

        Raises: TrainError for a file that cannot be read, or a worker that was killed.
        """
        self._keys[:] = keys
        try:
            with interrupts_blocked():
                batches = iter(self._loader)
            for batch in batches:
                if isinstance(batch, str):
                    raise unreadable(batch)
                yield batch
        except RuntimeError as error:
            if "worker" not in str(error):
                raise
            raise TrainError(
                "a process that loads images was killed, probably because memory ran out; "
                "continue with --resume and fewer --workers."
            ) from error


def unreadable(message: str) -> TrainError:
    """The error for an image or mask that became unreadable during the run."""
    return TrainError(f"{message} It was readable when the run started; restore it and continue with --resume.")
