"""What Ray costs on one machine: a huge image and a folder, on a local cluster and in one process.

    python benchmarks/cluster.py

One machine with as many workers as cores has nothing to gain from Ray: what is measured is what the detour through its
store of objects takes, and, with half of the workers, how work spreads. In turn, medians; Ray's start, once, apart.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from contest import RESULTS
from folder import files
from large_images import BUNDLED, Forgotten, Mosaic

import evitseg
from evitseg import cluster
from evitseg.raster import open_raster
from evitseg.raster.files import read_image
from evitseg.raster.png import mask_png
from evitseg.system.files import replacing
from evitseg.system.machine import physical_cores, processor_name
from evitseg.system.parallel import ordered_map
from evitseg.tiling.network import Network
from evitseg.tiling.stream import segment_large


def geotiff(path: Path, side: int) -> None:
    image = Mosaic(side)
    with rasterio.open(
        path, "w", driver="GTiff", width=side, height=side, count=3, dtype="uint8", tiled=True, blockxsize=512,
        blockysize=512, compress="deflate", transform=rasterio.Affine(0.1, 0, 0, 0, -0.1, 0), crs="EPSG:32633",
    ) as file:  # fmt: skip
        for top in range(0, side, 512):
            rows = min(512, side - top)
            strip = np.moveaxis(image.read(top, 0, rows, side), 2, 0)
            file.write(strip, window=rasterio.windows.Window(0, top, side, rows))


def seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def measure(folder: Path, side: int, count: int, memory: int, rounds: int) -> dict[str, Any]:
    image, photos = folder / "mosaic.tif", folder / "photos"
    photos.mkdir()
    geotiff(image, side)
    paths = files(photos, (480, 640), count)
    cores = physical_cores()
    times: dict[str, list[float]] = {}
    results = {}

    def note(name: str, work: Callable[[], object]) -> None:
        """Once to warm up, so that a fresh process on neither side is counted."""
        if name not in times:
            work()
        times.setdefault(name, []).append(seconds(work))
        print(f"{name}: {times[name][-1]:.2f} s", flush=True)

    def tiles_here() -> None:
        network = Network(BUNDLED)
        with open_raster(image, folder) as source:
            results["here"] = segment_large(network, source, Forgotten(), scratch=folder, memory=memory).counts

    def tiles_there(name: str) -> None:
        network = Network(BUNDLED)
        with open_raster(image, folder) as source:
            there = cluster.segment_large_on_ray(network, source, Forgotten(), path=image, memory=memory)
        results[name] = there.counts

    segment = evitseg.load(BUNDLED, streams=cores)

    def folder_here() -> None:
        def one(path: Path) -> None:
            with replacing(folder / "out" / f"{path.name}.png") as file:
                file.write(mask_png(segment.mask(read_image(path)), segment.labels))

        for _ in ordered_map(paths, one, cores):
            pass

    def folder_there() -> None:
        cluster.write_masks(cluster.predict_dataset(photos, BUNDLED), folder / "there").materialize()

    (folder / "out").mkdir()
    starts = []
    for _ in range(rounds):
        note("tiles in one process", tiles_here)
        note("folder in one process", folder_here)
        for workers in sorted({1, cores}):
            start = time.perf_counter()
            with cluster.connected("local", workers=workers):
                starts.append(time.perf_counter() - start)
                tiles_there(str(workers))  # its processes are new
                note(f"tiles on {workers} workers", partial(tiles_there, str(workers)))
                folder_there()
                note(f"folder on {workers} workers", folder_there)
    assert all(np.array_equal(results["here"], found) for found in results.values())
    medians = {name: statistics.median(found) for name, found in times.items()}
    return {
        "side": side,
        "memory": memory,
        "images": count,
        "cores": cores,
        "seconds to start Ray": statistics.median(starts),
        "seconds": medians,
        "all": times,
        "times as long as one process": {
            name: value / medians[f"{name.split()[0]} in one process"] for name, value in medians.items()
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--side", type=int, default=12_288)
    parser.add_argument("--count", type=int, default=400)
    parser.add_argument("--memory", type=int, default=1_000_000_000)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = measure(Path(folder), arguments.side, arguments.count, arguments.memory, arguments.rounds)
    for name, ratio in found["times as long as one process"].items():
        print(f"{name}: {ratio:.2f} times as long as one process")
    with replacing(RESULTS / "cluster.json") as file:
        file.write(json.dumps({"processor": processor_name(), **found}, indent=2).encode() + b"\n")


if __name__ == "__main__":
    main()
