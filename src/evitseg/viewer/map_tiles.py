"""Tiles of a georeferenced image for web maps: squares of the web Mercator projection (EPSG:3857)."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from evitseg.errors import ConfigError
from evitseg.viewer.geography import Coordinates
from evitseg.viewer.pyramid import Pyramid, Rectangle

MAP_TILE = 256
"""Side of a map tile in pixels."""
MAX_ZOOM = 30
_CRS = "EPSG:3857"
_HALF_M = 20_037_508.342789244
"""Half of the width of the world in this projection, in its metres."""
_POINTS = 17
"""Points along each side of a tile that are looked up to find the part of the image that it shows."""
_MAX_PIXELS = 2**23
"""Most pixels of a level that are read for a tile; of images in odd projections, a coarser level is read."""


@dataclass(frozen=True)
class MapTile:
    """A tile of the scheme that web maps call XYZ: at zoom 0, one tile is the world; y counts from the north.

    Raises: ConfigError for a tile that does not exist.
    """

    zoom: int
    x: int
    y: int

    def __post_init__(self) -> None:
        if not (0 <= self.zoom <= MAX_ZOOM and 0 <= self.x < 2**self.zoom and 0 <= self.y < 2**self.zoom):
            raise ConfigError(f"there is no map tile {self.zoom}/{self.x}/{self.y}; zoom is 0 to {MAX_ZOOM}.")

    @property
    def side_m(self) -> float:
        return 2 * _HALF_M / (1 << self.zoom)

    @property
    def corner(self) -> tuple[float, float]:
        """Its north-west corner, in metres."""
        return self.x * self.side_m - _HALF_M, _HALF_M - self.y * self.side_m


class MapView:
    """An image on a web map.

    Args:
        place: where the image lies; its reference system must be known.

    Raises: MissingPackageError without rasterio.
    """

    def __init__(self, place: Coordinates, pyramid: Pyramid) -> None:
        from evitseg.raster.gdal import import_rasterio

        import_rasterio()
        assert place.is_known
        assert place.crs is not None
        self._transform, self._crs, self._pyramid = place.transform, place.crs, pyramid
        height, width = pyramid.size
        columns, rows = np.meshgrid(np.linspace(0, width, _POINTS), np.linspace(0, height, _POINTS))
        a, b, c, d, e, f = self._transform[:6]
        x, y = self._transformed(a * columns + b * rows + c, d * columns + e * rows + f, self._crs, _CRS)
        # (left, bottom, right, top) of the image on the map. Far from it, projections need not be unique.
        self._bounds = (x.min(), y.min(), x.max(), y.max()) if x.size else None

    @staticmethod
    def _transformed(x: NDArray[np.float64], y: NDArray[np.float64], here: Any, there: Any) -> NDArray[np.float64]:
        """(2, count) coordinates of points in another system, without those that it does not have."""
        from rasterio.warp import transform

        found = np.array(transform(here, there, x.ravel(), y.ravel()), np.float64)
        return found[:, np.isfinite(found).all(0)]

    def _shown(self, tile: MapTile) -> tuple[int, int, int, int] | None:
        """The pixels of a tile in which the image may be: top, left, bottom and right."""
        if self._bounds is None:
            return None
        left, top = tile.corner
        scale = tile.side_m / MAP_TILE
        x0, y0, x1, y1 = self._bounds
        columns = np.clip([math.floor((x0 - left) / scale) - 1, math.ceil((x1 - left) / scale) + 1], 0, MAP_TILE)
        rows = np.clip([math.floor((top - y1) / scale) - 1, math.ceil((top - y0) / scale) + 1], 0, MAP_TILE)
        found = int(rows[0]), int(columns[0]), int(rows[1]), int(columns[1])
        return found if found[0] < found[2] and found[1] < found[3] else None

    def part(self, tile: MapTile) -> tuple[int, Rectangle] | None:
        """The level of the image, and the part of it, that a tile shows; None for a tile beside the image."""
        shown = self._shown(tile)
        if shown is None:
            return None
        (left, top), scale = tile.corner, tile.side_m / MAP_TILE
        eastings = left + scale * np.linspace(shown[1], shown[3], _POINTS)
        northings = top - scale * np.linspace(shown[0], shown[2], _POINTS)
        x, y = self._transformed(*np.meshgrid(eastings, northings), _CRS, self._crs)
        if not x.size:
            return None
        a, b, c, d, e, f = (~self._transform)[:6]
        columns, rows = a * x + b * y + c, d * x + e * y + f
        height, width = self._pyramid.size
        y0, y1 = math.floor(rows.min()) - 1, math.ceil(rows.max()) + 1
        x0, x1 = math.floor(columns.min()) - 1, math.ceil(columns.max()) + 1
        # Pixels of the image per pixel of the tile.
        finest = min((y1 - y0) / (shown[2] - shown[0]), (x1 - x0) / (shown[3] - shown[1]))
        y0, x0, y1, x1 = max(0, y0), max(0, x0), min(height, y1), min(width, x1)
        if y0 >= y1 or x0 >= x1:
            return None
        level = min(self._pyramid.levels - 1, max(0, math.floor(math.log2(max(1.0, finest)))))
        while level < self._pyramid.levels - 1 and (y1 - y0) * (x1 - x0) >> 2 * level > _MAX_PIXELS:
            level += 1
        rows_there, columns_there = self._pyramid.size_of(level)
        part = Rectangle(y0 >> level, x0 >> level, 0, 0)
        bottom, right = min(rows_there, -(-y1 >> level)), min(columns_there, -(-x1 >> level))
        return level, part._replace(height=bottom - part.top, width=right - part.left)

    def warper(self, tile: MapTile, level: int, part: Rectangle) -> Callable[[NDArray[Any], float, bool], NDArray[Any]]:
        """A function that puts pixels of the part, (height, width) or (height, width, 3), onto the tile.

        Its further arguments are the value beside the image, and whether pixels are interpolated.
        """
        from rasterio import Affine
        from rasterio.enums import Resampling
        from rasterio.warp import reproject

        shown = self._shown(tile)
        assert shown is not None
        (left, top), scale = tile.corner, tile.side_m / MAP_TILE
        there = Affine(scale, 0, left + scale * shown[1], 0, -scale, top - scale * shown[0])
        a, b, c, d, e, f = self._transform[:6]
        x0, y0, step = part.left << level, part.top << level, 1 << level
        source = Affine(a * step, b * step, a * x0 + b * y0 + c, d * step, e * step, d * x0 + e * y0 + f)

        def warp(pixels: NDArray[Any], beside: float, is_smooth: bool) -> NDArray[Any]:
            layers = np.ascontiguousarray(np.moveaxis(np.atleast_3d(pixels), 2, 0))
            found = np.full((len(layers), shown[2] - shown[0], shown[3] - shown[1]), beside, layers.dtype)
            reproject(
                layers, found, src_transform=source, src_crs=self._crs, dst_transform=there, dst_crs=_CRS,
                resampling=Resampling.bilinear if is_smooth else Resampling.nearest, init_dest_nodata=False,
            )  # fmt: skip
            out = np.full((MAP_TILE, MAP_TILE, len(layers)), beside, layers.dtype)
            out[shown[0] : shown[2], shown[1] : shown[3]] = np.moveaxis(found, 0, 2)
            return out if pixels.ndim == 3 else out[..., 0]

        return warp
