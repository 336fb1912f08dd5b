"""Sliding-window inference: overlapping windows go through the network one by one, and their logits are averaged.

Every window's attention sums over that window only, and its convolutions pad with zeros at its borders. The mask
therefore differs from that of the whole image, which `stream` computes. The guide to large images says which to prefer.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from evitseg.architecture import LOGIT_STRIDE, STRIDE
from evitseg.errors import ConfigError
from evitseg.image import Size
from evitseg.raster.window import Sink, Source
from evitseg.runtime.core import Core
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
from evitseg.tiling.memory_model import default_memory, mib, sliding_window_memory
from evitseg.tiling.network import Network
from evitseg.tiling.plan import Plan, mask_of_window, working_size
from evitseg.tiling.progress import BandProgress
from evitseg.tiling.windows import Damage, Resampled, Window, tiles_of, valid_window, whole_rows
from evitseg.visualize import class_counts

_LOG = logging.getLogger(__name__)

_WAITING = 3
"""Windows that are being read, or wait to be run."""
_TINY = 1e-9
_PIXELS_AT_ONCE = 2**20
"""Pixels of the mask that are up-sampled at once, so that a whole row of windows does not need the memory."""


@dataclass(frozen=True)
class SlidingWindowResult:
    """The result of `sliding_window`, apart from the mask.

    Attributes:
        counts: number of pixels per class index; the last one is the labels' `ignore_index`.
        damages: parts of the image that could not be read. There, the mask is `ignore_index`.
    """

    counts: NDArray[np.int64]
    damages: tuple[Damage, ...]


def check_window(window: int) -> None:
    """Raises: ConfigError for a window side that, or half of which, does not fit the network."""
    if window < 2 * STRIDE or window % (2 * STRIDE):
        raise ConfigError(f"a window of {window} pixels does not fit the network; give a multiple of {2 * STRIDE}.")


def sliding_window(
    model: ModelLike,
    source: ImageLike,
    mask: MaskPlace,
    window: int,
    *,
    size: Size = "native",
    memory: int | None = None,
    watch: Callable[[BandProgress], None] | None = None,
) -> SlidingWindowResult:
    """Segment an image of any size in overlapping windows, each as if it were the whole image.

        evitseg.sliding_window("model.safetensors", "mosaic.tif", "mask.tif", window=1024)

    Neighbouring windows overlap by half. Where they overlap, their logits are averaged, with weights that fall linearly
    towards each window's border. Only a few rows of windows are in memory. Logits are added in a fixed order, so the
    result is the same bits for any number of threads.

    Args:
        model, source, mask: as in `segment_large`.
        window: side of the windows in pixels, a multiple of 64.
        size: as in `evitseg.load`; by default the image's own.
        memory: bytes the process may hold; None for a fraction of the free memory.
        watch: called after every window.

    Raises: ConfigError for a window that does not fit the network or the memory, ImageError, FileError, WeightsError,
        EngineError, MissingPackageError.
    """
    check_window(window)
    network = banded_network(model)
    with image_source(source, None, memory, reading_of(model, network)) as (image, _):
        plan = Plan(image.size, working_size(image.size, network.manifest, size), ())
        with mask_sink(mask, image, network) as sink:
            return _slide(image, sink, network, plan, window, memory, watch)


def _slide(
    source: Source, sink: Sink, network: Network, plan: Plan, window: int, memory: int | None,
    watch: Callable[[BandProgress], None] | None,
) -> SlidingWindowResult:  # fmt: skip
    height, width = (min(window, length) for length in plan.working)
    rows, lefts = _rows(plan, height, sink), _starts(plan.working[1], width)
    stored_rows = max((row.top + height) // LOGIT_STRIDE - row.first for row in rows)
    scale = [own / new for own, new in zip(plan.image, plan.working, strict=True)]
    row_pixels = stored_rows * LOGIT_STRIDE * plan.working[1]
    needed = source.held + sliding_window_memory(network, (height, width), row_pixels, scale, _WAITING)
    memory = default_memory(source.held) if memory is None else memory
    if needed > memory:
        raise ConfigError(
            f"{mib(memory)} of memory is not enough: windows of {window} pixels in an image {plan.working[1]} pixels "
            f"wide need {mib(needed)}; give more, or smaller windows."
        )
    _LOG.info("windows of %d×%d pixels need %s; memory limit %s", width, height, mib(needed), mib(memory))
    resampled, weights = Resampled(source, plan.working), _weights(height // LOGIT_STRIDE, width // LOGIT_STRIDE)
    stored = _LogitRows(network.manifest.model.num_classes, stored_rows, plan.working[1] // LOGIT_STRIDE)
    windows = (Window(row.top, left, height, width) for row in rows for left in lefts)
    damages: dict[Window, Damage] = {}
    ignore = network.labels.ignore_index
    counts = np.zeros(ignore + 1, np.int64)

    def read(place: Window) -> tuple[Window, NDArray[np.uint8] | None, list[Damage]]:
        image, found = resampled.read(place)
        is_empty = not resampled.valid(place, found, STRIDE).any()
        return place, None if is_empty else image, found

    for i, (place, image, found) in enumerate(ordered_map(windows, read, min(2, network.threads), 1)):
        row = rows[i // len(lefts)]
        if place.left == 0:
            stored.begin_at(row.first)
        if image is not None:
            stored.add(place.over(LOGIT_STRIDE), network.engine(image[None])[0] * weights, weights)
        damages |= {damage.window: damage for damage in found}
        if place.right == plan.working[1]:
            means = stored.means(row.top // LOGIT_STRIDE, row.complete)
            counts += _write(sink, row, means, plan, source, [*damages.values()], ignore, network.core.core)
        if watch is not None:
            windows_done, of = i + 1, len(rows) * len(lefts)
            watch(BandProgress(0, 1, windows_done, of, windows_done / of))
    return SlidingWindowResult(counts, tuple(damages.values()))


@dataclass(frozen=True)
class _Row:
    """A row of windows, and the rows of the mask that it completes.

    Attributes:
        top: of the windows, in the network's input.
        first: the first row of logits that the mask from `begin` on depends on.
        complete: the first row of logits that a later window contributes to.
        begin, end: rows of the mask that can be written after this row of windows.
    """

    top: int
    first: int
    complete: int
    begin: int
    end: int


def _rows(plan: Plan, height: int, sink: Sink) -> list[_Row]:
    """All rows of windows of this height. The completed rows of the mask end at an edge of the sink's tiles."""
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
    """Starts of the windows along one side of the network's input: half a window apart, except the last."""
    return [*range(0, length - side, side // 2), length - side]


def _whole_pixels(plan: Plan, logits: int) -> int:
    """Number of rows of the mask that depend only on the first `logits` rows of logits."""
    rows, pixels = plan.working[0] // LOGIT_STRIDE, plan.image[0]
    until = min(pixels, logits * pixels // rows)
    while until and Side(rows, pixels).needed(until)[1] > logits:
        until -= 1
    return until


def _weights(height: int, width: int) -> NDArray[np.float32]:
    """(height, width) weights of a window's logits: largest in the middle, falling to all borders, never zero."""
    down, across = (1 - np.abs(2 * np.arange(side) + 1 - side) / (side + 1) for side in (height, width))
    return np.minimum(down[:, None], across).astype(np.float32)


class _LogitRows:
    """Rows of logits that later windows contribute to, or that the mask still depends on.

    Args:
        rows: largest number of rows that are stored at the same time.
        across: number of logits per row.
    """

    def __init__(self, classes: int, rows: int, across: int) -> None:
        self._first = 0
        self._sums = np.zeros(
            (classes + 1, rows, across), np.float32
        )  # weighted logits; the last plane sums the weights

    def begin_at(self, first: int) -> None:
        """Drop the rows above, and make room for as many below."""
        gone, self._first = min(first - self._first, self._sums.shape[1]), first
        for plane in self._sums:
            plane[: len(plane) - gone] = plane[gone:]
            plane[len(plane) - gone :] = 0

    def add(self, place: Window, logits: NDArray[np.float32], weights: NDArray[np.float32]) -> None:
        """Add a window's logits, which are multiplied by their weights already."""
        gone = max(0, self._first - place.top)  # of a mask of few rows, which depends on fewer than a window has
        logits, weights, place = logits[:, gone:], weights[gone:], replace(place, top=place.top + gone)
        rows, columns = replace(place, height=len(weights)).inside(Window(self._first, 0, 0, 0))
        self._sums[:-1, rows, columns] += logits
        self._sums[-1, rows, columns] += weights

    def means(self, first: int, after: int) -> NDArray[np.float32]:
        """(classes, rows, across) means of the rows before `after`. Those from `first` on are still sums until now."""
        some = self._sums[:, max(0, first - self._first) : after - self._first]
        some[:-1] /= np.maximum(some[-1], _TINY)  # 0 where all windows were empty
        return self._sums[:-1, : after - self._first]


def _write(
    sink: Sink, row: _Row, logits: NDArray[np.float32], plan: Plan, source: Source, damages: list[Damage], ignore: int,
    core: Core,
) -> NDArray[np.int64]:  # fmt: skip
    """Write the rows of the mask that a row of windows completes. Returns: number of pixels per class index.

    Args:
        logits: (classes, rows, across) from `row.first` to `row.complete`.
    """
    width = plan.image[1]
    down, across = whole_rows(sink.tile, width, _PIXELS_AT_ONCE)
    across *= max(1, _PIXELS_AT_ONCE // (down * across))
    known = Window(row.first, 0, logits.shape[1], logits.shape[2])
    counts = np.zeros(ignore + 1, np.int64)
    for part in tiles_of((row.end - row.begin, width), (down, across)):
        place = Window(row.begin + part.top, part.left, part.height, part.width)
        mask = mask_of_window(logits, plan, place, known, core)
        valid = valid_window(source, place, damages)
        if valid is not None:
            mask[~valid] = ignore
        counts += class_counts(mask, ignore + 1)
        sink.write(place.top, place.left, mask)
    return counts
