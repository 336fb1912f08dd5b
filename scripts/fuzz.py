"""Fuzz every parser of the package: crashes, hangs, memory and tracebacks are findings.

    python scripts/fuzz.py --seconds 120                      what CI runs
    python scripts/fuzz.py --seconds 36000 --jobs 8           for a night
    python scripts/fuzz.py --only images zarr --seconds 600   some of the targets
    python scripts/fuzz.py --replay fuzz-findings/FOLDER      one finding again, with its traceback

Cases are mutations of files that `fuzz_targets.py` makes. One that reaches lines of the package that none before did is
mutated further. Each runs in a process of its target with a time and a memory limit; whatever is neither a result nor
an EvitsegError is a finding, and is saved with the command that repeats it. The exit status is 1 if there is any.

Atheris, the known coverage-guided fuzzer for Python, was not chosen: it needs a process for each target that ends with
its first finding, and its mutations know bytes only, while most of our formats are text or carry checksums.
"""

from __future__ import annotations

import argparse
import contextlib
import faulthandler
import hashlib
import importlib
import multiprocessing as mp
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
from dataclasses import dataclass, field
from multiprocessing.connection import wait
from pathlib import Path
from types import FrameType
from typing import Any

from fuzz_mutations import mutate
from fuzz_targets import TARGETS, FindingError, folder, write

import evitseg
from evitseg.errors import EvitsegError

PACKAGE = str(Path(evitseg.__file__).parent)
POOL = 400
"""Trees that are mutated further, at most."""
MIB = 2**20


class Coverage:
    """Lines of the package that a call runs through, in the calling thread."""

    def __init__(self) -> None:
        self.lines: set[tuple[str, int]] = set()

    def _enter(self, frame: FrameType, event: str, argument: Any) -> Any:
        return self._line if frame.f_code.co_filename.startswith(PACKAGE) else None

    def _line(self, frame: FrameType, event: str, argument: Any) -> Any:
        self.lines.add((frame.f_code.co_filename, frame.f_lineno))
        return self._line

    def __enter__(self) -> Coverage:
        sys.settrace(self._enter)
        return self

    def __exit__(self, *_: object) -> None:
        sys.settrace(None)


def limit_memory(size_bytes: int) -> None:
    """Beyond what the process has mapped already."""
    with open("/proc/self/statm") as file:
        mapped = int(file.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (mapped + size_bytes, resource.RLIM_INFINITY))


def fault_of(run: Any, place: Path) -> tuple[str, str] | None:
    """(what identifies it, its traceback) where a case gives what it may not."""
    try:
        run(place)
    except EvitsegError as error:
        text = str(error)
        chain: BaseException | None = error
        while chain is not None:
            if isinstance(chain, MemoryError):
                return f"memory at {_place_of(chain)}", traceback.format_exc()
            chain = chain.__cause__ or chain.__context__
        if not text.strip():
            return f"no sentence at {_place_of(error)}", traceback.format_exc()
    except KeyboardInterrupt:
        raise
    except FindingError as error:
        return f"wrong: {str(error)[:60]}", traceback.format_exc()
    except BaseException as error:
        return f"{type(error).__name__} at {_place_of(error)}", traceback.format_exc()
    return None


def _place_of(error: BaseException) -> str:
    """The last line of the package that the error came through."""
    frames = [f for f in traceback.extract_tb(error.__traceback__) if f.filename.startswith(PACKAGE)]
    if not frames:
        return "the script"
    return f"{Path(frames[-1].filename).relative_to(PACKAGE)}:{frames[-1].name}"


def serve(name: str, seed: str, memory: int, connection: Any, place: Path) -> None:
    """A worker: cases of one target, until it is stopped."""
    try:
        _serve(name, seed, memory, connection, place)
    except Exception:  # whatever it is, the parent prints it
        (place / "crash.txt").write_text(traceback.format_exc(), errors="replace")
        raise


def _serve(name: str, seed: str, memory: int, connection: Any, place: Path) -> None:
    os.setsid()  # what a case starts is stopped with it
    nothing = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nothing, 1)
    os.dup2(nothing, 2)  # also what libraries have to say
    target = TARGETS[name]
    for module in target.first:
        importlib.import_module(module)
    rng, coverage = random.Random(seed), Coverage()
    pool = target.seeds()
    seeds = len(pool)
    case = place / "case"
    limit_memory(memory)
    with open(place / "crash.txt", "w") as crash:
        faulthandler.enable(crash)
        number = 0
        while True:
            # The seeds as they are come first: they must be read, and what they reach is nothing new.
            tree = pool[number] if number < seeds else mutate(rng.choice(pool), rng, target.fixed, pool[:20])
            shutil.rmtree(case, ignore_errors=True)
            case.mkdir()
            write(tree, case)
            connection.send(("begin", number))
            known = len(coverage.lines)
            with coverage:
                found = fault_of(target.run, case)
            if found is not None:
                connection.send(("found", found))
                connection.recv()  # until the case is saved
            elif len(coverage.lines) > known and number >= seeds and sum(map(len, tree.values())) < 2 * MIB:
                pool.append(tree)
                if len(pool) > POOL + seeds:
                    del pool[rng.randrange(seeds, len(pool))]
            number += 1


@dataclass
class Worker:
    """A process that serves a target, and when its case began."""

    name: str
    process: Any
    connection: Any
    place: Path
    stops: float
    begun: float
    is_ready: bool = False


@dataclass
class Session:
    """What was found, and what is still to be done."""

    options: argparse.Namespace
    out: Path
    cases: dict[str, int] = field(default_factory=dict)
    spent: dict[str, float] = field(default_factory=dict)
    starts: dict[str, int] = field(default_factory=dict)
    found: dict[str, int] = field(default_factory=dict)

    def start(self, name: str, until: float) -> Worker:
        self.starts[name] = self.starts.get(name, -1) + 1
        context = mp.get_context("spawn")
        ours, theirs = context.Pipe()
        place = Path(tempfile.mkdtemp(prefix="fuzz-"))
        seed = f"{self.options.seed} {name} {self.starts[name]}"
        arguments = (name, seed, self.options.memory * MIB, theirs, place)
        process = context.Process(target=serve, args=arguments, daemon=True)
        process.start()
        theirs.close()
        return Worker(name, process, ours, place, until, time.monotonic())

    def stop(self, worker: Worker) -> None:
        for kill in (lambda: os.killpg(worker.process.pid, signal.SIGKILL), worker.process.kill):
            with contextlib.suppress(ProcessLookupError, PermissionError):
                kill()
        worker.process.join()
        worker.connection.close()
        shutil.rmtree(worker.place, ignore_errors=True)

    def save(self, worker: Worker, key: str, details: str) -> None:
        """The first case of a finding."""
        key = f"{worker.name}: {key}"
        self.found[key] = self.found.get(key, 0) + 1
        if self.found[key] > 1:
            return
        place = self.out / f"{worker.name}-{hashlib.sha256(key.encode()).hexdigest()[:10]}"
        shutil.rmtree(place, ignore_errors=True)
        if (worker.place / "case").exists():
            shutil.copytree(worker.place / "case", place / "case", symlinks=True)
        place.mkdir(parents=True, exist_ok=True)
        (place / "finding.txt").write_text(f"{key}\n\n{details}\n", errors="replace")
        print(f"FOUND {key}\n      python scripts/fuzz.py --replay {place}", flush=True)

    def listen(self, worker: Worker) -> bool:
        """One message; whether the worker goes on."""
        try:
            what, content = worker.connection.recv()
        except (EOFError, OSError):
            worker.process.join()
            self._died(worker)
            return False
        if what == "begin":
            worker.is_ready, worker.begun = True, time.monotonic()
            self.cases[worker.name] = self.cases.get(worker.name, 0) + 1
        else:
            self.save(worker, *content)
            worker.begun = time.monotonic()
            worker.connection.send("saved")
        return True

    def _died(self, worker: Worker) -> None:
        code = worker.process.exitcode or 0
        crash = worker.place / "crash.txt"
        stack = crash.read_text(errors="replace") if crash.exists() else ""
        lines = [line.strip() for line in stack.splitlines() if PACKAGE in line]
        place = lines[0].replace(PACKAGE, "") if lines else ("a case" if worker.is_ready else "the start")
        what = signal.Signals(-code).name if code < 0 else f"exit {code}"
        self.save(worker, f"{what} at {place}", stack)

    def next_target(self, running: list[Worker]) -> str:
        """The one that has had the least of its part."""
        weights: dict[str, float] = {name: TARGETS[name].weight for name in self.options.only}
        idle = [name for name in weights if name not in {worker.name for worker in running}] or list(weights)
        return min(idle, key=lambda name: self.spent.get(name, 0.0) / weights[name])


def fuzz(options: argparse.Namespace) -> int:
    session = Session(options, Path(options.out))
    end = time.monotonic() + options.seconds
    total = sum(TARGETS[name].weight for name in options.only)
    workers: list[Worker] = []
    try:
        while time.monotonic() < end or workers:
            now = time.monotonic()
            while len(workers) < options.jobs:
                name = session.next_target(workers)
                # On a slow machine, targets that had no turn yet get theirs after the end.
                if now >= (end - 2 if session.spent.get(name) else end + options.timeout):
                    break
                part = options.seconds * options.jobs * TARGETS[name].weight / total
                share = max(5.0, min(part, 600.0))
                session.spent[name] = session.spent.get(name, 0.0) + share
                workers.append(session.start(name, min(now + share, end)))
            for ready in wait([worker.connection for worker in workers], 0.2):
                worker = next(w for w in workers if w.connection is ready)
                if not session.listen(worker):
                    workers.remove(worker)
                    session.stop(worker)
                    left = worker.stops - time.monotonic()
                    if left > 3 and worker.is_ready:  # what is left of its time
                        workers.append(session.start(worker.name, worker.stops))
            for worker in list(workers):
                now = time.monotonic()
                limit = options.timeout if worker.is_ready else 10 * options.timeout
                if now - worker.begun > limit:
                    session.save(worker, "hangs" if worker.is_ready else "does not start", f"{limit:.0f} s are over")
                elif now < worker.stops or (not session.cases.get(worker.name) and now < end + limit):
                    continue  # each target runs one case at least
                workers.remove(worker)
                session.stop(worker)
    finally:
        for worker in workers:
            session.stop(worker)
    for name in options.only:
        print(f"{name:12} {session.cases.get(name, 0):8,} cases")
    for key, count in session.found.items():
        print(f"{count:6,} times  {key}")
    silent = [name for name in options.only if not session.cases.get(name)]
    if silent and not session.found:
        print(f"no case of {', '.join(silent)} was run; give more --seconds")
        return 1
    return 1 if session.found else 0


def replay(place: Path, memory: int) -> int:
    target = TARGETS[place.name.rpartition("-")[0]]
    for module in target.first:
        importlib.import_module(module)
    faulthandler.enable()
    limit_memory(memory * MIB)
    with folder() as copy:
        shutil.copytree(place / "case", copy / "case")
        found = fault_of(target.run, copy / "case")
    print("\n".join(found) if found else "nothing is wrong with this case")
    return 1 if found else 0


def main() -> int:
    parser = argparse.ArgumentParser(description="Fuzz every parser of the package.")
    parser.add_argument("--seconds", type=float, default=120, help="how long (default: %(default)s)")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes (default: one per core)")
    parser.add_argument("--seed", default="0", help="of the mutations (default: %(default)s)")
    parser.add_argument("--only", nargs="+", choices=TARGETS, default=list(TARGETS), help="targets (default: all)")
    parser.add_argument("--timeout", type=float, default=30, help="seconds for a case (default: %(default)s)")
    parser.add_argument("--memory", type=int, default=3072, help="MiB for a case (default: %(default)s)")
    parser.add_argument("--out", default="fuzz-findings", help="folder for findings (default: %(default)s)")
    parser.add_argument("--replay", type=Path, metavar="FOLDER", help="run one finding again")
    options = parser.parse_args()
    return replay(options.replay, options.memory) if options.replay else fuzz(options)


if __name__ == "__main__":
    sys.exit(main())
