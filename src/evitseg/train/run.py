"""`fit`: from data and settings to a run, new or resumed."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from evitseg.data.dataset import ALL, Dataset, split_pairs
from evitseg.data.inspect import Inspection, inspect
from evitseg.data.layouts import find_dataset
from evitseg.data.lists import Pair
from evitseg.errors import DatasetError, FileError, TrainError, unknown
from evitseg.labels import LabelSpace
from evitseg.train.config import CHOOSABLE, TrainConfig
from evitseg.train.defaults import settled
from evitseg.train.memory import out_of_memory
from evitseg.train.network import Start, check_classes_from, start_of
from evitseg.train.record import Event, Run
from evitseg.train.state import check_new, read_resumable
from evitseg.train.trainer import Trainer


def fit(
    data: str | os.PathLike[str] | Dataset,
    config: TrainConfig | None = None,
    out: str | os.PathLike[str] = "runs/train",
    *,
    resume: bool = False,
    labels: LabelSpace | None = None,
    check_workers: int = 0,
    watch: Callable[[Event], None] = lambda event: None,
    tell: Callable[[str], None] = lambda sentence: None,
) -> Run:
    """Train a segmentation network.

    The start is measured before the first step and is the first candidate for the best checkpoint, so the best is never
    below it. All data are read once before the first step; pairs that cannot be used are left out and named. Without a
    validation split a fifth of the images is held out, the same for the same seed.

    Args:
        data: what `find_dataset` takes, or what it gives.
        out: the run's folder; it must be new, unless the run goes on.
        resume: go on with the run in `out` from its last checkpoint. On one CPU process the weights come out as if it
            had never stopped, bit for bit.
        labels: the classes, where they are known better than the data says.
        check_workers: processes that read the data before the first step; see `evitseg.data.inspect.inspect`.
        watch: called after every step and every epoch.
        tell: called with sentences: the settings that were chosen, before the first step.

    Raises: DatasetError for data that cannot be trained on, WeightsError for a start that does not fit, TrainError
    where the loss is no number or memory runs out, FileError where the folder cannot be written, KeyboardInterrupt with
    a sentence about what is left of the run.
    """
    folder, training = Path(out), None
    try:
        training, root = _prepared(data, config, folder, resume, labels, check_workers, watch, tell)
        training.write_settings(root, new=not resume)
        return training.run()
    except KeyboardInterrupt as interrupt:
        before = f"interrupted before the first step: {'the run is as it was' if resume else 'nothing was trained'}."
        raise KeyboardInterrupt(training.what_is_left() if training else before) from interrupt
    except (RuntimeError, MemoryError, OSError) as error:
        if out_of_memory(error):
            raise TrainError(_no_memory(training)) from error
        if isinstance(error, OSError):
            place = error.filename or folder
            raise FileError(f"{place}: cannot be used ({error.strerror or error}).") from error
        raise


def _no_memory(training: Trainer | None) -> str:
    if training is None:
        return "the memory does not hold the network, or an image; nothing was trained."
    height, width = training.config.crop
    return (
        f"the memory does not hold a batch of {training.config.batch} at {height}×{width}; "
        f"halve --batch or --crop in a new run{training.how_to_start()}."
    )


def _prepared(
    data: str | os.PathLike[str] | Dataset,
    config: TrainConfig | None,
    folder: Path,
    resume: bool,
    labels: LabelSpace | None,
    check_workers: int,
    watch: Callable[[Event], None],
    tell: Callable[[str], None],
) -> tuple[Trainer, Path]:
    """The training before its next step, and the data's root; see `fit`."""
    resumed = None
    if resume:
        resumed = read_resumable(folder, config)
        if labels is not None and labels != resumed.manifest.labels:
            raise TrainError(f"{folder}: cannot go on with other classes; leave out --labels, the run has its own.")
        labels = resumed.manifest.labels
    else:
        check_new(folder)
    chosen = resumed.config if resumed else config or TrainConfig()
    dataset = data if isinstance(data, Dataset) and not resume else find_dataset(_root(data), labels, chosen.reading)
    inspection = inspect(dataset, check_workers)
    if any(finding.unknown_id for finding in inspection.findings):
        raise DatasetError(f"{next(f.problem for f in inspection.findings if f.unknown_id)} Nothing was trained.")
    if inspection.usable and inspection.single_class:
        raise DatasetError(f"{dataset.root}: {inspection.single_class}")
    train, val = _splits(inspection, chosen)
    if resumed:
        start = Start(resumed.network, 1.0, None)
    else:
        check_classes_from(chosen)
        start = start_of(chosen, inspection.labels)
    sizes = {finding.pair: finding.size for finding in inspection.usable}
    final = settled(chosen, [sizes[pair] for pair in train], start.known, start.short_side)
    names = [name for name in CHOOSABLE if getattr(chosen, name) is None]
    if names:
        values = ", ".join(f"{name} {_short(getattr(final, name))}" for name in names)
        tell(f"chosen for {len(train)} images: {values}; --set or an option changes it.")
    training = Trainer(folder, final, inspection, train, val, watch, start.network, names)
    if resumed:
        training.restore(resumed.state)
    return training, dataset.root


def _short(value: Any) -> str:
    if isinstance(value, tuple):
        return ("×" if isinstance(value[0], int) else "–").join(_short(part) for part in value)
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _root(data: str | os.PathLike[str] | Dataset) -> str | os.PathLike[str]:
    return data.root if isinstance(data, Dataset) else data


def _splits(inspection: Inspection, config: TrainConfig) -> tuple[tuple[Pair, ...], tuple[Pair, ...]]:
    usable: dict[str, tuple[Pair, ...]] = {
        split: tuple(f.pair for f in inspection.usable if f.split == split) for split in inspection.dataset.splits
    }
    root = inspection.dataset.root
    if config.train_on:
        if strangers := [split for split in config.train_on if split not in usable]:
            raise unknown("split", strangers[0], usable)
        chosen = tuple(pair for split in config.train_on for pair in usable[split])
        if not chosen:
            raise DatasetError(f"{root}: no usable pair to train on in {', '.join(config.train_on)}.")
        return chosen, usable.get("val") or chosen
    if usable.get("train") and usable.get("val"):
        return usable["train"], usable["val"]
    pairs = usable.get("train") or usable.get(ALL) or ()
    if not pairs:
        reason = inspection.problems[0] if inspection.problems else "there are none"
        raise DatasetError(f"{root}: no usable pair to train on ({reason})")
    parts = split_pairs(pairs, seed=config.seed)
    return parts["train"], parts["val"]
