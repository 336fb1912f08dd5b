"""The state between two steps that a run is resumed from, and the checks of a run's folder."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.optim import Optimizer
from torch.optim.swa_utils import AveragedModel

from evitseg.errors import EvitsegError, TrainError
from evitseg.manifest import Manifest
from evitseg.model.checkpoints import load_checkpoint
from evitseg.model.network import EfficientViT
from evitseg.system.files import replacing
from evitseg.train.allocator import is_out_of_memory
from evitseg.train.config import AUTO, AUTO_KEYS, TrainConfig
from evitseg.train.optimizer import count_updates
from evitseg.train.settings import CONFIG_FILE, read_chosen, read_config
from evitseg.train.wrapper import TrainingWrapper

START, BEST, LAST, STATE = "start.safetensors", "best.safetensors", "last.safetensors", "state.pt"
_FREE = ("data.workers", "save_interval")
"""Settings that a resumed run may change, because they do not change its result."""


def check_new(folder: Path) -> None:
    """Check that a new run would not replace another.

    Raises: TrainError if the folder holds a run's state or results.
    """
    if (folder / STATE).exists():
        raise TrainError(f"{folder}: already holds a run; continue it with --resume, or choose another --out.")
    for name in (LAST, BEST):
        if (folder / name).exists() and not (name == BEST and _best_is_start(folder)):
            raise TrainError(f"{folder}: already holds a run's results ({name}); choose another --out.")


def _best_is_start(folder: Path) -> bool:
    """Whether the best checkpoint has the weights of the start, as in a run that ended before its first step."""
    try:
        start, best = (load_checkpoint(folder / name)[0].state_dict() for name in (START, BEST))
    except EvitsegError:
        return False
    return start.keys() == best.keys() and all(torch.equal(start[name], best[name]) for name in start)


@dataclass
class RunProgress:
    """How far a run has come.

    Attributes:
        step: number of steps done.
        best_miou, start_miou, last_miou: of the best checkpoint, the start, and the latest evaluation.
        loss_sum, loss_count: of the steps of the current epoch.
    """

    step: int = 0
    best_miou: float = -1.0
    start_miou: float = math.nan
    last_miou: float = math.nan
    loss_sum: float = 0.0
    loss_count: int = 0


@dataclass(frozen=True)
class TrainingParts:
    """What changes in a step, besides `RunProgress`."""

    network: TrainingWrapper
    average: AveragedModel
    optimizer: Optimizer
    scaler: Any  # torch.amp.GradScaler; None except for float16


@dataclass(frozen=True)
class Resumable:
    """A run that can be resumed.

    Attributes:
        config: the run's own settings.
        chosen: keys of the settings that were derived from the data.
        state: content of the state file, with checked types.
        network, manifest: the start.
    """

    config: TrainConfig
    chosen: tuple[str, ...]
    state: Mapping[str, Any]
    network: EfficientViT
    manifest: Manifest


def read_resumable(folder: Path, config: TrainConfig | None) -> Resumable:
    """The run in a folder.

    Args:
        config: must agree with the run's own settings, except for those that do not change the result and those left
            to be derived.

    Raises: TrainError if there is no run, if a part of it is damaged, or if the settings differ.
    """
    if not (folder / STATE).is_file():
        begun = (folder / CONFIG_FILE).is_file() or (folder / START).is_file()
        reason = "the run was interrupted before its first checkpoint" if begun else f"{STATE} is missing"
        raise TrainError(f"{folder}: there is nothing to resume ({reason}); start the run again without --resume.")
    own = read_config(folder)
    if config is not None:
        given, before = config.flat(), own.flat()
        given |= {key: before[key] for key in AUTO_KEYS if given[key] is AUTO}
        changed = [key for key, value in given.items() if key not in _FREE and before[key] != value]
        if changed:
            differences = ", ".join(f"{key} was {before[key]}, is {given[key]}" for key in changed)
            raise TrainError(f"{folder}: cannot resume with other settings ({differences}); use the run's own.")
        own = own.updated({key: given[key] for key in _FREE})
    path = folder / STATE
    try:
        state = _checked(torch.load(path, map_location="cpu", weights_only=True))
    except Exception as error:  # torch's unpickler raises almost anything for a damaged file
        if is_out_of_memory(error):
            raise
        raise TrainError(f"{path}: damaged, or not a training state; start again in another folder.") from error
    try:
        network, manifest = load_checkpoint(folder / START)
    except (EvitsegError, OSError) as error:
        raise TrainError(f"{error} The run cannot be resumed without it; start again in another folder.") from error
    return Resumable(own, read_chosen(folder), state, network, manifest)


def save_state(folder: Path, parts: TrainingParts, progress: RunProgress, data: Mapping[str, Any]) -> None:
    """Write everything the next step depends on; the file is replaced as a whole.

    Args:
        data: what identifies the images and the teachers.
    """
    content = io.BytesIO()
    torch.save(
        {
            "step": progress.step,
            "data": dict(data),
            "best": progress.best_miou,
            "start": progress.start_miou,
            "last": progress.last_miou,
            "losses": [progress.loss_sum, progress.loss_count],
            "trained": parts.network.state_dict(),
            "average": parts.average.module.state_dict(),
            "optimizer": parts.optimizer.state_dict(),
            "scaler": None if parts.scaler is None else parts.scaler.state_dict(),
        },
        content,
    )
    with replacing(folder / STATE, durable=True) as file:
        file.write(content.getbuffer())


def restore_state(folder: Path, state: Mapping[str, Any], parts: TrainingParts, steps: int) -> RunProgress:
    """Load what `save_state` wrote into the parts.

    Args:
        steps: number of steps of the run.

    Raises: TrainError for the state of another network.
    """
    try:
        parts.network.load_state_dict(state["trained"])
        parts.average.module.load_state_dict(state["average"])
        count_updates(parts.average, state["step"])
        parts.optimizer.load_state_dict(state["optimizer"])
        if parts.scaler is not None and state["scaler"] is not None:
            parts.scaler.load_state_dict(state["scaler"])
        progress = RunProgress(state["step"], state["best"], state["start"], state["last"], *state["losses"])
    except (KeyError, RuntimeError, ValueError, TypeError, AttributeError, IndexError) as error:
        raise _other_run(folder) from error
    if progress.step > steps or not _moments_fit(parts.optimizer):
        raise _other_run(folder)
    return progress


def check_same_data(folder: Path, state: Mapping[str, Any], data: Mapping[str, Any], advice: str) -> None:
    """Check that a resumed run trains on the data it began with.

    Raises: TrainError.
    """
    before = state.get("data")
    # Values without their keys: the number of images has had another key.
    then, now = list(before.values()) if isinstance(before, dict) else [], list(data.values())
    if then == now:
        return
    count = then[0] if then else "other"
    raise TrainError(
        f"{folder}: cannot resume, because the data changed: {count} training images then, {now[0]} now"
        f"{', with other content' if count == now[0] else ''}; restore them, or start a new run{advice}."
    )


def _checked(state: Any) -> dict[str, Any]:
    """The state, if every part has its type. Raises: ValueError."""
    if not isinstance(state, dict):
        raise ValueError("not a dictionary")
    step, best, losses = state["step"], state["best"], state["losses"]
    tensors = [*state["trained"].values(), *state["average"].values()]
    tensors += [t for one in state["optimizer"]["state"].values() for t in one.values()]
    sound = (
        _is_count(step)
        and isinstance(best, float)
        and -1 <= best <= 1
        and len(losses) == 2
        and isinstance(losses[0], float)
        and math.isfinite(losses[0])
        and _is_count(losses[1])
        and all(isinstance(tensor, torch.Tensor) and bool(torch.isfinite(tensor).all()) for tensor in tensors)
    )
    if not sound:
        raise ValueError("a part of another type")
    return state


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _moments_fit(optimizer: Optimizer) -> bool:
    """Whether the optimizer's moments have the shapes of its parameters, which `load_state_dict` does not check."""
    shapes = [p.shape for group in optimizer.param_groups for p in group["params"]]
    return all(
        at < len(shapes) and all(m.ndim == 0 or m.shape == shapes[at] for m in moments.values())
        for at, moments in optimizer.state_dict()["state"].items()
    )


def _other_run(folder: Path) -> TrainError:
    return TrainError(f"{folder / STATE}: not the state of this run; start again in another folder.")
