"""The plan of tiles: their size for each segment of the network, and where they lie."""

from __future__ import annotations

import logging
from bisect import bisect_left, bisect_right
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from evitseg.architecture import LOGIT_STRIDE, STRIDE
from evitseg.errors import ConfigError
from evitseg.image import Size
from evitseg.manifest import Manifest
from evitseg.runtime.upsample import Side, argmax_upsampled
from evitseg.tiling.graph_cut import Segment
from evitseg.tiling.memory_model import default_memory, mib, tiles_memory
from evitseg.tiling.network import Network
from evitseg.tiling.windows import Window

_LOG = logging.getLogger(__name__)

LARGEST_TILE = 4096
"""Largest side of a tile in pixels. Larger tiles read fewer halo pixels twice, but were no faster for their memory."""
LARGEST_FIRST_TILE = 2048
"""Largest side of the first segment's tiles. Its layers run in tiles of their own; larger ones only compile longer."""


@dataclass(frozen=True)
class Plan:
    """Sizes and places of all tiles, as plain numbers: two machines with the same plan do the same work.

    Attributes:
        image: (height, width) of the image in pixels.
        working: (height, width) of the network's input.
        sides: per segment, the largest side of its tiles in pixels of the network's input; multiples of 32.
    """

    image: tuple[int, int]
    working: tuple[int, int]
    sides: tuple[int, ...]

    def _edges(self, index: int, length: int) -> list[int]:
        """Edges of the tiles along one side: nearly equal lengths, multiples of the stride."""
        blocks, count = length // STRIDE, -(-length // self.sides[index])
        return [round(i * blocks / count) * STRIDE for i in range(count + 1)]

    def edges(self, index: int, stride: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Edges of a segment's tiles in features of this stride, down and across."""
        down, across = (tuple(at // stride for at in self._edges(index, length)) for length in self.working)
        return down, across

    def mask_edges(self, index: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Edges of a segment's tiles in pixels of the mask, down and across."""
        down, across = (
            tuple(round(at * own / new) for at in self._edges(index, new))
            for own, new in zip(self.image, self.working, strict=True)
        )
        return down, across

    def grid(self, index: int) -> tuple[int, int]:
        """Number of rows and columns of a segment's tiles."""
        height, width = (-(-length // self.sides[index]) for length in self.working)
        return height, width

    def tiles(self, index: int) -> int:
        """Number of a segment's tiles."""
        rows, columns = self.grid(index)
        return rows * columns

    def core(self, index: int, tile: int) -> Window:
        """The tile itself, in the network's input, without its halo."""
        row, column = divmod(tile, self.grid(index)[1])
        (top, bottom), (left, right) = (
            self._edges(index, length)[at : at + 2] for length, at in zip(self.working, (row, column), strict=True)
        )
        return Window(top, left, bottom - top, right - left)

    def window(self, segment: Segment, tile: int) -> Window:
        """A tile with its halo. All windows of a segment have the same size, so that it is compiled once."""
        height, width = (max(b - a for a, b in pairwise(self._edges(segment.index, side))) for side in self.working)
        return window_around(self.core(segment.index, tile), segment, self.working, (height, width))

    def mask_window(self, core: Window) -> Window:
        """The pixels of the mask that belong to a tile. Together, all tiles cover the mask exactly once."""
        (top, bottom), (left, right) = (
            (round(begin * own / new), round(end * own / new))
            for own, new, begin, end in zip(
                self.image, self.working, (core.top, core.left), (core.bottom, core.right), strict=True
            )
        )
        return Window(top, left, bottom - top, right - left)

    def touching(self, index: int, window: Window) -> list[int]:
        """Tiles of a segment that share pixels with a window of the network's input."""
        rows, columns = (
            range(bisect_right(edges, begin) - 1, bisect_left(edges, end))
            for edges, begin, end in (
                (self._edges(index, self.working[0]), window.top, window.bottom),
                (self._edges(index, self.working[1]), window.left, window.right),
            )
        )
        return [row * self.grid(index)[1] + column for row in rows for column in columns]

    def neighbours(self, index: int, tile: int) -> list[int]:
        """A tile and the up to eight around it."""
        rows, columns = self.grid(index)
        row, column = divmod(tile, columns)
        return [
            r * columns + c
            for r in range(max(0, row - 1), min(rows, row + 2))
            for c in range(max(0, column - 1), min(columns, column + 2))
        ]


def window_around(core: Window, segment: Segment, working: tuple[int, int], largest: tuple[int, int]) -> Window:
    """The window that a segment must read for correct values inside `core`.

    It ends at the image's border, never beyond, so that convolutions pad with zeros there and nowhere else. On the
    other sides the halo is wide enough that the window's own borders do not affect `core`.

    Args:
        largest: (height, width) of the largest core. Every window has the size that this one needs.
    """
    spans = []
    for length, begin, most in zip(working, (core.top, core.left), largest, strict=True):
        size = min(length, most + segment.halo_before + segment.halo_after)
        spans.append((min(max(0, begin - segment.halo_before), length - size), size))
    (top, height), (left, width) = spans
    return Window(top, left, height, width)


def working_size(image: tuple[int, int], manifest: Manifest, size: Size = "native") -> tuple[int, int]:
    """(height, width) of the network's input, by the manifest's rule but without its limit. Raises: ConfigError."""
    if manifest.preprocess.fixed is not None:
        manifest.preprocess.fit(image, "native")  # raises: the model has only one size
    return manifest.preprocess.fit(image, size, limit=None)


def mask_of_window(logits: NDArray[np.float32], plan: Plan, place: Window, window: Window) -> NDArray[np.integer]:
    """Class indices of a part of the mask.

    Args:
        logits: (classes, h, w) of `window`.
        place: the part, in pixels of the mask.
        window: of the network's input; it contains all logits that the part depends on.
    """
    at = window.over(LOGIT_STRIDE)
    whole = [
        Side(side // LOGIT_STRIDE, pixels, 0, first)
        for side, pixels, first in zip(plan.working, plan.image, (place.top, place.left), strict=True)
    ]
    (y0, y1), (x0, x1) = (side.needed(count) for side, count in zip(whole, (place.height, place.width), strict=True))
    needed = Window(y0, x0, y1 - y0, x1 - x0)
    assert at.common(needed) == needed, "the window lacks logits that the part of the mask depends on"
    rows, columns = needed.inside(at)
    sides = replace(whole[0], first_logit=y0), replace(whole[1], first_logit=x0)
    return argmax_upsampled(logits[:, rows, columns], (place.height, place.width), sides)


def make_plan(
    network: Network,
    image: tuple[int, int],
    size: Size = "native",
    memory: int | None = None,
    context_window: int | None = None,
    tile: int | None = None,
    held: int = 0,
) -> Plan:
    """The fastest tiles that fit in memory, for each segment of the network.

    Args:
        image: (height, width) of the image.
        size, memory, context_window, tile: as in `evitseg.segment_large`.
        held: bytes that the source holds, which tiles cannot use.

    Raises: ConfigError if no tile fits.
    """
    working, segments = working_size(image, network.manifest, size), network.partition.segments
    memory = default_memory(held) if memory is None else memory
    if context_window is not None:
        tile = round(context_window / 3 / STRIDE) * STRIDE
        if tile < STRIDE:
            raise ConfigError(f"a context window of {context_window} pixels is too small; give at least {3 * STRIDE}.")
    if tile is not None and (tile < STRIDE or tile % STRIDE):
        raise ConfigError(f"tiles of {tile} pixels do not fit the network; give a multiple of {STRIDE}.")
    scale = [own / new for own, new in zip(image, working, strict=True)]

    def needed(segment: Segment, plan: Plan) -> int:
        pixels, classes = plan.window(segment, 0).pixels, network.manifest.model.num_classes
        return held + tiles_memory(network.partition, segment, classes, pixels, scale, network.workers)

    sides = []
    for segment in segments:
        largest = min(LARGEST_TILE if segment.index else LARGEST_FIRST_TILE, max(working))
        tried = {side: Plan(image, working, (side,) * len(segments)) for side in _sides(tile, largest)}
        fitting = [side for side, plan in tried.items() if needed(segment, plan) <= memory]
        if not fitting:
            smallest = list(tried.values())[-1]
            least = max(needed(each, smallest) for each in segments)
            raise ConfigError(
                f"{mib(memory)} of memory is not enough: this model needs {mib(least)}"
                f"{' for tiles of this size' if tile else ', even with the smallest tiles'}; give more."
            )
        sides.append(min(fitting, key=lambda side: _cost(tried[side], segment)))
    plan = Plan(image, working, tuple(sides))
    tiles = ", ".join(f"{plan.tiles(i)} of {side} pixels" for i, side in enumerate(sides))
    _LOG.info("memory limit %s; tiles per segment of the network: %s", mib(memory), tiles)
    return plan


def _sides(tile: int | None, longest: int) -> list[int]:
    """Candidates for the side of a tile, largest first."""
    return [tile] if tile else list(range(longest, 0, -STRIDE))


def _cost(plan: Plan, segment: Segment) -> int:
    """Number of pixels that a segment reads in all tiles together."""
    return plan.window(segment, 0).pixels * plan.tiles(segment.index)
