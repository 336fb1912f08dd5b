"""Times of the viewer on a huge image: to the first overlay, and to a sharp tile once the context exists.

    python benchmarks/view.py --side 8192
    python benchmarks/view.py --side 32768 --out benchmarks/results/view.json

The image is a tiled TIFF of a repeated pattern, without smaller levels: the hardest case for a first overlay. Times are
those of a client of the local server. The first begins with the start of the process, and ends when the tile that shows
the whole image has a mask. The others are of tiles at random places, which no viewer has rendered before, one after the
other, while the rest of the mask is rendered in the background.
"""

from __future__ import annotations

import argparse
import json
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

import evitseg
from evitseg.bundled import EXAMPLE_IMAGE
from evitseg.system.files import replacing
from evitseg.system.machine import processor_name

TILE, PATTERN = 512, 4096
TILES = 20


def make_image(path: Path, side: int) -> None:
    """A square TIFF of compressed tiles; each tile of the pattern is compressed once."""
    import tifffile

    photograph = Image.open(EXAMPLE_IMAGE).convert("RGB").resize((PATTERN, PATTERN), Image.Resampling.BICUBIC)
    pattern = np.asarray(photograph)
    count = PATTERN // TILE
    packed = {
        (y, x): zlib.compress(pattern[y * TILE : (y + 1) * TILE, x * TILE : (x + 1) * TILE].tobytes(), 1)
        for y in range(count)
        for x in range(count)
    }
    tiles = range(side // TILE)
    tifffile.imwrite(
        path, (packed[y % count, x % count] for y in tiles for x in tiles), shape=(side, side, 3), dtype="uint8",
        tile=(TILE, TILE), compression="adobe_deflate", photometric="rgb", bigtiff=True,
    )  # fmt: skip


@contextmanager
def viewer(*arguments: object) -> Iterator[str]:
    """A running viewer's address."""
    command = [sys.executable, "-m", "evitseg", "view", "--no-browser", *map(str, arguments)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    try:
        assert process.stdout is not None
        found = re.search(r"http://\S+", process.stdout.readline())
        assert found is not None
        yield found[0]
    finally:
        process.send_signal(signal.SIGINT)
        process.wait()


def get(address: str) -> tuple[bytes, str]:
    """The body of an answer, and what kind of mask it is."""
    with urllib.request.urlopen(address) as response:
        return response.read(), response.headers.get("X-Mask", "")


def measure(image: Path, cache: Path, only_first: bool) -> dict[str, Any]:
    start = time.perf_counter()
    with viewer(image, "--cache", cache) as url:
        about = json.loads(get(f"{url}about.json")[0])
        opened = time.perf_counter() - start
        last = about["levels"] - 1
        get(f"{url}image/{last}/0/0")
        picture = time.perf_counter() - start
        kind = get(f"{url}mask/{last}/0/0")[1]
        first = time.perf_counter() - start
        print(f"opened after {opened:.1f} s, image {picture:.1f} s, first overlay ({kind}) {first:.1f} s", flush=True)
        if only_first:
            return {"opened_s": opened, "image_s": picture, "first_overlay_s": first}
        while (status := json.loads(get(f"{url}status.json")[0]))["phase"] not in ("ready", "failed"):
            time.sleep(1)
        whole = time.perf_counter() - start
        print(f"{status['phase']} after {whole:.0f} s {status['problem']}", flush=True)
    (context,) = cache.glob("*/context.npz")
    kept = sum(path.stat().st_size for path in cache.rglob("*") if path.is_file())
    print(f"kept on disk: {kept / 2**20:.1f} MiB", flush=True)
    rng = np.random.default_rng(0)
    rows = about["height"] // TILE
    times = []
    with tempfile.TemporaryDirectory(dir=cache) as fresh, viewer(image, "--cache", fresh, "--context", context) as url:
        while not json.loads(get(f"{url}status.json")[0])["has_context"]:
            time.sleep(0.05)
        for row, column in rng.integers(0, rows, (TILES, 2)).tolist():
            begin = time.perf_counter()
            kind = get(f"{url}mask/0/{row}/{column}")[1]
            times.append(time.perf_counter() - begin)
            assert kind == "exact"
    print(f"sharp tile: median {statistics.median(times):.2f} s, slowest {max(times):.2f} s", flush=True)
    return {
        "opened_s": opened, "image_s": picture, "first_overlay_s": first, "whole_mask_s": whole,
        "sharp_tile_s": times, "kept_bytes": kept,
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--side", type=int, default=8192, help="side of the image in pixels, a multiple of 512")
    parser.add_argument("--folder", type=Path, default=None, help="for the image and the cache; removed at the end")
    parser.add_argument("--only-first", action="store_true", help="only the time to the first overlay")
    parser.add_argument("--out", type=Path, default=None, help="JSON file for the results")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        image = Path(folder, "mosaic.tif")
        make_image(image, arguments.side)
        print(f"{arguments.side}×{arguments.side} pixels, {image.stat().st_size / 2**20:.0f} MiB", flush=True)
        found = measure(image, Path(folder, "cache"), arguments.only_first)
    if arguments.out is not None:
        about = {"processor": processor_name(), "version": evitseg.__version__, "side": arguments.side}
        with replacing(arguments.out) as file:
            file.write((json.dumps(about | found, indent=2) + "\n").encode())


if __name__ == "__main__":
    main()
