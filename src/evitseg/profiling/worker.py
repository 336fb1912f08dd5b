"""Measure in processes of their own that take rounds."""

from __future__ import annotations

import json
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from types import TracebackType
from typing import Any, TypeVar

from evitseg.errors import EngineError
from evitseg.system.machine import peak_mib

_Name = TypeVar("_Name", str, int)
WARM_UP_LEAST, WARM_UP_MOST = 1.0, 20.0
"""Limits in seconds. During warm-up an engine compiles for a new size, reads its weights and grows its buffers."""
PAUSE_S = 0.05
"""Idle time before a measurement: an engine's threads spin for some milliseconds after a call and occupy cores."""


class Table:
    """Formats a table for a terminal or in Markdown; the first column is text, the others are numbers."""

    def __init__(self, header: Sequence[str], markdown: bool, first: int = 12) -> None:
        self._header, self._markdown, self._first = header, markdown, first

    def head(self) -> list[str]:
        """The lines above the rows."""
        return [self.row(self._header), *(["|" + " --- |" * len(self._header)] if self._markdown else [])]

    def row(self, cells: Sequence[str]) -> str:
        """A row's line."""
        if self._markdown:
            return f"| {' | '.join(cell.strip() for cell in cells)} |"
        width = [max(10, len(name) + 2) for name in self._header[1:]]
        return f"{cells[0]:<{self._first}}" + "".join(f"{cell:>{w}}" for cell, w in zip(cells[1:], width, strict=True))

    def lines(self, rows: Iterable[Sequence[str]]) -> list[str]:
        """The lines of the whole table."""
        return [*self.head(), *map(self.row, rows)]


def take_rounds(works: Mapping[_Name, Callable[[], float]], rounds: int) -> dict[_Name, list[float]]:
    """Milliseconds of every contestant in every round.

    A round measures all contestants once, in random order, so that a busy moment of the machine affects all alike.

    Args:
        works: run once and return the seconds that it took.
    """
    taken: dict[_Name, list[float]] = {name: [] for name in works}
    order, shuffle = list(works), random.Random(0).shuffle
    for _ in range(rounds):
        shuffle(order)  # otherwise each would always follow the same other one
        for name in order:
            time.sleep(PAUSE_S)
            taken[name].append(1000 * works[name]())
    return taken


def warm_up(work: Callable[[], float]) -> None:
    """Run until three calls in a row are less than 3 % faster than the fastest before.

    Warm-up takes between `WARM_UP_LEAST` and `WARM_UP_MOST` seconds.
    """
    start, fastest, in_vain = time.perf_counter(), float("inf"), 0
    while (spent := time.perf_counter() - start) < WARM_UP_LEAST or in_vain < 3:
        if spent > WARM_UP_MOST:
            break
        took = work()
        in_vain = in_vain + 1 if took > 0.97 * fastest else 0
        fastest = min(fastest, took)


def median_and_p90(values: Sequence[float]) -> tuple[float, float]:
    """The median and the 90th percentile."""
    if len(values) == 1:
        return values[0], values[0]
    return statistics.median(values), statistics.quantiles(values, n=10, method="inclusive")[-1]


class Worker:
    """A process that runs its work on request and reports the time; it calls `serve`.

    Raises: EngineError if the process ends early or reports an error.
    """

    def __init__(self, command: Sequence[str], name: str) -> None:
        self.name = name
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.about: dict[str, Any] = {}

    def begun(self) -> Worker:
        """The worker, once it is ready."""
        try:
            self.about = self._answer()
            if "error" in self.about:
                raise EngineError(self.about["error"])
        except BaseException:
            self.close()
            raise
        return self

    def ask(self, work: str) -> float:
        """The seconds that the work took; for "peak" the process's peak memory in MiB."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(work + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:  # the next line reports that it ended
            pass
        return float(self._answer())

    def _answer(self) -> Any:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            status = self._process.wait()
            raise EngineError(f"{self.name}: the process that measures it ended early, with exit status {status}.")
        return json.loads(line)

    def __enter__(self) -> Worker:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the process."""
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            with suppress(BrokenPipeError):
                pipe.close()
        self._process.wait()


def serve(works: Mapping[str, Callable[[], object]], about: Mapping[str, Any] | None = None) -> None:
    """Answer the requests of a `Worker` until standard input ends."""
    print(json.dumps(about or {}), flush=True)
    for line in sys.stdin:
        asked = line.strip()
        if asked == "peak":
            print(json.dumps(peak_mib()), flush=True)
            continue
        start = time.perf_counter()
        works[asked]()
        print(json.dumps(time.perf_counter() - start), flush=True)
