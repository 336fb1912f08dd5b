"""The fastest exported model for the machine at hand: every candidate is made, scored and timed there."""

from __future__ import annotations

import contextlib
import os
import random
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
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
from evitseg.raster.files import read_image
from evitseg.runtime.engines import open_engine
from evitseg.system.files import temporary_folder

RUNS = {name: form.engine for name, form in FORMATS.items() if form.engine is not None}
"""The engine to measure each format in; OpenVINO runs its own format as it runs ONNX."""
PRECISIONS: tuple[Precision, ...] = ("float32", "bfloat16", "float16")
ROUNDS = 15
AS_FAST = 1.03
"""Times that differ by less say nothing; the smaller file is taken then."""


@dataclass
class Candidate:
    """A way to run the network here.

    Attributes:
        to, weights: the exported model's format and the number format of its weights.
        engine, precision: what runs it.
        size_bytes: of all its files.
        miou: in percent, on the user's data if there are any.
        median_ms: for one image, the network alone.
        problem: why it is out of the running, if it is.
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
    """Try every format whose packages are installed, and keep the fastest.

    Args:
        stem: the file to write, without its ending.
        size: (height, width) of the only images it takes; without one, formats of one size are not tried.
        data, max_drop: as in `export`; without data, weights are not tried in 8 bits, nor arithmetic in 16.
        threads: at most; None for every physical core.

    Returns: the exported model, what it is, and all that were tried.

    Raises: ExportError where nothing runs; what `export` raises for bad data or images.
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
                            raise ExportError("takes one size, and none was given")
                        if not path.exists():
                            tell(f"trying {to} with weights in {weights}")
                            export(
                                (network, manifest), to, path, weights=weights, size=size, images=images,
                                data=data if weights == "int8" else None, max_drop=max_drop,
                            )  # fmt: skip
                        engine = open_engine(path, candidate.engine, candidate.precision, threads)
                        if engine.info.precision != candidate.precision:
                            raise EngineError(f"this processor has no {candidate.precision} in it")
                        candidate.size_bytes = form.size_bytes(path)
                        if scored is not None:
                            candidate.miou = scored.score(engine)
                            if candidate.miou < scored.miou - max_drop:
                                raise ExportError(f"loses {scored.miou - candidate.miou:.2f} points of mIoU")
                    except EvitsegError as error:
                        candidate.problem = str(error).removesuffix(".")
                    else:
                        running.append((candidate, engine))
        tell(f"timing {len(running)} of them on images of {image.shape[1]}x{image.shape[2]}")
        _time(running, image)
        if not running:
            raise ExportError(f"nothing runs here: {tried[0].problem}.")
        fastest = min(candidate.median_ms for candidate, _ in running)
        alike = [candidate for candidate, _ in running if candidate.median_ms <= AS_FAST * fastest]
        best = min(alike, key=lambda candidate: (candidate.size_bytes, candidate.median_ms))
        form = FORMATS[best.to]
        out = form.name(stem)
        if any(file.is_dir() for file in form.files(out)):
            raise FileError(f"{out}: a folder is in the place of one of its files; give another name, or move it.")
        try:
            for new, final in zip(
                form.files(form.name(Path(folder) / f"{best.to}-{best.weights}")), form.files(out), strict=True
            ):
                new.replace(final)
        except OSError as error:
            raise FileError(f"{out}: cannot be written ({error.strerror or error}).") from error
    return out, best, tried


def _time(running: Sequence[tuple[Candidate, Engine]], image: NDArray[np.uint8]) -> None:
    """Medians of `ROUNDS`, in rounds, so that a busy moment of the machine hits all alike."""
    seconds: dict[int, list[float]] = {number: [] for number in range(len(running))}
    order, shuffle = list(seconds), random.Random(0).shuffle
    for turn in range(ROUNDS + 2):
        shuffle(order)  # nobody always comes after the same other
        for number in order:
            time.sleep(0.05)  # the threads of the one before may still spin
            start = time.perf_counter()
            running[number][1](image)
            if turn >= 2:
                seconds[number].append(time.perf_counter() - start)
    for number, (candidate, _) in enumerate(running):
        candidate.median_ms = 1000 * statistics.median(seconds[number])
