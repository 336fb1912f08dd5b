"""evitseg polygons."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from evitseg.cli.app import plain_errors
from evitseg.cli.options import Labels

if TYPE_CHECKING:
    from evitseg.labels import LabelSpace


@plain_errors
def polygons(
    mask: Annotated[Path, typer.Argument(metavar="MASK", help="A mask of class indices: .tif, .png or .zarr.")],
    out: Annotated[Path, typer.Option("--out", "-o", metavar="FILE", help="Ends in .geojson or .gpkg.")],
    classes: Annotated[
        list[str] | None,
        typer.Option("--class", metavar="NAME", help="Write this class; may be given several times. (default: all)"),
    ] = None,
    minimum_pixels: Annotated[int, typer.Option(min=1, help="Leave out smaller regions.")] = 1,
    labels: Labels = None,
) -> None:
    """Outline the regions of a mask, as polygons in its place on earth, or in pixels where it has none."""
    from evitseg.labels import load_labels

    write_polygons(mask, out, load_labels(labels) if labels else None, classes, minimum_pixels)


def write_polygons(
    mask: Path, out: Path, labels: LabelSpace | None, classes: list[str] | None = None, minimum_pixels: int = 1,
    quiet: bool = False,
) -> None:  # fmt: skip
    """Outline the regions of a mask file, with a bar, and say what was written."""
    from rich.console import Console
    from rich.progress import Progress

    from evitseg.raster.polygons import polygons as outline

    console = Console(stderr=True, highlight=False)
    with Progress(console=console, disable=not console.is_terminal, transient=True) as bar:
        task = bar.add_task("outlining", total=1.0)
        written = outline(mask, out, labels, classes, minimum_pixels, lambda share: bar.update(task, completed=share))
    counts = ", ".join(f"{name} {count}" for name, count in written.polygons.items() if count)
    where = "pixels, because the mask has no place on earth" if written.in_pixels else "coordinates on earth"
    if quiet:
        return
    print(f"wrote {out}: polygons of {counts or 'nothing'}; in {where}.")
