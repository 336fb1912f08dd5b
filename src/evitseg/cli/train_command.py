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
from evitseg.cli.values import Names, Number, Parsed, whole_number

if TYPE_CHECKING:
    from evitseg.train import Run


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
    type=Number(),
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
    help="Any other setting, such as augment.rotate=10; may be repeated. docs/reference/settings.md lists all.",
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
    from evitseg.cli.train_settings import new_config, resumed_config
    from evitseg.labels import load_labels
    from evitseg.system.machine import logical_cores

    if options["size"] == "native":
        options["size"] = 0
    for flag in ("freeze_backbone", "qat"):
        options[flag] = options[flag] or None
    options = {name: value for name, value in options.items() if value is not None}
    if resume:
        config = resumed_config(out, options, bool(recipe or changes))
    else:
        config = new_config(data, options, recipe, changes, output)
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


def _report(run: Run, output: Output) -> None:
    if output.quiet and not output.as_json:
        return
    for sentence in run.skipped:
        output.warning(sentence)
    output.content = {
        "run": str(run.folder),
        "miou": {"best": run.miou, "start": run.start_miou, "last": run.last_miou},
        "skipped": list(run.skipped),
        "commands": list(run.commands),
    }
    output.result(
        f"mIoU on the validation images: best {100 * run.miou:.2f}, before training {100 * run.start_miou:.2f}, "
        f"last {100 * run.last_miou:.2f}; curves and predictions are in {run.folder}"
    )
    if run.miou <= run.start_miou:
        output.note("No epoch was better than the initial weights, so the best checkpoint has these; train for longer.")
    for command in run.commands:
        output.result(command)
