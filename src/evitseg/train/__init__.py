"""Training on your own masks."""

from __future__ import annotations

from evitseg.train.config import (
    AugmentConfig,
    AverageConfig,
    DataConfig,
    DistillConfig,
    LossConfig,
    OptimConfig,
    TrainConfig,
)
from evitseg.train.run import fit
from evitseg.train.run_log import Event, Run

__all__ = [
    "AugmentConfig",
    "AverageConfig",
    "DataConfig",
    "DistillConfig",
    "Event",
    "LossConfig",
    "OptimConfig",
    "Run",
    "TrainConfig",
    "fit",
]
