"""evitseg convert-coco."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from evitseg.cli.app import plain_errors
from evitseg.cli.console import progress_bar

if TYPE_CHECKING:
    pass


@plain_errors
def convert_coco(
    annotations: Annotated[Path, typer.Argument(metavar="JSON", help="COCO annotations: polygons or run lengths.")],
    images: Annotated[Path, typer.Option(metavar="DIR", help="The folder that the file names in it start from.")],
    out: Annotated[Path, typer.Option("--out", "-o", metavar="DIR", help="Where masks, pairs.txt and labels.json go.")],
    ignore_background: Annotated[
        bool, typer.Option("--ignore-background", help="Pixels of no object do not count, instead of being a class.")
    ] = False,
) -> None:
    """Make masks from COCO annotations; check, eval and training take the pairs.txt it writes."""
    from rich.console import Console
    from rich.text import Text

    from evitseg import coco

    console = Console(highlight=False)
    # How many there are is known once the file is read; the bar then shows no end.
    with progress_bar("drawing", None, console) as advance:
        pairs = coco.convert_coco(annotations, images, out, ignore_background=ignore_background, progress=advance)
    console.print(Text(f"wrote {pairs}; look at it with: evitseg check {pairs} --sheet sheet.png"), soft_wrap=True)
