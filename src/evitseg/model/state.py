"""Files of tensors: found wherever in a file they lie, under plain names, and only read if sizes are what they seem."""

from __future__ import annotations

import os
import pickle
import warnings
import zipfile
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from evitseg.errors import MissingPackageError, WeightsError

State = dict[str, Tensor]

USUAL_KEYS = (
    "state_dict", "model_state_dict", "model_state", "model", "net", "network", "module", "weights", "params",
    "state_dict_ema", "model_ema", "ema_state_dict", "ema",
)  # fmt: skip
"""Where training programs keep weights in their checkpoints; of several the first is taken."""
WRAPPERS = ("module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")
"""What data-parallel training and torch.compile put into names, wherever a module is wrapped."""
ROOTS = ("backbone", "head", "stem", "stages")
"""What names begin with."""
COUNTER = "num_batches_tracked"
"""Batch norm's counter, of which nothing depends that this package computes."""
_DEEPEST = 4
_MOST_INFLATED = 8
"""Of a zip archive: weights hardly compress, and torch does not compress them."""


def read_state(path: str | os.PathLike[str]) -> tuple[State, dict[str, str]]:
    """The tensors of a .safetensors, .pt or .pth file, and its metadata (empty but for safetensors).

    A pickle can run code when it is read; ours is read with `weights_only=True`, which refuses anything but tensors.

    Raises: WeightsError.
    """
    path = Path(path)
    try:
        if path.suffix == ".safetensors":
            from safetensors import safe_open

            with safe_open(path, "pt") as file:
                names = file.keys()  # the file itself cannot be iterated over
                state, metadata = {key: file.get_tensor(key) for key in names}, dict(file.metadata() or {})
            return state_in(state, path), metadata
        _check_inflated(path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about how the file was written; what matters is raised
            content = torch.load(path, map_location="cpu", weights_only=True)
    except WeightsError:
        raise
    except FileNotFoundError as error:
        raise WeightsError(f"{path}: no such file.") from error
    except pickle.UnpicklingError as error:
        raise WeightsError(f"{path}: not a file of tensors alone, so it is not loaded: it could run code.") from error
    except ImportError as error:
        raise MissingPackageError("reading safetensors", "torch") from error
    except MemoryError as error:
        raise WeightsError(f"{path}: does not fit in memory.") from error
    except Exception as error:  # a damaged file makes torch's unpickler raise whatever its stack machine stumbles over
        raise WeightsError(f"{path}: damaged, or not a checkpoint ({reason(error)}).") from error
    return state_in(content, path), {}


def _check_inflated(path: Path) -> None:
    """Raises: WeightsError for an archive whose parts are much larger than the file."""
    if not zipfile.is_zipfile(path):
        return
    with zipfile.ZipFile(path) as archive:
        inflated, most = sum(part.file_size for part in archive.infolist()), _MOST_INFLATED * path.stat().st_size
    if inflated > most:
        raise WeightsError(
            f"{path}: {path.stat().st_size} bytes that inflate to {inflated}, which no weights do; it is not loaded."
        )


def reason(error: Exception) -> str:
    """The first line of a library's message, which may be empty."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)[:200]


def state_in(content: Any, where: object) -> State:
    """The state dict in what a checkpoint holds, its names without what wrappers have put before and into them.

    It is the content itself, or lies under one of `USUAL_KEYS`, or is the only one there is; entries beside it, such as
    an epoch or an optimizer's state, are left out. numpy arrays become tensors.

    Raises: WeightsError where there is none, and for tensors that are no plain numbers.
    """
    found = _nested(content, where)
    state: State = {}
    for key, value in found.items():
        if not _is_tensor(value):
            continue
        tensor = torch.from_numpy(value) if isinstance(value, np.ndarray) else value
        plain = tensor.layout == torch.strided and tensor.device.type == "cpu" and not tensor.is_quantized
        if not plain or tensor.is_complex():
            raise WeightsError(f"{where}: {key!r} is not a plain tensor of real numbers.")
        state[str(key)] = tensor
    return unwrapped(state)


def _is_tensor(value: Any) -> bool:
    return isinstance(value, Tensor) or (isinstance(value, np.ndarray) and value.dtype.kind in "biuf")


def _nested(content: Any, where: object, depth: int = 0) -> Mapping[Any, Any]:
    if not isinstance(content, Mapping) or not content:
        raise WeightsError(f"{where}: holds no state dict (names and tensors).")
    inner = {key: value for key, value in content.items() if isinstance(value, Mapping) and value}
    usual = [inner[key] for key in USUAL_KEYS if key in inner]
    tensors = sum(map(_is_tensor, content.values()))
    # A state dict of a few buffers may lie beside the one that is wanted: what has the usual name is taken.
    if depth < _DEEPEST and usual:
        return _nested(usual[0], where, depth + 1)
    if tensors:
        return content
    holding = {key: value for key, value in inner.items() if any(map(_is_tensor, value.values()))}
    if len(holding) == 1:
        return next(iter(holding.values()))
    names = ", ".join(repr(str(key)[:40]) for key in [*content][:6])
    several = f", and several hold tensors ({', '.join(map(repr, holding))})" if holding else ""
    raise WeightsError(
        f"{where}: holds no state dict (names and tensors): it has {names}{several}; save the network's state_dict()."
    )


def unwrapped(state: State) -> State:
    """Under names without `WRAPPERS`, and without what comes before `ROOTS` in them, as Lightning's "model.".

    Names that do not have what most have keep theirs, and are told as left over.
    """
    parts = {key: [part for part in key.split(".") if part not in WRAPPERS] for key in state}
    while True:
        first, count = _most_common(names[0] for names in parts.values() if len(names) > 1)
        having = [key for key, names in parts.items() if len(names) > 1 and names[0] == first]
        second = {parts[key][1] for key in having}
        if 2 * count <= len(parts) or (first in ROOTS and not second & {"backbone", "head"}):
            break
        parts |= {key: parts[key][1:] for key in having}
    plain = {".".join(parts[key]): tensor for key, tensor in state.items()}
    return plain if len(plain) == len(state) else state  # two of one name: none is better than the other


def _most_common(words: Iterable[str]) -> tuple[str, int]:
    return next(iter(Counter(words).most_common(1)), ("", 0))


def check_numbers(state: State, where: object) -> None:
    """Raises: WeightsError that names the first tensor with numbers that no network can have."""
    for key, tensor in state.items():
        if not tensor.is_floating_point():
            continue
        numbers = tensor.float()  # what is finite in 64 bits may not be in 32
        if not bool(torch.isfinite(numbers).all()):
            raise WeightsError(
                f"{where}: {key} holds numbers that are not finite (NaN or infinite), so every mask would be wrong; "
                "give an earlier checkpoint, or train again at a lower rate."
            )
        if key.endswith("running_var") and bool((numbers < 0).any()):
            raise WeightsError(f"{where}: {key} holds negative variances; the file is damaged.")
