"""Find the regions of a mask of any size, with their outlines.

The mask is read in bands of rows, and GDAL polygonizes the regions of each band. A region that crosses the line between
two bands is a set of fragments until its last row is read; then the edges of its fragments are joined. Memory holds one
band and the edges of the regions that are not complete. Borders are simplified within bands: points on the line between
two bands stay.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from evitseg.labels import LabelSpace
from evitseg.raster.gdal import import_rasterio
from evitseg.raster.mask_bands import BAND_BYTES, MaskBands, read_classes
from evitseg.raster.simplify import simplified
from evitseg.raster.vector_files import Ring, Rings, doubled_area


@dataclass
class _OpenRegion:
    """A fragment of a region above the last line read: an element of a union-find structure.

    Attributes:
        pixels: its number of pixels.
        edges: arrays (n, 4) of x, y, x, y, from and to.
        joined: the fragment that this one was merged into.
    """

    value: int
    pixels: int
    edges: list[NDArray[np.int64]] = field(default_factory=list)
    joined: _OpenRegion | None = None

    def find(self) -> _OpenRegion:
        end = self
        while end.joined is not None:
            end = end.joined
        step = self
        while step.joined is not None:  # path compression
            step.joined, step = end, step.joined
        return end


_Run: TypeAlias = tuple[int, int, _OpenRegion]
"""Part of the line between two bands, from one x to another, and the fragment that ends there."""


def whole_regions(
    mask: MaskBands,
    labels: LabelSpace,
    wanted: tuple[int, ...],
    progress: Callable[[float], None],
    simplify: float = 0.0,
) -> Iterator[tuple[int, int, Rings]]:
    """Class index, number of pixels and rings of every region.

    Regions that cross bands come when their last band is read.
    """
    height, width = mask.size
    rows = max(1, min(height, BAND_BYTES // width))
    hanging: list[_Run] = []
    for top in range(0, height, rows):
        count = min(rows, height - top)
        below: list[_Run] = []
        above: list[_Run] = []
        for value, pixels, rings in _regions_of(read_classes(mask, labels, top, count), wanted, top, simplify):
            on_top = top > 0 and rings[0][:, 1].min() == top
            on_bottom = top + count < height and rings[0][:, 1].max() == top + count
            if not on_top and not on_bottom:
                yield value, pixels, rings
                continue
            edges = np.concatenate([np.hstack([ring[:-1], ring[1:]]) for ring in rings])
            level = edges[:, 1] == edges[:, 3]
            is_above = level & (edges[:, 1] == top) & on_top
            is_below = level & (edges[:, 1] == top + count) & on_bottom
            fragment = _OpenRegion(value, pixels, [edges[~is_above & ~is_below]])
            # The inside is to the right of an edge: a top edge goes right, a bottom edge left.
            above += [(int(a), int(b), fragment) for a, b in edges[is_above][:, (0, 2)]]
            below += [(int(b), int(a), fragment) for a, b in edges[is_below][:, (0, 2)]]
        done = {id(fragment): fragment for _, _, fragment in hanging}
        if simplify:  # both sides get the points of both
            ends = sorted({x for start, stop, _ in (*hanging, *above) for x in (start, stop)})
            hanging, above = _split(hanging, ends), _split(above, ends)
        _join(hanging, sorted(above, key=lambda run: run[0]), top)
        going_on = {id(fragment.find()) for _, _, fragment in below}
        roots = {
            id(fragment.find()): fragment.find()
            for fragment in [*done.values(), *(fragment for _, _, fragment in above)]
        }
        for key, root in roots.items():
            if key not in going_on:
                yield root.value, root.pixels, _rings(np.concatenate(root.edges), not simplify)
        hanging = sorted(below, key=lambda run: run[0])
        progress((top + count) / height)


def _regions_of(
    indices: NDArray[np.integer], wanted: tuple[int, ...], top: int, simplify: float
) -> Iterator[tuple[int, int, Rings]]:
    """Class index, number of pixels and rings of the regions within a band of rows, as GDAL finds them."""
    rasterio = import_rasterio()
    from rasterio.features import shapes

    down = rasterio.Affine.translation(0, top)
    is_wanted = np.zeros(np.iinfo(indices.dtype).max + 1, np.bool_)
    is_wanted[list(wanted)] = True
    chosen = None if simplify else is_wanted[indices]  # the borders between the others have nodes, too
    found: list[tuple[int, int, Rings]] = []
    for polygon, value in shapes(indices, mask=chosen, connectivity=4, transform=down):
        edges = []
        for number, points in enumerate(polygon["coordinates"]):
            ring = np.rint(np.asarray(points)).astype(np.int64)
            # y points downwards, so a positive area is clockwise on the screen.
            if (doubled_area(ring) > 0) != (number == 0):
                ring = ring[::-1]
            edges.append(np.hstack([ring[:-1], ring[1:]]))
        rings = _rings(np.concatenate(edges))
        pixels = round(sum(doubled_area(ring) for ring in rings) / 2)
        if simplify:
            found.append((int(value), pixels, rings))
        else:
            yield int(value), pixels, rings
    if simplify:
        outlines = simplified([rings for *_, rings in found], indices, top, simplify)
        for (value, pixels, _), rings in zip(found, outlines, strict=True):
            if is_wanted[value]:
                yield value, pixels, rings


def _split(runs: list[_Run], ends: list[int]) -> list[_Run]:
    """The runs, cut at every one of these places."""
    parts: list[_Run] = []
    for start, stop, fragment in runs:
        cuts = ends[bisect_left(ends, start) : bisect_right(ends, stop)]
        parts += [(a, b, fragment) for a, b in pairwise(cuts)]
    return parts


def _join(hanging: list[_Run], above: list[_Run], y: int) -> None:
    """Merge fragments that meet on a line between bands, and keep the parts of their edges that meet no counterpart.

    `hanging` holds bottom edges of the band above the line, `above` top edges of the band below it; both left to right.
    """
    kept: dict[int, list[tuple[int, int, int, int]]] = defaultdict(list)
    owners: dict[int, _OpenRegion] = {}

    def keep(fragment: _OpenRegion, start: int, stop: int) -> None:
        if start != stop:
            owners[id(fragment)] = fragment
            kept[id(fragment)].append((start, y, stop, y))

    at = 0
    met: list[tuple[_OpenRegion, _OpenRegion]] = []
    upper_left = [start for start, _, _ in hanging]
    for start, stop, lower in above:
        while at < len(hanging) and hanging[at][1] <= start:
            at += 1
        position, place = start, at
        while place < len(hanging) and hanging[place][0] < stop:
            begin, end, upper = hanging[place]
            if upper.value == lower.value:
                a, b = max(start, begin), min(stop, end)
                keep(lower, position, a)
                keep(upper, a, upper_left[place])  # a bottom edge goes left
                position, upper_left[place] = b, b
                met.append((upper, lower))
            place += 1
        keep(lower, position, stop)
    for (_, stop, upper), left in zip(hanging, upper_left, strict=True):
        keep(upper, stop, left)
    for key, edges in kept.items():
        owners[key].find().edges.append(np.array(edges, np.int64))
    for first, second in met:
        larger, smaller = first.find(), second.find()
        if larger is not smaller:
            if len(larger.edges) < len(smaller.edges):
                larger, smaller = smaller, larger
            larger.edges += smaller.edges
            larger.pixels += smaller.pixels
            smaller.edges, smaller.joined = [], larger


def _rings(edges: NDArray[np.int64], straighten: bool = True) -> Rings:
    """Simple closed rings from a region's edges (n, 4), the outer ring first.

    Args:
        straighten: leaves out points inside straight lines, which are along an axis.
    """
    following: dict[tuple[int, int], list[tuple[int, int]]] = defaultdict(list)
    for x0, y0, x1, y1 in edges.tolist():
        following[x0, y0].append((x1, y1))
    rings = []
    for start in list(following):
        while following[start]:
            path, places = [start], {start: 0}
            while path:
                here = path[-1]
                if not following[here]:
                    break
                there = following[here].pop()
                if there not in places:
                    places[there] = len(path)
                    path.append(there)
                    continue
                # Back at a corner: the path since then is a ring. So rings that touch in a corner stay apart.
                first = places[there]
                ring = np.array([*path[first:], there], np.int64)
                rings.append(_straightened(ring) if straighten else ring)
                for point in path[first + 1 :]:
                    del places[point]
                del path[first + 1 :]
    rings.sort(key=doubled_area, reverse=True)
    return rings


def _straightened(ring: Ring) -> Ring:
    """The ring without points inside straight lines."""
    steps = np.sign(np.diff(ring, axis=0))
    corners = (steps != np.roll(steps, 1, axis=0)).any(axis=1)
    kept = ring[:-1][corners]
    return np.concatenate([kept, kept[:1]])
