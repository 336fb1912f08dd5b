"""Run checkpoints in PyTorch."""

from __future__ import annotations

import contextlib
import copy

import numpy as np
import torch
from numpy.typing import NDArray

from evitseg.engine import PRECISIONS, EngineInfo, Precision
from evitseg.errors import EngineError, unknown
from evitseg.manifest import Manifest
from evitseg.model.network import EfficientViT, NormalizedModel
from evitseg.system.machine import logical_cores, processor_name


class TorchEngine:
    """A network and its manifest, run by PyTorch.

    Args:
        precision: "auto" is float32, the precision of training.
        threads: maximum number of threads of this whole process; None for PyTorch's setting, but no more than the
            process may use.
        device: "cpu", "cuda", "cuda:1", "mps", or "auto" for the first of cuda, mps and cpu that this machine has.

    Raises: ConfigError for an unknown name, EngineError for a device that this machine does not have.
    """

    def __init__(
        self,
        model: EfficientViT,
        manifest: Manifest,
        precision: Precision = "auto",
        threads: int | None = None,
        device: str = "cpu",
    ) -> None:
        if precision not in PRECISIONS:
            raise unknown("precision", precision, PRECISIONS)
        if threads is not None:
            if threads < 1:
                raise EngineError(f"threads is {threads}; give 1 or more.")
            torch.set_num_threads(threads)
        elif torch.get_num_threads() > logical_cores():  # PyTorch ignores a container's quota
            torch.set_num_threads(logical_cores())
        chosen = "float32" if precision == "auto" else precision
        self.manifest = manifest
        self._device = _device(device)
        # A copy: the caller's network stays in its mode, number format and place.
        self._network = NormalizedModel(copy.deepcopy(model), manifest.preprocess).eval().to(self._device)
        self._network.network.to(getattr(torch, chosen))
        self.info = EngineInfo(
            engine="PyTorch",
            version=torch.__version__,
            precision=chosen,
            threads=torch.get_num_threads(),
            device=processor_name() if self._device.type == "cpu" else str(self._device),
        )

    @torch.inference_mode()
    def __call__(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        tensor = torch.from_numpy(images if images.flags.writeable else images.copy()).to(self._device)
        with contextlib.nullcontext() if self._device.type != "cuda" else _true_float32():
            logits: NDArray[np.float32] = self._network(tensor).float().cpu().numpy()
        return logits


def _true_float32() -> contextlib.AbstractContextManager[None]:
    """Keeps cuDNN from rounding the inputs of float32 convolutions to 10 bits (TF32), which is its default."""
    return torch.backends.cudnn.flags(enabled=True, allow_tf32=False)


def has_gpu() -> bool:
    """Whether PyTorch finds a GPU on this machine."""
    return bool(torch.cuda.device_count()) or torch.backends.mps.is_available()


def _device(name: str) -> torch.device:
    """PyTorch's device of this name. Raises: ConfigError, EngineError."""
    counts = {"cuda": torch.cuda.device_count(), "mps": int(torch.backends.mps.is_available()), "cpu": 1}
    if name == "auto":
        return torch.device(next(kind for kind, count in counts.items() if count))
    kind, _, index = name.partition(":")
    if kind not in counts or not (index == "" or (kind == "cuda" and index.isdecimal())):
        raise unknown("device", name, ["auto", "cpu", "cuda", "cuda:0", "mps"])
    if counts[kind] <= int(index or 0):
        found = ", ".join(each for each, count in counts.items() if count)
        raise EngineError(f"PyTorch finds no device {name} on this machine; use {found}.")
    return torch.device(name)
