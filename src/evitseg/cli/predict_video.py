"""predict for videos and live sources."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from evitseg.cli.console import progress_lines, tell_fractions
from evitseg.cli.jobs import Job, check_free
from evitseg.cli.outcome import Outcome
from evitseg.cli.request import Request

if TYPE_CHECKING:
    from evitseg.runtime.segmenter import Segmenter


def predict_videos(segment: Segmenter, jobs: list[Job], request: Request, outcome: Outcome) -> None:
    """Write every video's results."""
    from rich.console import Console
    from rich.text import Text

    from evitseg.cli.signals import forget
    from evitseg.video import write_video

    console = Console(stderr=request.as_json, highlight=False)
    kinds: list[Any] = list(request.kinds)
    for i, job in enumerate(jobs):
        with outcome.attempt(job.source):
            check_free([path for kind in kinds for path in job.videos(kind)], request, job.source)
            with _progress(job.stem.name, console) as watch:
                result = write_video(
                    job.source,
                    job.stem,
                    segment,
                    kinds,
                    duration_s=request.duration,
                    workers=segment.info.streams,
                    legend=bool(request.legend),
                    watch=watch,
                    file=job.file,
                )
            left = len(jobs) - i - 1
            if result.interrupted and left:  # it is the whole run that was to end
                raise KeyboardInterrupt(f"interrupted; {left} of the videos are not done.")
            forget()
            if result.damage is not None:
                outcome.fail(job.source, result.damage)
            outcome.video(result.to_dict())
            if request.as_json:
                continue
            done = f"{result.frames} frames, {result.duration_s:.1f} s, {result.fps:.1f} frames a second"
            if result.live:
                done += (
                    f"; {result.dropped} dropped; from capture to written {result.latency_ms:.0f} ms, "
                    f"90th percentile {result.p90_latency_ms:.0f} ms"
                )
            height, width = result.size
            tell_fractions(console, f"{job.stem.name}, {width}×{height}: {done}", result.fractions, segment.labels)
            for path in result.written.values():
                console.print(Text(f"wrote {path}"), soft_wrap=True)


@contextlib.contextmanager
def _progress(name: str, console: Any) -> Iterator[Callable[[Any], None]]:
    """A bar that is gone when the work is done, or lines without a terminal; what it gives takes a video's progress."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[speed]}"))
    lines = progress_lines(name, "frames", console)
    with Progress(
        *columns, TimeRemainingColumn(), console=console, transient=True, disable=not console.is_terminal
    ) as progress:
        task = progress.add_task(name, total=None, speed="")

        def watch(now: Any) -> None:
            speed = f"{progress.tasks[0].speed or 0:.1f} frames/s"
            if now.latency_ms is not None:
                speed += f", {now.latency_ms:.0f} ms late, {now.dropped} dropped"
            progress.update(task, completed=now.frames, total=now.total, speed=speed)
            lines(now.frames, now.total)

        yield watch
