"""Rendering of a region of a mask, later, from the image's context."""

from __future__ import annotations

import math
import os
from itertools import pairwise, product
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from evitseg.architecture import LOGIT_STRIDE, STRIDE
from evitseg.errors import ConfigError
from evitseg.raster.window import Source
from evitseg.runtime.upsample import Side
from evitseg.system.parallel import ordered_map
from evitseg.tiling.arguments import ImageLike, MaskPlace, ModelLike, image_source, mask_sink, reading_of, tiled_network
from evitseg.tiling.context import Context
from evitseg.tiling.graph_cut import IMAGE, LOGITS
from evitseg.tiling.memory_model import default_memory, mib, region_memory, segment_bytes_per_pixel
from evitseg.tiling.network import Arrays, Network
from evitseg.tiling.plan import LARGEST_FIRST_TILE, Plan, mask_of_window, window_around
from evitseg.tiling.windows import Damage, Resampled, Window, tiles_of, valid_window

_SMALLEST_PART = 256
"""Approximate smallest side of a part of a region, in pixels. Its halo is several times as large already."""


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

        result = evitseg.segment_large("model.onnx", "mosaic.tif", "mask.tif")
        result.context.save("mosaic.npz")
        evitseg.render_region("model.onnx", "mosaic.tif", "mosaic.npz", (4000, 2000, 512, 512), "part.tif")

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
    network = tiled_network(model)
    if not isinstance(context, Context):
        context = Context.load(context, network)
    window = region if isinstance(region, Window) else Window(*region)
    with image_source(source, None, memory, reading_of(model, network)) as (image, _):
        rendered = _rendered(image, network, context, window, memory)
        if mask is not None:
            from evitseg.raster import part_of

            part = part_of(image, window.top, window.left, window.height, window.width)
            with mask_sink(mask, part, network) as sink:
                for place in tiles_of(part.size, sink.tile):
                    rows, columns = place.inside(Window(0, 0, *part.size))
                    sink.write(place.top, place.left, rendered.mask[rows, columns])
    return rendered


def _rendered(source: Source, network: Network, context: Context, region: Window, memory: int | None) -> RenderedRegion:
    height, width = source.size
    context.check_image(source)
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
    parts, size, at_once = _parts(region, network, plan, source.held, memory)
    resampled = Resampled(source, plan.working)
    given: Arrays = {}
    for i, (sums, attention) in enumerate(zip(context.sums, network.partition.attentions, strict=True)):
        given |= sums.inputs(i, attention)
    whole = np.empty((region.height, region.width), network.labels.dtype)
    try:
        with network.ready(network.partition.whole, _around(parts[0], network, plan, size)) as run:

            def work(part: Window) -> list[Damage]:
                window = _around(part, network, plan, size)
                image, damages = resampled.read(window)
                mask = mask_of_window(run({IMAGE: image[None], **given})[LOGITS][0], plan, part, window)
                valid = valid_window(source, part, damages)
                if valid is not None:
                    mask[~valid] = network.labels.ignore_index
                whole[part.inside(region)] = mask
                return damages

            found = {damage.window: damage for some in ordered_map(parts, work, at_once, 0) for damage in some}
    finally:
        network.free()
    return RenderedRegion(whole, tuple(found.values()))


def _parts(
    region: Window, network: Network, plan: Plan, held: int, memory: int
) -> tuple[list[Window], tuple[int, int], int]:
    """The fewest parts of a region that fit in memory.

    Returns: the parts, (height, width) of the largest one's core, and how many run at once.

    Raises: ConfigError if none fit.
    """
    whole, sides = network.partition.whole, (region.height, region.width)
    scale = [own / new for own, new in zip(plan.image, plan.working, strict=True)]
    per_pixel = segment_bytes_per_pixel(network.partition, whole, network.manifest.model.num_classes, scale)
    value_bytes = network.labels.dtype().itemsize
    least = math.inf
    fewest, most = (-(-max(sides) // side) for side in (LARGEST_FIRST_TILE, _SMALLEST_PART))
    for count, at_once in product(range(fewest, most + 1), range(network.workers, 0, -1)):
        down, across = (min(count, side) for side in sides)
        # Upper bound of a core: its part, one logit on either side, rounded up to whole strides.
        cores = [-(-side // n) / per + 4 * STRIDE for side, n, per in zip(sides, (down, across), scale, strict=True)]
        seen = [
            min(core + whole.halo_before + whole.halo_after, length)
            for core, length in zip(cores, plan.working, strict=True)
        ]
        running = min(at_once, down * across)
        needed = region_memory(math.prod(seen), per_pixel, running, math.prod(sides), value_bytes, held)
        least = min(least, needed)
        if needed <= memory:
            break
    else:
        raise ConfigError(
            f"{mib(memory)} of memory is not enough: the smallest part of a region, with its halo, needs {mib(least)}; "
            "give more."
        )
    rows, columns = (
        [*pairwise(first + i * side // n for i in range(n + 1))]
        for first, side, n in zip((region.top, region.left), sides, (down, across), strict=True)
    )
    parts = [Window(top, left, bottom - top, right - left) for top, bottom in rows for left, right in columns]
    found = [_core_of(plan, part) for part in parts]
    return parts, (max(core.height for core in found), max(core.width for core in found)), at_once


def _around(part: Window, network: Network, plan: Plan, largest: tuple[int, int]) -> Window:
    """The window that the whole network must read for a part of the mask."""
    return window_around(_core_of(plan, part), network.partition.whole, plan.working, largest)


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
