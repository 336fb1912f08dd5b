"""Contestants measured turn by turn, each in its own process: the machine's moods hit all of them alike.

A contestant is a command that prepares, prints "ready", then for every line it reads does its work once and prints
the seconds it took as JSON; `serve` is that loop. At the end its peak memory is asked for.
"""

from __future__ import annotations

import json
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from evitseg.bench import peak_mib
from evitseg.engine import processor_name
from evitseg.files import replacing

RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True)
class Result:
    """One contestant's figures.

    Attributes:
        median_ms, p90_ms: of one turn.
        peak_mib: most memory its process ever held.
        turns: how many were measured, after those that warm up.
    """

    median_ms: float
    p90_ms: float
    peak_mib: float
    turns: int


def serve(work: Callable[[], object]) -> None:
    """The contestant's side: do the work once for every line on standard input."""
    print("ready", flush=True)
    for line in sys.stdin:
        if line.strip() == "peak":
            print(json.dumps(peak_mib()), flush=True)
            continue
        start = time.perf_counter()
        work()
        print(json.dumps(time.perf_counter() - start), flush=True)


def compete(commands: dict[str, list[str]], turns: int, warm_up: int = 3) -> dict[str, Result]:
    """Run the contestants turn by turn."""
    processes = {
        name: subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for name, command in commands.items()
    }

    def ask(name: str, question: str) -> Any:
        process = processes[name]
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(question + "\n")
        process.stdin.flush()
        answer = process.stdout.readline()
        if not answer:
            raise SystemExit(f"{name} ended early; its messages are above")
        return json.loads(answer)

    for name, process in processes.items():
        assert process.stdout is not None
        if process.stdout.readline().strip() != "ready":
            raise SystemExit(f"{name} did not start; its messages are above")
    seconds: dict[str, list[float]] = {name: [] for name in commands}
    order, shuffle = list(commands), random.Random(0).shuffle
    for turn in range(warm_up + turns):
        shuffle(order)  # nobody always comes after the same other
        for name in order:
            time.sleep(0.05)  # the threads of the one before may still spin
            took = ask(name, "go")
            if turn >= warm_up:
                seconds[name].append(took)
    results = {}
    for name, taken in seconds.items():
        p90 = statistics.quantiles(taken, n=10, method="inclusive")[-1]
        results[name] = Result(1000 * statistics.median(taken), 1000 * p90, ask(name, "peak"), turns)
    for process in processes.values():
        assert process.stdin is not None
        process.stdin.close()
        process.wait()
    return results


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
