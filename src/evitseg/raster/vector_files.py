"""Write polygons as GeoJSON or GeoPackage."""

from __future__ import annotations

import json
import os
import struct
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from evitseg.errors import FileError, MissingPackageError
from evitseg.raster.gdal import environment
from evitseg.system.authorship import POLYGONS
from evitseg.system.files import replacing, temporary_folder

ENDINGS = (".geojson", ".json", ".gpkg")
_BATCH_POINTS = 200_000
_DEGREES = 9
"""Decimals of longitude and latitude: a tenth of a millimetre."""
_WGS84 = "EPSG:4326"

Ring = NDArray[np.int64]
"""(points, 2): x to the right and y downwards in pixels from the mask's corner; the last point repeats the first."""
Rings = list[Ring]
"""The outer ring, clockwise on the screen, then the holes, anticlockwise."""


def doubled_area(ring: NDArray[Any]) -> float:
    """Twice the ring's area by the shoelace formula; positive for clockwise on the screen, where y points downwards."""
    x, y = ring[:, 0], ring[:, 1]
    return float(np.sum(x[:-1] * y[1:] - x[1:] * y[:-1]))


def _batches(
    features: Iterator[tuple[int, str, int, Rings]], transform: Any
) -> Iterator[list[tuple[int, str, int, list[NDArray[np.float64]]]]]:
    """Features in the mask's reference system, in batches, because every call of PROJ and GDAL is expensive."""
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


def geojson(out: Path, features: Iterator[Any], transform: Any, crs: Any, layer: str) -> None:
    """Write features (class index, name, pixels, rings) as GeoJSON. Raises: FileError."""
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


def geopackage(out: Path, features: Iterator[Any], transform: Any, crs: Any, layer: str) -> None:
    """Write features (class index, name, pixels, rings) as GeoPackage. Raises: FileError, MissingPackageError."""
    pyogrio = _import_pyogrio()
    names = ("class", "name", "pixels")
    options: dict[str, Any] = {
        "driver": "GPKG", "layer": layer, "geometry_type": "Polygon", "layer_options": {"DESCRIPTION": POLYGONS},
    }  # fmt: skip
    try:
        with temporary_folder(out.parent) as folder:
            temporary = folder / "polygons.gpkg"  # GDAL warns of a GeoPackage with another ending
            is_begun = False
            for batch in _batches(features, transform):
                columns = (
                    np.array([f[0] for f in batch], np.int32),
                    np.array([f[1] for f in batch], object),
                    np.array([f[2] for f in batch], np.int64),
                )
                _append(pyogrio, temporary, [_wkb(f[3]) for f in batch], columns, names, crs, is_begun, options)
                is_begun = True
            if not is_begun:  # the file has its layer even without polygons
                columns = (np.zeros(0, np.int32), np.zeros(0, object), np.zeros(0, np.int64))
                _append(pyogrio, temporary, [], columns, names, crs, False, options)
            temporary.replace(out)
    except (OSError, pyogrio.errors.DataSourceError, pyogrio.errors.DataLayerError) as error:
        raise FileError(f"{out}: cannot be written ({getattr(error, 'strerror', None) or error}).") from error


def _append(
    pyogrio: ModuleType, path: Path, shapes: list[bytes], columns: Any, names: Any, crs: Any, more: bool, options: Any
) -> None:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "'crs' was not provided")  # pixel coordinates have no CRS
        pyogrio.raw.write(
            os.fspath(path), np.array([*shapes, None], object)[:-1], columns, names,
            crs=None if crs is None else crs.to_wkt(), append=more, **options,
        )  # fmt: skip


def _wkb(rings: list[NDArray[np.float64]]) -> bytes:
    """A polygon as little-endian well-known binary (WKB)."""
    parts = [struct.pack("<BII", 1, 3, len(rings))]
    for ring in rings:
        parts += [struct.pack("<I", len(ring)), np.ascontiguousarray(ring, "<f8").tobytes()]
    return b"".join(parts)
