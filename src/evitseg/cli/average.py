"""evitseg average."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from evitseg.cli.app import plain_errors


@plain_errors
def average(
    checkpoints: Annotated[list[str], typer.Argument(metavar="CHECKPOINT...", help="Two or more, of the same start.")],
    out: Annotated[Path, typer.Option("--out", "-o", metavar="FILE", help="The checkpoint to write (.safetensors).")],
    shares: Annotated[
        str | None, typer.Option(metavar="A,B,...", help="Of each. (default: equal ones)", show_default=False)
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(
            metavar="DATA",
            help="Images that the runs were trained on, with their masks: batch norm's statistics are estimated over "
            "these for the new weights. (default: the mean of the checkpoints' statistics)",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Make one checkpoint of several runs that began as the same weights: as fast as one, often better than each."""
    from evitseg.errors import MissingPackageError

    try:
        from evitseg.model.checkpoints import average_checkpoints, save_checkpoint
    except ImportError as error:
        raise MissingPackageError("averaging checkpoints", "torch") from error
    if out.suffix != ".safetensors":
        raise typer.BadParameter(f"{out} does not end in .safetensors", param_hint="--out")
    try:
        parts = [float(part) for part in shares.split(",")] if shares else None
    except ValueError as error:
        raise typer.BadParameter(f"{shares!r} is not numbers with commas between", param_hint="--shares") from error
    network, manifest = average_checkpoints(checkpoints, parts)
    statistics = "also of batch norm's statistics; --data estimates those over images"
    if data is not None:
        from evitseg.data.layouts import find_dataset
        from evitseg.train.norm import estimate_over

        splits = find_dataset(data).splits
        pairs = splits.get("train") or next(iter(splits.values()))
        count = estimate_over(network, pairs, manifest.preprocess)
        statistics = f"batch norm's statistics over {count} images"
    save_checkpoint(network, manifest, out)
    print(f"wrote {out}, the mean of {len(checkpoints)} checkpoints ({statistics}); measure it before you use it:")
    print(f"evitseg eval DATA --model {out}")
