"""Semantic segmentation with EfficientViT, from a folder of photos to a small device."""

from __future__ import annotations

import logging
from collections.abc import Callable
from importlib import import_module
from typing import TYPE_CHECKING, Any

from evitseg._version import __version__ as __version__

# Silent, unless a program or `evitseg --verbose` configures logging.
logging.getLogger("evitseg").addHandler(logging.NullHandler())

_HOMES = {
    "EvitsegError": "evitseg.errors",
    "load": "evitseg.loading",
    "build": "evitseg.model.network",
    "load_official": "evitseg.model.checkpoints",
    "load_checkpoint": "evitseg.model.checkpoints",
    "save_checkpoint": "evitseg.model.checkpoints",
    "export": "evitseg.exporters.export",
    "TrainConfig": "evitseg.train",
    "evaluate": "evitseg.evaluation.evaluate",
    "find_pairs": "evitseg.data.layouts",
    "fit": "evitseg.train",
    "Prediction": "evitseg.runtime.segmenter",
    "Segmenter": "evitseg.runtime.segmenter",
    "segment_video": "evitseg.video",
}
"""Where each public name lives; a module is imported when its name is first used."""

_EXTRAS = {"export": "export", "fit": "train", "TrainConfig": "train"}

if TYPE_CHECKING:
    from evitseg.data.layouts import find_pairs
    from evitseg.errors import EvitsegError
    from evitseg.evaluation.evaluate import evaluate
    from evitseg.exporters.export import export
    from evitseg.loading import load
    from evitseg.model.checkpoints import load_checkpoint, load_official, save_checkpoint
    from evitseg.model.network import build
    from evitseg.runtime.segmenter import Prediction, Segmenter
    from evitseg.train import TrainConfig, fit
    from evitseg.video import segment_video

__all__ = [
    "EvitsegError",
    "Prediction",
    "Segmenter",
    "TrainConfig",
    "build",
    "evaluate",
    "export",
    "find_pairs",
    "fit",
    "load",
    "load_checkpoint",
    "load_official",
    "save_checkpoint",
    "segment_video",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'evitseg' has no attribute {name!r}")
    try:
        return getattr(import_module(_HOMES[name]), name)
    except ModuleNotFoundError as error:
        if error.name != "torch":
            raise
        return _missing(name, error)


def _missing(name: str, cause: Exception) -> Callable[..., Any]:
    """What stands for a name that needs PyTorch where that is missing: it can be looked at, and says so when called."""
    from evitseg.errors import MissingPackageError

    def missing(*args: object, **settings: object) -> Any:
        raise MissingPackageError(f"evitseg.{name}", _EXTRAS.get(name, "torch")) from cause

    missing.__name__ = missing.__qualname__ = name
    missing.__doc__ = f"Needs packages that are not installed, the extra {_EXTRAS.get(name, 'torch')!r}."
    return missing


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
