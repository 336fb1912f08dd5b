"""The georeference of images: of their parts, of rotated images, and in companion files of a PNG."""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from evitseg.errors import MissingPackageError, warn, without_warnings
from evitseg.image import AS_STATED, ReadOptions
from evitseg.labels import LabelSpace
from evitseg.raster.formats import format_of
from evitseg.raster.tiff_readers import is_for_tifffile
from evitseg.raster.window import Georeference, Origin, origin_of
from evitseg.system.files import is_file, replacing

_NOWHERE = Origin()


@dataclass(frozen=True)
class Place:
    """The properties that a mask inherits from an image that is read whole.

    Attributes:
        valid: (H, W), False for pixels without data; None if all are valid.
    """

    origin: Origin = _NOWHERE
    valid: NDArray[np.bool_] | None = None


def place_of(path: Path, options: ReadOptions = AS_STATED) -> Place:
    """The georeference and valid pixels of an image file; cheap for photographs, which have neither.

    Warns if reading them needs rasterio and it is not installed. Raises: ImageError.
    """
    with path.open("rb") as file:
        start = file.read(64)
    row = format_of(start)
    if row is None:
        return Place()
    try:
        if row.name == "TIFF":
            return _place_of_tiff(path, options)
        if not any(_beside(path, start)):
            return Place()
        if not row.gdal:
            warn(f"{path}: the mask has no georeference, because evitseg reads none for {row.title}.")
            return Place()
        from evitseg.raster.gdal import georeference_of

        place = georeference_of(path, str(path), row.gdal)
    except MissingPackageError as error:
        warn(f"{path}: the mask gets no georeference and no nodata; {error}")
        return Place()
    return Place(Origin(georeference=place))


def _place_of_tiff(path: Path, options: ReadOptions) -> Place:
    from evitseg.raster import tiff
    from evitseg.raster.open import open_raster

    with path.open("rb") as stream:
        about = tiff.read_tiff(stream, str(path))
    page = about.first
    if is_for_tifffile(about):
        return Place()
    if not (page.is_placed or page.nodata or page.has_alpha or any(_beside(path, b"II"))):
        return Place()
    with without_warnings(), open_raster(path, options=options) as source:  # reading the pixels warns already
        origin, valid = origin_of(source), source.valid(0, 0, *source.size)
    # A TIFF without a georeference is treated as a photograph.
    return Place(origin if origin.georeference is not None else Origin(), valid)


def _beside(path: Path, start: bytes) -> list[bool]:
    """Which companion files with a georeference exist: world files, GDAL's .aux.xml, rational polynomials."""
    ending = path.suffix[1:]
    worlds = {"wld", f"{ending}w", f"{ending[:1]}{ending[-1:]}w"}
    names = [f"{path.name}.aux.xml", f"{path.stem}.aux.xml", f"{path.stem}_RPC.TXT", f"{path.stem}_rpc.txt"]
    names += [f"{path.stem}.{name}" for world in worlds for name in (world, world.upper())]
    names += [f"{path.name}.msk", f"{path.stem}.RPB"] if start[:2] in (b"II", b"MM") else []
    return [is_file(path.with_name(name)) for name in names]


def shifted(place: Georeference, top: int, left: int) -> Georeference:
    """The georeference of a part that begins at (top, left), as `gdal_translate -srcwin` computes it."""
    transform, gcps, rpcs = place.transform, place.gcps, place.rpcs
    if transform is not None:
        a, b, c, d, e, f = transform[:6]
        transform = type(transform)(a, b, a * left + b * top + c, d, e, d * left + e * top + f)
    if gcps is not None:
        gcps = [_moved(point, point.row - top, point.col - left) for point in gcps[0]], gcps[1]
    if rpcs is not None:
        rpcs = copy.copy(rpcs)
        rpcs.line_off, rpcs.samp_off = rpcs.line_off - top, rpcs.samp_off - left
    return replace(place, transform=transform, gcps=gcps, rpcs=rpcs)


def upright(place: Georeference, orientation: int, size: tuple[int, int]) -> Georeference:
    """The georeference of an image after its EXIF orientation is undone. Rational polynomials are dropped.

    Args:
        orientation: EXIF's, 1 to 8.
        size: (height, width) as stored.
    """
    if orientation not in range(2, 9):
        return place
    height, width = size
    swaps, flips_x, flips_y = orientation >= 5, orientation in (2, 3, 7, 8), orientation in (3, 4, 6, 7)
    # stored x = xx * x + xy * y + x0 and stored y = yx * x + yy * y + y0, with upright x and y.
    xx, xy, x0 = (0 if swaps else 1), (1 if swaps else 0), 0
    yx, yy, y0 = xy, xx, 0
    if flips_x:
        xx, xy, x0 = -xx, -xy, width
    if flips_y:
        yx, yy, y0 = -yx, -yy, height
    transform, gcps = place.transform, place.gcps
    if transform is not None:
        rows = [transform[:3], transform[3:6]]
        numbers = [(a * xx + b * yx, a * xy + b * yy, a * x0 + b * y0 + c) for a, b, c in rows]
        transform = type(transform)(*numbers[0], *numbers[1])
    if gcps is not None:
        # The matrix is a signed permutation, so its inverse is its transpose.
        gcps = (
            [_moved(p, xy * (p.col - x0) + yy * (p.row - y0), xx * (p.col - x0) + yx * (p.row - y0)) for p in gcps[0]],
            gcps[1],
        )
    return replace(place, transform=transform, gcps=gcps, rpcs=None)


def _moved(point: Any, row: float, column: float) -> Any:
    return type(point)(row=row, col=column, x=point.x, y=point.y, z=point.z, id=point.id, info=point.info)


def companions_of_png(path: Path) -> tuple[Path, Path]:
    """The world file and the .aux.xml file that give a PNG mask its georeference."""
    return path.with_suffix(".pgw"), path.with_name(f"{path.name}.aux.xml")


def write_beside_png(path: Path, place: Georeference, labels: LabelSpace) -> None:
    """Write the files of `companions_of_png` for a PNG mask, which cannot store a georeference. Raises: FileError."""
    world, about = companions_of_png(path)
    if place.transform is not None:
        a, b, c, d, e, f = place.transform[:6]
        # A world file refers to the centre of the first pixel.
        numbers = (a, d, b, e, c + (a + b) / 2, f + (d + e) / 2)
        with replacing(world) as file:
            file.write("".join(f"{number!r}\n" for number in numbers).encode())
    with replacing(about) as file:
        file.write(pam(labels, place).encode())


def pam(labels: LabelSpace, place: Georeference | None = None) -> str:
    """The content of a .aux.xml file: the names of the classes and, if given, a georeference."""
    from xml.sax.saxutils import escape, quoteattr  # imports half of the standard library

    lines = ["<PAMDataset>"]
    if place is not None:
        if place.crs is not None:
            lines.append(f"  <SRS>{escape(place.crs.to_wkt())}</SRS>")
        if place.transform is not None:
            a, b, c, d, e, f = place.transform[:6]
            lines.append(f"  <GeoTransform>{', '.join(map(repr, (c, a, b, f, d, e)))}</GeoTransform>")
        if place.gcps is not None:
            points, crs = place.gcps
            lines.append(f"  <GCPList Projection={quoteattr(crs.to_wkt() if crs is not None else '')}>")
            lines += [
                f"    <GCP Id={quoteattr(str(p.id))} Info={quoteattr(str(p.info or ''))} "
                f"Pixel={quoteattr(repr(p.col))} Line={quoteattr(repr(p.row))} X={quoteattr(repr(p.x))} "
                f"Y={quoteattr(repr(p.y))} Z={quoteattr(repr(p.z or 0.0))} />"
                for p in points
            ]
            lines.append("  </GCPList>")
        if place.area_or_point is not None:
            lines += _metadata({"AREA_OR_POINT": place.area_or_point})
        if place.rpcs is not None:
            lines += _metadata(place.rpcs.to_gdal(), "RPC")
    names = "".join(f"      <Category>{escape(name)}</Category>\n" for name in labels.names)
    lines.append('  <PAMRasterBand band="1">')
    lines.append(f"    <CategoryNames>\n{names}    </CategoryNames>\n  </PAMRasterBand>\n</PAMDataset>")
    return "\n".join(lines) + "\n"


def _metadata(entries: dict[str, Any], domain: str = "") -> list[str]:
    from xml.sax.saxutils import escape, quoteattr

    items = [f"    <MDI key={quoteattr(key)}>{escape(str(value))}</MDI>" for key, value in entries.items()]
    return [f'  <Metadata domain="{domain}">' if domain else "  <Metadata>", *items, "  </Metadata>"]
