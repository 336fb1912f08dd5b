"""What an engine is: pictures in, logits out. `evitseg.runtime` has those for artefacts, `evitseg.model` torch's."""

from __future__ import annotations

import platform
from dataclasses import dataclass
from pathlib import Path
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


def processor_name() -> str:
    """The processor's name, as Linux gives it, else what Python knows."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    named = (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.processor() or platform.machine())


class Engine(Protocol):
    """What a `Segmenter` needs.

    Called with (N, h, w, 3) uint8 RGB, h and w divisible by 32, it returns (N, classes, h / 8, w / 8) float32 logits.
    """

    info: EngineInfo
    manifest: Manifest

    def __call__(self, images: NDArray[np.uint8]) -> NDArray[np.float32]: ...
