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
from typing import Any

from evitseg.errors import EngineError
from evitseg.system.machine import peak_mib

WARM_UP_LEAST, WARM_UP_MOST = 1.0, 20.0
"""Seconds. An engine may compile for a new size, read its weights and grow its buffers meanwhile."""


class Table:
    """Lines of a table, for a terminal or in Markdown; the first column is text, the others numbers."""

    def __init__(self, header: Sequence[str], markdown: bool, first: int = 12) -> None:
        self._header, self._markdown, self._first = header, markdown, first

    def head(self) -> list[str]:
        return [self.row(self._header), *(["|" + " --- |" * len(self._header)] if self._markdown else [])]

    def row(self, cells: Sequence[str]) -> str:
        if self._markdown:
            return f"| {' | '.join(cell.strip() for cell in cells)} |"
        width = [max(10, len(name) + 2) for name in self._header[1:]]
        return f"{cells[0]:<{self._first}}" + "".join(f"{cell:>{w}}" for cell, w in zip(cells[1:], width, strict=True))

    def lines(self, rows: Iterable[Sequence[str]]) -> list[str]:
        return [*self.head(), *map(self.row, rows)]


def take_rounds(works: Mapping[str, Callable[[], float]], rounds: int) -> dict[str, list[float]]:
    """Milliseconds of each, one after the other in random order, so that a busy moment of the machine hits all alike.

    Args:
        works: each does its work once, and gives the seconds it took.
    """
    taken: dict[str, list[float]] = {name: [] for name in works}
    order, shuffle = list(works), random.Random(0).shuffle
    for _ in range(rounds):
        shuffle(order)  # nobody always comes after the same other
        for name in order:
            time.sleep(0.05)  # the threads of the one before may still spin
            taken[name].append(1000 * works[name]())
    return taken


def warm_up(work: Callable[[], float]) -> None:
    """Work until nothing gets faster: three times in a row not 3 % faster than the fastest before.

    For `WARM_UP_LEAST` seconds at least, and `WARM_UP_MOST` at most.
    """
    start, fastest, in_vain = time.perf_counter(), float("inf"), 0
    while (spent := time.perf_counter() - start) < WARM_UP_LEAST or in_vain < 3:
        if spent > WARM_UP_MOST:
            break
        took = work()
        in_vain = in_vain + 1 if took > 0.97 * fastest else 0
        fastest = min(fastest, took)


def median_and_p90(values: Sequence[float]) -> tuple[float, float]:
    if len(values) == 1:
        return values[0], values[0]
    return statistics.median(values), statistics.quantiles(values, n=10, method="inclusive")[-1]


class Worker:
    """A process that does its work whenever it is asked, and says how long it took; `serve` is its side of it.

    Raises: EngineError where it ends early; where it cannot begin, with the sentence that it gives.
    """

    def __init__(self, command: Sequence[str], name: str) -> None:
        self.name = name
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.about: dict[str, Any] = {}

    def begun(self) -> Worker:
        """Itself, once it is ready."""
        try:
            self.about = self._answer()
            if "error" in self.about:
                raise EngineError(self.about["error"])
        except BaseException:
            self.close()
            raise
        return self

    def ask(self, work: str) -> float:
        """Seconds, or for "peak" the most memory it has held, in MiB."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(work + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:  # its end is told below
            pass
        return float(self._answer())

    def _answer(self) -> Any:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            status = self._process.wait()
            raise EngineError(f"{self.name}: the process that measures it ended early, with status {status}.")
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
    """The side of `Worker` that works, until its standard input ends."""
    print(json.dumps(about or {}), flush=True)
    for line in sys.stdin:
        asked = line.strip()
        if asked == "peak":
            print(json.dumps(peak_mib()), flush=True)
            continue
        start = time.perf_counter()
        works[asked]()
        print(json.dumps(time.perf_counter() - start), flush=True)
