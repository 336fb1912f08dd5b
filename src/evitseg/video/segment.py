"""Videos and live streams: frames in, and out again as a coloured video, a video of masks, or a PNG per frame.

FFmpeg, in PyAV, reads and writes.
"""

from __future__ import annotations

import contextlib
import statistics
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from fractions import Fraction
from os import PathLike
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np

from evitseg.errors import VideoError, unknown
from evitseg.raster.masks import mask_png
from evitseg.runtime.segmenter import Prediction, Segmenter
from evitseg.video.frames import frame_mask, new_frame, overlaid, rgb, upright, yuv, yuv_colors
from evitseg.video.legend import Legend
from evitseg.video.reader import Frame, VideoReader
from evitseg.video.sources import EXTENSIONS, VideoSource, check_address, is_stream, is_video, stream_name
from evitseg.video.writers import VIDEO_KINDS, WRITERS, FrameWriter, SegmentedFrame, VideoKind, is_result

__all__ = [
    "EXTENSIONS",
    "VIDEO_KINDS",
    "VideoKind",
    "VideoProgress",
    "VideoResult",
    "VideoSource",
    "check_address",
    "is_result",
    "is_stream",
    "is_video",
    "segment_video",
    "stream_name",
    "write_video",
]

_LATENCIES_KEPT = 100_000
_COUNT_EVERY = 4
"""Classes are counted on every fourth pixel of every fourth row."""


@dataclass(frozen=True)
class VideoProgress:
    """How far a video is.

    Attributes:
        frames: written.
        total: in the whole video, as its header says or its duration and rate suggest; None where neither is known, or
            was too little.
        dropped: of a live source, because newer ones had come.
        latency_ms: of a live source, of the last frame; see `VideoResult`.
    """

    frames: int
    total: int | None
    dropped: int
    latency_ms: float | None


@dataclass(frozen=True)
class VideoResult:
    """What was made of a video.

    Attributes:
        source: without password, where an address holds one.
        written: the file, or folder, of each kind.
        frames: written.
        duration_s: of what was written.
        fps: frames written a second of work.
        size: (height, width), upright.
        fractions: share of every class that occurs, over all frames, largest first.
        live: whether frames were dropped when newer ones had come.
        dropped: how many.
        latency_ms, p90_latency_ms: of a live source, from capture to written, median and 90th percentile. Capture is
            the frame's time stamp, on a clock set by the frame that came here soonest after its own.
        damage: a sentence where the source could not be read whole; what could is written.
        interrupted: whether an interrupt ended a live source.
    """

    source: str
    written: dict[VideoKind, Path]
    frames: int
    duration_s: float
    fps: float
    size: tuple[int, int]
    fractions: dict[str, float]
    live: bool
    dropped: int = 0
    latency_ms: float | None = None
    p90_latency_ms: float | None = None
    damage: str | None = None
    interrupted: bool = False

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        written = {kind: str(path) for kind, path in self.written.items()}
        return asdict(self) | {"written": written, "size": list(self.size)}


def segment_video(
    source: VideoSource,
    segment: Segmenter | None = None,
    *,
    live: bool | None = None,
    duration_s: float | None = None,
    workers: int = 2,
) -> Iterator[tuple[float, Prediction]]:
    """Every frame's time in seconds with its prediction, in order.

    Args:
        source: a file, "camera:0", or an address.
        segment: from `evitseg.load`; None for the bundled model.
        live: True gives always the newest frame and drops older ones; None does so for cameras and live streams.
        duration_s: ends after so many seconds of the video.
        workers: threads that segment; a live source has one, so that no frame waits for another.

    Raises: VideoError for what cannot be read, after the frames that could.
    """
    segment = segment or _bundled()
    with VideoReader(source, live, duration_s) as video:

        def work(frame: Frame) -> tuple[float, Prediction]:
            image = upright(frame.image, video.turn)
            mask = frame_mask(image, segment)
            return float(frame.time), Prediction(mask, rgb(image, image.height, image.width), segment.labels)

        yield from video.map_frames(work, workers)
        if video.damage is not None:
            raise VideoError(video.damage)


def write_video(
    source: VideoSource,
    stem: str | PathLike[str],
    segment: Segmenter | None = None,
    kinds: Sequence[VideoKind] = ("overlay",),
    *,
    live: bool | None = None,
    duration_s: float | None = None,
    workers: int = 2,
    legend: bool = False,
    progress: Callable[[VideoProgress], None] = lambda progress: None,
    file: str | PathLike[str] | None = None,
) -> VideoResult:
    """Segment a video into files.

    "overlay" is STEM_overlay.mp4 (.mov or .mkv where the audio needs it): every class in its colour, H.264, at the
    video's size, with its audio. "mask" is STEM_mask.mov: a PNG a frame, class indices with the classes' colours as
    palette, without loss. "frames" is the folder STEM_frames: the same PNGs as files, and their times in times.csv.
    Every frame keeps its time stamp.

    An interrupt ends a live source's files, whole; of another source nothing is left.

    Args:
        source, segment, live, duration_s, workers: as for `segment_video`.
        stem: the beginning of the results' names, with their folder.
        legend: list the classes' colours and names in a corner of the overlay, on top of the frames.
        progress: called after every frame.
        file: the name of the only kind's file, .mp4, .mov or .mkv, instead of one made of `stem`.

    Raises: VideoError for what cannot be read at all, FileError for places that cannot be written.
    """
    segment = segment or _bundled()
    for kind in kinds:
        if kind not in VIDEO_KINDS:
            raise unknown("kind of video", kind, VIDEO_KINDS)
    with (
        VideoReader(source, live, duration_s, "overlay" in kinds) as video,
        ThreadPoolExecutor(1, thread_name_prefix="evitseg-writer") as writing,
        contextlib.ExitStack() as stack,
    ):
        named = None if file is None else Path(file)
        writers: list[FrameWriter] = [
            stack.enter_context(WRITERS[kind](video, Path(stem), segment.labels, named)) for kind in kinds
        ]
        needs_png = any(kind != "overlay" for kind in kinds)
        colors = yuv_colors(segment.labels, new_frame(yuv(video.first), 2, 2)) if "overlay" in kinds else None
        names = Legend(segment.labels) if legend else None
        classes = len(segment.labels.classes)

        def work(frame: Frame) -> SegmentedFrame:
            image = upright(frame.image, video.turn)
            mask = frame_mask(image, segment)
            return SegmentedFrame(
                frame,
                drawn=overlaid(image, mask, colors) if colors is not None else None,
                png=mask_png(mask, segment.labels) if needs_png else b"",
                counts=np.bincount(mask[::_COUNT_EVERY, ::_COUNT_EVERY].ravel(), minlength=classes)[:classes],
            )

        frames, end, counts = 0, Fraction(0), np.zeros(classes, np.int64)
        written_at: deque[float] = deque(maxlen=_LATENCIES_KEPT)
        interrupted = False

        def record(done: SegmentedFrame) -> None:
            nonlocal frames, end, counts
            if names is not None and done.drawn is not None:
                names.draw(done.drawn, done.counts)
            for writer in writers:
                writer.write(done)
            frames, end = frames + 1, done.frame.time + done.frame.duration
            counts += done.counts
            if video.live:
                written_at.append(time.monotonic() - float(done.frame.time))

        began = time.monotonic()
        try:
            for done in video.map_frames(work, workers):
                _uninterrupted(writing, record, done)
                late = 1000 * (written_at[-1] - video.soonest) if written_at else None
                # Headers tell too little of files that were joined.
                total = video.total if video.total is None or frames <= video.total else None
                progress(VideoProgress(frames, total, video.dropped, late))
        except KeyboardInterrupt:
            if not video.live or frames == 0:
                raise
            interrupted = True
        took = time.monotonic() - began
        if frames == 0:
            raise VideoError(video.damage or f"{video.name}: no frame can be decoded.")
        _uninterrupted(writing, stack.close)
    late_ms = [1000 * (at - video.soonest) for at in written_at]
    pixels = max(1, int(counts.sum()))
    return VideoResult(
        source=video.name,
        written={kind: writer.path for kind, writer in zip(kinds, writers, strict=True)},
        frames=frames,
        duration_s=float(end),
        fps=frames / took,
        size=video.size,
        fractions={
            segment.labels.names[i]: float(counts[i] / pixels) for i in np.argsort(-counts, kind="stable") if counts[i]
        },
        live=video.live,
        dropped=video.dropped,
        latency_ms=statistics.median(late_ms) if late_ms else None,
        p90_latency_ms=float(np.percentile(late_ms, 90)) if late_ms else None,
        damage=video.damage,
        interrupted=interrupted,
    )


def _uninterrupted(thread: Executor, call: Callable[..., None], *arguments: object) -> None:
    """Make a call that an interrupt does not cut short, but follows: only the main thread is ever interrupted.

    Args:
        thread: of one worker.
    """
    done: Future[None] = Future()
    turn = Lock()

    def once() -> None:
        with turn:
            if done.done():  # an interrupt came while the call was handed over, so that it was handed over again
                return
            try:
                call(*arguments)
            except BaseException as error:
                done.set_exception(error)
            else:
                done.set_result(None)

    is_given, interrupt = False, None
    while True:
        try:
            if not is_given:
                thread.submit(once)
                is_given = True
            done.result()
            break
        except KeyboardInterrupt as error:
            interrupt = error
    if interrupt is not None:
        raise interrupt


def _bundled() -> Segmenter:
    from evitseg.loading import load

    return load()
