"""evitseg average."""

from __future__ import annotations

from pathlib import Path

import click

from evitseg.cli.command import option, verb
from evitseg.cli.options import FILE
from evitseg.cli.output import Output
from evitseg.cli.values import Parsed


def _numbers(text: str) -> list[float]:
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise ValueError(f"{text[:60]!r} is not a list of numbers, such as 0.3,0.7") from None


@verb(
    "average",
    (
        "evitseg average runs/a/best.safetensors runs/b/best.safetensors --out soup.safetensors --data data/",
        "Average two runs, and estimate batch norm statistics on the training images.",
    ),
)
@click.argument(
    "checkpoints",
    nargs=-1,
    required=True,
    metavar="CHECKPOINT...",
    help="Two or more checkpoints that were fine-tuned from the same weights.",
)
@option(
    "--weights",
    type=Parsed("numbers", _numbers),
    metavar="A,B,...",
    panel="Input",
    was={"--shares": "0.3"},
    help="Weight of each checkpoint. Default: equal weights.",
)
@option(
    "--data",
    metavar="DATA",
    panel="Input",
    help="The training images, to estimate batch norm statistics for the new weights. Default: average the statistics "
    "of the checkpoints.",
)
@option(
    "--out", "-o", type=FILE, required=True, metavar="FILE", panel="Output", help="Checkpoint to write (.safetensors)."
)
def average_command(
    output: Output, checkpoints: tuple[str, ...], weights: list[float] | None, data: str | None, out: Path
) -> None:
    """Average the weights of runs fine-tuned from the same checkpoint (a "model soup").

    The result is as fast as one model and often more accurate than each of them.
    """
    from evitseg.errors import MissingPackageError
    from evitseg.loading import checkpoint_file
    from evitseg.system.files import check_not_input

    try:
        from evitseg.model.checkpoints import average_checkpoints, save_checkpoint
    except ImportError as error:
        raise MissingPackageError("averaging checkpoints", "torch") from error
    if out.suffix != ".safetensors":
        raise click.BadParameter(f"{out} must end in .safetensors", param_hint="--out")
    files = [checkpoint_file(name) for name in checkpoints]
    check_not_input(out, files)
    network, manifest = average_checkpoints(files, weights)
    statistics = "batch norm statistics averaged, too; --data estimates them on images"
    if data is not None:
        from evitseg.data.layouts import find_dataset
        from evitseg.train.batch_norm import estimate_over

        splits = find_dataset(data).splits
        pairs = splits.get("train") or next(iter(splits.values()))
        count = estimate_over(network, pairs, manifest.preprocess)
        statistics = f"batch norm statistics estimated on {count} images"
    save_checkpoint(network, manifest, out)
    output.content = {"checkpoint": str(out), "averaged": list(checkpoints), "weights": weights}
    output.result(f"wrote {out}, the average of {len(checkpoints)} checkpoints ({statistics})")
    output.result(f"next: evitseg eval DATA --model {out}")
