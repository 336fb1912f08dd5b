"""Write segmented videos: an overlay with audio, a mask video, or a folder of masks."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

import numpy as np
from numpy.typing import NDArray

from evitseg.errors import FileError, VideoError
from evitseg.labels import LabelSpace
from evitseg.system.authorship import TIMES_FILE, VIDEO_COMMENT, is_ours
from evitseg.system.files import replacing, temporary_folder
from evitseg.video.frames import TRANSPOSED, new_frame, yuv
from evitseg.video.reader import Frame, VideoReader, reason_of

if TYPE_CHECKING:
    import av
    from av.container import OutputContainer
    from av.video.stream import VideoStream

VideoKind = Literal["overlay", "mask", "frames"]
VIDEO_KINDS: tuple[VideoKind, ...] = ("overlay", "mask", "frames")
AUDIO_IN = {
    ".mp4": {"aac", "mp3", "ac3", "eac3", "alac", "opus"},
    ".mov": {"pcm_s16le", "pcm_s16be", "pcm_s24le", "pcm_s24be", "pcm_s32le", "pcm_u8", "pcm_mulaw", "pcm_alaw"},
}
"""Audio codecs that players support in each container. Other audio needs .mkv, which holds any codec."""
_CONTAINERS = {".mp4": "mp4", ".mov": "mov", ".mkv": "matroska"}
FRAMES_ENDING = "_frames"
RESULT_ENDINGS = ("_mask.mov", *(f"_overlay{ending}" for ending in _CONTAINERS))
ENCODERS: dict[str, dict[str, str]] = {
    "libx264": {"preset": "ultrafast", "qp": "23"},  # qp, because crf looks ahead and takes longer
    "mpeg4": {"flags": "+qscale", "global_quality": "354"},  # quantizer 3, times 118
}
"""Encoders of overlays, in order of preference. `benchmarks/video.py` compares the presets."""


def is_result(path: Path) -> bool:
    """Whether a file has the name of a result of `write_video`."""
    return path.name.endswith(RESULT_ENDINGS) or (
        path.parent.name.endswith(FRAMES_ENDING) and (path.parent / TIMES_FILE).exists()
    )


@dataclass(frozen=True)
class SegmentedFrame:
    """A frame with its results.

    Attributes:
        drawn: the overlay, if it is wanted.
        png: the mask as a PNG file, if it is wanted.
        counts: pixels per class, sampled.
    """

    frame: Frame
    drawn: av.VideoFrame | None
    png: bytes
    counts: NDArray[np.intp]


@dataclass(frozen=True)
class FrameWriter:
    """The result of one kind: its path, and a function that adds a frame."""

    path: Path
    write: Callable[[SegmentedFrame], None]


@contextlib.contextmanager
def _container(path: Path) -> Iterator[OutputContainer]:
    import av

    with replacing(path) as file:
        try:
            with av.open(file, "w", format=_CONTAINERS[path.suffix.lower()]) as container:
                container.metadata["comment"] = VIDEO_COMMENT
                yield container
        except av.FFmpegError as error:
            raise VideoError(f"{path}: cannot be written ({reason_of(error)}).") from error


@contextlib.contextmanager
def _overlay_writer(
    video: VideoReader, stem: Path, labels: LabelSpace, file: Path | None = None
) -> Iterator[FrameWriter]:
    import av

    codecs = {stream.codec_context.name for stream in video.audio_streams}
    ending = next((ending for ending, able in AUDIO_IN.items() if codecs <= able), ".mkv")
    encoder = next((name for name in ENCODERS if name in av.codecs_available), None)
    if encoder is None:
        raise VideoError(
            f"this build of FFmpeg has none of the encoders {', '.join(ENCODERS)}; install PyAV from its own wheels."
        )
    path = file or stem.with_name(f"{stem.name}_overlay{ending}")
    if not codecs <= AUDIO_IN.get(path.suffix.lower(), codecs):
        raise VideoError(
            f"{path}: players do not support this audio ({', '.join(sorted(codecs))}) in a {path.suffix} file; use the "
            f"ending {ending}."
        )
    with _container(path) as container:
        options = ENCODERS[encoder] | ({"tune": "zerolatency"} if video.live and encoder == "libx264" else {})
        stream = cast("VideoStream", container.add_stream(encoder, video.rate, options))
        context = stream.codec_context
        like = new_frame(yuv(video.first), 2, 2)
        context.height, context.width = (side + side % 2 for side in video.size)
        context.pix_fmt = "yuv420p"
        # MPEG-4 counts time in fractions of at most 1/65,535 s.
        base = video.time_base if encoder != "mpeg4" or video.time_base.denominator < 2**16 else Fraction(1, 60_000)
        context.time_base = stream.time_base = base
        context.thread_count = 1 if context.height * context.width <= 2**21 else 2
        context.color_range, context.colorspace = like.color_range, like.colorspace
        context.color_primaries, context.color_trc = like.color_primaries, like.color_trc
        shape = video.stream.codec_context.sample_aspect_ratio
        if shape:
            context.sample_aspect_ratio = 1 / shape if video.turn & TRANSPOSED else shape
        tracks = {audio.index: container.add_stream_from_template(audio) for audio in video.audio_streams}

        def write(done: SegmentedFrame) -> None:
            assert done.drawn is not None
            done.drawn.time_base, done.drawn.pts = base, round(done.frame.time / base)
            done.drawn.duration = round(done.frame.duration / base)
            container.mux(stream.encode(done.drawn))
            write_audio()

        def write_audio() -> None:
            while video.audio:
                packet = video.audio.popleft()
                track = tracks[packet.stream.index]
                # Matroska has no negative times, and would shift the frames.
                if video.place(packet) and ((packet.pts or 0) >= 0 or path.suffix.lower() != ".mkv"):
                    packet.stream = track
                    container.mux(packet)

        yield FrameWriter(path, write)
        container.mux(stream.encode(None))
        write_audio()


@contextlib.contextmanager
def _mask_writer(video: VideoReader, stem: Path, labels: LabelSpace, file: Path | None = None) -> Iterator[FrameWriter]:
    import av

    # .mov keeps exact times, whereas .mkv rounds them to milliseconds.
    path = file or stem.with_name(f"{stem.name}_mask.mov")
    with _container(path) as container:
        height, width = video.size
        stream = container.add_mux_stream("png", video.rate, height=height, width=width)
        base = stream.time_base = video.time_base

        def write(done: SegmentedFrame) -> None:
            packet: av.Packet[Any] = av.Packet(done.png)
            packet.stream, packet.time_base, packet.is_keyframe = stream, base, True
            packet.pts = packet.dts = round(done.frame.time / base)
            packet.duration = round(done.frame.duration / base)
            container.mux(packet)

        yield FrameWriter(path, write)


@contextlib.contextmanager
def _frames_writer(
    video: VideoReader, stem: Path, labels: LabelSpace, file: Path | None = None
) -> Iterator[FrameWriter]:
    path = file or stem.with_name(f"{stem.name}{FRAMES_ENDING}")
    if path.exists() and not is_ours(path):  # not with --overwrite either: it may hold anything
        raise FileError(f"{path}: exists and is no folder of frames that evitseg wrote; choose another name.")
    times = ["frame,time_s"]
    try:
        with temporary_folder(path.parent) as temporary:
            folder = temporary / "frames"
            folder.mkdir()

            def write(done: SegmentedFrame) -> None:
                name = f"{len(times) - 1:06}.png"
                (folder / name).write_bytes(done.png)
                times.append(f"{name},{float(done.frame.time):.6f}")

            yield FrameWriter(path, write)
            (folder / TIMES_FILE).write_text("\n".join(times) + "\n", encoding="utf-8")
            if path.exists():
                path.rename(temporary / "old")
            folder.rename(path)
    except OSError as error:
        raise FileError(f"{path}: cannot be written ({error.strerror or error}).") from error


WRITERS = {"overlay": _overlay_writer, "mask": _mask_writer, "frames": _frames_writer}
