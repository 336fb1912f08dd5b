"""evitseg check."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from evitseg.cli.app import plain_errors
from evitseg.cli.console import FAILED, complain, progress_bar
from evitseg.cli.options import AsJson, Bands, Data, Labels, Page, ValueRange, Workers, read_options

if TYPE_CHECKING:
    from evitseg.data.inspect import Inspection


@plain_errors
def check(
    data: Data,
    labels: Labels = None,
    sheet: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Draw images with their masks on one sheet (.png).", show_default=False),
    ] = None,
    workers: Workers = None,
    bands: Bands = None,
    value_range: ValueRange = None,
    page: Page = None,
    as_json: AsJson = False,
) -> None:
    """Read all images and masks, and say what is wrong and how to mend it.

    Exit status 1 if training would fail. Pairs that cannot be used are named; training leaves them out.
    """
    from rich.console import Console
    from rich.text import Text

    from evitseg.data.inspect import contact_sheet, inspect
    from evitseg.data.layouts import find_dataset
    from evitseg.image import AS_STATED
    from evitseg.labels import load_labels
    from evitseg.raster.files import WRITTEN, save_image
    from evitseg.system.machine import logical_cores

    if sheet is not None and sheet.suffix.lower() not in WRITTEN:
        raise typer.BadParameter(f"{sheet} must end in .png", param_hint="--sheet")
    reading = read_options(bands, value_range, page) or AS_STATED
    dataset = find_dataset(data, load_labels(labels) if labels else None, reading)
    console = Console(stderr=as_json, highlight=False)
    with progress_bar("reading", len(dataset.pairs()), console) as advance:
        inspection = inspect(dataset, workers or logical_cores(), advance)
    if as_json:
        print(json.dumps(_inspection_numbers(inspection), indent=2))
    else:
        _tell_inspection(console, inspection)
    if sheet is not None:
        save_image(contact_sheet(inspection), sheet)
        console.print(Text(f"wrote {sheet}"), soft_wrap=True)
    if not inspection.trains:
        raise typer.Exit(FAILED)


def _inspection_numbers(inspection: Inspection) -> dict[str, Any]:
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
        "left_out": inspection.left_out,
        "notes": inspection.dataset.notes,
        "duplicates": [[str(f.pair.image) for f in leak] for leak in inspection.leaks],
    }


def _tell_inspection(console: Any, inspection: Inspection) -> None:
    from rich.table import Table
    from rich.text import Text

    from evitseg.data.dataset import ALL

    dataset, labels = inspection.dataset, inspection.labels
    heading = Text(f"{dataset.root}: {dataset.layout}, {len(labels.classes)} classes ({labels.name})")
    console.print(heading, soft_wrap=True)
    table = Table(box=None, padding=(0, 1))
    table.add_column("class")
    for split in dataset.splits:
        table.add_column(f"{split} %", justify="right")
    shares = [inspection.frequencies(split) for split in dataset.splits]
    for i, name in enumerate(labels.names):
        table.add_row(Text(name), *(f"{100 * share[i]:.2f}" for share in shares))
    table.add_row()
    for what, chosen in (("pairs", inspection.findings), ("usable", inspection.usable)):
        table.add_row(what, *(str(sum(f.split == split for f in chosen)) for split in dataset.splits))
    sizes = sorted({f.size for f in inspection.usable}, key=lambda size: size[0] * size[1])
    console.print(table)
    if sizes:
        smallest, largest = sizes[0], sizes[-1]
        span = f"{smallest[1]}×{smallest[0]}" + (f" to {largest[1]}×{largest[0]}" if len(sizes) > 1 else "")
        console.print(f"image sizes: {span}")
    absent = [name for name, share in zip(labels.names, inspection.frequencies(), strict=True) if share == 0]
    if absent:
        console.print(Text(f"classes that no mask has: {', '.join(absent)}"))
    if list(dataset.splits) == [ALL]:
        console.print("no split: training holds out a fifth, the same one for the same --seed")
    for first, second in inspection.leaks:
        complain(f"{second.pair.image}: the same image as {first.pair.image}, which is in {first.split}.")
    turned = sum(finding.turned for finding in inspection.usable)
    if turned:
        console.print(
            f"note: {turned} images are turned by their EXIF orientation; their masks must be drawn on the upright "
            "image (--sheet shows both)",
            soft_wrap=True,
        )
    for problem in inspection.problems:
        complain(problem)
    if inspection.left_out:
        counts = ", ".join(f"{count} {reason}" for reason, count in inspection.left_out.items())
        console.print(Text(f"left out: {counts}"), soft_wrap=True)
    for note in dataset.notes:
        console.print(Text(f"note: {note}"), soft_wrap=True)
    if inspection.trains:
        left_out = len(inspection.findings) - len(inspection.usable)
        console.print("ready to train" + (f"; {left_out} pairs will be left out" if left_out else ""))
    else:
        complain(f"training would fail: {inspection.obstacle}")
