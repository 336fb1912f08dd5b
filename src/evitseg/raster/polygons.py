"""Convert the regions of a mask to polygons, class by class.

The mask is read in bands of rows, and GDAL polygonizes the regions of each band. A region that crosses the line between
two bands is a set of fragments until its last row is read; then the edges of its fragments are joined. Memory holds one
band and the edges of the regions that are not complete.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal, TypedDict

import numpy as np
from numpy.typing import NDArray

from evitseg.errors import ConfigError, ImageError, unknown
from evitseg.labels import LabelSpace, by_index
from evitseg.raster.gdal import import_rasterio
from evitseg.raster.mask_bands import MaskBands, open_mask
from evitseg.raster.mask_values import DistinctValues, class_indices, code_of, color_of
from evitseg.raster.vector_files import ENDINGS, Ring, Rings, doubled_area, geojson, geopackage

BAND_BYTES = 8 * 2**20
"""Size of a band of rows of the mask; one band at a time is in memory."""


@dataclass(frozen=True)
class PolygonCounts:
    """The result of `polygonize`.

    Attributes:
        polygons: number of polygons written, by class name.
        in_pixels: whether coordinates are pixels, because the mask has no georeference.
    """

    polygons: dict[str, int]
    in_pixels: bool


def polygonize(
    mask: str | os.PathLike[str],
    out: str | os.PathLike[str],
    labels: LabelSpace | None = None,
    classes: Iterable[str] | None = None,
    min_pixels: int = 1,
    progress: Callable[[float], None] = lambda fraction: None,
) -> PolygonCounts:
    """Write the regions of a mask as polygons. A region is a set of pixels of one class that touch along edges.

    GeoJSON (.geojson, .json) is in longitude and latitude, as its standard requires. GeoPackage (.gpkg) is in the
    mask's coordinate reference system. Without one, both are in pixels, y downwards. Each polygon has its holes and
    the fields `class` (the index), `name` and `pixels` (the area).

    Args:
        mask: a mask file by `open_mask_writer` or `Prediction.save`: .tif, .png or .zarr.
        labels: the classes; None uses those that the mask file lists.
        classes: names of the classes to write; None writes all.
        min_pixels: area of the smallest region to write. Smaller ones still leave holes in the regions around them.
        progress: called with the finished fraction, 0 to 1.

    Raises: ImageError, ConfigError for an unknown class, FileError, MissingPackageError.
    """
    out = Path(out)
    if out.suffix.lower() not in ENDINGS:
        raise ImageError(f"{out}: polygons are written as GeoJSON or GeoPackage; use the ending .geojson or .gpkg.")
    if min_pixels < 1:
        raise ConfigError(f"min_pixels is {min_pixels}; it must be 1 or more.")
    rasterio = import_rasterio()
    write = geojson if out.suffix.lower() != ".gpkg" else geopackage
    with open_mask(Path(os.path.abspath(mask)), str(mask)) as bands:
        labels = labels or bands.labels
        if labels is None:
            raise ConfigError(f"{mask}: does not list its classes; give their label space (--labels).")
        bands = replace(bands, read=_class_reader(bands, labels))
        wanted = _wanted(labels, classes)
        counts = dict.fromkeys((labels.names[i] for i in wanted), 0)

        def features() -> Iterator[tuple[int, str, int, Rings]]:
            for value, rings in whole_regions(bands, labels, wanted, progress):
                pixels = abs(round(sum(doubled_area(ring) for ring in rings) / 2))
                if pixels >= min_pixels:
                    name = labels.names[value]
                    counts[name] += 1
                    yield value, name, pixels, rings

        crs = bands.crs if bands.transform is not None else None
        transform = bands.transform if crs is not None else rasterio.Affine.identity()
        write(out, features(), transform, crs, Path(mask).stem)
    return PolygonCounts(counts, in_pixels=crs is None)


class PolygonGeometry(TypedDict):
    """Coordinates [x, y] in pixels from the mask's corner, y downwards; the outer ring first, then the holes."""

    type: Literal["Polygon"]
    coordinates: list[list[list[int]]]


class PolygonFeature(TypedDict):
    """A region of one class, as GeoJSON describes it. Its properties: class (the index), name, pixels (the area)."""

    type: Literal["Feature"]
    properties: dict[str, str | int]
    geometry: PolygonGeometry


def polygon_features(
    mask: NDArray[np.integer], labels: LabelSpace, classes: Iterable[str] | None = None, min_pixels: int = 1
) -> list[PolygonFeature]:
    """The regions of a mask as GeoJSON features in pixel coordinates: pixels of one class that touch along edges.

    Args:
        mask: (H, W) class indices.
        classes: names of the classes to return; None returns all.
        min_pixels: area of the smallest region to return. Smaller ones still leave holes in the regions around them.

    Raises: ConfigError, MissingPackageError without the extra `geo`.
    """
    if min_pixels < 1:
        raise ConfigError(f"min_pixels is {min_pixels}; it must be 1 or more.")
    whole = MaskBands("the mask", mask.shape[:2], lambda top, rows: mask[top : top + rows], labels)
    found: list[PolygonFeature] = []
    for value, rings in whole_regions(whole, labels, _wanted(labels, classes), lambda fraction: None):
        pixels = abs(round(sum(doubled_area(ring) for ring in rings) / 2))
        if pixels >= min_pixels:
            found.append(
                {
                    "type": "Feature",
                    "properties": {"class": value, "name": labels.names[value], "pixels": pixels},
                    "geometry": {"type": "Polygon", "coordinates": [ring.tolist() for ring in rings]},
                }
            )
    return found


def _wanted(labels: LabelSpace, classes: Iterable[str] | None) -> tuple[int, ...]:
    if classes is None:
        return tuple(range(len(labels.classes)))
    for name in (classes := list(classes)):
        if name not in labels.names:
            raise unknown("class", name, labels.names)
    return tuple(labels.names.index(name) for name in dict.fromkeys(classes))


def _class_reader(mask: MaskBands, labels: LabelSpace) -> Callable[[int, int], NDArray[np.integer]]:
    """Reads class indices, even if a PNG optimiser has reordered the mask's palette."""
    colors = [code_of(c.color) for c in labels.classes]
    is_own = mask.palette is not None and [mask.palette.get(index) for index in range(len(colors))] == colors
    if is_own or (mask.palette is None and not mask.is_png):
        return mask.read
    height, width = mask.size
    rows = max(1, min(height, BAND_BYTES // width))
    counts = np.zeros(2**16, np.int64)
    for top in range(0, height, rows):
        counts += np.bincount(mask.read(top, min(rows, height - top)).ravel(), minlength=len(counts))
    values = tuple(np.flatnonzero(counts).tolist())
    is_assumed = "ignored_ids" in labels.assumed and labels.classes[-1].raw_ids == (1,)
    if len(labels.classes) == 2 and is_assumed and 255 in values and 1 not in values:
        raise ConfigError(
            f"{mask.name}: holds 255 but no 1, the class index of {labels.names[1]!r}; polygons are made from class "
            "indices, in which 255 is not a class."
        )
    shown = mask.palette if mask.palette is not None else {value: value * 0x010101 for value in range(256)}
    held = DistinctValues(
        "levels" if mask.palette is None else "palette", values, tuple(counts[list(values)].tolist()),
        tuple(shown.get(value, -1 - value) for value in values),
        mask.palette is None or all(len(set(color_of(code))) == 1 for code in mask.palette.values()),
    )  # fmt: skip
    try:
        indices = class_indices(held, replace(by_index(labels), ignored_ids=(labels.ignore_index,)))
    except ConfigError as error:
        if held.kind == "levels":
            return mask.read  # the unknown value is reported when its row is read
        raise ConfigError(f"{mask.name}: {error} Give the label space that the mask was made with.") from error
    table = np.zeros(values[-1] + 1, labels.dtype)
    table[list(values)] = indices
    return lambda top, count: np.asarray(table[mask.read(top, count)])


@dataclass
class _OpenRegion:
    """A fragment of a region above the last line read: an element of a union-find structure.

    Attributes:
        edges: arrays (n, 4) of x, y, x, y, from and to.
        joined: the fragment that this one was merged into.
    """

    value: int
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


def whole_regions(
    mask: MaskBands, labels: LabelSpace, wanted: tuple[int, ...], progress: Callable[[float], None]
) -> Iterator[tuple[int, Rings]]:
    """Class index and rings of every region. Regions that cross bands come when their last band is read."""
    height, width = mask.size
    rows = max(1, min(height, BAND_BYTES // width))
    hanging: list[tuple[int, int, _OpenRegion]] = []  # x from, x to, fragment; left to right
    for top in range(0, height, rows):
        count = min(rows, height - top)
        below: list[tuple[int, int, _OpenRegion]] = []
        above: list[tuple[int, int, _OpenRegion]] = []
        for value, rings in _regions_of(_checked(mask, labels, top, count), wanted, top):
            on_top = top > 0 and rings[0][:, 1].min() == top
            on_bottom = top + count < height and rings[0][:, 1].max() == top + count
            if not on_top and not on_bottom:
                yield value, rings
                continue
            edges = np.concatenate([np.hstack([ring[:-1], ring[1:]]) for ring in rings])
            level = edges[:, 1] == edges[:, 3]
            is_above = level & (edges[:, 1] == top) & on_top
            is_below = level & (edges[:, 1] == top + count) & on_bottom
            fragment = _OpenRegion(value, [edges[~is_above & ~is_below]])
            # The inside is to the right of an edge: a top edge goes right, a bottom edge left.
            above += [(int(a), int(b), fragment) for a, b in edges[is_above][:, (0, 2)]]
            below += [(int(b), int(a), fragment) for a, b in edges[is_below][:, (0, 2)]]
        done = {id(fragment): fragment for _, _, fragment in hanging}
        _join(hanging, sorted(above, key=lambda run: run[0]), top)
        going_on = {id(fragment.find()) for _, _, fragment in below}
        roots = {
            id(fragment.find()): fragment.find()
            for fragment in [*done.values(), *(fragment for _, _, fragment in above)]
        }
        for key, root in roots.items():
            if key not in going_on:
                yield root.value, _rings(np.concatenate(root.edges))
        hanging = sorted(below, key=lambda run: run[0])
        progress((top + count) / height)


def _checked(mask: MaskBands, labels: LabelSpace, top: int, count: int) -> NDArray[np.integer]:
    indices = mask.read(top, count)
    found = np.flatnonzero(np.bincount(indices.ravel()))
    void = int(np.iinfo(indices.dtype).max)
    for label in labels.classes:
        if void in label.raw_ids and void in found:
            raise ConfigError(
                f"{mask.name}: holds {void}, the raw id of {label.name!r}, but polygons are made from class indices, "
                f"in which {void} is not a class; give a mask written by evitseg predict."
            )
    unknown_values = found[(found >= len(labels.classes)) & (found != void)]
    if unknown_values.size:
        raise ConfigError(
            f"{mask.name}: holds {int(unknown_values[0])}, which is not a class of {labels.name!r} "
            f"(0 to {len(labels.classes) - 1}); give the label space that the mask was made with."
        )
    return indices


def _regions_of(indices: NDArray[np.integer], wanted: tuple[int, ...], top: int) -> Iterator[tuple[int, Rings]]:
    """Class index and rings of the regions within a band of rows, as GDAL finds them."""
    rasterio = import_rasterio()
    from rasterio.features import shapes

    down = rasterio.Affine.translation(0, top)
    is_wanted = np.zeros(np.iinfo(indices.dtype).max + 1, np.bool_)
    is_wanted[list(wanted)] = True
    for polygon, value in shapes(indices, mask=is_wanted[indices], connectivity=4, transform=down):
        edges = []
        for number, points in enumerate(polygon["coordinates"]):
            ring = np.rint(np.asarray(points)).astype(np.int64)
            # y points downwards, so a positive area is clockwise on the screen.
            if (doubled_area(ring) > 0) != (number == 0):
                ring = ring[::-1]
            edges.append(np.hstack([ring[:-1], ring[1:]]))
        yield int(value), _rings(np.concatenate(edges))


def _join(hanging: list[tuple[int, int, _OpenRegion]], above: list[tuple[int, int, _OpenRegion]], y: int) -> None:
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
            smaller.edges, smaller.joined = [], larger


def _rings(edges: NDArray[np.int64]) -> Rings:
    """Simple closed rings from a region's edges (n, 4), the outer ring first."""
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
                rings.append(_straightened([*path[first:], there]))
                for point in path[first + 1 :]:
                    del places[point]
                del path[first + 1 :]
    rings.sort(key=doubled_area, reverse=True)
    return rings


def _straightened(points: list[tuple[int, int]]) -> Ring:
    """The ring without points inside straight lines."""
    ring = np.array(points, np.int64)
    steps = np.sign(np.diff(ring, axis=0))
    corners = (steps != np.roll(steps, 1, axis=0)).any(axis=1)
    kept = ring[:-1][corners]
    return np.concatenate([kept, kept[:1]])
