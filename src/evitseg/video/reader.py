"""Open videos and live streams with FFmpeg (PyAV): frames with their times, audio, and damage."""

from __future__ import annotations

import math
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

from evitseg.errors import ConfigError, MissingPackageError, VideoError
from evitseg.image import MAX_PIXELS
from evitseg.system.parallel import ordered_map
from evitseg.video.frames import TRANSPOSED, rotation_of
from evitseg.video.sources import (
    CAMERAS,
    FILE_FORMATS,
    LIVE,
    PROTOCOLS,
    TIMEOUT_S,
    VideoSource,
    address_formats,
    check_address,
    is_stream,
    redacted,
)
from evitseg.video.times import Timeline, frame_rate

if TYPE_CHECKING:
    import av
    from av.container import InputContainer
    from av.video.frame import VideoFrame

T = TypeVar("T")


@dataclass(frozen=True)
class Frame:
    """A decoded frame.

    Attributes:
        time: seconds from the beginning of the video.
        duration: seconds until the next frame, from the source or else from the frame rate.
    """

    image: av.VideoFrame
    time: Fraction
    duration: Fraction


def checked_duration(duration_s: float) -> Fraction:
    """A duration as an exact fraction: 1/5 for 0.2. Raises: ConfigError unless it is positive and finite."""
    if not (math.isfinite(duration_s) and duration_s > 0):
        raise ConfigError(f"duration {duration_s} s must be a positive number of seconds.")
    return max(Fraction(1, 1_000_000), Fraction(duration_s).limit_denominator(1_000_000))


class VideoReader:
    """An open video or live stream.

    Attributes:
        name: the source without user, password and query, for messages.
        live: whether frames are dropped if newer ones have arrived.
        turn: flags that make the frames upright; see `rotation_of`.
        size: (height, width) of the upright frames.
        audio: packets that were read and wait for the overlay.
        damage: a sentence about the damage, set when the last readable frame has been read; None if there is none.
        clock_offset: smallest difference between a frame's arrival, in seconds of the monotonic clock, and its time.
    """

    def __init__(self, source: VideoSource, live: bool | None, duration_s: float | None, audio: bool = False) -> None:
        self.name = redacted(source)
        if not is_stream(str(source)) and not Path(source).exists():
            raise VideoError(f"{self.name}: no such file.")
        try:
            import av
        except ImportError as error:
            raise MissingPackageError("video", "video") from error
        self._av = av
        self._stop = threading.Event()
        self._reader: threading.Thread | None = None
        self._limit = None if duration_s is None else checked_duration(duration_s)
        self.audio: deque[av.Packet[Any]] = deque()
        self.damage: str | None = None
        self.dropped, self.clock_offset = 0, float("inf")
        self._corrupt = 0
        text = str(source)
        streams = is_stream(text)
        self._container = self._open(text, streams)
        try:
            cover = av.stream.Disposition.attached_pic
            videos = [s for s in self._container.streams.video if not s.disposition & cover]
            if not videos:
                raise VideoError(f"{self.name} has no video, only {self._kinds()}; give a video.")
            self.stream = videos[0]
            self.audio_streams = list(self._container.streams.audio) if audio else []
            declared = self._container.duration
            scheme = text.partition(":")[0].lower()
            self.live = (streams and (scheme in LIVE or "/" in scheme or declared is None)) if live is None else live
            self.declared_s = Fraction(declared, 1_000_000) if declared and not streams else None
            context = self.stream.codec_context
            self._check_size(context.width, context.height)
            # One thread, because the network needs the cores. Only very large frames would take it too long.
            context.thread_count = 1 if context.width * context.height <= 2**21 or self.live else 2
            self.rate = frame_rate(self.stream.average_rate, self.stream.guessed_rate)
            self.time_base = self.stream.time_base or Fraction(1, 90_000)
            self._times = Timeline(
                self.rate, self.time_base, self._container.format.name, self.live, bool(context.has_b_frames)
            )
            self._stored: tuple[int, int] | None = None
            self._ahead = self._decoded()
            first = next(self._ahead, None)
            if first is None:
                raise VideoError(self.damage or f"{self.name}: no frame can be decoded.")
            self._check_size(first.image.width, first.image.height)
        except BaseException:
            self._container.close()
            raise
        self._first, self.first = [first], first.image
        self._stored = (self.first.height, self.first.width)
        self.turn = rotation_of(self.first)
        self.size = self._stored[::-1] if self.turn & TRANSPOSED else self._stored

    def _open(self, text: str, stream: bool) -> InputContainer:
        av = self._av
        options: dict[str, str] = {}
        kind, name, wait = None, text, None
        if stream:
            wait = (TIMEOUT_S, TIMEOUT_S)
            check_address(text)
            scheme, _, rest = text.partition(":")
            scheme = scheme.lower()
            if scheme in LIVE or "/" in scheme:
                options = {
                    "fflags": "nobuffer"
                }  # for live sources only: it drops the packets that were read to find the format
            if scheme in PROTOCOLS:
                name = f"{scheme}:{rest}"  # FFmpeg expects lower case
                options |= {"protocol_whitelist": PROTOCOLS[scheme], "format_whitelist": address_formats(scheme)}
            if scheme in ("rtsp", "rtsps"):
                options["rtsp_flags"] = "prefer_tcp"  # UDP loses packets, and frames with them
            if scheme == "camera" or "/" in scheme:
                kind, pattern = CAMERAS.get(sys.platform, CAMERAS["linux"])
                name = pattern.format(rest) if scheme == "camera" else text
        else:
            path = Path(text)
            if path.is_dir():
                raise VideoError(f"{self.name} is a folder, not a video.")
            name = f"file:{path}"  # explicit, because a:b.mp4 would be taken for the protocol a
            options = {"format_whitelist": FILE_FORMATS, "protocol_whitelist": "file"}
        try:
            container: InputContainer = av.open(name, format=kind, options=options, timeout=wait)
            return container
        except (av.FFmpegError, OSError, ValueError) as error:
            if not stream and Path(text).is_file() and Path(text).stat().st_size == 0:
                raise VideoError(f"{self.name} is an empty file.") from error
            if not stream and isinstance(error, (av.error.InvalidDataError, av.error.ArgumentError)):
                raise VideoError(
                    f"{self.name}: not in a supported video format, or truncated before its index; "
                    "check that it plays, or convert it to MP4."
                ) from error
            if kind is not None and isinstance(error, FileNotFoundError):
                raise VideoError(f"{self.name}: no such camera; check that {name} is connected.") from error
            raise VideoError(f"{self.name}: cannot be opened ({reason_of(error)}).") from error

    def _kinds(self) -> str:
        return " and ".join(sorted({s.type for s in self._container.streams})) or "an empty container"

    def _check_size(self, width: int, height: int) -> None:
        if width * height > MAX_PIXELS:
            raise VideoError(
                f"{self.name}: frames of {width}×{height} have more than {MAX_PIXELS:,} pixels; shrink the video first."
            )

    def __enter__(self) -> VideoReader:
        return self

    def __exit__(self, *error: object) -> None:
        self._stop.set()
        if self._reader is not None:
            self._reader.join(TIMEOUT_S + 1)
            if self._reader.is_alive():
                return  # FFmpeg would crash if the container closed while it reads
        self._ahead.close()
        self._container.close()

    @property
    def total(self) -> int | None:
        """Expected number of frames; None if it is unknown."""
        if self.live or (self.declared_s is None and not self.stream.frames):
            return None
        frames = self.stream.frames or round((self.declared_s or 0) * self.rate)
        return frames if self._limit is None else min(frames, round(self._limit * self.rate))

    def map_frames(self, work: Callable[[Frame], T], workers: int) -> Iterator[T]:
        """Results of `work` in order, for every frame, or for live sources always for the newest frame."""
        if self.live:
            # One at a time: more would not be faster, and every frame would wait for another.
            yield from map(work, self._newest())
        else:
            yield from ordered_map(self._every(), work, workers)

    def _every(self) -> Iterator[Frame]:
        while self._first:
            yield self._first.pop()
        yield from self._ahead

    def place(self, packet: av.Packet[Any]) -> bool:
        """Shift a packet of audio to its time in the result. False if it lies outside of it."""
        assert packet.pts is not None
        assert packet.dts is not None
        ticks = round((self._times.offset or 0) / packet.time_base)
        packet.pts, packet.dts = packet.pts - ticks, packet.dts - ticks
        if self.live and packet.pts < 0:
            return False
        return self._limit is None or packet.pts * packet.time_base < self._limit

    def _newest(self) -> Iterator[Frame]:
        """The newest frame at each step; older ones are dropped and counted."""
        changed = threading.Condition()
        newest: list[Frame] = []
        ended: list[BaseException | None] = []

        def read() -> None:
            error = None
            try:
                for frame in self._every():
                    with changed:
                        self.dropped += len(newest)
                        newest[:] = [frame]
                        changed.notify()
                    if self._stop.is_set():
                        break
            except BaseException as raised:
                error = raised
            with changed:
                ended.append(error)
                changed.notify()

        self._reader = threading.Thread(target=read, name="evitseg-reader", daemon=True)
        self._reader.start()
        while True:
            with changed:
                while not newest and not ended:
                    changed.wait(0.5)  # a timeout, so that every system handles interrupts
                if not newest:
                    if ended[0] is not None:
                        raise ended[0]
                    return
                frame = newest.pop()
            yield frame

    def _decoded(self) -> Generator[Frame, None, None]:
        """Every frame in order. Collects audio in `audio`, and sets `damage` if reading ends early."""
        av = self._av
        known = [self.stream, *self.audio_streams]
        try:
            for packet in self._container.demux(*known):
                self._times.continued(packet, packet.stream is self.stream)
                if packet.stream is not self.stream:
                    waits = not self.live or self._times.offset is not None  # audio before the first frame is not used
                    if packet.dts is not None and packet.pts is not None and waits:
                        self.audio.append(packet)
                    continue
                try:
                    images = cast("list[VideoFrame]", packet.decode())
                except av.FFmpegError:
                    self._corrupt += 1
                    self._times.lost(packet)
                    continue
                for image in images:
                    frame = self._timed(image)
                    if not self._fits(image, frame):
                        return
                    if self._limit is not None and frame.time >= self._limit:
                        return
                    yield frame
        except av.FFmpegError as error:
            if self._stop.is_set():
                return
            silent = isinstance(error, av.error.ExitError)
            reason = f"no data for {TIMEOUT_S:.0f} s" if silent else reason_of(error)
            last_s = float(self._times.last or 0)
            self.damage = f"{self.name}: reading stopped at {last_s:.1f} s ({reason}); the result ends there."
            return
        if not self.live:
            self._look_for_damage()

    def _timed(self, image: av.VideoFrame) -> Frame:
        now = time.monotonic()
        at, duration = self._times.place(image)
        self.clock_offset = min(self.clock_offset, now - float(at))
        self._corrupt += bool(image.is_corrupt)
        return Frame(image, at, duration)

    def _fits(self, image: av.VideoFrame, frame: Frame) -> bool:
        """Whether a frame has the size of the ones before; otherwise sets `damage`."""
        if self._stored not in (None, (image.height, image.width)):
            height, width = self._stored or (0, 0)
            self.damage = (
                f"{self.name}: the frame size changes from {width}×{height} to {image.width}×{image.height} at "
                f"{float(frame.time):.1f} s, where the result ends; split the video there and process the rest "
                f"separately."
            )
            return False
        return True

    def _look_for_damage(self) -> None:
        # Some formats count the duration from the first frame, others from 0; `ended_at` counts from 0.
        read_s = self._times.ended_at
        declared_s = Fraction(0) if self._times.joined else self.declared_s or Fraction(0)
        if read_s < declared_s - max(Fraction(1, 2), declared_s / 50):
            self.damage = (
                f"{self.name}: truncated or damaged: it ends at {float(read_s):.1f} s of "
                f"{float(declared_s):.1f} s, and so does the result."
            )
        elif self._corrupt:
            frames = "one frame" if self._corrupt == 1 else f"{self._corrupt} frames"
            self.damage = f"{self.name}: damaged: {frames} could not be decoded completely."


def reason_of(error: BaseException) -> str:
    """FFmpeg's message without the name of the file."""
    return str(getattr(error, "strerror", None) or str(error) or type(error).__name__)[:200]
