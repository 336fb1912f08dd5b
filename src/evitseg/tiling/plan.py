"""The plan of an image: the windows in which each segment of the network runs."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from evitseg.architecture import LOGIT_STRIDE, STRIDE
from evitseg.errors import ConfigError
from evitseg.image import Size
from evitseg.manifest import Manifest
from evitseg.raster.window import TILE
from evitseg.runtime.core import Core
from evitseg.runtime.core_windows import SUM_ROWS
from evitseg.runtime.upsample import Side, argmax_upsampled
from evitseg.tiling.memory_model import band_memory, default_memory, mib
from evitseg.tiling.network import Network
from evitseg.tiling.windows import Window

_LOG = logging.getLogger(__name__)

BAND_STEP = SUM_ROWS * STRIDE
"""Heights of bands are multiples of this many pixels, so that a set of attention sums belongs to one band."""
LARGEST_BAND = 2048
"""Largest height of a band in pixels. Rows beside a band are computed twice, but higher ones were no faster."""
_FIRST_PIXELS = 2**25
"""Most pixels of a band of the first segment, unless it is low: new memory for rows of the image takes time, too."""
_LAST_PIXELS = 2**22
"""The same for the last segment, which needs new memory for logits and mask."""
_LOW = 512
"""Height of bands in pixels up to which rows that are computed twice cost more than new memory."""


@dataclass(frozen=True)
class Plan:
    """The windows of an image, as plain numbers: two machines with the same plan do the same work.

    Every segment runs in bands as wide as the image, or, where attention is limited to a neighbourhood, in tiles.

    Attributes:
        image: (height, width) of the image in pixels.
        working: (height, width) of the network's input.
        bands: per segment, the height of its bands in pixels of the network's input.
        tile: side of the tiles; None for bands.
    """

    image: tuple[int, int]
    working: tuple[int, int]
    bands: tuple[int, ...]
    tile: int | None = None

    @cached_property
    def _edges(self) -> tuple[list[int], list[int]]:
        """Edges of the tiles, down and across: nearly equal lengths, multiples of the stride."""
        assert self.tile is not None
        found = []
        for length in self.working:
            blocks, count = length // STRIDE, -(-length // self.tile)
            found.append([round(i * blocks / count) * STRIDE for i in range(count + 1)])
        return found[0], found[1]

    def windows(self, segment: int) -> list[Window]:
        """The windows of a segment, in pixels of the network's input. Together they cover it once."""
        height, width = self.working
        if self.tile is None:
            tops = range(0, height, self.bands[segment])
            return [Window(top, 0, min(self.bands[segment], height - top), width) for top in tops]
        down, across = self._edges
        return [
            Window(top, left, bottom - top, right - left)
            for top, bottom in pairwise(down)
            for left, right in pairwise(across)
        ]

    def neighbours(self, tile: int) -> list[int]:
        """A tile and the up to eight around it."""
        rows, columns = (len(edges) - 1 for edges in self._edges)
        row, column = divmod(tile, columns)
        return [
            r * columns + c
            for r in range(max(0, row - 1), min(rows, row + 2))
            for c in range(max(0, column - 1), min(columns, column + 2))
        ]

    def mask_window(self, window: Window) -> Window:
        """The pixels of the mask that belong to a window. Those of all windows cover the mask exactly once."""
        (top, bottom), (left, right) = (
            (round(begin * own / new), round(end * own / new))
            for own, new, begin, end in zip(
                self.image, self.working, (window.top, window.left), (window.bottom, window.right), strict=True
            )
        )
        return Window(top, left, bottom - top, right - left)

    def logits_window(self, place: Window) -> Window:
        """The logits that a part of the mask depends on."""
        (y0, y1), (x0, x1) = (
            Side(new // LOGIT_STRIDE, own, 0, first).needed(count)
            for new, own, first, count in zip(
                self.working, self.image, (place.top, place.left), (place.height, place.width), strict=True
            )
        )
        return Window(y0, x0, y1 - y0, x1 - x0)


def working_size(image: tuple[int, int], manifest: Manifest, size: Size = "native") -> tuple[int, int]:
    """(height, width) of the network's input, by the manifest's rule but without its limit. Raises: ConfigError."""
    if manifest.preprocess.fixed is not None:
        manifest.preprocess.fit(image, "native")  # raises: the model has only one size
    return manifest.preprocess.fit(image, size, limit=None)


def mask_of_window(
    logits: NDArray[np.float32], plan: Plan, place: Window, window: Window, core: Core | None = None
) -> NDArray[np.integer]:
    """Class indices of a part of the mask.

    Args:
        logits: (classes, h, w) of `window`.
        place: the part, in pixels of the mask.
        window: in logits; it contains all that the part depends on.
        core: whose threads take part.
    """
    needed = plan.logits_window(place)
    assert window.common(needed) == needed, "the window lacks logits that the part of the mask depends on"
    rows, columns = needed.inside(window)
    sides = [
        Side(side // LOGIT_STRIDE, pixels, first_logit, first_pixel)
        for side, pixels, first_logit, first_pixel in zip(
            plan.working, plan.image, (needed.top, needed.left), (place.top, place.left), strict=True
        )
    ]
    return argmax_upsampled(logits[:, rows, columns], (place.height, place.width), (sides[0], sides[1]), core)


def make_plan(
    network: Network,
    image: tuple[int, int],
    size: Size = "native",
    memory: int | None = None,
    context_window: int | None = None,
    band: int | None = None,
    held: int = 0,
    most: int = LARGEST_BAND,
) -> Plan:
    """The highest bands that fit in memory, for each segment of the network.

    Args:
        image: (height, width) of the image.
        size, memory, context_window, band: as in `evitseg.segment_large`.
        held: bytes that the source holds, which bands cannot use.
        most: largest height of a band.

    Raises: ConfigError if no band fits.
    """
    working = working_size(image, network.manifest, size)
    memory = default_memory(held) if memory is None else memory
    if band is not None and (band < BAND_STEP or band % BAND_STEP):
        raise ConfigError(f"bands of {band} pixels do not fit the network; give a multiple of {BAND_STEP}.")
    count = len(network.core.segments)
    plan = Plan(image, working, (BAND_STEP,) * count)
    if context_window is not None:
        tile = round(context_window / 3 / STRIDE) * STRIDE
        if tile < STRIDE:
            raise ConfigError(f"a context window of {context_window} pixels is too small; give at least {3 * STRIDE}.")
        plan = replace(plan, tile=tile)
        least = max(_memory(network, plan, each, held) for each in range(count))
        if least > memory:
            raise _too_little(memory, least, f"a context window of {context_window} pixels in this image")
        return plan
    bands, least = [], 0
    for segment in range(count):
        pixels = _FIRST_PIXELS if segment == 0 else _LAST_PIXELS if segment == count - 1 else most * working[1]
        heights = [band] if band else _heights(min(working[0], most, max(_LOW, pixels // working[1])))
        for height in heights:
            tried = replace(plan, bands=(height,) * count)
            needed = _memory(network, tried, segment, held)
            if needed <= memory:
                bands.append(height)
                break
        least = max(least, needed)  # of the last one tried
    if len(bands) < count:
        raise _too_little(memory, least, "bands of this height" if band else "this image, even in the smallest bands,")
    plan = replace(plan, bands=tuple(bands))
    _LOG.info("memory limit %s; heights of the bands, per segment: %s", mib(memory), ", ".join(map(str, bands)))
    return plan


def _too_little(memory: int, least: int, what: str) -> ConfigError:
    return ConfigError(f"{mib(memory)} of memory is not enough: {what} needs {mib(least)}; give more.")


def _heights(most: int) -> list[int]:
    """Candidates for the height of a band, largest first: multiples of the tiles of masks, or lower."""
    top = -(-most // BAND_STEP) * BAND_STEP
    return [height for height in range(top, 0, -BAND_STEP) if height == top or height < TILE or not height % TILE]


def _memory(network: Network, plan: Plan, segment: int, held: int) -> int:
    """Estimated peak memory of a segment's windows."""
    windows = plan.windows(segment)
    largest = max(windows, key=lambda window: window.pixels)
    return held + band_memory(network, plan.image, plan.working, segment, largest)
