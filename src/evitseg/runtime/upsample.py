"""Compute the class index of every pixel from logits at stride 8, exactly, without the full-size logits.

The mask is the argmax of the logits after bilinear up-sampling to the image's size (half-pixel centres, edges
repeated). Four neighbouring logits span a cell. Bilinear weights are positive and sum to one, so a class that is the
largest at all four corners is the largest in the whole cell, which is filled with it. Only cells that a boundary
crosses, about 5 to 10 % on street images, are interpolated.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from evitseg.labels import mask_dtype

_LOGITS_AT_ONCE = 2**18
"""Number of logits to interpolate together, in whole cells, so that they fit a core's cache."""


@dataclass(frozen=True)
class _Axis:
    """The pixels along one side and the cells between logits that they lie in.

    Attributes:
        low, high: (cells,) indices of a cell's logits; equal for a cell outside the outermost centres.
        start, count: (cells,) a cell's first pixel and number of pixels.
        fraction: (pixels,) weight of the logit `high` of the pixel's cell.
    """

    low: NDArray[np.intp]
    high: NDArray[np.intp]
    start: NDArray[np.intp]
    count: NDArray[np.intp]
    fraction: NDArray[np.float32]


@dataclass(frozen=True)
class Side:
    """One side of a window of a larger image, whose up-sampling does not depend on where it was cut.

    Attributes:
        logits, pixels: numbers along the whole image's side.
        first_logit, first_pixel: the first ones of the window.
    """

    logits: int
    pixels: int
    first_logit: int = 0
    first_pixel: int = 0

    def needed(self, pixels: int) -> tuple[int, int]:
        """The first logit that this many pixels of the window depend on, and the one after the last."""
        ends = np.array([self.first_pixel, self.first_pixel + pixels - 1])
        low, high = np.floor((ends + 0.5) * (self.logits / self.pixels) - 0.5).astype(int)
        return max(0, int(low)), min(self.logits, int(high) + 2)


def _axis(side: Side, pixels: int) -> _Axis:
    position = (side.first_pixel + np.arange(pixels) + 0.5) * (side.logits / side.pixels) - 0.5
    cell = np.floor(position).astype(np.intp)
    cells, start, count = np.unique(cell, return_index=True, return_counts=True)
    low, high = cells.clip(0, side.logits - 1), (cells + 1).clip(0, side.logits - 1)
    return _Axis(low - side.first_logit, high - side.first_logit, start, count, (position - cell).astype(np.float32))


def bicubic_matrix(side: int, factor: int) -> NDArray[np.float32]:
    """(factor * side, side): bicubic interpolation along one axis as a matrix, with repeated borders.

    Half-pixel centres and a = -0.75, as in PyTorch's `interpolate`, with which the published weights were trained.

    Source: R. Keys, Cubic convolution interpolation for digital image processing, 1981.
    """
    a = -0.75
    position = (np.arange(factor * side) + 0.5) / factor - 0.5
    below = np.floor(position).astype(np.intp)
    matrix = np.zeros((factor * side, side))
    for tap in range(-1, 3):
        distance = np.abs(position - below - tap)
        near = ((a + 2) * distance - (a + 3)) * distance**2 + 1
        far = ((distance - 5) * distance + 8) * distance * a - 4 * a
        column = (below + tap).clip(0, side - 1)
        np.add.at(matrix, (np.arange(factor * side), column), np.where(distance <= 1, near, far))
    return matrix.astype(np.float32)


def argmax_upsampled(
    logits: NDArray[np.float32], size: tuple[int, int], sides: tuple[Side, Side] | None = None
) -> NDArray[np.integer]:
    """The class with the largest bilinearly up-sampled logit, for every pixel.

    Args:
        logits: (classes, h, w).
        size: (height, width) of the mask, in pixels, larger or smaller than the logits.
        sides: for a window of a larger image, its place along height and width; the logits must cover `Side.needed`.

    Returns: (height, width) class indices, uint8, or uint16 for more than 255 classes. Of equal classes the first
    wins; of classes whose difference is within float32's rounding, either may.
    """
    classes, h, w = logits.shape
    dtype = mask_dtype(classes)
    down, across = sides or (Side(h, size[0]), Side(w, size[1]))
    rows, columns = _axis(down, size[0]), _axis(across, size[1])
    winner = _argmax_first_axis(logits).astype(dtype)

    top, bottom = winner[rows.low], winner[rows.high]
    corner = top[:, columns.low]
    uniform = (corner == top[:, columns.high]) & (corner == bottom[:, columns.low])
    uniform &= corner == bottom[:, columns.high]
    mask = np.repeat(np.repeat(corner, columns.count, axis=1), rows.count, axis=0)

    r, c = np.nonzero(~uniform)
    if len(r):
        _fill(mask, np.ascontiguousarray(logits.transpose(1, 2, 0)), rows, columns, r, c)
    return mask


def _argmax_first_axis(logits: NDArray[np.float32]) -> NDArray[np.intp]:
    """np.argmax(logits, 0), but faster: numpy's own function walks the strided axis."""
    best = logits[0].copy()
    index = np.zeros(best.shape, np.intp)
    for i, candidate in enumerate(logits[1:], start=1):
        np.copyto(index, i, where=candidate > best)
        np.maximum(best, candidate, out=best)
    return index


def _fill(
    mask: NDArray[np.integer],
    logits: NDArray[np.float32],
    rows: _Axis,
    columns: _Axis,
    r: NDArray[np.intp],
    c: NDArray[np.intp],
) -> None:
    """Write the pixels of some cells into `mask`.

    In a cell, no class exceeds its largest corner, and the best class is never below the largest of all classes'
    smallest corners. Classes that cannot reach this value are skipped, which leaves two or three.

    Args:
        logits: (h, w, classes), so that a corner's classes are contiguous.
        r, c: rows and columns of the cells.
    """
    corners = [logits[y[r], x[c]] for y in (rows.low, rows.high) for x in (columns.low, columns.high)]
    largest = np.maximum(np.maximum(corners[0], corners[1]), np.maximum(corners[2], corners[3]))
    smallest = np.minimum(np.minimum(corners[0], corners[1]), np.minimum(corners[2], corners[3]))
    within = largest >= smallest.max(1, keepdims=True)  # (cells, classes)
    count = within.sum(1)
    height, width = int(rows.count.max()), int(columns.count.max())
    for candidates in np.flatnonzero(np.bincount(count)):
        cells = np.flatnonzero(count == candidates)
        at_once = max(1, _LOGITS_AT_ONCE // int(candidates * height * width))
        for at in range(0, len(cells), at_once):
            some = cells[at : at + at_once]
            classes = np.nonzero(within[some])[1].reshape(
                -1, candidates
            )  # ascending, so that the first of equal classes wins
            four = [np.ascontiguousarray(np.take_along_axis(corner[some], classes, 1).T) for corner in corners]
            _interpolate(mask, four, classes.T.astype(mask.dtype), rows, columns, r[some], c[some])


def _interpolate(
    mask: NDArray[np.integer],
    corners: list[NDArray[np.float32]],
    classes: NDArray[np.integer],
    rows: _Axis,
    columns: _Axis,
    r: NDArray[np.intp],
    c: NDArray[np.intp],
) -> None:
    """Write the largest of some classes into every pixel of some cells; cells are the last axis, the longest.

    Args:
        corners: (candidates, cells) logits at top left, top right, bottom left and bottom right.
        classes: (candidates, cells) class indices.
    """
    y, x = _pixels(rows, r), _pixels(columns, c)
    fy, fx = rows.fraction[y], columns.fraction[x]
    ty, tx = 1 - fy, 1 - fx
    top_left, top_right, bottom_left, bottom_right = (corner[:, None] for corner in corners)
    # Not left + (right - left) * fx: a sum of weighted corners keeps their order after rounding.
    left = (top_left * ty + bottom_left * fy)[:, :, None]  # (candidates, pixel rows, 1, cells)
    right = (top_right * ty + bottom_right * fy)[:, :, None]
    best = left[0] * tx + right[0] * fx
    winner = np.empty(best.shape, mask.dtype)
    winner[:] = classes[0]
    for i in range(1, len(left)):
        other = left[i] * tx + right[i] * fx
        np.copyto(winner, classes[i], where=other > best)
        if i + 1 < len(left):
            np.maximum(best, other, out=best)
    mask.reshape(-1)[(y * mask.shape[1])[:, None] + x] = winner  # one flat index is faster than two


def _pixels(axis: _Axis, cells: NDArray[np.intp]) -> NDArray[np.intp]:
    """(most pixels in a cell, cells) pixel indices; a cell with fewer repeats its last pixel."""
    most = axis.count.max(initial=1)
    within = np.minimum(np.arange(most)[:, None], axis.count[cells] - 1)
    pixels: NDArray[np.intp] = axis.start[cells] + within
    return pixels
