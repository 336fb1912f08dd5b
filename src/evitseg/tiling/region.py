"""Segment a region of an image again, from its context."""

from __future__ import annotations

import math
from itertools import pairwise, product

import numpy as np
from numpy.typing import NDArray

from evitseg.architecture import LOGIT_STRIDE, STRIDE
from evitseg.errors import ConfigError
from evitseg.raster.window import Source
from evitseg.runtime.upsample import Side
from evitseg.system.parallel import ordered_map
from evitseg.tiling.context import Context
from evitseg.tiling.graph_cut import IMAGE, LOGITS
from evitseg.tiling.memory import BASE_BYTES, default_memory, mib
from evitseg.tiling.network import Arrays, Network
from evitseg.tiling.plan import LARGEST_FIRST_TILE, Plan, bytes_per_pixel, mask_window, window_around
from evitseg.tiling.windows import Damage, Resampled, Window, valid_window

_SMALLEST_PART = 256
"""Pixels of a region's part, about: what lies around it is several times that already."""


def render(
    source: Source, network: Network, context: Context, region: Window, memory: int | None = None
) -> tuple[NDArray[np.integer], tuple[Damage, ...]]:
    """A region of an image's mask, from the image around it and the context alone; the same as in the whole mask.

    Args:
        region: in the image's pixels.
        memory: bytes the process may hold; None for what is free, see `default_memory`.

    Returns: the mask, and what of the image in the region and around it could not be read.

    Raises: ConfigError for a region outside the image, another image's context or too little memory, ImageError.
    """
    height, width = source.size
    context.check_of(source)
    if (
        min(region.top, region.left) < 0
        or min(region.height, region.width) < 1
        or (region.bottom > height or region.right > width)
    ):
        raise ConfigError(f"the region is not inside the image of {width}×{height} pixels.")
    plan = Plan(context.image, context.working, ())
    held = source.held
    memory = default_memory(held) if memory is None else memory
    parts, size, at_once = _parts(region, network, plan, held, memory)
    resampled = Resampled(source, plan.working)
    given: Arrays = {}
    for i, (sums, attention) in enumerate(zip(context.sums, network.cut.attentions, strict=True)):
        given |= sums.inputs(i, attention)
    whole = np.empty((region.height, region.width), network.labels.dtype)
    try:
        with network.ready(network.cut.whole, _around(parts[0], network, plan, size)) as run:

            def work(part: Window) -> list[Damage]:
                window = _around(part, network, plan, size)
                image, damages = resampled.read(window)
                mask = mask_window(run({IMAGE: image[None], **given})[LOGITS][0], plan, part, window)
                valid = valid_window(source, part, damages)
                if valid is not None:
                    mask[~valid] = network.labels.ignore_index
                whole[part.inside(region)] = mask
                return damages

            found = {damage.window: damage for some in ordered_map(parts, work, at_once, 0) for damage in some}
    finally:
        network.free()
    return whole, tuple(found.values())


def _parts(
    region: Window, network: Network, plan: Plan, held: int, memory: int
) -> tuple[list[Window], tuple[int, int], int]:
    """The fewest parts of a region that keep the memory, (height, width) of the largest one's core, how many at once.

    Raises: ConfigError where none do.
    """
    whole, sides = network.cut.whole, (region.height, region.width)
    scale = tuple(own / new for own, new in zip(plan.image, plan.working, strict=True))
    pixel_bytes = bytes_per_pixel(network, whole, scale)
    least = math.inf
    held += math.prod(sides) * network.labels.dtype().itemsize
    fewest, most = (-(-max(sides) // side) for side in (LARGEST_FIRST_TILE, _SMALLEST_PART))
    for count, at_once in product(range(fewest, most + 1), range(network.workers, 0, -1)):
        down, across = (min(count, side) for side in sides)
        # A core is no larger: its part, the logits to either side, and what whole strides add.
        cores = [-(-side // n) / per + 4 * STRIDE for side, n, per in zip(sides, (down, across), scale, strict=True)]
        seen = [
            min(core + whole.before + whole.after, length) for core, length in zip(cores, plan.working, strict=True)
        ]
        needed = BASE_BYTES + held + int(min(at_once, down * across) * math.prod(seen) * pixel_bytes)
        least = min(least, needed)
        if needed <= memory:
            break
    else:
        raise ConfigError(
            f"{mib(memory)} of memory are too little: the smallest part of a region needs {mib(least)}, with what "
            "lies around it; give more."
        )
    rows, columns = (
        [*pairwise(first + i * side // n for i in range(n + 1))]
        for first, side, n in zip((region.top, region.left), sides, (down, across), strict=True)
    )
    parts = [Window(top, left, bottom - top, right - left) for top, bottom in rows for left, right in columns]
    found = [_core_of(plan, part) for part in parts]
    return parts, (max(core.height for core in found), max(core.width for core in found)), at_once


def _around(part: Window, network: Network, plan: Plan, largest: tuple[int, int]) -> Window:
    """What the whole network must see for a part of the mask."""
    return window_around(_core_of(plan, part), network.cut.whole, plan.working, largest)


def _core_of(plan: Plan, region: Window) -> Window:
    """The network's input, in whole strides, whose logits a region of the mask lies in."""
    spans = []
    for new, own, begin, end in zip(
        plan.working, plan.image, (region.top, region.left), (region.bottom, region.right), strict=True
    ):
        low, high = Side(new // LOGIT_STRIDE, own, 0, begin).needed(end - begin)
        spans.append((low * LOGIT_STRIDE // STRIDE * STRIDE, -(-high * LOGIT_STRIDE // STRIDE) * STRIDE))
    (top, bottom), (left, right) = spans
    return Window(top, left, bottom - top, right - left)
