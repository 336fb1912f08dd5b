"""Compare the core with plain conversions in OpenVINO: the network alone, same machine, image and threads, in rounds.

    python benchmarks/core.py                  # every row; about 15 minutes on 2 cores
    python benchmarks/core.py --save-as core_zen4   # the same on a second processor
    python benchmarks/core.py b0 --size 512x512
    python benchmarks/core.py --runtimes       # against ONNX Runtime and LiteRT: B0, 1024x2048, float32
    python benchmarks/core.py --profile        # the time of the core's operations: B0, 1024x2048

Contestants are the core and plain conversions of the network for one size (torch.onnx.export and
openvino.convert_model), of which the faster counts; both in float32 and in half precision, which is the engine's own
choice of float16 or bfloat16 in the core, and bfloat16 in OpenVINO. Speed does not depend on the weights,
which are random. Writes results/core.json, core_runtimes.json or core_profile.json.
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
from evitseg.profiling.nodes import Node
from evitseg.raster.files import read_image
from evitseg.runtime.core import instruction_sets
from evitseg.system.files import replacing
from evitseg.system.machine import machine

SMALL, MIDDLE, SQUARE, STREET = (256, 256), (512, 512), (1024, 1024), (1024, 2048)
ROWS = {
    "b0": (SMALL, MIDDLE, SQUARE, STREET), "b1": (STREET,), "b2": (STREET,), "l1": (MIDDLE, STREET),
    "l2": (MIDDLE, STREET),
}  # fmt: skip
"""The sizes that each variant is measured at."""
CORE, CORE_ENGINE = "core", "native"
OPENVINO_HALF = "bf16"
ONNX_RUNTIME, ONNX_RUNTIME_PLAIN, LITERT = "ONNX Runtime", "ONNX Runtime, torch.onnx.export", "LiteRT (XNNPACK)"
"""The second runs a plain conversion, the others what evitseg exports."""
SLOW_PIXELS = 2**19
"""From this size on a variant above B0 is measured in fewer rounds."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("variants", nargs="*", help=f"of {', '.join(ROWS)}; default: all")
    parser.add_argument("--size", help="only this size, HEIGHTxWIDTH")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--runtimes", action="store_true", help="against ONNX Runtime and LiteRT instead of OpenVINO")
    parser.add_argument("--profile", action="store_true", help="profile the core")
    parser.add_argument("--files", type=Path, help="with --runtimes: folder for converted files, which are used again")
    parser.add_argument(
        "--save-as", default="core", help="name of the results of a complete run, for another processor"
    )
    parser.add_argument("--serve", nargs=5, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.serve:
        serve(work(arguments.threads, *arguments.serve))
        return
    settings = {"threads": arguments.threads, "rounds": arguments.rounds, "machine": machine().to_dict()}
    if arguments.runtimes:
        with tempfile.TemporaryDirectory() as folder:
            results = runtimes(arguments.files or Path(folder), arguments.rounds, arguments.threads)
        save("core_runtimes", settings | {"size": STREET}, results)
        return
    if arguments.profile:
        save("core_profile", settings | {"size": STREET}, profiles(arguments.rounds, arguments.threads))
        return
    rows: dict[str, Any] = {}
    for variant in arguments.variants or ROWS:
        for size in ROWS[variant]:
            if arguments.size in (None, f"{size[0]}x{size[1]}"):
                few = variant != "b0" and size[0] * size[1] >= SLOW_PIXELS
                rounds = max(3, arguments.rounds // 3) if few else arguments.rounds
                rows[f"{variant} {size[0]}x{size[1]}"] = row(variant, size, rounds, arguments.threads)
    if arguments.variants or arguments.size:
        return  # a part of the rows replaces no complete run
    save(arguments.save_as, settings, rows)


def save(name: str, settings: dict[str, Any], results: dict[str, Any]) -> None:
    with replacing(RESULTS / f"{name}.json") as file:
        file.write((json.dumps({"settings": settings, "results": results}, indent=2) + "\n").encode())


def save_random(variant: str, path: Path) -> Any:
    """Write a checkpoint with random weights. Returns: its network."""
    from evitseg import build, save_checkpoint
    from evitseg.labels import numbered
    from evitseg.manifest import Manifest, Training
    from evitseg.preprocess import Preprocess

    module = build(variant, 19)
    manifest = Manifest(variant, module.config, numbered(19), Preprocess(), Training("none", "Apache-2.0"))
    save_checkpoint(module, manifest, path)
    return module


def runtimes(folder: Path, rounds: int, threads: int) -> dict[str, Any]:
    """Measure B0 at 1024x2048 in float32 in other runtimes."""
    from importlib.metadata import version

    from evitseg import export

    folder.mkdir(parents=True, exist_ok=True)
    checkpoint, litert, plain = folder / "b0.safetensors", folder / "b0.tflite", folder / "plain.onnx"
    if not plain.exists():
        save_random("b0", checkpoint)
        export(checkpoint, "onnx", folder / "b0.onnx")
        export(checkpoint, "litert", litert, size=STREET)
        converted(published(checkpoint), PLAIN, STREET, plain)
    files = {CORE: checkpoint, ONNX_RUNTIME: folder / "b0.onnx", ONNX_RUNTIME_PLAIN: plain, LITERT: litert}
    commands = {name: command(threads, name, path, "float32", STREET) for name, path in files.items()}
    versions = {ONNX_RUNTIME: "onnxruntime", ONNX_RUNTIME_PLAIN: "onnxruntime", LITERT: "ai-edge-litert"}
    results = compete(commands, rounds)
    found = {}
    for name, result in results.items():
        found[name] = asdict(result) | {
            "version": version(versions.get(name, "evitseg")),
            "times_slower": result.median_ms / results[CORE].median_ms,
        }
        print(f"{name:<34}{result.median_ms:>8.1f} ms, {found[name]['times_slower']:.2f} times the core's", flush=True)
    return found


def profiles(rounds: int, threads: int) -> dict[str, Any]:
    """Profile B0 at 1024x2048 in float32 and in the default precision, and group its operations."""
    from evitseg.profiling.bench import Subject
    from evitseg.profiling.profile import profile

    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = Path(folder, "b0.safetensors")
        save_random("b0", checkpoint)
        for precision in ("float32", "auto"):
            measured = profile(Subject(str(checkpoint), CORE_ENGINE, precision, threads), EXAMPLE_IMAGE, STREET, rounds)
            groups: dict[str, dict[str, float]] = {}
            for node in measured.nodes:
                group = groups.setdefault(_group(node), {"ms": 0.0, "macs": 0, "bytes": 0})
                for key, value in (("ms", node.ms), ("macs", node.macs), ("bytes", node.bytes_in + node.bytes_out)):
                    group[key] += value
            found[measured.info.precision] = {
                "runs": str(measured.info), "network_ms": measured.network_ms, "macs": measured.macs,
                "peak": asdict(measured.peak), "groups": groups,
            }  # fmt: skip
            share = 2 * measured.macs / measured.network_ms / 1e6 / measured.peak.gflops
            print(
                f"{measured.info}: {measured.network_ms:.1f} ms, {share:.0%} of {measured.peak.gflops:.0f} GFLOP/s",
                flush=True,
            )
    return found


def _group(node: Node) -> str:
    """The row of the table that an operation belongs to."""
    part = node.block.split(".")[0]
    if node.type == "inverted":
        return f"inverted residuals, {part}" if part != "stem" else part
    return {
        "conv3": part,
        "upsum": "up-sampling and stores",
        "store": "up-sampling and stores",
        "sums": "attention: sums",
        "attend": "attention: application",
        "pointwise": "1×1 convolutions",
    }[node.type]


def command(threads: int, name: str, path: Path, precision: str, size: tuple[int, int]) -> list[str]:
    """The command of a contestant's process."""
    given = ["--threads", str(threads), "--serve", name, str(path), precision, *map(str, size)]
    return [sys.executable, __file__, *given]


def row(variant: str, size: tuple[int, int], rounds: int, threads: int) -> dict[str, Any]:
    """Measure one variant at one size, and print a line."""
    height, width = size
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = Path(folder, "random.safetensors")
        module = save_random(variant, checkpoint)
        network, files = published(checkpoint), {CORE: checkpoint}
        for number, way in enumerate((PLAIN, PLAIN_OPENVINO)):
            files[way] = converted(network, way, size, Path(folder, f"plain-{number}"))
        half = instruction_sets("float16") or instruction_sets("bfloat16")
        precisions = ["float32", "half"] if half else ["float32"]
        commands = {
            f"{name}, {precision}": command(threads, name, path, precision, size)
            for precision in precisions
            for name, path in files.items()
        }
        results = compete(commands, rounds)
    found: dict[str, Any] = {name: asdict(result) for name, result in results.items()}
    line = [f"{variant} {height}x{width}:"]
    for precision in precisions:
        ours = results[f"{CORE}, {precision}"].median_ms
        plain = min(results[f"{way}, {precision}"].median_ms for way in (PLAIN, PLAIN_OPENVINO))
        found[f"times faster, {precision}"] = plain / ours
        found[f"GFLOP/s, {precision}"] = 2 * cost(module.config).macs(height, width) / ours / 1e6
        line.append(
            f"{precision} {ours:.1f} ms, plain {plain:.1f} ms, {plain / ours:.2f} times faster, "
            f"{found[f'GFLOP/s, {precision}']:.0f} GFLOP/s;"
        )
    print(*line, flush=True)
    return found


def work(threads: int, name: str, path: str, precision: str, height: str, width: str) -> Callable[[], object]:
    """What one contestant does in a turn."""
    size = (int(width), int(height))
    image = np.array(Image.fromarray(read_image(EXAMPLE_IMAGE)).resize(size, Image.Resampling.LANCZOS))[None]
    if name == CORE:
        from evitseg.runtime.native import open_native

        engine = open_native(Path(path), "float32" if precision == "float32" else "auto", threads)
        return lambda: engine(image)
    if name in (ONNX_RUNTIME, LITERT):
        other = load(path, engine="onnxruntime" if name == ONNX_RUNTIME else "litert", threads=threads).engine
        return lambda: other(image)
    if name == ONNX_RUNTIME_PLAIN:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        return lambda: session.run(None, {"image": image})
    import openvino

    settings = {
        "PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32" if precision == "float32" else OPENVINO_HALF,
        "INFERENCE_NUM_THREADS": str(threads),
    }  # fmt: skip
    request = openvino.Core().compile_model(path, "CPU", settings).create_infer_request()
    return lambda: request.infer([image], share_inputs=True, share_outputs=True)


if __name__ == "__main__":
    main()
