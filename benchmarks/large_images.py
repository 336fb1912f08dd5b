"""Images in bands and bounded memory: are they what the whole gives, and what do they cost?

    python benchmarks/large_images.py identical           # B0, B1, B3 and L1 at several sizes, in bands beside whole
    python benchmarks/large_images.py huge --side 32768   # a gigapixel, beside 2048×2048 in memory
    python benchmarks/large_images.py medium              # 4096×4096 with features in memory, beside the same whole
    python benchmarks/large_images.py files               # 16384×16384 from TIFF files to TIFF masks
    python benchmarks/large_images.py windows             # sliding windows, beside 2048×2048 in memory
    python benchmarks/large_images.py pieces              # a new file of 3 GiB, written in pieces of several sizes

The networks of `identical` have random weights, with which every layer has something to say; the image is the bundled
photograph, enlarged. `huge` runs the bundled model on an image that is made window by window from the photograph, and
on one whose rows are in memory already, which is the cost of the bands without that of reading. Neither writes a mask
file; `files` separates what reading and writing files costs. Each contestant has a process of its own, and its peak
memory is what the kernel counted. The scratch file is new.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from contextlib import nullcontext
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from contest import RESULTS
from numpy.typing import NDArray
from PIL import Image

import evitseg
from evitseg.bundled import EXAMPLE_IMAGE, bundled_models
from evitseg.labels import numbered
from evitseg.manifest import Manifest, Training
from evitseg.preprocess import Preprocess
from evitseg.raster.window import TILE, ArraySource, Sink, Source
from evitseg.system.files import replacing
from evitseg.system.machine import peak_mib, processor_name
from evitseg.tiling.arguments import image_source, mask_sink
from evitseg.tiling.network import Network
from evitseg.tiling.progress import BandProgress
from evitseg.tiling.sliding_window import sliding_window
from evitseg.tiling.stream import segment_large
from evitseg.tiling.verify import banded_logits

SIZES = ((4096, 4096), (3001, 2047), (5000, 333), (97, 61))
BANDS = (128, 512, 1536)
BUNDLED = bundled_models()["b0-camvid"]


class Mosaic(Source):
    """An image of any size: the photograph beside and below itself, each time a little brighter or darker."""

    def __init__(self, side: int) -> None:
        self.size = (side, side)
        with Image.open(EXAMPLE_IMAGE) as image:
            self._piece = np.asarray(image.convert("RGB").resize((2048, 1024)))

    def read(self, top: int, left: int, height: int, width: int) -> NDArray[np.uint8]:
        out = np.empty((height, width, 3), np.uint8)
        for y in range(top // 1024 * 1024, top + height, 1024):
            for x in range(left // 2048 * 2048, left + width, 2048):
                (y0, y1), (x0, x1) = (
                    (max(y, top), min(y + 1024, top + height)),
                    (max(x, left), min(x + 2048, left + width)),
                )
                piece = self._piece[y0 - y : y1 - y, x0 - x : x1 - x]
                np.right_shift(
                    piece, (y // 1024 * 5 + x // 2048) % 3 // 2, out=out[y0 - top : y1 - top, x0 - left : x1 - left]
                )
        return out

    def valid(self, top: int, left: int, height: int, width: int) -> None:
        return None


class Repeated(Mosaic):
    """An image that repeats its first rows, which are in memory, so that reading them costs nothing."""

    def __init__(self, side: int) -> None:
        super().__init__(side)
        self._rows = super().read(0, 0, max(64, 2**22 // side // 64 * 64), side)
        self.held, self.tile = self._rows.nbytes, (TILE, side)

    def read(self, top: int, left: int, height: int, width: int) -> NDArray[np.uint8]:
        first = top % len(self._rows)
        if first + height <= len(self._rows):
            return self._rows[first : first + height, left : left + width]
        return self._rows[np.arange(top, top + height) % len(self._rows), left : left + width]


class Timed(Source):
    """A source that counts the processor time of its readers."""

    def __init__(self, source: Source) -> None:
        self._source, self.seconds = source, 0.0
        self.size, self.tile, self.identity = source.size, source.tile, source.identity
        self.held, self.origin = source.held, source.origin

    def read(self, top: int, left: int, height: int, width: int) -> NDArray[np.uint8]:
        start = time.thread_time()
        pixels = self._source.read(top, left, height, width)
        self.seconds += time.thread_time() - start
        return pixels

    def valid(self, top: int, left: int, height: int, width: int) -> NDArray[np.bool_] | None:
        return self._source.valid(top, left, height, width)


class Forgotten(Sink):
    """A sink that keeps nothing."""

    tile = (1, 2**30)  # whole rows

    def write(self, top: int, left: int, mask: NDArray[np.integer]) -> None:
        pass


class TimedSink(Sink):
    """A sink that counts the processor time of its writer."""

    def __init__(self, sink: Sink) -> None:
        self._sink, self.tile, self.seconds = sink, sink.tile, 0.0

    def write(self, top: int, left: int, mask: NDArray[np.integer]) -> None:
        start = time.thread_time()
        self._sink.write(top, left, mask)
        self.seconds += time.thread_time() - start


def random_artefact(variant: str, folder: Path) -> Path:
    """A network with random weights that keep the signal alive, as an exported model."""
    import torch

    from evitseg.exporters.onnx import write_onnx

    torch.manual_seed(0)
    network = evitseg.build(variant, 19)
    generator = torch.Generator().manual_seed(0)
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.weight.data.uniform_(0.6, 1.2, generator=generator)
            module.bias.data.normal_(0, 0.1, generator=generator)
        elif isinstance(module, torch.nn.Conv2d):
            module.weight.data.normal_(0, (1.6 / module.weight[0].numel()) ** 0.5, generator=generator)
    manifest = Manifest(f"random {variant}", network.config, numbered(19), Preprocess(), Training("generated", "CC0"))
    path = folder / f"{variant}.onnx"
    write_onnx(network.eval(), manifest, path)
    return path


def identical(variants: list[str]) -> list[dict[str, Any]]:
    """Differences in bits between bands of several heights, with one and two threads, and the whole image."""
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as name, Image.open(EXAMPLE_IMAGE) as photograph:
        folder = Path(name)
        for variant in variants:
            model_file = BUNDLED if variant == "b0-camvid" else random_artefact(variant, folder)
            for height, width in SIZES:
                image = np.asarray(photograph.convert("RGB").resize((width, height), Image.Resampling.BICUBIC))
                whole = evitseg.load(model_file, precision="float32", size="native").logits(image)
                differing = 0
                for threads in (1, 2):
                    network = Network(model_file, "float32", threads)
                    for band in BANDS:
                        bands = banded_logits(ArraySource(image), network, band, folder)
                        differing += int((bands.view(np.uint32) != whole.view(np.uint32)).sum())
                row = {"model": variant, "height": height, "width": width, "logits_that_differ": differing}
                print(row, flush=True)
                rows.append(row)
    return rows


def contestant(precision: str, *arguments: object) -> dict[str, Any]:
    """What this script prints for these arguments, in a process of its own."""
    command = [sys.executable, __file__, *map(str, arguments), "--precision", precision]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    print(found, flush=True)
    return found


def beside_whole(precision: str, turns: int, rounds: int, *arguments: object) -> dict[str, Any]:
    """A contestant and 2048×2048 in memory in turn, because the machine has moods."""
    found, wholes = [], [contestant(precision, "whole", "--turns", turns)]
    for _ in range(rounds):
        banded = contestant(precision, *arguments)
        wholes.append(contestant(precision, "whole", "--turns", turns))
        around = (wholes[-2]["ns_per_pixel"] + wholes[-1]["ns_per_pixel"]) / 2
        found.append(banded | {"times_as_long_per_pixel": banded["ns_per_pixel"] / around})
    print(*(f"{each['times_as_long_per_pixel']:.2f}" for each in found), "times as long per pixel as in memory")
    return {"whole 2048x2048": wholes, "bands": found}


def slid(side: int, window: int, precision: str) -> dict[str, Any]:
    network = Network(BUNDLED, precision)  # type: ignore[arg-type]
    image = ArraySource(Mosaic(side).read(0, 0, side, side))
    start = time.perf_counter()
    sliding_window(network, image, Forgotten(), window)
    return {"ns_per_pixel": (time.perf_counter() - start) / side**2 * 1e9, "peak_mib": peak_mib()}


def whole(precision: str, turns: int) -> dict[str, Any]:
    segment = evitseg.load(BUNDLED, precision=precision, size="native")  # type: ignore[arg-type]
    image = Mosaic(2048).read(0, 0, 2048, 2048)
    times = []
    for _ in range(turns + 2):
        start = time.perf_counter()
        segment.mask(image)
        times.append(time.perf_counter() - start)
    per_pixel = 1e9 / image[..., 0].size
    return {
        "ns_per_pixel": float(np.median(times[2:])) * per_pixel,
        "ns_per_pixel_first": times[0] * per_pixel,
        "peak_mib": peak_mib(),
    }


def bands(side: int, memory: int | None, precision: str, turns: int, source: str) -> dict[str, Any]:
    """One image in bands, in a new scratch file, or with features in memory if no limit is given.

    Args:
        turns: with features in memory, how often after the first two times; the median counts, as for the whole.
        source: "made" window by window, "memory", or a TIFF file, whose mask is a file beside it.
    """
    network = Network(BUNDLED, precision)  # type: ignore[arg-type]
    is_file = source not in ("made", "memory")
    if source == "made":
        opened: Any = nullcontext((Mosaic(side) if memory else ArraySource(Mosaic(side).read(0, 0, side, side)), False))
    elif source == "memory":
        opened = nullcontext((Repeated(side), False))
    else:
        opened = image_source(source, None, memory)
    runs, mask = [], Path(source).with_suffix(".mask.tif")
    with opened as (image, _):
        timed = Timed(image)
        for _ in range(1 if memory else turns + 2):
            writer = mask_sink(mask, timed, network) if is_file else nullcontext(Forgotten())
            runs.append(one_run(network, timed, memory, writer))
    counted = sorted(runs if memory else runs[2:], key=lambda run: run["ns_per_pixel"])
    first = {"ns_per_pixel_first": runs[0]["ns_per_pixel"]}
    return counted[len(counted) // 2] | first | {"side": side, "memory": memory, "peak_mib": peak_mib()}


def one_run(network: Network, image: Timed, memory: int | None, writer: Any) -> dict[str, Any]:
    """Nanoseconds per pixel of one image: in all, of the segments, and processor time outside of the bands."""
    ends: dict[int, float] = {}

    def watch(progress: BandProgress) -> None:
        ends[progress.segment] = time.perf_counter()

    per_pixel = 1e9 / image.size[0] / image.size[1]
    image.seconds = 0.0
    with tempfile.TemporaryDirectory() as folder:
        scratch = folder if memory else None
        used, start = os.times(), time.perf_counter()
        with writer as sink:
            timed = TimedSink(sink)
            streamed = segment_large(network, image, timed, scratch=scratch, memory=memory, watch=watch)
        end, now = time.perf_counter(), os.times()
    return {
        "heights": streamed.plan.bands,
        "ns_per_pixel": (end - start) * per_pixel,
        "ns_per_pixel_of_segments": [(b - a) * per_pixel for a, b in pairwise([start, *ends.values()])],
        "processor_ns_per_pixel": {
            "program": (now.user - used.user) * per_pixel,
            "system": (now.system - used.system) * per_pixel,
            "of them reading the image": image.seconds * per_pixel,
            "of them writing the mask": timed.seconds * per_pixel,
        },
    }


def write_image(path: Path, side: int, compression: str | None) -> None:
    """The mosaic as a tiled TIFF file."""
    import rasterio

    mosaic, options = Mosaic(side), {"compress": compression} if compression else {}
    layout = {
        "tiled": True,
        "blockxsize": 512,
        "blockysize": 512,
        "photometric": "YCbCr" if compression == "jpeg" else "RGB",
    }
    with rasterio.open(
        path,
        "w",
        driver="GTiff",
        width=side,
        height=side,
        count=3,
        dtype="uint8",
        interleave="pixel",
        **layout,
        **options,
    ) as file:
        for top in range(0, side, 512):
            rows = mosaic.read(top, 0, min(512, side - top), side)
            file.write(np.moveaxis(rows, -1, 0), window=((top, top + len(rows)), (0, side)))


def files(precision: str, side: int, memory: int) -> dict[str, Any]:
    """An image in memory that gives no mask file, and TIFF files that give mask files, in turn."""
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        for name in ("memory", "uncompressed", "deflate", "jpeg"):
            path = Path(folder) / f"{name}.tif"
            if name != "memory":
                write_image(path, side, None if name == "uncompressed" else name)
            source = "memory" if name == "memory" else path
            found[name] = contestant(precision, "bands", "--side", side, "--memory", memory, "--source", source)
            path.unlink(missing_ok=True)
    return found


def pieces() -> list[dict[str, Any]]:
    """Nanoseconds per byte of a file that is written in pieces: for the first time, and again."""
    length, rows = 3 * 2**30, list[dict[str, Any]]()
    content = np.ones(2**20, np.uint8).data
    for kib in (16, 512, 64, 16, 512, 64, 16, 512):
        with tempfile.TemporaryFile() as file:
            os.posix_fallocate(file.fileno(), 0, length)
            row: dict[str, Any] = {"kib": kib}
            for turn in ("first", "again"):
                start = time.perf_counter()
                for offset in range(0, length, kib * 1024):
                    os.pwrite(file.fileno(), content[: kib * 1024], offset)
                row[turn] = (time.perf_counter() - start) / length * 1e9
        print(row, flush=True)
        rows.append(row)
        time.sleep(10)  # until a virtual machine has given the memory back
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "what", choices=("identical", "huge", "medium", "files", "windows", "pieces", "whole", "bands", "slid")
    )
    parser.add_argument("--side", type=int, help="of the image; 32768 for huge, 16384 for files")
    parser.add_argument("--source", default="made", help="of bands: made, memory, or a TIFF file")
    parser.add_argument("--window", type=int, default=1024, help="of windows")
    parser.add_argument("--memory", type=int, help="limit in bytes; 0 for none")
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--turns", type=int, default=15)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--models", nargs="+", default=["b0-camvid", "b0", "b1", "b3", "l1"])
    options = parser.parse_args()
    precision, turns, rounds = options.precision, options.turns, options.rounds
    if options.what == "whole":
        print(json.dumps(whole(precision, turns)))
        return
    if options.what == "bands":
        print(json.dumps(bands(options.side or 32_768, options.memory, precision, turns, options.source)))
        return
    if options.what == "slid":
        print(json.dumps(slid(options.side or 4096, options.window, precision)))
        return
    memory = options.memory or 500_000_000
    content: dict[str, Any] = {"processor": processor_name(), "command": sys.argv[1:]}
    if options.what == "identical":
        content["rows"] = identical(options.models)
    elif options.what == "pieces":
        content["rows"] = pieces()
    elif options.what == "huge":
        of = "bands", "--side", options.side or 32_768, "--memory", memory
        for source in ("made", "memory"):
            content[f"image {source}"] = beside_whole(precision, turns, rounds, *of, "--source", source)
    elif options.what == "files":
        content |= files(precision, options.side or 16_384, memory)
    elif options.what == "medium":
        content |= beside_whole(precision, turns, rounds, "bands", "--side", 4096, "--turns", turns)
    else:
        for window in (512, 1024):
            found = beside_whole(precision, turns, rounds, "slid", "--side", 4096, "--window", window)
            content[f"windows of {window}"] = found
    name = options.what if precision == "auto" else f"{options.what}_{precision}"
    with replacing(RESULTS / f"large_images_{name}.json") as file:
        file.write(json.dumps(content, indent=2).encode() + b"\n")


if __name__ == "__main__":
    main()
