"""evitseg convert, and its former name for COCO."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from evitseg.cli.command import fail, option, verb
from evitseg.cli.options import FILE, LABELS
from evitseg.cli.output import Output

if TYPE_CHECKING:
    from evitseg.data.annotations.conversion import Conversion

_MAX_PRINTED = 20
"""Problems that are printed; further ones are only counted."""

OUT = option(
    "--out",
    "-o",
    type=FILE,
    required=True,
    metavar="DATA",
    panel="Output",
    help="New folder for masks, lists of pairs, and labels.json.",
)
IGNORE_BACKGROUND = option(
    "--ignore-background",
    is_flag=True,
    panel="Output",
    help="Ignore pixels without an object, instead of making them a class.",
)


@verb(
    "convert",
    ("evitseg convert annotations.json --images photos/ --out data", "Masks from COCO annotations."),
    ("evitseg convert export/ --out data --ignore-background", "Masks from the export folder of another tool."),
)
@click.argument(
    "source",
    type=FILE,
    metavar="SOURCE",
    help="File or folder that an annotation tool exported.",
)
@option(
    "--images",
    type=FILE,
    metavar="DIR",
    panel="Input",
    help="Folder that the file names in SOURCE are relative to. Default: search near SOURCE.",
)
@LABELS
@OUT
@IGNORE_BACKGROUND
def convert_command(
    output: Output, source: Path, images: Path | None, labels: str | None, out: Path, ignore_background: bool
) -> None:
    """Convert annotations to masks: COCO, CVAT, Labelme, Label Studio, YOLO and others.

    The tool is recognised by its files. Damaged annotations are reported with their ids and left out, and the exit
    status is 1; all others are converted. `check`, `eval` and `train` read the folder DATA.
    """
    _convert(output, source, images, labels, out, ignore_background)


@verb("convert-coco", hidden=True)
@click.argument("annotations", type=FILE, metavar="JSON", help="COCO annotations: polygons or run lengths.")
@option(
    "--images",
    type=FILE,
    required=True,
    metavar="DIR",
    panel="Input",
    help="Folder that the file names in JSON are relative to.",
)
@OUT
@IGNORE_BACKGROUND
def convert_coco_command(output: Output, annotations: Path, images: Path, out: Path, ignore_background: bool) -> None:
    """Convert COCO annotations to masks. The same as `evitseg convert`."""
    _convert(output, annotations, images, None, out, ignore_background)


def _convert(
    output: Output, source: Path, images: Path | None, labels: str | None, out: Path, ignore_background: bool
) -> None:
    from evitseg.data.annotations.conversion import write_masks
    from evitseg.data.annotations.reading import read_annotations
    from evitseg.labels import load_labels

    space = load_labels(labels) if labels else None
    found = read_annotations(source, images)
    with output.progress("converting", len(found.images), unit="images") as advance:
        done = write_masks(found, out, labels=space, ignore_background=ignore_background, progress=advance)
    _report(done, out, output)
    if done.problems:
        fail()


def _report(done: Conversion, out: Path, output: Output) -> None:
    from evitseg.data.annotations.objects import count

    output.content = {
        "tool": done.tool,
        "objects": done.objects,
        "images": done.pairs,
        "lists": [str(path) for path in done.lists],
        "problems": done.problems,
        "notes": done.notes,
    }
    for problem in done.problems[:_MAX_PRINTED]:
        output.error(problem)
    if len(done.problems) > _MAX_PRINTED:
        output.error(f"... and {len(done.problems) - _MAX_PRINTED} more.")
    for note in done.notes:
        output.log(f"note: {note}")
    output.result(f"{done.tool}: {count(done.objects, 'object')} in {count(done.pairs, 'image')}")
    left_out = f"; {count(len(done.problems), 'problem')}, see above" if done.problems else ""
    output.result(f"wrote {', '.join(map(str, done.lists))}{left_out}")
    output.result(f"next: evitseg check {out} --sheet sheet.png")
