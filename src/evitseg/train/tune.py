"""How many images a step this machine is fastest with."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch

from evitseg.architecture import model_config
from evitseg.data.lists import Pair
from evitseg.errors import EvitsegError, TrainError
from evitseg.model.network import EfficientViT
from evitseg.raster.files import read_image
from evitseg.train.config import TrainConfig
from evitseg.train.defaults import LARGEST_CROP, USUAL_BATCH, settled
from evitseg.train.losses import Objective
from evitseg.train.memory import keep_freed_memory, out_of_memory
from evitseg.train.network import Trained, channels_last, source_of

ENOUGH = 1.05
"""A larger batch must be this much faster to be taken: it sees fewer steps an epoch."""
LARGEST = 256
MIN_STEPS = 8
CLASSES = 19
"""Stands for the data's own number, which hardly changes the time."""


def tuned(
    config: TrainConfig, images: int, size: tuple[int, int] = (LARGEST_CROP, LARGEST_CROP)
) -> tuple[TrainConfig, dict[int, float]]:
    """The settings with the batch that is fastest here, and images per second for every number that was tried.

    Batches are doubled until that no longer pays, or the memory is full. A learning rate that is not given follows the
    batch (`evitseg.train.defaults`).

    Args:
        images: that are trained on; an epoch keeps at least `MIN_STEPS` steps.
        size: (height, width) of the usual image, from which a crop follows that is not given.

    Raises: TrainError where the memory does not even hold one image, or several processes share the work: each
    would take its own number.
    """
    given, config = config, settled(config, [size] * max(1, images))
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise TrainError("--batch auto works in one process; give a number, the sum over all of them.")
    largest = max(USUAL_BATCH, min(LARGEST, images // MIN_STEPS))
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
        raise TrainError(f"the memory does not hold one image of {height}×{width}; give a smaller --crop.")
    best = min(number for number, speed in tried.items() if speed * ENOUGH >= max(tried.values()))
    return replace(given, batch=best), tried


def usual_size(pairs: Sequence[Pair], most: int = 20) -> tuple[int, int]:
    """(height, width): the median of each over the first images that can be read; a large crop's where none can."""
    sizes = []
    for pair in pairs[:most]:
        with contextlib.suppress(EvitsegError):
            sizes.append(read_image(pair.image, pair.reading).shape[:2])
    if not sizes:
        return LARGEST_CROP, LARGEST_CROP
    return int(np.median([size[0] for size in sizes])), int(np.median([size[1] for size in sizes]))


def _speed(config: TrainConfig, batch: int, device: torch.device, steps: int = 3) -> float:
    """Images per second of whole steps on noise, after one to warm up."""
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
