"""Overlapping windows of an image through the network one by one, their logits averaged: what other tools do.

Every window's attention sums over that window alone, and its convolutions pad with zeros at its borders: the mask is
not that of the whole image, as `streaming`'s is. docs/results/large-images.md says where it is the better one.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from evitseg.architecture import LOGIT_STRIDE, STRIDE
from evitseg.errors import ConfigError
from evitseg.image import Size
from evitseg.raster.window import Sink, Source
from evitseg.runtime.upsample import Side
from evitseg.system.parallel import ordered_map
from evitseg.tiling.graph_cut import IMAGE, LOGITS
from evitseg.tiling.job import class_counts
from evitseg.tiling.memory import BASE_BYTES, default_memory, mib
from evitseg.tiling.network import Network
from evitseg.tiling.plan import Plan, mask_window, working_size
from evitseg.tiling.stream import Progress
from evitseg.tiling.windows import Damage, Resampled, Window, tiles_of, valid_window, whole_rows

_LOG = logging.getLogger(__name__)
_WAITING = 1
"""Windows whose turn to be added may be still to come, beside those that are under way."""
_PIXELS_AT_ONCE = 2**20
"""Of the mask: up-sampling must not need memory for a whole row of windows."""


@dataclass(frozen=True)
class Blended:
    """What `blend` did.

    Attributes:
        counts: pixels of the mask by class index; the last is the labels' `ignore_index`.
        damages: what of the image could not be read; there the mask has `ignore_index`.
    """

    counts: NDArray[np.int64]
    damages: tuple[Damage, ...]


def check_window(window: int) -> None:
    """Whether windows of so many pixels a side fit the network, and half of one, too. Raises: ConfigError."""
    if window < 2 * STRIDE or window % (2 * STRIDE):
        raise ConfigError(f"a window of {window} pixels does not fit the network; give a multiple of {2 * STRIDE}.")


def blend(
    source: Source,
    sink: Sink,
    network: Network,
    window: int,
    *,
    size: Size = "native",
    memory: int | None = None,
    watch: Callable[[Progress], None] | None = None,
) -> Blended:
    """The mask of an image of any size from overlapping windows, each as if it were the whole image.

    Windows lie half a window apart; where they overlap, their logits are averaged, each with a weight that falls
    linearly to its border. Rows of windows are in memory, not the image. Logits are added in the order of the
    windows, so that they are the same bits however many are under way at once.

    Args:
        window: pixels of a window's side, a multiple of 64.
        size: as in `evitseg.load`.
        memory: bytes the process may hold; None for what is free, see `default_memory`.
        watch: called after every window.

    Raises: ConfigError for a window that does not fit the network and where the memory is too little, EngineError.
    """
    check_window(window)
    plan = Plan(source.size, working_size(source.size, network.manifest, size), ())
    height, width = (min(window, length) for length in plan.working)
    rows, lefts = _rows(plan, height, sink), _starts(plan.working[1], width)
    held_rows = max((row.top + height) // LOGIT_STRIDE - row.first for row in rows)
    needed = source.held + _needed_memory(network, plan, Window(0, 0, height, width), held_rows)
    memory = default_memory(source.held) if memory is None else memory
    if needed > memory:
        raise ConfigError(
            f"{mib(memory)} of memory are too little: windows of {window} pixels in an image {plan.working[1]} pixels "
            f"wide need {mib(needed)}; give more, or smaller windows."
        )
    _LOG.info("windows of %d×%d pixels need %s; memory limit %s", width, height, mib(needed), mib(memory))
    resampled, weights = Resampled(source, plan.working), _weights(height // LOGIT_STRIDE, width // LOGIT_STRIDE)
    held = _Held(network.manifest.model.num_classes, held_rows, plan.working[1] // LOGIT_STRIDE)
    windows = (Window(row.top, left, height, width) for row in rows for left in lefts)
    damages: dict[Window, Damage] = {}
    ignore = network.labels.ignore_index
    counts = np.zeros(ignore + 1, np.int64)
    try:
        with network.ready(network.cut.alone, Window(0, 0, height, width)) as run:

            def work(place: Window) -> tuple[Window, NDArray[np.float32], list[Damage]]:
                image, found = resampled.read(place)
                return place, run({IMAGE: image[None]})[LOGITS][0] * weights, found

            for i, (place, logits, found) in enumerate(ordered_map(windows, work, network.workers, _WAITING)):
                row = rows[i // len(lefts)]
                if place.left == 0:
                    held.begin_at(row.first)
                held.add(place.over(LOGIT_STRIDE), logits, weights)
                damages |= {damage.window: damage for damage in found}
                if place.right == plan.working[1]:
                    means = held.means(row.top // LOGIT_STRIDE, row.complete)
                    counts += _write(sink, row, means, plan, source, [*damages.values()], ignore)
                if watch is not None:
                    watch(Progress(0, 1, i + 1, len(rows) * len(lefts)))
    finally:
        network.free()
    return Blended(counts, tuple(damages.values()))


@dataclass(frozen=True)
class _Row:
    """A row of windows, and what it completes.

    Attributes:
        top: of its windows, in the network's input.
        first: row of logits, the uppermost that the mask from `begin` on depends on.
        complete: row of logits, the uppermost that a later window touches.
        begin, end: rows of the mask that are made once those before `complete` are.
    """

    top: int
    first: int
    complete: int
    begin: int
    end: int


def _rows(plan: Plan, height: int, sink: Sink) -> list[_Row]:
    """Of windows of this height; what they complete ends where the sink's tiles do."""
    logits, pixels = plan.working[0] // LOGIT_STRIDE, plan.image[0]
    tops = _starts(plan.working[0], height)
    rows, begin = list[_Row](), 0
    for top, following in zip(tops, [*tops[1:], plan.working[0]], strict=True):
        first, _ = Side(logits, pixels, 0, min(begin, pixels - 1)).needed(1)
        complete = following // LOGIT_STRIDE
        end = _whole_pixels(plan, complete)
        if end < pixels:
            end -= end % sink.tile[0]
        rows.append(_Row(top, first, complete, begin, end))
        begin = end
    return rows


def _starts(length: int, side: int) -> list[int]:
    """Where windows begin along one side of the network's input: half a window apart, but for the last."""
    return [*range(0, length - side, side // 2), length - side]


def _whole_pixels(plan: Plan, logits: int) -> int:
    """How many rows of the mask depend on the first so many rows of logits alone."""
    rows, pixels = plan.working[0] // LOGIT_STRIDE, plan.image[0]
    until = min(pixels, logits * pixels // rows)
    while until and Side(rows, pixels).needed(until)[1] > logits:
        until -= 1
    return until


def _weights(height: int, width: int) -> NDArray[np.float32]:
    """(height, width) of a window's logits: largest in the middle, falling to all borders, nowhere zero."""
    down, across = (1 - np.abs(2 * np.arange(side) + 1 - side) / (side + 1) for side in (height, width))
    return np.minimum(down[:, None], across).astype(np.float32)


class _Held:
    """Rows of logits that windows are still added to, or that the mask is not yet made of.

    Args:
        rows: most that are held at once.
        across: logits in a row.
    """

    def __init__(self, classes: int, rows: int, across: int) -> None:
        self._first = 0
        self._sums = np.zeros((classes + 1, rows, across), np.float32)  # of weighted logits, and last of the weights

    def begin_at(self, first: int) -> None:
        """Forget the rows above, and make room for as many below."""
        gone, self._first = first - self._first, first
        for plane in self._sums:
            plane[: len(plane) - gone] = plane[gone:]
            plane[len(plane) - gone :] = 0

    def add(self, place: Window, logits: NDArray[np.float32], weights: NDArray[np.float32]) -> None:
        """A window's logits, which have been multiplied with their weights."""
        rows, columns = place.inside(Window(self._first, 0, 0, 0))
        self._sums[:-1, rows, columns] += logits
        self._sums[-1, rows, columns] += weights

    def means(self, first: int, after: int) -> NDArray[np.float32]:
        """(classes, rows, across) of all rows before `after`; those from `first` on have been sums until now."""
        some = self._sums[:, first - self._first : after - self._first]
        some[:-1] /= some[-1]
        return self._sums[:-1, : after - self._first]


def _write(
    sink: Sink, row: _Row, logits: NDArray[np.float32], plan: Plan, source: Source, damages: list[Damage], ignore: int
) -> NDArray[np.int64]:  # fmt: skip
    """Hand the rows of the mask that a row of windows completes to the sink; counts of their class indices.

    Args:
        logits: (classes, rows, across) from `row.first` to `row.complete`.
    """
    width = plan.image[1]
    down, across = whole_rows(sink.tile, width, _PIXELS_AT_ONCE)
    across *= max(1, _PIXELS_AT_ONCE // (down * across))
    known = Window(row.first * LOGIT_STRIDE, 0, logits.shape[1] * LOGIT_STRIDE, plan.working[1])
    counts = np.zeros(ignore + 1, np.int64)
    for part in tiles_of((row.end - row.begin, width), (down, across)):
        place = Window(row.begin + part.top, part.left, part.height, part.width)
        mask = mask_window(logits, plan, place, known)
        valid = valid_window(source, place, damages)
        if valid is not None:
            mask[~valid] = ignore
        counts += class_counts(mask, ignore + 1)
        sink.write(place.top, place.left, mask)
    return counts


def _needed_memory(network: Network, plan: Plan, window: Window, held_rows: int) -> int:
    """Estimate of the bytes that the process holds at its fullest."""
    logits = 4 * (network.manifest.model.num_classes + 1) / LOGIT_STRIDE**2  # for a pixel
    image = 20.0  # on its way from a file to the engine, measured
    if plan.image != plan.working:  # what is read, and sums of it in 32 bits, along the rows first
        down, across = (own / new for own, new in zip(plan.image, plan.working, strict=True))
        image += 3 * down * across + 3 * 12 * down
    held = held_rows * LOGIT_STRIDE * plan.working[1] * logits
    under_way = network.workers * (network.cut.alone.bytes_per_pixel + image)
    done = (2 * network.workers + _WAITING) * logits
    return int(BASE_BYTES + held + window.pixels * (under_way + done))
