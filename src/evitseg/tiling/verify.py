"""Comparison of tiles with the whole image."""

from __future__ import annotations

import os
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from evitseg.architecture import LOGIT_STRIDE, STRIDE
from evitseg.image import Size
from evitseg.raster.window import ArraySource, Source
from evitseg.runtime.upsample import argmax_upsampled
from evitseg.system.files import temporary_folder
from evitseg.tiling.arguments import ImageLike, ModelLike, image_source, reading_of, tiled_network
from evitseg.tiling.job import Job
from evitseg.tiling.network import Network
from evitseg.tiling.plan import Plan, working_size
from evitseg.tiling.scratch import Scratch
from evitseg.tiling.windows import Window, read_window


def tiled_logits(
    source: Source, network: Network, tile: int, scratch: str | os.PathLike[str], size: Size = "native"
) -> NDArray[np.float32]:
    """(classes, h / 8, w / 8) logits of an image that fits in memory, computed in tiles of this side."""
    working = working_size(source.size, network.manifest, size)
    partition = network.partition
    plan = Plan(source.size, working, (tile,) * len(partition.segments))
    shape = (network.manifest.model.num_classes, *(side // LOGIT_STRIDE for side in plan.working))
    logits = np.full(shape, np.nan, np.float32)
    with temporary_folder(Path(scratch)) as folder:
        store = Scratch(folder)
        job = Job(network, source, plan, store)
        try:
            for segment in partition.segments:
                sums = job.sums_before(segment)
                with network.ready(segment, plan.window(segment, 0)) as run:
                    for at in range(plan.tiles(segment.index)):
                        if partition.attention_after(segment) is not None:
                            job.work(run, segment, at, sums)
                            continue
                        core, window = plan.core(segment.index, at), plan.window(segment, at)
                        place, outer = core.over(LOGIT_STRIDE), window.over(LOGIT_STRIDE)
                        rows, columns = place.inside(outer)
                        own = job.logits(run, segment, at, sums)[:, rows, columns]
                        logits[:, place.top : place.bottom, place.left : place.right] = own
        finally:
            network.free()
            store.close()
    return logits


@dataclass(frozen=True)
class Agreement:
    """Differences between tiles and the whole, on a part of an image.

    Attributes:
        part: the part, which is treated as an image of its own.
        max_logit_difference: largest difference of logits, relative to the largest logit.
        different_pixels: number of pixels of the mask that differ.
    """

    part: Window
    max_logit_difference: float
    different_pixels: int


def verify_tiles(
    model: ModelLike, source: ImageLike, *, side: int = 1024, scratch: str | os.PathLike[str] | None = None
) -> Agreement:
    """Segment the middle of an image in tiles and whole, and compare the results.

    Args:
        model, source, scratch: as in `segment_large`.
        side: largest side of the part, in pixels. A tile's side is a quarter of the part's longer one.

    Raises: EngineError, WeightsError, ImageError, FileError.
    """
    from evitseg.loading import load

    network = tiled_network(model)
    folder = Path(tempfile.gettempdir() if scratch is None else scratch)
    with image_source(source, folder, None, reading_of(model, network)) as (image, _):
        height, width = (min(side, length) for length in image.size)
        part = Window((image.size[0] - height) // 2, (image.size[1] - width) // 2, height, width)
        pixels, _ = read_window(image, part)
    info = network.info
    whole_network = load(
        network.path, engine="openvino", threads=info.threads, precision=network.precision, size="native"
    )
    whole = whole_network.logits(pixels)
    tile = max(STRIDE, max(height, width) // 4 // STRIDE * STRIDE)
    tiles = tiled_logits(ArraySource(pixels), network, tile, folder)
    masks = [argmax_upsampled(logits, (height, width)) for logits in (tiles, whole)]
    difference = float(np.abs(tiles - whole).max() / np.abs(whole).max())
    return Agreement(part, difference, int((masks[0] != masks[1]).sum()))
