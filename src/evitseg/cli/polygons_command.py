"""evitseg polygons."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from evitseg.cli.command import option, verb
from evitseg.cli.options import AT_LEAST_1, FILE, LABELS
from evitseg.cli.output import Output

if TYPE_CHECKING:
    from evitseg.labels import LabelSpace


@verb(
    "polygons",
    ("evitseg polygons mask.tif --out regions.gpkg", "Polygons of every class, in the mask's coordinate system."),
    ("evitseg polygons mask.png --out roads.geojson --class road --minimum-pixels 100", "Large regions of one class."),
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
    "--out", "-o", type=FILE, required=True, metavar="FILE", panel="Output", help="File to write (.geojson, .gpkg)."
)
def polygons_command(
    output: Output, mask: Path, labels: str | None, classes: tuple[str, ...], minimum_pixels: int, out: Path
) -> None:
    """Convert the regions of a mask to polygons, for maps and GIS.

    Coordinates are those of the mask's coordinate system, or pixels if it has none.
    """
    from evitseg.labels import load_labels

    space = load_labels(labels) if labels else None
    write_polygons(mask, out, space, output, list(classes) or None, minimum_pixels)


def write_polygons(
    mask: Path,
    out: Path,
    labels: LabelSpace | None,
    output: Output,
    classes: list[str] | None = None,
    minimum_pixels: int = 1,
) -> None:
    """Write the regions of a mask file as polygons, with a progress bar, and report what was written."""
    from rich.progress import Progress

    from evitseg.raster.polygons import polygonize

    console = output.progress_console
    with Progress(console=console, disable=not console.is_terminal, transient=True) as bar:
        task = bar.add_task("polygons", total=1.0)
        written = polygonize(mask, out, labels, classes, minimum_pixels, lambda part: bar.update(task, completed=part))
    counts = {name: count for name, count in written.polygons.items() if count}
    if not output.content:  # of the verb itself; predict reports polygons with their image
        output.content = {
            "polygons": str(out),
            "counts": counts,
            "coordinates": "pixels" if written.in_pixels else "crs",
        }
    listed = ", ".join(f"{count} of {name}" for name, count in counts.items())
    where = "pixels, because the mask is not georeferenced" if written.in_pixels else "the mask's coordinate system"
    output.result(f"wrote {out} with {sum(counts.values())} polygons: {listed or 'none'}; coordinates are in {where}.")
