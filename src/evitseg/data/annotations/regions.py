"""Regions of an image as runs of pixels, made from polygons, run lengths and bitmaps.

A region is a list of runs in column-major order, like COCO's run lengths: pixel (row, column) has the number
column × height + row. The memory of a region grows with the length of its outline, not with the size of the image.

pycocotools is not used, because its C code does not check run lengths and crashes for damaged ones.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

_SCALE = 5
"""Factor of the finer grid on which pycocotools draws."""
_FAR = 1_000_000
"""A coordinate that is further outside the image is a mistake."""
_CHUNK = 1 << 20
_MOST_CROSSINGS = 200_000_000
"""Most crossings of a polygon's edges with columns of pixels; more would take minutes."""
_LONG_RUN = 128


class ShapeError(ValueError):
    """A shape that cannot be drawn; the message continues a sentence that begins with the annotation's name."""


@dataclass(frozen=True)
class Runs:
    """The pixels of a region.

    Attributes:
        starts, ends: numbers of the first pixel of each run and of the pixel after its last one; sorted, not
            overlapping.
    """

    starts: NDArray[np.int64]
    ends: NDArray[np.int64]

    @property
    def area(self) -> int:
        """Number of pixels."""
        return int((self.ends - self.starts).sum())


def paint(canvas: NDArray[np.integer], runs: Runs, value: int) -> None:
    """Set the region's pixels on a flat, column-major canvas."""
    lengths = runs.ends - runs.starts
    long = lengths >= _LONG_RUN
    for start, end in zip(runs.starts[long].tolist(), runs.ends[long].tolist(), strict=True):
        canvas[start:end] = value
    starts, lengths = runs.starts[~long], lengths[~long]
    step = _CHUNK // _LONG_RUN
    for i in range(0, len(starts), step):
        some = lengths[i : i + step]
        first = np.repeat(starts[i : i + step] - np.cumsum(some) + some, some)
        canvas[first + np.arange(len(first))] = value


def union(parts: Sequence[Runs]) -> Runs:
    """The pixels that are in any of the parts."""
    if len(parts) == 1:
        return parts[0]
    starts = np.concatenate([part.starts for part in parts] or [np.empty(0, np.int64)])
    ends = np.concatenate([part.ends for part in parts] or [np.empty(0, np.int64)])
    places = np.concatenate([starts, ends])
    # Starts sort before ends at the same place, which joins adjacent runs.
    order = np.lexsort((np.repeat([0, 1], len(starts)), places))
    depth = np.cumsum(np.repeat([1, -1], len(starts))[order])
    opens = np.concatenate([[True], depth[:-1] == 0]) if len(depth) else np.empty(0, bool)
    return Runs(places[order][opens], places[order][depth == 0])


def from_toggles(toggles: NDArray[np.int64]) -> Runs:
    """The region that sorted pixel numbers switch on and off by turns."""
    pairs = np.sort(toggles).reshape(-1, 2)
    pairs = pairs[pairs[:, 0] < pairs[:, 1]]
    return Runs(np.ascontiguousarray(pairs[:, 0]), np.ascontiguousarray(pairs[:, 1]))


def coordinates(values: Any, size: tuple[int, int]) -> NDArray[np.float64]:
    """(N, 2) coordinates x and y from unchecked JSON values.

    Args:
        values: alternating x and y, or pairs of numbers.
        size: (height, width) of the image.

    Raises: ShapeError.
    """
    if not isinstance(values, (list, tuple)):
        raise ShapeError(f"has a polygon that is not a list of numbers ({_short(values)})")
    if values and all(isinstance(pair, (list, tuple)) and len(pair) == 2 for pair in values):
        values = [number for pair in values for number in pair]
    if any(isinstance(number, bool) or not isinstance(number, (int, float)) for number in values):
        strange = next(n for n in values if isinstance(n, bool) or not isinstance(n, (int, float)))
        raise ShapeError(f"has a coordinate that is not a number ({_short(strange)})")
    if len(values) % 2:
        raise ShapeError(f"has a polygon of {len(values)} numbers, which cannot be pairs of x and y")
    try:
        points = np.array(values, np.float64).reshape(-1, 2)
    except OverflowError:
        points = np.full((1, 2), np.inf)
    if not np.isfinite(points).all():
        raise ShapeError("has a coordinate that is not finite")
    if np.abs(points).max(initial=0) > max(size) + _FAR:
        worst = float(points.flat[np.abs(points).argmax()])
        raise ShapeError(f"has the coordinate {worst:g}, far outside its image of {size[1]}×{size[0]} pixels")
    return points


def polygon(points: NDArray[np.float64], size: tuple[int, int]) -> Runs:
    """The pixels inside a polygon, exactly those that pycocotools draws.

    pycocotools walks along the edges on a grid five times as fine, rounds as C does, and switches between outside and
    inside where an edge crosses the middle of a column. This function computes only these crossings, all at once.

    Args:
        points: (N, 2) x and y, from `coordinates`.

    Raises: ShapeError for fewer than three points, or for so many edges that drawing would take minutes.
    """
    if len(points) < 3:
        raise ShapeError(f"has a polygon of {len(points)} points, which has no area")
    height, width = size
    here = np.trunc(_SCALE * points + 0.5).astype(np.int64)
    there = np.roll(here, -1, axis=0)
    (xs, ys), (xe, ye) = here.T, there.T
    dx, dy = np.abs(xe - xs), np.abs(ye - ys)
    wide = dx >= dy
    flip = np.where(wide, xs > xe, ys > ye)
    xs, xe, ys, ye = np.where(flip, xe, xs), np.where(flip, xs, xe), np.where(flip, ye, ys), np.where(flip, ys, ye)
    # Columns c whose middle, between 5c + 2 and 5c + 3 on the fine grid, is between the ends of an edge.
    half = _SCALE // 2
    first = np.maximum(0, -((half - np.minimum(xs, xe)) // _SCALE))
    last = np.minimum(width - 1, (np.maximum(xs, xe) - half - 1) // _SCALE)
    counts = np.maximum(0, last - first + 1)
    crossed = np.flatnonzero(counts)
    if counts.sum() > _MOST_CROSSINGS:
        raise ShapeError(f"has a polygon of {len(points):,} points, which is too complex to draw")
    slope = np.zeros(len(points))
    slope[crossed] = (np.where(wide, ye - ys, xe - xs) / np.where(wide, dx, dy).clip(1))[crossed]

    toggles = []
    bounds = np.searchsorted(np.cumsum(counts[crossed]), np.arange(0, counts.sum() + _CHUNK, _CHUNK), "left")
    for some in np.split(crossed, np.unique(bounds)):
        many = counts[some]
        edge = np.repeat(some, many)
        column = np.repeat(first[some] - np.cumsum(many) + many, many) + np.arange(many.sum())
        x, y, s = xs[edge], ys[edge], slope[edge]
        threshold = _SCALE * column + half
        # Edges with |dx| >= |dy|: x advances by 1, and y is rounded on both sides of the crossing.
        t = threshold - x
        flat = np.minimum(np.trunc(y + s * t + 0.5), np.trunc(y + s * (t + 1) + 0.5))
        # Steep edges: y advances by 1 until the rounded x is past the crossing.
        steep = y + _first_past(x, s, threshold) - 1
        row = (np.where(wide[edge], flat, steep) + 0.5) / _SCALE - 0.5
        toggles.append(column * height + np.ceil(np.clip(row, 0, height)).astype(np.int64))
    return from_toggles(np.concatenate(toggles) if toggles else np.empty(0, np.int64))


def _first_past(x: NDArray[np.int64], slope: NDArray[np.float64], threshold: NDArray[np.int64]) -> NDArray[np.int64]:
    """The first step at which the rounded x + slope × step is on the other side of the threshold."""
    rising = slope > 0

    def past(step: NDArray[np.int64]) -> NDArray[np.bool_]:
        return np.equal(np.trunc(x + slope * step + 0.5) > threshold, rising)

    step = np.ceil((threshold + 0.5 - x) / np.where(slope == 0, 1, slope)).astype(np.int64)
    # The rounded quotient may be off by one step; the comparison corrects it.
    step = np.where(past(step - 1), step - 1, step)
    return np.where(past(step), step, step + 1)


def box(left: float, top: float, right: float, bottom: float, size: tuple[int, int]) -> Runs:
    """The pixels inside an axis-aligned rectangle."""
    points = coordinates([left, top, right, top, right, bottom, left, bottom], size)
    return polygon(points, size)


def ellipse(x: float, y: float, radius_x: float, radius_y: float, angle: float, size: tuple[int, int]) -> Runs:
    """The pixels inside an ellipse, which is drawn as a polygon; the angle is in degrees, clockwise."""
    coordinates([x, y, radius_x, radius_y, angle, 0], size)
    corners = int(np.clip(2 * max(abs(radius_x), abs(radius_y)), 36, 3_600))
    turn, tilt = np.linspace(0, 2 * np.pi, corners, endpoint=False), np.deg2rad(angle)
    u, v = radius_x * np.cos(turn), radius_y * np.sin(turn)
    points = np.stack([x + u * np.cos(tilt) - v * np.sin(tilt), y + u * np.sin(tilt) + v * np.cos(tilt)], 1)
    return polygon(points, size)


def bitmap(region: NDArray[np.bool_], top: int, left: int, size: tuple[int, int]) -> Runs:
    """The pixels of a bitmap with its upper left corner at this row and column, cropped to the image."""
    height, width = size
    cut = region[max(0, -top) : max(0, height - top), max(0, -left) : max(0, width - left)]
    top, left = max(0, top), max(0, left)
    if not cut.size:
        return Runs(np.empty(0, np.int64), np.empty(0, np.int64))
    columns = np.zeros((cut.shape[1], cut.shape[0] + 2), np.int8)
    columns[:, 1:-1] = cut.T
    column, row = np.nonzero(np.diff(columns, axis=1))
    return from_toggles((column + left) * height + row + top)


def run_lengths(counts: Iterable[Any], size: tuple[int, int]) -> Runs:
    """The pixels of column-major run lengths, of which the first run is zeros.

    Raises: ShapeError if they do not add up to the size of the image.
    """
    counts = list(counts) if not isinstance(counts, np.ndarray) else counts
    if not isinstance(counts, np.ndarray):
        if any(type(number) is not int for number in counts):
            raise ShapeError("has run lengths that are not whole numbers")
        try:
            counts = np.array(counts, np.int64)
        except OverflowError:
            raise ShapeError("has run lengths far longer than its image") from None
    height, width = size
    # Checked one by one before they are added up, because their sum could overflow.
    if counts.size and (counts.min() < 0 or counts.max() > height * width):
        raise ShapeError("has run lengths that are negative or longer than its image")
    if counts.sum() != height * width:
        raise ShapeError(
            f"has run lengths that add up to {int(counts.sum()):,} pixels, in an image of {width}×{height}, "
            f"{height * width:,} pixels"
        )
    ends = np.cumsum(counts)
    ends = ends[: len(ends) // 2 * 2].reshape(-1, 2)
    ends = ends[ends[:, 0] < ends[:, 1]]
    return Runs(np.ascontiguousarray(ends[:, 0]), np.ascontiguousarray(ends[:, 1]))


def compressed_run_lengths(text: Any) -> NDArray[np.int64]:
    """The numbers in COCO's compressed run lengths.

    A character holds 5 bits, the least significant bits first. From the fourth number on, the text stores differences
    from the number two places before.

    Raises: ShapeError for damaged text.
    """
    try:
        data = text.encode("ascii") if isinstance(text, str) else bytes(text)
    except (UnicodeEncodeError, TypeError, ValueError):
        raise ShapeError("has compressed run lengths with invalid characters") from None
    digits = np.frombuffer(data, np.uint8).astype(np.int64) - 48
    if digits.size == 0:
        return digits
    if digits.min() < 0 or digits.max() > 63:
        raise ShapeError("has compressed run lengths with invalid characters")
    last = np.flatnonzero(digits & 32 == 0)
    first = np.concatenate([[0], last[:-1] + 1]) if last.size else last
    if not last.size or last[-1] != digits.size - 1 or (last - first).max() > 8:
        raise ShapeError("has compressed run lengths that are cut off or damaged")
    place = np.arange(digits.size) - np.repeat(first, last - first + 1)
    numbers = np.add.reduceat((digits & 31) << (5 * place), first)
    numbers -= np.where(digits[last] & 16, np.int64(1) << (5 * (last - first + 1)), 0)
    for parity in (1, 2):
        numbers[parity::2] = np.cumsum(numbers[parity::2])
    return numbers


def compress_run_lengths(mask: NDArray[np.bool_]) -> str:
    """COCO's compressed run lengths of a mask (H, W): the inverse of `compressed_run_lengths` and `run_lengths`."""
    pixels = mask.ravel(order="F")
    starts = np.flatnonzero(pixels[1:] != pixels[:-1]) + 1
    ends = np.concatenate([[0] if pixels[:1].all() else [], starts, [pixels.size]]).astype(np.int64)
    return _compressed(np.diff(ends, prepend=0))


def compress_runs(runs: Runs, size: tuple[int, int]) -> str:
    """COCO's compressed run lengths of a region in an image of this (height, width)."""
    places = np.stack([runs.starts, runs.ends], 1).ravel()
    meets = places[1:] == places[:-1]  # runs that touch are one
    places = places[~(np.append(meets, False) | np.insert(meets, 0, False))]
    pixels = size[0] * size[1]
    return _compressed(np.diff(places if places[-1:] == pixels else np.append(places, pixels), prepend=0))


def without(whole: Runs, part: Runs) -> Runs:
    """The pixels of a region that are not in a part of it."""
    return from_toggles(np.concatenate([whole.starts, whole.ends, part.starts, part.ends]))


def _compressed(numbers: NDArray[np.int64]) -> str:
    """Run lengths as COCO's text; see `compressed_run_lengths`."""
    numbers[3:] -= numbers[1:-2].copy()
    digits = np.zeros((numbers.size, 13), np.int64)
    is_used = np.zeros(digits.shape, np.bool_)
    is_open = np.ones(numbers.size, np.bool_)
    for place in range(digits.shape[1]):
        low, numbers = numbers & 31, numbers >> 5
        is_used[:, place] = is_open
        # Done if the rest is only the sign, which the highest of the five bits repeats.
        is_open = is_open & ~np.where(low & 16, numbers == -1, numbers == 0)
        digits[:, place] = low + 32 * is_open + 48
        if not is_open.any():
            break
    return digits[is_used].astype(np.uint8).tobytes().decode("ascii")


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 30 else text[:27] + "..."
