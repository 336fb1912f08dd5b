"""Simplify the outlines of all regions in a part of a mask, so that neighbours keep sharing their borders."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from evitseg.errors import MissingPackageError
from evitseg.raster.vector_files import Rings, doubled_area


def simplified(regions: list[Rings], indices: NDArray[np.integer], top: int, tolerance: float) -> list[Rings]:
    """The regions with fewer corners: those whose triangle with their neighbours is smaller than `tolerance`².

    Each border between two regions is simplified once, for both of them, between points where more than two regions
    meet. Nothing overlaps afterwards. The outline of the whole part stays, so that parts can be joined. Regions smaller
    than `tolerance`² keep their outlines.

    Args:
        regions: all regions of the part; together they cover it.
        indices: (rows, W) of the part.
        top: its first row.

    Raises: MissingPackageError.
    """
    try:
        import shapely
    except ImportError as error:
        raise MissingPackageError("simplifying polygons", "geo") from error

    rings = [ring for region in regions for ring in region]
    points, ring_of = _with_nodes(rings, indices, top)
    lines = shapely.linearrings(points, indices=ring_of)
    polygons = shapely.polygons(lines, indices=np.repeat(np.arange(len(regions)), [len(region) for region in regions]))
    # GEOS would remove small islands. It keeps the outlines of gaps.
    is_large = np.array([doubled_area(region[0]) for region in regions]) >= 2 * tolerance**2
    if is_large.any():
        # Visvalingam and Whyatt's algorithm, which only removes corners: coordinates stay whole numbers.
        polygons[is_large] = shapely.coverage_simplify(polygons[is_large], tolerance, simplify_boundary=False)
    lines, region_of = shapely.get_rings(polygons, return_index=True)
    points, ring_of = shapely.get_coordinates(lines, return_index=True)
    found: list[Rings] = [[] for _ in regions]
    for region, ring in zip(region_of, np.split(points, np.flatnonzero(np.diff(ring_of)) + 1), strict=True):
        is_clockwise = doubled_area(ring) > 0  # GEOS turns some rings
        is_outer = not found[region]
        found[region].append((ring if is_clockwise == is_outer else ring[::-1]).astype(np.int64))
    return found


def _with_nodes(
    rings: list[NDArray[np.int64]], indices: NDArray[np.integer], top: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Points of the rings with the nodes inside their straight lines, without the last one of each, and their rings."""
    nodes = _nodes(indices)
    rows, columns = nodes.shape
    by_row, by_column = np.flatnonzero(nodes), np.flatnonzero(nodes.T)
    down = np.array([0, top])
    starts = np.concatenate([ring[:-1] for ring in rings]) - down
    stops = np.concatenate([ring[1:] for ring in rings]) - down
    ring_of = np.repeat(np.arange(len(rings)), [len(ring) - 1 for ring in rings])
    low, high = np.minimum(starts, stops), np.maximum(starts, stops)
    is_level = low[:, 1] == high[:, 1]
    is_forward = (starts == low).all(axis=1)
    # The nodes strictly between the ends of each line: from `first` up to `last` in the order along the line.
    first = np.where(
        is_level,
        np.searchsorted(by_row, low[:, 1] * columns + low[:, 0], "right"),
        np.searchsorted(by_column, low[:, 0] * rows + low[:, 1], "right"),
    )
    last = np.where(
        is_level,
        np.searchsorted(by_row, high[:, 1] * columns + high[:, 0], "left"),
        np.searchsorted(by_column, high[:, 0] * rows + high[:, 1], "left"),
    )
    counts = 1 + last - first
    line = np.repeat(np.arange(len(starts)), counts)
    step = np.arange(len(line)) - (np.cumsum(counts) - counts)[line]  # 0 is the start of the line
    number = np.where(is_forward[line], first[line] + step - 1, last[line] - step)
    points = starts[line]
    across = is_level[line] & (step > 0)
    points[across, 0] = by_row[number[across]] % columns
    along = ~is_level[line] & (step > 0)
    points[along, 1] = by_column[number[along]] % rows
    return points + down, ring_of[line]


def _nodes(indices: NDArray[np.integer]) -> NDArray[np.bool_]:
    """Which corners of pixels, (rows + 1, W + 1), end more than two borders; the outline of the part is a border."""
    rows, columns = indices.shape
    upright = np.ones((rows, columns + 1), np.uint8)
    level = np.ones((rows + 1, columns), np.uint8)
    upright[:, 1:-1] = indices[:, 1:] != indices[:, :-1]
    level[1:-1] = indices[1:] != indices[:-1]
    ends = np.zeros((rows + 1, columns + 1), np.uint8)
    ends[1:] += upright
    ends[:-1] += upright
    ends[:, 1:] += level
    ends[:, :-1] += level
    found: NDArray[np.bool_] = ends > 2
    return found
