"""Write ncnn: a .param file, which is text, and a .bin, for Arm boards, Android and iOS."""

from __future__ import annotations

import copy
import math
import tempfile
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from evitseg.errors import ExportError, MissingPackageError
from evitseg.exporters.int8 import LEVELS
from evitseg.manifest import Manifest
from evitseg.model.attention import SMALLEST, MultiScaleAttention
from evitseg.model.network import EfficientViT, NormalizedModel
from evitseg.preprocess import Preprocess
from evitseg.system.silence import silenced

FLOAT32, FLOAT16, TABLE = (tag.to_bytes(4, "little") for tag in (0, 0x01306B47, 1))
"""Tags at the start of a layer's weights in a .bin."""


class ChannelsFirstModel(NormalizedModel):
    """The unchanged network with float planes as input: ncnn has all its operators, and ran no other form faster.

    Input: (1, 3, height, width) float32 RGB from 0 to 255, as ncnn::Mat::from_pixels_resize returns. Output: logits.
    """

    def __init__(self, network: EfficientViT, preprocess: Preprocess) -> None:
        super().__init__(copy.deepcopy(network).float(), preprocess)
        for module in self.network.modules():
            if isinstance(module, MultiScaleAttention):
                module.smallest = SMALLEST  # ncnn computes in float16 on Arm

    def forward(self, planes: Tensor) -> Tensor:
        logits: Tensor = self.network((planes + self.shift) * self.scale)
        return logits


def write_ncnn(model: EfficientViT, manifest: Manifest, path: Path) -> None:
    """Write NAME.param and NAME.bin. Raises: ExportError, MissingPackageError."""
    form = ChannelsFirstModel(model, manifest.preprocess).eval()
    assert manifest.preprocess.fixed is not None
    example = torch.zeros(1, 3, *manifest.preprocess.fixed)
    try:
        import pnnx
    except ImportError as error:
        raise MissingPackageError("export to ncnn", "ncnn-export") from error
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder) / "network"  # pnnx writes eight files next to its input
        with silenced():
            pnnx.export(form, f"{scratch}.pt", (example,), fp16=manifest.weights == "float16")
        for ending in (".param", ".bin"):
            file = Path(f"{scratch}.ncnn{ending}")
            if not file.is_file():
                raise ExportError(
                    "pnnx wrote no ncnn network; run the program pnnx on the network to see its messages."
                )
            path.with_suffix(ending).write_bytes(file.read_bytes())
    if manifest.weights == "int8":
        weights = path.with_suffix(".bin")
        weights.write_bytes(_in_8_bits(path.read_text(encoding="ascii"), weights.read_bytes()))


def _in_8_bits(network: str, content: bytes) -> bytes:
    """A .bin of float32 weights rewritten: a table for layers with at most `LEVELS` values, float16 for the others.

    ncnn's Python packages contain no program for it. Source: ModelBin::load in ncnn's modelbin.cpp; a weight begins
    with a tag of four bytes and is padded to a multiple of four.
    """
    out, at = [], 0

    def take(count: int) -> bytes:
        nonlocal at
        at += count
        return content[at - count : at]

    def filled(part: bytes) -> bytes:
        return part + bytes(-len(part) % 4)

    for line in network.splitlines()[2:]:
        kind, _, inputs, outputs, *rest = line.split()
        options = dict(option.split("=") for option in rest[int(inputs) + int(outputs) :])
        if kind == "MemoryData":
            out.append(take(4 * math.prod(int(options.get(axis, 1)) or 1 for axis in "012")))
        elif kind.startswith("Convolution"):
            if take(4) != FLOAT32:
                raise ExportError("pnnx wrote weights in another format than float32; export with --weights float16.")
            weight = np.frombuffer(take(4 * int(options["6"])), "<f4")
            values = np.unique(weight)
            if len(weight) > 4 * LEVELS >= 4 * len(values):
                table = np.pad(values, (0, LEVELS - len(values)), mode="edge")
                out += [TABLE, table.tobytes(), filled(np.searchsorted(values, weight).astype(np.uint8).tobytes())]
            else:
                out += [FLOAT16, filled(weight.astype("<f2").tobytes())]
            out.append(take(4 * int(options["0"])) if int(options.get("5", 0)) else b"")
    if at != len(content):
        raise ExportError("pnnx wrote weights of an unknown kind of layer; export with --weights float16.")
    return b"".join(out)
