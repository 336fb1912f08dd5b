"""Polygons of a mask's regions, class by class, as GeoJSON or GeoPackage.

The mask is read in bands of rows. GDAL outlines the regions of each; what touches the line between two bands is kept
until it ends, then its pieces' edges are put together. So regions come out whole, and memory holds a band, and the
outlines of the regions that go on below it.
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
from evitseg.raster.mask_bands import BAND_BYTES, MaskBands, open_mask
from evitseg.raster.mask_values import DistinctValues, class_indices, code_of, color_of
from evitseg.raster.vector_files import ENDINGS, Ring, Rings, doubled_area, geojson, geopackage


@dataclass(frozen=True)
class PolygonCounts:
    """What was written.

    Attributes:
        polygons: how many, by class name.
        in_pixels: coordinates are pixels, because the mask has no place on earth.
    """

    polygons: dict[str, int]
    in_pixels: bool


def polygonize(
    mask: str | os.PathLike[str],
    out: str | os.PathLike[str],
    labels: LabelSpace | None = None,
    classes: Iterable[str] | None = None,
    min_pixels: int = 1,
    progress: Callable[[float], None] = lambda share: None,
) -> PolygonCounts:
    """Write every region of a class, pixels that touch along an edge, as a polygon with its holes.

    GeoJSON (.geojson, .json) is in longitude and latitude, as its standard wants; GeoPackage (.gpkg) is in the mask's
    coordinate reference system. Where the mask has none, both hold pixels, y downwards. Each polygon has the fields
    `class` (its index), `name` and `pixels`.

    Args:
        mask_path: a mask as `open_mask_writer` and `save_mask` write it: .tif, .png or .zarr.
        labels: None takes what the mask says of its classes.
        classes: names of those to write; None takes all.
        min_pixels: smaller regions are left out; the holes they fill stay.
        progress: called with the share done, 0 to 1.

    Raises: ImageError, ConfigError for an unknown class, FileError, MissingPackageError.
    """
    out = Path(out)
    if out.suffix.lower() not in ENDINGS:
        raise ImageError(f"{out}: polygons are written as .geojson or .gpkg; end the name in one of them.")
    if min_pixels < 1:
        raise ConfigError(f"min_pixels is {min_pixels}; it must be 1 or more.")
    rasterio = import_rasterio()
    write = geojson if out.suffix.lower() != ".gpkg" else geopackage
    with open_mask(Path(os.path.abspath(mask)), str(mask)) as bands:
        labels = labels or bands.labels
        if labels is None:
            raise ConfigError(f"{mask}: does not say what its classes are; give their label space (--labels).")
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
    """Every region of a class, pixels that touch along an edge, as a polygon with its holes, in pixel coordinates.

    Args:
        mask: (H, W) class indices.
        classes: names of the classes to return; None for all.
        min_pixels: leaves out smaller regions; the holes they fill stay.

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
    """Class indices by rows, also of a mask whose palette a PNG optimiser has put in another order."""
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
            f"{mask.name}: holds 255 and never 1, the class index of {labels.names[1]!r}; polygons are made of class "
            "indices, in which 255 is no class."
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
            return mask.read  # which is told where it is read
        raise ConfigError(f"{mask.name}: {error} Give the label space that it was made with.") from error
    table = np.zeros(values[-1] + 1, labels.dtype)
    table[list(values)] = indices
    return lambda top, count: np.asarray(table[mask.read(top, count)])


@dataclass
class _OpenRegion:
    """Pieces of one region, above the line that bands have come to.

    Attributes:
        edges: arrays (n, 4) of x, y, x, y, from and to.
        joined: what it has become a part of.
    """

    value: int
    edges: list[NDArray[np.int64]] = field(default_factory=list)
    joined: _OpenRegion | None = None

    def find(self) -> _OpenRegion:
        end = self
        while end.joined is not None:
            end = end.joined
        step = self
        while step.joined is not None:  # the next search is short
            step.joined, step = end, step.joined
        return end


def whole_regions(
    mask: MaskBands, labels: LabelSpace, wanted: tuple[int, ...], progress: Callable[[float], None]
) -> Iterator[tuple[int, Rings]]:
    """Every region's class index and rings; those that cross bands come when their last band is read."""
    height, width = mask.size
    rows = max(1, min(height, BAND_BYTES // width))
    hanging: list[
        tuple[int, int, _OpenRegion]
    ] = []  # x from, x to, and whose edge on the line above it is; left to right
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
            piece = _OpenRegion(value, [edges[~is_above & ~is_below]])
            # The inside is to the right of an edge: a top edge goes right, a bottom edge left.
            above += [(int(a), int(b), piece) for a, b in edges[is_above][:, (0, 2)]]
            below += [(int(b), int(a), piece) for a, b in edges[is_below][:, (0, 2)]]
        done = {id(piece): piece for _, _, piece in hanging}
        _join(hanging, sorted(above, key=lambda run: run[0]), top)
        going_on = {id(piece.find()) for _, _, piece in below}
        roots = {id(piece.find()): piece.find() for piece in [*done.values(), *(piece for _, _, piece in above)]}
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
                f"{mask.name}: holds {void}, the raw id of {label.name!r}, but polygons are made of class indices, in "
                f"which {void} is no class; give a mask as evitseg predict writes it."
            )
    strange = found[(found >= len(labels.classes)) & (found != void)]
    if strange.size:
        raise ConfigError(
            f"{mask.name}: holds {int(strange[0])}, which is no class of {labels.name!r} "
            f"(0 to {len(labels.classes) - 1}); give the label space it was made with."
        )
    return indices


def _regions_of(indices: NDArray[np.integer], wanted: tuple[int, ...], top: int) -> Iterator[tuple[int, Rings]]:
    """Regions within a band of rows, by GDAL."""
    rasterio = import_rasterio()
    from rasterio.features import shapes

    down = rasterio.Affine.translation(0, top)
    is_wanted = np.zeros(np.iinfo(indices.dtype).max + 1, np.bool_)
    is_wanted[list(wanted)] = True
    for polygon, value in shapes(indices, mask=is_wanted[indices], connectivity=4, transform=down):
        edges = []
        for number, points in enumerate(polygon["coordinates"]):
            ring = np.rint(np.asarray(points)).astype(np.int64)
            # y points downwards: what is positive here is clockwise as seen.
            if (doubled_area(ring) > 0) != (number == 0):
                ring = ring[::-1]
            edges.append(np.hstack([ring[:-1], ring[1:]]))
        yield int(value), _rings(np.concatenate(edges))


def _join(hanging: list[tuple[int, int, _OpenRegion]], above: list[tuple[int, int, _OpenRegion]], y: int) -> None:
    """Make one of the pieces that meet on a line between bands; what of their edges there has no counterpart stays.

    `hanging` are bottom edges of the band above the line, `above` top edges of the band below it; both left to right.
    """
    kept: dict[int, list[tuple[int, int, int, int]]] = defaultdict(list)
    owners: dict[int, _OpenRegion] = {}

    def keep(piece: _OpenRegion, start: int, stop: int) -> None:
        if start != stop:
            owners[id(piece)] = piece
            kept[id(piece)].append((start, y, stop, y))

    at = 0
    met: list[tuple[_OpenRegion, _OpenRegion]] = []
    # For every lower edge, how much of it meets edges of the same class; for every upper edge likewise.
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
    """Simple closed rings of a region's edges (n, 4), the outside first."""
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
                # Back at a corner: what lies between is a ring of its own, also where two rings touch there.
                first = places[there]
                rings.append(_straightened([*path[first:], there]))
                for point in path[first + 1 :]:
                    del places[point]
                del path[first + 1 :]
    rings.sort(key=doubled_area, reverse=True)
    return rings


def _straightened(points: list[tuple[int, int]]) -> Ring:
    """The ring without points in the middle of a straight line."""
    ring = np.array(points, np.int64)
    steps = np.sign(np.diff(ring, axis=0))
    corners = (steps != np.roll(steps, 1, axis=0)).any(axis=1)
    kept = ring[:-1][corners]
    return np.concatenate([kept, kept[:1]])
