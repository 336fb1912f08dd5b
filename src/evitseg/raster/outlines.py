"""Polygons of a mask's regions, class by class, as GeoJSON or GeoPackage.

The mask is read in bands of rows. GDAL outlines the regions of each; what touches the line between two bands is kept
until it ends, then its pieces' edges are put together. So regions come out whole, and memory holds a band, and the
outlines of the regions that go on below it.
"""

from __future__ import annotations

import json
import os
import struct
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import ModuleType
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from evitseg.authorship import POLYGONS
from evitseg.errors import ConfigError, FileError, MissingPackageError, PictureError, unknown
from evitseg.files import replacing, temporary_folder
from evitseg.labels import LabelClass, LabelSpace, by_index
from evitseg.mask_values import Held, class_indices, code_of, color_of
from evitseg.raster.gdal import environment, import_rasterio, quiet_open
from evitseg.raster.window import MAX_PIXELS, check_block, check_window, damaged

ENDINGS = (".geojson", ".json", ".gpkg")
_BAND_BYTES = 8 * 2**20
_BATCH_POINTS = 200_000
_DEGREES = 9
"""Decimals of longitude and latitude: a tenth of a millimetre."""
_WGS84 = "EPSG:4326"

Ring = NDArray[np.int64]
"""(points, 2): x to the right and y downwards in pixels, from the mask's corner; the last point is the first."""
Rings = list[Ring]
"""The outside first, clockwise as seen; then the holes, anticlockwise."""


@dataclass(frozen=True)
class Outlines:
    """What was written.

    Attributes:
        polygons: how many, by class name.
        in_pixels: coordinates are pixels, because the mask has no place on earth.
    """

    polygons: dict[str, int]
    in_pixels: bool


def polygons(
    mask_path: str | os.PathLike[str],
    out: str | os.PathLike[str],
    labels: LabelSpace | None = None,
    classes: Iterable[str] | None = None,
    minimum_pixels: int = 1,
    progress: Callable[[float], None] = lambda share: None,
) -> Outlines:
    """Write every region of a class, pixels that touch along an edge, as a polygon with its holes.

    GeoJSON (.geojson, .json) is in longitude and latitude, as its standard wants; GeoPackage (.gpkg) is in the mask's
    coordinate reference system. Where the mask has none, both hold pixels, y downwards. Each polygon has the fields
    `class` (its index), `name` and `pixels`.

    Args:
        mask_path: a mask as `open_sink` and `save_mask` write it: .tif, .png or .zarr.
        labels: None takes what the mask says of its classes.
        classes: names of those to write; None takes all.
        minimum_pixels: smaller regions are left out; the holes they fill stay.
        progress: called with the share done, 0 to 1.

    Raises: PictureError, ConfigError for an unknown class, FileError, MissingPackageError.
    """
    out = Path(out)
    if out.suffix.lower() not in ENDINGS:
        raise PictureError(f"{out}: polygons are written as .geojson or .gpkg; end the name in one of them.")
    if minimum_pixels < 1:
        raise ConfigError(f"minimum_pixels is {minimum_pixels}; it must be 1 or more.")
    rasterio = import_rasterio()
    write = _geojson if out.suffix.lower() != ".gpkg" else _geopackage
    with _open_mask(Path(os.path.abspath(mask_path)), str(mask_path)) as mask:
        labels = labels or mask.labels
        if labels is None:
            raise ConfigError(f"{mask_path}: does not say what its classes are; give their label space (--labels).")
        mask = replace(mask, read=_class_reader(mask, labels))
        wanted = _wanted(labels, classes)
        counts = dict.fromkeys((labels.names[i] for i in wanted), 0)

        def features() -> Iterator[tuple[int, str, int, Rings]]:
            for value, rings in whole_regions(mask, labels, wanted, progress):
                pixels = abs(round(sum(_doubled_area(ring) for ring in rings) / 2))
                if pixels >= minimum_pixels:
                    name = labels.names[value]
                    counts[name] += 1
                    yield value, name, pixels, rings

        crs = mask.crs if mask.transform is not None else None
        transform = mask.transform if crs is not None else rasterio.Affine.identity()
        write(out, features(), transform, crs, Path(mask_path).stem)
    return Outlines(counts, in_pixels=crs is None)


def _wanted(labels: LabelSpace, classes: Iterable[str] | None) -> tuple[int, ...]:
    if classes is None:
        return tuple(range(len(labels.classes)))
    for name in (classes := list(classes)):
        if name not in labels.names:
            raise unknown("class", name, labels.names)
    return tuple(labels.names.index(name) for name in dict.fromkeys(classes))


# The mask.


def _class_reader(mask: _Mask, labels: LabelSpace) -> Callable[[int, int], NDArray[np.integer]]:
    """Class indices by rows, also of a mask whose palette a PNG optimiser has put in another order."""
    colors = [code_of(c.color) for c in labels.classes]
    is_own = mask.palette is not None and [mask.palette.get(index) for index in range(len(colors))] == colors
    if is_own or (mask.palette is None and not mask.is_png):
        return mask.read
    height, width = mask.size
    rows = max(1, min(height, _BAND_BYTES // width))
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
    held = Held(
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


@dataclass(frozen=True)
class _Mask:
    """Class indices, row by row, and what the file says of them."""

    name: str
    size: tuple[int, int]
    read: Callable[[int, int], NDArray[np.integer]]  # first row, rows -> (rows, width)
    labels: LabelSpace | None
    crs: Any = None
    transform: Any = None
    palette: dict[int, int] | None = None  # colours as 0xRRGGBB by stored number
    is_png: bool = False


@contextmanager
def _open_mask(path: Path, name: str) -> Iterator[_Mask]:
    from evitseg.raster import kind_of

    kind = kind_of(path, name)
    if kind == "zarr":
        from evitseg.raster.zarrs import open_zarr

        with open_zarr(path, name) as source:
            yield _Mask(name, source.size, source.indices, _labels(source.attributes.get("evitseg")))
        return
    if kind == "whole":
        raise PictureError(f"{name}: a mask is a TIFF, a PNG or a Zarr.")
    rasterio = import_rasterio()
    try:
        with environment(), quiet_open(path, driver="GTiff" if kind == "tiff" else kind) as dataset:
            if dataset.count != 1 or dataset.dtypes[0] not in ("uint8", "uint16"):
                raise PictureError(f"{name}: a mask has one band of 8 or 16 bits, this has {dataset.count} of another.")
            size = (dataset.height, dataset.width)
            if size[0] * size[1] > MAX_PIXELS:
                raise PictureError(f"{name}: more than {MAX_PIXELS:,} pixels; cut it into parts.")
            check_block(name, dataset.block_shapes[0], int(np.prod(dataset.block_shapes[0])) * 2)

            def read(top: int, rows: int) -> NDArray[np.integer]:
                check_window(size, top, 0, rows, size[1])
                window = rasterio.windows.Window(0, top, size[1], rows)
                try:
                    indices: NDArray[np.integer] = dataset.read(1, window=window)
                except rasterio.errors.RasterioError as error:
                    raise damaged(name, top, 0, rows, size[1], error.__cause__ or error) from error
                return indices

            said = dataset.tags(1).get("EVITSEG_CLASSES")
            described = dataset.tags().get("TIFFTAG_IMAGEDESCRIPTION", "")
            labels = _labels(_parsed(said)) if said else _labels(_from_ome(described))
            is_placed = dataset.crs is not None and dataset.transform != rasterio.Affine.identity()
            transform = dataset.transform if is_placed else None
            palette = None
            if dataset.colorinterp[0].name == "palette":
                palette = {index: code_of(color) for index, color in dataset.colormap(1).items()}
            yield _Mask(name, size, read, labels, dataset.crs, transform, palette, kind == "PNG")
    except rasterio.errors.RasterioError as error:
        raise PictureError(f"{name}: truncated or damaged ({error}).") from error


def _from_ome(description: str) -> Any:
    from xml.etree import ElementTree

    if not description.lstrip().startswith("<?xml"):
        return None
    try:
        found = ElementTree.fromstring(description).find(".//{*}Description")
    except ElementTree.ParseError:
        return None  # another program's words: no classes are found in them
    return _parsed(found.text) if found is not None else None


def _parsed(text: str | None) -> Any:
    try:
        return json.loads(text or "null")
    except (ValueError, RecursionError):
        return None  # as above


def _labels(said: Any) -> LabelSpace | None:
    """The label space of a mask that `open_sink` wrote; None where another program did."""
    try:
        table = said["classes"] if isinstance(said, dict) else said
        classes = tuple(
            LabelClass(str(entry["name"]), (place,), tuple(map(int, entry["color"]))[:3])  # type: ignore[arg-type]
            for place, entry in enumerate(table)
            if int(entry["value"]) == place
        )
        return LabelSpace("of the mask", classes, ignored_ids=()) if len(classes) == len(table) else None
    except (KeyError, TypeError, ValueError, ConfigError):
        return None


# Regions.


@dataclass
class _Open:
    """Pieces of one region, above the line that bands have come to.

    Attributes:
        edges: arrays (n, 4) of x, y, x, y, from and to.
        joined: what it has become a part of.
    """

    value: int
    edges: list[NDArray[np.int64]] = field(default_factory=list)
    joined: _Open | None = None

    def root(self) -> _Open:
        end = self
        while end.joined is not None:
            end = end.joined
        step = self
        while step.joined is not None:  # the next search is short
            step.joined, step = end, step.joined
        return end


def whole_regions(
    mask: _Mask, labels: LabelSpace, wanted: tuple[int, ...], progress: Callable[[float], None]
) -> Iterator[tuple[int, Rings]]:
    """Every region's class index and rings; those that cross bands come when their last band is read."""
    height, width = mask.size
    rows = max(1, min(height, _BAND_BYTES // width))
    hanging: list[tuple[int, int, _Open]] = []  # x from, x to, and whose edge on the line above it is; left to right
    for top in range(0, height, rows):
        count = min(rows, height - top)
        below: list[tuple[int, int, _Open]] = []
        above: list[tuple[int, int, _Open]] = []
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
            piece = _Open(value, [edges[~is_above & ~is_below]])
            # The inside is to the right of an edge: a top edge goes right, a bottom edge left.
            above += [(int(a), int(b), piece) for a, b in edges[is_above][:, (0, 2)]]
            below += [(int(b), int(a), piece) for a, b in edges[is_below][:, (0, 2)]]
        done = {id(piece): piece for _, _, piece in hanging}
        _join(hanging, sorted(above, key=lambda run: run[0]), top)
        going_on = {id(piece.root()) for _, _, piece in below}
        roots = {id(piece.root()): piece.root() for piece in [*done.values(), *(piece for _, _, piece in above)]}
        for key, root in roots.items():
            if key not in going_on:
                yield root.value, _rings(np.concatenate(root.edges))
        hanging = sorted(below, key=lambda run: run[0])
        progress((top + count) / height)


def _checked(mask: _Mask, labels: LabelSpace, top: int, count: int) -> NDArray[np.integer]:
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
            if (_doubled_area(ring) > 0) != (number == 0):
                ring = ring[::-1]
            edges.append(np.hstack([ring[:-1], ring[1:]]))
        yield int(value), _rings(np.concatenate(edges))


def _join(hanging: list[tuple[int, int, _Open]], above: list[tuple[int, int, _Open]], y: int) -> None:
    """Make one of the pieces that meet on a line between bands; what of their edges there has no counterpart stays.

    `hanging` are bottom edges of the band above the line, `above` top edges of the band below it; both left to right.
    """
    kept: dict[int, list[tuple[int, int, int, int]]] = defaultdict(list)
    owners: dict[int, _Open] = {}

    def keep(piece: _Open, start: int, stop: int) -> None:
        if start != stop:
            owners[id(piece)] = piece
            kept[id(piece)].append((start, y, stop, y))

    at = 0
    met: list[tuple[_Open, _Open]] = []
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
        owners[key].root().edges.append(np.array(edges, np.int64))
    for first, second in met:
        larger, smaller = first.root(), second.root()
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
    rings.sort(key=_doubled_area, reverse=True)
    return rings


def _straightened(points: list[tuple[int, int]]) -> Ring:
    """The ring without points in the middle of a straight line."""
    ring = np.array(points, np.int64)
    steps = np.sign(np.diff(ring, axis=0))
    corners = (steps != np.roll(steps, 1, axis=0)).any(axis=1)
    kept = ring[:-1][corners]
    return np.concatenate([kept, kept[:1]])


def _doubled_area(ring: NDArray[Any]) -> float:
    """Twice what the shoelace formula gives: positive for clockwise as seen where y points downwards."""
    x, y = ring[:, 0], ring[:, 1]
    return float(np.sum(x[:-1] * y[1:] - x[1:] * y[:-1]))


# Files.


def _batches(
    features: Iterator[tuple[int, str, int, Rings]], transform: Any
) -> Iterator[list[tuple[int, str, int, list[NDArray[np.float64]]]]]:
    """Features in coordinates of the mask's reference system, many at a time: each call of PROJ or GDAL costs."""
    batch: list[tuple[int, str, int, list[NDArray[np.float64]]]] = []
    points = 0
    for value, name, pixels, rings in features:
        placed = []
        for ring in rings:
            x, y = ring[:, 0], ring[:, 1]
            placed.append(
                np.stack(
                    [transform.a * x + transform.b * y + transform.c, transform.d * x + transform.e * y + transform.f],
                    axis=1,
                )
            )
            points += len(ring)
        batch.append((value, name, pixels, placed))
        if points > _BATCH_POINTS:
            yield batch
            batch, points = [], 0
    if batch:
        yield batch


def _geojson(out: Path, features: Iterator[Any], transform: Any, crs: Any, layer: str) -> None:
    from rasterio.warp import transform as to_crs

    with replacing(out) as file:
        start: dict[str, Any] = {"type": "FeatureCollection", "description": POLYGONS, "name": layer}
        if crs is None:
            start["coordinates"] = "pixels, x to the right, y downwards"
        file.write((json.dumps(start, ensure_ascii=False)[:-1] + ', "features": [').encode())
        separator = b"\n"
        for batch in _batches(features, transform):
            rings = [ring for *_, of_one in batch for ring in of_one]
            if crs is None:
                flat: list[list[list[float]]] = [ring.astype(np.int64).tolist() for ring in rings]
            else:
                every = np.concatenate(rings)
                with environment():
                    longitude, latitude = to_crs(crs, _WGS84, every[:, 0], every[:, 1])
                turned = np.round(np.stack([longitude, latitude], axis=1), _DEGREES)
                ends = np.cumsum([len(ring) for ring in rings])[:-1]
                flat = [ring.tolist() for ring in np.split(turned, ends)]
            at = 0
            for value, name, pixels, of_one in batch:
                shape = flat[at : at + len(of_one)]
                at += len(of_one)
                if crs is not None:
                    shape = [_wound(ring, is_outside=number == 0) for number, ring in enumerate(shape)]
                feature = {
                    "type": "Feature",
                    "properties": {"class": value, "name": name, "pixels": pixels},
                    "geometry": {"type": "Polygon", "coordinates": shape},
                }
                file.write(separator + json.dumps(feature, ensure_ascii=False, separators=(",", ":")).encode())
                separator = b",\n"
        file.write(b"\n]}\n")


def _wound(ring: list[list[float]], is_outside: bool) -> list[list[float]]:
    """Anticlockwise outside, clockwise holes, as RFC 7946 wants; y points upwards here."""
    points = np.asarray(ring)
    # From the ring's own corner: far from 0, the products of the formula would lose the area in rounding.
    return ring if (_doubled_area(points - points[0]) > 0) == is_outside else ring[::-1]


def _import_pyogrio() -> ModuleType:
    try:
        import pyogrio.raw
    except ImportError as error:
        raise MissingPackageError("writing GeoPackage", "geo") from error
    return cast(ModuleType, pyogrio)


def _geopackage(out: Path, features: Iterator[Any], transform: Any, crs: Any, layer: str) -> None:
    pyogrio = _import_pyogrio()
    names = ("class", "name", "pixels")
    options: dict[str, Any] = {
        "driver": "GPKG", "layer": layer, "geometry_type": "Polygon", "layer_options": {"DESCRIPTION": POLYGONS},
    }  # fmt: skip
    try:
        with temporary_folder(out.parent) as folder:
            temporary = folder / "polygons.gpkg"  # GDAL complains of a GeoPackage that is called otherwise
            is_begun = False
            for batch in _batches(features, transform):
                columns = (
                    np.array([f[0] for f in batch], np.int32),
                    np.array([f[1] for f in batch], object),
                    np.array([f[2] for f in batch], np.int64),
                )
                _append(pyogrio, temporary, [_wkb(f[3]) for f in batch], columns, names, crs, is_begun, options)
                is_begun = True
            if not is_begun:  # a layer without polygons is a layer
                columns = (np.zeros(0, np.int32), np.zeros(0, object), np.zeros(0, np.int64))
                _append(pyogrio, temporary, [], columns, names, crs, False, options)
            temporary.replace(out)
    except (OSError, pyogrio.errors.DataSourceError, pyogrio.errors.DataLayerError) as error:
        raise FileError(f"{out}: cannot be written ({getattr(error, 'strerror', None) or error}).") from error


def _append(
    pyogrio: ModuleType, path: Path, shapes: list[bytes], columns: Any, names: Any, crs: Any, more: bool, options: Any
) -> None:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "'crs' was not provided")  # pixels have none
        pyogrio.raw.write(
            os.fspath(path), np.array([*shapes, None], object)[:-1], columns, names,
            crs=None if crs is None else crs.to_wkt(), append=more, **options,
        )  # fmt: skip


def _wkb(rings: list[NDArray[np.float64]]) -> bytes:
    """A polygon in the standard's binary form, little-endian."""
    parts = [struct.pack("<BII", 1, 3, len(rings))]
    for ring in rings:
        parts += [struct.pack("<I", len(ring)), np.ascontiguousarray(ring, "<f8").tobytes()]
    return b"".join(parts)
