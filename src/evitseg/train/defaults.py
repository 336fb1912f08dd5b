"""Defaults that follow from the number and size of the training images, and from the start.

With `n` training images of `h`×`w` pixels at the working size (medians over the images):

    data.size               the start's working size; the images' own size if the start has none
    batch_size              8; fewer for fewer images, so that an epoch has four steps, but at least 2
    data.crop               3/4 of each side, at most 512; the whole side up to 256. Rounded down to a multiple of 32
    augment.scale           0.5 to 2; the lower end rises so that the crop is never larger than the scaled image
    steps                   epochs · ⌈n / batch_size⌉
    optim.freeze_norm       true if the start knows all classes and there are fewer than 32 images (too few to estimate
                            statistics) or fewer than 50 steps (too few for the weights to follow new statistics).
                            Without a single step, statistics over 10 CamVid images lower the published start from 54
                            to 42 mIoU. False if a learning rate above 3e-5 is given: training then diverges with
                            frozen statistics. True with qat
    optim.learning_rate     3e-4 if the start knows all classes, 1e-3 if it knows none, interpolated on a logarithmic
                            scale between; times √(batch_size / 8) (arXiv:2205.10287); 30 times lower with freeze_norm
                            1e-4 · √(batch_size / 8) with qat
    optim.warmup_fraction   50 steps, but between 5 % and 30 % of all steps
    average.ema_decay       1 - 10 / steps, at most 0.998: an average over the last tenth of the steps
    distill.features        0.3 with qat if the start is a teacher, else 0

A given setting is never changed, and the others follow from its given value.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from evitseg.architecture import STRIDE
from evitseg.preprocess import Preprocess
from evitseg.train.config import TrainConfig

USUAL_BATCH = 8
LARGEST_CROP, CROP_FRACTION, WHOLE_UP_TO = 512, 0.75, 256
SCALE = (0.5, 2.0)
FEW_IMAGES, FEW_STEPS = 32, 50
KNOWN_HEAD_RATE, NEW_HEAD_RATE, FROZEN_NORM_DIVISOR, LARGEST_FROZEN_RATE = 3e-4, 1e-3, 30, 3e-5
QAT_RATE, QAT_FEATURES = 1e-4, 0.3


def resolve_defaults(
    config: TrainConfig, sizes: Sequence[tuple[int, int]], known: float = 0.0, short_side: int | None = None
) -> TrainConfig:
    """The settings with every None replaced.

    Args:
        sizes: (height, width) of every training image.
        known, short_side: as in `evitseg.train.initialize.Start`.
    """

    def choose(key: str, value: Any) -> None:
        nonlocal config
        if config.flat()[key] is None:
            config = config.updated({key: value})

    choose("data.size", short_side or 0)
    choose("batch_size", min(USUAL_BATCH, max(2, 2 ** int(math.log2(max(1, len(sizes) / 4))))))
    height, width = working_size(config.data.size, sizes)
    choose("data.crop", (_crop_side(height), _crop_side(width)))
    covering = max(config.data.crop[0] / height, config.data.crop[1] / width)
    choose("augment.scale", (min(1.0, max(SCALE[0], covering)), SCALE[1]))
    steps = config.epochs * -(-len(sizes) // config.batch_size)
    choose("optim.warmup_fraction", round(min(0.3, max(0.05, 50 / steps)), 4))
    choose("average.ema_decay", round(min(0.998, max(0.0, 1 - 10 / steps)), 4))
    few = len(sizes) < FEW_IMAGES or steps < FEW_STEPS
    slow = config.optim.learning_rate is None or config.optim.learning_rate <= LARGEST_FROZEN_RATE
    choose("optim.freeze_norm", config.qat or (known == 1 and few and slow))
    choose("distill.features", QAT_FEATURES if config.qat and config.start in config.distill.teachers else 0.0)
    choose("optim.learning_rate", _rate(config.batch_size, config.optim.freeze_norm, known, config.qat))
    return config


def _crop_side(side: float) -> int:
    wanted = min(LARGEST_CROP, max(CROP_FRACTION * side, min(side, WHOLE_UP_TO)))
    return max(STRIDE, int(wanted) // STRIDE * STRIDE)


def _rate(batch_size: int, freeze_norm: bool, known: float, qat: bool) -> float:
    rate = NEW_HEAD_RATE ** (1 - known) * KNOWN_HEAD_RATE**known / (FROZEN_NORM_DIVISOR if freeze_norm else 1)
    return float(f"{(QAT_RATE if qat else rate) * math.sqrt(batch_size / USUAL_BATCH):.2g}")


def working_size(short_side: int, sizes: Sequence[tuple[int, int]]) -> tuple[float, float]:
    """(height, width) of the typical image, the median of each, scaled to a short side; 0 does not scale."""
    height, width = (float(np.median([size[axis] for size in sizes])) for axis in (0, 1))
    factor = 1.0
    if short_side:
        factor = min(short_side / min(height, width), Preprocess().max_enlarge)
    return height * factor, width * factor
