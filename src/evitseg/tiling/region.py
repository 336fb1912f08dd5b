"""Rendering of a region of a mask, later, from the image's context."""

from __future__ import annotations

import math
import os
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from evitseg.architecture import LOGIT_STRIDE, STRIDE
from evitseg.errors import ConfigError
from evitseg.raster.window import Source
from evitseg.runtime.upsample import Side
from evitseg.system.parallel import ordered_map
from evitseg.tiling.arguments import (
    ImageLike,
    MaskPlace,
    ModelLike,
    banded_network,
    image_source,
    mask_sink,
    reading_of,
)
from evitseg.tiling.context import Context
from evitseg.tiling.memory_model import default_memory, mib, region_memory
from evitseg.tiling.network import Network
from evitseg.tiling.plan import Plan, mask_of_window
from evitseg.tiling.windows import Damage, Resampled, Window, tiles_of, valid_window

_SIDES = (2048, 1536, 1024, 768, 512, 256, 128)
"""Sides of the parts of a region, in pixels. The halo of the smallest is several times as large already."""


class RenderedRegion(NamedTuple):
    """A region of a mask.

    Attributes:
        mask: (height, width) class indices.
        damages: parts of the image, in the region and around it, that could not be read.
    """

    mask: NDArray[np.integer]
    damages: tuple[Damage, ...]


def render_region(
    model: ModelLike,
    source: ImageLike,
    context: Context | str | os.PathLike[str],
    region: Window | tuple[int, int, int, int],
    mask: MaskPlace | None = None,
    *,
    memory: int | None = None,
) -> RenderedRegion:
    """Segment a region of an image whose context is known, with the pixels that the mask of the whole image has there.

        result = evitseg.segment_large("model.safetensors", "mosaic.tif", "mask.tif")
        result.context.save("mosaic.npz")
        evitseg.render_region("model.safetensors", "mosaic.tif", "mosaic.npz", (4000, 2000, 512, 512), "part.tif")

    Only the region and its halo are read.

    Args:
        model, source: as in `segment_large`.
        context: from the result of `segment_large`, or a file that `Context.save` wrote.
        region: (top, left, height, width) in pixels of the image.
        mask: a place for the region's mask, as in `segment_large`. A file has the region's georeference.
        memory: bytes the process may hold; None for a fraction of the free memory.

    Raises: ConfigError for a region outside the image, the context of another image, or not enough memory; ImageError,
        FileError, WeightsError, EngineError.
    """
    network = banded_network(model)
    if not isinstance(context, Context):
        context = Context.load(context, network)
    window = region if isinstance(region, Window) else Window(*region)
    with image_source(source, None, memory, reading_of(model, network)) as (image, _):
        context.check_image(image)
        rendered = render_window(image, network, context, window, memory)
        if mask is not None:
            from evitseg.raster import part_of

            part = part_of(image, window.top, window.left, window.height, window.width)
            with mask_sink(mask, part, network) as sink:
                for place in tiles_of(part.size, sink.tile):
                    rows, columns = place.inside(Window(0, 0, *part.size))
                    sink.write(place.top, place.left, rendered.mask[rows, columns])
    return rendered


def render_window(
    source: Source, network: Network, context: Context, region: Window, memory: int | None = None
) -> RenderedRegion:
    """`render_region` of an image that is open, whose context was checked with `Context.check_image`.

    Raises: ConfigError for a region outside the image, or not enough memory; ImageError, EngineError.
    """
    height, width = source.size
    if (
        min(region.top, region.left) < 0
        or min(region.height, region.width) < 1
        or (region.bottom > height or region.right > width)
    ):
        raise ConfigError(
            f"the region of {region.width}×{region.height} pixels at x {region.left}, y {region.top} is not inside the "
            f"image of {width}×{height} pixels."
        )
    plan = Plan(context.image, context.working, ())
    memory = default_memory(source.held) if memory is None else memory
    parts = _parts(region, network, plan, source.held, memory)
    resampled = Resampled(source, plan.working)
    sums = np.concatenate(context.sums) if context.sums else np.zeros(0, np.float32)
    mask = np.empty((region.height, region.width), network.labels.dtype)
    found: dict[Window, Damage] = {}

    def read(part: Window) -> tuple[Window, Window, NDArray[np.uint8], list[Damage]]:
        window = _around(part, network, plan)
        return part, window, *resampled.read(window)

    for part, window, image, damages in ordered_map(parts, read, 1, 1):
        logits = network.core.logits(image, sums)
        own = mask_of_window(logits, plan, part, window.over(LOGIT_STRIDE), network.core.core)
        valid = valid_window(source, part, damages)
        if valid is not None:
            own[~valid] = network.labels.ignore_index
        mask[part.inside(region)] = own
        found |= {damage.window: damage for damage in damages}
    return RenderedRegion(mask, tuple(found.values()))


def _parts(region: Window, network: Network, plan: Plan, held: int, memory: int) -> list[Window]:
    """The fewest parts of a region that fit in memory. Raises: ConfigError if none fit."""
    least = math.inf
    for side in _SIDES:
        parts = [
            Window(region.top + part.top, region.left + part.left, part.height, part.width)
            for part in tiles_of((region.height, region.width), (side, side))
        ]
        around = [_around(part, network, plan) for part in parts]
        largest = max(around, key=lambda window: window.pixels)
        needed = held + region_memory(network, (largest.height, largest.width), region.pixels)
        if needed <= memory:
            return parts
        least = min(least, needed)
    raise ConfigError(
        f"{mib(memory)} of memory is not enough: the smallest part of a region, with its halo, needs {mib(least)}; "
        "give more."
    )


def _around(part: Window, network: Network, plan: Plan) -> Window:
    """The window that the whole network must read for a part of the mask."""
    core, halo = _core_of(plan, part), network.halo
    top, left = max(0, core.top - halo), max(0, core.left - halo)
    bottom, right = min(plan.working[0], core.bottom + halo), min(plan.working[1], core.right + halo)
    return Window(top, left, bottom - top, right - left)


def _core_of(plan: Plan, region: Window) -> Window:
    """The part of the network's input, in whole strides, that contains the logits of a region of the mask."""
    spans = []
    for new, own, begin, end in zip(
        plan.working, plan.image, (region.top, region.left), (region.bottom, region.right), strict=True
    ):
        low, high = Side(new // LOGIT_STRIDE, own, 0, begin).needed(end - begin)
        spans.append((low * LOGIT_STRIDE // STRIDE * STRIDE, -(-high * LOGIT_STRIDE // STRIDE) * STRIDE))
    (top, bottom), (left, right) = spans
    return Window(top, left, bottom - top, right - left)
