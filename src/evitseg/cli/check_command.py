"""evitseg check."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from evitseg.cli.command import fail, option, verb
from evitseg.cli.options import BANDS, DATA, FILE, LABELS, PAGE, VALUE_RANGE, read_options, workers_option
from evitseg.cli.output import Output

if TYPE_CHECKING:
    from evitseg.data.inspect import Inspection


@verb(
    "check",
    ("evitseg check data/", "Check a folder of images and masks."),
    ("evitseg check data/ --sheet sheet.png", "Also draw images with their masks, to look at."),
    ("evitseg check data/ --labels camvid --json", "Class frequencies and problems, for a program."),
)
@DATA
@LABELS
@BANDS
@VALUE_RANGE
@PAGE
@option(
    "--sheet", type=FILE, metavar="FILE", panel="Output", help="Draw images with their masks on one sheet (.png, .jpg)."
)
@workers_option("Number of processes. Default: one per core.")
def check_command(
    output: Output,
    data: str,
    labels: str | None,
    bands: str | None,
    value_range: str | None,
    page: int | None,
    sheet: Path | None,
    workers: int | None,
) -> None:
    """Check every image and mask, and report problems and how to fix them.

    The exit status is 1 if training would fail. Training leaves out unusable pairs, which are listed here.
    """
    from evitseg.data.inspect import contact_sheet, inspect
    from evitseg.data.layouts import find_dataset
    from evitseg.image import AS_STATED
    from evitseg.labels import load_labels
    from evitseg.raster.files import WRITTEN, save_image
    from evitseg.system.machine import logical_cores

    if sheet is not None and sheet.suffix.lower() not in WRITTEN:
        raise click.BadParameter(f"{sheet} must end in {' or '.join(sorted(WRITTEN))}", param_hint="--sheet")
    reading = read_options(bands, value_range, page) or AS_STATED
    dataset = find_dataset(data, load_labels(labels) if labels else None, reading)
    with output.progress("reading", len(dataset.pairs()), unit="pairs") as advance:
        inspection = inspect(dataset, workers or logical_cores(), advance)
    output.content = _numbers(inspection)
    _report(inspection, output)
    if sheet is not None:
        save_image(contact_sheet(inspection), sheet)
        output.note(f"wrote {sheet}")
    if not inspection.trains:
        fail()


def _numbers(inspection: Inspection) -> dict[str, Any]:
    splits = {
        split: {
            "pairs": len(pairs),
            "usable": sum(f.split == split for f in inspection.usable),
            "frequencies": dict(
                zip(inspection.labels.names, inspection.frequencies(split).round(6).tolist(), strict=True)
            ),
        }
        for split, pairs in inspection.dataset.splits.items()
    }
    return {
        "layout": inspection.dataset.layout,
        "trains": inspection.trains,
        "labels": inspection.labels.name,
        "splits": splits,
        "problems": inspection.problems,
        "skipped": inspection.skipped,
        "notes": inspection.dataset.notes,
        "duplicates": [[str(f.pair.image) for f in leak] for leak in inspection.leaks],
    }


def _report(inspection: Inspection, output: Output) -> None:
    from evitseg.data.annotations.objects import count
    from evitseg.data.dataset import ALL

    dataset, labels = inspection.dataset, inspection.labels
    output.result(f"{dataset.root}: {dataset.layout}, {len(labels.classes)} classes ({labels.name})")
    _show_classes(inspection, output)
    sizes = sorted({f.size for f in inspection.usable}, key=lambda size: size[0] * size[1])
    if sizes:
        smallest, largest = sizes[0], sizes[-1]
        span = f"{smallest[1]}×{smallest[0]}" + (f" to {largest[1]}×{largest[0]}" if len(sizes) > 1 else "")
        output.result(f"image sizes: {span}")
    frequencies = zip(labels.names, inspection.frequencies(), strict=True)
    absent = [name for name, frequency in frequencies if frequency == 0]
    if absent:
        output.result(f"classes that occur in no mask: {', '.join(absent)}")
    if list(dataset.splits) == [ALL]:
        output.result("no split: training holds out a fifth of the pairs, always the same for the same --seed")
    for first, second in inspection.leaks:
        output.warning(f"{second.pair.image}: the same image as {first.pair.image}, which is in {first.split}.")
    rotated = sum(finding.exif_rotated for finding in inspection.usable)
    if rotated:
        output.result(
            f"note: {rotated} images are rotated by their EXIF orientation; their masks must match the upright image "
            "(--sheet shows both)"
        )
    for problem in inspection.problems:
        output.warning(problem)
    if inspection.skipped:
        counts = "; ".join(f"{reason}: {number}" for reason, number in inspection.skipped.items())
        output.result(f"skipped {counts}")
    for note in dataset.notes:
        output.result(f"note: {note}")
    if inspection.trains:
        skipped = len(inspection.findings) - len(inspection.usable)
        output.result("ready to train" + (f"; {count(skipped, 'pair')} will be skipped" if skipped else ""))
    else:
        output.error(f"training would fail: {inspection.obstacle}")


def _show_classes(inspection: Inspection, output: Output) -> None:
    from rich.table import Table
    from rich.text import Text

    splits = inspection.dataset.splits
    table = Table(box=None, padding=(0, 1))
    table.add_column("class")
    for split in splits:
        table.add_column(f"{split} %", justify="right")
    frequencies = [inspection.frequencies(split) for split in splits]
    for i, name in enumerate(inspection.labels.names):
        table.add_row(Text(name), *(f"{100 * of_split[i]:.2f}" for of_split in frequencies))
    table.add_row()
    for what, chosen in (("pairs", inspection.findings), ("usable", inspection.usable)):
        table.add_row(what, *(str(sum(f.split == split for f in chosen)) for split in splits))
    output.show(table)
