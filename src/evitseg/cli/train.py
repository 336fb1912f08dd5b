"""evitseg train."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from evitseg.cli.app import plain_errors
from evitseg.cli.console import complain
from evitseg.cli.options import Bands, Data, Labels, Page, ValueRange, WorkingSize, parse_size, read_options
from evitseg.errors import EvitsegError

if TYPE_CHECKING:
    from evitseg.metrics import Report
    from evitseg.train import Event


@plain_errors
def train(
    data: Data,
    out: Annotated[Path, typer.Option("--out", "-o", metavar="RUN", help="The run's folder.")] = Path("runs/train"),
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run in --out, with its settings.")] = False,
    recipe: Annotated[
        str, typer.Option(metavar="NAME|FILE", help="Settings to begin with; the options here go before them.")
    ] = "",
    variant: Annotated[str | None, typer.Option(help="b0 to b3, l0 to l3. (default: b0)", show_default=False)] = None,
    start: Annotated[
        str | None,
        typer.Option(
            metavar="MODEL|none",
            help="Weights to start from: a checkpoint, a published model's name, or none for random ones. "
            "(default: the variant's published Cityscapes weights)",
            show_default=False,
        ),
    ] = None,
    epochs: Annotated[int | None, typer.Option(min=1, help="Passes over the pictures. (default: 100)")] = None,
    batch: Annotated[
        str | None,
        typer.Option(metavar="N|auto", help="Pictures a step; auto measures which number is fastest. (default: 8)"),
    ] = None,
    crop: Annotated[
        str | None, typer.Option(metavar="HxW", help="Pieces that are trained on, in pixels. (default: 512x512)")
    ] = None,
    size: WorkingSize = None,
    learning_rate: Annotated[
        float | None, typer.Option("--learning-rate", "--lr", help="At its highest. (default: 0.001)")
    ] = None,
    labels: Labels = None,
    freeze_backbone: Annotated[bool, typer.Option("--freeze-backbone", help="Train the head alone.")] = False,
    precision: Annotated[
        str | None, typer.Option(help="float32, or bfloat16 or float16 for mixed precision. (default: float32)")
    ] = None,
    workers: Annotated[int | None, typer.Option(min=0, help="Processes that read pictures. (default: 1)")] = None,
    bands: Bands = None,
    value_range: ValueRange = None,
    page: Page = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Of everything that is random. (default: 0)")] = None,
    changes: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="NAME=VALUE", help="Any other setting, such as rotate=10; docs/training.md."),
    ] = None,
) -> None:
    """Train on your own masks. A run that was stopped, however, goes on with --resume."""
    options: dict[str, Any] = {
        "variant": variant, "start": start, "epochs": epochs, "learning_rate": learning_rate, "precision": precision,
        "workers": workers, "seed": seed, "freeze_backbone": freeze_backbone or None,
    }  # fmt: skip
    read_options(bands, value_range, page)  # what cannot be read so is a usage error
    options |= {"bands": bands, "value_range": value_range, "page": page}
    if crop is not None:
        height, _, width = crop.partition("x")
        if not (height.isdigit() and width.isdigit()):
            raise typer.BadParameter(f"{crop!r} is not HEIGHTxWIDTH, such as 352x480", param_hint="--crop")
        options["crop"] = [int(height), int(width)]
    if batch is not None and batch != "auto":
        if not batch.isdigit():
            raise typer.BadParameter(f"{batch!r} is neither a number of pictures nor auto", param_hint="--batch")
        options["batch"] = int(batch)
    if size is not None:
        working_size = parse_size(size)
        options["size"] = working_size if isinstance(working_size, int) else "native"
    try:
        from evitseg.train import fit
        from evitseg.train.tune import tuned
    except ImportError as error:
        from evitseg.errors import MissingPackageError

        raise MissingPackageError("training", "train") from error
    from dataclasses import replace

    from evitseg.config import PUBLISHED_SEGMENTATION
    from evitseg.dataset import find_dataset
    from evitseg.labels import load_labels
    from evitseg.system.machine import logical_cores
    from evitseg.train.config import FRESH, read_config, read_recipe, structured

    if resume:
        config = read_config(out)
        given = [name for name, value in options.items() if value is not None and name != "workers"]
        if given or batch or recipe or changes:
            what = f"--{given[0].removeprefix('value_').replace('_', '-')}" if given else "--batch, --recipe and --set"
            raise EvitsegError(f"--resume goes on with the run's own settings; leave out {what}, or begin a new run.")
        if workers is not None:
            config = replace(config, workers=workers)
    else:
        settings = read_recipe(recipe) | {name: value for name, value in options.items() if value is not None}
        settings |= read_recipe("", changes or ())
        settings = {name: value for name, value in settings.items() if (name, value) != ("size", "native")}
        published = f"{settings.get('variant', 'b0')}-cityscapes"
        settings.setdefault("start", published if published in PUBLISHED_SEGMENTATION else FRESH)
        config = structured(settings, recipe or "settings")
        if batch == "auto":
            dataset = find_dataset(data)
            pictures = sum(len(pairs) for split, pairs in dataset.splits.items() if split not in ("val", "test"))
            config, tried = tuned(config, pictures, scale_rate="learning_rate" not in settings)
            for number, speed in tried.items():
                print(f"batch {number:>4}: {speed:7.1f} pictures/s", file=sys.stderr)
            print(f"taken: batch {config.batch}, learning rate {config.learning_rate:.2g}", file=sys.stderr)
    quiet = os.environ.get("RANK", "0") != "0"  # one of torchrun's processes speaks for all
    with _training_progress(quiet) as watch:
        run = fit(
            data,
            config,
            out,
            resume=resume,
            labels=load_labels(labels) if labels else None,
            check_workers=logical_cores(),
            watch=watch,
        )
    if quiet:
        return
    for sentence in run.left_out:
        complain(sentence)
    print(f"best mIoU on the validation pictures {100 * run.miou:.2f}; curves and pictures are in {run.folder}")
    for command in run.commands:
        print(command)


@contextlib.contextmanager
def _training_progress(quiet: bool) -> Iterator[Callable[[Event], None]]:
    """A bar with loss, rate and time left; after an epoch the classes' IoU."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
    from rich.text import Text

    console = Console(highlight=False, quiet=quiet)
    columns = (
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(),
        TextColumn(
            "loss {task.fields[loss]:.3f}, rate {task.fields[rate]:.1e}, "
            "{task.fields[speed]:.1f} pictures/s{task.fields[miou]}"
        ),
    )  # fmt: skip
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        task = progress.add_task("training", total=None, loss=float("nan"), rate=0.0, speed=0.0, miou="")

        def watch(event: Event) -> None:
            description = f"epoch {event.epoch}/{event.epochs}"
            progress.update(
                task, total=event.steps, completed=event.step, description=description, loss=event.loss,
                rate=event.learning_rate, speed=event.pictures_per_s,
            )  # fmt: skip
            if event.report is not None:
                progress.update(task, miou=f", mIoU {100 * event.report.miou:.2f}")
                line = f"{description}: loss {event.loss:.3f}, mIoU {100 * event.report.miou:.2f}"
                console.print(Text(line), soft_wrap=True)
                for row in _class_rows(event.report, console.width):
                    console.print(Text(row), soft_wrap=True)

        yield watch


def _class_rows(report: Report, width: int) -> list[str]:
    """The IoU of every class in percent, in columns that fill a terminal."""
    shares = report.to_dict()["iou"]
    longest = max(len(name) for name in shares)
    cells = [f"  {name:<{longest}} {'–' if v is None else f'{100 * v:.1f}':>5}" for name, v in shares.items()]
    columns = max(1, width // len(cells[0]))
    return ["".join(cells[at : at + columns]) for at in range(0, len(cells), columns)]
