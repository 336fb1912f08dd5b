"""Run a network in the core segment by segment, in windows, with feature maps that the caller stores."""

from __future__ import annotations

import ctypes
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from evitseg.architecture import LOGIT_STRIDE, STRIDE
from evitseg.runtime.core import Core

SUM_ROWS = 4
"""Rows of tokens that one set of attention sums belongs to (`EVS_SUM_ROWS`)."""
ALIGNMENT = 64
"""Bytes that rows of feature maps must be aligned to."""
OVERREAD = 4096
"""Bytes behind the last row of a feature map that must be readable."""
BLOCK_BYTES = 64
"""Bytes of a block of channels: a row of a feature map is (blocks, columns, bytes of a block)."""
IMAGE = -1
"""The image, where a feature map is meant by its number."""


class Segment(NamedTuple):
    """A part of the network. Some end with attention sums over the whole image, the last one with logits.

    Attributes:
        stride: of its end, in image pixels.
        sums: number of floats of one set of sums that it ends with; 0 for none.
        given_sums: number of floats of the sums that it begins with, those of the last segment before that has some;
            0 for none.
        work: about how many multiply-adds it takes per image pixel.
    """

    stride: int
    sums: int
    given_sums: int
    work: float


class FeatureMap(NamedTuple):
    """A feature map that is stored between segments.

    Attributes:
        stride: in image pixels.
        pixel_bytes: bytes of one position.
    """

    stride: int
    pixel_bytes: int


class Stored(NamedTuple):
    """Rows of a feature map in memory.

    Attributes:
        address: where they begin; 0 for a feature map that the segment does not need.
        first_row: the first of them.
    """

    address: int
    first_row: int


class _Segment(ctypes.Structure):
    _fields_ = (
        ("stride", ctypes.c_int),
        ("sums", ctypes.c_int),
        ("given_sums", ctypes.c_int),
        ("work", ctypes.c_double),
    )


class _Value(ctypes.Structure):
    _fields_ = (("stride", ctypes.c_int), ("pixel_bytes", ctypes.c_size_t))


class _Rows(ctypes.Structure):
    _fields_ = (("first", ctypes.c_int), ("last", ctypes.c_int))


class _Stored(ctypes.Structure):
    _fields_ = (("rows", ctypes.c_void_p), ("first_row", ctypes.c_int))


class _Window(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_int) for name in ("height", "width", "y0", "y1", "x0", "x1")),
        ("image", ctypes.c_void_p),
        ("first_row", ctypes.c_int),
        ("values", ctypes.POINTER(_Stored)),
        ("valid", ctypes.c_void_p),
        ("sums", ctypes.c_void_p),
        ("out", ctypes.c_void_p),
    )


class SegmentedCore:
    """A network in the core, segment by segment.

    Attributes:
        segments: in the order in which they run.
        features: the feature maps that segments write and later ones read.
        users: of every feature map, the segments that write or read it.
    """

    def __init__(self, core: Core) -> None:
        self.core, self._library = core, core.library
        segment, value = _Segment(), _Value()
        segments, features = [], []
        for i in range(self._library.evs_model_segments(core.model)):
            core.check(self._library.evs_model_segment(core.model, i, ctypes.byref(segment)))
            segments.append(Segment(segment.stride, segment.sums, segment.given_sums, segment.work))
        for i in range(self._library.evs_model_values(core.model)):
            core.check(self._library.evs_model_value(core.model, i, ctypes.byref(value)))
            features.append(FeatureMap(value.stride, value.pixel_bytes))
        self.segments, self.features = tuple(segments), tuple(features)
        self.users = tuple(
            tuple(
                i for i, about in enumerate(segments) if any(self.rows(i, feature, STRIDE, 0, STRIDE // about.stride))
            )
            for feature in range(len(features))
        )

    def rows(self, segment: int, feature: int, height: int, first: int, last: int) -> tuple[range, range]:
        """The rows of a feature map, or of the `IMAGE`, that rows of a segment's end need.

        Args:
            height: of the network's input, in pixels.
            first, last: rows of the segment's end, `last` excluded.

        Returns: the rows that are read, and those that are written.
        """
        read, written = _Rows(), _Rows()
        found = self._library.evs_segment_rows(
            self.core.model, segment, feature, height, first, last, ctypes.byref(read), ctypes.byref(written)
        )
        self.core.check(found)
        return range(read.first, read.last), range(written.first, written.last)

    def memory(self, segment: int, size: tuple[int, int], window: tuple[int, int, int, int]) -> int:
        """Bytes that a window's run needs in addition to the rows of feature maps and of the image."""
        with self.core.runner() as runner:
            return int(self._library.evs_window_memory(runner, segment, *size, *window))

    def run(
        self,
        segment: int,
        size: tuple[int, int],
        window: tuple[int, int, int, int],
        stored: list[Stored],
        image: NDArray[np.uintp] | None = None,
        first_row: int = 0,
        valid: NDArray[np.uint8] | None = None,
        sums: NDArray[np.float32] | None = None,
    ) -> NDArray[np.float32]:
        """Run a window of a segment.

        Args:
            size: (height, width) of the network's input.
            window: first and last row, first and last column of the segment's end; the last ones excluded.
            stored: rows of every feature map, as wide as the network's input.
            image: for the first segment, the addresses of rows of the network's input, from `first_row` on; see
                `row_addresses`.
            valid: (rows, columns) of the window, 0 for tokens that the sums leave out.
            sums: those that the segment begins with.

        Returns: (rows / SUM_ROWS, sums) one set of sums for every four rows; of the last segment its logits, (classes,
            rows, columns); of others an empty array.

        Raises: EngineError, NotFiniteError.
        """
        first, last, left, right = window
        about = self.segments[segment]
        if about.sums:
            out = np.empty((-(-(last - first) // SUM_ROWS), about.sums), np.float32)
        elif segment == len(self.segments) - 1:
            out = np.empty((self.core.classes, last - first, right - left), np.float32)
        else:
            out = np.empty((0, 0), np.float32)
        rows = (_Stored * len(stored))(*(_Stored(place.address or None, place.first_row) for place in stored))
        call = _Window(*size, first, last, left, right, None, first_row, rows, None, None, out.ctypes.data)
        if image is not None:
            call.image = image.ctypes.data
        if valid is not None:
            valid = np.ascontiguousarray(valid, np.uint8)
            call.valid = valid.ctypes.data
        if sums is not None:
            assert sums.shape == (about.given_sums,)
            assert sums.dtype == np.float32
            call.sums = sums.ctypes.data
        with self.core.runner() as runner:
            self.core.check(self._library.evs_run_window(runner, segment, ctypes.byref(call)))
        return out

    def logits(self, image: NDArray[np.uint8], sums: NDArray[np.float32]) -> NDArray[np.float32]:
        """(classes, h / 8, w / 8) logits of a part of a larger image, (h, w, 3), whose attention sums are known.

        Args:
            sums: of all segments, one after the other.

        Raises: EngineError, NotFiniteError.
        """
        image = np.ascontiguousarray(image)
        height, width, _ = image.shape
        logits = np.empty((self.core.classes, height // LOGIT_STRIDE, width // LOGIT_STRIDE), np.float32)
        assert sums.shape == (sum(segment.sums for segment in self.segments),)
        with self.core.runner() as runner:
            call = image.ctypes.data, height, width, image.strides[0], sums.ctypes.data, logits.ctypes.data
            self.core.check(self._library.evs_run_given(runner, *call))
        return logits

    def add_sums(self, sets: NDArray[np.float32]) -> NDArray[np.float32]:
        """The sum of (count, sums) sets, in a fixed order."""
        total: NDArray[np.float32] = np.array(sets, np.float32, order="C")
        self.core.check(self._library.evs_add_sums(total.ctypes.data, *total.shape))
        first: NDArray[np.float32] = total[0].copy()
        return first


def row_addresses(image: NDArray[np.uint8]) -> NDArray[np.uintp]:
    """The address of every row of an image, (h, w, 3); the image must outlive their use."""
    assert image.strides[1:] == (3, 1)
    addresses: NDArray[np.uintp] = np.uintp(image.ctypes.data) + np.arange(len(image), dtype=np.uintp) * np.uintp(
        image.strides[0]
    )
    return addresses
