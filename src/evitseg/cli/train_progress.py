"""How a training run is shown: a bar on a terminal, elsewhere a line now and then, and every class's IoU per epoch."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from evitseg.cli.output import Output

if TYPE_CHECKING:
    from evitseg.evaluation.evaluate import Report
    from evitseg.train import Event

_LINE_EVERY_S = 30
"""Time between two lines of progress where no terminal shows a bar."""


@contextlib.contextmanager
def training_progress(output: Output) -> Iterator[Callable[[Event], None]]:
    """Yields: the function that `fit` calls after every step and epoch."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
    from rich.text import Text

    console = output.console
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn(
            "loss {task.fields[loss]:.3f}, rate {task.fields[rate]:.1e}, "
            "{task.fields[speed]:.1f} images/s{task.fields[miou]}"
        ),
    )
    started = printed = time.monotonic()
    first = -1  # the step that this process begins at
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        task = progress.add_task("training", total=None, loss=float("nan"), rate=0.0, speed=0.0, miou="")

        def say(line: str) -> None:
            nonlocal printed
            printed = time.monotonic()
            console.print(Text(line), soft_wrap=True)

        def watch(event: Event) -> None:
            nonlocal first
            first = event.step - 1 if first < 0 else first
            description = f"epoch {event.epoch}/{event.epochs}" if event.step else "before training"
            progress.update(
                task,
                total=event.steps,
                completed=event.step,
                description=description,
                loss=event.loss,
                rate=event.learning_rate,
                speed=event.images_per_s,
            )
            loss = f": loss {event.loss:.3f}" if event.step else ":"
            if event.report is not None:
                progress.update(task, miou=f", mIoU {100 * event.report.miou:.2f}")
                say(f"{description}{loss}{',' if event.step else ''} mIoU {100 * event.report.miou:.2f}")
                for row in _class_rows(event.report, console.width):
                    console.print(Text(row), soft_wrap=True)
            elif not console.is_terminal and (event.epoch_done or time.monotonic() - printed >= _LINE_EVERY_S):
                left = (time.monotonic() - started) / max(1, event.step - first) * (event.steps - event.step)
                say(f"{description}, step {event.step}/{event.steps}{loss}, {_duration(left)} left")

        yield watch


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02} min" if hours else f"{minutes} min {seconds:02} s"


def _class_rows(report: Report, width: int) -> list[str]:
    """The IoU of every class in percent, in as many columns as fit the terminal."""
    iou = report.to_dict()["iou"]
    longest = max(len(name) for name in iou)
    cells = [f"  {name:<{longest}} {'–' if v is None else f'{100 * v:.1f}':>5}" for name, v in iou.items()]
    columns = max(1, width // len(cells[0]))
    return ["".join(cells[at : at + columns]) for at in range(0, len(cells), columns)]
