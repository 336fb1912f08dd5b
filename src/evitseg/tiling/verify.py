"""Comparison of bands with the whole image."""

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
from evitseg.tiling.arguments import ImageLike, ModelLike, banded_network, image_source, reading_of
from evitseg.tiling.job import ImageRows, Job
from evitseg.tiling.network import Network
from evitseg.tiling.plan import BAND_STEP, Plan, working_size
from evitseg.tiling.scratch import Scratch
from evitseg.tiling.windows import Window, read_window


def banded_logits(
    source: Source, network: Network, band: int, scratch: str | os.PathLike[str], size: Size = "native"
) -> NDArray[np.float32]:
    """(classes, h / 8, w / 8) logits of an image that fits in memory, computed in bands of this height."""
    working = working_size(source.size, network.manifest, size)
    plan = Plan(source.size, working, (band,) * len(network.core.segments))
    logits = np.empty((network.core.core.classes, *(side // LOGIT_STRIDE for side in working)), np.float32)
    with temporary_folder(Path(scratch)) as folder:
        store = Scratch(folder)
        job = Job(network, source, plan, store)
        store.open(job.bytes_needed)
        rows = ImageRows(job.source, 0, band, network.threads)
        try:
            for segment in range(job.last + 1):
                sums = job.sums_for(segment, 0)
                for number, window in enumerate(plan.windows(segment)):
                    image, first = None, 0
                    if segment == 0:
                        image, first, strips = rows.upto(job.image_rows(0, window))
                        for strip, damages in strips:
                            job.note_valid(strip, damages)
                    out = job.run(segment, window, sums, image, first)
                    if segment < job.last:
                        job.finish(segment, number, window, out)
                        continue
                    place = job.place(segment, window)
                    logits[:, place.top : place.bottom] = out
                store.wait()
        finally:
            rows.close()
            store.close()
    return logits


@dataclass(frozen=True)
class Agreement:
    """Differences between bands and the whole, on a part of an image.

    Attributes:
        part: the part, which is treated as an image of its own.
        different_logits: number of logits of which a bit differs.
        different_pixels: number of pixels of the mask that differ.
    """

    part: Window
    different_logits: int
    different_pixels: int

    @property
    def identical(self) -> bool:
        """Whether all bits are the same."""
        return not (self.different_logits or self.different_pixels)


def verify_bands(
    model: ModelLike, source: ImageLike, *, side: int = 1024, scratch: str | os.PathLike[str] | None = None
) -> Agreement:
    """Segment the middle of an image in bands and whole, and compare the results bit for bit.

    Args:
        model, source, scratch: as in `segment_large`.
        side: largest side of the part, in pixels.

    Raises: EngineError, WeightsError, ImageError, FileError.
    """
    network = banded_network(model)
    folder = Path(tempfile.gettempdir() if scratch is None else scratch)
    with image_source(source, folder, None, reading_of(model, network)) as (image, _):
        height, width = (min(side, length) for length in image.size)
        part = Window((image.size[0] - height) // 2, (image.size[1] - width) // 2, height, width)
        pixels, _ = read_window(image, part)
    # A mask of fewer rows than a row of logits depends on some of them only; the others are not computed in bands.
    pixels = np.pad(pixels, [(0, max(0, STRIDE - length)) for length in pixels.shape[:2]] + [(0, 0)], "edge")
    whole = network.engine(network.manifest.preprocess.apply(pixels, "native")[None])[0]
    bands = banded_logits(ArraySource(pixels), network, BAND_STEP, folder)
    masks = [argmax_upsampled(logits, pixels.shape[:2]) for logits in (bands, whole)]
    return Agreement(
        part, int((bands.view(np.uint32) != whole.view(np.uint32)).sum()), int((masks[0] != masks[1]).sum())
    )
