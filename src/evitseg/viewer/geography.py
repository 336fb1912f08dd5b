"""Coordinates on earth of a pixel."""

from __future__ import annotations

import threading
from typing import Any

from evitseg.errors import MissingPackageError
from evitseg.raster.window import Georeference


class Coordinates:
    """Maps pixels to the image's coordinate reference system, and to longitude and latitude if that is known.

    Attributes:
        name: of the reference system, such as "EPSG:32633"; "" without one.
        meters_per_pixel: for a system in meters; None for others.
        transform, crs: as rasterio's objects; None if the image has none.
    """

    def __init__(self, place: Georeference | None) -> None:
        self.transform: Any = None
        self.crs: Any = None
        self.name, self.meters_per_pixel = "", None
        self._lock = threading.Lock()
        if place is None or (place.transform is None and place.gcps is None):
            return
        if place.transform is not None:
            self.transform, self.crs = place.transform, place.crs
        else:
            from evitseg.raster.gdal import import_rasterio

            points, self.crs = place.gcps
            import_rasterio()
            from rasterio.transform import from_gcps

            self.transform = from_gcps(points)
        if self.crs is not None:
            self.name = str(self.crs.to_string())
            self.name = self.name if len(self.name) < 40 else str(self.crs.to_wkt().split('"')[1])
            if self.crs.is_projected:
                unit = float(self.crs.linear_units_factor[1])
                a, b, _, d, e, _ = self.transform[:6]
                self.meters_per_pixel = unit * float(abs(a * e - b * d)) ** 0.5

    @property
    def is_known(self) -> bool:
        return self.transform is not None

    def of(self, x: float, y: float) -> dict[str, float]:
        """x and y in the reference system, and longitude and latitude in degrees, of a pixel's coordinates."""
        if not self.is_known:
            return {}
        a, b, c, d, e, f = self.transform[:6]
        found = {"x": a * x + b * y + c, "y": d * x + e * y + f}
        if self.crs is not None:
            try:
                from rasterio.errors import RasterioError
                from rasterio.warp import transform
            except ImportError as error:
                raise MissingPackageError("coordinates on earth", "geo") from error
            try:
                with self._lock:
                    (longitude,), (latitude,) = transform(self.crs, "EPSG:4326", [found["x"]], [found["y"]])
            except RasterioError:  # a local system, which has no longitude
                return found
            found |= {"longitude": longitude, "latitude": latitude}
        return found
