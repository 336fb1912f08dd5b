"""IoU of six common classes on street photographs from other cameras, of several models, into results/facade.json.

    python benchmarks/facade.py LABELMEFACADE MODEL...

The training split of LabelMeFacade as distributed (Fröhlich, Rodner and Denzler, ICPR 2010), 99 photographs; the masks
that `evitseg predict` writes, in float32. A pixel counts if its colour is one of `COLORS`; doors and windows belong to
buildings, and predictions of other classes are errors. One confusion matrix over all images. Images whose label has
another size are left out.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
from contest import RESULTS
from numpy.typing import NDArray
from PIL import Image

from evitseg.loading import load
from evitseg.system.files import replacing

CLASSES = ("building", "car", "pavement", "road", "sky", "tree")
COLORS = {
    (128, 0, 0): "building", (128, 128, 0): "building", (0, 0, 128): "building", (128, 0, 128): "car",
    (128, 128, 128): "pavement", (128, 64, 0): "road", (0, 128, 128): "sky", (0, 128, 0): "tree",
}  # fmt: skip
OTHER_NAMES = {
    "wall": "building", "truck": "car", "bus": "car", "sidewalk": "pavement", "vegetation": "tree",
}  # fmt: skip
"""Classes of Cityscapes, and which of ours they are."""
UNCOUNTED = len(CLASSES)


def truth(label: NDArray[np.uint8]) -> NDArray[np.int64]:
    """Class indices of a label in colours, (H, W, 3); `UNCOUNTED` elsewhere."""
    indices = np.full(label.shape[:2], UNCOUNTED)
    for color, name in COLORS.items():
        indices[(label == color).all(-1)] = CLASSES.index(name)
    return indices


def iou(model: str, folder: Path) -> NDArray[np.float64]:
    """IoU of the six classes."""
    segment = load(model, precision="float32")
    names = [OTHER_NAMES.get(name, name) for name in segment.labels.names]
    ours = np.array([CLASSES.index(name) if name in CLASSES else UNCOUNTED for name in names])
    side = len(CLASSES) + 1
    confusion = np.zeros((side, side), np.int64)
    for path in sorted((folder / "images").iterdir()):
        image = np.asarray(Image.open(path).convert("RGB"))
        label = np.asarray(Image.open(folder / "labels" / f"{path.stem}.png").convert("RGB"))
        if label.shape == image.shape:
            pairs = truth(label) * side + ours[segment.mask(image)]
            confusion += np.bincount(pairs.ravel(), minlength=side * side).reshape(side, side)
    counted = confusion[:-1]
    both = counted.diagonal()[: len(CLASSES)]
    found: NDArray[np.float64] = both / (counted.sum(1) + counted.sum(0)[:-1] - both)
    return found


def main(folder: Path, models: list[str]) -> None:
    results = {}
    for model in models:
        values = iou(model, folder)
        name = Path(model).stem
        results[name] = {"mean": values.mean(), "iou": dict(zip(CLASSES, values.tolist(), strict=True))}
        print(f"{name}: {values.mean():.3f}", flush=True)
    with replacing(RESULTS / "facade.json") as file:
        file.write((json.dumps({"results": results}, indent=2) + "\n").encode())


if __name__ == "__main__":
    if len(sys.argv) < 3:
        sys.exit(__doc__)
    main(Path(sys.argv[1]), sys.argv[2:])
