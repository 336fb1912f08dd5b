"""IoU of every class on CamVid test, of several checkpoints, into results/camvid.json.

    python benchmarks/camvid.py CAMVID "name=checkpoint" ...

In float32, PyTorch for checkpoints; images at the model's working size, the whole image, single scale, no flip;
one confusion matrix over the split, void not counted.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from contest import RESULTS

from evitseg.data.layouts import find_dataset
from evitseg.evaluation.evaluate import evaluate
from evitseg.loading import load
from evitseg.system.files import replacing


def main(camvid: Path, named: list[str]) -> None:
    dataset = find_dataset(camvid)
    assert dataset.labels is not None
    pairs = dataset.pairs("test")
    results = {}
    for entry in named:
        name, _, checkpoint = entry.rpartition("=")
        segment = load(checkpoint, precision="float32")
        report = evaluate(segment.mask, pairs, dataset.labels)
        results[name] = {
            "miou": 100 * report.miou,
            "iou": dict(zip(dataset.labels.names, (100 * report.iou).tolist(), strict=True)),
        }
        print(f"{name}: {100 * report.miou:.2f}", flush=True)
    with replacing(RESULTS / "camvid.json") as file:
        file.write((json.dumps({"images": len(pairs), "results": results}, indent=2) + "\n").encode())


if __name__ == "__main__":
    if len(sys.argv) < 3:
        sys.exit(__doc__)
    main(Path(sys.argv[1]), sys.argv[2:])
