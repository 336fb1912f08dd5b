"""What a caller can know of an image in bands while it runs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from evitseg.tiling.job import Job
from evitseg.tiling.plan import Plan


@dataclass(frozen=True)
class BandProgress:
    """Progress of an image in bands.

    Attributes:
        segment, segments: the part of the network that runs, from 0, of how many.
        window, windows: how many of its bands are done, of how many.
        done: fraction of the whole work that is done, from 0 to 1, estimated from multiply-adds.
    """

    segment: int
    segments: int
    window: int
    windows: int
    done: float


@dataclass(frozen=True)
class Beginning:
    """What is about to be done.

    Attributes:
        plan: the bands.
        memory: bytes the process may hold.
        scratch: the hidden folder with intermediate results; None if they are kept in memory.
        done: fraction of the work that an earlier, interrupted call had done.
    """

    plan: Plan
    memory: int
    scratch: Path | None
    done: float


@dataclass(frozen=True)
class Watcher:
    """Functions that follow the work.

    Attributes:
        begin: called once, before the work begins.
        progress: called after every band.
    """

    begin: Callable[[Beginning], None] = lambda beginning: None
    progress: Callable[[BandProgress], None] = lambda progress: None


class Progress:
    """Tells the watcher how far the work is."""

    def __init__(self, job: Job, watcher: Watcher) -> None:
        self._watcher, self._plan = watcher, job.plan
        work = [segment.work for segment in job.core.segments]
        self._before = [sum(work[:i]) / sum(work) for i in range(len(work) + 1)]

    def fraction(self, segment: int, windows: int) -> float:
        """The fraction of the work that is done with this many windows of a segment."""
        begin, end = self._before[segment : segment + 2]
        return begin + (end - begin) * windows / len(self._plan.windows(segment))

    def count(self, segment: int, windows: int) -> None:
        of = len(self._plan.windows(segment))
        self._watcher.progress(
            BandProgress(segment, len(self._before) - 1, windows, of, self.fraction(segment, windows))
        )
