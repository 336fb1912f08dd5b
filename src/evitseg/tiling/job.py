"""The work on one window of an image: a segment of the network, from stored feature maps to stored feature maps."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Generator, Iterator, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from evitseg.architecture import STRIDE
from evitseg.raster.window import Source
from evitseg.runtime.core_windows import BLOCK_BYTES, IMAGE, OVERREAD, SUM_ROWS, Stored, row_addresses
from evitseg.system.parallel import ordered_map
from evitseg.tiling.memory_model import largest_block, largest_strip
from evitseg.tiling.network import Network, Sums
from evitseg.tiling.plan import Plan
from evitseg.tiling.scratch import LiveRange, Store, allocate
from evitseg.tiling.windows import Damage, Resampled, Window

_PART_PIXELS = 2**19
"""Pixels of a strip that are read at once, if a strip has several parts; they stay in a processor's cache."""


class ImageRows:
    """Rows of the network's input in memory, read ahead in other threads.

    Args:
        source: the image, at the network's size.
        first: the first row that will be asked for.
        band: number of rows of a window, which is also the number of rows to read ahead.
        workers: number of threads that read.
    """

    def __init__(self, source: Resampled, first: int, band: int, workers: int) -> None:
        self._source, (self._height, self._width) = source, source.size
        self._strip, self._columns = strip_shape(source, band)
        self._next = first // self._strip * self._strip  # the first row that is not in memory
        self._held = deque[_Strip]()
        self._spare = list[NDArray[np.uint8]]()  # memory of strips that are no longer needed
        parts = -(-self._width // self._columns)
        self._strips = self._read_ahead(-(-band // self._strip) * parts, workers)

    def _read_ahead(self, waiting: int, workers: int) -> Generator[_Strip]:
        yield from ordered_map(self._parts(), self._read, workers, waiting)

    def _parts(self) -> Iterator[_Strip]:
        """All parts of all strips, with memory for the strip's pixels if it has several."""
        for top in range(self._next, self._height, self._strip):
            height, memory = min(self._strip, self._height - top), None
            if self._columns < self._width:
                memory = self._spare.pop() if self._spare else np.empty((self._strip, self._width, 3), np.uint8)
            for left in range(0, self._width, self._columns):
                yield _Strip(Window(top, left, height, min(self._columns, self._width - left)), memory, [])

    def _read(self, part: _Strip) -> _Strip:
        window, memory, _ = part
        pixels, damages = self._source.read(window)
        if memory is None:
            return _Strip(window, pixels, damages)
        memory[: window.height, window.left : window.right] = pixels
        return _Strip(window, memory, damages)

    def close(self) -> None:
        """Stop reading ahead."""
        self._strips.close()

    def upto(self, rows: range) -> tuple[NDArray[np.uintp], int, list[tuple[Window, list[Damage]]]]:
        """The rows, at least; earlier ones are dropped.

        Returns: the addresses of rows, valid until the next call; the first of the rows; and the windows that were read
        for it, each with what is damaged in it.
        """
        while self._held and self._held[0].window.bottom <= rows.start:
            dropped = self._held.popleft()
            if self._columns < self._width and dropped.pixels is not None:
                self._spare.append(dropped.pixels)
        read = []
        while self._next < rows.stop:
            part = next(self._strips)
            read.append((part.window, part.damages))
            if part.window.right == self._width:
                self._next = part.window.bottom
                self._held.append(part)
        addresses = [row_addresses(part.pixels)[: part.window.height] for part in self._held if part.pixels is not None]
        return np.concatenate(addresses), self._held[0].window.top, read


class _Strip(NamedTuple):
    """Rows of the network's input, or a part of them.

    Attributes:
        window: the pixels that were read last.
        pixels: all columns of the rows.
        damages: parts of the image that could not be read.
    """

    window: Window
    pixels: NDArray[np.uint8] | None
    damages: list[Damage]


def strip_shape(source: Resampled, band: int) -> tuple[int, int]:
    """Height of the strips that an image is read in, and width of the parts of a strip that are read at once.

    A strip has the height of a row of the image's blocks, if that is not too much memory: lower ones would decode each
    block several times.

    Args:
        band: height of the first segment's windows.
    """
    (height, width), columns = source.source.tile, source.size[1]
    own, largest = -(-height // STRIDE) * STRIDE, largest_strip(source.source.size, source.size)
    if own <= largest:
        return max(own, min(64, largest)), columns
    step = math.lcm(width, STRIDE)
    if own > largest_block(band) or 2 * step > columns:
        return largest, columns
    return own, max(step, _PART_PIXELS // own // step * step)


class Places(NamedTuple):
    """Offsets in the store: of feature maps, of segments' sums, and of the tokens that have data."""

    features: dict[int, int]
    sums: dict[int, int]
    valid: int


def finest_token_stride(network: Network) -> int:
    """The smallest stride of tokens, in pixels of the network's input."""
    return min((segment.stride for segment in network.core.segments if segment.sums), default=STRIDE)


def sets_of(network: Network, plan: Plan) -> dict[int, int]:
    """For every segment that ends with sums, the number of sets: of every four rows of tokens, or of every tile."""
    if plan.tile is not None:
        return {i: len(plan.windows(i)) for i, segment in enumerate(network.core.segments) if segment.sums}
    segments = enumerate(network.core.segments)
    return {i: -(-plan.working[0] // segment.stride // SUM_ROWS) for i, segment in segments if segment.sums}


def places_of(network: Network, plan: Plan) -> tuple[Places, int]:
    """Where everything is stored between segments, and the bytes of all of it."""
    core, (height, width) = network.core, plan.working
    last, ranges, features = len(core.segments) - 1, list[LiveRange](), list[int]()
    for feature, (about, used) in enumerate(zip(core.features, core.users, strict=True)):
        if used and used[0] < last:  # the logits do not wait
            features.append(feature)
            size = height // about.stride * (width // about.stride) * about.pixel_bytes
            ranges.append(LiveRange(size + OVERREAD, used[0], used[-1]))
    sets = sets_of(network, plan)
    ranges += [LiveRange(count * core.segments[i].sums * 4, 0, last) for i, count in sets.items()]
    ranges.append(LiveRange(height * width // finest_token_stride(network) ** 2, 0, last))
    offsets, length = allocate(ranges)
    sums = dict(zip(sets, offsets[len(features) : -1], strict=True))
    return Places(dict(zip(features, offsets[: len(features)], strict=True)), sums, offsets[-1]), length


def place_of_window(network: Network, plan: Plan, segment: int, window: Window) -> Window:
    """A window in the pixels of a segment's end. In the last segment: all logits that its mask depends on."""
    if segment == len(network.core.segments) - 1:
        return plan.logits_window(plan.mask_window(window))
    return window.over(network.core.segments[segment].stride)


class Job:
    """All windows of one image.

    Args:
        source: the image.
        scratch: stores features and sums between windows.
    """

    def __init__(self, network: Network, source: Source, plan: Plan, scratch: Store) -> None:
        self.network, self.plan, self.scratch = network, plan, scratch
        self.source = Resampled(source, plan.working)
        self.damages: dict[Window, Damage] = {}
        self.core = network.core
        self.last = len(self.core.segments) - 1
        self._finest = finest_token_stride(network)
        self._sets = sets_of(network, plan)
        self._places, self.bytes_needed = places_of(network, plan)

    def sets(self, segment: int) -> NDArray[np.float32]:
        """(count, sums) stored sets of a segment's sums: of every four rows of tokens, or of every tile."""
        count, size, offset = self._sets[segment], self.core.segments[segment].sums, self._places.sums[segment]
        return self.scratch.bytes[offset : offset + count * size * 4].view(np.float32).reshape(count, size)

    def sums(self, segment: int) -> Sums:
        """The sums that a segment ends with, over the whole image."""
        return self.core.add_sums(self.sets(segment))

    def all_sums(self) -> tuple[Sums, ...]:
        """The sums of all segments that end with some, over the whole image."""
        return tuple(map(self.sums, self._sets))

    def sums_for(self, segment: int, window: int) -> Sums | None:
        """The sums that a window of a segment begins with: of the image, or of a tile and its neighbours."""
        if not self.core.segments[segment].given_sums:
            return None
        of = max(i for i in self._sets if i < segment)
        if self.plan.tile is None:
            return self.sums(of)
        return self.core.add_sums(self.sets(of)[self.plan.neighbours(window)])

    def image_rows(self, segment: int, window: Window) -> range:
        """The rows of the network's input that a window of a segment reads; empty for all segments but the first."""
        place = self.place(segment, window)
        return self.core.rows(segment, IMAGE, self.plan.working[0], place.top, place.bottom)[0]

    def place(self, segment: int, window: Window) -> Window:
        """A window in the pixels of a segment's end; see `place_of_window`."""
        return place_of_window(self.network, self.plan, segment, window)

    def note_valid(self, strip: Window, damages: Sequence[Damage]) -> None:
        """Store which tokens of a strip of the image have data."""
        self.store_valid(strip, self.source.valid(strip, [*damages], self._finest))

    def store_valid(self, strip: Window, valid: NDArray[np.bool_]) -> None:
        """Store which tokens of a strip have data, from `Resampled.valid` at the tokens' smallest stride."""
        rows, columns = strip.over(self._finest).inside(Window(0, 0, 0, 0))
        self._valid[rows, columns] = valid

    @property
    def _valid(self) -> NDArray[np.uint8]:
        height, width = (side // self._finest for side in self.plan.working)
        offset = self._places.valid
        return self.scratch.bytes[offset : offset + height * width].reshape(height, width)

    def valid_tokens(self, segment: int, window: Window) -> NDArray[np.uint8] | None:
        """(rows, columns) of a window's tokens, 0 for those without data; None if all have some, and without sums."""
        if segment not in self._sets:
            return None
        stride = self.core.segments[segment].stride
        rows, columns = window.over(self._finest).inside(Window(0, 0, 0, 0))
        valid, times = self._valid[rows, columns], stride // self._finest
        if valid.all():
            return None
        if times > 1:
            height, width = (side // times for side in valid.shape)
            valid = valid.reshape(height, times, width, times).max((1, 3))
        return valid

    def run(
        self,
        segment: int,
        window: Window,
        sums: Sums | None,
        image: NDArray[np.uintp] | None = None,
        first_row: int = 0,
    ) -> NDArray[np.float32]:
        """Run a segment in a window, from and to the scratch.

        Args:
            sums: from `sums_for`.
            image: for the first segment, the addresses of rows of the network's input, from `first_row` on; see
                `image_rows`.

        Returns: as `SegmentedCore.run`.
        """
        place, height = self.place(segment, window), self.plan.working[0]
        base, offsets = self.scratch.bytes.ctypes.data, self._places.features
        stored = [Stored(base + offsets[i] if i in offsets else 0, 0) for i in range(len(self.core.features))]
        used = [i for i in offsets if segment in self.core.users[i]]
        written = [(i, self.core.rows(segment, i, height, place.top, place.bottom)[1]) for i in used]
        # A tile's columns are only a part of the rows.
        whole = [(i, rows) for i, rows in written if rows and self.plan.tile is None]
        extents = [(offsets[i] + rows.start * self._row_bytes(i), len(rows) * self._row_bytes(i)) for i, rows in whole]
        with self.scratch.to_write(extents) as addresses:
            for (i, rows), address in zip(whole, addresses, strict=True):
                stored[i] = Stored(address, rows.start)
            return self.core.run(
                segment,
                self.plan.working,
                (place.top, place.bottom, place.left, place.right),
                stored,
                image,
                first_row,
                self.valid_tokens(segment, window),
                sums,
            )

    def stored_rows(self, feature: int, rows: range) -> NDArray[np.uint8]:
        """Stored rows of a feature map as bytes: (rows, blocks of channels, columns, bytes of a block)."""
        about = self.core.features[feature]
        width, size = self.plan.working[1] // about.stride, self._row_bytes(feature)
        begin = self._places.features[feature] + rows.start * size
        return self.scratch.bytes[begin : begin + len(rows) * size].reshape(len(rows), -1, width, BLOCK_BYTES)

    @property
    def features(self) -> list[int]:
        """The feature maps that are stored."""
        return [*self._places.features]

    def _row_bytes(self, feature: int) -> int:
        about = self.core.features[feature]
        return self.plan.working[1] // about.stride * about.pixel_bytes

    def finish(self, segment: int, number: int, window: Window, sets: NDArray[np.float32]) -> None:
        """Store the sums that a window gave, if any, and count the window as done."""
        if segment not in self._sets:
            pass
        elif self.plan.tile is not None:
            self.sets(segment)[number] = self.core.add_sums(sets)
        else:
            at = window.top // self.core.segments[segment].stride // SUM_ROWS
            self.sets(segment)[at : at + len(sets)] = sets
        self.scratch.count_window(segment)
