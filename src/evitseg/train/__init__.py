"""Training on your own masks."""

from __future__ import annotations

from evitseg.train.config import TrainConfig
from evitseg.train.trainer import Event, Run, fit

__all__ = ["Event", "Run", "TrainConfig", "fit"]
