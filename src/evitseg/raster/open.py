"""Open image and mask files of any size, to read or write them window by window."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from evitseg.errors import FileError, ImageError
from evitseg.image import AS_STATED, ReadOptions
from evitseg.labels import LabelSpace
from evitseg.raster.formats import READABLE, format_of
from evitseg.raster.png import MaskFormat
from evitseg.raster.tiff_readers import choose_page, is_for_tifffile, no_raw
from evitseg.raster.window import (
    MAX_BLOCK_BYTES,
    MAX_PIXELS,
    ArraySource,
    Georeference,
    HasSize,
    Origin,
    Sink,
    Source,
    identity_of,
    origin_of,
)
from evitseg.system.files import is_file, is_folder

__all__ = [
    "MASK_ENDINGS",
    "MAX_BLOCK_BYTES",
    "MAX_PIXELS",
    "SLIDE_ENDINGS",
    "ArraySource",
    "Georeference",
    "Origin",
    "Part",
    "Sink",
    "Source",
    "check_place",
    "is_zarr",
    "mask_ending",
    "open_mask_writer",
    "open_raster",
    "part_of",
]  # fmt: skip

MASK_ENDINGS = (".tif", ".tiff", ".png", ".zarr")
SLIDE_ENDINGS = (".svs", ".ndpi", ".scn", ".bif", ".qptiff")
_ZARR = (".zarray", ".zgroup", "zarr.json")


@contextmanager
def open_raster(
    path: str | os.PathLike[str],
    scratch: str | os.PathLike[str] | None = None,
    options: ReadOptions = AS_STATED,
    name: str | None = None,
) -> Iterator[Source]:
    """An image file to read window by window, with the same pixels as `read_image`.

    The file's content decides its format, not its name. PNG, JPEG, BMP and TIFF with wide compressed strips can only be
    decoded from the beginning: they are decoded once, while opening, into a temporary file with 3 or 4 bytes per pixel.
    WebP, GIF, AVIF and HEIC are decoded into memory.

    Args:
        scratch: folder for the temporary file; None uses the system's.
        options: bands, range and page to read.
        name: how messages call the file; None uses its path.

    Raises: ImageError for unreadable files and images larger than `evitseg.raster.MAX_PIXELS`, FileError if the
    temporary file does not fit on the disk, MissingPackageError.
    """
    # Absolute, because the libraries below give prefixes such as /vsicurl/ or zip:// a meaning of their own.
    file = Path(os.path.abspath(path))
    name = name or str(path)
    kind = kind_of(file, name)
    source: Source
    if kind == "zarr":
        from evitseg.raster.zarr_format import open_zarr

        with open_zarr(file, name, options) as source:
            yield source
    elif kind == "tiff":
        with _open_tiff(file, name, scratch, options) as source:
            yield source
    elif kind == "whole":
        from evitseg.raster.whole import read_whole

        yield ArraySource(read_whole(file, name, options).pixels, None, identity_of(file))
    else:
        from evitseg.raster.file_checks import check_bmp, check_jpeg
        from evitseg.raster.formats import png_frames
        from evitseg.raster.gdal import NotOpenedError
        from evitseg.raster.geotiff_read import open_gdal
        from evitseg.raster.orientation import orientation_of
        from evitseg.raster.whole import read_whole

        with open(file, "rb") as stream:
            row = format_of(stream.read(64))
            orientation = orientation_of(stream, row) if row is not None else 1
            frames = 1
            if row is not None and row.name == "BMP":
                check_bmp(stream, name)
            elif row is not None and row.name == "JPEG":
                check_jpeg(stream, name, to_its_end=True)
            elif row is not None and row.name == "PNG":
                frames = png_frames(stream)
        if options.page is not None and options.page > 1:
            if frames == 1:
                raise ImageError(f"{name}: --page {options.page} does not exist; the file has 1.")
            yield ArraySource(read_whole(file, name, options).pixels, None, identity_of(file))
            return
        if frames > 1 and options.page is None:
            from evitseg.raster.tiff_readers import warn_first

            warn_first(name, str(frames), "frames")
        with ExitStack() as stack:
            try:
                source = stack.enter_context(open_gdal(file, name, kind, scratch, options, None, orientation))
            except NotOpenedError:  # damaged files, and BMPs with headers that GDAL does not know
                source = ArraySource(read_whole(file, name, options).pixels, None, identity_of(file))
            yield source


@contextmanager
def _open_tiff(file: Path, name: str, scratch: str | os.PathLike[str] | None, options: ReadOptions) -> Iterator[Source]:
    from evitseg.raster import tiff

    no_raw(file, name)
    with _reading(name), open(file, "rb") as stream:
        about = tiff.read_tiff(stream, name)
        page = about.first
        if not is_for_tifffile(about):
            ifd = choose_page(name, about, options)
            page = page if ifd == page.ifd else tiff.read_page(stream, name, ifd)
    if is_for_tifffile(about):
        from evitseg.raster.slides import open_slide

        with open_slide(file, name, options) as source:
            yield source
    else:
        from evitseg.raster.geotiff_read import open_gdal

        with open_gdal(file, name, "GTiff", scratch, options, page) as source:
            yield source


@contextmanager
def _reading(name: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise ImageError(f"{name}: cannot be read ({error.strerror or error}).") from error


def is_zarr(path: str | os.PathLike[str]) -> bool:
    """Whether a path is a folder that holds a Zarr array or group."""
    return any(is_file(Path(path) / marker) for marker in _ZARR)


def kind_of(file: Path, name: str) -> str:
    """The kind of an image file: "zarr", "tiff", a GDAL driver, or "whole" for formats that GDAL does not read.

    Raises: ImageError.
    """
    try:
        if file.is_dir():
            if is_zarr(file):
                return "zarr"
            raise ImageError(f"{name} is a folder, but not a Zarr; give an image file.")
        if file.exists() and not file.is_file():
            raise ImageError(f"{name}: not a regular file.")  # opening a named pipe waits for its other end
        with open(file, "rb") as stream:
            start = stream.read(64)
    except FileNotFoundError as error:
        raise ImageError(f"{name}: no such file.") from error
    except (OSError, ValueError) as error:
        raise ImageError(f"{name[:200]}: cannot be read ({getattr(error, 'strerror', None) or error}).") from error
    found = format_of(start)
    if found is not None:
        return "tiff" if found.name == "TIFF" else found.gdal or "whole"
    if start.lstrip().startswith(b"<VRTDataset") or file.suffix.lower() == ".vrt":
        raise ImageError(
            f"{name}: a VRT refers to other files, which evitseg does not follow for security; convert it to one file: "
            "gdal_translate -of COG MOSAIC.vrt MOSAIC.tif."
        )
    raise ImageError(f"{name}: not in a supported image format; {READABLE}, and Zarr.")


@contextmanager
def open_mask_writer(
    path: str | os.PathLike[str], like: HasSize, labels: LabelSpace, mask_format: MaskFormat = "palette"
) -> Iterator[Sink]:
    """A mask file to write window by window, as large as an image. The file appears when the block ends.

    The ending decides the format. `.tif` and `.tiff` give a GeoTIFF with the image's georeference (a COG if the image
    is one), or a tiled OME-TIFF pyramid if the image is a microscope slide or the name ends in `.ome.tif`. `.zarr` has
    the image's layout; `.png` is a PNG. Pixels that are never written hold `labels.ignore_index`. An error or an
    interrupt in the block leaves no file behind.

    Args:
        path: the mask file, which is replaced if it exists; a Zarr must not exist yet.
        like: the image, from `open_raster`, or anything else with a `size`.
        labels: the classes, stored in the file with names and colours.
        mask_format: whether PNG and TIFF hold a palette or grey levels. Zarr stores numbers only.

    Raises: ImageError for another ending, FileError for a file that cannot be written, MissingPackageError.
    """
    file, name, ending = Path(os.path.abspath(path)), str(path), Path(path).suffix.lower()
    origin = origin_of(like)
    check_place(path, like)
    if ending == ".png":
        from evitseg.raster.png import png_writer

        with png_writer(file, like.size, labels, mask_format) as sink:
            yield sink
            if origin.georeference is not None:
                from evitseg.raster.places import write_beside_png

                write_beside_png(file, origin.georeference, labels)
    elif ending == ".zarr":
        from evitseg.raster.zarr_format import zarr_writer

        with zarr_writer(file, name, like.size, origin, labels) as sink:
            yield sink
    elif _is_slide(file, origin):
        from evitseg.raster.ome_tiff import ome_tiff_writer

        with ome_tiff_writer(file, name, like.size, origin, labels, mask_format) as sink:
            yield sink
    else:
        from evitseg.raster.geotiff_write import geotiff_writer

        with geotiff_writer(file, name, like.size, origin, labels, mask_format) as sink:
            yield sink


def _is_slide(file: Path, origin: Origin) -> bool:
    """Whether a mask with the ending of a TIFF becomes an OME-TIFF rather than a GeoTIFF."""
    return origin.kind == "slide" or file.name.lower().endswith((".ome.tif", ".ome.tiff"))


def check_place(path: str | os.PathLike[str], like: HasSize) -> None:
    """Check, before any work is done, whether `open_mask_writer` could write to this path.

    Raises: as `open_mask_writer`.
    """
    file, name, ending = Path(os.path.abspath(path)), str(path), Path(path).suffix.lower()
    try:
        if ending == ".zarr" and file.exists():
            raise FileError(f"{name} already exists, and folders are never replaced; remove it or choose another name.")
        if file.is_dir():
            raise FileError(f"{name}: cannot be written, because it is a folder.")
        file.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise FileError(f"{name[:200]}: cannot be written ({error.strerror or error}).") from error
    if ending not in MASK_ENDINGS:
        raise ImageError(f"{name}: unsupported ending of a large mask; use .tif, .png or .zarr.")
    if ending == ".zarr":
        from evitseg.raster.zarr_format import import_zarr

        import_zarr()
    elif ending != ".png":
        if _is_slide(file, origin_of(like)):
            from evitseg.raster.slides import import_tifffile

            import_tifffile()
        else:
            from evitseg.raster.gdal import import_rasterio

            import_rasterio()


def mask_ending(path: str | os.PathLike[str]) -> str:
    """The ending of an image's mask: the image's own format if masks can have it, otherwise .png."""
    ending = Path(path).suffix.lower()
    if is_folder(path):
        return ".zarr"
    return ".tif" if ending in SLIDE_ENDINGS else ending if ending in MASK_ENDINGS else ".png"


@dataclass(frozen=True)
class Part:
    """A rectangle of an image, as `open_mask_writer` needs it: size and origin."""

    size: tuple[int, int]
    origin: Origin


def part_of(source: object, top: int, left: int, height: int, width: int) -> Part:
    """A rectangle of an image with the properties that its mask inherits: georeference, kind and pixel size."""
    from evitseg.raster.places import shifted

    origin = origin_of(source)
    place = None if origin.georeference is None else shifted(origin.georeference, top, left)
    kind = "other" if origin.kind == "zarr" else origin.kind
    return Part((height, width), Origin(kind, place, pixel_size_um=origin.pixel_size_um))
