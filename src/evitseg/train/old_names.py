"""Names of settings and recipes from before they were grouped, which still work with a warning.

As keywords of `TrainConfig` and with `--set` they end in the release `ENDS_IN`; files with them stay readable.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import fields, replace
from functools import wraps
from typing import Any, TypeVar

from evitseg.errors import warn_deprecated

ENDS_IN = "0.3"
OLD_NAMES: Mapping[str, str] = {
    "train_on": "data.splits", "size": "data.size", "crop": "data.crop", "bands": "data.bands",
    "value_range": "data.value_range", "page": "data.page", "workers": "data.workers",
    "scale": "augment.scale", "rotate": "augment.rotate", "jitter": "augment.color_jitter",
    "blur": "augment.blur_prob", "jpeg": "augment.jpeg_prob", "classmix": "augment.classmix_prob",
    "learning_rate": "optim.learning_rate", "warm_up": "optim.warmup_fraction", "weight_decay": "optim.weight_decay",
    "clip": "optim.grad_clip_norm", "freeze_backbone": "optim.freeze_backbone", "freeze_norm": "optim.freeze_norm",
    "drop_path": "optim.drop_path", "ema": "average.ema_decay", "keep_start": "average.start_weight",
    "cross_entropy": "loss.cross_entropy", "dice": "loss.dice", "lovasz": "loss.lovasz",
    "lovasz_from": "loss.lovasz_from", "boundary": "loss.boundary_weight", "ohem": "loss.ohem_fraction",
    "label_smoothing": "loss.label_smoothing", "balance": "loss.class_weight_power", "auxiliary": "loss.auxiliary",
    "loss_stride": "loss.stride", "teachers": "distill.teachers", "distill": "distill.weight",
    "temperature": "distill.temperature", "batch": "batch_size", "measure_every": "eval_interval",
    "save_every": "save_interval",
}  # fmt: skip
"""Old flat name of a setting -> its key now."""
OLD_RECIPES: Mapping[str, str] = {"camvid-transfer-taught": "camvid-transfer-distilled"}


def is_old(name: str, value: object) -> bool:
    """Whether the setting has its old name. "distill" was a number and is a group now."""
    return name in OLD_NAMES and (name != "distill" or isinstance(value, int | float))


def warn_old_settings(names: list[str], where: str, is_file: bool, stacklevel: int = 2) -> None:
    """One warning for all old names that a source of settings uses; none if the list is empty."""
    if names:
        renamed = ", ".join(f"{name} is now {OLD_NAMES[name]}" for name in names)
        end = "" if is_file else f" The old names end in evitseg {ENDS_IN}."
        warn_deprecated(f"{where}: deprecated names of settings ({renamed}).{end}", stacklevel + 1)


Config = TypeVar("Config")


def accept_old_keywords(cls: type[Config]) -> type[Config]:
    """Let the old flat names be keywords of the nested `TrainConfig`, also for `dataclasses.replace`."""
    init: Callable[..., None] = cls.__init__
    groups = {one.name: one.default_factory for one in fields(cls)}  # type: ignore[arg-type]  # it is a dataclass

    @wraps(init)
    def with_old_names(self: Config, *positional: Any, **settings: Any) -> None:
        old = {name: settings.pop(name) for name in list(settings) if is_old(name, settings[name])}
        warn_old_settings(list(old), "TrainConfig", is_file=False)
        for name, value in old.items():
            group, _, inner = OLD_NAMES[name].rpartition(".")
            if group:
                settings[group] = replace(settings.get(group) or groups[group](), **{inner: value})  # type: ignore[operator]
            else:
                settings[inner] = value
        init(self, *positional, **settings)

    cls.__init__ = with_old_names  # type: ignore[assignment]
    return cls
