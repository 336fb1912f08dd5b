"""A checkpoint as an engine: the network in PyTorch, behind the interface that artefacts have."""

from __future__ import annotations

import copy

import numpy as np
import torch
from numpy.typing import NDArray

from evitseg.engine import PRECISIONS, EngineInfo, Precision
from evitseg.errors import EngineError, unknown
from evitseg.manifest import Manifest
from evitseg.model.network import Deployed, EfficientViT
from evitseg.system.machine import logical_cores, processor_name


class TorchEngine:
    """A network and its manifest, run by PyTorch on a CPU or a CUDA device.

    Args:
        precision: "auto" is float32, which is what was trained.
        threads: at most, for this whole process; None for PyTorch's setting, but no more than may run here.
        device: as PyTorch names it.
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
        elif torch.get_num_threads() > logical_cores():  # PyTorch does not know of a container's quota
            torch.set_num_threads(logical_cores())
        chosen = "float32" if precision == "auto" else precision
        self.manifest = manifest
        self._device = torch.device(device)
        # A copy: the caller's network stays in its mode, number format and place.
        self._network = Deployed(copy.deepcopy(model), manifest.preprocess).eval().to(self._device)
        self._network.network.to(getattr(torch, chosen))
        self.info = EngineInfo(
            engine="PyTorch",
            version=torch.__version__,
            precision=chosen,
            threads=torch.get_num_threads(),
            device=processor_name() if self._device.type == "cpu" else device,
        )

    @torch.inference_mode()
    def __call__(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        tensor = torch.from_numpy(images if images.flags.writeable else images.copy()).to(self._device)
        logits: NDArray[np.float32] = self._network(tensor).float().cpu().numpy()
        return logits
