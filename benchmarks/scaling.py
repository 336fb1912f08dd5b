"""Time for a pixel from small images to large ones, and peak memory: what `evitseg bench` says of one checkpoint.

    python benchmarks/scaling.py CHECKPOINT

Every size in a process of its own, 2 threads, float32 and the default precision. The ratio that counts is the median
of several rounds, because a machine's mood lasts longer than one size takes. Writes results/scaling.json.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from pathlib import Path
from typing import Any

from contest import RESULTS

from evitseg.bundled import EXAMPLE_IMAGE
from evitseg.profiling.bench import ONE_SIZE, REFERENCE, SIZES, Subject, bench
from evitseg.system.files import replacing
from evitseg.system.machine import machine

LARGEST = (4096, 4096)
FURTHER_ROUNDS, THEIR_TURNS = 2, 5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    from evitseg import export

    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        model_file, manifest = export(arguments.checkpoint, "onnx", Path(folder) / "model.onnx")
        for name in ("float32", "auto"):
            subject = Subject(str(model_file), precision=name, threads=arguments.threads)
            timings = {}
            for timing in bench(subject, EXAMPLE_IMAGE, SIZES, arguments.rounds):
                timings[timing.height, timing.width] = timing
                print(name, *timing.cells(list(timings.values())), flush=True)
            ratios = [timings[LARGEST].ms_per_megapixel / timings[REFERENCE].ms_per_megapixel]
            for _ in range(FURTHER_ROUNDS):
                small, large = bench(subject, EXAMPLE_IMAGE, [REFERENCE, LARGEST], THEIR_TURNS)
                ratios.append(large.ms_per_megapixel / small.ms_per_megapixel)
            print(name, "ratios", *(f"{ratio:.2f}" for ratio in ratios), flush=True)
            results["default" if name == "auto" else name] = {
                "runs": str(subject.segmenter.info),
                "largest_to_reference_per_pixel": statistics.median(ratios),
                "of_rounds": ratios,
                "peak_mib": timings[ONE_SIZE].peak_mib,
                "sizes": [timing.to_dict(list(timings.values())) for timing in timings.values()],
            }
    settings = {
        "checkpoint": arguments.checkpoint.name, "threads": arguments.threads, "machine": machine().to_dict(),
        "largest": LARGEST, "reference": REFERENCE, "peak_at": ONE_SIZE, "model": manifest.name,
    }  # fmt: skip
    with replacing(RESULTS / "scaling.json") as file:
        file.write((json.dumps({"settings": settings, "results": results}, indent=2) + "\n").encode())


if __name__ == "__main__":
    main()
