"""Which tiles an image is cut into, and how much memory they need."""

from __future__ import annotations

import logging
from bisect import bisect_left, bisect_right
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from evitseg.architecture import LOGIT_STRIDE, STRIDE
from evitseg.errors import ConfigError
from evitseg.image import Size
from evitseg.manifest import Manifest
from evitseg.runtime.upsample import Side, argmax_upsampled
from evitseg.tiling.graph_cut import WHOLE, Piece
from evitseg.tiling.memory import BASE_BYTES, default_memory, mib
from evitseg.tiling.network import Network
from evitseg.tiling.windows import Window

ContextMode: TypeAlias = Literal["global"] | int
"""What attention sums over: the whole image, or so many pixels around."""


_LOG = logging.getLogger(__name__)
LARGEST_TILE = 4096
"""Pixels of a tile's side; larger ones see less twice and gained nothing in sight of their memory."""


LARGEST_FIRST_TILE = 2048
"""Of the first piece, whose layers run in tiles of their own: larger ones only took longer to compile."""


@dataclass(frozen=True)
class Plan:
    """Which tiles there are. Plain numbers: two machines with the same plan do the same work.

    Attributes:
        image: (height, width) of the image, in pixels.
        working: (height, width) of the network's input.
        sides: for every piece of the network, most pixels of a tile's side, in the network's input; multiples of 32.
    """

    image: tuple[int, int]
    working: tuple[int, int]
    sides: tuple[int, ...]

    def _edges(self, piece: int, length: int) -> list[int]:
        """Where tiles begin and end along one side: nearly equal parts, multiples of the stride."""
        blocks, count = length // STRIDE, -(-length // self.sides[piece])
        return [round(i * blocks / count) * STRIDE for i in range(count + 1)]

    def edges(self, piece: int, stride: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Where a piece's tiles begin and end in features of a stride, downwards and across."""
        down, across = (tuple(at // stride for at in self._edges(piece, length)) for length in self.working)
        return down, across

    def mask_edges(self, piece: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Where the parts of the mask that a piece's tiles give begin and end, downwards and across."""
        down, across = (
            tuple(round(at * own / new) for at in self._edges(piece, new))
            for own, new in zip(self.image, self.working, strict=True)
        )
        return down, across

    def grid(self, piece: int) -> tuple[int, int]:
        """Rows and columns of a piece's tiles."""
        height, width = (-(-length // self.sides[piece]) for length in self.working)
        return height, width

    def tiles(self, piece: int) -> int:
        rows, columns = self.grid(piece)
        return rows * columns

    def core(self, piece: int, tile: int) -> Window:
        """The part of the network's input that is a tile's own."""
        row, column = divmod(tile, self.grid(piece)[1])
        (top, bottom), (left, right) = (
            self._edges(piece, length)[at : at + 2] for length, at in zip(self.working, (row, column), strict=True)
        )
        return Window(top, left, bottom - top, right - left)

    def window(self, piece: Piece, tile: int) -> Window:
        """What a piece must see for a tile; of one size for all tiles, so that one compiled network serves."""
        height, width = (max(b - a for a, b in pairwise(self._edges(piece.number, side))) for side in self.working)
        return window_around(self.core(piece.number, tile), piece, self.working, (height, width))

    def mask_window(self, core: Window) -> Window:
        """The mask's pixels that a tile gives; the tiles' windows cover the mask once."""
        (top, bottom), (left, right) = (
            (round(begin * own / new), round(end * own / new))
            for own, new, begin, end in zip(
                self.image, self.working, (core.top, core.left), (core.bottom, core.right), strict=True
            )
        )
        return Window(top, left, bottom - top, right - left)

    def touching(self, piece: int, window: Window) -> list[int]:
        """Tiles that have pixels in a part of the network's input."""
        rows, columns = (
            range(bisect_right(edges, begin) - 1, bisect_left(edges, end))
            for edges, begin, end in (
                (self._edges(piece, self.working[0]), window.top, window.bottom),
                (self._edges(piece, self.working[1]), window.left, window.right),
            )
        )
        return [row * self.grid(piece)[1] + column for row in rows for column in columns]

    def neighbours(self, piece: int, tile: int) -> list[int]:
        """A tile and those around it."""
        rows, columns = self.grid(piece)
        row, column = divmod(tile, columns)
        return [
            r * columns + c
            for r in range(max(0, row - 1), min(rows, row + 2))
            for c in range(max(0, column - 1), min(columns, column + 2))
        ]


def window_around(core: Window, piece: Piece, working: tuple[int, int], largest: tuple[int, int]) -> Window:
    """What a piece must see to be right in a part of the network's input.

    It ends at the image's border, never beyond, so that every convolution pads with zeros there and only there;
    elsewhere it reaches so far that what its own borders spoil is outside the part.

    Args:
        largest: (height, width) of the largest part; the window is large enough for that, whatever this one's size.
    """
    spans = []
    for length, begin, most in zip(working, (core.top, core.left), largest, strict=True):
        size = min(length, most + piece.before + piece.after)
        spans.append((min(max(0, begin - piece.before), length - size), size))
    (top, height), (left, width) = spans
    return Window(top, left, height, width)


def working_size(image: tuple[int, int], manifest: Manifest, size: Size = "native") -> tuple[int, int]:
    """(height, width) of the network's input, by the manifest's rule without its limit. Raises: ConfigError."""
    if manifest.preprocess.fixed is not None:
        manifest.preprocess.fit(image, "native")  # says that there is but one
    return manifest.preprocess.fit(image, size, limit=None)


def mask_window(logits: NDArray[np.float32], plan: Plan, place: Window, window: Window) -> NDArray[np.integer]:
    """Class indices of a part of the mask from logits of a window of the network's input that contains it."""
    at = window.over(LOGIT_STRIDE)
    whole = [
        Side(side // LOGIT_STRIDE, pixels, 0, first)
        for side, pixels, first in zip(plan.working, plan.image, (place.top, place.left), strict=True)
    ]
    (y0, y1), (x0, x1) = (side.needed(count) for side, count in zip(whole, (place.height, place.width), strict=True))
    needed = Window(y0, x0, y1 - y0, x1 - x0)
    assert at.common(needed) == needed, "a tile sees the logits around it"
    rows, columns = needed.inside(at)
    sides = replace(whole[0], first_logit=y0), replace(whole[1], first_logit=x0)
    return argmax_upsampled(logits[:, rows, columns], (place.height, place.width), sides)


def make_plan(
    network: Network,
    image: tuple[int, int],
    size: Size = "native",
    memory: int | None = None,
    context: ContextMode = "global",
    tile: int | None = None,
    held: int = 0,
) -> Plan:
    """The fastest tiles that keep the memory, piece by piece.

    Args:
        held: bytes of the memory that are not for tiles, see `held_by`.

    Raises: ConfigError where none do.
    """
    working, pieces = working_size(image, network.manifest, size), network.cut.pieces
    memory = default_memory(held) if memory is None else memory
    if context != "global":
        tile = round(context / 3 / STRIDE) * STRIDE
        if tile < STRIDE:
            raise ConfigError(f"a context of {context} pixels is too small; give at least {3 * STRIDE}.")
    if tile is not None and (tile < STRIDE or tile % STRIDE):
        raise ConfigError(f"a tile of {tile} pixels does not fit the network; give a multiple of {STRIDE}.")
    sides = []
    for piece in pieces:
        largest = LARGEST_TILE if piece.number else LARGEST_FIRST_TILE
        tried = {side: Plan(image, working, (side,) * len(pieces)) for side in _sides(tile, min(largest, max(working)))}
        fitting = [side for side, plan in tried.items() if held + needed_memory(network, plan, piece) <= memory]
        if not fitting:
            least = held + max(needed_memory(network, list(tried.values())[-1], piece) for piece in pieces)
            raise ConfigError(
                f"{mib(memory)} of memory are too little: with {'these' if tile else 'the smallest'} tiles this model "
                f"needs {mib(least)}; give more."
            )
        sides.append(min(fitting, key=lambda side: _cost(tried[side], piece)))
    plan = Plan(image, working, tuple(sides))
    tiles = ", ".join(f"{plan.tiles(i)} of {side} pixels" for i, side in enumerate(sides))
    _LOG.info("memory limit %s; tiles per segment of the network: %s", mib(memory), tiles)
    return plan


def _sides(tile: int | None, longest: int) -> list[int]:
    """Sides that tiles may have, largest first."""
    return [tile] if tile else list(range(longest, 0, -STRIDE))


def _cost(plan: Plan, piece: Piece) -> int:
    """Of a piece in these tiles: pixels that it sees."""
    return plan.window(piece, 0).pixels * plan.tiles(piece.number)


def needed_memory(network: Network, plan: Plan, piece: Piece) -> int:
    """Estimate of the bytes that the process holds at its fullest while it works on a piece."""
    scale = tuple(own / new for own, new in zip(plan.image, plan.working, strict=True))
    held = bytes_per_pixel(network, piece, scale)
    return int(BASE_BYTES + network.workers * plan.window(piece, 0).pixels * held)


def bytes_per_pixel(network: Network, piece: Piece, scale: tuple[float, ...] = (1.0, 1.0)) -> float:
    """Of a piece's window: inside the engine, and what it is given and gives, as arrays and on their way.

    Args:
        scale: pixels of the image for one of the network's input, downwards and across.
    """
    features = sum(f.values_per_pixel for f in (*piece.inputs, *piece.outputs))
    image = 3 * 4 if piece.number in (0, WHOLE) else 0
    if image and scale != (1.0, 1.0):  # what is read, and sums of it in 32 bits, along the rows first
        image = int(3 * scale[0] * scale[1] + 3 * 10 * scale[0]) + 1
    last = network.cut.attention_behind(piece) is None
    logits = network.manifest.model.num_classes / LOGIT_STRIDE**2 + 1 if last else 0
    return piece.bytes_per_pixel + 4 * 2 * (features + logits) + image
