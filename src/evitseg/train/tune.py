"""How many pictures a step this machine is fastest with."""

from __future__ import annotations

import math
import os
import time
from dataclasses import replace

import torch

from evitseg.config import model_config
from evitseg.errors import TrainError
from evitseg.model.network import EfficientViT
from evitseg.train.config import TrainConfig
from evitseg.train.losses import Objective
from evitseg.train.network import Trained, channels_last, source_of
from evitseg.train.trainer import keep_freed_memory, out_of_memory

USUAL_BATCH = 8
"""The number that the default learning rate is for."""
ENOUGH = 1.05
"""A larger batch must be this much faster to be taken: it sees fewer steps an epoch."""
LARGEST = 256
MIN_STEPS = 8
CLASSES = 19
"""Stands for the data's own number, which hardly changes the time."""


def tuned(config: TrainConfig, pictures: int, scale_rate: bool = True) -> tuple[TrainConfig, dict[int, float]]:
    """The settings with the batch that is fastest here, and pictures per second for every number that was tried.

    Batches are doubled until that no longer pays, or the memory is full. AdamW's rate follows the square root of the
    batch (arXiv:2205.10287).

    Args:
        pictures: that are trained on; an epoch keeps at least `MIN_STEPS` steps.
        scale_rate: change the learning rate with the batch.

    Raises: TrainError where the memory does not even hold one picture, or several processes share the work: each
    would take its own number.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise TrainError("--batch auto works in one process; give a number, the sum over all of them.")
    largest = max(USUAL_BATCH, min(LARGEST, pictures // MIN_STEPS))
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device.type == "cpu":
        keep_freed_memory()
    tried: dict[int, float] = {}

    def fits(batch: int) -> bool:
        try:
            tried[batch] = _speed(config, batch, device)
        except RuntimeError as error:
            if not out_of_memory(error):
                raise
        return batch in tried

    batch = USUAL_BATCH
    if fits(batch):
        while 2 * batch <= largest and fits(2 * batch) and tried[2 * batch] >= ENOUGH * tried[batch]:
            batch *= 2
    else:
        while batch > 1 and not fits(batch // 2):
            batch //= 2
    if not tried:
        height, width = config.crop
        raise TrainError(f"the memory does not hold one picture of {height}×{width}; give a smaller --crop.")
    best = min(number for number, speed in tried.items() if speed * ENOUGH >= max(tried.values()))
    rate = config.learning_rate * (math.sqrt(best / USUAL_BATCH) if scale_rate else 1)
    return replace(config, batch=best, learning_rate=rate), tried


def _speed(config: TrainConfig, batch: int, device: torch.device, steps: int = 3) -> float:
    """Pictures per second of whole steps on noise, after one to warm up."""
    network = EfficientViT(model_config(config.variant, CLASSES))
    trained = channels_last(Trained(network, config.auxiliary > 0), device)
    if config.freeze_backbone:
        network.backbone.requires_grad_(False)
    teachers = [channels_last(source_of(name)[0], device) for name in config.teachers]
    optimizer = torch.optim.AdamW(trained.parameters(), lr=1e-6)
    objective = Objective(config, torch.ones(CLASSES, device=device), 255)
    pixels = torch.randn(batch, 3, *config.crop, device=device).to(memory_format=torch.channels_last)
    truth = torch.randint(0, CLASSES, (batch, *config.crop), device=device)
    kind = {"float32": None, "bfloat16": torch.bfloat16, "float16": torch.float16}[config.precision]
    began = 0.0
    for step in range(steps + 1):
        if step == 1:
            began = time.perf_counter()
        with torch.autocast(device.type, kind, enabled=kind is not None):
            logits, auxiliary = trained(pixels)
        with torch.inference_mode():
            for teacher in teachers:
                teacher(pixels)
        loss = objective(logits, auxiliary, truth, [], (0, 0), progress=1.0)
        optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
        optimizer.step()
        float(loss.detach())  # waits for the device
    return steps * batch / (time.perf_counter() - began)
