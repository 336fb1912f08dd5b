"""The core beside OpenVINO: the network alone in float32, same machine, image and threads, in rounds.

    python benchmarks/core.py CHECKPOINT

Contestants are the core, the graph that evitseg writes for OpenVINO, and plain conversions of the published network for
one size (torch.onnx.export and openvino.convert_model), of which the faster counts. Writes results/core.json.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from contest import RESULTS, compete, serve
from peers import PLAIN, PLAIN_OPENVINO, converted, published
from PIL import Image

from evitseg.architecture import cost
from evitseg.bundled import EXAMPLE_IMAGE
from evitseg.loading import load
from evitseg.raster.files import read_image
from evitseg.system.files import replacing
from evitseg.system.machine import machine

SIZES = ((256, 256), (512, 512), (1024, 1024), (1024, 2048))
CORE, GRAPH = "core", "OpenVINO, evitseg's graph"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--serve", nargs=4, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.serve:
        serve(work(arguments.threads, *arguments.serve))
        return
    from evitseg import export

    network, rows = published(arguments.checkpoint), {}
    with tempfile.TemporaryDirectory() as folder:
        ours, manifest = export(arguments.checkpoint, "onnx", Path(folder, "ours.onnx"))
        for height, width in SIZES:
            files = {CORE: ours, GRAPH: ours}
            for number, way in enumerate((PLAIN, PLAIN_OPENVINO)):
                files[way] = converted(network, way, (height, width), Path(folder, f"{height}x{width}-{number}"))
            command = [
                sys.executable, __file__, str(arguments.checkpoint), "--threads", str(arguments.threads), "--serve"
            ]  # fmt: skip
            commands = {name: [*command, name, str(path), str(height), str(width)] for name, path in files.items()}
            results = compete(commands, arguments.rounds)
            plain = min(results[way].median_ms for way in (PLAIN, PLAIN_OPENVINO))
            flops = 2 * cost(manifest.model).macs(height, width)
            row: dict[str, Any] = {name: asdict(result) for name, result in results.items()}
            row["times faster than a plain conversion"] = plain / results[CORE].median_ms
            row["GFLOP/s"] = flops / results[CORE].median_ms / 1e6
            rows[f"{height}x{width}"] = row
            told = ", ".join(f"{name} {result.median_ms:.1f} ms" for name, result in results.items())
            print(
                f"{height}x{width}: {told}; {row['times faster than a plain conversion']:.2f} times faster than the "
                f"fastest plain conversion, {row['GFLOP/s']:.0f} GFLOP/s",
                flush=True,
            )
    settings = {
        "checkpoint": arguments.checkpoint.name, "threads": arguments.threads, "rounds": arguments.rounds,
        "machine": machine().to_dict(),
    }  # fmt: skip
    with replacing(RESULTS / "core.json") as file:
        file.write((json.dumps({"settings": settings, "results": rows}, indent=2) + "\n").encode())


def work(threads: int, name: str, path: str, height: str, width: str) -> Callable[[], object]:
    """What one contestant does in a turn."""
    size = (int(width), int(height))
    image = np.array(Image.fromarray(read_image(EXAMPLE_IMAGE)).resize(size, Image.Resampling.LANCZOS))[None]
    if name in (CORE, GRAPH):
        engine = load(
            path, engine="native" if name == CORE else "openvino", precision="float32", threads=threads, size="native"
        ).engine
        return lambda: engine(image)
    import openvino

    settings = {
        "PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": str(threads),
    }  # fmt: skip
    request = openvino.Core().compile_model(path, "CPU", settings).create_infer_request()
    return lambda: request.infer([image], share_inputs=True, share_outputs=True)


if __name__ == "__main__":
    main()
