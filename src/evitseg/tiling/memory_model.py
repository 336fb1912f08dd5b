"""The memory model: how much an image needs, and how much of the free memory it may take.

Every function returns an estimate of the process's peak memory in bytes. `python benchmarks/large_images.py bands`
prints the measured peak for a given --memory; tests of bands and of sliding windows compare both.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from evitseg.architecture import LOGIT_STRIDE, STRIDE, ModelConfig, placed_convs
from evitseg.raster.window import TILE
from evitseg.runtime.core_windows import IMAGE
from evitseg.system.machine import free_memory, held_memory

if TYPE_CHECKING:
    from evitseg.tiling.network import Network
    from evitseg.tiling.windows import Window

BASE_BYTES = 75 * 1024**2
"""Memory of a process without any image: Python, numpy, Pillow, a small network."""
SMALL_BYTES = 512 * 1024**2
"""On a small machine an image may take up to this much, as long as a quarter of the free memory remains."""

_FLOAT = 4
_RGB = 3
_IMAGE_AND_MASK = 8
"""Bytes per pixel of an image that goes through whole: the image, a second copy while it is decoded, and the mask."""
_MASKS = 4
"""Parts of the mask that are computed, wait, are put together and are written."""
_STRIP_BYTES = 12 * 1024**2
"""Most memory for the rows of an image that are read at once."""
_MOST_ROWS = 1024
MASK_ROWS = 512
"""Rows of the mask that may wait for the rest of the sink's tiles."""


def whole_memory(config: ModelConfig, image: tuple[int, int], working: tuple[int, int], core_bytes: int) -> int:
    """Memory for an image that goes through the network whole.

    Args:
        image, working: (height, width) of the image and of the network's input.
        core_bytes: what the engine needs for its features.
    """
    pixels, inputs = image[0] * image[1], working[0] * working[1]
    logits = _FLOAT * config.num_classes * inputs // LOGIT_STRIDE**2
    return BASE_BYTES + _IMAGE_AND_MASK * pixels + inputs * _RGB + logits + core_bytes


def unfused_bytes(config: ModelConfig, working: tuple[int, int]) -> int:
    """Memory for the features of an engine that stores all features of a block: those of the largest one, in float32.

    Args:
        working: (height, width) of the network's input.
    """
    values: dict[str, float] = {}
    for placed in placed_convs(config):
        values[placed.block] = values.get(placed.block, 0.0) + placed.conv.outputs / placed.stride**2
    return int(working[0] * working[1] * _FLOAT * max(values.values()))


def band_memory(
    network: Network, image: tuple[int, int], working: tuple[int, int], segment: int, window: Window
) -> int:
    """Memory for a window of a segment.

    Args:
        image, working: (height, width) of the image and of the network's input.
        window: in pixels of the network's input.
    """
    core, (height, width) = network.core, working
    about, last = core.segments[segment], len(core.segments) - 1
    place = window.over(about.stride)
    first, end = place.top, min(place.bottom + (2 if segment == last else 0), height // about.stride)
    needed = core.memory(segment, working, (first, end, place.left, place.right))
    for feature, stored in enumerate(core.features):
        if segment not in core.users[feature]:
            continue
        row_bytes = width // stored.stride * stored.pixel_bytes
        reads, writes = core.rows(segment, feature, height, first, end)
        needed += (len(reads) + 2 * len(writes)) * row_bytes
    down, across = (own / new for own, new in zip(image, working, strict=True))
    read, _ = core.rows(segment, IMAGE, height, first, end)
    if read:
        strip = min(largest_strip(image, working), height)
        block = min(max(strip, largest_block(window.height)), height)
        needed += _RGB * width * (len(read) + window.height + 2 * block)  # read ahead by a band
        needed += int(strip * width * _strip_pixel_bytes(image, working)) * network.threads
    if segment == last:
        logits = network.manifest.model.num_classes * _FLOAT * 2 * place.pixels  # once more for the mask
        masks = int(_MASKS * window.pixels * down * across + MASK_ROWS * image[1]) * network.labels.dtype().itemsize
        needed += logits + masks
    return BASE_BYTES + needed


def largest_strip(image: tuple[int, int], working: tuple[int, int]) -> int:
    """Largest number of rows of the network's input that are read at once, a multiple of 32."""
    rows = int(_STRIP_BYTES / (working[1] * _strip_pixel_bytes(image, working)))
    return min(max(STRIDE, rows // STRIDE * STRIDE), _MOST_ROWS)


def largest_block(band: int) -> int:
    """Largest height of the image's blocks that are read whole for bands of a height, even if they are wider strips."""
    return min(band, TILE)


def _strip_pixel_bytes(image: tuple[int, int], working: tuple[int, int]) -> float:
    """Bytes per pixel of a strip while it is read."""
    down, across = (own / new for own, new in zip(image, working, strict=True))
    return _RGB if image == working else _RGB * down * across + _RGB


def region_memory(network: Network, window: tuple[int, int], mask_pixels: int) -> int:
    """Memory for a region that is rendered in parts.

    Args:
        window: (height, width) of the part of the network's input that is needed for the largest part.
    """
    pixels = window[0] * window[1]
    logits = network.manifest.model.num_classes * _FLOAT * 2 * pixels // LOGIT_STRIDE**2
    features = network.core.core.memory(*window)
    mask = mask_pixels * int(network.labels.dtype().itemsize)
    return BASE_BYTES + mask + 2 * _RGB * pixels + logits + features


def overlay_memory(image: tuple[int, int], out: Path, held: int = 0) -> int:
    """Memory for drawing the overlay of an image in bands.

    Args:
        image: (height, width) of the image.
        out: file of the overlay.
        held: bytes that the source holds.
    """
    from evitseg.raster.large_overlay import overlay_bytes

    return BASE_BYTES + held + overlay_bytes(image, out)


def sliding_window_memory(
    network: Network, window: tuple[int, int], row_pixels: int, scale: Sequence[float], waiting: int
) -> int:
    """Memory for sliding windows.

    Args:
        window: (height, width) of a window.
        row_pixels: pixels of the network's input whose logits are summed at the same time.
        scale: (down, across), pixels of the image per pixel of the network's input.
        waiting: windows that are read, or wait to be run.
    """
    down, across = scale
    pixels = window[0] * window[1]
    logits = _FLOAT * (network.manifest.model.num_classes + 1) / LOGIT_STRIDE**2  # the sum of weights is one more class
    image: float = 2 * _RGB
    if (down, across) != (1.0, 1.0):
        image += _RGB * down * across
    features = network.core.core.memory(*window)
    return int(BASE_BYTES + features + row_pixels * logits + pixels * (waiting * image + 3 * logits))


def fits(
    config: ModelConfig,
    image: tuple[int, int],
    working: tuple[int, int],
    core_bytes: int,
    memory: int | None = None,
    at_once: int = 1,
) -> bool:
    """Whether an image can go through the network whole.

    Args:
        core_bytes: as in `whole_memory`.
        memory: bytes the process may hold for it; None decides by the free memory and what the process holds already.
        at_once: number of images of this size that are processed at the same time and share the free memory.
    """
    needed = whole_memory(config, image, working, core_bytes)
    if memory is not None:
        return needed <= memory
    free = free_memory()
    of_process = max(0, BASE_BYTES - held_memory())
    of_image = needed - BASE_BYTES
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
