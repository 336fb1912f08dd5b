"""Use GDAL through rasterio: settings, open files and errors."""

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
    "GDAL_CACHEMAX": CACHE_BYTES,  # the default is 5 % of the machine's memory
    # A companion file or a tag may refer to another file. This setting refuses addresses on the network.
    "CPL_VSIL_CURL_ALLOWED_EXTENSIONS": ".evitseg-reads-no-net",
    "GTIFF_DIRECT_IO": True,  # reads only the window's part of uncompressed strips
    "GDAL_PNG_WHOLE_IMAGE_OPTIM": False,  # in GDAL 3.10, reading a PNG at once hides damage
    "GDAL_ERROR_ON_LIBJPEG_WARNING": True,  # otherwise a truncated JPEG is silently grey at its end
}
_open_lock = threading.Lock()


def import_rasterio() -> ModuleType:
    """The module `rasterio`. Raises: MissingPackageError."""
    try:
        import rasterio
        import rasterio.shutil
    except ImportError as error:
        raise MissingPackageError("reading and writing GeoTIFF and large PNG and JPEG images", "geo") from error
    return cast(ModuleType, rasterio)


def quiet_open(path: Path | str, *arguments: Any, **options: Any) -> Any:
    """`rasterio.open` without the warning that a photograph has no georeference.

    Raises: ImageError, or FileError while writing, for a file name that GDAL cannot open.
    """
    rasterio = import_rasterio()
    try:
        os.fspath(path).encode()
    except UnicodeEncodeError as error:
        what = FileError if "w" in arguments else ImageError
        raise what(f"{path}: GDAL only opens files whose names are UTF-8; rename the file or its folder.") from error
    # Warning filters belong to the process, so only one thread at a time may change them.
    with _open_lock, warnings.catch_warnings():
        warnings.simplefilter("ignore", rasterio.errors.NotGeoreferencedWarning)
        return rasterio.open(os.fspath(path), *arguments, **options)


def environment() -> Any:
    """A context manager that applies GDAL's settings to the calling thread."""
    return import_rasterio().Env(**_OPTIONS)


class NotOpenedError(ImageError):
    """GDAL could not open a file."""


class Handles:
    """A pool of open datasets of one file, because a dataset may only be used by one thread at a time."""

    def __init__(self, path: Path, driver: str, ifd: int = 0) -> None:
        # GDAL addresses further pages with a prefix, counted from 1.
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
    """The georeference of an open file; None if it has none."""
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
    """The georeference of an upright PNG, JPEG or BMP, from its companion files. Raises: ImageError."""
    from evitseg.raster.formats import format_of
    from evitseg.raster.orientation import orientation_of

    rasterio = import_rasterio()
    try:
        with environment(), quiet_open(path.absolute(), driver=driver) as dataset:
            place, size = georeference_in(dataset), (dataset.height, dataset.width)
    except (rasterio.errors.RasterioError, UnicodeError) as error:
        raise ImageError(f"{name}: its georeference cannot be read from its companion files ({error}).") from error
    with path.open("rb") as stream:
        row = format_of(stream.read(64))
        orientation = orientation_of(stream, row) if row is not None else 1
    return None if place is None else upright(place, orientation, size)


@contextmanager
def translate_gdal_errors(name: str) -> Iterator[None]:
    """Turn GDAL's errors while writing into a FileError."""
    rasterio = import_rasterio()
    try:
        yield
    except rasterio.errors.RasterioError as error:
        raise FileError(f"{name}: cannot be written ({error.__cause__ or error}).") from error
