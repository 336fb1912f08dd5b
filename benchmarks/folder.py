"""A folder of images through the package, beside what the engine does alone.

    python benchmarks/folder.py

The engine alone: the network of one prepared input over and over, in as many streams as the command uses and one image
at a time with all threads; the faster counts. The whole path: decoding, resampling, network, mask, PNG, and with
overlays their drawing and JPEG, as `evitseg predict FOLDER` does it. In rounds in one process; medians.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from contest import RESULTS
from PIL import Image

import evitseg
from evitseg.bundled import EXAMPLE_IMAGE
from evitseg.cli.jobs import PredictJob
from evitseg.cli.predict_whole import predict_one
from evitseg.cli.request import Mode, Request
from evitseg.cli.whole_images import WholeImages, read_ahead, workers_of
from evitseg.raster.files import read_image
from evitseg.system.files import replacing
from evitseg.system.machine import peak_mib, physical_cores, processor_name
from evitseg.system.parallel import ordered_map

FOLDERS = {
    # (height, width) of the files, working size
    "480×640 files, at the model's size": ((480, 640), None),
    "1024×2048 files, at their own size": ((1024, 2048), "native"),
    "3000×4000 files, at the model's size": ((3000, 4000), None),
}


def files(folder: Path, size: tuple[int, int], count: int) -> list[Path]:
    """The shipped photograph, each time another part of it, as a camera would store it."""
    with Image.open(EXAMPLE_IMAGE) as image:
        source = image.convert("RGB")
    dice, made = random.Random(0), []
    for i in range(count):
        left, top = dice.randrange(source.width // 8), dice.randrange(source.height // 8)
        box = (left, top, left + source.width * 7 // 8, top + source.height * 7 // 8)
        made.append(folder / f"{i:03}.jpg")
        source.resize(size[::-1], Image.Resampling.BICUBIC, box=box).save(made[-1], quality=92)
    return made


def alone(segment: evitseg.Segmenter, image: Path, count: int) -> Callable[[], float]:
    """Images a second of the engine, fed from memory."""
    given = segment.manifest.preprocess.apply(read_image(image), segment.size)[None]

    def run() -> float:
        with ThreadPoolExecutor(segment.info.streams) as pool:
            start = time.perf_counter()
            for _ in pool.map(lambda _: segment.engine(given), range(count)):
                pass
            return count / (time.perf_counter() - start)

    return run


def whole(segment: evitseg.Segmenter, images: list[Path], out: Path, overlay: bool) -> Callable[[], float]:
    request = Request((), out, Mode.whole, frozenset(), overlay=overlay)
    workers = workers_of(segment)
    fitting = WholeImages(segment, None, workers)

    def run() -> float:
        shutil.rmtree(out, ignore_errors=True)
        start = time.perf_counter()
        for done in ordered_map(
            read_ahead(PredictJob(image, Mode.whole, out / image.stem) for image in images),
            lambda job: predict_one(segment, job, request, fitting),
            workers,
        ):
            assert not done.problem, done.problem
        return len(images) / (time.perf_counter() - start)

    return run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    arguments = parser.parse_args()
    results: dict[str, Any] = {}
    segment = None
    for name, (size, working) in FOLDERS.items():
        count = max(8, min(48, 24_000_000 // (size[0] * size[1])))
        segment = evitseg.load(size=working, streams=min(physical_cores(), 4))  # type: ignore[arg-type]
        one_by_one = evitseg.load(size=working)  # type: ignore[arg-type]
        with tempfile.TemporaryDirectory() as folder:
            place = Path(folder)
            images = files(place, size, count)
            network = segment.manifest.preprocess.fit(size, segment.size)
            contestants = {
                "engine alone": alone(segment, images[0], count),
                "engine alone, one image at a time": alone(one_by_one, images[0], count),
                "masks": whole(segment, images, place / "masks", overlay=False),
                "masks and overlays": whole(segment, images, place / "both", overlay=True),
            }
            rates: dict[str, list[float]] = {key: [] for key in contestants}
            for turn in range(arguments.rounds + 1):
                for key in random.Random(turn).sample(list(contestants), len(contestants)):
                    rate = contestants[key]()
                    if turn:
                        rates[key].append(rate)
        medians = {key: statistics.median(values) for key, values in rates.items()}
        best = max(medians["engine alone"], medians["engine alone, one image at a time"])
        results[name] = {
            "network_input": network,
            "images_per_s": medians,
            "share_of_engine": {key: rate / best for key, rate in medians.items()},
        }
        print(name, network)
        for key, rate in medians.items():
            print(f"  {key:<36}{rate:>7.1f} images/s{rate / best:>8.2f}")
    assert segment is not None
    settings = {"runs": str(segment.info), "processor": processor_name(), "peak_mib": peak_mib()}
    content = {"settings": settings, "results": results}
    with replacing(RESULTS / "folder.json") as file:
        file.write((json.dumps(content, indent=2, default=float) + "\n").encode())


if __name__ == "__main__":
    main()
