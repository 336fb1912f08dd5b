"""How the weights change: AdamW's parameter groups, the learning rate of a step, and the moving average."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from evitseg.train.config import OptimConfig

_Tensors = list[Tensor] | tuple[Tensor, ...]


# A function of the step instead of PyTorch's LinearLR and CosineAnnealingLR: these compute each rate from the one
# before, with other rounding and with a state that a resumed run would need.
def learning_rate(optim: OptimConfig, step: int, steps: int) -> float:
    """The rate of a step, counted from 0: a linear rise, then a cosine to zero."""
    rising = max(1, round(optim.warmup_fraction * steps))
    if step < rising:
        return optim.learning_rate * (step + 1) / rising
    done = (step - rising) / max(1, steps - rising)
    return optim.learning_rate * 0.5 * (1 + math.cos(math.pi * done))


def parameter_groups(network: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Parameters with weight decay, and those without: biases and normalisation."""
    trained = [p for p in network.parameters() if p.requires_grad]
    return [
        {"params": [p for p in trained if p.ndim > 1], "weight_decay": weight_decay},
        {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
    ]


def moving_average(network: nn.Module, decay: float, updates: int = 0) -> AveragedModel:
    """An exponential moving average of weights and batch norm's statistics that begins as a copy of the network.

    Args:
        decay: of the average once it is warm.
        updates: number of updates that are already in the network's weights, when a run is resumed.
    """
    average = AveragedModel(network, multi_avg_fn=_warming_up(decay), use_buffers=True)
    count_updates(average, updates)
    return average.eval().requires_grad_(False)


def count_updates(average: AveragedModel, updates: int) -> None:
    """Set the number of updates, when the weights of a resumed run have been loaded."""
    # The starting weights are the first average; at a count of 0 PyTorch would replace them at the first update.
    average.n_averaged.fill_(1 + updates)


def _warming_up(decay: float) -> Callable[[_Tensors, _Tensors, Tensor | int], None]:
    """The update of `AveragedModel`, for tensors of one type at a time."""

    @torch.no_grad()
    def update(average: _Tensors, current: _Tensors, updates: Tensor | int) -> None:
        if not average[0].is_floating_point():  # counters
            torch._foreach_copy_(average, current)
            return
        # A shorter memory in the first steps, or the average would consist mostly of the starting weights.
        step = int(updates)
        torch._foreach_lerp_(average, current, 1 - min(decay, (1 + step) / (10 + step)))

    return update
