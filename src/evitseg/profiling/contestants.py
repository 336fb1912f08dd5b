"""Load the models of a comparison, and measure their speed in turn."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from evitseg.engine import Precision
from evitseg.errors import ConfigError
from evitseg.image import ImageArray, Mask, Size
from evitseg.labels import LabelSpace
from evitseg.loading import engine_file, load, located
from evitseg.profiling.worker import median_and_p90, take_rounds
from evitseg.runtime.segmenter import Segmenter

BEST = "best.safetensors"
"""The checkpoint in the folder of a training run."""
ROUNDS, WARM_UP_CALLS = 15, 3


@dataclass(frozen=True)
class Contestant:
    """A model of a comparison.

    Attributes:
        name: for tables: of the run's folder, of the file, or of the model.
        source: as it was given.
        segment: the loaded model.
        size_bytes: size of its files; None if it has none.
    """

    name: str
    source: str
    segment: Segmenter
    size_bytes: int | None


def load_contestants(
    sources: Sequence[str],
    *,
    engine: str | None = None,
    device: str | None = None,
    precision: Precision = "auto",
    threads: int | None = None,
    size: Size = None,
) -> list[Contestant]:
    """Load every model: the folder of a training run, a checkpoint, an exported model, or a name.

    Raises: ConfigError if their classes differ, and what `load` raises.
    """
    loaded = []
    names = short_names(sources)
    for source, name in zip(sources, names, strict=True):
        model = str(Path(source) / BEST) if Path(source).is_dir() and (Path(source) / BEST).is_file() else source
        segment = load(model, engine=engine, device=device, precision=precision, threads=threads, size=size)
        loaded.append(Contestant(name, source, segment, _size_bytes(model)))
    first = loaded[0]
    for other in loaded[1:]:
        if set(other.segment.labels.names) != set(first.segment.labels.names):
            raise ConfigError(
                f"{other.source} has other classes than {first.source}; only models of the same classes can be "
                "compared. evitseg info lists a model's classes."
            )
    return loaded


def short_names(sources: Sequence[str]) -> list[str]:
    """Short names that differ: the last part of a path, with the folders above where that is not enough."""
    parts = [Path(source).parts or (source,) for source in sources]
    length = [1] * len(sources)
    names = [own[-1] for own in parts]
    while repeated := {name for name, times in Counter(names).items() if times > 1}:
        longer = [
            count + (name in repeated and count < len(own))
            for count, name, own in zip(length, names, parts, strict=True)
        ]
        if longer == length:  # the same model twice
            return [f"{name} ({number})" if name in repeated else name for number, name in enumerate(names, 1)]
        length = longer
        names = ["/".join(own[-count:]) for own, count in zip(parts, length, strict=True)]
    return names


def _size_bytes(model: str) -> int | None:
    from evitseg.exporters.formats import FORMATS

    file = engine_file(located(model)[0]) or Path(model)
    if not file.exists():
        return None
    form = next((form for form in FORMATS.values() if file.name.endswith(form.ending)), None)
    return form.size_bytes(file) if form is not None else file.stat().st_size


def predictor(contestant: Contestant, labels: LabelSpace) -> Segmenter | Callable[[ImageArray], Mask]:
    """The model as `evaluate` takes it, with class indices in the order of these labels."""
    segment = contestant.segment
    if segment.labels.names == labels.names:
        return segment
    order = np.array([labels.names.index(name) for name in segment.labels.names], np.int64)

    def reordered(image: ImageArray) -> Mask:
        return order[segment.mask(image)]

    return reordered


def take_times(contestants: Sequence[Contestant], image: ImageArray) -> list[tuple[float, float]]:
    """Median and 90th percentile, in milliseconds, of the network alone on this image, at each model's working size."""

    def timed(segment: Segmenter, pixels: ImageArray) -> float:
        start = time.perf_counter()
        segment.engine(pixels)
        return time.perf_counter() - start

    calls = {
        number: partial(timed, each.segment, each.segment.manifest.preprocess.apply(image, each.segment.size)[None])
        for number, each in enumerate(contestants)
    }
    for call in calls.values():
        for _ in range(WARM_UP_CALLS):
            call()
    return [median_and_p90(times) for _, times in sorted(take_rounds(calls, ROUNDS).items())]
