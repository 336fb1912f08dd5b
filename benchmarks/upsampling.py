"""From logits to the mask: boundary cells in the core, against everything up-sampled in OpenVINO and in PyTorch.

    python benchmarks/upsampling.py

The photograph's logits at 1024×2048, and logits with more and more of their cells replaced by noise, so that a
boundary crosses them: from which share on is it faster to up-sample everything in the engine? In rounds; medians.
"""

from __future__ import annotations

import json
import random
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from contest import RESULTS
from numpy.typing import NDArray
from PIL import Image

import evitseg
from evitseg.bundled import EXAMPLE_IMAGE
from evitseg.runtime.upsample import argmax_upsampled
from evitseg.system.files import replacing
from evitseg.system.machine import physical_cores, processor_name

SIZE, ROUNDS = (1024, 2048), 15
NOISE = (0.0, 0.05, 0.1, 0.25, 1.0)
"""Shares of the logits that are replaced."""


def in_openvino(classes: int) -> Callable[[NDArray[np.float32]], NDArray[np.integer]]:
    import openvino
    from openvino import opset13 as ops

    height, width = SIZE
    logits = ops.parameter([1, classes, height // 8, width // 8], np.float32)
    full = ops.interpolate(
        logits, ops.constant(np.array(SIZE)), "linear_onnx", "sizes", axes=ops.constant(np.array([2, 3])),
        coordinate_transformation_mode="half_pixel",
    )  # fmt: skip
    best = ops.topk(full, ops.constant(np.int64(1)), 1, "max", "none", index_element_type="i32").output(1)
    model = openvino.Model([ops.convert(best, "u8")], [logits])
    settings = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32"}
    request = openvino.Core().compile_model(model, "CPU", settings).create_infer_request()
    return lambda given: np.array(request.infer([given[None]], share_inputs=True, share_outputs=True)[0][0, 0])


def in_torch(given: NDArray[np.float32]) -> NDArray[np.integer]:
    import torch

    with torch.inference_mode():
        full = torch.nn.functional.interpolate(
            torch.from_numpy(given)[None], size=SIZE, mode="bilinear", align_corners=False
        )
        return full.argmax(1)[0].numpy().astype(np.uint8)


def crossed(logits: NDArray[np.float32]) -> float:
    """The share of cells whose corners are not all of one class."""
    best = logits.argmax(0)
    same = (best[:-1, :-1] == best[1:, :-1]) & (best[:-1, :-1] == best[:-1, 1:]) & (best[:-1, :-1] == best[1:, 1:])
    return float(1 - same.mean())


def main() -> None:
    import torch

    torch.set_num_threads(physical_cores())
    with Image.open(EXAMPLE_IMAGE) as image:
        pixels = np.asarray(image.convert("RGB").resize(SIZE[::-1], Image.Resampling.LANCZOS))
    street = evitseg.load(size="native").logits(pixels)
    dice = np.random.default_rng(0)
    ways: dict[str, Callable[[NDArray[np.float32]], NDArray[np.integer]]] = {
        "boundary cells, core": lambda given: argmax_upsampled(given, SIZE),
        "everything, OpenVINO": in_openvino(len(street)),
        "everything, PyTorch": in_torch,
    }
    results: dict[str, Any] = {}
    for noise in NOISE:
        replaced = dice.random(street.shape[1:]) < noise
        logits = np.where(replaced, dice.normal(size=street.shape).astype(np.float32) * street.std(), street)
        taken: dict[str, list[float]] = {name: [] for name in ways}
        masks = {}
        for turn in range(ROUNDS + 2):
            for name in random.Random(turn).sample(list(ways), len(ways)):
                start = time.perf_counter()
                masks[name] = ways[name](logits)
                if turn >= 2:
                    taken[name].append(1000 * (time.perf_counter() - start))
        share = crossed(logits)
        row = {name: statistics.median(times) for name, times in taken.items()}
        equal = {name: float((mask == masks["boundary cells, core"]).mean()) for name, mask in masks.items()}
        results[f"{share:.3f}"] = {"median_ms": row, "equal_pixels": equal}
        print(f"{share:>6.1%} of the cells crossed:", {name: f"{ms:.1f} ms" for name, ms in row.items()}, equal)
    settings = {"size": SIZE, "classes": len(street), "processor": processor_name(), "rounds": ROUNDS}
    with replacing(RESULTS / "upsampling.json") as file:
        file.write((json.dumps({"settings": settings, "results": results}, indent=2) + "\n").encode())


if __name__ == "__main__":
    main()
