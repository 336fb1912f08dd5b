"""Times of frames, whatever a container lacks. The times that a file should have are those it was made with."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from tests.optional import needs

needs("av")

import av

from evitseg.video.reader import VideoReader
from evitseg.video.times import Timeline, frame_rate

WITH_B_FRAMES = {"qp": "8", "bf": "2", "g": "12"}


def at_rate(rate: int, count: int = 12) -> list[Fraction]:
    return [Fraction(i, rate) for i in range(count)]


def encode(
    form: str,
    times: Sequence[Fraction] = (),
    codec: str = "libx264",
    pixels: str = "yuv420p",
    options: dict[str, str] | None = None,
    rate: int = 10,
    audio: bool = False,
    seekable: bool = True,
) -> bytes:
    """A video whose frames are shown at `times`, at 10 Hz where nothing is said."""
    file = io.BytesIO()
    target: Any = file if seekable else SimpleNamespace(write=file.write)
    with av.open(target, "w", format=form) as out:
        stream: Any = out.add_stream(codec, rate, options=options)
        stream.height, stream.width, stream.pix_fmt = 64, 96, pixels
        sound: Any = out.add_stream("mp2", 48_000) if audio else None
        heard = 0
        for i, at in enumerate(times or at_rate(rate)):
            noise = np.random.default_rng(i).integers(0, 256, (64, 96, 3), np.uint8)
            frame = av.VideoFrame.from_ndarray(noise, format="rgb24").reformat(format=pixels)
            frame.pts, frame.time_base = round(at * 90_000), Fraction(1, 90_000)
            if times:
                stream.codec_context.time_base = Fraction(1, 90_000) if codec.startswith("libx") else Fraction(1, rate)
            else:
                frame.pts, frame.time_base = i, Fraction(1, rate)
            out.mux(stream.encode(frame))
            while sound is not None and heard < at * 48_000 + 4800:
                samples = av.AudioFrame.from_ndarray(np.zeros((1, 1152), np.int16), format="s16", layout="mono")
                samples.sample_rate, samples.pts, samples.time_base = 48_000, heard, Fraction(1, 48_000)
                out.mux(sound.encode(samples))
                heard += 1152
        out.mux(stream.encode(None))
        if sound is not None:
            out.mux(sound.encode(None))
    return file.getvalue()


def read(path: Path, content: bytes, duration_s: float | None = None) -> list[Fraction]:
    path.write_bytes(content)
    with VideoReader(path, None, duration_s) as video:
        times = [frame.time for frame in video.map_frames(lambda frame: frame, 1)]
        assert video.damage is None
    return times


UNEVEN = [Fraction(ms, 1000) for ms in (0, 40, 80, 200, 1000, 1033, 1100, 1140, 1200, 1500, 1540, 1580)]
MPEG2 = {"codec": "mpeg2video", "rate": 25, "options": {"bf": "2"}}
CONTAINERS: dict[str, tuple[Callable[[], bytes], list[Fraction]]] = {
    # No times: the rate that FFmpeg reports for the stream, 25 where it knows none.
    "raw.h264": (lambda: encode("h264", options=WITH_B_FRAMES), at_rate(25)),
    "raw.hevc": (
        lambda: encode("hevc", codec="libx265", options={"x265-params": "log-level=none:bframes=2"}),
        at_rate(25),
    ),
    "raw.m2v": (lambda: encode("mpeg2video", **MPEG2), at_rate(25)),  # type: ignore[arg-type]
    "raw.m4v": (lambda: encode("m4v", codec="mpeg4", rate=25, options={"bf": "2"}), at_rate(25)),
    "raw.mjpeg": (lambda: encode("mjpeg", codec="mjpeg", pixels="yuvj420p", rate=25), at_rate(25)),
    "raw twice.h264": (lambda: 2 * encode("h264", options=WITH_B_FRAMES), at_rate(25, 24)),
    # The order of decoding only.
    "b-frames.avi": (lambda: encode("avi", options=WITH_B_FRAMES), at_rate(10)),
    "mpeg4.avi": (lambda: encode("avi", codec="mpeg4", options={"bf": "2"}), at_rate(10)),
    "mjpeg.avi": (lambda: encode("avi", codec="mjpeg", pixels="yuvj420p"), at_rate(10)),
    # A rate in the header.
    "rate.y4m": (lambda: encode("yuv4mpegpipe", codec="rawvideo"), at_rate(10)),
    "rate.ivf": (lambda: encode("ivf", codec="libvpx-vp9"), at_rate(10)),
    # Times that do not begin at 0.
    "late.ts": (lambda: encode("mpegts", [100 + at for at in UNEVEN]), UNEVEN),
    "late.mp4": (lambda: encode("mp4", [Fraction(1, 2) + at for at in UNEVEN]), UNEVEN),  # an edit list
    "late.mkv": (lambda: encode("matroska", [3 + at for at in UNEVEN]), UNEVEN),
    "delayed.ts": (lambda: encode("mpegts", options=WITH_B_FRAMES), at_rate(10)),
    "delayed.flv": (lambda: encode("flv", options=WITH_B_FRAMES), at_rate(10)),
    "delayed.nut": (lambda: encode("nut", options=WITH_B_FRAMES), at_rate(10)),
    "delayed.mpg": (lambda: encode("mpeg", **MPEG2), at_rate(25)),  # type: ignore[arg-type]
    # Decoding times before 0, uneven steps.
    "b-frames.mp4": (lambda: encode("mp4", UNEVEN, options=WITH_B_FRAMES), UNEVEN),
    "b-frames.mkv": (lambda: encode("matroska", UNEVEN, options=WITH_B_FRAMES), UNEVEN),
    # No duration in the header.
    "unfinished.mkv": (lambda: encode("matroska", seekable=False), at_rate(10)),
    "unfinished.webm": (lambda: encode("webm", codec="libvpx-vp9", seekable=False), at_rate(10)),
    # Counts that begin again, and one that jumps to another day.
    "joined.ts": (lambda: 2 * encode("mpegts", options=WITH_B_FRAMES), at_rate(10, 24)),
    "joined.mpg": (lambda: 2 * encode("mpeg", **MPEG2), at_rate(25, 24)),  # type: ignore[arg-type]
    "spliced.ts": (
        lambda: encode("mpegts", at_rate(10)) + encode("mpegts", [80_000 + at for at in at_rate(10)]),
        at_rate(10, 24),
    ),
}


@pytest.mark.parametrize("name", CONTAINERS)
def test_the_first_frame_is_at_0_and_the_steps_are_the_films_own(name: str, tmp_path: Path) -> None:
    content, expected = CONTAINERS[name]
    got = read(tmp_path / name, content())
    assert got[0] == 0
    assert [float(at) for at in got] == pytest.approx([float(at) for at in expected], abs=0.002)
    half = read(tmp_path / name, content(), float(expected[6]))
    assert len(half) == len([at for at in expected if at < expected[6]])


def test_frames_that_an_avi_leaves_out_are_gaps(tmp_path: Path) -> None:
    times = [Fraction(i, 10) for i in (0, 1, 2, 5, 6, 9)]
    content = encode("avi", times, codec="mjpeg", pixels="yuvj420p")
    assert read(tmp_path / "gaps.avi", content) == times


def test_an_avis_audio_stays_with_its_frames(tmp_path: Path) -> None:
    # Both begin at 0; the delay of the codec is in no frame's time.
    (tmp_path / "clip.avi").write_bytes(encode("avi", options=WITH_B_FRAMES, audio=True))
    with VideoReader(tmp_path / "clip.avi", None, None, audio=True) as video:
        times = [frame.time for frame in video.map_frames(lambda frame: frame, 1)]
        first = video.audio[0]
        assert video.place(first)
        assert first.pts == 0
    assert times == at_rate(10)


def test_audio_of_joined_files_goes_on_with_the_frames(tmp_path: Path) -> None:
    (tmp_path / "clip.ts").write_bytes(2 * encode("mpegts", at_rate(10), audio=True))
    with VideoReader(tmp_path / "clip.ts", None, None, audio=True) as video:
        times = [frame.time for frame in video.map_frames(lambda frame: frame, 1)]
        heard = [float(packet.pts * packet.time_base) for packet in video.audio if video.place(packet)]  # type: ignore[operator]
    assert len(times) == 24
    assert np.diff(np.array(times, float)).min() > 0
    assert np.diff(heard).min() > 0
    # What is heard in the second part is as far from its first frame as in the first part.
    assert heard[len(heard) // 2] - float(times[12]) == pytest.approx(heard[0], abs=0.03)


def image(pts: int | None, duration: int = 0) -> Any:
    return SimpleNamespace(pts=pts, duration=duration, time_base=Fraction(1, 1000))


def timeline(rate: Fraction = Fraction(25)) -> Timeline:
    return Timeline(rate, Fraction(1, 1000), "matroska,webm", live=False, reorders=False)


@pytest.mark.parametrize(
    ("stamps", "expected_ms"),
    [
        ([0, 40, 80], [0, 40, 80]),
        ([7, 47, 87], [0, 40, 80]),
        ([-80, -40, 0], [0, 40, 80]),
        ([None, None, None], [0, 40, 80]),
        ([0, None, 80, None], [0, 40, 80, 120]),
        ([None, 500, 540], [0, 40, 80]),  # the first known time goes on from those before
        ([0, 40, 40, 80], [0, 40, 41, 80]),
        ([0, 40, 80, 120, 0, 40], [0, 40, 80, 120, 160, 200]),  # begins again
        ([5] * 6, [0, 1, 2, 42, 82, 122]),  # no time at all, in disguise
        ([0, 40, 3_600_000], [0, 40, 3_600_000]),  # a pause is a pause
    ],
)
def test_times_never_go_back(stamps: list[int | None], expected_ms: list[int]) -> None:
    times = timeline()
    assert [round(1000 * times.place(image(pts))[0]) for pts in stamps] == expected_ms


def packet(seconds: int) -> Any:
    return SimpleNamespace(
        pts=seconds, dts=seconds, duration=1, time_base=Fraction(1), stream_index=0, is_discard=False
    )


@pytest.mark.parametrize(
    ("form", "live", "expected"),
    [
        ("matroska,webm", False, [0, 1, 61, 62]),  # a pause of a minute, and damage to a number
        ("mpegts", False, [0, 1, 2, 3]),  # another broadcast
        ("mpegts", True, [0, 1, 61, 10**9]),  # time has passed
    ],
)
def test_a_jump_is_a_pause_or_a_new_count(form: str, live: bool, expected: list[int]) -> None:
    times = Timeline(Fraction(1), Fraction(1), form, live, reorders=False)
    packets = [packet(at) for at in (0, 1, 61, 10**9)]
    for each in packets:
        times.continued(each, is_video=True)
    assert [each.pts for each in packets] == expected


def test_a_frame_without_a_duration_is_shown_for_a_step() -> None:
    times = timeline()
    assert times.place(image(0, 33))[1] == Fraction(33, 1000)
    assert times.place(image(40))[1] == Fraction(1, 25)
    # Of frames without times, what the codec says of their duration is as uncertain as its rate.
    assert times.place(image(None, 100))[1] == Fraction(1, 25)


@pytest.mark.parametrize(
    ("stated", "rate"),
    [
        ((Fraction(30_000, 1001), Fraction(25)), Fraction(30_000, 1001)),
        ((None, Fraction(10)), Fraction(10)),
        ((Fraction(0), None), Fraction(25)),
        ((Fraction(90_000), Fraction(50)), Fraction(50)),
        ((Fraction(1, 60), None), Fraction(1, 60)),
    ],
)
def test_a_rate_is_what_can_be_one(stated: tuple[Fraction | None, ...], rate: Fraction) -> None:
    assert frame_rate(*stated) == rate
