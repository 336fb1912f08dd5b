"""Images in tiles and bounded memory: are they what the whole gives, and what do they cost?

    python benchmarks/streaming.py exact                 # B0, B1 and L1 at 4096×4096 and 3001×2047, tiles beside whole
    python benchmarks/streaming.py huge --side 32768     # a gigapixel, beside 2048×2048 in memory
    python benchmarks/streaming.py blend                 # overlapping windows, beside 2048×2048 in memory

The networks of `exact` have random weights, with which every layer has something to say; the image is the shipped
photograph, enlarged. `huge` runs the bundled model on an image that is made window by window from the photograph;
each contestant has a process of its own, and its peak memory is what the kernel counted. It runs in a new scratch file,
and in one whose pages the system has at hand: between the two lies what this machine takes for a new page.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from dataclasses import asdict
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
from evitseg.raster.window import ArraySource, Sink, Source
from evitseg.runtime.upsample import argmax_upsampled
from evitseg.system.files import replacing
from evitseg.system.machine import peak_mib, processor_name
from evitseg.tiling.network import Network
from evitseg.tiling.scratch import Scratch
from evitseg.tiling.sliding_window import sliding_window
from evitseg.tiling.stream import TileProgress, segment_large
from evitseg.tiling.verify import tiled_logits

SIZES = ((4096, 4096), (3001, 2047))
TILES = (512, 1536)
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


class Forgotten(Sink):
    """A sink that keeps nothing."""

    tile = (1, 2**30)  # whole rows

    def write(self, top: int, left: int, mask: NDArray[np.integer]) -> None:
        pass


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


def exact(sizes: tuple[tuple[int, int], ...], variants: list[str]) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as name, Image.open(EXAMPLE_IMAGE) as photograph:
        folder = Path(name)
        for variant in variants:
            model_file = BUNDLED if variant == "b0-camvid" else random_artefact(variant, folder)
            network = Network(model_file, "float32")
            for height, width in sizes:
                image = np.asarray(photograph.convert("RGB").resize((width, height), Image.Resampling.BICUBIC))
                whole = evitseg.load(model_file, precision="float32", size="native").logits(image)
                for tile in TILES:
                    tiles = tiled_logits(ArraySource(image), network, tile, folder)
                    masks = [argmax_upsampled(logits, (height, width)) for logits in (tiles, whole)]
                    gap = largest_gap(whole, masks[0] != masks[1])
                    row = {
                        "model": variant,
                        "height": height,
                        "width": width,
                        "tile": tile,
                        "largest_logit": float(np.abs(whole).max()),
                        "logit_difference": float(np.abs(tiles - whole).max() / np.abs(whole).max()),
                        "mask_pixels_that_differ": int((masks[0] != masks[1]).sum()),
                        "largest_gap_where_the_mask_differs": gap,
                        "that_gap_with_logits_below_16": gap * scale_of(whole),
                    }
                    print(row, flush=True)
                    rows.append(row)
                del whole
    return rows


def scale_of(logits: NDArray[np.float32]) -> float:
    """A power of two that brings logits of random weights to the size of a trained network's: 8 to 16, or below.

    In the last layer's weights and biases it changes exponents alone: the same mask, every difference exactly scaled.
    """
    return float(2.0 ** min(0, 4 - np.frexp(np.abs(logits).max())[1]))


def largest_gap(logits: NDArray[np.float32], where: NDArray[np.bool_]) -> float:
    """Between the two best up-sampled logits, in those pixels of the mask."""
    places, weights = [], []
    for pixels, length, count in zip(np.nonzero(where), logits.shape[1:], where.shape, strict=True):
        position = (pixels + 0.5) * length / count - 0.5
        low = np.floor(position).astype(int)
        places.append((low.clip(0, length - 1), (low + 1).clip(0, length - 1)))
        weights.append((1 - (position - low), position - low))
    total = np.zeros((len(logits), len(places[0][0])))
    for i in (0, 1):
        for j in (0, 1):
            total += logits[:, places[0][i], places[1][j]] * weights[0][i] * weights[1][j]
    best = np.sort(total, 0)[-2:]
    return float((best[1] - best[0]).max(initial=0))


def contestant(precision: str, *arguments: object) -> dict[str, Any]:
    """What this script prints for these arguments, in a process of its own."""
    command = [sys.executable, __file__, *map(str, arguments), "--precision", precision]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    print(found, flush=True)
    return found


def huge(side: int, memory: int, precision: str, turns: int, rounds: int) -> dict[str, Any]:
    """All contestants in turn, the one in memory between the others, because the machine has moods."""

    ways = {"new pages": (), "pages at hand": ("--again",)}
    found: dict[str, Any] = {name: [] for name in ways}
    wholes = [contestant(precision, "whole", "--turns", turns)]
    for _ in range(rounds):
        for name, options in ways.items():
            tiled = contestant(precision, "tiles", "--side", side, "--memory", memory, *options)
            wholes.append(contestant(precision, "whole", "--turns", turns))
            around = (wholes[-2]["ns_per_pixel"] + wholes[-1]["ns_per_pixel"]) / 2
            found[name].append(tiled | {"times_as_long_per_pixel": tiled["ns_per_pixel"] / around})
    return {"whole 2048x2048": wholes, **found}


def blended(side: int, turns: int, rounds: int) -> list[dict[str, Any]]:
    """Windows that overlap and are blended, beside 2048×2048 in memory; medians of rounds."""
    rows = []
    for precision in ("float32", "bfloat16"):
        taken: dict[str, list[float]] = {}
        for _ in range(rounds):
            found = contestant(precision, "whole", "--turns", turns)
            taken.setdefault("2048×2048 in memory", []).append(found["ns_per_pixel"])
            for window in (512, 1024):
                found = contestant(precision, "windows", "--side", side, "--window", window)
                taken.setdefault(f"windows of {window}", []).append(found["ns_per_pixel"])
        medians = {name: float(np.median(found)) for name, found in taken.items()}
        rows.append({"precision": precision, "ns_per_pixel": medians, "all": taken})
        print(precision, medians)
    return rows


def windows(side: int, window: int, precision: str) -> dict[str, Any]:
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
    return {"ns_per_pixel": float(np.median(times[2:])) / image[..., 0].size * 1e9, "peak_mib": peak_mib()}


def tiles(side: int, memory: int, precision: str, again: bool) -> dict[str, Any]:
    """One image in tiles.

    Args:
        again: make it once before, and measure it made again in the same scratch file. A virtual machine may have to
            ask its host for every page of a new file's cache; that file's it has.
    """
    network = Network(BUNDLED, precision)  # type: ignore[arg-type]
    ends: dict[int, float] = {}

    def watch(progress: TileProgress) -> None:
        ends[progress.segment] = time.perf_counter()

    def interrupt(progress: TileProgress) -> None:
        if (progress.segment, progress.tile) == (progress.segments - 1, progress.tiles):
            raise KeyboardInterrupt

    with tempfile.TemporaryDirectory() as folder:
        if again:
            with suppress(KeyboardInterrupt):
                segment_large(network, Mosaic(side), Forgotten(), scratch=folder, memory=memory, watch=interrupt)
            from_the_first_piece(folder)
        start = time.perf_counter()
        streamed = segment_large(network, Mosaic(side), Forgotten(), scratch=folder, memory=memory, watch=watch)
        seconds = time.perf_counter() - start
    assert streamed.resumed == 0
    starts = [start, *ends.values()]
    return {
        "side": side,
        "memory": memory,
        "plan": asdict(streamed.plan),
        "seconds": seconds,
        "ns_per_pixel": seconds / side**2 * 1e9,
        "ns_per_pixel_of_pieces": [(b - a) / side**2 * 1e9 for a, b in pairwise(starts)],
        "peak_mib": peak_mib(),
    }


def from_the_first_piece(folder: str) -> None:
    """Let work that was interrupted begin anew, over the files that it has."""
    (left,) = Path(folder).iterdir()
    store = Scratch(left)
    state = store.state()
    assert state is not None
    store.save(state | {"segment": 0})
    for marks in left.glob("done_*"):
        marks.unlink()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("exact", "huge", "blend", "whole", "tiles", "windows"))
    parser.add_argument("--side", type=int, default=32_768)
    parser.add_argument("--window", type=int, default=1024, help="of windows")
    parser.add_argument("--memory", type=int, default=1_500_000_000)
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--turns", type=int, default=15)
    parser.add_argument("--rounds", type=int, default=3, help="of huge and blend")
    parser.add_argument("--again", action="store_true", help="tiles: in a scratch file that is there already")
    parser.add_argument("--models", nargs="+", default=["b0-camvid", "b0", "b1", "l1"])
    arguments = parser.parse_args()
    if arguments.what == "whole":
        print(json.dumps(whole(arguments.precision, arguments.turns)))
        return
    if arguments.what == "tiles":
        print(json.dumps(tiles(arguments.side, arguments.memory, arguments.precision, arguments.again)))
        return
    if arguments.what == "windows":
        print(json.dumps(windows(arguments.side, arguments.window, arguments.precision)))
        return
    name = arguments.what if arguments.precision == "auto" else f"{arguments.what}_{arguments.precision}"
    path = RESULTS / f"streaming_{name}.json"
    content: dict[str, Any] = {"processor": processor_name(), "command": sys.argv[1:]}
    if arguments.what == "exact":
        content["rows"] = exact(SIZES, arguments.models)
    elif arguments.what == "blend":
        content["rows"] = blended(4096, arguments.turns, arguments.rounds)
    else:
        content |= huge(arguments.side, arguments.memory, arguments.precision, arguments.turns, arguments.rounds)
        for name in ("new pages", "pages at hand"):
            ratios = [f"{tiled['times_as_long_per_pixel']:.2f}" for tiled in content[name]]
            print(f"{name}: {', '.join(ratios)} times as long a pixel as 2048×2048 in memory")
    with replacing(path) as file:
        file.write(json.dumps(content, indent=2).encode() + b"\n")


if __name__ == "__main__":
    main()
