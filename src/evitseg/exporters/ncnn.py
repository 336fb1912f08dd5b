"""ncnn: a .param file, which is text, with its .bin, for Arm boards, Android and iOS."""

from __future__ import annotations

import copy
import tempfile
from pathlib import Path

import torch
from torch import Tensor

from evitseg.errors import ExportError, MissingPackageError
from evitseg.image import Preprocess
from evitseg.manifest import Manifest
from evitseg.model.network import Deployed, EfficientViT
from evitseg.noise import silenced


class Planes(Deployed):
    """The network as it is: ncnn has bicubic up-sampling and all that attention needs, and ran no other form faster.

    Input: (1, 3, height, width) float32 RGB from 0 to 255, what ncnn::Mat::from_pixels_resize makes. Output: logits.
    """

    def __init__(self, network: EfficientViT, preprocess: Preprocess) -> None:
        super().__init__(copy.deepcopy(network).float(), preprocess)

    def forward(self, planes: Tensor) -> Tensor:
        logits: Tensor = self.network((planes + self.shift) * self.scale)
        return logits


def write_ncnn(model: EfficientViT, manifest: Manifest, path: Path) -> None:
    """Write NAME.param and NAME.bin. Raises: ExportError, MissingPackageError."""
    form = Planes(model, manifest.preprocess).eval()
    assert manifest.preprocess.fixed is not None
    example = torch.zeros(1, 3, *manifest.preprocess.fixed)
    try:
        import pnnx
    except ImportError as error:
        raise MissingPackageError("export to ncnn", "ncnn-export") from error
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder) / "network"  # pnnx writes eight files beside the one it is given
        with silenced():
            pnnx.export(form, f"{scratch}.pt", (example,), fp16=manifest.weights == "float16")
        for ending in (".param", ".bin"):
            file = Path(f"{scratch}.ncnn{ending}")
            if not file.is_file():
                raise ExportError("pnnx wrote no ncnn network; its own program shows why: pnnx --help.")
            path.with_suffix(ending).write_bytes(file.read_bytes())
