"""Videos and live streams: frames in, and out again as a coloured video, a video of masks, or a PNG a frame.

FFmpeg, in PyAV, reads and writes. Of a frame in YUV it makes the network's input in one pass, colours and size
together, and the overlay is blended in YUV, so that no full-size RGB picture is made on the way.
"""

from __future__ import annotations

import contextlib
import re
import shutil
import statistics
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import asdict, dataclass
from fractions import Fraction
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast
from urllib.parse import urlsplit

import numpy as np
from numpy.typing import NDArray

from evitseg.errors import FileError, MissingPackageError, VideoError, unknown
from evitseg.files import replacing, temporary_name
from evitseg.image import MAX_PIXELS, OPACITY, Mask, Picture, mask_png
from evitseg.labels import LabelSpace
from evitseg.runtime.overlap import overlapped
from evitseg.runtime.segmenter import Prediction, Segmenter
from evitseg.runtime.upsample import argmax_upsampled

if TYPE_CHECKING:
    import av
    from av.container import InputContainer, OutputContainer
    from av.video.frame import VideoFrame
    from av.video.stream import VideoStream

EXTENSIONS = frozenset(
    {".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".mpg", ".mpeg", ".m2v", ".ts", ".mts", ".m2ts", ".wmv", ".asf"}
    | {".flv", ".f4v", ".ogv", ".3gp", ".mxf", ".vob", ".dv", ".y4m", ".h264", ".hevc"}
)
"""By which a video is known among other files."""
_FORMATS = (
    "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpeg,mpegts,mpegvideo,m4v,h264,hevc,av1,ivf,obu,asf,flv,ogg,mxf,nut,"
    "gif,apng,dv,wtv,yuv4mpegpipe,mjpeg,rm,swf,vc1,live_flv"
)
"""What a file may be inside: no play lists and scripts, which would have FFmpeg open whatever they name."""
_LIVE = ("camera", "rtsp", "rtsps", "rtmp", "rtmps", "rtp", "udp", "tcp", "srt", "mms", "mmsh")
"""Schemes of sources that do not wait for a slow reader; http is live where it says no duration."""
_CAMERAS = {
    #        format          name of camera n
    "linux": ("v4l2", "/dev/video{}"),
    "darwin": ("avfoundation", "{}:none"),
    "win32": ("dshow", "video={}"),
}
_TIMEOUT_S = 10.0
"""How long a network or a camera may be silent."""

Kind = Literal["overlay", "mask", "frames"]
KINDS: tuple[Kind, ...] = ("overlay", "mask", "frames")
AUDIO_IN = {
    ".mp4": {"aac", "mp3", "ac3", "eac3", "alac", "opus"},
    ".mov": {"pcm_s16le", "pcm_s16be", "pcm_s24le", "pcm_s24be", "pcm_s32le", "pcm_u8", "pcm_mulaw", "pcm_alaw"},
}
"""Audio that players find in such a file; a video with any other becomes .mkv, which holds everything."""
_CONTAINERS = {".mp4": "mp4", ".mov": "mov", ".mkv": "matroska"}
FRAMES_ENDING, TIMES_FILE = "_frames", "times.csv"
RESULT_ENDINGS = ("_mask.mov", *(f"_overlay{ending}" for ending in _CONTAINERS))
ENCODERS: dict[str, dict[str, str]] = {
    "libx264": {"preset": "ultrafast", "qp": "23"},  # qp, not crf, which looks ahead and takes a quarter more time
    "mpeg4": {"flags": "+qscale", "global_quality": "354"},  # a quantiser of 3
}
"""For overlays: the first that FFmpeg was built with. `benchmarks/video.py` compares the presets."""
_LATENCIES_KEPT = 100_000
_COUNT_EVERY = 4
"""Classes are counted on every fourth pixel of every fourth row."""

Source = str | PathLike[str]
"""A file; "camera:0"; or an address such as "rtsp://host/path"."""


@dataclass(frozen=True)
class Progress:
    """How far a video is.

    Attributes:
        frames: written.
        total: in the whole video, as its header says or its duration and rate suggest; None where neither is known.
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
    """

    source: str
    written: dict[Kind, Path]
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

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        written = {kind: str(path) for kind, path in self.written.items()}
        return asdict(self) | {"written": written, "size": list(self.size)}


def is_stream(source: str) -> bool:
    """Whether this names a camera or an address, not a file."""
    return bool(re.match(r"[a-z][a-z0-9+.-]*://|camera:", source)) or re.fullmatch(r"/dev/video\d+", source) is not None


def is_video(path: Path) -> bool:
    """Whether this file is taken for a video: by its ending, or because it is a named pipe."""
    return path.suffix.lower() in EXTENSIONS or path.is_fifo()


def is_result(path: Path) -> bool:
    """Whether this is the name of a file that `write_video` wrote."""
    return path.name.endswith(RESULT_ENDINGS) or (
        path.parent.name.endswith(FRAMES_ENDING) and (path.parent / TIMES_FILE).exists()
    )


def stream_name(source: str) -> str:
    """What the results of a stream are called; without the password that an address may hold."""
    parts = urlsplit(_told(source))
    name = re.sub(r"[^\w.-]+", "_", parts.netloc + parts.path if parts.netloc else source).strip("._")
    return name[:80] or "stream"


def _told(source: Source) -> str:
    """A source as it may be printed: an address without user, password and query, which may hold a key."""
    text = str(source)
    if "://" not in text:
        return text
    parts = urlsplit(text)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2], query="", fragment="").geturl()


def segment_video(
    source: Source,
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
    with _Video(source, live, duration_s) as video:

        def work(frame: _Frame) -> tuple[float, Prediction]:
            image = _upright(frame.image, video.turn)
            mask = _mask(image, segment)
            return float(frame.time), Prediction(mask, _rgb(image, image.height, image.width), segment.labels)

        yield from video.through(work, workers)
        if video.damage is not None:
            raise VideoError(video.damage)


def write_video(
    source: Source,
    stem: str | PathLike[str],
    segment: Segmenter | None = None,
    kinds: Sequence[Kind] = ("overlay",),
    *,
    live: bool | None = None,
    duration_s: float | None = None,
    workers: int = 2,
    watch: Callable[[Progress], None] = lambda progress: None,
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
        watch: called after every frame.

    Raises: VideoError for what cannot be read at all, FileError for places that cannot be written.
    """
    segment = segment or _bundled()
    for kind in kinds:
        if kind not in KINDS:
            raise unknown("kind of video", kind, KINDS)
    with _Video(source, live, duration_s, "overlay" in kinds) as video, contextlib.ExitStack() as stack:
        sinks: list[_Sink] = [stack.enter_context(_SINKS[kind](video, Path(stem), segment.labels)) for kind in kinds]
        needs_png = any(kind != "overlay" for kind in kinds)
        colors = _yuv_colors(segment.labels, _new_frame(_yuv(video.first), 2, 2)) if "overlay" in kinds else None
        classes = len(segment.labels.classes)

        def work(frame: _Frame) -> _Done:
            image = _upright(frame.image, video.turn)
            mask = _mask(image, segment)
            return _Done(
                frame,
                drawn=_drawn(image, mask, colors) if colors is not None else None,
                png=mask_png(mask, segment.labels) if needs_png else b"",
                counts=np.bincount(mask[::_COUNT_EVERY, ::_COUNT_EVERY].ravel(), minlength=classes)[:classes],
            )

        frames, end, counts = 0, Fraction(0), np.zeros(classes, np.int64)
        written_at: deque[float] = deque(maxlen=_LATENCIES_KEPT)
        began = time.monotonic()
        with contextlib.suppress(KeyboardInterrupt) if video.live else contextlib.nullcontext():
            for done in video.through(work, workers):
                for sink in sinks:
                    sink.write(done)
                frames, end = frames + 1, done.frame.time + done.frame.duration
                counts += done.counts
                if video.live:
                    written_at.append(time.monotonic() - float(done.frame.time))
                late = 1000 * (written_at[-1] - video.soonest) if written_at else None
                watch(Progress(frames, video.total, video.dropped, late))
        took = time.monotonic() - began
        if frames == 0:
            raise VideoError(video.damage or f"{video.name}: no frame can be decoded.")
    late_ms = sorted(1000 * (at - video.soonest) for at in written_at)
    total = max(1, int(counts.sum()))
    return VideoResult(
        source=video.name,
        written={kind: sink.path for kind, sink in zip(kinds, sinks, strict=True)},
        frames=frames,
        duration_s=float(end),
        fps=frames / took,
        size=video.size,
        fractions={
            segment.labels.names[i]: float(counts[i] / total) for i in np.argsort(-counts, kind="stable") if counts[i]
        },
        live=video.live,
        dropped=video.dropped,
        latency_ms=statistics.median(late_ms) if late_ms else None,
        p90_latency_ms=late_ms[int(0.9 * (len(late_ms) - 1))] if late_ms else None,
        damage=video.damage,
    )


def _bundled() -> Segmenter:
    from evitseg.loading import load

    return load()


@dataclass(frozen=True)
class _Frame:
    """A decoded frame.

    Attributes:
        time: seconds from the video's beginning.
        duration: seconds it is shown, as the source says; 0 where it does not.
    """

    image: av.VideoFrame
    time: Fraction
    duration: Fraction


@dataclass(frozen=True)
class _Done:
    """A frame after its work."""

    frame: _Frame
    drawn: av.VideoFrame | None
    png: bytes
    counts: NDArray[np.intp]


class _Video:
    """A source, opened.

    Attributes:
        name: as it may be told.
        live: frames that nobody took in time are dropped.
        turn: what makes its frames upright, an index of `_TURNS`.
        size: (height, width), upright.
        audio: packets read and not yet written, which the overlay takes.
        damage: set at the end, where not everything could be read.
        soonest: the least that a frame came after its own time, in seconds of the monotonic clock.
    """

    def __init__(self, source: Source, live: bool | None, duration_s: float | None, audio: bool = False) -> None:
        try:
            import av
        except ImportError as error:
            raise MissingPackageError("video", "video") from error
        self._av = av
        self.name = _told(source)
        self._stop = threading.Event()
        self._reader: threading.Thread | None = None
        self._limit = None if duration_s is None else Fraction(duration_s)
        self.audio: deque[av.Packet[Any]] = deque()
        self.damage: str | None = None
        self.dropped, self.soonest = 0, float("inf")
        self._corrupt, self._ended_at, self._last = 0, Fraction(0), Fraction(-1)
        text = str(source)
        streams = is_stream(text)
        self._container = self._open(text, streams)
        try:
            cover = av.stream.Disposition.attached_pic
            videos = [s for s in self._container.streams.video if not s.disposition & cover]
            if not videos:
                raise VideoError(f"{self.name}: has no video, only {self._kinds()}; give a video.")
            self.stream = videos[0]
            self.audio_streams = list(self._container.streams.audio) if audio else []
            declared = self._container.duration
            scheme = text.partition(":")[0]
            self.live = (streams and (scheme in _LIVE or "/" in scheme or declared is None)) if live is None else live
            self.declared_s = Fraction(declared, 1_000_000) if declared and not streams else None
            context = self.stream.codec_context
            self._check_size(context.width, context.height)
            # One thread: it decodes beside the network, which has the cores. A very large picture takes it too long.
            context.thread_count = 1 if context.width * context.height <= 2**21 or self.live else 2
            self.rate = self.stream.average_rate or self.stream.guessed_rate or Fraction(25)
            self.time_base = self.stream.time_base or Fraction(1, 90_000)
            start = self._container.start_time
            # In whole ticks, so that no frame's time is rounded.
            ticks = round(Fraction(max(0, start or 0), 1_000_000) / self.time_base)
            self._offset = None if self.live else ticks * self.time_base
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
        self.turn = _turn(self.first)
        self.size = self._stored[::-1] if self.turn & _TRANSPOSED else self._stored

    def _open(self, text: str, stream: bool) -> InputContainer:
        av = self._av
        options: dict[str, str] = {}
        kind, name, wait = None, text, None
        if stream:
            wait = (_TIMEOUT_S, _TIMEOUT_S)
            scheme, _, rest = text.partition(":")
            options = {"fflags": "nobuffer"}
            if scheme in ("rtsp", "rtsps"):
                options["rtsp_flags"] = "prefer_tcp"  # over UDP packets are lost, and pictures with them
            if scheme == "camera" or "/" in scheme:
                kind, pattern = _CAMERAS.get(sys.platform, _CAMERAS["linux"])
                name = pattern.format(rest) if scheme == "camera" else text
        else:
            path = Path(text)
            if not path.exists():
                raise VideoError(f"{self.name}: no such file.")
            if path.is_dir():
                raise VideoError(f"{self.name}: a folder, not a video.")
            name = f"file:{path}"  # said, because a:b.mp4 would be taken for the protocol a
            options = {"format_whitelist": _FORMATS, "protocol_whitelist": "file"}
        try:
            container: InputContainer = av.open(name, format=kind, options=options, timeout=wait)
            return container
        except (av.FFmpegError, OSError, ValueError) as error:
            if not stream and Path(text).is_file() and Path(text).stat().st_size == 0:
                raise VideoError(f"{self.name}: an empty file.") from error
            if not stream and isinstance(error, av.error.InvalidDataError):
                raise VideoError(
                    f"{self.name}: not a video in a format that can be read, or cut off before its index; "
                    "play it, or convert it to MP4, first."
                ) from error
            raise VideoError(f"{self.name}: cannot be opened ({_reason(error)}).") from error

    def _kinds(self) -> str:
        return " and ".join(sorted({s.type for s in self._container.streams})) or "an empty container"

    def _check_size(self, width: int, height: int) -> None:
        if width * height > MAX_PIXELS:
            raise VideoError(f"{self.name}: frames of {width}×{height} are more than {MAX_PIXELS:,} pixels.")

    def __enter__(self) -> _Video:
        return self

    def __exit__(self, *error: object) -> None:
        self._stop.set()
        if self._reader is not None:
            self._reader.join(_TIMEOUT_S + 1)
            if self._reader.is_alive():
                return  # it still reads: closed under it, FFmpeg would crash
        self._ahead.close()
        self._container.close()

    @property
    def total(self) -> int | None:
        """How many frames there will be, if that is known."""
        if self.live or (self.declared_s is None and not self.stream.frames):
            return None
        frames = self.stream.frames or round((self.declared_s or 0) * self.rate)
        return frames if self._limit is None else min(frames, round(self._limit * self.rate))

    def through(self, work: Callable[[_Frame], Any], workers: int) -> Iterator[Any]:
        """The work's results, in order: of every frame, or of those that were the newest when work began."""
        if self.live:
            # One at a time: with several under way the network would be no faster, and every frame would wait.
            yield from map(work, self._newest())
        else:
            yield from overlapped(self._every(), work, workers)

    def _every(self) -> Iterator[_Frame]:
        while self._first:
            yield self._first.pop()
        yield from self._ahead

    def place(self, packet: av.Packet[Any]) -> bool:
        """Move a packet of audio to its time in the result; False if it lies outside."""
        assert self._offset is not None
        assert packet.pts is not None
        assert packet.dts is not None
        ticks = round(self._offset / packet.time_base)
        packet.pts, packet.dts = packet.pts - ticks, packet.dts - ticks
        if self.live and packet.pts < 0:
            return False
        return self._limit is None or packet.pts * packet.time_base < self._limit

    def _newest(self) -> Iterator[_Frame]:
        """Always the newest frame that has come; older ones are dropped, and counted."""
        changed = threading.Condition()
        newest: list[_Frame] = []
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
                    changed.wait(0.5)  # with a limit, so that an interrupt is seen on every system
                if not newest:
                    if ended[0] is not None:
                        raise ended[0]
                    return
                frame = newest.pop()
            yield frame

    def _decoded(self) -> Generator[_Frame, None, None]:
        """Every frame as it is read; audio goes to `audio`. Sets `damage` where reading ends early."""
        av = self._av
        known = [self.stream, *self.audio_streams]
        try:
            for packet in self._container.demux(*known):
                if packet.pts is not None and packet.time_base is not None:
                    self._ended_at = max(self._ended_at, (packet.pts + (packet.duration or 0)) * packet.time_base)
                if packet.stream is not self.stream:
                    if packet.dts is not None and packet.pts is not None and self._offset is not None:
                        self.audio.append(packet)
                    continue
                try:
                    images = cast("list[VideoFrame]", packet.decode())
                except av.FFmpegError:
                    self._corrupt += 1
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
            reason = f"nothing came for {_TIMEOUT_S:.0f} s" if silent else _reason(error)
            self.damage = f"{self.name}: could not be read further than {float(self._last):.1f} s ({reason})."
            return
        if not self.live:
            self._look_for_damage()

    def _timed(self, image: av.VideoFrame) -> _Frame:
        base = image.time_base or self.time_base
        now = time.monotonic()
        if image.pts is not None:
            at = image.pts * base
        elif self.live:
            at = Fraction(now).limit_denominator(90_000)
        else:
            at = self._last + (self._offset or 0) + 1 / self.rate
        if self._offset is None:
            self._offset = at
        self.soonest = min(self.soonest, now - float(at - self._offset))
        self._corrupt += bool(image.is_corrupt)
        at = at - self._offset
        if at <= self._last:  # stamps that stand still or go back, which no file can have
            at = self._last + self.time_base
        return _Frame(image, at, (image.duration or 0) * base)

    def _fits(self, image: av.VideoFrame, frame: _Frame) -> bool:
        """Whether a frame can follow the ones before."""
        if self._stored not in (None, (image.height, image.width)):
            height, width = self._stored or (0, 0)
            self.damage = (
                f"{self.name}: the picture changes from {width}×{height} to {image.width}×{image.height} at "
                f"{float(frame.time):.1f} s; up to there it is done; cut the video there, and do the rest by itself."
            )
            return False
        self._last = frame.time
        return True

    def _look_for_damage(self) -> None:
        offset = self._offset or Fraction(0)
        if self.declared_s is not None and self._ended_at - offset < self.declared_s - max(
            Fraction(1, 2), self.declared_s / 50
        ):
            self.damage = (
                f"{self.name}: damaged or cut off: it ends at {float(self._ended_at - offset):.1f} s of "
                f"{float(self.declared_s):.1f} s; up to there it is done."
            )
        elif self._corrupt:
            self.damage = f"{self.name}: damaged: {self._corrupt} frames could not be decoded, or not whole."


def _reason(error: BaseException) -> str:
    """What FFmpeg says, without the name of the file."""
    return str(getattr(error, "strerror", None) or str(error) or type(error).__name__)[:200]


# Pixels of a frame.


def _rgb(image: av.VideoFrame, height: int, width: int) -> Picture:
    """A frame as (height, width, 3) RGB; where it shrinks, pixels are averaged, as for pictures."""
    # First the size, then the colours: half the time of both in one pass, and nearer to what Pillow gives.
    sized = image.reformat(width=width, height=height, threads=1)
    rgb = sized.reformat(format="rgb24", threads=1)
    return np.ascontiguousarray(_rows(rgb, 0)[:, : 3 * width]).reshape(height, width, 3)


def _mask(image: av.VideoFrame, segment: Segmenter) -> Mask:
    """As `Segmenter.mask`, but for the resampling, which is FFmpeg's."""
    size = (image.height, image.width)
    network_input = _rgb(image, *segment.manifest.preprocess.fit(size, segment.size))
    return argmax_upsampled(segment.engine(network_input[None])[0], size)


_TRANSPOSED, _ROWS_BACK, _COLUMNS_BACK = 4, 2, 1


def _turn(image: av.VideoFrame) -> int:
    """What makes a frame upright, as its display matrix says: a sum of the flags above, applied in their order."""
    found: Any = image.side_data.get("DISPLAYMATRIX")
    if found is None:
        return 0
    numbers: list[int] = np.frombuffer(bytes(found), np.int32).tolist()
    a, b, _, c, d, *_ = numbers
    # A stored pixel (x, y) is shown at (a x + c y, b x + d y).
    if abs(a) >= abs(b):
        return _COLUMNS_BACK * (a < 0) + _ROWS_BACK * (d < 0)
    return _TRANSPOSED + _COLUMNS_BACK * (c < 0) + _ROWS_BACK * (b < 0)


def _upright(image: av.VideoFrame, turn: int) -> av.VideoFrame:
    if not turn:
        return image
    image = _yuv(image)
    size = (image.width, image.height) if turn & _TRANSPOSED else (image.height, image.width)
    turned = _new_frame(image, *size)
    for i in range(3):
        plane = _plane(image, i)
        plane = plane.T if turn & _TRANSPOSED else plane
        plane = plane[::-1] if turn & _ROWS_BACK else plane
        _plane(turned, i)[:] = plane[:, ::-1] if turn & _COLUMNS_BACK else plane
    return turned


_PLANAR = ("yuv420p", "yuvj420p")


def _yuv(image: av.VideoFrame) -> av.VideoFrame:
    """A frame as three planes of 8 bits, the two of colour at half size."""
    if image.format.name in _PLANAR:
        return image
    rgb = {"dst_colorspace": _BT601} if image.format.is_rgb else {}
    converted = image.reformat(format="yuv420p", dst_color_range=_LIMITED, threads=1, **rgb)
    converted.color_range = _LIMITED
    return converted


def _new_frame(like: av.VideoFrame, height: int, width: int) -> av.VideoFrame:
    import av

    frame = av.VideoFrame(width, height, "yuv420p")
    full = like.format.name == "yuvj420p" or like.color_range == _FULL
    frame.color_range = _FULL if full else _LIMITED
    frame.colorspace, frame.color_primaries, frame.color_trc = like.colorspace, like.color_primaries, like.color_trc
    return frame


def _plane(image: av.VideoFrame, i: int) -> NDArray[np.uint8]:
    plane = image.planes[i]
    return _rows(image, i)[: plane.height, : plane.width]


def _rows(image: av.VideoFrame, i: int) -> NDArray[np.uint8]:
    """A plane's own memory, with what follows every line."""
    plane = image.planes[i]
    return np.frombuffer(memoryview(plane), np.uint8).reshape(-1, plane.line_size)


_LIMITED, _FULL = 1, 2  # FFmpeg's numbers of colour ranges and, below, colour spaces
_BT601 = 5
_LUMA = {1: (0.2126, 0.0722), 7: (0.212, 0.087), 9: (0.2627, 0.0593), 10: (0.2627, 0.0593)}
"""Shares of red and blue in the brightness, by FFmpeg's number of the colour space; BT.601 for all others."""


@dataclass(frozen=True)
class _Colors:
    """The classes' colours for blending: (classes,) values of each plane, times the opacity in 256ths."""

    planes: tuple[NDArray[np.uint16], ...]
    rest: int
    """What is left of the picture, in 256ths."""


def _yuv_colors(labels: LabelSpace, like: av.VideoFrame) -> _Colors:
    rgb = np.array([c.color for c in labels.classes], np.float64)
    red, blue = _LUMA.get(like.colorspace, (0.299, 0.114))
    y = rgb @ (red, 1 - red - blue, blue)
    u, v = (rgb[:, 2] - y) / (2 - 2 * blue), (rgb[:, 0] - y) / (2 - 2 * red)
    if like.color_range != _FULL:
        y, u, v = 16 + y * 219 / 255, u * 224 / 255, v * 224 / 255
    opacity = round(256 * OPACITY)
    planes = tuple((opacity * plane + 128).astype(np.uint16) for plane in (y, u + 128, v + 128))  # 128: to round
    return _Colors(planes, 256 - opacity)


def _drawn(image: av.VideoFrame, mask: Mask, colors: _Colors) -> av.VideoFrame:
    """The frame in the classes' colours; an odd side gets one pixel more, its last once again, for H.264."""
    image = _yuv(image)
    height, width = mask.shape
    drawn = _new_frame(image, height + height % 2, width + width % 2)
    for i, table in enumerate(colors.planes):
        blended = np.multiply(_plane(image, i), colors.rest, dtype=np.uint16)
        blended += np.take(table, mask[::2, ::2] if i else mask, mode="clip")  # clip: no look for bad indices
        blended >>= 8
        into, (h, w) = _plane(drawn, i), blended.shape
        into[:h, :w] = blended
        into[h:], into[:, w:] = into[h - 1 : h], into[:, w - 1 : w]
    return drawn


# Files that are written.


@dataclass(frozen=True)
class _Sink:
    path: Path
    write: Callable[[_Done], None]


@contextlib.contextmanager
def _container(path: Path) -> Iterator[OutputContainer]:
    import av

    with replacing(path) as file:
        try:
            with av.open(file, "w", format=_CONTAINERS[path.suffix]) as container:
                yield container
        except av.FFmpegError as error:
            raise VideoError(f"{path}: cannot be written ({_reason(error)}).") from error


@contextlib.contextmanager
def _overlay_sink(video: _Video, stem: Path, labels: LabelSpace) -> Iterator[_Sink]:
    import av

    codecs = {stream.codec_context.name for stream in video.audio_streams}
    ending = next((ending for ending, able in AUDIO_IN.items() if codecs <= able), ".mkv")
    encoder = next((name for name in ENCODERS if name in av.codecs_available), None)
    if encoder is None:
        raise VideoError(f"this FFmpeg can write neither of {', '.join(ENCODERS)}; install PyAV from its own wheels.")
    path = stem.with_name(f"{stem.name}_overlay{ending}")
    with _container(path) as container:
        options = ENCODERS[encoder] | ({"tune": "zerolatency"} if video.live and encoder == "libx264" else {})
        stream = cast("VideoStream", container.add_stream(encoder, video.rate, options))
        context = stream.codec_context
        like = _new_frame(_yuv(video.first), 2, 2)
        context.height, context.width = (side + side % 2 for side in video.size)
        context.pix_fmt = "yuv420p"
        # MPEG-4 counts time in at most 65,535ths.
        base = video.time_base if encoder != "mpeg4" or video.time_base.denominator < 2**16 else Fraction(1, 60_000)
        context.time_base = stream.time_base = base
        context.thread_count = 1 if context.height * context.width <= 2**21 else 2
        context.color_range, context.colorspace = like.color_range, like.colorspace
        context.color_primaries, context.color_trc = like.color_primaries, like.color_trc
        shape = video.stream.codec_context.sample_aspect_ratio
        if shape:
            context.sample_aspect_ratio = 1 / shape if video.turn & _TRANSPOSED else shape
        tracks = {audio.index: container.add_stream_from_template(audio) for audio in video.audio_streams}

        def write(done: _Done) -> None:
            assert done.drawn is not None
            done.drawn.time_base, done.drawn.pts = base, round(done.frame.time / base)
            done.drawn.duration = round(done.frame.duration / base)
            container.mux(stream.encode(done.drawn))
            write_audio()

        def write_audio() -> None:
            while video.audio:
                packet = video.audio.popleft()
                track = tracks[packet.stream.index]
                if video.place(packet):
                    packet.stream = track
                    container.mux(packet)

        yield _Sink(path, write)
        container.mux(stream.encode(None))
        write_audio()


@contextlib.contextmanager
def _mask_sink(video: _Video, stem: Path, labels: LabelSpace) -> Iterator[_Sink]:
    import av

    # .mov, because it keeps times to the tick where .mkv rounds them to milliseconds.
    path = stem.with_name(f"{stem.name}_mask.mov")
    with _container(path) as container:
        height, width = video.size
        stream = container.add_mux_stream("png", video.rate, height=height, width=width)
        base = stream.time_base = video.time_base

        def write(done: _Done) -> None:
            packet: av.Packet[Any] = av.Packet(done.png)
            packet.stream, packet.time_base, packet.is_keyframe = stream, base, True
            packet.pts = packet.dts = round(done.frame.time / base)
            packet.duration = round((done.frame.duration or 1 / video.rate) / base)
            container.mux(packet)

        yield _Sink(path, write)


@contextlib.contextmanager
def _frames_sink(video: _Video, stem: Path, labels: LabelSpace) -> Iterator[_Sink]:
    path = stem.with_name(f"{stem.name}{FRAMES_ENDING}")
    if path.exists():
        raise FileError(f"{path}: is there already; remove it, or choose another place.")
    folder = path.with_name(temporary_name())
    times = ["frame,time_s"]
    try:
        folder.mkdir(parents=True)

        def write(done: _Done) -> None:
            name = f"{len(times) - 1:06}.png"
            (folder / name).write_bytes(done.png)
            times.append(f"{name},{float(done.frame.time):.6f}")

        yield _Sink(path, write)
        (folder / TIMES_FILE).write_text("\n".join(times) + "\n", encoding="utf-8")
        folder.rename(path)
    except OSError as error:
        raise FileError(f"{path}: cannot be written ({error.strerror or error}).") from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)  # gone already, where it was renamed


_SINKS = {"overlay": _overlay_sink, "mask": _mask_sink, "frames": _frames_sink}
