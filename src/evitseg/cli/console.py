"""Messages, progress bars and tables on the terminal."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, NoReturn

import typer

if TYPE_CHECKING:
    from evitseg.labels import LabelSpace

FAILED, INTERRUPTED = 1, 130
"""Exit statuses beside 0, done, and 2, a wrong command line."""


def complain(error: object) -> None:
    print(f"error: {error}", file=sys.stderr)


def fail(error: object) -> NoReturn:
    complain(error)
    raise typer.Exit(FAILED)


def note(sentence: str, as_json: bool) -> None:
    print(sentence, file=sys.stderr if as_json else sys.stdout)


def tell_fractions(console: Any, title: str, fractions: dict[str, float], labels: LabelSpace) -> None:
    from rich.table import Table
    from rich.text import Text

    colors = {c.name: c.color for c in labels.classes}
    console.print(Text(title, style="italic"), soft_wrap=True)
    table = Table(box=None, padding=(0, 1))
    for name, kind in (("class", "left"), ("share", "right"), ("", "left")):
        table.add_column(name, justify=kind)  # type: ignore[arg-type]  # rich's Literal, widened by the loop
    for name, share in fractions.items():
        bar = Text("█" * max(1, round(40 * share)), style=f"rgb({','.join(map(str, colors[name]))})")
        table.add_row(Text(name), f"{share:.1%}", bar)
    console.print(table)


@contextlib.contextmanager
def progress_bar(
    what: str, total: int | None, console: Any, unit: str | None = None
) -> Iterator[Callable[[int], None]]:
    """A bar that is gone when the work is done; what it gives counts on.

    Args:
        unit: of what is counted, to tell how many a second.
    """
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn(what),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[rate]}"),
    )
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task(what, total=total, rate="")

        def advance(done: int) -> None:
            progress.advance(task, done)
            speed = progress.tasks[task].speed
            if unit and speed:
                progress.update(task, rate=f"{speed:.1f} {unit}/s")

        yield advance
