"""Progress on a terminal as bars, elsewhere as a line now and then."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

    from evitseg.video import VideoProgress

Advance = Callable[[int], None]

_FIRST_LINE_S, _LARGEST_PAUSE_S = 10.0, 300.0


def duration(seconds: float) -> str:
    """A time as a person says it: 40 s, 12 min, 3.5 h."""
    minutes = round(seconds / 60)
    if minutes < 2:
        return f"{round(seconds)} s"
    return f"{minutes} min" if minutes < 120 else f"{minutes / 60:.1f} h"


def progress_lines(what: str, unit: str, silent: bool) -> Callable[[int, int | None], None]:
    """A function that takes (done, total) and prints a line after ten seconds and then less and less often, on standard
    error; it prints nothing if `silent`, for instance because a terminal shows a bar."""
    started = time.monotonic()
    due = started + _FIRST_LINE_S

    def report(done: int, total: int | None) -> None:
        nonlocal due
        now = time.monotonic()
        if silent or now < due or not done:
            return
        elapsed = now - started
        due = now + min(_LARGEST_PAUSE_S, max(_FIRST_LINE_S, elapsed / 2))
        speed = done / elapsed
        line = f"{what}: {done}{'' if total is None else f' of {total}'} {unit}".rstrip()
        if total:
            line += f" ({done / total:.0%})"
        line += f", {speed:.2g} per second"
        if total is not None and done < total:
            line += f", about {duration((total - done) / speed)} left"
        print(line, file=sys.stderr, flush=True)

    return report


def counted_lines(what: str, total: int | None, unit: str, silent: bool) -> Advance:
    """`progress_lines` for a function that takes the number of units just done."""
    report, so_far = progress_lines(what, unit, silent), 0

    def advance(done: int) -> None:
        nonlocal so_far
        so_far += done
        report(so_far, total)

    return advance


@contextmanager
def progress_bar(what: str, total: int | None, console: Console, unit: str = "") -> Iterator[Advance]:
    """A bar that disappears when the work is done, or lines without a terminal.

    Args:
        unit: plural of what is counted, for the speed.

    Yields: a function that takes the number of units just done.
    """
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TaskProgressColumn,
        TextColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn(what),
        BarColumn(),
        MofNCompleteColumn(),
        TaskProgressColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[rate]}"),
    )
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task(what, total=total, rate="")
        report = counted_lines(what, total, unit, silent=console.is_terminal or console.quiet)

        def advance(done: int) -> None:
            report(done)
            progress.advance(task, done)
            speed = progress.tasks[task].speed
            if unit and speed:
                progress.update(task, rate=f"{speed:.1f} {unit}/s")

        yield advance


@contextmanager
def video_progress(name: str, console: Console) -> Iterator[Callable[[VideoProgress], None]]:
    """A bar, or lines without a terminal, for the frames of one video or live source."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[speed]}"))
    report = progress_lines(name, "frames", silent=console.is_terminal or console.quiet)
    with Progress(
        *columns, TimeRemainingColumn(), console=console, transient=True, disable=not console.is_terminal
    ) as progress:
        task = progress.add_task(name, total=None, speed="")

        def watch(now: VideoProgress) -> None:
            speed = f"{progress.tasks[0].speed or 0:.1f} frames/s"
            if now.latency_ms is not None:
                speed += f", {now.latency_ms:.0f} ms late, {now.dropped} dropped"
            progress.update(task, completed=now.frames, total=now.total, speed=speed)
            report(now.frames, now.total)

        yield watch
