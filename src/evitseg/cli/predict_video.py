"""predict for videos and live sources."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from evitseg.cli.failures import Interrupted
from evitseg.cli.jobs import PredictJob
from evitseg.cli.names import check_free
from evitseg.cli.outcome import Outcome
from evitseg.cli.progress import video_progress
from evitseg.cli.request import Request

if TYPE_CHECKING:
    from evitseg.runtime.segmenter import Segmenter
    from evitseg.video import VideoResult


def predict_videos(segment: Segmenter, jobs: list[PredictJob], request: Request, outcome: Outcome) -> None:
    """Write the results of every video."""
    from evitseg.cli.signals import forget
    from evitseg.video import write_video

    output = outcome.output
    kinds: list[Any] = list(request.kinds)
    for i, job in enumerate(jobs):
        with outcome.attempt(job.source):
            check_free([path for kind in kinds for path in job.videos(kind)], request, job.source)
            with video_progress(job.stem.name, output.progress_console) as watch:
                result = write_video(
                    job.source,
                    job.stem,
                    segment,
                    kinds,
                    duration_s=request.duration,
                    workers=segment.info.streams,
                    legend=bool(request.legend),
                    progress=watch,
                    file=job.file,
                )
            left = len(jobs) - i - 1
            if result.interrupted and left:  # the interrupt was for the whole command
                raise Interrupted(f"interrupted; {left} {'videos are' if left > 1 else 'video is'} not segmented.")
            forget()
            if result.damage is not None:
                outcome.fail(job.source, result.damage)
            outcome.video(result)
            height, width = result.size
            title = f"{job.stem.name}, {width}×{height}: {_speed(result)}"
            output.fractions(title, result.fractions, segment.labels)
            for path in result.written.values():
                output.result(f"wrote {path}")


def _speed(result: VideoResult) -> str:
    speed = f"{result.frames} frames, {result.duration_s:.1f} s, {result.fps:.1f} frames per second"
    if result.live:
        speed += (
            f"; {result.dropped} dropped; latency from capture to file {result.latency_ms:.0f} ms, 90th percentile "
            f"{result.p90_latency_ms:.0f} ms"
        )
    return speed
