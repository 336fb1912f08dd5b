"""evitseg polygons."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, TypedDict

import click

from evitseg.cli.command import option, verb
from evitseg.cli.options import AT_LEAST_1, FILE, LABELS
from evitseg.cli.output import Output
from evitseg.cli.values import Number

if TYPE_CHECKING:
    from evitseg.labels import LabelSpace


@verb(
    "polygons",
    ("evitseg polygons mask.tif --out regions.gpkg", "Polygons of every class, in the mask's coordinate system."),
    ("evitseg polygons mask.png --out roads.geojson --class road --minimum-pixels 100", "Large regions of one class."),
    ("evitseg polygons mask.tif --out regions.parquet --simplify 2", "Without the steps of pixels, as GeoParquet."),
)
@click.argument("mask", type=FILE, metavar="MASK", help="A mask of class indices (.tif, .png or .zarr).")
@LABELS
@option(
    "--class",
    "classes",
    multiple=True,
    metavar="NAME",
    panel="Input",
    help="Class to write; may be repeated. Default: all classes.",
)
@option(
    "--minimum-pixels",
    type=AT_LEAST_1,
    default=1,
    metavar="N",
    panel="Input",
    help="Skip regions with fewer pixels. Default: 1.",
)
@option(
    "--minimum-area",
    type=Number(min=0),
    default=0.0,
    metavar="AREA",
    panel="Input",
    help="Skip regions with a smaller area, in the unit of the mask's coordinate system, squared, such as m²; only if "
    "that system is projected.",
)
@option(
    "--out",
    "-o",
    type=FILE,
    required=True,
    metavar="FILE",
    panel="Output",
    help="File to write (.geojson, .gpkg, .parquet).",
)
@option(
    "--simplify",
    type=Number(min=0),
    default=0.0,
    metavar="PIXELS",
    panel="Output",
    help="Remove corners that span less area than a square of this side: 2 or 3 removes the steps of slanting borders. "
    "Neighbours keep sharing their borders, and nothing overlaps. Default: 0, exact outlines.",
)
def polygons_command(
    output: Output,
    mask: Path,
    labels: str | None,
    classes: tuple[str, ...],
    minimum_pixels: int,
    minimum_area: float,
    simplify: float,
    out: Path,
) -> None:
    """Convert the regions of a mask to polygons, for maps and GIS.

    Coordinates are those of the mask's coordinate system, or pixels if it has none. GeoJSON is in longitude and
    latitude.
    """
    from evitseg.labels import load_labels

    space = load_labels(labels) if labels else None
    limits: Limits = {"min_pixels": minimum_pixels, "min_area": minimum_area, "simplify": simplify}
    write_polygons(mask, out, space, output, list(classes) or None, limits)


class Limits(TypedDict, total=False):
    """Options of `polygonize`."""

    min_pixels: int
    min_area: float
    simplify: float


def write_polygons(
    mask: Path,
    out: Path,
    labels: LabelSpace | None,
    output: Output,
    classes: list[str] | None = None,
    limits: Limits | None = None,
) -> None:
    """Write the regions of a mask file as polygons, with a progress bar, and report what was written."""
    from rich.progress import Progress

    from evitseg.raster.polygons import polygonize

    console = output.progress_console
    with Progress(console=console, disable=not console.is_terminal, transient=True) as bar:
        task = bar.add_task("polygons", total=1.0)
        written = polygonize(
            mask, out, labels, classes, progress=lambda part: bar.update(task, completed=part), **(limits or {})
        )
    counts = {name: count for name, count in written.polygons.items() if count}
    if not output.content:  # of the verb itself; predict reports polygons with their image
        output.content = {
            "polygons": str(out),
            "counts": counts,
            "coordinates": "pixels" if written.in_pixels else "crs",
            "area_field": written.area_field,
        }
    listed = ", ".join(f"{count} of {name}" for name, count in counts.items())
    if written.in_pixels:
        where = "pixels, because the mask has no transform to a coordinate system"
    else:
        where = "degrees" if out.suffix.lower() in (".json", ".geojson") else "the mask's coordinate system"
    number = sum(counts.values())
    output.result(
        f"wrote {out} with {number} polygon{'s' * (number != 1)}: {listed or 'none'}; coordinates are in {where}."
    )
