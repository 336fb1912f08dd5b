"""How much memory an image needs, and how much of what is free it may take."""

from __future__ import annotations

import logging
import math

from evitseg.architecture import LOGIT_STRIDE, ModelConfig, placed_convs
from evitseg.system.machine import free_memory, held_memory

_LOG = logging.getLogger(__name__)
BASE_BYTES = 185 * 1024**2
"""What a process holds beside its source and its tiles: Python, OpenVINO, a small network."""
SMALL_SHARE = 512 * 1024**2
"""A small device gives an image up to this much, and keeps a quarter of what is free; a large one keeps more."""


def whole_memory(config: ModelConfig, image: tuple[int, int], working: tuple[int, int]) -> int:
    """Estimate of the bytes that the process holds at its fullest where an image goes through whole, in float32.

    What lies before attention runs in tiles there, too; so what counts is a block's features from stride 8 on, and the
    image, twice while it is decoded, and its mask.
    """
    values: dict[str, float] = {}
    for placed in placed_convs(config):
        if placed.stride >= LOGIT_STRIDE:
            values[placed.block] = values.get(placed.block, 0.0) + placed.conv.outputs / placed.stride**2
    pixels, inputs = image[0] * image[1], working[0] * working[1]
    return int(BASE_BYTES + 8 * pixels + inputs * (3 + 4 * max(values.values(), default=0.0)))


def fits(
    config: ModelConfig,
    image: tuple[int, int],
    working: tuple[int, int],
    memory: int | None = None,
    at_once: int = 1,
) -> bool:
    """Whether an image can go through whole.

    Args:
        memory: bytes the process may hold for it; None to judge by what is free, beyond what is held already.
        at_once: images in hand at the same time; as large as this one each, they share what is free.
    """
    needed = whole_memory(config, image, working)
    if memory is not None:
        return needed <= memory
    free = free_memory()
    of_process = max(0, BASE_BYTES - held_memory())
    of_image = needed - BASE_BYTES
    _LOG.debug("an image of %d×%d pixels needs %s; %s are free", *working[::-1], mib(of_image), mib(free))
    return of_image + of_process <= share_of(free) and at_once * of_image + of_process <= free * 3 // 4


def default_memory(held: int = 0) -> int:
    """Bytes the process may hold where nobody says how many: what it holds of them already, and a share of the rest.

    Args:
        held: bytes of an image that is in memory already; they count among what is needed, too.
    """
    return min(held_memory(), BASE_BYTES + held) + share_of(free_memory())


def share_of(free: int) -> int:
    """The part of free memory that one image may take: a quarter, on small devices up to three."""
    return max(free // 4, min(free * 3 // 4, SMALL_SHARE))


def mib(count: float) -> str:
    """Bytes in words, rounded up: so much is enough."""
    return f"{math.ceil(count / 1024**2)} MiB"
