"""Images and masks too large for memory, read and written window by window."""

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
from evitseg.raster.masks import MaskFormat
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
    """An image file that is read window by window, with the pixels that `evitseg.raster.files.read_image` gives.

    The format is told by the content. Formats that can only be decoded from their beginning (PNG, JPEG, BMP, TIFF in
    wide compressed strips) are decoded once, while opening, to a file on disk of 3 or 4 bytes a pixel that disappears
    with the source. WebP, GIF, AVIF and HEIC are held in memory.

    Args:
        scratch: the folder for that file; None takes the system's.
        options: which bands, range and page.
        name: of the file in messages; None for its path.

    Raises: ImageError for what cannot be read or is larger than `MAX_PIXELS`, FileError where the decoded copy finds
    no room, MissingPackageError.
    """
    # Absolute, so that no beginning of a name can mean anything but a folder to the libraries below.
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
                raise ImageError(f"{name}: there is no page {options.page} (--page); it has 1.")
            yield ArraySource(read_whole(file, name, options).pixels, None, identity_of(file))
            return
        if frames > 1 and options.page is None:
            from evitseg.raster.tiff_readers import warn_first

            warn_first(name, str(frames), "frames")
        with ExitStack() as stack:
            try:
                source = stack.enter_context(open_gdal(file, name, kind, scratch, options, None, orientation))
            except NotOpenedError:  # BMPs with five parts of a header, and what is damaged
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
    """Whether a folder is Zarr's."""
    return any(is_file(Path(path) / marker) for marker in _ZARR)


def kind_of(file: Path, name: str) -> str:
    """ "zarr", "tiff", the driver of GDAL that reads it, or "whole" where there is none. Raises: ImageError."""
    try:
        if file.is_dir():
            if is_zarr(file):
                return "zarr"
            raise ImageError(f"{name}: a folder, but not Zarr; give an image file.")
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
            f"{name}: a VRT names other files, which are not opened on a file's word; make one file of it: "
            "gdal_translate -of COG MOSAIC.vrt MOSAIC.tif."
        )
    raise ImageError(f"{name}: not in a format that can be read; {READABLE}, and Zarr.")


@contextmanager
def open_mask_writer(
    path: str | os.PathLike[str], like: HasSize, labels: LabelSpace, mask_format: MaskFormat = "palette"
) -> Iterator[Sink]:
    """A mask file of `like`'s size that is written window by window, and appears once the block ends.

    The format is that of the name's ending: .tif or .tiff is a GeoTIFF with `like`'s georeference (a COG where `like`
    is one), or a tiled pyramidal OME-TIFF where `like` is a microscope's image or the ending is .ome.tif; .png; .zarr
    in `like`'s layout. After a failure nothing is left. What is not written has `labels.ignore_index`.

    Args:
        mask_format: of PNG and TIFF; Zarr holds numbers without colours in both.

    Raises: ImageError for another ending, FileError for a place that cannot be written, MissingPackageError.
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
    """Of a mask whose name ends as a TIFF's."""
    return origin.kind == "slide" or file.name.lower().endswith((".ome.tif", ".ome.tiff"))


def check_place(path: str | os.PathLike[str], like: HasSize) -> None:
    """Whether `open_mask_writer` can write there, as far as can be told before there is anything to write.

    Raises: as `open_mask_writer`.
    """
    file, name, ending = Path(os.path.abspath(path)), str(path), Path(path).suffix.lower()
    try:
        if ending == ".zarr" and file.exists():
            raise FileError(
                f"{name}: exists already, and folders are never replaced; remove it or choose another name."
            )
        if file.is_dir():
            raise FileError(f"{name}: cannot be written, it is a folder.")
        file.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise FileError(f"{name[:200]}: cannot be written ({error.strerror or error}).") from error
    if ending not in MASK_ENDINGS:
        raise ImageError(f"{name}: a huge mask is written as .tif, .png or .zarr; end the name in one of them.")
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
    """How the name of an image's mask ends: the same kind where one is written window by window, else PNG."""
    ending = Path(path).suffix.lower()
    if is_folder(path):
        return ".zarr"
    return ".tif" if ending in SLIDE_ENDINGS else ending if ending in MASK_ENDINGS else ".png"


@dataclass(frozen=True)
class Part:
    """A rectangle of an image, for `open_mask_writer`: its size, and where it lies."""

    size: tuple[int, int]
    origin: Origin


def part_of(source: object, top: int, left: int, height: int, width: int) -> Part:
    """What a mask of a part of an image takes over from it: its place on earth, its kind and the size of a pixel."""
    from evitseg.raster.places import shifted

    origin = origin_of(source)
    place = None if origin.georeference is None else shifted(origin.georeference, top, left)
    kind = "other" if origin.kind == "zarr" else origin.kind
    return Part((height, width), Origin(kind, place, pixel_size_um=origin.pixel_size_um))
