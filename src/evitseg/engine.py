"""What an engine is: images in, logits out. `evitseg.runtime` has those for artefacts, `evitseg.model` torch's."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from evitseg.manifest import Manifest

Precision = Literal["auto", "float32", "float16", "bfloat16"]


PRECISIONS: tuple[Precision, ...] = ("auto", "float32", "float16", "bfloat16")


@dataclass(frozen=True)
class EngineInfo:
    """What runs.

    Attributes:
        engine, version: of the library.
        precision: of the arithmetic, as the engine reports it.
        threads: at most.
        device: the processor's name.
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
    """What a `Segmenter` needs.

    Called with (N, h, w, 3) uint8 RGB, h and w divisible by 32, it returns (N, classes, h / 8, w / 8) float32 logits.
    """

    info: EngineInfo
    manifest: Manifest

    def __call__(self, images: NDArray[np.uint8]) -> NDArray[np.float32]: ...
