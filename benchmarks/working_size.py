"""At which size should an image go through the network, and what if 32 does not divide it?

    python benchmarks/working_size.py CAMVID

CamVid test mIoU of the bundled model in float32, for several short sides; and for ways to come to a multiple of 32:
the nearest multiple or the next one by resampling (one step with the scaling), or padding on the right and below.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from contest import RESULTS
from numpy.typing import NDArray
from PIL import Image

from evitseg.architecture import STRIDE
from evitseg.bundled import DEFAULT_MODEL, bundled_models
from evitseg.evaluation.metrics import confusion_matrix, mean_iou
from evitseg.image import ImageArray
from evitseg.raster.files import read_image
from evitseg.raster.masks import read_truth
from evitseg.runtime.engines import open_engine
from evitseg.system.files import replacing
from evitseg.system.machine import processor_name

SIDES = (360, 480, 544, 608, 640, 704, 720, 736, 768, 832, 896, 960)
Size = tuple[int, int]


def resample(image: ImageArray, size: Size, filter_: Image.Resampling = Image.Resampling.BILINEAR) -> ImageArray:
    return np.asarray(Image.fromarray(image).resize(size[::-1], filter_))


def to_multiple(rounding: Callable[[float], float], filter_: Image.Resampling = Image.Resampling.BILINEAR) -> Any:
    def rule(image: ImageArray, scale: float) -> tuple[ImageArray, Size]:
        height, width = (int(rounding(side * scale / STRIDE)) * STRIDE for side in image.shape[:2])
        return resample(image, (height, width), filter_), (height, width)

    return rule


def padded(**how: Any) -> Any:
    def rule(image: ImageArray, scale: float) -> tuple[ImageArray, Size]:
        size = round(image.shape[0] * scale), round(image.shape[1] * scale)
        below, right = (-side % STRIDE for side in size)
        return np.pad(resample(image, size), ((0, below), (0, right), (0, 0)), **how), size

    return rule


RULES: dict[str, Any] = {
    "nearest multiple, bilinear": to_multiple(round),
    "nearest multiple, bicubic": to_multiple(round, Image.Resampling.BICUBIC),
    "next multiple, bilinear": to_multiple(np.ceil),
    "padded with black": padded(mode="constant"),
    "padded with the edge": padded(mode="edge"),
    "padded by reflection": padded(mode="reflect"),
}


def upsampled(logits: NDArray[np.float32], network_input: ImageArray, valid: Size, size: Size) -> NDArray[np.integer]:
    """Argmax at the image's pixels, of logits of which only the part for `valid` input pixels belongs to it."""
    axes = [
        torch.from_numpy((np.arange(pixels) + 0.5) * part / pixels / whole * 2 - 1).float()
        for pixels, part, whole in zip(size, valid, network_input.shape[:2], strict=True)
    ]
    y, x = torch.meshgrid(*axes, indexing="ij")
    grid = torch.stack((x, y), -1)[None]
    full = torch.nn.functional.grid_sample(
        torch.from_numpy(logits)[None], grid, mode="bilinear", padding_mode="border", align_corners=False
    )
    return full[0].argmax(0).numpy()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("camvid", type=Path)
    arguments = parser.parse_args()
    engine = open_engine(bundled_models()[DEFAULT_MODEL], precision="float32")
    labels = engine.manifest.labels
    pairs = [
        (read_image(path), read_truth(arguments.camvid / "testannot" / f"{path.stem}.png", labels))
        for path in sorted((arguments.camvid / "test").iterdir())
    ]

    def score(rule: Any, short_side: int) -> float:
        confusion = np.zeros((11, 11), np.int64)
        for image, truth in pairs:
            network_input, valid = rule(image, short_side / min(image.shape[:2]))
            mask = upsampled(engine(network_input[None])[0], network_input, valid, truth.shape)
            confusion += confusion_matrix(truth, mask, 11, labels.ignore_index)
        return round(100 * mean_iou(confusion), 2)

    results: dict[str, dict[str, float]] = {"rules": {}, "short sides": {}}
    for name, rule in RULES.items():
        for short_side in (360, 720):
            results["rules"][f"{name}, {short_side}"] = score(rule, short_side)
            print(f"{name:<30}{short_side:>5}{results['rules'][f'{name}, {short_side}']:>8.2f}", flush=True)
    for short_side in SIDES:
        results["short sides"][str(short_side)] = score(RULES["nearest multiple, bilinear"], short_side)
        print(f"short side {short_side:<5}{results['short sides'][str(short_side)]:>8.2f}", flush=True)
    settings = {"model": DEFAULT_MODEL, "images": len(pairs), "precision": "float32", "processor": processor_name()}
    with replacing(RESULTS / "working_size.json") as file:
        file.write((json.dumps({"settings": settings, "results": results}, indent=2) + "\n").encode())


if __name__ == "__main__":
    main()
