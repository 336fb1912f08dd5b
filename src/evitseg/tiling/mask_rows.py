"""A mask that arrives in parts, row by row of windows, as the rows that a sink takes."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from evitseg.raster.window import Sink, Source
from evitseg.tiling.windows import Damage, Window, tiles_of, valid_window, whole_rows
from evitseg.visualize import class_counts

_STRIP_PIXELS = 2**22
"""Pixels of the mask that are written at once."""


class MaskRows:
    """Parts of a mask, which arrive row by row of windows, as rows for a sink.

    Args:
        damages: parts of the image that could not be read; more may come.
        ignore: class index of pixels without data and damaged ones.

    Attributes:
        counts: number of pixels per class index, so far.
    """

    def __init__(self, sink: Sink, source: Source, damages: dict[Window, Damage], ignore: int) -> None:
        self._sink, self._source, self._damages, self._ignore = sink, source, damages, ignore
        self._parts: list[tuple[Window, NDArray[np.integer]]] = []
        self._top = 0
        self.counts = np.zeros(ignore + 1, np.int64)

    def add(self, place: Window, mask: NDArray[np.integer]) -> None:
        """Take the next part; write the rows that are complete with it."""
        valid = valid_window(self._source, place, [*self._damages.values()])
        if valid is not None:
            mask = np.where(valid, mask, mask.dtype.type(self._ignore))
        self.counts += class_counts(mask, self._ignore + 1)
        self._parts.append((place, mask))
        height, width = self._source.size
        if place.right < width:
            return
        down, across = whole_rows(self._sink.tile, width, _STRIP_PIXELS)
        until = height if place.bottom == height else place.bottom - place.bottom % self._sink.tile[0]
        if until > self._top:
            rows = self._assembled(until, width)
            for tile in tiles_of(rows.shape, (down, across)):
                part_rows, columns = tile.inside(Window(0, 0, 0, 0))
                self._sink.write(self._top + tile.top, tile.left, rows[part_rows, columns])
            self._top = until

    def _assembled(self, until: int, width: int) -> NDArray[np.integer]:
        """The rows from `top` to `until`; what is below stays."""
        if len(self._parts) == 1 and self._parts[0][0] == Window(self._top, 0, until - self._top, width):
            return self._parts.pop()[1]
        rows = np.empty((until - self._top, width), self._parts[0][1].dtype)
        rest, wanted = list[tuple[Window, NDArray[np.integer]]](), Window(self._top, 0, until - self._top, width)
        for place, mask in self._parts:
            common = place.common(wanted)
            if common is not None:
                rows[common.inside(wanted)] = mask[common.inside(place)]
            if place.bottom > until:
                top = max(place.top, until)
                rest.append((Window(top, place.left, place.bottom - top, place.width), mask[top - place.top :].copy()))
        self._parts = rest
        return rows
