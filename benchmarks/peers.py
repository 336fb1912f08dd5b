"""The network in our core beside its peers in OpenVINO: same machine, image and threads, in rounds.

    python benchmarks/peers.py CHECKPOINT

SegFormer-B0 and B1 for Cityscapes as published (transformers; random weights, on which speed does not depend), and the
published EfficientViT as a plain conversion has it, are converted by torch.onnx.export for one size. For the
EfficientViT openvino.convert_model and a file of free sizes run beside it, and the fastest of them counts; for the
SegFormers convert_model takes 30 s and its result runs as fast (750 and 765 ms, 458 and 463; the default exporter of
PyTorch 2.13 gave 720 where this one gave 726). All take a uint8 image, normalise inside, and answer at their own
stride. Half precision is bfloat16 in OpenVINO, and what the core chooses by default. Writes results/peers.json.
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
from numpy.typing import NDArray
from PIL import Image

from evitseg.architecture import cost
from evitseg.bundled import EXAMPLE_IMAGE
from evitseg.engine import Precision
from evitseg.loading import load, network_of
from evitseg.profiling.nodes import multiply_adds
from evitseg.raster.files import read_image
from evitseg.system.files import replacing
from evitseg.system.machine import machine
from evitseg.system.silence import silenced

MAIN = (1024, 2048)
SIZES = ((512, 512), (1024, 1024), MAIN)
SEGFORMERS = {
    #                widths              as nvidia/segformer-BX-finetuned-cityscapes-1024-1024
    "SegFormer-B0": (32, 64, 160, 256),
    "SegFormer-B1": (64, 128, 320, 512),
}
OURS, EAGER = "evitseg", "eager PyTorch"
PLAIN, PLAIN_FREE, PLAIN_OPENVINO = (
    f"plain {way}" for way in ("torch.onnx.export", "torch.onnx.export, any size", "openvino.convert_model")
)
HALF = "half precision"
HINTS = {"float32": "f32", HALF: "bf16"}


def published(checkpoint: Path) -> Any:
    """The EfficientViT as its authors compute it: batch norm on its own, attention with a bare quotient."""
    from torch.nn import functional as F

    from evitseg.model import attention

    def relu_linear_attention(q: Any, k: Any, v: Any, eps: float = 0.0, smallest: float | None = None) -> Any:
        q, k, v = q.relu(), k.relu(), F.pad(v, (0, 0, 0, 1), value=1.0)
        out = (v @ k.transpose(-1, -2)) @ q
        return out[..., :-1, :] / (out[..., -1:, :] + 1e-15)

    attention.relu_linear_attention = relu_linear_attention
    return network_of(checkpoint)[0].eval()


def segformer(widths: tuple[int, ...]) -> Any:
    with silenced():  # what torchao has to say
        from transformers import SegformerConfig, SegformerForSemanticSegmentation
    config: Any = SegformerConfig(
        num_labels=19, depths=[2, 2, 2, 2], hidden_sizes=list(widths), num_attention_heads=[1, 2, 5, 8],
        sr_ratios=[8, 4, 2, 1], decoder_hidden_size=256,
    )  # fmt: skip
    network: Any = SegformerForSemanticSegmentation(config)
    return network.eval()


def normalising(network: Any) -> Any:
    """From a (1, h, w, 3) uint8 image to logits."""
    import torch

    class Normalising(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = network
            for name, values in (("mean", (0.485, 0.456, 0.406)), ("std", (0.229, 0.224, 0.225))):
                self.register_buffer(name, 255 * torch.tensor(values).view(1, 3, 1, 1))

        def forward(self, image: Any) -> Any:
            out = self.network((image.permute(0, 3, 1, 2).float() - self.mean) / self.std)
            return out if isinstance(out, torch.Tensor) else out.logits

    return Normalising().eval()


def converted(network: Any, way: str, size: tuple[int, int], stem: Path) -> Path:
    """The file that a plain conversion writes."""
    import openvino
    import torch

    pixels = torch.zeros((1, *size, 3), dtype=torch.uint8)
    with silenced(), torch.no_grad():
        if way == PLAIN_OPENVINO:
            graph = openvino.convert_model(normalising(network), example_input=pixels, input=list(pixels.shape))
            path = stem.with_suffix(".xml")
            openvino.save_model(graph, path, compress_to_fp16=False)
            return path
        path = stem.with_suffix(".onnx")
        free = {"image": {1: "height", 2: "width"}, "logits": {2: "h", 3: "w"}} if way == PLAIN_FREE else None
        torch.onnx.export(
            normalising(network), (pixels,), str(path), input_names=["image"], output_names=["logits"],
            dynamic_axes=free, opset_version=17, dynamo=False,
        )  # fmt: skip
    return path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--serve", nargs=5, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.serve:
        serve_one(arguments.checkpoint, arguments.threads, *arguments.serve)
        return
    import openvino

    from evitseg import export

    networks = {PLAIN: published(arguments.checkpoint)}
    networks |= {name: segformer(widths) for name, widths in SEGFORMERS.items()}
    results: dict[str, dict[str, dict[str, Any]]] = {}
    macs: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        ours, manifest = export(arguments.checkpoint, "onnx", place / "ours.onnx")
        default = load(ours, engine="native").info.precision
        for size in SIZES:
            at = "x".join(map(str, size))
            files = {
                name: converted(network, PLAIN, size, place / f"{at}-{number}")
                for number, (name, network) in enumerate(networks.items())
            }
            count = {
                name: sum(multiply_adds(openvino.Core().read_model(path)).values()) for name, path in files.items()
            }
            macs[at] = count | {OURS: cost(manifest.model).macs(*size)}
            if size == MAIN:
                for number, way in enumerate((PLAIN_FREE, PLAIN_OPENVINO)):
                    files[way] = converted(networks[PLAIN], way, size, place / f"plain-{number}")
            command = [
                sys.executable, __file__, str(arguments.checkpoint), "--threads", str(arguments.threads), "--serve"
            ]  # fmt: skip
            commands = {
                f"{name}, {precision}": [*command, name, str(path), precision, *map(str, size)]
                for precision in HINTS
                for name, path in {OURS: ours, **files}.items()
            }
            if size == MAIN:
                commands[f"{EAGER}, float32"] = [*command, EAGER, "-", "float32", *map(str, size)]
            results[at] = {name: asdict(result) for name, result in compete(commands, arguments.rounds).items()}
            for name, row in results[at].items():
                print(f"{at:<12}{name:<46}{row['median_ms']:>9.1f} ms{row['p90_ms']:>9.1f}", flush=True)
    main_results = results["x".join(map(str, MAIN))]

    def ratio(peers: tuple[str, ...], precision: str) -> float:
        best = min(main_results[f"{peer}, {precision}"]["median_ms"] for peer in peers)
        return float(best / main_results[f"{OURS}, {precision}"]["median_ms"])

    ratios = {
        precision: {name: ratio((name,), precision) for name in SEGFORMERS}
        | {"fastest plain conversion": ratio((PLAIN, PLAIN_FREE, PLAIN_OPENVINO), precision)}
        for precision in HINTS
    }
    print(json.dumps(ratios, indent=2))
    settings = {
        "checkpoint": arguments.checkpoint.name, "threads": arguments.threads, "machine": machine().to_dict(),
        "rounds": arguments.rounds, "default_precision": default, "openvino": openvino.__version__.split("-")[0],
    }  # fmt: skip
    content = {"settings": settings, "macs": macs, "times_faster": ratios, "results": results}
    with replacing(RESULTS / "peers.json") as file:
        file.write((json.dumps(content, indent=2) + "\n").encode())


def serve_one(checkpoint: Path, threads: int, name: str, path: str, precision: str, height: str, width: str) -> None:
    """One contestant's process."""
    size = (int(width), int(height))
    resized = Image.fromarray(read_image(EXAMPLE_IMAGE)).resize(size, Image.Resampling.LANCZOS)
    image: NDArray[np.uint8] = np.array(resized)[None]
    serve(_work(checkpoint, threads, name, path, precision, image))


def _work(
    checkpoint: Path, threads: int, name: str, path: str, precision: str, image: NDArray[np.uint8]
) -> Callable[[], object]:
    if name == OURS:
        wanted: Precision = "float32" if precision == "float32" else "auto"
        engine = load(path, engine="native", precision=wanted, threads=threads).engine
        return lambda: engine(image)
    if name == EAGER:
        import torch

        torch.set_num_threads(threads)
        network, pixels = normalising(published(checkpoint)), torch.from_numpy(image)

        def eager() -> None:
            with torch.inference_mode():
                network(pixels)

        return eager
    import openvino

    settings = {
        "PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": HINTS[precision],
        "INFERENCE_NUM_THREADS": str(threads),
    }  # fmt: skip
    request = openvino.Core().compile_model(path, "CPU", settings).create_infer_request()
    return lambda: request.infer([image], share_inputs=True, share_outputs=True)


if __name__ == "__main__":
    main()
