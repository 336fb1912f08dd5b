"""The fastest batch size on this machine, for `--batch auto`."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Sequence

import numpy as np
import torch

from evitseg.architecture import model_config
from evitseg.data.lists import Pair
from evitseg.errors import EvitsegError, TrainError
from evitseg.model.network import EfficientViT
from evitseg.raster.files import read_image
from evitseg.train.allocator import is_out_of_memory, keep_freed_memory
from evitseg.train.config import TrainConfig
from evitseg.train.defaults import LARGEST_CROP, USUAL_BATCH, resolve_defaults
from evitseg.train.initialize import load_source
from evitseg.train.losses import Objective
from evitseg.train.wrapper import TrainingWrapper, channels_last

MIN_GAIN = 1.05
"""How many times faster a larger batch must be to be chosen, because it makes fewer steps per epoch."""
LARGEST = 256
MIN_STEPS = 8
CLASSES = 19
"""Number of classes that is timed; the data's own number hardly changes the time."""


def fastest_batch_size(
    config: TrainConfig, images: int, size: tuple[int, int] = (LARGEST_CROP, LARGEST_CROP)
) -> tuple[TrainConfig, dict[int, float]]:
    """The settings with the fastest batch size on this machine, and images per second for every size tried.

    Batches are doubled until a larger one is no longer faster, or memory runs out. The default learning rate then
    follows from the batch size.

    Args:
        images: number of training images; an epoch keeps at least `MIN_STEPS` steps.
        size: (height, width) of the typical image, for the default crop.

    Raises: TrainError if not even one crop fits in memory, or if several processes share the work, because each would
    choose its own size.
    """
    given, config = config, resolve_defaults(config, [size] * max(1, images))
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise TrainError("--batch auto works in a single process; give a number, the sum over all processes.")
    largest = max(USUAL_BATCH, min(LARGEST, images // MIN_STEPS))
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device.type == "cpu":
        keep_freed_memory()
    tried: dict[int, float] = {}

    def fits(batch: int) -> bool:
        try:
            tried[batch] = _images_per_s(config, batch, device)
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
        return batch in tried

    batch = USUAL_BATCH
    if fits(batch):
        while 2 * batch <= largest and fits(2 * batch) and tried[2 * batch] >= MIN_GAIN * tried[batch]:
            batch *= 2
    else:
        while batch > 1 and not fits(batch // 2):
            batch //= 2
    if not tried:
        height, width = config.data.crop
        raise TrainError(f"not enough memory for a single crop of {height}×{width}; use a smaller --crop.")
    best = min(number for number, speed in tried.items() if speed * MIN_GAIN >= max(tried.values()))
    return given.updated({"batch_size": best}), tried


def typical_size(pairs: Sequence[Pair], most: int = 20) -> tuple[int, int]:
    """Median (height, width) of the first readable images; the largest default crop if none can be read."""
    sizes = []
    for pair in pairs[:most]:
        with contextlib.suppress(EvitsegError):
            sizes.append(read_image(pair.image, pair.reading).shape[:2])
    if not sizes:
        return LARGEST_CROP, LARGEST_CROP
    return int(np.median([size[0] for size in sizes])), int(np.median([size[1] for size in sizes]))


def _images_per_s(config: TrainConfig, batch: int, device: torch.device, steps: int = 3) -> float:
    """Speed of complete training steps on noise, after one step to warm up."""
    network = EfficientViT(model_config(config.variant, CLASSES))
    wrapper = channels_last(TrainingWrapper(network, config.loss.auxiliary > 0), device)
    if config.optim.freeze_backbone:
        network.backbone.requires_grad_(False)
    teachers = [channels_last(load_source(name)[0], device) for name in config.distill.teachers]
    optimizer = torch.optim.AdamW(wrapper.parameters(), lr=1e-6)
    objective = Objective(config.loss, config.distill, torch.ones(CLASSES, device=device), 255)
    pixels = torch.randn(batch, 3, *config.data.crop, device=device).to(memory_format=torch.channels_last)
    truth = torch.randint(0, CLASSES, (batch, *config.data.crop), device=device)
    dtype = {"float32": None, "bfloat16": torch.bfloat16, "float16": torch.float16}[config.precision]
    began = 0.0
    for step in range(steps + 1):
        if step == 1:
            began = time.perf_counter()
        with torch.autocast(device.type, dtype, enabled=dtype is not None):
            logits, auxiliary, _ = wrapper(pixels)
        with torch.inference_mode():
            for teacher in teachers:
                teacher(pixels)
        loss = objective(logits, auxiliary, truth, [], (0, 0), progress=1.0)
        optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
        optimizer.step()
        float(loss.detach())  # waits for the device
    return steps * batch / (time.perf_counter() - began)
