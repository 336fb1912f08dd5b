"""evitseg train."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from evitseg.cli.command import option, verb
from evitseg.cli.options import (
    AT_LEAST_1,
    BANDS,
    DATA,
    FILE,
    LABELS,
    PAGE,
    SIZE,
    VALUE_RANGE,
    read_options,
    workers_option,
)
from evitseg.cli.output import Output
from evitseg.cli.values import Names, Parsed, whole_number
from evitseg.errors import EvitsegError

if TYPE_CHECKING:
    from evitseg.train import Run, TrainConfig


def _crop(text: str) -> list[int]:
    try:
        height, width = map(whole_number, text.lower().split("x"))
        return [height, width]
    except ValueError:
        raise ValueError(f"{text[:40]!r} is not HEIGHTxWIDTH, such as 352x480") from None


def _batch(text: str) -> int | str:
    try:
        return text if text == "auto" else whole_number(text)
    except ValueError:
        raise ValueError(f"{text[:40]!r} is neither a number of images nor 'auto'") from None


def _variants() -> list[str]:
    from evitseg.architecture import BACKBONES

    return list(BACKBONES)


@verb(
    "train",
    ("evitseg train data/", "Fine-tune the smallest variant for your classes."),
    ("evitseg train data/ --variant b1 --epochs 200 --out runs/b1", "A larger network, for longer."),
    ("evitseg train data/ --out runs/b1 --resume", "Continue an interrupted run."),
    ("evitseg train data/ --qat --start runs/b0/best.safetensors", "Continue with 8-bit integers, for NPUs."),
    ("evitseg train data/ --recipe camvid-transfer --set augment.rotate=10", "A recipe, with one setting changed."),
)
@DATA
@LABELS
@BANDS
@VALUE_RANGE
@PAGE
@option("--variant", type=Names("variant", _variants), panel="Model", help="Size of the network. Default: b0.")
@option(
    "--start",
    metavar="MODEL|none",
    panel="Model",
    help="Initial weights: a checkpoint, a published model, or 'none' for random weights. Default: the variant's "
    "published Cityscapes weights.",
)
@SIZE
@option(
    "--qat",
    is_flag=True,
    panel="Model",
    help="Train with the roundings of integers, so that export --w8a8 needs 8 bits only. --start must be trained.",
)
@option("--freeze-backbone", is_flag=True, panel="Model", help="Train only the segmentation head.")
@option(
    "--recipe",
    metavar="NAME|FILE",
    default="",
    panel="Training",
    help="Start from the settings of this recipe; other options override it.",
)
@option(
    "--epochs", type=AT_LEAST_1, metavar="N", panel="Training", help="Passes over the training images. Default: 100."
)
@option(
    "--batch",
    type=Parsed("batch", _batch),
    metavar="N|auto",
    panel="Training",
    help="Images per step; 'auto' measures which batch size is fastest. Default: depends on the images.",
)
@option(
    "--crop",
    type=Parsed("crop", _crop),
    metavar="HEIGHTxWIDTH",
    panel="Training",
    help="Size of the random crops to train on. Default: depends on the images.",
)
@option(
    "--learning-rate",
    "--lr",
    type=float,
    metavar="RATE",
    panel="Training",
    help="Peak learning rate. Default: depends on the images and the initial weights.",
)
@option("--seed", type=click.IntRange(min=0), metavar="N", panel="Training", help="Random seed. Default: 0.")
@option(
    "--set",
    "changes",
    multiple=True,
    metavar="KEY=VALUE",
    panel="Training",
    help="Any other setting, such as augment.rotate=10; may be repeated. The docs list them as training settings.",
)
@option(
    "--precision",
    metavar="float32|bfloat16|float16",
    panel="Engine",
    help="Numerical precision; bfloat16 and float16 train in mixed precision. Default: float32.",
)
@workers_option("Number of processes that read images. Default: 1.", minimum=0)
@option(
    "--out",
    "-o",
    type=FILE,
    default=Path("runs/train"),
    metavar="RUN",
    panel="Output",
    help="Folder for the run. Default: runs/train.",
)
@option("--resume", is_flag=True, panel="Output", help="Resume the run in --out, with its own settings.")
def train_command(
    output: Output,
    data: str,
    labels: str | None,
    recipe: str,
    changes: tuple[str, ...],
    out: Path,
    resume: bool,
    **options: Any,
) -> None:
    """Train a network on your own images and masks.

    Writes the best checkpoint, curves and predictions to a folder. An interrupted run can be continued with --resume.
    """
    read_options(options["bands"], options["value_range"], options["page"])  # reports a wrong value of these options
    try:
        from evitseg.train import fit
    except ImportError as error:
        from evitseg.errors import MissingPackageError

        raise MissingPackageError("training", "train") from error
    from evitseg.cli.train_progress import training_progress
    from evitseg.labels import load_labels
    from evitseg.system.machine import logical_cores

    if options["size"] == "native":
        options["size"] = 0
    for flag in ("freeze_backbone", "qat"):
        options[flag] = options[flag] or None
    options = {name: value for name, value in options.items() if value is not None}
    if resume:
        config = _resumed(out, options, bool(recipe or changes))
    else:
        config = _configured(data, options, recipe, changes, output)
    if os.environ.get("RANK", "0") != "0":  # only one of torchrun's processes reports
        output.quiet = True
        output.as_json = False
    with training_progress(output) as watch:
        run = fit(
            data,
            config,
            out,
            resume=resume,
            labels=load_labels(labels) if labels else None,
            check_workers=logical_cores(),
            watch=watch,
            tell=output.log,
        )
    _report(run, output)


_SETTINGS = {
    "batch": "batch_size", "size": "data.size", "crop": "data.crop", "bands": "data.bands",
    "value_range": "data.value_range", "page": "data.page", "workers": "data.workers",
    "learning_rate": "optim.learning_rate", "freeze_backbone": "optim.freeze_backbone",
}  # fmt: skip
"""Options that set a setting of another name."""


def _resumed(out: Path, options: dict[str, Any], has_recipe: bool) -> TrainConfig:
    """The settings of the run in a folder; only the number of workers may change."""
    from evitseg.train.settings import read_config

    config = read_config(out)
    given = [f"--{name.removeprefix('value_').replace('_', '-')}" for name in options if name != "workers"]
    if given or has_recipe:
        what = ", ".join([*given, *["--recipe and --set"] * has_recipe])
        raise EvitsegError(f"--resume continues with the run's own settings; leave out {what}, or start a new run.")
    return config.updated({"data.workers": options["workers"]}) if "workers" in options else config


def _configured(
    data: str, options: dict[str, Any], recipe: str, changes: tuple[str, ...], output: Output
) -> TrainConfig:
    """The settings of a new run: those of the recipe, overridden by the options, overridden by --set."""
    from evitseg.architecture import BACKBONES, published_start
    from evitseg.train.config import FRESH
    from evitseg.train.settings import make_config, parse_changes, read_recipe

    auto = options.get("batch") == "auto"
    settings = read_recipe(recipe) if recipe else {}
    settings |= {_SETTINGS.get(k, k): v for k, v in options.items() if not (auto and k == "batch")}
    settings |= parse_changes(changes)
    variant = settings.get("variant", "b0")
    if variant in BACKBONES:  # a wrong one is reported with the other settings
        settings.setdefault("start", published_start(variant) or FRESH)
    config = make_config(settings, recipe or "settings")
    return _with_fastest_batch(data, config, output) if auto else config


def _with_fastest_batch(data: str, config: TrainConfig, output: Output) -> TrainConfig:
    from evitseg.data.layouts import find_dataset
    from evitseg.train.batch_size import fastest_batch_size, typical_size

    dataset = find_dataset(data, None, config.data.reading)
    pairs = [pair for split, of_split in dataset.splits.items() if split not in ("val", "test") for pair in of_split]
    config, tried = fastest_batch_size(config, len(pairs), typical_size(pairs))
    for number, speed in tried.items():
        output.log(f"batch {number:>4}: {speed:7.1f} images/s")
    output.log(f"chosen: batch {config.batch_size}")
    return config


def _report(run: Run, output: Output) -> None:
    if output.quiet and not output.as_json:
        return
    for sentence in run.skipped:
        output.error(sentence)
    output.content = {
        "run": str(run.folder),
        "miou": {"best": run.miou, "start": run.start_miou, "last": run.last_miou},
        "skipped": list(run.skipped),
        "commands": list(run.commands),
    }
    output.result(
        f"mIoU on the validation images: best {100 * run.miou:.2f}, start {100 * run.start_miou:.2f}, "
        f"last {100 * run.last_miou:.2f}; curves and predictions are in {run.folder}"
    )
    for command in run.commands:
        output.result(command)
