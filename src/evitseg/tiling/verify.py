"""Compare tiled with whole-image results."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from evitseg.architecture import LOGIT_STRIDE, STRIDE
from evitseg.image import Size
from evitseg.raster.window import ArraySource, Source
from evitseg.runtime.segmenter import Segmenter
from evitseg.runtime.upsample import argmax_upsampled
from evitseg.system.files import temporary_folder
from evitseg.tiling.job import Job
from evitseg.tiling.network import Network
from evitseg.tiling.plan import Plan, working_size
from evitseg.tiling.scratch import Scratch
from evitseg.tiling.windows import Window, read_window


def tiled_logits(
    source: Source, network: Network, tile: int, scratch: str | os.PathLike[str], size: Size = "native"
) -> NDArray[np.float32]:
    """(classes, h / 8, w / 8) of an image that fits in memory, computed in tiles: to compare with the whole."""
    working = working_size(source.size, network.manifest, size)
    plan = Plan(source.size, working, (tile,) * len(network.cut.pieces))
    shape = (network.manifest.model.num_classes, *(side // LOGIT_STRIDE for side in plan.working))
    logits = np.full(shape, np.nan, np.float32)
    with temporary_folder(Path(scratch)) as folder:
        store = Scratch(folder)
        job = Job(network, source, plan, store)
        try:
            for piece in network.cut.pieces:
                sums = job.sums(piece.number - 1) if piece.number else None
                with network.ready(piece, plan.window(piece, 0)) as run:
                    for at in range(plan.tiles(piece.number)):
                        if network.cut.attention_behind(piece) is not None:
                            job.work(run, piece, at, sums)
                            continue
                        core, window = plan.core(piece.number, at), plan.window(piece, at)
                        place, outer = core.over(LOGIT_STRIDE), window.over(LOGIT_STRIDE)
                        rows, columns = place.inside(outer)
                        own = job.logits(run, piece, at, sums)[:, rows, columns]
                        logits[:, place.top : place.bottom, place.left : place.right] = own
        finally:
            network.free()
            store.close()
    return logits


@dataclass(frozen=True)
class Agreement:
    """How tiles and the whole compare on a part of an image that fits in memory.

    Attributes:
        part: of the image, as if it were one of its own.
        difference: largest of the logits', relative to the largest logit.
        pixels: of the mask that differ.
    """

    part: Window
    difference: float
    pixels: int


def verify(
    source: Source, network: Network, segment: Segmenter, scratch: str | os.PathLike[str], side: int = 1024
) -> Agreement:
    """Compute the middle of an image both ways, in tiles of a quarter of its side and whole.

    Args:
        segment: the same model in the same precision.
    """
    height, width = (min(side, length) for length in source.size)
    part = Window((source.size[0] - height) // 2, (source.size[1] - width) // 2, height, width)
    image, _ = read_window(source, part)
    whole = Segmenter(segment.engine, "native").logits(image)
    tile = max(STRIDE, max(height, width) // 4 // STRIDE * STRIDE)
    tiles = tiled_logits(ArraySource(image), network, tile, scratch)
    masks = [argmax_upsampled(logits, (height, width)) for logits in (tiles, whole)]
    difference = float(np.abs(tiles - whole).max() / np.abs(whole).max())
    return Agreement(part, difference, int((masks[0] != masks[1]).sum()))
