"""Training on your own masks."""

from __future__ import annotations

from evitseg.train.config import TrainConfig
from evitseg.train.record import Event, Run
from evitseg.train.run import fit

__all__ = ["Event", "Run", "TrainConfig", "fit"]
