"""Everything that decides a training run, in one value that is written into the run's folder."""

from __future__ import annotations

import json
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from evitseg.config import BACKBONES, STRIDE
from evitseg.errors import ConfigError, TrainError, unknown
from evitseg.image import check_size

CONFIG_FILE = "config.json"
"""In a run's folder."""
FRESH = "none"
"""The `start` that is no start: random weights."""


@dataclass(frozen=True)
class TrainConfig:
    """A training run.

    Attributes:
        variant: a row of `evitseg.config.BACKBONES`.
        start: weights to start from: a checkpoint's path or a published model's name; "none" for random ones.
        epochs: passes over the training pictures.
        batch: pictures a step, over all processes.
        crop: (height, width) of the pieces that are trained on, in pixels; both divisible by 32.
        size: short side to which pictures are scaled before anything else; None for their own. The model works at
            this size afterwards.
        scale: pictures are scaled by a random factor in this range, every factor's logarithm equally likely.
        learning_rate: at its highest, after the warm-up; it then falls to zero as a cosine does.
        warm_up: share of the steps in which it rises.
        weight_decay: of AdamW, on weights of convolutions and linear layers alone.
        clip: largest norm of all gradients together.
        ema: decay of the moving average of the weights, which is what is measured and kept.
        label_smoothing: of the cross-entropy.
        balance: how strongly rare classes count more: 0 not at all, 1 by 1 / ln(1.10 + share) (arXiv:1606.02147).
        jitter: brightness, contrast and saturation change by up to this share.
        freeze_backbone: train the head alone.
        precision: "float32", or "bfloat16" or "float16" for mixed precision.
        workers: processes that read pictures; 0 for none beside the training one.
        measure_every: epochs between measurements on the validation pictures; the last epoch is always measured.
        save_every: steps between checkpoints, beside one after every epoch.
        seed: of everything that is random.
    """

    variant: str = "b0"
    start: str = FRESH
    epochs: int = 100
    batch: int = 8
    crop: tuple[int, int] = (512, 512)
    size: int | None = None
    scale: tuple[float, float] = (0.5, 2.0)
    learning_rate: float = 1e-3
    warm_up: float = 0.05
    weight_decay: float = 0.05
    clip: float = 2.0
    ema: float = 0.998
    label_smoothing: float = 0.0
    balance: float = 0.5
    jitter: float = 0.3
    freeze_backbone: bool = False
    precision: str = "float32"
    workers: int = 1
    measure_every: int = 1
    save_every: int = 500
    seed: int = 0

    def __post_init__(self) -> None:
        if self.variant not in BACKBONES:
            raise unknown("variant", self.variant, BACKBONES)
        if self.precision not in ("float32", "bfloat16", "float16"):
            raise unknown("precision", self.precision, ("float32", "bfloat16", "float16"))
        if self.size is not None:
            check_size(self.size)
        if any(side % STRIDE or side < STRIDE for side in self.crop):
            raise ConfigError(f"crop {self.crop}: both sides must be multiples of {STRIDE}, such as 352 and 480.")
        if not 0 < self.scale[0] <= self.scale[1]:
            raise ConfigError(f"scale {self.scale}: give the smallest and the largest factor, both above 0.")
        ranges = {
            "epochs": (1, 1_000_000), "batch": (1, 4096), "learning_rate": (0, 10), "warm_up": (0, 1),
            "weight_decay": (0, 10), "clip": (1e-6, 1e6), "ema": (0, 1), "label_smoothing": (0, 1), "balance": (0, 1),
            "jitter": (0, 1), "workers": (0, 256), "measure_every": (1, 1_000_000), "save_every": (1, 1_000_000_000),
        }  # fmt: skip
        for name, (low, high) in ranges.items():
            if not low <= getattr(self, name) <= high:
                raise ConfigError(f"{name} is {getattr(self, name)}; it must be {low} to {high}.")


def read_config(folder: Path) -> TrainConfig:
    """The settings of the run in a folder. Raises: TrainError where there is none."""
    try:
        content = json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8"))
        known = {field.name for field in fields(TrainConfig)}
        values: dict[str, Any] = {
            key: tuple(value) if isinstance(value, list) else value for key, value in content.items()
        }
        return TrainConfig(**{key: value for key, value in values.items() if key in known})
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise TrainError(f"{folder}: no run to go on with ({CONFIG_FILE} is missing or damaged).") from error
