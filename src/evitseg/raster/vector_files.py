"""Write polygons as GeoJSON, GeoPackage or GeoParquet."""

from __future__ import annotations

import json
import os
import re
import struct
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple, TypeAlias, cast

import numpy as np
from numpy.typing import NDArray

from evitseg.errors import FileError, ImageError, MissingPackageError
from evitseg.raster.gdal import environment
from evitseg.system.authorship import POLYGONS
from evitseg.system.files import replacing, temporary_folder

_BATCH_POINTS = 200_000
_DEGREES = 9
"""Decimals of longitude and latitude: a tenth of a millimetre."""
_WGS84 = "EPSG:4326"
_SYMBOLS = {"metre": "m", "meter": "m", "kilometre": "km", "foot": "ft", "us survey foot": "ft"}
"""Symbols of units of length, by the names of PROJ in lower case."""

Ring = NDArray[np.int64]
"""(points, 2): x to the right and y downwards in pixels from the mask's corner; the last point repeats the first."""
Rings = list[Ring]
"""The outer ring, clockwise on the screen, then the holes, anticlockwise."""


def doubled_area(ring: NDArray[Any]) -> float:
    """Twice the ring's area by the shoelace formula; positive for clockwise on the screen, where y points downwards."""
    x, y = ring[:, 0], ring[:, 1]
    return float(np.sum(x[:-1] * y[1:] - x[1:] * y[:-1]))


class Feature(NamedTuple):
    """A region: its class index and name, its number of pixels, and its outline in pixels of the mask."""

    value: int
    name: str
    pixels: int
    rings: Rings


@dataclass(frozen=True)
class Layer:
    """What all polygons of a mask have in common.

    Attributes:
        name: name of the layer.
        transform, crs: the mask's georeference, as rasterio's objects; the identity and None without one.
    """

    name: str
    transform: Any
    crs: Any

    @property
    def pixel_area(self) -> float | None:
        """Area of a pixel in the unit of the coordinate system, squared; None if that is not projected."""
        if self.crs is None or not self.crs.is_projected:
            return None
        return abs(float(self.transform.determinant))

    @property
    def area_field(self) -> str | None:
        """Name of the field for areas in the coordinate system, such as `area_m2`; None if that is not projected."""
        if self.pixel_area is None:
            return None
        unit = str(self.crs.linear_units)
        return f"area_{_SYMBOLS.get(unit.lower()) or re.sub('[^a-z]+', '_', unit.lower())}2"

    @property
    def fields(self) -> tuple[str, ...]:
        """The names of the fields, in the order of `values`."""
        return ("class", "name", "pixels", *((self.area_field,) if self.area_field else ()))

    def values(self, feature: Feature) -> tuple[int | str | float, ...]:
        """The values of a feature's fields."""
        area = () if self.pixel_area is None else (feature.pixels * self.pixel_area,)
        return (feature.value, feature.name, feature.pixels, *area)


_Placed: TypeAlias = list[NDArray[np.float64]]
"""The rings of one polygon in the layer's coordinate system."""


def _batches(features: Iterator[Feature], layer: Layer) -> Iterator[list[tuple[Feature, _Placed]]]:
    """Features with their outlines in the layer's coordinate system.

    They come in batches, because every call of PROJ and GDAL is expensive.
    """
    to = layer.transform
    batch: list[tuple[Feature, _Placed]] = []
    points = 0
    for feature in features:
        placed = []
        for ring in feature.rings:
            x, y = ring[:, 0], ring[:, 1]
            placed.append(np.stack([to.a * x + to.b * y + to.c, to.d * x + to.e * y + to.f], axis=1))
            points += len(ring)
        batch.append((feature, placed))
        if points > _BATCH_POINTS:
            yield batch
            batch, points = [], 0
    if batch:
        yield batch


def _columns(batch: list[tuple[Feature, _Placed]], layer: Layer) -> tuple[NDArray[Any], ...]:
    """One array per field."""
    rows = [layer.values(feature) for feature, _ in batch]
    kinds = (np.int32, object, np.int64, np.float64)[: len(layer.fields)]  # the area is there only with a unit
    return tuple(np.array([row[i] for row in rows], kind) for i, kind in enumerate(kinds))


def _geojson(out: Path, features: Iterator[Feature], layer: Layer) -> None:
    """Write features as GeoJSON. Raises: FileError."""
    from rasterio.warp import transform as to_crs

    with replacing(out) as file:
        start: dict[str, Any] = {"type": "FeatureCollection", "description": POLYGONS, "name": layer.name}
        if layer.crs is None:
            start["coordinates"] = "pixels, x to the right, y downwards"
        file.write((json.dumps(start, ensure_ascii=False)[:-1] + ', "features": [').encode())
        separator = b"\n"
        for batch in _batches(features, layer):
            rings = [ring for _, of_one in batch for ring in of_one]
            if layer.crs is None:
                flat: list[list[list[float]]] = [ring.astype(np.int64).tolist() for ring in rings]
            else:
                every = np.concatenate(rings)
                with environment():
                    longitude, latitude = to_crs(layer.crs, _WGS84, every[:, 0], every[:, 1])
                turned = np.round(np.stack([longitude, latitude], axis=1), _DEGREES)
                ends = np.cumsum([len(ring) for ring in rings])[:-1]
                flat = [ring.tolist() for ring in np.split(turned, ends)]
            at = 0
            for feature, of_one in batch:
                shape = flat[at : at + len(of_one)]
                at += len(of_one)
                if layer.crs is not None:
                    shape = [_wound(ring, is_outside=number == 0) for number, ring in enumerate(shape)]
                written = {
                    "type": "Feature",
                    "properties": dict(zip(layer.fields, layer.values(feature), strict=True)),
                    "geometry": {"type": "Polygon", "coordinates": shape},
                }
                file.write(separator + json.dumps(written, ensure_ascii=False, separators=(",", ":")).encode())
                separator = b",\n"
        file.write(b"\n]}\n")


def _wound(ring: list[list[float]], is_outside: bool) -> list[list[float]]:
    """The ring in the order of RFC 7946: anticlockwise outside, clockwise holes, with y upwards."""
    points = np.asarray(ring)
    # Relative to the ring's own corner, because far from the origin rounding would swallow the area.
    return ring if (doubled_area(points - points[0]) > 0) == is_outside else ring[::-1]


def _import_pyogrio() -> ModuleType:
    try:
        import pyogrio.raw
    except ImportError as error:
        raise MissingPackageError("writing GeoPackage", "geo") from error
    return cast(ModuleType, pyogrio)


def _geopackage(out: Path, features: Iterator[Feature], layer: Layer) -> None:
    """Write features as GeoPackage. Raises: FileError, MissingPackageError."""
    pyogrio = _import_pyogrio()
    options: dict[str, Any] = {
        "driver": "GPKG", "layer": layer.name, "geometry_type": "Polygon", "layer_options": {"DESCRIPTION": POLYGONS},
    }  # fmt: skip
    try:
        with temporary_folder(out.parent) as folder:
            temporary = folder / "polygons.gpkg"  # GDAL warns of a GeoPackage with another ending
            is_begun = False
            for batch in _batches(features, layer):
                _append(pyogrio, temporary, batch, layer, is_begun, options)
                is_begun = True
            if not is_begun:  # the file has its layer even without polygons
                _append(pyogrio, temporary, [], layer, False, options)
            temporary.replace(out)
    except (OSError, pyogrio.errors.DataSourceError, pyogrio.errors.DataLayerError) as error:
        raise FileError(f"{out}: cannot be written ({getattr(error, 'strerror', None) or error}).") from error


def _append(
    pyogrio: ModuleType,
    path: Path,
    batch: list[tuple[Feature, _Placed]],
    layer: Layer,
    more: bool,
    options: dict[str, Any],
) -> None:
    shapes = [_wkb(rings) for _, rings in batch]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "'crs' was not provided")  # pixel coordinates have no CRS
        pyogrio.raw.write(
            os.fspath(path), np.array([*shapes, None], object)[:-1], _columns(batch, layer), layer.fields,
            crs=None if layer.crs is None else layer.crs.to_wkt(), append=more, **options,
        )  # fmt: skip


def _geoparquet(out: Path, features: Iterator[Feature], layer: Layer) -> None:
    """Write features as GeoParquet. Raises: FileError, MissingPackageError."""
    try:
        import pyarrow as arrow
        from pyarrow import parquet
    except ImportError as error:
        raise MissingPackageError("writing GeoParquet", "parquet") from error
    kinds = (arrow.int32(), arrow.string(), arrow.int64(), arrow.float64())
    schema = arrow.schema([("geometry", arrow.binary()), *zip(layer.fields, kinds[: len(layer.fields)], strict=True)])
    low, high = np.full(2, np.inf), np.full(2, -np.inf)
    with replacing(out) as file, parquet.ParquetWriter(file, schema, compression="zstd") as writer:
        for batch in _batches(features, layer):
            for _, rings in batch:
                low, high = np.minimum(low, rings[0].min(0)), np.maximum(high, rings[0].max(0))
            shapes = [_wkb(rings) for _, rings in batch]
            arrays = [arrow.array(shapes, arrow.binary())]
            arrays += [arrow.array(column) for column in _columns(batch, layer)]
            writer.write_table(arrow.Table.from_arrays(arrays, schema=schema))
        about: dict[str, Any] = {
            "encoding": "WKB",
            "geometry_types": ["Polygon"],
            "crs": None if layer.crs is None else layer.crs.to_dict(projjson=True),
        }
        if np.isfinite(low).all():
            about["bbox"] = [*low.tolist(), *high.tolist()]
        content = {"version": "1.1.0", "primary_column": "geometry", "columns": {"geometry": about}}
        writer.add_key_value_metadata({"geo": json.dumps(content), "description": POLYGONS})


def _wkb(rings: list[NDArray[np.float64]]) -> bytes:
    """A polygon as little-endian well-known binary (WKB)."""
    parts = [struct.pack("<BII", 1, 3, len(rings))]
    for ring in rings:
        parts += [struct.pack("<I", len(ring)), np.ascontiguousarray(ring, "<f8").tobytes()]
    return b"".join(parts)


WRITERS: dict[str, Callable[[Path, Iterator[Feature], Layer], None]] = {
    ".geojson": _geojson,
    ".json": _geojson,
    ".gpkg": _geopackage,
    ".parquet": _geoparquet,
    ".geoparquet": _geoparquet,
}
"""What writes polygons, by the ending of the file's name."""


def writer_for(out: Path) -> Callable[[Path, Iterator[Feature], Layer], None]:
    """What writes polygons to a file of this name. Raises: ImageError for another ending."""
    write = WRITERS.get(out.suffix.lower())
    if write is None:
        raise ImageError(
            f"{out}: polygons are written as GeoJSON, GeoPackage or GeoParquet; use the ending .geojson, .gpkg or "
            ".parquet."
        )
    return write
