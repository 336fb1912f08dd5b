"""Run models in our own core."""

from __future__ import annotations

import os
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from evitseg._version import __version__
from evitseg.architecture import ModelConfig
from evitseg.engine import EngineInfo, Precision
from evitseg.errors import EngineError, WeightsError, warn
from evitseg.manifest import Manifest
from evitseg.runtime import evit_file
from evitseg.runtime.checkpoint import read_checkpoint
from evitseg.runtime.core import (
    CORE_PRECISIONS,
    ISA_VARIABLE,
    Core,
    CorePrecision,
    DamagedProgramError,
    NotFiniteError,
    instruction_sets,
)
from evitseg.runtime.onnx_weights import read_onnx
from evitseg.runtime.program import compile_program, has_half_precision
from evitseg.system.machine import physical_cores, processor_name

if TYPE_CHECKING:
    from evitseg.runtime.operations import Operation

_WIDTH_FOR_TILES = 32
"""Width of the first stage from which bfloat16 in AMX's tile registers is faster than float16."""


class NativeEngine:
    """A network in our own core.

    The logits are bit for bit the same for any number of threads. In float32 they are so on every processor with fused
    multiply-add; in half precision they depend on the instruction set.

    Args:
        program: made by `evitseg.runtime.program.compile_program`.
        precision: "float32"; "float16" on processors that compute in it, such as Intel's from Sapphire Rapids on and
            Arm's from Cortex-A76 on; "bfloat16" on processors with AVX512-BF16 or AMX, such as AMD's from Zen 4 on.
            "auto" is the fastest of them for this network and processor; if the network's numbers overflow float16, the
            engine warns once and continues in float32.
        threads: threads of all streams together, at least one per stream; None for one per physical core.
        streams: images that run at the same time; they divide the threads.

    Raises: EngineError for a precision that this processor does not compute in.
    """

    def __init__(
        self,
        manifest: Manifest,
        program: bytes,
        precision: Precision = "auto",
        threads: int | None = None,
        streams: int = 1,
    ) -> None:
        self.manifest, self.program = manifest, program
        self._threads, self._streams = threads or physical_cores(), streams
        self._may_fall_back = precision == "auto"
        self._lock = Lock()
        isa = os.environ.get(ISA_VARIABLE) or None
        self._open(_chosen_precision(precision, isa, manifest.model), isa)

    def _open(self, precision: CorePrecision, isa: str | None = None) -> None:
        self.core = Core(self.program, max(1, self._threads // self._streams), self._streams, isa, precision=precision)
        self.info = EngineInfo(
            engine=f"evitseg core ({self.core.isa})",
            version=__version__,
            precision=precision,
            threads=self._threads,
            device=processor_name(),
            streams=self._streams,
        )

    def memory(self, size: tuple[int, int]) -> int:
        """Bytes that an image of this (height, width) needs in addition to the weights, the image and the logits."""
        return self.core.memory(*size)

    def operations(self) -> list[Operation]:
        """The operations of its program, whose times `core.times` gives. Raises: WeightsError."""
        from evitseg.runtime.operations import describe

        return describe(self.program, self.manifest.model, self.core.block)

    def __call__(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        core = self.core
        try:
            return _batch(core, images)
        except NotFiniteError as error:
            self.fall_back(core, error)
        return _batch(self.core, images)

    def fall_back(self, core: Core, error: NotFiniteError) -> None:
        """Go on in float32 after numbers did not fit the core's precision, where the precision was not chosen.

        Raises: NotFiniteError, the error, where it was, or where it is float32 already.
        """
        if not self._may_fall_back or core.precision == "float32":
            raise error
        with self._lock:
            if self.core is core:
                warn(f"{core.precision} cannot hold this network's numbers; the native engine goes on in float32.")
                self._open("float32")


def open_native(
    model_file: Path, precision: Precision = "auto", threads: int | None = None, streams: int = 1
) -> NativeEngine:
    """A checkpoint (.safetensors), an ONNX file or a model file of the core (.evit) in our own core.

    Raises: WeightsError, ConfigError, EngineError.
    """
    if model_file.suffix == evit_file.ENDING:
        manifest, program = evit_file.read_evit(model_file)
    else:
        manifest, weights = (read_checkpoint if model_file.suffix == ".safetensors" else read_onnx)(model_file)
        program = compile_program(manifest.model, manifest.preprocess, weights)
    try:
        engine = NativeEngine(manifest, program, precision, threads, streams)
    except DamagedProgramError as error:
        raise WeightsError(
            f"{model_file}: damaged or incomplete, or made by another version of evitseg; export it again."
        ) from error
    if engine.core.classes != manifest.model.num_classes:
        raise WeightsError(
            f"{model_file}: its program has {engine.core.classes} classes and its manifest "
            f"{manifest.model.num_classes}; export it again."
        )
    if engine.core.is_classifier:
        raise WeightsError(f"{model_file}: holds a classifier, which gives no masks; use a segmentation network.")
    return engine


def _batch(core: Core, images: NDArray[np.uint8]) -> NDArray[np.float32]:
    if len(images) == 1:
        return core(images[0])[None]  # without a copy
    return np.stack([core(image) for image in images])


def _chosen_precision(precision: Precision, isa: str | None, config: ModelConfig) -> CorePrecision:
    """The precision that the core computes in. Raises: EngineError."""
    if precision == "auto":
        if isa is not None:
            return next((each for each in CORE_PRECISIONS if isa in instruction_sets(each)), "float32")
        return _fastest_precision(config)
    if precision != "float32" and not has_half_precision(config):
        raise EngineError("the native engine runs this network in float32 only; use --precision float32.")
    return precision


def _fastest_precision(config: ModelConfig) -> CorePrecision:
    """As benchmarks/core.py measured, on Sapphire Rapids (AVX512-FP16, AMX) and Zen 4 (AVX512-BF16).

    AMX pays off from B1 on. AVX512-BF16 was slower than float32 on Sapphire Rapids, which has AVX512-FP16 for that, and
    1.3 to 1.9 times as fast on Zen 4.
    """
    if not has_half_precision(config):
        return "float32"
    bfloat16 = instruction_sets("bfloat16")
    if "amxbf16" in bfloat16 and config.backbone.stages[0].width >= _WIDTH_FOR_TILES:
        return "bfloat16"
    if instruction_sets("float16"):
        return "float16"
    return "bfloat16" if "avx512bf16" in bfloat16 else "float32"
