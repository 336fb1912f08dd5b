"""Read state dicts safely from files of tensors, wherever a training program put them."""

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

from evitseg.errors import MissingPackageError, WeightsError, reason

State = dict[str, Tensor]

USUAL_KEYS = (
    "state_dict", "model_state_dict", "model_state", "model", "net", "network", "module", "weights", "params",
    "state_dict_ema", "model_ema", "ema_state_dict", "ema",
)  # fmt: skip
"""Keys under which training programs store weights in their checkpoints; the first one that is present counts."""
WRAPPERS = ("module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")
"""Name parts that data-parallel training and torch.compile add for every wrapped module."""
ROOTS = ("backbone", "head", "stem", "stages")
"""First parts of the names of our weights, of the authors' and of timm's."""
COUNTER = "num_batches_tracked"
"""Last part of the name of batch norm's counter, which this package never uses."""
_DEEPEST = 4
_MOST_INFLATED = 8
"""Largest ratio of content to file size of a zip archive: weights hardly compress, and torch does not compress."""


def read_state(path: str | os.PathLike[str]) -> tuple[State, dict[str, str]]:
    """The tensors of a .safetensors, .pt or .pth file, and its metadata, which only safetensors files have.

    Unpickling can run code, so .pt files are read with `weights_only=True`, which refuses everything but tensors.

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
            warnings.simplefilter("ignore")  # they concern how the file was written
            content = torch.load(path, map_location="cpu", weights_only=True)
    except WeightsError:
        raise
    except FileNotFoundError as error:
        raise WeightsError(f"{path}: no such file.") from error
    except pickle.UnpicklingError as error:
        raise WeightsError(
            f"{path}: contains pickled objects other than tensors; refusing to load it, because unpickling "
            "can run code."
        ) from error
    except ImportError as error:
        raise MissingPackageError("reading safetensors", "torch") from error
    except MemoryError as error:
        raise WeightsError(f"{path}: does not fit in memory.") from error
    except Exception as error:  # a damaged file can make torch's unpickler raise anything
        raise WeightsError(f"{path}: damaged, or not a checkpoint ({reason(error)}).") from error
    return state_in(content, path), {}


def _check_inflated(path: Path) -> None:
    """Refuse an archive whose content is much larger than the file. Raises: WeightsError."""
    if not zipfile.is_zipfile(path):
        return
    with zipfile.ZipFile(path) as archive:
        inflated, most = sum(part.file_size for part in archive.infolist()), _MOST_INFLATED * path.stat().st_size
    if inflated > most:
        raise WeightsError(
            f"{path}: {path.stat().st_size} bytes would inflate to {inflated}; weights do not compress that well, so "
            "the file is refused."
        )


def state_in(content: Any, where: object) -> State:
    """The state dict inside a checkpoint's content, with names free of wrappers' parts.

    It is the content itself, the entry under one of `USUAL_KEYS`, or the only entry with tensors. Other entries, such
    as an epoch or an optimizer's state, are left out. numpy arrays become tensors.

    Raises: WeightsError if there is none, and for tensors that are not plain numbers.
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
    # A usual name wins over the content itself: a few buffers may lie next to the state dict.
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
    """The state dict under names without `WRAPPERS`, and without a prefix before `ROOTS` such as Lightning's "model.".

    Names without the prefix that most have stay as they are, and are later reported as unexpected.
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
    return plain if len(plain) == len(state) else state  # two tensors would get the same name


def _most_common(words: Iterable[str]) -> tuple[str, int]:
    return next(iter(Counter(words).most_common(1)), ("", 0))


def check_numbers(state: State, where: object) -> None:
    """Refuse weights that no network can have. Raises: WeightsError with the first such tensor's name."""
    for key, tensor in state.items():
        if not tensor.is_floating_point():
            continue
        numbers = tensor.float()  # a number that is finite in 64 bits can overflow in 32
        if not bool(torch.isfinite(numbers).all()):
            raise WeightsError(
                f"{where}: {key} holds numbers that are not finite (NaN or infinite), so every mask would be wrong; "
                "give an earlier checkpoint, or train again at a lower learning rate."
            )
        if key.endswith("running_var") and bool((numbers < 0).any()):
            raise WeightsError(f"{where}: {key} holds negative variances; the file is damaged.")
