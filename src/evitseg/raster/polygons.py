"""Convert the regions of a mask to polygons, class by class."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, TypedDict

import numpy as np
from numpy.typing import NDArray

from evitseg.errors import ConfigError, ImageError, unknown
from evitseg.image import MAX_PIXELS
from evitseg.labels import LabelSpace
from evitseg.raster.gdal import import_rasterio
from evitseg.raster.mask_bands import MaskBands, class_reader, open_mask
from evitseg.raster.vector_files import Feature, Layer, writer_for
from evitseg.raster.whole_regions import whole_regions


@dataclass(frozen=True)
class PolygonCounts:
    """The result of `polygonize`.

    Attributes:
        polygons: number of polygons written, by class name.
        in_pixels: whether coordinates are pixels, because the mask has no georeference.
        area_field: name of the field with the area in the mask's coordinate system, such as `area_m2`; None if that is
            not projected.
    """

    polygons: dict[str, int]
    in_pixels: bool
    area_field: str | None = None


def polygonize(
    mask: str | os.PathLike[str],
    out: str | os.PathLike[str],
    labels: LabelSpace | None = None,
    classes: Iterable[str] | None = None,
    min_pixels: int = 1,
    progress: Callable[[float], None] = lambda fraction: None,
    *,
    min_area: float = 0.0,
    simplify: float = 0.0,
) -> PolygonCounts:
    """Write the regions of a mask as polygons. A region is a set of pixels of one class that touch along edges.

    GeoJSON (.geojson, .json) is in longitude and latitude, as its standard requires. GeoPackage (.gpkg) and GeoParquet
    (.parquet, .geoparquet) are in the mask's coordinate reference system. Without one, all are in pixels, y downwards.
    Each polygon has its holes and the fields `class` (the index), `name` and `pixels` (the number of pixels of the
    region). If the coordinate system is projected, another field is the area of these pixels in its unit, with the unit
    in its name, such as `area_m2`.

    Args:
        mask: a mask file by `open_mask_writer` or `Prediction.save`: .tif, .png or .zarr.
        labels: the classes; None uses those that the mask file lists.
        classes: names of the classes to write; None writes all.
        min_pixels: area of the smallest region to write. Smaller ones still leave holes in the regions around them.
        progress: called with the finished fraction, 0 to 1.
        min_area: the same in the unit of the coordinate system, squared, which must be projected.
        simplify: removes corners whose triangle with the two next to them is smaller than a square with this side in
            pixels; 2 or 3 removes the steps of slanting borders, 0 keeps every corner. Neighbours keep sharing their
            borders, and nothing overlaps. The fields keep the area in the mask.

    Raises: ImageError, ConfigError for an unknown class, FileError, MissingPackageError.
    """
    out = Path(out)
    write = writer_for(out)
    _check_limits(min_pixels, simplify)
    if not (math.isfinite(min_area) and min_area >= 0):
        raise ConfigError(f"min_area is {min_area}; it must be 0 or more.")
    rasterio = import_rasterio()
    with open_mask(Path(os.path.abspath(mask)), str(mask)) as bands:
        labels = labels or bands.labels
        if labels is None:
            raise ConfigError(f"{mask}: does not list its classes; name them (--labels camvid for the bundled model).")
        bands = replace(bands, read=class_reader(bands, labels))
        wanted = _wanted(labels, classes)
        counts = dict.fromkeys((labels.names[i] for i in wanted), 0)
        crs = bands.crs if bands.transform is not None else None
        layer = Layer(Path(mask).stem, bands.transform if crs is not None else rasterio.Affine.identity(), crs)
        if min_area and layer.pixel_area is None:
            raise ConfigError(
                f"{mask}: has no projected coordinate system, so areas are in pixels; limit them with min_pixels "
                "(--minimum-pixels) instead of min_area (--minimum-area)."
            )
        smallest = max(min_pixels, min_area / (layer.pixel_area or 1.0) * (1 - 1e-12))

        def features() -> Iterator[Feature]:
            for value, pixels, rings in whole_regions(bands, labels, wanted, progress, simplify):
                if pixels >= smallest:
                    name = labels.names[value]
                    counts[name] += 1
                    yield Feature(value, name, pixels, rings)

        write(out, features(), layer)
    return PolygonCounts(counts, crs is None, layer.area_field)


def read_regions(
    mask: str | os.PathLike[str], labels: LabelSpace, min_pixels: int = 1, simplify: float = 0.0
) -> tuple[tuple[int, int], list[Feature]]:
    """The size of a mask, (height, width), and its regions as in `polygonize`, in pixels. All of them are in memory.

    Args:
        mask: a mask file, as for `polygonize`.
        labels: the classes. Pixels without data are regions, too, with the index `labels.ignore_index` and no name.

    Raises: ImageError, ConfigError, MissingPackageError.
    """
    _check_limits(min_pixels, simplify)
    with open_mask(Path(os.path.abspath(mask)), str(mask)) as bands:
        if bands.size[0] * bands.size[1] > MAX_PIXELS:
            raise ImageError(
                f"{mask}: has more than {MAX_PIXELS / 1e6:.0f} million pixels, too many for annotation tools; write "
                "polygons for maps instead (--polygons), or cut the image into parts."
            )
        bands = replace(bands, read=class_reader(bands, labels))
        names = dict(enumerate(labels.names))
        wanted = (*names, labels.ignore_index)
        regions = whole_regions(bands, labels, wanted, lambda fraction: None, simplify)
        return bands.size, [
            Feature(value, names.get(value, ""), pixels, rings)
            for value, pixels, rings in regions
            if pixels >= min_pixels
        ]


def _check_limits(min_pixels: int, simplify: float) -> None:
    if min_pixels < 1:
        raise ConfigError(f"min_pixels is {min_pixels}; it must be 1 or more.")
    if not (math.isfinite(simplify) and simplify >= 0):
        raise ConfigError(f"simplify is {simplify}; it must be a number of pixels, 0 or more.")


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
    mask: NDArray[np.integer],
    labels: LabelSpace,
    classes: Iterable[str] | None = None,
    min_pixels: int = 1,
    simplify: float = 0.0,
) -> list[PolygonFeature]:
    """The regions of a mask as GeoJSON features in pixel coordinates: pixels of one class that touch along edges.

    Args:
        mask: (H, W) class indices.
        classes: names of the classes to return; None returns all.
        min_pixels: area of the smallest region to return. Smaller ones still leave holes in the regions around them.
        simplify: as in `polygonize`.

    Raises: ConfigError, MissingPackageError without the extra `geo`.
    """
    _check_limits(min_pixels, simplify)
    whole = MaskBands("the mask", mask.shape[:2], lambda top, rows: mask[top : top + rows], labels)
    return [
        {
            "type": "Feature",
            "properties": {"class": value, "name": labels.names[value], "pixels": pixels},
            "geometry": {"type": "Polygon", "coordinates": [ring.tolist() for ring in rings]},
        }
        for value, pixels, rings in whole_regions(
            whole, labels, _wanted(labels, classes), lambda fraction: None, simplify
        )
        if pixels >= min_pixels
    ]


def _wanted(labels: LabelSpace, classes: Iterable[str] | None) -> tuple[int, ...]:
    if classes is None:
        return tuple(range(len(labels.classes)))
    for name in (classes := list(classes)):
        if name not in labels.names:
            raise unknown("class", name, labels.names)
    return tuple(labels.names.index(name) for name in dict.fromkeys(classes))
