"""Integer arithmetic (`evitseg export --w8a8`) for the bundled model on CamVid test, into results/w8a8.json.

    python benchmarks/w8a8.py CAMVID --size 736x960 --ablations
    python benchmarks/w8a8.py CAMVID --size 736x960 --trained CHECKPOINT --start MODEL    into results/w8a8_trained.json

Files are calibrated on 32 training images at most and scored through the file: LiteRT runs its integer kernels, ONNX
Runtime computes the rounded graph in floating point. The ablations are simulated, on every sixth of the images.
`--trained` is a checkpoint of `evitseg train --qat`, whose files have the ranges that it learned, and `--start` the
model in floating point that its training began with.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from contest import RESULTS

from evitseg.bundled import DEFAULT_MODEL
from evitseg.data.layouts import find_dataset
from evitseg.data.lists import Pair
from evitseg.engine import Engine
from evitseg.evaluation.evaluate import evaluate
from evitseg.exporters import integer_calibration
from evitseg.exporters.export import CALIBRATED_ON
from evitseg.exporters.formats import FORMATS
from evitseg.exporters.integer_calibration import calibrated, scale_between
from evitseg.exporters.integer_graph import WIDE, integer_graph
from evitseg.exporters.integer_litert import operators
from evitseg.exporters.integer_ranges import with_ranges
from evitseg.exporters.integer_simulation import IntegerNetwork, IntegerSimulation
from evitseg.exporters.measured_heads import with_measured_head_factors
from evitseg.image import ImageArray
from evitseg.loading import network_of
from evitseg.manifest import Manifest
from evitseg.model.engine import TorchEngine
from evitseg.model.network import EfficientViT
from evitseg.raster.files import read_image
from evitseg.runtime.segmenter import Segmenter
from evitseg.system.files import replacing

EVERY = 6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("camvid", type=Path)
    parser.add_argument("--size", default="736x960", help="HEIGHTxWIDTH of the files")
    parser.add_argument("--every", type=int, default=1, help="score on every n-th image only")
    parser.add_argument("--ablations", action="store_true", help="also simulate the recipe without each of its steps")
    parser.add_argument("--trained", type=Path, metavar="CHECKPOINT", help="score this model of train --qat")
    parser.add_argument("--start", default="", metavar="MODEL", help="score this model in float32, too")
    parser.add_argument(
        "--only",
        nargs="+",
        metavar="ROW",
        help="of start, float32, litert and onnx score only these",
    )
    arguments = parser.parse_args()
    network, manifest = network_of(arguments.trained or DEFAULT_MODEL)
    dataset = find_dataset(arguments.camvid, manifest.labels)
    train, test = dataset.splits["train"], dataset.splits["test"][:: arguments.every]
    images = [read_image(train[i * len(train) // CALIBRATED_ON].image) for i in range(CALIBRATED_ON)]
    settings = {
        "model": manifest.name, "recipe": manifest.training.recipe, "size": arguments.size, "images": len(test),
        "every": arguments.every,
    }  # fmt: skip
    path = RESULTS / ("w8a8_trained.json" if arguments.trained else "w8a8.json")
    content: dict[str, Any] = {"settings": settings, "results": {}}
    if arguments.only and path.exists():
        content |= json.loads(path.read_text()) | {"settings": settings}
    wanted = arguments.only or ("start", "float32", "litert", "onnx")
    height, width = map(int, arguments.size.split("x"))

    def save() -> None:
        with replacing(path) as file:
            file.write((json.dumps(content, indent=2) + "\n").encode())

    fixed = replace(manifest, preprocess=replace(manifest.preprocess, fixed=(height, width)))
    integers = _integers(network, fixed, images)
    content["int16_tensors"] = [name for name in integers.graph.shapes if name in integers.graph.sixteen]
    floating = {"start": arguments.start and network_of(arguments.start)[0], "float32": network}
    for row, model in floating.items():
        if model and row in wanted:
            content["results"][row] = scored(TorchEngine(model, fixed), test)
            save()
    with tempfile.TemporaryDirectory() as folder:
        for to in (row for row in ("litert", "onnx") if row in wanted):
            form = FORMATS[to]
            model_file = form.name(Path(folder) / "m")
            assert form.write_integers is not None
            form.write_integers(integers, model_file)
            form.set_manifest(model_file, fixed)
            score = scored(form.run_integers(model_file), test)
            if to == "litert":
                counts = Counter(operators(model_file))
                content["operators"] = [[*operator, count] for operator, count in counts.most_common()]
            content["results"][to] = score | {"bytes": model_file.stat().st_size}
            save()
    if arguments.ablations:
        content["ablations"] = ablations(network, fixed, images, test[::EVERY])
        save()


def _integers(
    network: EfficientViT, manifest: Manifest, images: Sequence[ImageArray], *, heads: bool = True, wide: Any = None
) -> IntegerNetwork:
    if manifest.activation_ranges:
        return with_ranges(integer_graph(network, manifest.preprocess, ()), manifest.activation_ranges)
    if heads:
        network = with_measured_head_factors(network, manifest.preprocess, images)
    return calibrated(integer_graph(network, manifest.preprocess, wide), manifest.preprocess, images)


def ablations(
    network: EfficientViT, manifest: Manifest, images: Sequence[ImageArray], pairs: Sequence[Pair]
) -> dict[str, Any]:
    rows = {"float32": scored(TorchEngine(network, manifest), pairs)}

    def add(name: str, integers: IntegerNetwork) -> None:
        rows[name] = scored(IntegerSimulation(integers, manifest), pairs)

    whole = _integers(network, manifest, images)
    add("as exported", whole)
    add("without head factors", _integers(network, manifest, images, heads=False))
    add("8 bits in the head", _integers(network, manifest, images, wide=WIDE[:-1]))
    add("8 bits in stage 2", _integers(network, manifest, images, wide=(*WIDE[:2], "head")))
    add("no tensor in 16 bits", _integers(network, manifest, images, wide=()))
    kernels = {
        node.output: replace(whole.kernels[node.output], bias=node.kernel.bias)
        for node in whole.graph.nodes
        if node.kernel is not None
    }
    add("biases not corrected", replace(whole, kernels=kernels))
    least_squares = integer_calibration.least_squares
    integer_calibration.least_squares = lambda _values, low, high, *_: scale_between(low, high)
    try:
        add("ranges from the smallest to the largest number", _integers(network, manifest, images))
    finally:
        integer_calibration.least_squares = least_squares
    return {"images": len(pairs), "results": rows}


def scored(engine: Engine, pairs: Sequence[Pair]) -> dict[str, Any]:
    segment = Segmenter(engine)
    report = evaluate(segment.mask, pairs, segment.labels)
    row = {
        "miou": 100 * report.miou,
        "iou": dict(zip(segment.labels.names, (100 * np.asarray(report.iou)).tolist(), strict=True)),
    }
    print(engine.info, f"{row['miou']:.2f}", flush=True)
    return row


if __name__ == "__main__":
    main()
