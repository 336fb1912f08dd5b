"""Find the fastest export for this machine: every candidate is exported, scored and timed here."""

from __future__ import annotations

import contextlib
import os
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from evitseg.engine import Engine, Precision
from evitseg.errors import EngineError, EvitsegError, ExportError, FileError
from evitseg.exporters.export import Scored, export
from evitseg.exporters.formats import FORMATS
from evitseg.exporters.verify import example_images
from evitseg.manifest import Manifest
from evitseg.model.network import EfficientViT
from evitseg.profiling.worker import take_rounds
from evitseg.raster.files import read_image
from evitseg.runtime.engines import open_engine
from evitseg.system.files import temporary_folder

RUNS = {name: form.engine for name, form in FORMATS.items() if form.engine is not None}
"""The engine to measure each format in; OpenVINO runs its own format as it runs ONNX."""
PRECISIONS: tuple[Precision, ...] = ("float32", "bfloat16", "float16")
ROUNDS, WARM_UP_CALLS = 15, 2
AS_FAST = 1.03
"""Times that differ by a smaller factor count as equal; the smaller file then wins."""


@dataclass
class Candidate:
    """A way to run the network on this machine.

    Attributes:
        to, weights: the exported model's format and the number format of its weights.
        engine, precision: how it runs.
        size_bytes: size of all its files.
        miou: in percent, on the user's data; None without data.
        median_ms: time of the network for one image.
        problem: the reason why it was excluded; empty if it was not.
    """

    to: str
    weights: str
    engine: str
    precision: Precision
    size_bytes: int = 0
    miou: float | None = None
    median_ms: float = float("inf")
    problem: str = ""


def export_best(
    network: EfficientViT,
    manifest: Manifest,
    stem: Path,
    *,
    size: tuple[int, int] | None = None,
    images: Sequence[str | os.PathLike[str]] = (),
    data: str | os.PathLike[str] | None = None,
    max_drop: float = 0.5,
    threads: int | None = None,
    tell: Callable[[str], None] = lambda sentence: None,
) -> tuple[Path, Candidate, list[Candidate]]:
    """Try every format whose packages are installed, and keep the fastest exported model.

    Args:
        stem: the file to write, without its ending.
        size: (height, width) of the only images that the file takes; without it, formats of one size are skipped.
        data, max_drop: as in `export`; without data, weights in 8 bits and arithmetic in 16 bits are skipped.
        threads: maximum number of threads; None for one per physical core.

    Returns: the exported model, its candidate, and all candidates.

    Raises: ExportError if nothing runs; for bad data or images, the errors of `export`.
    """
    first = read_image(images[0], manifest.reading) if images else example_images()[0]
    fitting = manifest.preprocess if size is None else replace(manifest.preprocess, fixed=size)
    image = fitting.apply(first)[None]
    scored = None if data is None else Scored(network, replace(manifest, preprocess=fitting), data, tell)
    tried: list[Candidate] = []
    running: list[tuple[Candidate, Engine]] = []
    try:
        stack = contextlib.ExitStack()
        folder = stack.enter_context(temporary_folder(stem.parent))
    except OSError as error:
        raise FileError(f"{stem.parent}: cannot be written to ({error.strerror or error}).") from error
    with stack:
        for to, runs in RUNS.items():
            form = FORMATS[to]
            for weights in form.weights if data is not None else [w for w in form.weights if w != "int8"]:
                for precision in PRECISIONS if scored is not None and runs == "openvino" else PRECISIONS[:1]:
                    candidate = Candidate(to, weights, runs, precision)
                    tried.append(candidate)
                    path = form.name(folder / f"{to}-{weights}")
                    try:
                        if form.one_size and size is None:
                            raise ExportError("takes images of one size, and none was given (--size)")
                        if not path.exists():
                            tell(f"trying {to} with weights in {weights}")
                            export(
                                (network, manifest), to, path, weights=weights, size=size, images=images,
                                data=data if weights == "int8" else None, max_drop=max_drop,
                            )  # fmt: skip
                        engine = open_engine(path, candidate.engine, candidate.precision, threads)
                        if engine.info.precision != candidate.precision:
                            raise EngineError(f"this processor has no {candidate.precision} arithmetic in this engine")
                        candidate.size_bytes = form.size_bytes(path)
                        if scored is not None:
                            candidate.miou = scored.score(engine)
                            if candidate.miou < scored.miou - max_drop:
                                raise ExportError(f"loses {scored.miou - candidate.miou:.2f} points of mIoU")
                    except EvitsegError as error:
                        candidate.problem = str(error).removesuffix(".")
                    else:
                        running.append((candidate, engine))
        tell(f"timing {len(running)} candidates on images of {image.shape[1]}x{image.shape[2]}")
        _time(running, image)
        if not running:
            raise ExportError(f"nothing runs here: {tried[0].problem}.")
        fastest = min(candidate.median_ms for candidate, _ in running)
        alike = [candidate for candidate, _ in running if candidate.median_ms <= AS_FAST * fastest]
        best = min(alike, key=lambda candidate: (candidate.size_bytes, candidate.median_ms))
        form = FORMATS[best.to]
        out = form.name(stem)
        if any(file.is_dir() for file in form.files(out)):
            raise FileError(f"{out}: one of its files has the name of a folder; give another name, or move the folder.")
        try:
            for new, final in zip(
                form.files(form.name(Path(folder) / f"{best.to}-{best.weights}")), form.files(out), strict=True
            ):
                new.replace(final)
        except OSError as error:
            raise FileError(f"{out}: cannot be written ({error.strerror or error}).") from error
    return out, best, tried


def _time(running: Sequence[tuple[Candidate, Engine]], image: NDArray[np.uint8]) -> None:
    """Set the median time of every candidate."""

    def timed(engine: Engine) -> float:
        start = time.perf_counter()
        engine(image)
        return time.perf_counter() - start

    calls = {number: partial(timed, engine) for number, (_, engine) in enumerate(running)}
    for call in calls.values():
        for _ in range(WARM_UP_CALLS):
            call()
    for number, times in take_rounds(calls, ROUNDS).items():
        running[number][0].median_ms = statistics.median(times)
