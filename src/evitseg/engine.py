"""The interface between engines and segmenters: images in, logits out.

`evitseg.runtime` has the engines for exported models, `evitseg.model` has PyTorch's.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from evitseg.manifest import Manifest

Precision = Literal["auto", "float32", "float16", "bfloat16"]
"""Numerical precision of the arithmetic; "auto" leaves the choice to the engine."""

PRECISIONS: tuple[Precision, ...] = ("auto", "float32", "float16", "bfloat16")


@dataclass(frozen=True)
class EngineInfo:
    """How a model runs.

    Attributes:
        engine, version: the library.
        precision: of the arithmetic, as the engine reports it.
        threads: maximum number of threads.
        device: the processor's name, or PyTorch's name of a GPU.
        streams: calls that run at the same time, sharing the threads; further callers wait.
    """

    engine: str
    version: str
    precision: str
    threads: int
    device: str
    streams: int = 1

    def __str__(self) -> str:
        threads = f"{self.threads} thread{'s' * (self.threads != 1)}"
        if self.streams > 1:
            threads += f" in {self.streams} streams"
        return f"{self.engine} {self.version}, {self.precision}, {threads}, {self.device}"


class Engine(Protocol):
    """The part of a `Segmenter` that runs the network.

    Called with (N, h, w, 3) uint8 RGB, h and w divisible by 32, it returns (N, classes, h / 8, w / 8) float32 logits.
    """

    info: EngineInfo
    manifest: Manifest

    def __call__(self, images: NDArray[np.uint8]) -> NDArray[np.float32]: ...
