from __future__ import annotations

import contextlib
import http.server
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from tests.optional import needs

needs("av")

import av

import evitseg
from evitseg import video
from evitseg.errors import ConfigError, FileError, MissingPackageError, VideoError, WeightsError
from evitseg.runtime.segmenter import Segmenter
from evitseg.system.authorship import is_ours
from evitseg.video import is_result, is_stream, is_video, segment_video, stream_name, write_video, writers
from evitseg.video.frames import frame_mask, plane_of, yuv_colors
from evitseg.video.reader import VideoReader
from evitseg.visualize import tinted


@pytest.fixture(scope="module")
def segment() -> Segmenter:
    return evitseg.load(size=64)


def street(count: int, size: tuple[int, int] = (64, 96), moving: bool = True) -> list[NDArray[np.uint8]]:
    """Images of a camera that turns."""
    from evitseg.bundled import EXAMPLE_IMAGE

    height, width = size
    with Image.open(EXAMPLE_IMAGE) as image:
        small = np.asarray(image.convert("RGB").resize((width, height)))
    return [np.roll(small, 2 * i * moving, 1) for i in range(count)]


def make(
    path: Path,
    images: Sequence[NDArray[np.uint8]],
    times: Sequence[Fraction] | None = None,
    codec: str = "libx264",
    form: str = "yuv420p",
    audio: str | None = None,
    matrix: list[int] | None = None,
    tags: dict[str, int] | None = None,
    options: dict[str, str] | None = None,
    container_options: dict[str, str] | None = None,
    base: Fraction = Fraction(1, 90_000),
) -> Path:
    """A video file, as others make them."""
    with av.open(str(path), "w", options=container_options or {}) as out:
        stream: Any = out.add_stream(codec, 25, options={"qp": "8"} if codec == "libx264" and not options else options)
        stream.height, stream.width = images[0].shape[:2]
        stream.pix_fmt = form
        stream.codec_context.time_base = base
        for name, value in (tags or {}).items():
            setattr(stream.codec_context, name, value)
        if matrix is not None:
            stream.set_display_matrix(matrix)
        sound: Any = out.add_stream(audio, 48_000) if audio else None
        times = times or [Fraction(i, 25) for i in range(len(images))]
        heard = round(times[0] * 48_000)
        for image, at in zip(images, times, strict=True):
            frame = av.VideoFrame.from_ndarray(image, format="rgb24")
            if form != "rgb24":
                wanted = {f"dst_{name}": value for name, value in (tags or {}).items() if name.startswith("color")}
                frame = frame.reformat(format=form, **wanted)
            frame.pts, frame.time_base = round(at / base), base
            out.mux(stream.encode(frame))
            while sound is not None and heard < at * 48_000 + 2048:
                noise = np.random.default_rng(heard).normal(0, 0.1, (1, 1024)).astype(np.float32)
                samples = av.AudioFrame.from_ndarray(noise, format="flt", layout="mono")
                samples.sample_rate, samples.pts, samples.time_base = 48_000, heard, Fraction(1, 48_000)
                resampler = av.AudioResampler(sound.codec_context.format, sound.codec_context.layout, 48_000)
                for fitting in resampler.resample(samples):
                    out.mux(sound.encode(fitting))
                heard += 1024
        out.mux(stream.encode(None))
        if sound is not None:
            out.mux(sound.encode(None))
    return path


def decoded(path: Path) -> list[av.VideoFrame]:
    with av.open(str(path)) as container:
        return list(container.decode(video=0))


def seconds(frames: list[av.VideoFrame]) -> list[Fraction]:
    return [Fraction(frame.pts or 0) * (frame.time_base or 0) for frame in frames]


def rgb(frame: av.VideoFrame) -> NDArray[np.uint8]:
    return np.asarray(frame.to_ndarray(format="rgb24"), np.uint8)


def masks(path: Path) -> list[NDArray[np.uint8]]:
    return [frame.to_ndarray()[0] for frame in decoded(path)]


def packets(path: Path) -> list[tuple[Fraction, bytes]]:
    with av.open(str(path)) as container:
        return [
            (packet.pts * packet.time_base, bytes(packet))
            for packet in container.demux(audio=0)
            if packet.pts is not None
        ]


UNEVEN = [Fraction(ms, 1000) for ms in (0, 40, 47, 200, 1000, 1033)]


@pytest.mark.parametrize("ending", [".mp4", ".mkv", ".ts", ".mov"])
def test_every_frame_keeps_its_time(ending: str, segment: Segmenter, tmp_path: Path) -> None:
    clip = make(tmp_path / f"clip{ending}", street(6), UNEVEN)
    result = write_video(clip, tmp_path / "clip", segment, ["overlay", "mask", "frames"])
    assert result.frames == 6
    assert seconds(decoded(tmp_path / "clip_overlay.mp4")) == UNEVEN
    assert seconds(decoded(tmp_path / "clip_mask.mov")) == UNEVEN
    rows = (tmp_path / "clip_frames/times.csv").read_text().splitlines()
    assert rows == ["frame,time_s", *(f"{i:06}.png,{float(at):.6f}" for i, at in enumerate(UNEVEN))]
    assert [at for at, _ in segment_video(clip, segment)] == [float(at) for at in UNEVEN]


def test_time_stamps_that_stand_still_are_made_to_go_on(segment: Segmenter, tmp_path: Path) -> None:
    # .mkv rounds to milliseconds.
    close = [Fraction(0), Fraction(1, 9000), Fraction(2, 9000), Fraction(1, 25)]
    clip = make(tmp_path / "clip.mkv", street(4), close, "ffv1")
    assert len(set(seconds(decoded(clip)))) == 2
    result = write_video(clip, tmp_path / "clip", segment)
    times = seconds(decoded(result.written["overlay"]))
    assert len(times) == 4
    assert sorted(set(times)) == times


@pytest.mark.parametrize(
    ("audio", "ending", "becomes"),
    [("aac", ".mp4", ".mp4"), ("libopus", ".webm", ".mp4"), ("pcm_s16le", ".mov", ".mov"), ("flac", ".mkv", ".mkv")],
)
def test_audio_is_kept_packet_by_packet(
    audio: str, ending: str, becomes: str, segment: Segmenter, tmp_path: Path
) -> None:
    codec = "libvpx-vp9" if ending == ".webm" else "libx264"
    clip = make(tmp_path / f"clip{ending}", street(30), codec=codec, audio=audio)
    result = write_video(clip, tmp_path / "clip", segment)
    overlay = result.written["overlay"]
    assert overlay == tmp_path / f"clip_overlay{becomes}"
    before, after = packets(clip), packets(overlay)
    assert len(before) > 10 or audio.startswith("pcm")
    if audio.startswith("pcm"):  # a container cuts it as it likes
        assert b"".join(data for _, data in after) == b"".join(data for _, data in before)
    else:
        assert [data for _, data in after] == [data for _, data in before]
        assert [float(at) for at, _ in after] == pytest.approx([float(at) for at, _ in before], abs=0.001)


def test_audio_from_before_the_first_frame_does_not_move_frames_in_matroska(segment: Segmenter, tmp_path: Path) -> None:
    clip = make(tmp_path / "clip.mp4", street(10), audio="aac")
    assert packets(clip)[0][0] < 0  # what AAC's encoder puts before the sound
    overlay = write_video(clip, tmp_path / "x", segment, file=tmp_path / "named.mkv").written["overlay"]
    assert float(seconds(decoded(overlay))[0]) == 0
    assert float(packets(overlay)[0][0]) == pytest.approx(0, abs=0.001)


def test_a_stream_that_begins_late_begins_at_zero_with_its_audio(segment: Segmenter, tmp_path: Path) -> None:
    clip = make(tmp_path / "clip.ts", street(20), [2 + Fraction(i, 25) for i in range(20)], audio="aac")
    first = seconds(decoded(clip))[0]
    assert first >= 2
    assert packets(clip)[0][0] >= 1.9
    overlay = write_video(clip, tmp_path / "clip", segment).written["overlay"]
    shift = first - seconds(decoded(overlay))[0]
    assert seconds(decoded(overlay))[0] == pytest.approx(0, abs=0.1)
    expected = [float(at - shift) for at, _ in packets(clip)]
    assert [float(at) for at, _ in packets(overlay)] == pytest.approx(expected, abs=0.001)


ONE = 1 << 16
MATRICES = {
    #                        a     b     c     d
    "as it is": (ONE, 0, 0, ONE),
    "quarter to the right": (0, ONE, -ONE, 0),
    "half": (-ONE, 0, 0, -ONE),
    "quarter to the left": (0, -ONE, ONE, 0),
    "mirrored": (-ONE, 0, 0, ONE),
    "upside down, mirrored": (ONE, 0, 0, -ONE),
    "along the diagonal": (0, ONE, ONE, 0),
    "along the other": (0, -ONE, -ONE, 0),
}


@pytest.mark.parametrize("way", MATRICES)
def test_a_phones_video_is_turned_upright(way: str, segment: Segmenter, tmp_path: Path) -> None:
    stored = street(1, (64, 96))[0]
    a, b, c, d = MATRICES[way]
    # The definition, pixel by pixel: (x, y) is shown at (a x + c y, b x + d y).
    shown = {}
    for y in range(64):
        for x in range(96):
            shown[(b * x + d * y) // ONE, (a * x + c * y) // ONE] = stored[y, x]
    top, left = min(r for r, _ in shown), min(k for _, k in shown)
    height, width = max(r for r, _ in shown) - top + 1, max(k for _, k in shown) - left + 1
    expected = np.array([[shown[r + top, k + left] for k in range(width)] for r in range(height)])

    clip = make(tmp_path / "clip.mp4", [stored] * 3, matrix=[a, b, 0, c, d, 0, 0, 0, 1 << 30])
    ((_, prediction), *_) = segment_video(clip, segment)
    assert np.abs(prediction.image.astype(int) - expected).mean() < 4  # H.264, and colours at half size
    result = write_video(clip, tmp_path / "clip", segment, ["overlay", "mask"])
    assert result.size == (height, width)
    overlay = decoded(result.written["overlay"])[0]
    assert (overlay.height, overlay.width, overlay.rotation) == (height, width, 0)
    drawn = np.asarray(tinted(expected.astype(np.uint8), prediction.mask, prediction.labels))
    assert np.abs(overlay.to_ndarray(format="rgb24").astype(int) - drawn).mean() < 5
    np.testing.assert_array_equal(masks(result.written["mask"])[0], prediction.mask)


@pytest.mark.parametrize("size", [(67, 101), (64, 101), (33, 96)])
def test_odd_sides_get_one_pixel_more_in_the_overlay_alone(
    size: tuple[int, int], segment: Segmenter, tmp_path: Path
) -> None:
    clip = make(tmp_path / "clip.mkv", street(2, size), codec="ffv1", form="yuv444p")
    result = write_video(clip, tmp_path / "clip", segment, ["overlay", "mask"])
    overlay = decoded(result.written["overlay"])[0]
    assert (overlay.height, overlay.width) == (size[0] + size[0] % 2, size[1] + size[1] % 2)
    assert masks(result.written["mask"])[0].shape == size == result.size
    pixels = overlay.to_ndarray(format="rgb24").astype(int)
    if size[1] % 2:
        assert np.abs(pixels[:, -1] - pixels[:, -2]).mean() < 8


def test_a_mask_video_holds_exactly_the_masks_of_the_segmenter(segment: Segmenter, tmp_path: Path) -> None:
    clip = make(tmp_path / "clip.mp4", street(8))
    at_own_size = Segmenter(segment.engine, "native")  # 64×96, so that nothing is resampled
    result = write_video(clip, tmp_path / "clip", at_own_size, ["mask", "frames"])
    expected = [at_own_size(rgb(frame)).mask for frame in decoded(clip)]
    assert len({mask.tobytes() for mask in expected}) == 8
    for i, (mask, own) in enumerate(zip(masks(result.written["mask"]), expected, strict=True)):
        np.testing.assert_array_equal(mask, own)
        with Image.open(result.written["frames"] / f"{i:06}.png") as file:
            np.testing.assert_array_equal(np.asarray(file), own)
    shown = decoded(result.written["mask"])[0].to_ndarray(format="rgb24")
    np.testing.assert_array_equal(shown, segment.labels.palette[expected[0]])
    counts = np.bincount(np.stack(expected)[:, ::4, ::4].ravel(), minlength=11)
    assert result.fractions == pytest.approx(
        {name: n / counts.sum() for name, n in zip(segment.labels.names, counts, strict=True) if n}
    )


@pytest.mark.parametrize(("size", "working"), [((270, 480), 384), ((270, 480), 256)])
def test_resampled_frames_give_nearly_the_masks_of_the_segmenter(
    size: tuple[int, int], working: int, segment: Segmenter, tmp_path: Path
) -> None:
    clip = make(tmp_path / "clip.mp4", street(2, size))
    resampling = Segmenter(segment.engine, working)
    expected = [resampling(rgb(frame)).mask for frame in decoded(clip)]
    for (_, prediction), mask in zip(segment_video(clip, resampling), expected, strict=True):
        # FFmpeg and Pillow both interpolate linearly, but round differently; benchmarks/video.py measures how much.
        assert (prediction.mask != mask).mean() < 0.02


@pytest.mark.parametrize(
    ("codec", "form", "tags"),
    [
        ("libx264", "yuv420p", {"colorspace": 1, "color_range": 1}),
        ("libx264", "yuv420p", {"colorspace": 5, "color_range": 1}),
        ("libx264", "yuv420p", {"colorspace": 1, "color_range": 2}),
        ("mjpeg", "yuvj420p", {}),
        ("ffv1", "yuv420p10le", {}),
        ("ffv1", "yuv422p", {}),
        ("libx265", "yuv420p10le", {"colorspace": 9, "color_range": 1}),
        ("png", "rgb24", {}),
    ],
)
def test_colours_are_right_whatever_the_source(
    codec: str, form: str, tags: dict[str, int], segment: Segmenter, tmp_path: Path
) -> None:
    # Large fields of colour: where colours are stored at half size, edges say little.
    image = np.kron(np.random.default_rng(1).integers(0, 256, (2, 3, 3), np.uint8), np.ones((32, 32, 1), np.uint8))
    options = {"x265-params": "log-level=none:qp=8"} if codec == "libx265" else None
    if codec == "mjpeg":
        options = {"flags": "+qscale", "global_quality": "236"}
    ending = "mov" if codec == "png" else "mkv"
    clip = make(tmp_path / f"clip.{ending}", [image] * 3, codec=codec, form=form, tags=tags, options=options)
    ((_, prediction), *_) = segment_video(clip, segment)
    inside = np.abs(prediction.image.astype(int) - image)[4:28, 4:28]
    assert inside.mean() < 4
    result = write_video(clip, tmp_path / "clip", segment)
    expected = np.asarray(tinted(image, prediction.mask, segment.labels)).astype(int)
    overlay = decoded(result.written["overlay"])[0]
    assert overlay.colorspace != 0  # which would say RGB
    drawn = rgb(overlay).astype(int)
    inner = (drawn - expected).reshape(2, 32, 3, 32, 3)[:, 8:24, :, 8:24]  # away from the fields' edges
    assert np.abs(inner.mean((1, 3))).max() < 4


@pytest.mark.parametrize("space", [1, 5, 9])
@pytest.mark.parametrize("full", [False, True])
def test_the_classes_have_the_colours_that_ffmpeg_gives_them(space: int, full: bool, segment: Segmenter) -> None:
    colors = np.array([c.color for c in segment.labels.classes], np.uint8)
    patches = av.VideoFrame.from_ndarray(np.kron(colors[None], np.ones((32, 32, 1), np.uint8)), format="rgb24")
    frame = patches.reformat(format="yuv444p", dst_colorspace=space, dst_color_range=2 if full else 1)
    frame.colorspace, frame.color_range = space, 2 if full else 1
    ours = yuv_colors(segment.labels, frame)
    for i, plane in enumerate(ours.planes):
        theirs = plane_of(frame, i)[16, 16::32].astype(float)
        np.testing.assert_allclose(plane / (256 - ours.rest), theirs, atol=2)


def test_a_shape_of_pixels_is_kept(segment: Segmenter, tmp_path: Path) -> None:
    clip = make(tmp_path / "clip.mkv", street(2), tags={"sample_aspect_ratio": Fraction(4, 3)})  # type: ignore[dict-item]
    overlay = write_video(clip, tmp_path / "clip", segment).written["overlay"]
    with av.open(str(overlay)) as container:
        assert container.streams.video[0].sample_aspect_ratio == Fraction(4, 3)


def test_a_file_that_was_cut_off_is_done_as_far_as_it_goes(segment: Segmenter, tmp_path: Path) -> None:
    whole = make(tmp_path / "clip.mkv", street(75))
    content = whole.read_bytes()
    whole.write_bytes(content[: len(content) // 2])
    result = write_video(whole, tmp_path / "clip", segment)
    assert 5 < result.frames < 60
    assert len(decoded(result.written["overlay"])) == result.frames
    assert result.damage is not None
    assert "clip.mkv: truncated or damaged: it ends at 0." in result.damage
    assert "of 3.0 s" in result.damage
    given = 0
    with pytest.raises(VideoError, match="truncated or damaged"):
        for _ in segment_video(whole, segment):
            given += 1
    assert given == result.frames


def test_damage_inside_is_reported_and_the_rest_is_segmented(segment: Segmenter, tmp_path: Path) -> None:
    clip = make(tmp_path / "clip.mp4", street(50), options={"qp": "8", "g": "10"})
    content = bytearray(clip.read_bytes())
    middle = content.index(b"mdat") + 12_000
    content[middle : middle + 4000] = bytes(4000)
    clip.write_bytes(content)
    result = write_video(clip, tmp_path / "clip", segment)
    assert result.frames >= 40
    assert result.damage is not None
    assert "could not be decoded" in result.damage


def test_frames_of_another_size_end_the_video_with_a_sentence(segment: Segmenter, tmp_path: Path) -> None:
    parts = [make(tmp_path / "a.h264", street(5)), make(tmp_path / "b.h264", street(5, (96, 64)))]
    both = tmp_path / "clip.h264"
    both.write_bytes(b"".join(part.read_bytes() for part in parts))
    result = write_video(both, tmp_path / "clip", segment)
    assert result.frames == 5
    assert result.damage is not None
    assert "from 96×64 to 64×96" in result.damage


def broken(folder: Path) -> dict[str, tuple[Path | str, str]]:
    text, empty, sound = folder / "text.mp4", folder / "empty.mkv", folder / "sound.mp4"
    text.write_text("no video")
    empty.touch()
    with av.open(str(sound), "w") as out:
        stream: Any = out.add_stream("aac", 48_000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 4096), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 48_000
        out.mux(stream.encode(frame))
        out.mux(stream.encode(None))
    # A play list may name any file or address.
    playlist = folder / "list.mp4"
    playlist.write_text("#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nclip.ts\n#EXT-X-ENDLIST\n")
    script = folder / "script.avi"
    script.write_text("ffconcat version 1.0\nfile clip.ts\n")
    head = make(folder / "head.mp4", street(20))
    head.write_bytes(head.read_bytes()[:3000])  # its index stands at the end
    return {
        "missing": (folder / "missing.mp4", "no such file"),
        "a folder": (folder, "a folder"),
        "text": (text, "not in a supported video format"),
        "empty": (empty, "an empty file"),
        "sound": (sound, "has no video, only audio"),
        "play list": (playlist, "supported video format|cannot be opened"),
        "script": (script, "supported video format|cannot be opened"),
        "cut": (head, "truncated before its index"),
        "address": ("tcp://127.0.0.1:9", "cannot be opened"),
        "camera": ("camera:77", "no such camera"),
    }


def test_files_that_are_no_videos_are_refused_in_one_sentence(segment: Segmenter, tmp_path: Path) -> None:
    make(tmp_path / "clip.ts", street(5))
    for name, (source, sentence) in broken(tmp_path).items():
        before = sorted(tmp_path.iterdir())
        with pytest.raises(VideoError, match=sentence) as caught:
            write_video(source, tmp_path / "out", segment)
        assert str(source).removeprefix("camera:") in str(caught.value), name
        assert "\n" not in str(caught.value)
        assert sorted(tmp_path.iterdir()) == before


def test_an_unknown_kind_is_refused(segment: Segmenter, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="did you mean 'overlay'"):
        write_video("clip.mp4", tmp_path / "out", segment, ["overlays"])  # type: ignore[list-item]


def test_results_that_cannot_be_written_are_an_error(segment: Segmenter, tmp_path: Path) -> None:
    clip = make(tmp_path / "clip.mp4", street(3))
    (tmp_path / "file").touch()
    for kind in video.VIDEO_KINDS:
        with pytest.raises(FileError, match="cannot be written"):
            write_video(clip, tmp_path / "file/clip", segment, [kind])
    (tmp_path / "clip_frames").mkdir()
    with pytest.raises(FileError, match="is no folder of frames that evitseg wrote"):
        write_video(clip, tmp_path / "clip", segment, ["frames"])
    assert sorted(p.name for p in tmp_path.iterdir()) == ["clip.mp4", "clip_frames", "file"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full, a Linux device")
@pytest.mark.parametrize("kind", ["overlay", "mask"])
def test_a_full_disk_is_an_error(
    kind: Any, segment: Segmenter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clip = make(tmp_path / "clip.mp4", street(3))
    monkeypatch.setattr("evitseg.system.files.temporary_name", lambda: "temporary")
    real = open

    def full(path: Any, mode: str = "r", **rest: Any) -> Any:
        return real("/dev/full", "wb") if Path(path).name == "temporary" else real(path, mode, **rest)

    monkeypatch.setattr("builtins.open", full)
    with pytest.raises(FileError, match="No space left"):
        write_video(clip, tmp_path / "clip", segment, [kind])
    assert [p.name for p in tmp_path.iterdir()] == ["clip.mp4"]


def test_without_x264_an_overlay_is_mpeg4(segment: Segmenter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clip = make(tmp_path / "clip.mp4", street(6), UNEVEN)
    monkeypatch.setattr(writers, "ENCODERS", {"libnothing": {}, "mpeg4": writers.ENCODERS["mpeg4"]})
    overlay = write_video(clip, tmp_path / "clip", segment).written["overlay"]
    with av.open(str(overlay)) as container:
        assert container.streams.video[0].codec_context.name == "mpeg4"
    assert seconds(decoded(overlay)) == UNEVEN
    monkeypatch.setattr(writers, "ENCODERS", {"libnothing": {}})
    with pytest.raises(VideoError, match="none of the encoders libnothing"):
        write_video(clip, tmp_path / "clip", segment)


def test_a_missing_package_is_reported_with_its_extra(
    segment: Segmenter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clip = make(tmp_path / "clip.mp4", street(2))
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(
        MissingPackageError,
        match=r"pip install 'av>=17.0'; or, in a clone of evitseg, python -m pip install '.\[video\]'",
    ):
        write_video(clip, tmp_path / "clip", segment)


def test_a_duration_ends_the_video_and_its_audio(segment: Segmenter, tmp_path: Path) -> None:
    clip = make(tmp_path / "clip.mp4", street(50), audio="aac")
    result = write_video(clip, tmp_path / "clip", segment, duration_s=1)
    assert result.frames == 25
    assert result.damage is None
    assert max(at for at, _ in packets(result.written["overlay"])) < 1
    with VideoReader(clip, None, 1) as opened:
        for at, inside in ((47_999, True), (48_000, False)):
            packet: Any = av.Packet(b"sound")
            packet.time_base, packet.pts, packet.dts = Fraction(1, 48_000), at, at
            assert opened.place(packet) == inside


def test_a_reader_who_stops_early_closes_the_video(segment: Segmenter, tmp_path: Path) -> None:
    clip = make(tmp_path / "clip.mp4", street(30))
    predictions = segment_video(clip, segment)
    at, prediction = next(predictions)
    assert (at, prediction.mask.shape) == (0, (64, 96))
    predictions.close()  # type: ignore[attr-defined]
    assert not [t for t in threading.enumerate() if t.name.startswith("evitseg")]


# Live.


class Slow:
    """An engine that waits before every image."""

    def __init__(self, engine: Any, wait: Callable[[], object]) -> None:
        self.engine, self.info, self.manifest, self.wait = engine, engine.info, engine.manifest, wait

    def __call__(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        self.wait()
        logits: NDArray[np.float32] = self.engine(images)
        return logits


class Sender:
    """A camera on the network: 25 frames a second over UDP, with the times of a steady clock."""

    def __init__(self, frames: int) -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.address = f"udp://127.0.0.1:{self.port}"
        self.stop, self.more, self.sent = threading.Event(), threading.Condition(), 0
        self.thread = threading.Thread(target=self.send, args=(frames,))
        self.thread.start()

    def send(self, frames: int) -> None:
        base = Fraction(1, 90_000)
        options = {"preset": "ultrafast", "tune": "zerolatency", "g": "5"}
        with av.open(f"{self.address}?pkt_size=1316", "w", format="mpegts") as out:
            stream: Any = out.add_stream("libx264", 25, options=options)
            stream.height, stream.width, stream.pix_fmt = 64, 96, "yuv420p"
            stream.codec_context.time_base = base
            began = time.monotonic()
            for i, image in enumerate(street(frames)):
                if self.stop.wait(max(0.0, began + i / 25 - time.monotonic())):
                    return
                frame = av.VideoFrame.from_ndarray(image, format="rgb24").reformat(format="yuv420p")
                frame.pts, frame.time_base = round(Fraction(i, 25) / base), base
                out.mux(stream.encode(frame))
                with self.more:
                    self.sent += 1
                    self.more.notify_all()

    def wait(self, count: int) -> None:
        """Until it has sent so many more frames."""
        with self.more:
            wanted = self.sent + count
            self.more.wait_for(lambda: self.sent >= wanted)


@pytest.fixture
def sender() -> Iterator[Sender]:
    sender = Sender(1500)
    yield sender
    sender.stop.set()
    sender.thread.join()


def test_a_live_source_drops_frames_and_tells_how_late_the_others_are(
    sender: Sender, segment: Segmenter, tmp_path: Path
) -> None:
    def wait() -> None:
        sender.wait(3)
        time.sleep(0.1)

    seen: list[video.VideoProgress] = []
    slow = Segmenter(Slow(segment.engine, wait), 64)
    result = write_video(sender.address, tmp_path / "live", slow, duration_s=1, progress=seen.append)
    assert result.live
    assert result.damage is None
    times = seconds(decoded(result.written["overlay"]))
    assert len(times) == result.frames == len(seen)
    assert sorted(set(times)) == times
    assert times[0] <= 0.2
    # A second has 25 frames, and every one was done or dropped; UDP may lose some.
    assert result.frames + result.dropped == pytest.approx(25, abs=5)
    assert 2 <= result.frames <= sender.sent / 3 + 2
    assert seen[-1].dropped > 0
    assert result.latency_ms is not None
    assert result.p90_latency_ms is not None
    assert 100 <= result.latency_ms <= result.p90_latency_ms  # each took a tenth of a second


def test_a_file_read_as_if_it_were_live_continues_with_the_newest_frame(segment: Segmenter, tmp_path: Path) -> None:
    def until_all_is_read() -> None:
        for thread in threading.enumerate():
            if thread.name == "evitseg-reader":
                thread.join()

    clip = make(tmp_path / "clip.mp4", street(50))
    slow = Segmenter(Slow(segment.engine, until_all_is_read), 64)
    result = write_video(clip, tmp_path / "clip", slow, live=True)
    # One frame, if the whole file was read before the first was taken.
    assert 1 <= result.frames <= 2
    assert result.frames + result.dropped == 50
    assert seconds(decoded(result.written["overlay"]))[-1] == Fraction(49, 25)


# The command.


def command(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "evitseg", *map(str, arguments)]


def run(*arguments: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(*arguments), cwd=cwd, capture_output=True, text=True, check=False, env=os.environ | {"COLUMNS": "100"}
    )


def files(folder: Path) -> list[str]:
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())


def test_a_folder_of_images_and_videos(tmp_path: Path) -> None:
    data = tmp_path / "data"
    (data / "deep").mkdir(parents=True)
    make(data / "deep/clip.mp4", street(3))
    make(data / "street.mp4", street(2))
    (data / "text.avi").write_text("no video")
    Image.fromarray(street(1)[0]).save(data / "street.jpg")
    done = run("predict", data, "--out", data, "--size", 64, cwd=tmp_path)
    assert done.returncode == 1
    expected = ["deep/clip_overlay.mp4", "street_jpg_mask.png", "street_jpg_overlay.jpg", "street_mp4_overlay.mp4"]
    results = sorted(set(files(data)) - {"deep/clip.mp4", "street.jpg", "street.mp4", "text.avi"})
    assert results == expected
    assert done.stderr.count("text.avi") == 1
    assert done.stderr.splitlines()[-1] == "error: 1 of the inputs failed; images done: 1, videos: 2."
    assert "wrote" in done.stdout
    # Results beside their sources are not segmented again.
    again = run("predict", data, "--out", data, "--size", 64, "--no-overlay", "--json", cwd=tmp_path)
    content = json.loads(again.stdout)
    assert [Path(v["video"]).name for v in content["videos"]] == ["clip.mp4", "street.mp4"]
    assert [Path(v["written"]["mask"]).name for v in content["videos"]] == ["clip_mask.mov", "street_mp4_mask.mov"]
    assert len(content["images"]) == 1
    assert content["videos"][0]["frames"] == 3
    assert content["videos"][0]["size"] == [64, 96]


def test_kinds_are_chosen_and_damage_is_a_failure(tmp_path: Path) -> None:
    clip = make(tmp_path / "clip.mkv", street(75))
    clip.write_bytes(clip.read_bytes()[: clip.stat().st_size // 2])
    done = run("predict", clip, "--video", "mask", "--video", "frames", "--size", 64, cwd=tmp_path)
    assert done.returncode == 1
    assert "truncated or damaged" in done.stderr
    results = files(tmp_path / "predictions")
    assert "clip_mask.mov" in results
    assert {"clip_frames/000000.png", "clip_frames/times.csv"} < set(results)


def test_a_folder_of_frames_is_replaced_if_nothing_else_is_in_it(tmp_path: Path) -> None:
    clip = make(tmp_path / "clip.mp4", street(3))
    for _ in range(2):
        done = run("predict", clip, "--video", "frames", "--out", "o", "--size", 64, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
    assert len(files(tmp_path / "o")) == 4
    (tmp_path / "o/clip_frames/notes.txt").touch()
    for more in ((), ("--overwrite",)):
        done = run("predict", clip, "--video", "frames", "--out", "o", "--size", 64, *more, cwd=tmp_path)
        assert done.returncode == 1
        assert "evitseg" in done.stderr
        assert (tmp_path / "o/clip_frames/notes.txt").exists()


@pytest.mark.parametrize(("name", "more"), [("result.mp4", ()), ("result.mkv", ()), ("m.mov", ("--video", "mask"))])
def test_out_with_an_ending_is_the_only_result(name: str, more: tuple[str, ...], tmp_path: Path) -> None:
    clip = make(tmp_path / "clip.mp4", street(3))
    for _ in range(2):  # its own result is replaced
        done = run("predict", clip, "--out", name, *more, "--size", 64, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        assert files(tmp_path) == sorted(["clip.mp4", name])
    assert is_ours(tmp_path / name)
    assert not is_ours(clip)
    with av.open(tmp_path / name) as container:
        assert sum(1 for _ in container.decode(video=0)) == 3
    theirs = clip.read_bytes()
    (tmp_path / name).write_bytes(theirs)
    done = run("predict", clip, "--out", name, *more, "--size", 64, cwd=tmp_path)
    assert done.returncode == 1
    assert f"{name}: exists" in done.stderr
    assert (tmp_path / name).read_bytes() == theirs


def wait_for(folder: Path, process: subprocess.Popen[str], frames: int = 0) -> None:
    """Until results are being written, and so many frames are there as PNG files."""
    while not any(p.stat().st_size for p in folder.rglob(".evitseg-*")) or len([*folder.rglob("*.png")]) < frames:
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGINT to send")
def test_an_interrupted_file_leaves_nothing(tmp_path: Path) -> None:
    clip = make(tmp_path / "clip.mp4", street(3000, (32, 32)))
    process = subprocess.Popen(
        command("predict", clip, "--size", 128), cwd=tmp_path, stdout=-1, stderr=-1, text=True, start_new_session=True
    )
    wait_for(tmp_path, process)
    process.send_signal(signal.SIGINT)
    _, complaint = process.communicate(timeout=60)
    assert process.returncode == 130
    assert complaint.strip() == "interrupted."
    assert files(tmp_path) == ["clip.mp4"]


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGINT to send")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_live_source_leaves_a_whole_video(number: int, sender: Sender, tmp_path: Path) -> None:
    process = subprocess.Popen(
        command("predict", sender.address, "--size", 64, "--video", "overlay", "--video", "frames"),
        cwd=tmp_path, stdout=-1, stderr=-1, text=True, start_new_session=True,
    )  # fmt: skip
    wait_for(tmp_path, process, frames=4)
    process.send_signal(number)
    output, complaint = process.communicate(timeout=60)
    assert process.returncode == 0, complaint
    stem = f"predictions/127.0.0.1_{sender.port}"
    *frames, times, overlay = files(tmp_path)
    assert (times, overlay) == (f"{stem}_frames/times.csv", f"{stem}_overlay.mp4")
    assert frames == [f"{stem}_frames/{number:06}.png" for number in range(len(frames))]
    assert len(decoded(tmp_path / overlay)) == len(frames) >= 4
    assert "dropped; latency" in output


def test_a_missing_file_is_reported_before_missing_packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(VideoError, match=r"gone\.mp4: no such file\.$"):
        VideoReader(tmp_path / "gone.mp4", None, None)


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere FFmpeg gives other errors")
def test_a_camera_that_is_not_there_is_a_sentence() -> None:
    with pytest.raises(VideoError, match=r"^camera:99: no such camera; check that /dev/video99 is connected\.$"):
        VideoReader("camera:99", None, None)


def test_names_of_streams_hide_passwords() -> None:
    address = "rtsp://user:secret@cam.local:554/live/1?token=secret"
    assert stream_name(address) == "cam.local_554_live_1"
    assert stream_name("camera:0") == "camera_0"
    assert stream_name("/dev/video0") == "dev_video0"
    with pytest.raises(VideoError) as caught:
        write_video("rtsp://user:secret@127.0.0.1:9/live?token=secret", "x", evitseg.load())
    assert "secret" not in str(caught.value)
    assert "rtsp://127.0.0.1:9/live" in str(caught.value)


def test_streams_and_results_are_known_by_their_names(tmp_path: Path) -> None:
    for source in ("rtsp://a/b", "udp://1.2.3.4:5", "https://a/b.mp4", "camera:0", "/dev/video0"):
        assert is_stream(source), source
    for source in ("a.mp4", "C:\\a.mp4", "C:/a.mp4", "cameras/a.mp4", "/dev/videos/a.mp4"):
        assert not is_stream(source), source
    assert is_result(Path("a_mask.mov"))
    assert is_result(Path("a_overlay.mkv"))
    assert not is_result(Path("a_overlays.mp4"))
    assert not is_result(Path("a_frames/000001.png"))


# Addresses, legends, interrupts.


@pytest.fixture
def website(tmp_path: Path) -> Iterator[tuple[Path, str]]:
    """A folder and the address under which it is served."""
    folder = tmp_path / "www"
    folder.mkdir()

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder))) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        yield folder, f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def play_list(path: Path, part: str) -> None:
    path.write_text(
        f"#EXTM3U\n#EXT-X-VERSION:3\n#EXT-X-TARGETDURATION:2\n#EXTINF:1,\n{part}\n#EXT-X-ENDLIST\n", encoding="utf-8"
    )


def test_an_address_gives_every_frame_and_a_play_list_opens_no_files(
    website: tuple[Path, str], segment: Segmenter, tmp_path: Path
) -> None:
    folder, address = website
    clip = make(folder / "clip.ts", street(12), options={"qp": "8", "bf": "0"})
    play_list(folder / "web.m3u8", "clip.ts")
    play_list(folder / "file.m3u8", clip.as_uri())
    play_list(folder / "path.m3u8", str(clip))
    play_list(folder / "joined.m3u8", f"concat:{clip}|{clip}")
    (folder / "script.txt").write_text("ffconcat version 1.0\nfile clip.ts\n")
    expected = [i / 25 for i in range(12)]
    for name in ("clip.ts", "web.m3u8"):
        assert [at for at, _ in segment_video(f"{address}/{name}", segment, live=False)] == pytest.approx(expected)
    for name in ("file.m3u8", "path.m3u8", "joined.m3u8", "script.txt"):
        with pytest.raises(VideoError, match=f"{name}: cannot be opened"):
            write_video(f"{address}/{name}", tmp_path / "out", segment)
    with pytest.raises(VideoError, match="not in a supported video format"):
        write_video(folder / "web.m3u8", tmp_path / "out", segment)


@pytest.mark.parametrize(
    ("address", "sentence"),
    [
        ("rtsp://[bad", "not a valid address"),
        ("rtsp://", "rtsp://HOST:PORT/PATH"),
        ("http://host:99999/x", "not a valid address"),
        ("file:///clip.m3u8", "file:// is not supported; give the path itself"),
        ("concat://a", "concat:// is not supported; supported are http"),
        ("rtsp://me:secret@[bad/x?key=secret", "not a valid address"),
    ],
)
def test_malformed_addresses_are_refused(address: str, sentence: str, segment: Segmenter, tmp_path: Path) -> None:
    assert is_stream(address)
    assert stream_name(address)
    with pytest.raises(ConfigError, match=sentence) as caught:
        write_video(address, tmp_path / "out", segment)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("duration", [0.0, -1.0, float("nan"), float("inf")])
def test_a_duration_must_be_positive_and_finite(duration: float, segment: Segmenter, tmp_path: Path) -> None:
    clip = make(tmp_path / "clip.mp4", street(2))
    with pytest.raises(ConfigError, match="positive number of seconds"):
        write_video(clip, tmp_path / "out", segment, duration_s=duration)


@pytest.mark.parametrize("tags", [{"colorspace": 1, "color_range": 1}, {"colorspace": 5, "color_range": 2}])
def test_a_legend_shows_every_class_that_occurs_in_its_colour(
    tags: dict[str, int], segment: Segmenter, tmp_path: Path
) -> None:
    clip = make(tmp_path / "clip.mp4", street(3, (480, 640)), tags=tags)
    plain = rgb(decoded(write_video(clip, tmp_path / "plain", segment).written["overlay"])[-1]).astype(int)
    result = write_video(clip, tmp_path / "named", segment, legend=True)
    named = rgb(decoded(result.written["overlay"])[-1]).astype(int)
    changed = np.abs(named - plain).max(2) > 60
    rows, columns = np.flatnonzero(changed.any(1)), np.flatnonzero(changed.any(0))
    # In the upper left, at most half of both sides.
    assert rows.max() < 240
    assert columns.max() < 320
    assert changed.any()
    assert (np.abs(named[240:, 320:] - plain[240:, 320:]) > 12).mean() < 1e-3  # the codec changes a few
    # A square of every class's own colour, at full strength: 12 pixels of text, 6 of margin.
    colors = {c.name: c.color for c in segment.labels.classes}
    expected = [name for name in segment.labels.names if result.fractions.get(name, 0) > 0.002]
    shown = [named[12 + 18 * i, 12] for i in range(len(result.fractions))]
    for name in expected:
        assert min(np.abs(np.array(color) - colors[name]).max() for color in shown) < 12, name


def test_a_legend_that_has_no_room_is_cut_or_left_out(segment: Segmenter, tmp_path: Path) -> None:
    for size in ((64, 96), (16, 16), (24, 400)):
        clip = make(tmp_path / "clip.mkv", street(2, size), codec="ffv1", form="yuv444p")
        result = write_video(clip, tmp_path / "clip", segment, legend=True)
        assert result.frames == 2


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGINT to send")
def test_an_interrupt_cuts_no_frame_in_two(segment: Segmenter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # It comes when the first kind has a frame that the second has not.
    clip = make(tmp_path / "clip.mp4", street(20))
    real = writers.WRITERS["mask"]

    @contextlib.contextmanager
    def interrupting(*arguments: Any, **more: Any) -> Iterator[writers.FrameWriter]:
        with real(*arguments, **more) as sink:
            written = 0

            def write(done: writers.SegmentedFrame) -> None:
                nonlocal written
                sink.write(done)
                written += 1
                if written == 1:
                    os.kill(os.getpid(), signal.SIGINT)
                    time.sleep(0.05)

            yield writers.FrameWriter(sink.path, write)

    monkeypatch.setitem(writers.WRITERS, "mask", interrupting)
    slow = Segmenter(Slow(segment.engine, lambda: time.sleep(0.02)), 64)
    result = write_video(clip, tmp_path / "clip", slow, ["mask", "frames"], live=True)
    assert result.interrupted
    assert result.frames == len(decoded(result.written["mask"])) == 1
    assert len(list(result.written["frames"].glob("*.png"))) == 1
    assert len((result.written["frames"] / "times.csv").read_text().splitlines()) == 2
    with pytest.raises(KeyboardInterrupt):
        write_video(clip, tmp_path / "other", slow, ["mask", "frames"])
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(("other", ".evitseg"))]


@pytest.mark.parametrize("frames", [1, 2, 3])
def test_latencies_of_few_frames_are_in_order(frames: int, segment: Segmenter, tmp_path: Path) -> None:
    clip = make(tmp_path / "clip.mp4", street(frames))
    result = write_video(clip, tmp_path / "clip", segment, live=True)
    assert result.latency_ms is not None
    assert result.p90_latency_ms is not None
    if result.frames == 1:
        assert result.p90_latency_ms == result.latency_ms
    else:
        assert result.p90_latency_ms >= result.latency_ms


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGTERM to send")
def test_a_stopped_service_begins_no_further_input(sender: Sender, tmp_path: Path) -> None:
    process = subprocess.Popen(
        command("predict", sender.address, "udp://127.0.0.1:9", "--size", 64, "--video", "frames"),
        cwd=tmp_path, stdout=-1, stderr=-1, text=True, start_new_session=True,
    )  # fmt: skip
    wait_for(tmp_path, process, frames=4)
    process.send_signal(signal.SIGTERM)
    _, complaint = process.communicate(timeout=60)
    assert process.returncode == 143
    assert complaint.startswith("interrupted; 1 ")
    assert len(list(tmp_path.rglob("*.png"))) >= 4
    assert len(list(tmp_path.rglob("times.csv"))) == 1


def test_wrong_addresses_and_durations_are_usage_errors(tmp_path: Path) -> None:
    make(tmp_path / "clip.mp4", street(2))
    for arguments in (
        ["clip.mp4", "--duration", "nan"],
        ["clip.mp4", "--duration", "-1"],
        ["clip.mp4", "--duration", "inf"],
        ["rtsp://[bad"],
        ["file:///clip.m3u8"],
        ["clip.mp4", "--no-overlay", "--legend"],
    ):
        done = run("predict", *arguments, cwd=tmp_path)
        assert done.returncode == 2, done.stderr
        assert "Traceback" not in done.stderr
    assert files(tmp_path) == ["clip.mp4"]


@pytest.mark.parametrize("kind", ["half", "head", "tail", "zeros", "noise", "header"])
@pytest.mark.parametrize("ending", ["mp4", "mkv", "avi", "ts", "flv", "h264", "nut"])
def test_damaged_files_give_results_or_a_sentence(ending: str, kind: str, segment: Segmenter, tmp_path: Path) -> None:
    whole = make(tmp_path / f"whole.{ending}", street(8))
    content = bytearray(whole.read_bytes())
    random = np.random.default_rng(1)
    middle = len(content) // 2
    if kind == "zeros":
        content[middle : middle + middle // 4] = bytes(middle // 4)
    for _ in range({"noise": 60, "header": 12}.get(kind, 0)):
        content[random.integers(0, 300 if kind == "header" else len(content))] = random.integers(0, 256)
    parts = {"half": slice(middle), "head": slice(200), "tail": slice(middle // 2, None)}
    clip = tmp_path / f"clip{whole.suffix}"
    clip.write_bytes(content[parts.get(kind, slice(None))])
    try:
        result = write_video(clip, tmp_path / "clip", segment, ["mask"])
        assert len(decoded(result.written["mask"])) == result.frames
        assert result.damage is None or "clip." in result.damage
    except VideoError as error:
        assert "clip." in str(error)
        assert not [path for path in tmp_path.iterdir() if path not in (whole, clip)]


@pytest.mark.parametrize("ending", ["mp4", "mkv", "avi", "ts", "flv", "mpg", "wmv", "mxf", "y4m", "ivf"])
def test_a_video_is_known_by_its_content_whatever_its_name(ending: str, tmp_path: Path) -> None:
    codecs = {"mpg": "mpeg2video", "wmv": "wmv2", "mxf": "mpeg2video", "y4m": "rawvideo", "ivf": "libvpx-vp9"}
    clip = make(
        tmp_path / f"clip.{ending}", street(3), codec=codecs.get(ending, "libx264"), options={}, base=Fraction(1, 25)
    )
    for name in ("clip", "clip.part", "clip.dat"):
        assert is_video(clip.replace(tmp_path / name)), name
        clip = tmp_path / name


def test_what_is_no_video_is_not_taken_for_one(tmp_path: Path) -> None:
    contents = {
        "a.txt": b"some text, long enough to hold " * 20,
        "a.heic": b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(400),
        "a.bin": b"G" + bytes(400),
        "empty": b"",
        "a.wav": b"RIFF\0\0\0\0WAVEfmt " + bytes(400),
        "a.jpg": b"\0\0\0\x18ftypisom" + bytes(400),  # an image's name: it is read, and refused, as one
    }
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
        assert not is_video(tmp_path / name), name
    assert not is_video(tmp_path / "missing")
    assert not is_video(tmp_path)


def test_one_option_puts_legends_on_videos_and_takes_them_off_images(tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    make(data / "clip.mp4", street(2, (240, 320)))
    Image.fromarray(street(1, (240, 320))[0]).save(data / "photo.png")
    pixels, heights = {}, {}
    for name, option in {"default": [], "with": ["--legend"], "without": ["--no-legend"]}.items():
        done = run("predict", data, "--size", 64, "--out", tmp_path / name, *option, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        pixels[name] = rgb(decoded(tmp_path / name / "clip_overlay.mp4")[-1]).astype(int)
        with Image.open(tmp_path / name / "photo_overlay.jpg") as image:
            heights[name] = image.height
    assert heights["without"] == 240 < heights["default"] == heights["with"]
    np.testing.assert_array_equal(pixels["default"], pixels["without"])
    assert np.abs(pixels["with"] - pixels["default"]).max() > 100


def test_scores_that_are_not_finite_are_an_error_in_a_video_too(segment: Segmenter) -> None:
    def broken(images: NDArray[np.uint8]) -> NDArray[np.float32]:
        return np.full_like(segment.engine(images), np.nan)

    broken.manifest, broken.info = segment.manifest, segment.info  # type: ignore[attr-defined]
    frame = av.VideoFrame.from_ndarray(street(1)[0], format="rgb24")
    with pytest.raises(WeightsError, match="not finite"):
        frame_mask(frame, Segmenter(broken))  # type: ignore[arg-type]
