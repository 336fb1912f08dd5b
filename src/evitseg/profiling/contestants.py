"""Load the models of a comparison, and measure their speed in turn."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
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
from evitseg.system.files import is_file, is_folder, is_there
from evitseg.system.hub import is_hub_name, parse_hub_name

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
        model = str(Path(source) / BEST) if is_folder(source) and is_file(Path(source) / BEST) else source
        segment = load(model, engine=engine, device=device, precision=precision, threads=threads, size=size)
        loaded.append(Contestant(name, source, segment, _size_bytes(segment.source or model)))
    first = loaded[0]
    for other in loaded[1:]:
        if set(other.segment.labels.names) != set(first.segment.labels.names):
            raise ConfigError(
                f"{other.source} has other classes than {first.source}; only models of the same classes can be "
                "compared. evitseg info lists a model's classes."
            )
    return loaded


def short_names(sources: Sequence[str]) -> list[str]:
    """Short names that differ: the last part of a path, with the folders above where that is not enough.

    A model on the hub has the name of its repository, or of its file if that is given.
    """
    parts = [_parts(source) for source in sources]
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


def _parts(source: str) -> tuple[str, ...]:
    if not is_hub_name(source):
        return Path(source).parts or (source,)
    name = parse_hub_name(source)
    return tuple(f"{name.repository}/{name.file or ''}".strip("/").split("/"))


def _size_bytes(model: str) -> int | None:
    from evitseg.exporters.formats import format_of

    file = engine_file(located(model)[0]) or Path(model)
    if not is_there(file):
        return None
    form = format_of(file)
    return form.size_bytes(file) if form is not None else file.stat().st_size


@dataclass(frozen=True)
class _Reordered:
    """A mask with other class indices."""

    mask: Mask


class ReorderedSegmenter:
    """A segmenter whose class indices have the order of other labels. It reads image files as the segmenter does."""

    def __init__(self, segment: Segmenter, labels: LabelSpace) -> None:
        self.labels = labels
        self._segment = segment
        self._order: Mask = np.array([labels.names.index(name) for name in segment.labels.names], labels.dtype)

    def __call__(self, source: Path) -> _Reordered:
        return _Reordered(self._order[self._segment(source).mask])

    def mask_tta(self, image: ImageArray) -> Mask:
        return self._order[self._segment.mask_tta(image)]


def predictor(contestant: Contestant, labels: LabelSpace) -> Segmenter | ReorderedSegmenter:
    """The model as `evaluate` takes it, with class indices in the order of these labels."""
    segment = contestant.segment
    return segment if segment.labels.names == labels.names else ReorderedSegmenter(segment, labels)


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
