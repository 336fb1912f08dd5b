"""How many images predict has in progress at the same time, and which of them the network can see whole."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from evitseg.cli.jobs import PredictJob
from evitseg.system.files import begin_to_read, is_folder

if TYPE_CHECKING:
    from evitseg.runtime.native import NativeEngine
    from evitseg.runtime.segmenter import Segmenter

_ANSWER_S = 1.0
"""Seconds after which the free memory is asked for again."""


class WholeImages:
    """Decides which images the network can see whole; the others can go in bands.

    Args:
        memory: bytes for one image; None divides the free memory among the images that are `at_once` in progress.
    """

    def __init__(self, segment: Segmenter, memory: int | None, at_once: int) -> None:
        self._segment, self._memory, self._at_once = segment, memory, at_once
        # By size: asking the engine waits until it is idle, and asking for free memory takes a third of a millisecond.
        self._answers: dict[tuple[int, int], tuple[float, bool]] = {}

    def too_large(self, path: Path) -> str:
        """Why the network cannot see an image whole, or "". Raises: ImageError, ConfigError."""
        from evitseg.image import TooManyPixelsError
        from evitseg.raster import SLIDE_ENDINGS
        from evitseg.raster.files import image_size

        if is_folder(path) or path.suffix.lower() in SLIDE_ENDINGS:
            return f"{'Zarr is' if is_folder(path) else 'slides are'} read window by window"
        try:
            size = image_size(path, self._segment.reading)
        except TooManyPixelsError:
            return "has more pixels than are read at once"
        asked, answer = self._answers.get(size, (-math.inf, False))
        if time.monotonic() - asked > _ANSWER_S:
            answer = self._fits(size)
            self._answers[size] = time.monotonic(), answer
        return "" if answer else "does not fit in memory whole"

    def _fits(self, size: tuple[int, int]) -> bool:
        """Whether it can see an image of this (height, width) whole; one that cannot go in bands is tried."""
        from evitseg.tiling.memory_model import fits

        segment, engine = self._segment, engine_of_bands(self._segment)
        working = segment.manifest.preprocess.fit(size, segment.size)
        if engine is None:
            return True
        return fits(segment.manifest.model, size, working, engine.memory(working), self._memory, self._at_once)


def engine_of_bands(segment: Segmenter) -> NativeEngine | None:
    """The engine if it can segment images that are too large for memory, in bands."""
    from evitseg.runtime.native import NativeEngine

    engine = segment.engine
    return engine if isinstance(engine, NativeEngine) and segment.manifest.preprocess.fixed is None else None


def workers_of(segment: Segmenter) -> int:
    """Number of images in progress at the same time."""
    # A stream of several threads leaves cores idle while its image is read or written. One of a single thread does not,
    # and more workers than cores get in each other's way.
    info = segment.info
    return info.streams + (info.threads > info.streams)


def read_ahead(jobs: Iterable[PredictJob]) -> Iterator[PredictJob]:
    """The jobs; the system begins to read the file of each one when it is drawn, before a worker is free for it."""
    for job in jobs:
        if isinstance(job.source, Path):
            begin_to_read(job.source)
        yield job
