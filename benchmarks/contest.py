"""Contestants measured turn by turn, each in its own process: the machine's moods hit all of them alike.

A contestant is a command that prepares and then calls `serve` with its work. At the end its peak memory is asked for.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from evitseg.profiling.worker import Worker, median_and_p90, take_rounds, warm_up
from evitseg.profiling.worker import serve as serve_works
from evitseg.system.files import replacing
from evitseg.system.machine import processor_name

RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True)
class Result:
    """One contestant's figures.

    Attributes:
        median_ms, p90_ms: of one turn.
        peak_mib: most memory its process ever held.
        rounds: how many were measured, after those that warm up.
    """

    median_ms: float
    p90_ms: float
    peak_mib: float
    rounds: int


def serve(work: Callable[[], object]) -> None:
    """The contestant's side: do the work once for every line on standard input."""
    serve_works({"go": work})


def compete(commands: Mapping[str, Sequence[str]], rounds: int) -> dict[str, Result]:
    """Run the contestants turn by turn, each warm."""
    with ExitStack() as stack:
        workers = {name: stack.enter_context(Worker(command, name)) for name, command in commands.items()}
        for worker in workers.values():
            worker.begun()
        works = {name: partial(worker.ask, "go") for name, worker in workers.items()}
        for work in works.values():
            warm_up(work)
        taken = take_rounds(works, rounds)
        return {
            name: Result(*median_and_p90(taken[name]), worker.ask("peak"), rounds) for name, worker in workers.items()
        }


def report(name: str, settings: dict[str, Any], results: dict[str, Result], reference: str) -> None:
    """Print a table with ratios to the reference, and write it to `benchmarks/results`."""
    base = results[reference].median_ms
    print(f"{'':<28}{'median ms':>11}{'p90 ms':>9}{'peak MiB':>10}{'times faster':>14}")
    for contestant, result in results.items():
        print(
            f"{contestant:<28}{result.median_ms:>11.1f}{result.p90_ms:>9.1f}{result.peak_mib:>10.0f}"
            f"{base / result.median_ms:>14.2f}"
        )
    content = {
        "settings": settings | {"processor": processor_name()},
        "results": {
            contestant: asdict(result) | {"times_faster": base / result.median_ms}
            for contestant, result in results.items()
        },
    }
    with replacing(RESULTS / f"{name}.json") as file:
        file.write((json.dumps(content, indent=2) + "\n").encode())
