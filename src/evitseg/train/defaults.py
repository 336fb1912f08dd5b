"""What a run does where its settings do not say: from the number and size of the images, and from the start.

With `n` images to train on, of `h`×`w` pixels at the working size (the median of each side):

    size           the start's; the images' own where it has none
    batch          8; fewer for fewer images, so that an epoch has four steps, but at least 2
    crop           each side 3/4 of the image's, but 512 at most, and the whole side up to 256; in multiples of 32
    scale          0.5 to 2, but never so small that the crop is larger than the scaled image
    steps          epochs · ⌈n / batch⌉
    freeze_norm    if the start knows all classes, and there are fewer than 32 images, too few to estimate statistics
                   over, or fewer than 50 steps, too few for the weights to follow them. Over 10 images of CamVid new
                   statistics alone, without a step, lower the published start from 54 to 42 mIoU. Not at a given
                   rate above 3e-5, with which a run of frozen statistics diverges.
    learning_rate  3e-4 if the start knows all classes, 1e-3 if it knows none, between them on a logarithmic scale;
                   times √(batch / 8) (arXiv:2205.10287); 30 times lower with freeze_norm
    warm_up        50 steps, but 5 % of the steps at least and 30 % at most
    ema            averages over the last tenth of the steps: 1 - 10 / steps, 0.998 at most

A setting that is given is never changed, and what follows from it follows from the given value.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from evitseg.architecture import STRIDE
from evitseg.preprocess import Preprocess
from evitseg.train.config import TrainConfig

USUAL_BATCH = 8
LARGEST_CROP, CROP_FRACTION, WHOLE_UP_TO = 512, 0.75, 256
SCALE = (0.5, 2.0)
FEW_IMAGES, FEW_STEPS = 32, 50
KNOWN_HEAD_RATE, NEW_HEAD_RATE, FROZEN_NORM_DIVISOR, LARGEST_FROZEN_RATE = 3e-4, 1e-3, 30, 3e-5


def settled(
    config: TrainConfig, sizes: Sequence[tuple[int, int]], known: float = 0.0, short_side: int | None = None
) -> TrainConfig:
    """The settings without a None.

    Args:
        sizes: (height, width) of every image that is trained on.
        known, short_side: what `evitseg.train.network.Start` says about the start.
    """
    if config.size is None:
        config = replace(config, size=short_side or 0)
    if config.batch is None:
        config = replace(config, batch=min(USUAL_BATCH, max(2, 2 ** int(math.log2(max(1, len(sizes) / 4))))))
    height, width = working_size(config, sizes)
    if config.crop is None:
        config = replace(config, crop=(_crop_side(height), _crop_side(width)))
    if config.scale is None:
        covering = max(config.crop[0] / height, config.crop[1] / width)
        config = replace(config, scale=(min(1.0, max(SCALE[0], covering)), SCALE[1]))
    steps = config.epochs * -(-len(sizes) // config.batch)
    if config.warm_up is None:
        config = replace(config, warm_up=round(min(0.3, max(0.05, 50 / steps)), 4))
    if config.ema is None:
        config = replace(config, ema=round(min(0.998, max(0.0, 1 - 10 / steps)), 4))
    if config.freeze_norm is None:
        few = len(sizes) < FEW_IMAGES or steps < FEW_STEPS
        slow = config.learning_rate is None or config.learning_rate <= LARGEST_FROZEN_RATE
        config = replace(config, freeze_norm=known == 1 and few and slow)
    if config.learning_rate is None:
        config = replace(config, learning_rate=_rate(config, known))
    return config


def _crop_side(side: float) -> int:
    wanted = min(LARGEST_CROP, max(CROP_FRACTION * side, min(side, WHOLE_UP_TO)))
    return max(STRIDE, int(wanted) // STRIDE * STRIDE)


def _rate(config: TrainConfig, known: float) -> float:
    rate = NEW_HEAD_RATE ** (1 - known) * KNOWN_HEAD_RATE**known
    rate *= math.sqrt(config.batch / USUAL_BATCH)
    return float(f"{rate / (FROZEN_NORM_DIVISOR if config.freeze_norm else 1):.2g}")


def working_size(config: TrainConfig, sizes: Sequence[tuple[int, int]]) -> tuple[float, float]:
    """(height, width) of the usual image once it is scaled as `size` says: the median of each."""
    height, width = (float(np.median([size[axis] for size in sizes])) for axis in (0, 1))
    factor = 1.0
    if config.size:
        factor = min(config.size / min(height, width), Preprocess().max_enlarge)
    return height * factor, width * factor
