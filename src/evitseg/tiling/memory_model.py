"""The memory model: how much an image needs, and how much of the free memory it may take.

Every function returns an estimate of the process's peak memory in bytes. `python benchmarks/streaming.py tiles` and
`windows` print the measured peak for a given --memory; tests of tiles and of sliding windows compare both.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from evitseg.architecture import LOGIT_STRIDE, ModelConfig, placed_convs
from evitseg.system.machine import free_memory, held_memory

if TYPE_CHECKING:
    from evitseg.tiling.graph_cut import Partition, Segment

BASE_BYTES = 185 * 1024**2
"""Memory of a process without any image: Python, OpenVINO, a small network."""
CORE_BASE_BYTES = 75 * 1024**2
"""The same with evitseg's own core instead of OpenVINO."""
SMALL_BYTES = 512 * 1024**2
"""On a small machine an image may take up to this much, as long as a quarter of the free memory remains."""

_FLOAT = 4
_RGB = 3
_IMAGE_AND_MASK = 8
"""Bytes per pixel of an image that goes through whole: the image, a second copy while it is decoded, and the mask."""
_COPIES = 2
"""A segment's inputs and outputs exist as arrays, and once more inside the engine."""
_PADDED = 20.0
"""Bytes per pixel of a sliding window on its way from the file to the engine (`streaming.py windows`)."""
_RESAMPLED = 10
"""Bytes per value of a tile that is being resampled: its pixels, and sums in 32 bits (`streaming.py tiles`)."""
_RESAMPLED_WINDOW = 12
"""The same for a sliding window (`streaming.py windows`)."""


def whole_memory(
    config: ModelConfig, image: tuple[int, int], working: tuple[int, int], core_bytes: int | None = None
) -> int:
    """Memory for an image that goes through the network whole, in float32.

    OpenVINO runs the layers before attention in tiles, too. Its peak is therefore the largest block from stride 8 on,
    with the network's input, the image and its mask.

    Args:
        image, working: (height, width) of the image and of the network's input.
        core_bytes: what evitseg's own core needs for its features, if it runs the network; None for OpenVINO.
    """
    pixels, inputs = image[0] * image[1], working[0] * working[1]
    if core_bytes is not None:
        logits = _FLOAT * config.num_classes * inputs // LOGIT_STRIDE**2
        return CORE_BASE_BYTES + _IMAGE_AND_MASK * pixels + inputs * _RGB + logits + core_bytes
    values: dict[str, float] = {}
    for placed in placed_convs(config):
        if placed.stride >= LOGIT_STRIDE:
            values[placed.block] = values.get(placed.block, 0.0) + placed.conv.outputs / placed.stride**2
    return int(BASE_BYTES + _IMAGE_AND_MASK * pixels + inputs * (_RGB + _FLOAT * max(values.values(), default=0.0)))


def tiles_memory(
    partition: Partition, segment: Segment, num_classes: int, window_pixels: int, scale: Sequence[float], at_once: int
) -> int:
    """Memory for windows of a segment.

    Args:
        scale: (down, across), pixels of the image per pixel of the network's input.
        at_once: number of windows that run at the same time.
    """
    per_pixel = segment_bytes_per_pixel(partition, segment, num_classes, scale)
    return int(BASE_BYTES + at_once * window_pixels * per_pixel)


def segment_bytes_per_pixel(
    partition: Partition, segment: Segment, num_classes: int, scale: Sequence[float] = (1.0, 1.0)
) -> float:
    """Memory per pixel of a segment's window: the engine's own, its inputs and its outputs."""
    down, across = scale
    features = sum(f.values_per_pixel for f in (*segment.inputs, *segment.outputs))
    image = 0
    if segment.takes_image:
        image = _RGB * _FLOAT
        if (down, across) != (1.0, 1.0):  # rows are resampled first
            image = int(_RGB * down * across + _RGB * _RESAMPLED * down) + 1
    is_last = partition.attention_after(segment) is None
    logits = num_classes / LOGIT_STRIDE**2 + 1 if is_last else 0
    return segment.bytes_per_pixel + _FLOAT * _COPIES * (features + logits) + image


def region_memory(
    window_pixels: float, per_pixel: float, at_once: int, mask_pixels: int, mask_value_bytes: int, held: int
) -> int:
    """Memory for a region that is rendered in parts.

    Args:
        window_pixels: largest window that a part reads.
        per_pixel: from `segment_bytes_per_pixel`.
        held: bytes that the source holds.
    """
    return BASE_BYTES + held + mask_pixels * mask_value_bytes + int(at_once * window_pixels * per_pixel)


def sliding_window_memory(
    standalone: Segment,
    num_classes: int,
    window_pixels: int,
    row_pixels: int,
    scale: Sequence[float],
    at_once: int,
    waiting: int,
) -> int:
    """Memory for sliding windows.

    Args:
        row_pixels: pixels of the network's input whose logits are summed at the same time.
        scale: as in `tiles_memory`.
        at_once, waiting: windows that run at the same time, and finished ones that wait to be added.
    """
    down, across = scale
    logits = _FLOAT * (num_classes + 1) / LOGIT_STRIDE**2  # the sum of weights is one more class
    image = _PADDED
    if (down, across) != (1.0, 1.0):
        image += _RGB * down * across + _RGB * _RESAMPLED_WINDOW * down
    running = at_once * (standalone.bytes_per_pixel + image)
    done = (2 * at_once + waiting) * logits
    return int(BASE_BYTES + row_pixels * logits + window_pixels * (running + done))


def fits(
    config: ModelConfig,
    image: tuple[int, int],
    working: tuple[int, int],
    memory: int | None = None,
    at_once: int = 1,
    core_bytes: int | None = None,
) -> bool:
    """Whether an image can go through the network whole.

    Args:
        memory: bytes the process may hold for it; None decides by the free memory and what the process holds already.
        at_once: number of images of this size that are processed at the same time and share the free memory.
        core_bytes: as in `whole_memory`.
    """
    needed = whole_memory(config, image, working, core_bytes)
    if memory is not None:
        return needed <= memory
    free, base = free_memory(), BASE_BYTES if core_bytes is None else CORE_BASE_BYTES
    of_process = max(0, base - held_memory())
    of_image = needed - base
    return of_image + of_process <= allowed_memory(free) and at_once * of_image + of_process <= free * 3 // 4


def default_memory(held: int = 0) -> int:
    """Bytes the process may hold by default: what it holds now, and a fraction of the free memory.

    Args:
        held: bytes of an image that is in memory already; they count as part of the need, too.
    """
    return min(held_memory(), BASE_BYTES + held) + allowed_memory(free_memory())


def allowed_memory(free: int) -> int:
    """Bytes of the free memory that one image may take: a quarter, on small machines up to three quarters."""
    return max(free // 4, min(free * 3 // 4, SMALL_BYTES))


def mib(count: float) -> str:
    """Bytes as text, rounded up, so that the stated amount is enough."""
    return f"{math.ceil(count / 1024**2)} MiB"
