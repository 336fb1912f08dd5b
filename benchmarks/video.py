"""How fast a video is done: `evitseg predict` beside its engine alone and its decoder alone.

    python benchmarks/video.py

The clip is made from the shipped photograph, panned and zoomed: 10 seconds, 960×540, 30 Hz, H.264 with x264's defaults.
The contestants take rounds, each in its own warm process, on the whole clip:

- engine, one after the other: the network alone on the clip's frames, prepared beforehand, with every thread on one;
- engine, in streams: the same with as many frames at a time as `evitseg predict` has under way;
- decoding: FFmpeg with one thread, nothing done with the frames;
- overlay, mask: the command's own function, from file to file.

Beside them, for every preset of the encoder, time and size of the overlay; and how many pixels of a frame's mask differ
from what the segmenter gives for the same frame as an image.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from contest import RESULTS, compete, serve
from PIL import Image

import evitseg
from evitseg import video
from evitseg.bundled import EXAMPLE_IMAGE
from evitseg.cli.predict_whole import MAX_STREAMS
from evitseg.system.files import replacing
from evitseg.system.machine import physical_cores, processor_name
from evitseg.video.frames import frame_mask, new_frame, overlaid, plane_of, yuv_colors

HEIGHT, WIDTH, RATE, SECONDS = 540, 960, 30, 10
FRAMES = RATE * SECONDS
ENCODERS = {
    f"{preset}, {'qp' if 'qp' in options else 'crf'} 23": {"preset": preset} | options
    for preset in ("ultrafast", "superfast", "veryfast")
    for options in ({"qp": "23"}, {"crf": "23"})
}


def make_clip(path: Path) -> None:
    import av

    with Image.open(EXAMPLE_IMAGE) as image, av.open(str(path), "w") as out:
        photograph = image.convert("RGB")
        stream: Any = out.add_stream("libx264", RATE)
        stream.height, stream.width, stream.pix_fmt = HEIGHT, WIDTH, "yuv420p"
        for i in range(FRAMES):
            turn = 2 * np.pi * i / FRAMES
            width = WIDTH * (1.6 + 0.3 * np.sin(turn))
            height = width * HEIGHT / WIDTH
            left = (photograph.width - width) / 2 * (1 + np.sin(4 * turn))
            top = (photograph.height - height) / 2 * (1 + np.sin(2 * turn))
            box = (left, top, left + width, top + height)
            frame = photograph.resize((WIDTH, HEIGHT), Image.Resampling.BILINEAR, box)
            out.mux(stream.encode(av.VideoFrame.from_ndarray(np.asarray(frame), format="rgb24")))
        out.mux(stream.encode(None))


def decode(clip: Path) -> list[Any]:
    import av

    with av.open(str(clip)) as container:
        container.streams.video[0].codec_context.thread_count = 1
        return list(container.decode(video=0))


def contestant(role: str, clip: Path) -> None:
    if role == "decoding":
        serve(lambda: decode(clip))
        return
    streams = 1 if role == "engine" else min(physical_cores(), MAX_STREAMS)  # as evitseg predict has them
    segment = evitseg.load(streams=streams)
    if role in ("engine", "streams"):
        inputs = [segment.manifest.preprocess.apply(f.to_ndarray(format="rgb24"))[None] for f in decode(clip)[::10]]
        pool = ThreadPoolExecutor(streams)
        serve(lambda: list(pool.map(lambda i: segment.engine(inputs[i % len(inputs)]), range(FRAMES))))
    else:
        kinds = [role]
        serve(lambda: video.write_video(clip, clip.with_name(role), segment, kinds, workers=streams))  # type: ignore[arg-type]


def differing_pixels(clip: Path) -> list[float]:
    """Of every tenth frame's mask, the share that differs from the mask of the frame as an image."""
    segment = evitseg.load()
    images = [frame.to_ndarray(format="rgb24") for frame in decode(clip)]
    given = video.segment_video(clip, segment)
    return [
        float((prediction.mask != segment(image).mask).mean())
        for i, (image, (_, prediction)) in enumerate(zip(images, given, strict=True))
        if i % 10 == 0
    ]


def encoders(clip: Path) -> dict[str, Any]:
    """Time, size and fidelity of the overlay's encoder, alone, in this process."""
    import io
    from fractions import Fraction

    import av

    segment, results = evitseg.load(), {}
    drawn: list[Any] = []
    colors = None
    for frame in decode(clip)[:60]:
        colors = colors or yuv_colors(segment.labels, new_frame(frame, 2, 2))
        drawn.append(overlaid(frame, frame_mask(frame, segment), colors))
    for name, options in ENCODERS.items():
        taken = []
        for _ in range(3):
            file = io.BytesIO()
            began = time.perf_counter()
            with av.open(file, "w", format="mp4") as out:
                stream: Any = out.add_stream("libx264", RATE, options)
                stream.height, stream.width, stream.pix_fmt = HEIGHT, WIDTH, "yuv420p"
                stream.codec_context.thread_count = 1
                for i, frame in enumerate(drawn):
                    frame.pts, frame.time_base = i, Fraction(1, RATE)
                    out.mux(stream.encode(frame))
                out.mux(stream.encode(None))
            taken.append(time.perf_counter() - began)
        size = len(file.getvalue())
        file.seek(0)
        with av.open(file) as back:
            errors = [
                np.square(plane_of(got, 0).astype(float) - plane_of(frame, 0)).mean()
                for got, frame in zip(back.decode(video=0), drawn, strict=True)
            ]
        results[name] = {
            "ms_a_frame": 1000 * statistics.median(taken) / len(drawn),
            "megabits_a_second": 8e-6 * size * RATE / len(drawn),
            "psnr_luma": 10 * float(np.log10(255**2 / np.mean(errors))),
        }
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--as", dest="contestant", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.contestant:
        role, clip = arguments.contestant
        contestant(role, Path(clip))
        return
    with tempfile.TemporaryDirectory() as folder:
        clip = Path(folder) / "clip.mp4"
        make_clip(clip)
        roles = {
            "engine, one after the other": "engine",
            "engine, in streams": "streams",
            "decoding": "decoding",
            "overlay": "overlay",
            "mask": "mask",
        }
        commands = {name: [sys.executable, __file__, "--as", role, str(clip)] for name, role in roles.items()}
        results = compete(commands, arguments.rounds)
        differing = differing_pixels(clip)
        compared = encoders(clip)
        sizes = {"clip": clip.stat().st_size, "overlay": (Path(folder) / "overlay_overlay.mp4").stat().st_size}
    reference = results["engine, one after the other"].median_ms
    rows = {
        name: asdict(row)
        | {"frames_a_second": 1000 * FRAMES / row.median_ms, "of_the_engine": reference / row.median_ms}
        for name, row in results.items()
    }
    for name, fields in rows.items():
        print(f"{name:<28}{fields['frames_a_second']:>8.1f} frames/s {fields['of_the_engine']:>6.2f} of the engine")
    segment = evitseg.load()
    content = {
        "settings": {
            "clip": f"{WIDTH}×{HEIGHT}, {FRAMES} frames, H.264",
            "network_input": segment.manifest.preprocess.fit((HEIGHT, WIDTH)),
            "runs": str(segment.info),
            "processor": processor_name(),
            "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
            "bytes": sizes,
        },
        "results": rows,
        "encoders": compared,
        "differing_pixels": {"mean": statistics.mean(differing), "most": max(differing)},
    }
    with replacing(RESULTS / "video.json") as file:
        file.write((json.dumps(content, indent=2) + "\n").encode())


if __name__ == "__main__":
    main()
