"""What smoothing over time does to a video's masks: flicker and mIoU.

    python benchmarks/video_smoothing.py CAMVID [MODEL]

CAMVID/val is one clip of 101 frames at 15 Hz with labels (every second frame of a 30 Hz video). The logits are smoothed
as they come: each is mixed with the mean of those before. With a gate the share of the past shrinks where the image
changed: by exp(-(d/gate)^2) for a change of d levels of grey, averaged over the 8×8 pixels of a logit.

Flicker is the share of pixels whose class differs from that of the frame before; back and forth, that of pixels whose
class differs from both neighbouring frames', which have the same. The labels' own flicker is what truly changed.
"""

from __future__ import annotations

import argparse
import json
from itertools import pairwise
from pathlib import Path

import numpy as np
from contest import RESULTS
from numpy.typing import NDArray

import evitseg
from evitseg.evaluation.metrics import iou
from evitseg.image import Mask
from evitseg.raster.files import read_image
from evitseg.raster.masks import read_raw_mask
from evitseg.runtime.upsample import argmax_upsampled
from evitseg.system.files import replacing

SHARES = (0.1, 0.2, 0.3, 0.5)
GATES = (None, 2.0, 5.0, 10.0)


def smoothed(
    logits: list[NDArray[np.float32]], grey: list[NDArray[np.float32]], share: float, gate: float | None
) -> list[NDArray[np.float32]]:
    """Each frame's logits mixed with `share` of the mean before."""
    results = [logits[0]]
    for (before, now), new in zip(pairwise(grey), logits[1:], strict=True):
        past = share if gate is None else share * np.exp(-(((now - before) / gate) ** 2))
        results.append(past * results[-1] + (1 - past) * new)
    return results


def figures(masks: list[Mask], truth: list[Mask], classes: int) -> dict[str, float]:
    confusion = np.zeros((classes, classes), np.int64)
    for mask, label in zip(masks, truth, strict=True):
        counted = label < classes
        pairs = label[counted].astype(int) * classes + mask[counted]
        confusion += np.bincount(pairs, minlength=classes**2).reshape(classes, classes)
    flicker = np.mean([(a != b).mean() for a, b in pairwise(masks)])
    back = np.mean([((a == c) & (a != b)).mean() for a, b, c in zip(masks[:-2], masks[1:-1], masks[2:], strict=True)])
    return {"miou": 100 * float(np.nanmean(iou(confusion))), "flicker": float(flicker), "back_and_forth": float(back)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("camvid", type=Path)
    parser.add_argument("model", nargs="?")
    arguments = parser.parse_args()
    segment = evitseg.load(arguments.model, precision="float32")
    images = sorted((arguments.camvid / "val").iterdir())
    truth = [read_raw_mask(arguments.camvid / "valannot" / f"{path.stem}.png") for path in images]
    logits, grey = [], []
    for path in images:
        network_input = segment.manifest.preprocess.apply(read_image(path))
        logits.append(segment.engine(network_input[None])[0])
        h, w = logits[-1].shape[1:]
        grey.append(network_input.mean(2, dtype=np.float32).reshape(h, 8, w, 8).mean((1, 3)))
    classes = len(segment.labels.classes)
    results = {"labels": figures(truth, truth, classes)}

    def measure(name: str, answers: list[NDArray[np.float32]]) -> None:
        masks = [argmax_upsampled(answer, truth[0].shape[:2]) for answer in answers]
        results[name] = figures(masks, truth, classes)
        print(f"{name:<24}" + "".join(f"{key} {value:8.4f}  " for key, value in results[name].items()), flush=True)

    measure("frame by frame", logits)
    for gate in GATES:
        for share in SHARES:
            name = f"share {share}" + (f", gate {gate:g}" if gate is not None else "")
            measure(name, smoothed(logits, grey, share, gate))
    settings = {"frames": len(images), "model": segment.manifest.name, "precision": "float32"}
    with replacing(RESULTS / "video_smoothing.json") as file:
        file.write((json.dumps({"settings": settings, "results": results}, indent=2) + "\n").encode())


if __name__ == "__main__":
    main()
