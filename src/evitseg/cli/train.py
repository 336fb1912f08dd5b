"""evitseg train."""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from evitseg.cli.app import plain_errors
from evitseg.cli.console import complain
from evitseg.cli.options import (
    Bands,
    Data,
    Labels,
    Page,
    ValueRange,
    WorkingSize,
    parse_size,
    read_options,
    whole_number,
)  # fmt: skip
from evitseg.errors import EvitsegError

if TYPE_CHECKING:
    from evitseg.evaluation.evaluate import Report
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
    epochs: Annotated[int | None, typer.Option(min=1, help="Passes over the images. (default: 100)")] = None,
    batch: Annotated[
        str | None,
        typer.Option(
            metavar="N|auto", help="Images per step; auto measures which number is fastest. (default: by the images)"
        ),
    ] = None,
    crop: Annotated[
        str | None, typer.Option(metavar="HxW", help="Pieces that are trained on, in pixels. (default: by the images)")
    ] = None,
    size: WorkingSize = None,
    learning_rate: Annotated[
        float | None,
        typer.Option("--learning-rate", "--lr", help="At its highest. (default: by the images and the start)"),
    ] = None,
    labels: Labels = None,
    freeze_backbone: Annotated[bool, typer.Option("--freeze-backbone", help="Train the head alone.")] = False,
    precision: Annotated[
        str | None, typer.Option(help="float32, or bfloat16 or float16 for mixed precision. (default: float32)")
    ] = None,
    workers: Annotated[int | None, typer.Option(min=0, help="Processes that read images. (default: 1)")] = None,
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
        try:
            height, width = map(whole_number, crop.split("x"))
        except ValueError:
            raise typer.BadParameter(
                f"{crop[:40]!r} is not HEIGHTxWIDTH, such as 352x480", param_hint="--crop"
            ) from None
        options["crop"] = [height, width]
    if batch is not None and batch != "auto":
        try:
            options["batch"] = whole_number(batch)
        except ValueError:
            raise typer.BadParameter(
                f"{batch[:40]!r} is neither a number of images nor auto", param_hint="--batch"
            ) from None
    if size is not None:
        working_size = parse_size(size)
        options["size"] = working_size if isinstance(working_size, int) else 0
    try:
        from evitseg.train import fit
        from evitseg.train.tune import tuned, usual_size
    except ImportError as error:
        from evitseg.errors import MissingPackageError

        raise MissingPackageError("training", "train") from error
    from dataclasses import replace

    from evitseg.architecture import PUBLISHED_SEGMENTATION
    from evitseg.data.layouts import find_dataset
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
        settings |= {"size": 0} if settings.get("size") == "native" else {}
        published = f"{settings.get('variant', 'b0')}-cityscapes"
        settings.setdefault("start", published if published in PUBLISHED_SEGMENTATION else FRESH)
        config = structured(settings, recipe or "settings")
        if batch == "auto":
            dataset = find_dataset(data, None, config.reading)
            pairs = [pair for split, them in dataset.splits.items() if split not in ("val", "test") for pair in them]
            config, tried = tuned(config, len(pairs), usual_size(pairs))
            for number, speed in tried.items():
                print(f"batch {number:>4}: {speed:7.1f} images/s", file=sys.stderr)
            print(f"chosen: batch {config.batch}", file=sys.stderr)
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
            tell=lambda sentence: None if quiet else print(sentence, file=sys.stderr),
        )
    if quiet:
        return
    for sentence in run.left_out:
        complain(sentence)
    print(
        f"mIoU on the validation images: best {100 * run.miou:.2f}, start {100 * run.start_miou:.2f}, "
        f"last {100 * run.last_miou:.2f}; curves and predictions are in {run.folder}"
    )
    for command in run.commands:
        print(command)


_LINE_EVERY_S = 30
"""Between two lines of progress where there is no terminal to draw a bar on."""


@contextlib.contextmanager
def _training_progress(quiet: bool) -> Iterator[Callable[[Event], None]]:
    """A bar with loss, rate and time left, without a terminal a line now and then; after an epoch every class's IoU."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
    from rich.text import Text

    console = Console(highlight=False, quiet=quiet)
    columns = (
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(),
        TextColumn(
            "loss {task.fields[loss]:.3f}, rate {task.fields[rate]:.1e}, "
            "{task.fields[speed]:.1f} images/s{task.fields[miou]}"
        ),
    )  # fmt: skip
    began = told = time.monotonic()
    first = -1  # the step that this process begins at
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        task = progress.add_task("training", total=None, loss=float("nan"), rate=0.0, speed=0.0, miou="")

        def say(line: str) -> None:
            nonlocal told
            told = time.monotonic()
            console.print(Text(line), soft_wrap=True)

        def watch(event: Event) -> None:
            nonlocal first
            first = event.step - 1 if first < 0 else first
            description = f"epoch {event.epoch}/{event.epochs}" if event.step else "start"
            progress.update(
                task, total=event.steps, completed=event.step, description=description, loss=event.loss,
                rate=event.learning_rate, speed=event.images_per_s,
            )  # fmt: skip
            loss = f": loss {event.loss:.3f}" if event.step else ":"
            if event.report is not None:
                progress.update(task, miou=f", mIoU {100 * event.report.miou:.2f}")
                say(f"{description}{loss}{',' if event.step else ''} mIoU {100 * event.report.miou:.2f}")
                for row in _class_rows(event.report, console.width):
                    console.print(Text(row), soft_wrap=True)
            elif not console.is_terminal and (event.epoch_done or time.monotonic() - told >= _LINE_EVERY_S):
                left = (time.monotonic() - began) / max(1, event.step - first) * (event.steps - event.step)
                say(f"{description}, step {event.step}/{event.steps}{loss}, {_duration(left)} left")

        yield watch


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02} min" if hours else f"{minutes} min {seconds:02} s"


def _class_rows(report: Report, width: int) -> list[str]:
    """The IoU of every class in percent, in columns that fill a terminal."""
    shares = report.to_dict()["iou"]
    longest = max(len(name) for name in shares)
    cells = [f"  {name:<{longest}} {'–' if v is None else f'{100 * v:.1f}':>5}" for name, v in shares.items()]
    columns = max(1, width // len(cells[0]))
    return ["".join(cells[at : at + columns]) for at in range(0, len(cells), columns)]
