"""`fit`: train a new run, or resume one."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from evitseg.data.dataset import ALL, Dataset, split_pairs
from evitseg.data.inspect import Inspection, inspect
from evitseg.data.layouts import find_dataset
from evitseg.data.lists import Pair
from evitseg.errors import DatasetError, FileError, TrainError, unknown
from evitseg.exporters.integer_calibration import MAX_IMAGES
from evitseg.image import ImageArray
from evitseg.labels import LabelSpace
from evitseg.model.network import EfficientViT
from evitseg.preprocess import Preprocess
from evitseg.raster.files import read_image
from evitseg.train.allocator import is_out_of_memory
from evitseg.train.batch_norm import spread, unfolded
from evitseg.train.config import AUTO, AUTO_KEYS, TrainConfig
from evitseg.train.defaults import resolve_defaults
from evitseg.train.initialize import (
    Start,
    check_classes_from,
    initialize,
    with_pinned_start,
    with_start_as_teacher,
)
from evitseg.train.quantised import QuantisedNetwork, quantised_start
from evitseg.train.relu_fit import FITTED_ON, fitted_to_relu
from evitseg.train.resume import check_new, read_resumable
from evitseg.train.run_log import Event, Run
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

    All data are read once before the first step; pairs that cannot be used are skipped and listed in the result.
    Without a validation split, a fifth of the images is held out, always the same for the same seed. The initial
    weights are evaluated, too, so on the validation images the best checkpoint is never worse than they are.

    Args:
        data: what `find_dataset` takes or returns.
        config: None uses the defaults, or the run's own settings when resuming.
        out: folder of the run; it must not hold another run unless `resume`.
        resume: continue the run in `out` from its last saved state. With a single process on a CPU, the weights are
            bit for bit those of a run that was never interrupted.
        labels: the classes, if the data do not define them.
        check_workers: processes that read the data before the first step (see `evitseg.data.inspect.inspect`).
        watch: called after the evaluation of the initial weights, every step and every epoch.
        tell: called with a sentence about the settings that were derived from the data, before the first step.

    Raises: DatasetError for data that cannot be trained on, WeightsError for initial weights that do not fit,
    TrainError for a loss that is not finite or when memory runs out, FileError for a folder that cannot be written,
    KeyboardInterrupt with a message about the state that the folder holds.
    """
    folder, trainer = Path(out), None
    try:
        trainer, root = _prepared(data, config, folder, resume, labels, check_workers, watch, tell)
        trainer.write_settings(root, new=not resume)
        return trainer.run()
    except KeyboardInterrupt as interrupt:
        before = f"interrupted before the first step; {'the run is unchanged' if resume else 'nothing was trained'}."
        raise KeyboardInterrupt(trainer.what_is_left() if trainer else before) from interrupt
    except (RuntimeError, MemoryError, OSError) as error:
        if is_out_of_memory(error):
            raise TrainError(_out_of_memory(trainer)) from error
        if isinstance(error, OSError):
            place = error.filename or folder
            raise FileError(f"{place}: cannot be used ({error.strerror or error}).") from error
        raise


def _out_of_memory(trainer: Trainer | None) -> str:
    if trainer is None:
        return "out of memory before the first step; nothing was trained."
    height, width = trainer.config.data.crop
    return (
        f"out of memory with a batch of {trainer.config.batch_size} crops of {height}×{width}; "
        f"start a new run{trainer.how_to_start()} with half the --batch or --crop."
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
    """The run before its next step, and the root of the data; see `fit`."""
    resumed = None
    config = config and with_start_as_teacher(config)
    if resume:
        resumed = read_resumable(folder, config)
        if labels is not None and labels != resumed.manifest.labels:
            raise TrainError(f"{folder}: cannot resume with other classes; leave out --labels, the run has its own.")
        labels = resumed.manifest.labels
    else:
        check_new(folder)
    given = resumed.config if resumed else config or TrainConfig()
    dataset = (
        data if isinstance(data, Dataset) and not resume else find_dataset(_root(data), labels, given.data.reading)
    )
    inspection = inspect(dataset, check_workers)
    if any(finding.unknown_id for finding in inspection.findings):
        raise DatasetError(f"{next(f.problem for f in inspection.findings if f.unknown_id)} Nothing was trained.")
    if inspection.usable and inspection.single_class:
        raise DatasetError(f"{dataset.root}: {inspection.single_class}")
    train, val = _splits(inspection, given.data.splits, given.seed)
    if resumed:
        start, chosen = Start(resumed.network, 1.0, None), resumed.chosen
    else:
        given = with_pinned_start(given)
        check_classes_from(given)
        start = initialize(given, inspection.labels)
        chosen = tuple(key for key, value in given.flat().items() if key in AUTO_KEYS and value is AUTO)
    sizes = {finding.pair: finding.size for finding in inspection.usable}
    final = resolve_defaults(given, [sizes[pair] for pair in train], start.known, start.short_side)
    if chosen and not resumed:
        told = [key for key in chosen if final.qat or key != "distill.features"]
        values = ", ".join(f"{key} {_short(final.flat()[key])}" for key in told)
        tell(f"settings derived from {len(train)} images: {values}; override them with options or --set.")
    preprocess = Preprocess(short_side=final.data.size or None)
    network: EfficientViT | QuantisedNetwork
    if resumed is None:
        network = _first_network(start, final, preprocess, train, tell)
    elif final.qat:
        network = QuantisedNetwork(start.network, preprocess, resumed.manifest.activation_ranges)
    else:
        network = start.network
    trainer = Trainer(folder, final, inspection, train, val, watch, network, chosen)
    if resumed:
        trainer.restore(resumed.state)
    return trainer, dataset.root


def _first_network(
    start: Start, config: TrainConfig, preprocess: Preprocess, train: Sequence[Pair], tell: Callable[[str], None]
) -> EfficientViT | QuantisedNetwork:
    """The start in the form that the run trains, which depends on the images."""

    def images(most: int) -> list[ImageArray]:
        pairs = [train[at] for at in spread(len(train), most)]
        return [read_image(pair.image, pair.reading) for pair in pairs]

    network = start.network
    if start.needs_relu_fit:
        tell("fitting ReLU to the hard-swish that the start was trained with")
        network = fitted_to_relu(network, preprocess, images(FITTED_ON))
    if config.qat and start.activation_ranges:
        tell("continuing with the ranges that the start has learned")
        return QuantisedNetwork(network, preprocess, start.activation_ranges)
    if config.qat:
        tell("choosing the first ranges of all tensors")
        return quantised_start(network, preprocess, images(MAX_IMAGES))
    return network if config.optim.freeze_norm else unfolded(network, train, preprocess)


def _short(value: Any) -> str:
    if isinstance(value, tuple):
        return ("×" if isinstance(value[0], int) else "–").join(_short(part) for part in value)
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _root(data: str | os.PathLike[str] | Dataset) -> str | os.PathLike[str]:
    return data.root if isinstance(data, Dataset) else data


def _splits(inspection: Inspection, names: tuple[str, ...], seed: int) -> tuple[tuple[Pair, ...], tuple[Pair, ...]]:
    """The usable pairs to train on and to evaluate on."""
    usable: dict[str, tuple[Pair, ...]] = {
        split: tuple(f.pair for f in inspection.usable if f.split == split) for split in inspection.dataset.splits
    }
    root = inspection.dataset.root
    if names:
        if missing := [split for split in names if split not in usable]:
            raise unknown("split", missing[0], usable)
        train = tuple(pair for split in names for pair in usable[split])
        if not train:
            raise DatasetError(f"{root}: no usable pair to train on in {', '.join(names)}.")
        return train, usable.get("val") or train
    if usable.get("train") and usable.get("val"):
        return usable["train"], usable["val"]
    pairs = usable.get("train") or usable.get(ALL) or ()
    if not pairs:
        reason = inspection.problems[0] if inspection.problems else "the data have no pairs."
        raise DatasetError(f"{root}: no usable pair to train on. {reason}")
    parts = split_pairs(pairs, seed=seed)
    return parts["train"], parts["val"]
