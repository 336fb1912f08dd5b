"""Every target and precision of `evitseg export`, for the bundled model: size, speed, memory, and what it scores.

    python benchmarks/deploy.py CAMVID

Latency is the network's alone (uint8 image in, logits out), at 512×512 and 1024×2048 on 2 threads, one warm process
for each contestant, turn by turn; memory is that process's peak at 1024×2048. mIoU is CamVid test's through the file
itself, at 736×960; agreement is the share of mask pixels that equal the checkpoint's there. "plain" is what the
target's converter makes of the network as it is. Core ML's program is computed in PyTorch, and has no latency here.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from contest import RESULTS, compete, serve

from evitseg.bundled import DEFAULT_MODEL, EXAMPLE_IMAGE
from evitseg.data.layouts import find_dataset
from evitseg.engine import Engine, Precision
from evitseg.evaluation.metrics import confusion_matrix, mean_iou
from evitseg.exporters.export import CALIBRATED_ON
from evitseg.exporters.formats import FORMATS
from evitseg.exporters.int8 import eight_bit
from evitseg.exporters.ncnn import ChannelsFirstModel
from evitseg.image import Mask
from evitseg.loading import network_of
from evitseg.manifest import METADATA_KEY, Manifest
from evitseg.model.engine import TorchEngine
from evitseg.model.network import EfficientViT, NormalizedModel
from evitseg.raster.files import read_image
from evitseg.raster.masks import read_truth
from evitseg.runtime.engines import open_engine
from evitseg.runtime.model_file import set_manifest_beside
from evitseg.runtime.segmenter import Segmenter
from evitseg.runtime.undelegated import undelegated_in_executorch, undelegated_in_litert
from evitseg.system.files import replacing
from evitseg.system.machine import processor_name
from evitseg.system.silence import silenced

SCORED_AT = (736, 960)
TIMED_AT = ((512, 512), (1024, 2048))
THREADS = 2


@dataclass(frozen=True)
class Contestant:
    """A file of a kind, and how it runs."""

    to: str
    weights: str = "float32"
    engine: str | None = None
    precision: Precision = "float32"
    plain: bool = False
    one_size: bool = False  # also where any could be

    def __str__(self) -> str:
        engine = {"onnxruntime": " in ONNX Runtime", "openvino": " in OpenVINO"}.get(self.engine or "", "")
        arithmetic = "" if self.precision == "float32" else f", {self.precision} arithmetic"
        size = ", one size" if self.one_size else ""
        return f"{self.to}{engine}, {'plain, ' if self.plain else ''}{self.weights}{arithmetic}{size}"


CONTESTANTS = (
    Contestant("native"),
    Contestant("native", precision="bfloat16"),
    *(
        Contestant("onnx", weights, engine)
        for engine in ("openvino", "onnxruntime")
        for weights in FORMATS["onnx"].weights
    ),
    *(Contestant("openvino", weights) for weights in FORMATS["openvino"].weights),
    *(Contestant("openvino", weights, precision="bfloat16") for weights in FORMATS["openvino"].weights),
    *(Contestant(to, weights) for to in ("litert", "executorch", "ncnn", "coreml") for weights in FORMATS[to].weights),
    Contestant("openvino", one_size=True),
    Contestant("openvino", precision="bfloat16", one_size=True),
    *(Contestant(to, plain=True) for to in ("openvino", "litert", "executorch")),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("camvid", type=Path)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--out", default="deploy")
    parser.add_argument(
        "--only", default="", help="regular expression: measure these anew, and keep the others' figures"
    )
    arguments = parser.parse_args()
    contestants = [contestant for contestant in CONTESTANTS if re.search(arguments.only, str(contestant))]
    network, manifest = network_of(DEFAULT_MODEL)
    networks = dict(_networks(network, manifest, arguments.camvid))
    reference = _Reference(network, manifest, arguments.camvid)
    rows: dict[str, dict[str, Any]] = {str(contestant): {} for contestant in contestants}
    with tempfile.TemporaryDirectory() as folder:
        for size in (*TIMED_AT, SCORED_AT):
            commands = {}
            for number, contestant in enumerate(contestants):
                if (contestant.plain and size != TIMED_AT[0]) or (contestant.to == "coreml" and size != SCORED_AT):
                    continue
                form = FORMATS[contestant.to]
                path = form.name(Path(folder) / f"{number}-{size[0]}")
                told = replace(
                    manifest, weights=contestant.weights, preprocess=replace(manifest.preprocess, fixed=size)
                )
                if not form.one_size and not contestant.plain and not contestant.one_size:
                    told = replace(told, preprocess=manifest.preprocess)
                if contestant.plain:
                    write_plain(contestant.to, network, told, path)
                else:
                    form.write(networks[contestant.weights, form.rounding], told, path)
                    form.set_manifest(path, told)
                row = rows[str(contestant)]
                files = [file for top in form.files(path) for file in (top, *top.rglob("*"))]
                row["bytes"] = sum(file.stat().st_size for file in files if file.is_file() and file.suffix != ".json")
                if contestant.to in ("litert", "executorch"):
                    outside = undelegated_in_litert if contestant.to == "litert" else undelegated_in_executorch
                    row["outside the delegate"] = outside(path)
                if size == SCORED_AT:
                    engine = (
                        form.run(path)
                        if contestant.to == "coreml"
                        else open_engine(path, contestant.engine, contestant.precision, THREADS)
                    )
                    row |= reference.score(engine)
                    print(contestant, row, flush=True)
                else:
                    commands[str(contestant)] = [
                        sys.executable, __file__, "serve", str(path), contestant.engine or "-", contestant.precision,
                        *map(str, size),
                    ]  # fmt: skip
            for name, result in (compete(commands, arguments.rounds) if commands else {}).items():
                rows[name]["x".join(map(str, size))] = asdict(result)
    place = RESULTS / f"{arguments.out}.json"
    if arguments.only:
        before = json.loads(place.read_text(encoding="utf-8"))["results"] | rows
        rows = {name: before[name] for name in map(str, CONTESTANTS) if name in before}
    content = {"settings": {"threads": THREADS, "processor": processor_name(), "model": DEFAULT_MODEL}, "results": rows}
    with replacing(place) as file:
        file.write((json.dumps(content, indent=2) + "\n").encode())


def _networks(
    network: EfficientViT, manifest: Manifest, camvid: Path
) -> Iterator[tuple[tuple[str, Any], EfficientViT]]:
    """By stored weights and rounding."""
    train = find_dataset(camvid).splits["train"]
    images = [read_image(train[i * len(train) // CALIBRATED_ON].image) for i in range(CALIBRATED_ON)]
    for rounding in {form.rounding for form in FORMATS.values()}:
        yield ("float32", rounding), network
        yield ("float16", rounding), network
        # None stays in float16: whether that is good enough is what is measured.
        rounded, _ = eight_bit(network, manifest.preprocess, images, lambda _: 0.0, 0.0, rounding)
        yield ("int8", rounding), rounded


class _Reference:
    """CamVid test and the checkpoint's masks of it."""

    def __init__(self, network: EfficientViT, manifest: Manifest, camvid: Path) -> None:
        self.manifest = replace(manifest, preprocess=replace(manifest.preprocess, fixed=SCORED_AT))
        pairs = find_dataset(camvid, manifest.labels).splits["test"]
        self.images = [read_image(pair.image) for pair in pairs]
        self.truth = [read_truth(pair.mask, manifest.labels) for pair in pairs]
        self.masks: list[Mask] = []
        own = self.score(TorchEngine(network, self.manifest))
        print("checkpoint", own, flush=True)

    def score(self, engine: Engine) -> dict[str, float]:
        segmenter = Segmenter(engine)
        if segmenter.manifest.preprocess.fixed is None:  # its rule would be the same, but for rounding
            engine.manifest = self.manifest
        masks = [segmenter.mask(image) for image in self.images]
        self.masks = self.masks or masks
        classes = self.manifest.model.num_classes
        confusion = np.zeros((classes, classes), np.int64)
        for truth, mask in zip(self.truth, masks, strict=True):
            confusion += confusion_matrix(truth, mask, classes, self.manifest.labels.ignore_index)
        equal = np.mean([np.mean(mask == own) for mask, own in zip(masks, self.masks, strict=True)])
        return {"miou": 100 * mean_iou(confusion), "equal_pixels": float(equal)}


def write_plain(to: str, network: EfficientViT, manifest: Manifest, path: Path) -> None:
    """What a converter makes of the network without our help."""
    assert manifest.preprocess.fixed is not None
    pixels = torch.zeros((1, *manifest.preprocess.fixed, 3), dtype=torch.uint8)
    deployed = NormalizedModel(network, manifest.preprocess).eval()
    with silenced():
        if to == "litert":
            import litert_torch

            litert_torch.convert(deployed, (pixels,)).export(str(path))
        elif to == "executorch":
            from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
            from executorch.exir import to_edge_transform_and_lower

            planes = ChannelsFirstModel(network, manifest.preprocess).eval()
            program = torch.export.export(planes, (pixels.permute(0, 3, 1, 2).float().contiguous(),))
            lowered = to_edge_transform_and_lower(program, partitioner=[XnnpackPartitioner()])
            path.write_bytes(lowered.to_executorch().buffer)
        else:
            import openvino

            # Without PyTorch's check of the trace, which compares names that are new in every trace.
            traced = torch.jit.trace(deployed, pixels, check_trace=False)  # type: ignore[no-untyped-call]
            graph = openvino.convert_model(traced, example_input=pixels, input=list(pixels.shape))
            graph.set_rt_info(manifest.to_json(), ["framework", METADATA_KEY])
            openvino.save_model(graph, path, compress_to_fp16=False)
            return
    set_manifest_beside(path, manifest)


def serve_one(path: str, engine: str, precision: Precision, height: str, width: str) -> None:
    running = open_engine(Path(path), None if engine == "-" else engine, precision, THREADS)
    fixed = replace(running.manifest.preprocess, fixed=(int(height), int(width)))
    image = fixed.apply(read_image(EXAMPLE_IMAGE))[None]
    serve(lambda: running(image))


if __name__ == "__main__":
    if sys.argv[1:2] == ["serve"]:
        serve_one(*sys.argv[2:])  # type: ignore[arg-type]
    else:
        main()
