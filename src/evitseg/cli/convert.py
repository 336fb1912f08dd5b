"""evitseg convert and evitseg convert-coco."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from evitseg.cli.app import plain_errors
from evitseg.cli.console import FAILED, complain, progress_bar
from evitseg.cli.options import Labels

if TYPE_CHECKING:
    from evitseg.data.annotations.conversion import Conversion

_TOLD = 20
"""Problems printed; of the others only the number."""

Out = Annotated[
    Path, typer.Option("--out", "-o", metavar="DATA", help="New folder for masks, lists of pairs and labels.json.")
]
IgnoreBackground = Annotated[
    bool, typer.Option("--ignore-background", help="Ignore pixels of no object, instead of making them a class.")
]


@plain_errors
def convert(
    source: Annotated[
        Path,
        typer.Argument(
            metavar="SOURCE",
            help="File or folder that an annotation tool exported; docs/annotations.md lists the tools.",
        ),
    ],
    out: Out,
    images: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Folder that file names in SOURCE start from. (default: look near SOURCE)",
            show_default=False,
        ),
    ] = None,
    labels: Labels = None,
    ignore_background: IgnoreBackground = False,
) -> None:
    """Make masks from annotations: COCO, CVAT, Labelme, Label Studio, YOLO and others.

    The tool is recognised from its files. Damaged annotations are reported with their ids and left out, and the exit
    status is then 1; everything else is written. `check`, `eval` and `train` take the folder DATA.
    """
    _convert(source, out, images, labels, ignore_background)


@plain_errors
def convert_coco(
    annotations: Annotated[Path, typer.Argument(metavar="JSON", help="COCO annotations: polygons or run lengths.")],
    images: Annotated[Path, typer.Option(metavar="DIR", help="Folder that the file names in it start from.")],
    out: Out,
    ignore_background: IgnoreBackground = False,
) -> None:
    """Make masks from COCO annotations. The same as `evitseg convert`."""
    _convert(annotations, out, images, None, ignore_background)


def _convert(source: Path, out: Path, images: Path | None, labels: str | None, ignore_background: bool) -> None:
    from rich.console import Console

    from evitseg.data.annotations.conversion import labels_for, write_masks
    from evitseg.data.annotations.reading import read_annotations

    console = Console(highlight=False)
    space = labels_for(labels) if labels else None
    found = read_annotations(source, images)
    with progress_bar("drawing", len(found.images), console) as advance:
        done = write_masks(found, out, labels=space, ignore_background=ignore_background, progress=advance)
    _report(done, out)
    if done.problems:
        raise typer.Exit(FAILED)


def _report(done: Conversion, out: Path) -> None:
    from evitseg.data.annotations.objects import count

    for problem in done.problems[:_TOLD]:
        complain(problem)
    if len(done.problems) > _TOLD:
        complain(f"... and {len(done.problems) - _TOLD} more.")
    for note in done.notes:
        print(f"note: {note}", file=sys.stderr)
    print(f"{done.tool}: {count(done.objects, 'object')} on {count(done.pairs, 'image')}")
    left_out = f"; {count(len(done.problems), 'problem')}, see above" if done.problems else ""
    print(f"wrote {', '.join(map(str, done.lists))}{left_out}")
    print(f"next: evitseg check {out} --sheet sheet.png")
