"""Write masks as GeoTIFF or COG."""

from __future__ import annotations

import contextlib
import json
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from evitseg.labels import LabelSpace
from evitseg.raster.gdal import environment, import_rasterio, quiet_open, translate_gdal_errors
from evitseg.raster.places import pam
from evitseg.raster.png import MaskFormat
from evitseg.raster.window import TILE, Georeference, Origin, class_table, writing
from evitseg.system.authorship import SOFTWARE
from evitseg.system.files import replacing, temporary_folder


class GeoTiffWriter:
    """Writes tiles of a GeoTIFF in any order."""

    tile = (TILE, TILE)
    ordered = False

    def __init__(self, name: str, dataset: Any, labels: LabelSpace) -> None:
        self._name, self._dataset, self._dtype = name, dataset, labels.dtype
        self._lock = threading.Lock()

    def write(self, top: int, left: int, mask: NDArray[np.integer]) -> None:
        rasterio = import_rasterio()
        height, width = mask.shape
        window = rasterio.windows.Window(left, top, width, height)
        with self._lock, environment(), translate_gdal_errors(self._name):
            self._dataset.write(mask.astype(self._dtype, copy=False), 1, window=window)


@contextmanager
def geotiff_writer(
    path: Path,
    name: str,
    size: tuple[int, int],
    origin: Origin,
    labels: LabelSpace,
    mask_format: MaskFormat = "palette",
) -> Iterator[GeoTiffWriter]:
    """A tiled, compressed GeoTIFF mask with class colours and names, and the image's georeference and overviews."""
    rasterio = import_rasterio()
    place = origin.georeference or Georeference()
    profile = {
        "driver": "GTiff", "height": size[0], "width": size[1], "count": 1, "dtype": np.dtype(labels.dtype).name,
        "tiled": True, "blockxsize": TILE, "blockysize": TILE, "compress": "deflate", "bigtiff": "if_safer",
        "nodata": labels.ignore_index,
    }  # fmt: skip
    profile |= {key: value for key, value in (("crs", place.crs), ("transform", place.transform)) if value is not None}
    with contextlib.ExitStack() as stack:
        with writing(name):
            folder = stack.enter_context(temporary_folder(path.parent))
        temporary, ready = folder / "mask.tif", folder / "cog.tif"
        with environment(), translate_gdal_errors(name):
            dataset = quiet_open(temporary, "w", **profile)
        try:
            with environment(), translate_gdal_errors(name):
                _describe(dataset, place, labels, mask_format)
            yield GeoTiffWriter(name, dataset, labels)
        finally:
            with environment(), translate_gdal_errors(name):
                dataset.close()
        with environment(), translate_gdal_errors(name):
            check_written(temporary, size)
            if origin.overviews:
                _add_overviews(temporary, origin.overviews)
            if origin.is_cog:
                rasterio.shutil.copy(
                    os.fspath(temporary), os.fspath(ready), driver="COG", compress="deflate", blocksize=TILE,
                    overview_resampling="nearest", bigtiff="if_safer",
                )  # fmt: skip
        with writing(name):
            (ready if origin.is_cog else temporary).replace(path)
        # GeoTIFF cannot store class names; QGIS and GDAL read them from this companion file.
        with replacing(path.with_name(f"{path.name}.aux.xml")) as file:
            file.write(pam(labels).encode())


def _describe(dataset: Any, place: Georeference, labels: LabelSpace, mask_format: MaskFormat) -> None:
    if place.gcps is not None:
        dataset.gcps = place.gcps
    if place.rpcs is not None:
        dataset.rpcs = place.rpcs
    if place.area_or_point is not None:
        dataset.update_tags(AREA_OR_POINT=place.area_or_point)
    if labels.dtype == np.uint8 and mask_format == "palette":
        dataset.write_colormap(1, {i: (*map(int, color), 255) for i, color in enumerate(labels.palette)})
    dataset.set_band_description(1, f"class index, {labels.name}")
    dataset.update_tags(TIFFTAG_SOFTWARE=SOFTWARE)
    dataset.update_tags(1, EVITSEG_CLASSES=json.dumps(class_table(labels), ensure_ascii=False))


def _add_overviews(path: Path, factors: tuple[int, ...]) -> None:
    """Add overviews by nearest neighbour, because class indices have no mean."""
    rasterio = import_rasterio()
    with (
        rasterio.Env(COMPRESS_OVERVIEW="DEFLATE", GDAL_TIFF_OVR_BLOCKSIZE=TILE),
        quiet_open(path, "r+", driver="GTiff") as dataset,
    ):
        dataset.build_overviews(list(factors), rasterio.enums.Resampling.nearest)


def check_written(path: Path, size: tuple[int, int]) -> None:
    """Check that every tile lies inside the file, because GDAL hides a full disk while closing.

    Raises: rasterio's error.
    """
    rasterio = import_rasterio()
    length = path.stat().st_size
    with quiet_open(path, driver="GTiff") as dataset:
        for row in range(-(-size[0] // TILE)):
            for column in range(-(-size[1] // TILE)):
                # The tag has x before y.
                place = dataset.get_tag_item(f"BLOCK_OFFSET_{column}_{row}", "TIFF", bidx=1)
                count = dataset.get_tag_item(f"BLOCK_SIZE_{column}_{row}", "TIFF", bidx=1)
                if place is not None and int(place) + int(count or 0) > length:
                    raise rasterio.errors.RasterioIOError("no space left")
