"""What half precision costs: the published B0 on CamVid test, in PyTorch, in the core and in OpenVINO.

    python benchmarks/precision.py CHECKPOINT CAMVID

For every engine and precision: whether all logits are finite (also at 1024×2048), the share of mask pixels that equal
those of float32 PyTorch, and mIoU. A 19-class (Cityscapes) checkpoint is scored on CamVid's 11 classes by its logits
for the classes that correspond; the larger one where two do.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path

import numpy as np
from contest import RESULTS
from numpy.typing import NDArray

from evitseg import export, load_checkpoint
from evitseg.engine import Engine
from evitseg.evaluation.metrics import confusion_matrix, mean_iou
from evitseg.image import ImageArray
from evitseg.labels import load_labels
from evitseg.model.engine import TorchEngine
from evitseg.preprocess import Preprocess
from evitseg.raster.files import read_image
from evitseg.raster.masks import read_truth
from evitseg.runtime.core import CorePrecision, instruction_sets
from evitseg.runtime.engines import open_engine
from evitseg.runtime.upsample import argmax_upsampled
from evitseg.system.files import replacing
from evitseg.system.machine import processor_name

CITYSCAPES_FOR_CAMVID = {
    "sky": ["sky"],
    "building": ["building"],
    "pole": ["pole"],
    "road": ["road"],
    "pavement": ["sidewalk"],
    "tree": ["vegetation"],
    "sign": ["traffic sign"],
    "fence": ["fence"],
    "car": ["car"],
    "pedestrian": ["person"],
    "bicyclist": ["rider", "bicycle"],
}
PRECISIONS: tuple[CorePrecision, ...] = ("float32", "float16", "bfloat16")
WORKING_SIZE = 720


def camvid_logits(logits: NDArray[np.float32]) -> NDArray[np.float32]:
    """(11, h, w) from CamVid's own 11 or Cityscapes' 19."""
    if len(logits) == len(CITYSCAPES_FOR_CAMVID):
        return logits
    names = load_labels("cityscapes").names
    groups = [[names.index(name) for name in group] for group in CITYSCAPES_FOR_CAMVID.values()]
    return np.stack([logits[group].max(0) for group in groups])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("camvid", type=Path)
    parser.add_argument("--every", type=int, default=1, help="take every n-th image")
    arguments = parser.parse_args()
    labels = load_labels("camvid")
    preprocess = Preprocess(WORKING_SIZE)
    model, manifest = load_checkpoint(arguments.checkpoint, preprocess=preprocess)
    images = sorted((arguments.camvid / "test").iterdir())[:: arguments.every]

    with tempfile.TemporaryDirectory() as folder:
        model_file, _ = export((model, manifest), "onnx", Path(folder) / "model.onnx")
        others = {
            f"{name} {precision}": open_engine(model_file, engine, precision)
            for name, engine in (("core", "native"), ("OpenVINO", "openvino"))
            for precision in PRECISIONS
            if engine == "openvino" or instruction_sets(precision)
        }

    def run(engine: Engine, image: ImageArray, size: tuple[int, int]) -> tuple[NDArray[np.integer], bool]:
        logits = engine(preprocess.apply(image)[None])[0]
        return argmax_upsampled(camvid_logits(logits), size), bool(np.isfinite(logits).all())

    masks: dict[str, list[NDArray[np.integer]]] = {}
    rows = {}
    for precision in (*PRECISIONS, *others):
        if precision in others:
            name, engine = precision, others[precision]
        else:
            name, engine = f"PyTorch {precision}", TorchEngine(model, manifest, precision)  # type: ignore[arg-type]
        confusion = np.zeros((11, 11), np.int64)
        finite, masks[name] = True, []
        for path in images:
            truth = read_truth(arguments.camvid / "testannot" / f"{path.stem}.png", labels)
            mask, ok = run(engine, read_image(path), truth.shape)
            masks[name].append(mask)
            finite &= ok
            confusion += confusion_matrix(truth, mask, 11, labels.ignore_index)
        large = Preprocess().apply(read_image(images[0]).repeat(3, 0).repeat(5, 1)[:1024, :2048])[None]
        finite &= bool(np.isfinite(engine(large)).all())
        equal = np.mean([(a == b).mean() for a, b in zip(masks["PyTorch float32"], masks[name], strict=True)])
        rows[name] = {"finite": finite, "equal_pixels": float(equal), "miou": 100 * mean_iou(confusion)}
        print(f"{name:<20} finite {finite}  equal pixels {equal:8.3%}  mIoU {rows[name]['miou']:.2f}", flush=True)
    settings = {
        "checkpoint": arguments.checkpoint.name,
        "images": len(images),
        "short_side": WORKING_SIZE,
        "processor": processor_name(),
    }
    with replacing(RESULTS / "precision.json") as file:
        file.write((json.dumps({"settings": settings, "results": rows}, indent=2) + "\n").encode())


if __name__ == "__main__":
    main()
