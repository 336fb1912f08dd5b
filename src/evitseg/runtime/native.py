"""Run models in our own core."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from evitseg._version import __version__
from evitseg.engine import EngineInfo, Precision
from evitseg.errors import EngineError, WeightsError
from evitseg.manifest import Manifest
from evitseg.runtime import evit_file
from evitseg.runtime.checkpoint import read_checkpoint
from evitseg.runtime.core import ISA_VARIABLE, Core
from evitseg.runtime.program import compile_program
from evitseg.system.machine import physical_cores, processor_name


class NativeEngine:
    """A model file of the core (.evit), a checkpoint (.safetensors) or an ONNX file in our own core, in float32.

    The logits are bit for bit the same on every processor with fused multiply-add, for any number of threads.

    Args:
        threads: threads of all streams together, at least one per stream; None for one per physical core.
        streams: images that run at the same time; they divide the threads.
    """

    def __init__(
        self, model_file: Path, precision: Precision = "auto", threads: int | None = None, streams: int = 1
    ) -> None:
        if precision not in ("auto", "float32"):
            raise EngineError(f"the native engine computes in float32, not in {precision}; use --engine openvino.")
        self.manifest, program = _program_of(model_file)
        threads = threads or physical_cores()
        self.core = Core(program, max(1, threads // streams), streams, os.environ.get(ISA_VARIABLE) or None)
        if self.core.classes != self.manifest.model.num_classes:
            raise WeightsError(
                f"{model_file}: its program has {self.core.classes} classes and its manifest "
                f"{self.manifest.model.num_classes}; export it again."
            )
        self.info = EngineInfo(
            engine=f"evitseg core ({self.core.isa})",
            version=__version__,
            precision="float32",
            threads=threads,
            device=processor_name(),
            streams=streams,
        )

    def __call__(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        if len(images) == 1:
            return self.core(images[0])[None]  # without a copy
        return np.stack([self.core(image) for image in images])


def _program_of(model_file: Path) -> tuple[Manifest, bytes]:
    if model_file.suffix == evit_file.ENDING:
        return evit_file.read_evit(model_file)
    if model_file.suffix == ".safetensors":
        manifest, weights = read_checkpoint(model_file)
    else:
        from evitseg.runtime.openvino_engine import openvino_weights

        manifest, weights = openvino_weights(model_file)
    return manifest, compile_program(manifest.model, manifest.preprocess, weights)
