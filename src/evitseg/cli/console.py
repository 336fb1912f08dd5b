"""Messages, progress bars and tables on the terminal."""

from __future__ import annotations

import contextlib
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import typer

from evitseg.errors import EvitsegError

if TYPE_CHECKING:
    from evitseg.labels import LabelSpace

FAILED = 1
"""Exit status beside 0, done, 2, a wrong command line, and 128 and a signal's number."""
_FIRST_LINE_S, _LARGEST_PAUSE_S = 10.0, 300.0


_debugging = False


def set_debugging(on: bool) -> None:
    """Whether `sentence_of` also prints tracebacks."""
    global _debugging
    _debugging = on


def complain(error: object) -> None:
    print(f"error: {error}", file=sys.stderr)


def fail(error: object) -> NoReturn:
    complain(error)
    raise typer.Exit(FAILED)


def note(sentence: str, as_json: bool) -> None:
    print(sentence, file=sys.stderr if as_json else sys.stdout)


def sentence_of(error: BaseException) -> str:
    """What went wrong, for a person; with --debug the traceback, too, on standard error."""
    if _debugging:
        traceback.print_exception(error, file=sys.stderr)
    if isinstance(error, EvitsegError):
        return str(error)
    if isinstance(error, MemoryError):
        return "not enough memory; free some, or give smaller images or tiles (--memory)."
    if isinstance(error, OSError) and error.strerror:
        where = "" if error.filename is None else f"{printable(error.filename)}: "
        return f"{where}cannot be read or written ({error.strerror})."
    what = (str(error).splitlines() or [""])[0][:300]
    return f"unexpected error ({type(error).__name__}: {what}); `evitseg --debug` shows where."


def printable(name: object) -> str:
    """A file's name, cut to a length that can be read."""
    text = name.decode(errors="replace") if isinstance(name, bytes) else str(name)
    return text if len(text) <= 200 else f"{Path(text[:200])}…"


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


def progress_lines(what: str, unit: str, console: Any) -> Callable[[int, int | None], None]:
    """Tells how far work is where no terminal shows a bar: a line on standard error after ten seconds, then rarer."""
    began = time.monotonic()
    due = began + _FIRST_LINE_S

    def tell(done: int, total: int | None) -> None:
        nonlocal due
        now = time.monotonic()
        if console.is_terminal or now < due or not done:
            return
        took = now - began
        due = now + min(_LARGEST_PAUSE_S, max(_FIRST_LINE_S, took / 2))
        speed = done / took
        text = f"{what}: {done}{'' if total is None else f' of {total}'} {unit}".rstrip() + f", {speed:.2g} per second"
        if total is not None and done < total:
            text += f", about {_duration((total - done) / speed)} left"
        print(text, file=sys.stderr, flush=True)

    return tell


def _duration(seconds: float) -> str:
    minutes = round(seconds / 60)
    if minutes < 2:
        return f"{round(seconds)} s"
    return f"{minutes} min" if minutes < 120 else f"{minutes / 60:.1f} h"


@contextlib.contextmanager
def progress_bar(
    what: str, total: int | None, console: Any, unit: str | None = None
) -> Iterator[Callable[[int], None]]:
    """A bar that is gone when the work is done, or a line now and then without a terminal; what it gives counts on.

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
        lines, so_far = progress_lines(what, unit or "", console), 0

        def advance(done: int) -> None:
            nonlocal so_far
            so_far += done
            lines(so_far, total)
            progress.advance(task, done)
            speed = progress.tasks[task].speed
            if unit and speed:
                progress.update(task, rate=f"{speed:.1f} {unit}/s")

        yield advance
