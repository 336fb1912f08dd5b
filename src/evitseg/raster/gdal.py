"""GDAL through rasterio: its settings, its files and its errors."""

from __future__ import annotations

import os
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any, cast

from evitseg.errors import FileError, ImageError, MissingPackageError
from evitseg.raster.places import upright
from evitseg.raster.window import CACHE_BYTES, Georeference

_OPTIONS: dict[str, Any] = {
    "GDAL_CACHEMAX": CACHE_BYTES,  # else a twentieth of the machine's memory
    # A file beside an image, or a tag in it, may name another to read from; none from the net is.
    "CPL_VSIL_CURL_ALLOWED_EXTENSIONS": ".evitseg-reads-no-net",
    "GTIFF_DIRECT_IO": True,  # uncompressed strips: only the window's part of each is read
    "GDAL_PNG_WHOLE_IMAGE_OPTIM": False,  # GDAL 3.10's way to read a PNG at once says nothing of a damaged one
    "GDAL_ERROR_ON_LIBJPEG_WARNING": True,  # a JPEG that ends too early is grey from there on, else
}
_open_lock = threading.Lock()


def import_rasterio() -> ModuleType:
    try:
        import rasterio
        import rasterio.shutil
    except ImportError as error:
        raise MissingPackageError("reading and writing GeoTIFF and huge PNG and JPEG images", "geo") from error
    return cast(ModuleType, rasterio)


def quiet_open(path: Path | str, *arguments: Any, **options: Any) -> Any:
    """`rasterio.open`, without its warning that a photograph has no georeference.

    Raises: ImageError, or FileError for writing, where GDAL cannot open a file of this name.
    """
    rasterio = import_rasterio()
    try:
        os.fspath(path).encode()
    except UnicodeEncodeError as error:
        what = FileError if "w" in arguments else ImageError
        raise what(f"{path}: GDAL opens only files whose names are UTF-8; rename the file or its folder.") from error
    # Filters of warnings belong to the process: one thread at a time changes them.
    with _open_lock, warnings.catch_warnings():
        warnings.simplefilter("ignore", rasterio.errors.NotGeoreferencedWarning)
        return rasterio.open(os.fspath(path), *arguments, **options)


def environment() -> Any:
    """GDAL's settings for the calling thread, for as long as it is entered."""
    return import_rasterio().Env(**_OPTIONS)


class NotOpenedError(ImageError):
    """A file that GDAL does not open."""


class Handles:
    """Opened datasets: a dataset may be used by one thread at a time."""

    def __init__(self, path: Path, driver: str, ifd: int = 0) -> None:
        # Pages after the first are named by GDAL's own scheme, in which they count from 1.
        self._path = f"GTIFF_DIR:{ifd + 1}:{path}" if ifd else path
        self._driver = driver
        self._lock = threading.Lock()
        self._idle: list[Any] = []
        self._all: list[Any] = []

    @contextmanager
    def one(self) -> Iterator[Any]:
        with environment():
            with self._lock:
                dataset = self._idle.pop() if self._idle else None
            if dataset is None:
                dataset = quiet_open(self._path, driver=self._driver)
                with self._lock:
                    self._all.append(dataset)
            try:
                yield dataset
            finally:
                with self._lock:
                    self._idle.append(dataset)

    def close(self) -> None:
        with environment():
            for dataset in self._all:
                dataset.close()


def georeference_in(dataset: Any) -> Georeference | None:
    """Where an opened file lies on earth; None where it does not say."""
    points, points_crs = dataset.gcps
    place = Georeference(
        crs=dataset.crs,
        transform=dataset.transform if dataset.transform != import_rasterio().Affine.identity() else None,
        gcps=(points, points_crs) if points else None,
        rpcs=dataset.rpcs,
        area_or_point=dataset.tags().get("AREA_OR_POINT"),
    )
    is_placed = any(value is not None for value in (place.crs, place.transform, place.gcps, place.rpcs))
    return place if is_placed else None


def georeference_of(path: Path, name: str, driver: str) -> Georeference | None:
    """Where a PNG, JPEG or BMP lies on earth, once it is upright, from the files beside it. Raises: ImageError."""
    from evitseg.raster.formats import format_of
    from evitseg.raster.orientation import orientation_of

    rasterio = import_rasterio()
    try:
        with environment(), quiet_open(path.absolute(), driver=driver) as dataset:
            place, size = georeference_in(dataset), (dataset.height, dataset.width)
    except (rasterio.errors.RasterioError, UnicodeError) as error:
        raise ImageError(f"{name}: the files beside it that may say where it lies cannot be read ({error}).") from error
    with path.open("rb") as stream:
        row = format_of(stream.read(64))
        orientation = orientation_of(stream, row) if row is not None else 1
    return None if place is None else upright(place, orientation, size)


@contextmanager
def translate_gdal_errors(name: str) -> Iterator[None]:
    """GDAL's words on a file that it cannot write become a FileError."""
    rasterio = import_rasterio()
    try:
        yield
    except rasterio.errors.RasterioError as error:
        raise FileError(f"{name}: cannot be written ({error.__cause__ or error}).") from error
