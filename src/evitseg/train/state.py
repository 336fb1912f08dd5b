"""A run's folder as something to go on from: what it started as, its settings, and the state between two steps."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from evitseg.errors import EvitsegError, TrainError
from evitseg.manifest import Manifest
from evitseg.model.checkpoints import load_checkpoint
from evitseg.model.network import EfficientViT
from evitseg.train.config import CHOOSABLE, CHOSEN, CONFIG_FILE, TrainConfig, read_config

START, BEST, LAST, STATE = "start.safetensors", "best.safetensors", "last.safetensors", "state.pt"
_FREE = ("workers", "save_every")
"""Settings that do not change the result, so that a resumed run may have others."""


def check_new(folder: Path) -> None:
    """Raises: TrainError where the folder holds a run's state or results, which a new run would replace."""
    if (folder / STATE).exists():
        raise TrainError(f"{folder}: already holds a run; continue it with --resume, or choose another --out.")
    if (folder / LAST).exists():
        raise TrainError(f"{folder}: already holds a run's results ({LAST}); choose another --out.")


@dataclass(frozen=True)
class Resumable:
    """What a run goes on from.

    Attributes:
        config: the run's own settings.
        state: what `trainer` saved, of the right kinds.
        network, manifest: the start.
    """

    config: TrainConfig
    state: dict[str, Any]
    network: EfficientViT
    manifest: Manifest


def read_resumable(folder: Path, config: TrainConfig | None) -> Resumable:
    """The run in a folder.

    Args:
        config: settings that must be the run's own, but for those of `_FREE`, and those that it leaves to be chosen.

    Raises: TrainError where there is none, something of it is damaged, or the settings are others.
    """
    if not (folder / STATE).is_file():
        begun = (folder / CONFIG_FILE).is_file() or (folder / START).is_file()
        reason = "the run was interrupted before its first checkpoint" if begun else f"{STATE} is missing"
        raise TrainError(f"{folder}: there is nothing to resume ({reason}); start the run again without --resume.")
    own = read_config(folder)
    if config is not None:
        given, before = asdict(config), asdict(own)
        given |= {name: before[name] for name in CHOOSABLE if given[name] is CHOSEN}
        changed = [name for name, value in given.items() if name not in _FREE and before[name] != value]
        if changed:
            differences = ", ".join(f"{name} was {before[name]}, is {given[name]}" for name in changed)
            raise TrainError(f"{folder}: cannot resume with other settings ({differences}); use the run's own.")
        own = replace(own, **{name: given[name] for name in _FREE})
    path = folder / STATE
    try:
        state = _checked(torch.load(path, map_location="cpu", weights_only=True))
    except Exception as error:  # a damaged file makes torch's unpickler raise whatever it stumbles over
        raise TrainError(f"{path}: damaged, or not a training state; start again in another folder.") from error
    try:
        network, manifest = load_checkpoint(folder / START)
    except (EvitsegError, OSError) as error:
        raise TrainError(f"{error} The run cannot be resumed without it; start again in another folder.") from error
    return Resumable(own, state, network, manifest)


def _checked(state: Any) -> dict[str, Any]:
    """The state, if every part is of its kind. Raises: ValueError."""
    if not isinstance(state, dict):
        raise ValueError("no mapping")
    step, best, losses = state["step"], state["best"], state["losses"]
    tensors = [*state["trained"].values(), *state["average"].values()]
    tensors += [t for one in state["optimizer"]["state"].values() for t in one.values()]
    sound = (
        _whole(step)
        and isinstance(best, float)
        and -1 <= best <= 1
        and len(losses) == 2
        and isinstance(losses[0], float)
        and math.isfinite(losses[0])
        and _whole(losses[1])
        and all(isinstance(tensor, torch.Tensor) and bool(torch.isfinite(tensor).all()) for tensor in tensors)
    )
    if not sound:
        raise ValueError("a part of another kind")
    return state


def _whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def damaged(folder: Path) -> TrainError:
    return TrainError(f"{folder / STATE}: not the state of this run; start again in another folder.")
