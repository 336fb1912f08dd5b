"""Segment videos and live streams, and write the results as an overlay, a mask video, or one PNG per frame."""

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

import numpy as np

from evitseg.errors import VideoError, unknown
from evitseg.raster.png import mask_png
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
"""Classes are counted on one pixel in this many, in each direction."""


@dataclass(frozen=True)
class VideoProgress:
    """The progress of `write_video`.

    Attributes:
        frames: number of frames written.
        total: expected number of frames, from the header or the duration; None if it is unknown or turned out too
            small.
        dropped: frames of a live source that were skipped for newer ones.
        latency_ms: latency of the last frame of a live source; see `VideoResult`.
    """

    frames: int
    total: int | None
    dropped: int
    latency_ms: float | None


@dataclass(frozen=True)
class VideoResult:
    """The result of `write_video`.

    Attributes:
        source: the source, without user, password and query of an address.
        written: the file or folder of each kind.
        frames: number of frames written.
        duration_s: length of the result.
        fps: frames written per second of work.
        size: (height, width) of the upright frames.
        fractions: fraction of the pixels of every class that occurs, over all frames, largest first.
        live: whether the source was live, so that frames could be dropped.
        dropped: number of frames dropped.
        latency_ms, p90_latency_ms: time from capture to written frame of a live source, median and 90th percentile.
            Capture is the frame's time stamp, on a clock set by the frame that arrived with the least delay.
        damage: a sentence if the source could only be read in part; None otherwise.
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

    def to_dict(self) -> dict[str, object]:
        """A dictionary for JSON."""
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
    """The time in seconds and the prediction of every frame, in order.

    Args:
        source: a file, "camera:0", or an address such as "rtsp://host/path".
        segment: a model from `evitseg.load`; None uses the bundled one.
        live: True always continues with the newest frame and drops older ones; False segments every frame; None is True
            for cameras and live streams only.
        duration_s: stop after this many seconds of the video.
        workers: threads that segment. A live source uses one, so that no frame waits for another.

    Raises: VideoError if the source cannot be read; for a damaged one, after its readable frames.
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
    """Segment a video and write the results to files.

    "overlay" is STEM_overlay.mp4 (.mov or .mkv if the audio requires it): H.264 at the video's size, every class in its
    colour, with the video's audio. "mask" is STEM_mask.mov: one lossless PNG per frame, class indices with the classes'
    colours as palette. "frames" is the folder STEM_frames: the same PNGs as files, with their times in times.csv. Every
    frame keeps its time stamp.

    After an interrupt, the files of a live source are complete; those of other sources are removed.

    Args:
        source, segment, live, duration_s, workers: as for `segment_video`.
        stem: folder and beginning of the names of the results.
        kinds: the results to write.
        legend: draw the classes' colours and names in a corner of the overlay.
        progress: called after every frame.
        file: path of the result, .mp4, .mov or .mkv, in place of one made from `stem`; for a single kind only.

    Raises: VideoError if the source cannot be read at all, FileError if a file cannot be written.
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
                latency_ms = 1000 * (written_at[-1] - video.clock_offset) if written_at else None
                # The header of concatenated files describes only the first.
                total = video.total if video.total is None or frames <= video.total else None
                progress(VideoProgress(frames, total, video.dropped, latency_ms))
        except KeyboardInterrupt:
            if not video.live or frames == 0:
                raise
            interrupted = True
        took = time.monotonic() - began
        if frames == 0:
            raise VideoError(video.damage or f"{video.name}: no frame can be decoded.")
        _uninterrupted(writing, stack.close)
    latencies_ms = [1000 * (at - video.clock_offset) for at in written_at]
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
        latency_ms=statistics.median(latencies_ms) if latencies_ms else None,
        p90_latency_ms=float(np.percentile(latencies_ms, 90)) if latencies_ms else None,
        damage=video.damage,
        interrupted=interrupted,
    )


def _uninterrupted(thread: Executor, call: Callable[..., None], *arguments: object) -> None:
    """Make a call in another thread, and raise an interrupt only after it: Python interrupts the main thread only.

    Args:
        thread: an executor with one worker.
    """
    done: Future[None] = Future()
    turn = Lock()

    def once() -> None:
        with turn:
            if done.done():  # an interrupt during submit made the loop submit the call again
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
