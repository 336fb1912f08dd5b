"""The settings of a run of `evitseg train`, from its recipe and options."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from evitseg.errors import EvitsegError

if TYPE_CHECKING:
    from evitseg.cli.output import Output
    from evitseg.train.config import TrainConfig

_SETTINGS = {
    "batch": "batch_size", "size": "data.size", "crop": "data.crop", "bands": "data.bands",
    "value_range": "data.value_range", "page": "data.page", "workers": "data.workers",
    "learning_rate": "optim.learning_rate", "freeze_backbone": "optim.freeze_backbone",
}  # fmt: skip
"""Options that set a setting of another name."""


def resumed_config(out: Path, options: dict[str, Any], has_recipe: bool) -> TrainConfig:
    """The settings of the run in a folder; only the number of workers may change."""
    from evitseg.train.settings import read_config

    config = read_config(out)
    given = [_option(name) for name in options if name != "workers"]
    if given or has_recipe:
        what = ", ".join([*given, *["--recipe and --set"] * has_recipe])
        raise EvitsegError(f"--resume continues with the run's own settings; leave out {what}, or start a new run.")
    return config.updated({"data.workers": options["workers"]}) if "workers" in options else config


def new_config(
    data: str, options: dict[str, Any], recipe: str, changes: tuple[str, ...], output: Output
) -> TrainConfig:
    """The settings of a new run: those of the recipe, overridden by the options, overridden by --set."""
    from evitseg.architecture import BACKBONES, published_start
    from evitseg.train.config import FRESH, SettingError
    from evitseg.train.settings import make_config, parse_changes, read_recipe

    auto = options.get("batch") == "auto"
    settings = read_recipe(recipe) if recipe else {}
    settings |= {_SETTINGS.get(k, k): v for k, v in options.items() if not (auto and k == "batch")}
    changed = parse_changes(changes)
    settings |= changed
    variant = settings.get("variant", "b0")
    if variant in BACKBONES:  # a wrong one is reported with the other settings
        settings.setdefault("start", published_start(variant) or FRESH)
    try:
        config = make_config(settings, recipe or "settings")
    except SettingError as error:
        if error.key in changed:
            raise SettingError(error.key, error.problem, "--set") from error
        if option := next((name for name in options if _SETTINGS.get(name, name) == error.key), None):
            raise SettingError(_option(option), error.problem) from error
        raise
    return _with_fastest_batch(data, config, output) if auto else config


def _option(name: str) -> str:
    """The option as it is written, of a parameter's name."""
    return f"--{name.removeprefix('value_').replace('_', '-')}"


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
