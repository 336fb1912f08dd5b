"""Semantic segmentation with EfficientViT, from a folder of photos to a small device."""

from __future__ import annotations

import logging
from importlib import import_module
from typing import TYPE_CHECKING, NoReturn

from evitseg._version import __version__ as __version__

# Silent, unless a program or `evitseg --verbose` configures logging.
logging.getLogger("evitseg").addHandler(logging.NullHandler())

if TYPE_CHECKING:
    from evitseg import cluster as cluster
    from evitseg import errors as errors
    from evitseg.data.dataset import Dataset as Dataset
    from evitseg.data.layouts import find_dataset as find_dataset
    from evitseg.data.layouts import find_pairs as find_pairs
    from evitseg.data.lists import Pair as Pair
    from evitseg.engine import EngineInfo as EngineInfo
    from evitseg.errors import ConfigError as ConfigError
    from evitseg.errors import DatasetError as DatasetError
    from evitseg.errors import EngineError as EngineError
    from evitseg.errors import EvitsegError as EvitsegError
    from evitseg.errors import EvitsegWarning as EvitsegWarning
    from evitseg.errors import ExportError as ExportError
    from evitseg.errors import FileError as FileError
    from evitseg.errors import ImageError as ImageError
    from evitseg.errors import MissingPackageError as MissingPackageError
    from evitseg.errors import TrainError as TrainError
    from evitseg.errors import VideoError as VideoError
    from evitseg.errors import WeightsError as WeightsError
    from evitseg.evaluation.evaluate import PredictedMasks as PredictedMasks
    from evitseg.evaluation.evaluate import Report as Report
    from evitseg.evaluation.evaluate import evaluate as evaluate
    from evitseg.exporters.export import export as export
    from evitseg.image import ReadOptions as ReadOptions
    from evitseg.labels import LabelClass as LabelClass
    from evitseg.labels import LabelSpace as LabelSpace
    from evitseg.labels import load_labels as load_labels
    from evitseg.loading import ModelInfo as ModelInfo
    from evitseg.loading import list_models as list_models
    from evitseg.loading import load as load
    from evitseg.manifest import Manifest as Manifest
    from evitseg.model.checkpoints import load_checkpoint as load_checkpoint
    from evitseg.model.checkpoints import load_official as load_official
    from evitseg.model.checkpoints import save_checkpoint as save_checkpoint
    from evitseg.model.network import build as build
    from evitseg.preprocess import Preprocess as Preprocess
    from evitseg.raster.files import read_image as read_image
    from evitseg.raster.masks import read_mask as read_mask
    from evitseg.raster.open import open_mask_writer as open_mask_writer
    from evitseg.raster.open import open_raster as open_raster
    from evitseg.raster.polygons import polygonize as polygonize
    from evitseg.runtime.segmenter import Prediction as Prediction
    from evitseg.runtime.segmenter import Segmenter as Segmenter
    from evitseg.tiling.region import render_region as render_region
    from evitseg.tiling.sliding_window import sliding_window as sliding_window
    from evitseg.tiling.stream import segment_large as segment_large
    from evitseg.tiling.verify import verify_bands as verify_bands
    from evitseg.train import AugmentConfig as AugmentConfig
    from evitseg.train import AverageConfig as AverageConfig
    from evitseg.train import DataConfig as DataConfig
    from evitseg.train import DistillConfig as DistillConfig
    from evitseg.train import LossConfig as LossConfig
    from evitseg.train import OptimConfig as OptimConfig
    from evitseg.train import TrainConfig as TrainConfig
    from evitseg.train import fit as fit
    from evitseg.video.segment import segment_video as segment_video
    from evitseg.video.segment import write_video as write_video

_MODULES = {
    "evitseg.data.dataset": ("Dataset",),
    "evitseg.data.layouts": ("find_dataset", "find_pairs"),
    "evitseg.data.lists": ("Pair",),
    "evitseg.engine": ("EngineInfo",),
    "evitseg.errors": (
        "ConfigError", "DatasetError", "EngineError", "EvitsegError", "EvitsegWarning", "ExportError", "FileError",
        "ImageError", "MissingPackageError", "TrainError", "VideoError", "WeightsError",
    ),
    "evitseg.evaluation.evaluate": ("PredictedMasks", "Report", "evaluate"),
    "evitseg.exporters.export": ("export",),
    "evitseg.image": ("ReadOptions",),
    "evitseg.labels": ("LabelClass", "LabelSpace", "load_labels"),
    "evitseg.loading": ("ModelInfo", "list_models", "load"),
    "evitseg.manifest": ("Manifest",),
    "evitseg.model.checkpoints": ("load_checkpoint", "load_official", "save_checkpoint"),
    "evitseg.model.network": ("build",),
    "evitseg.preprocess": ("Preprocess",),
    "evitseg.raster.files": ("read_image",),
    "evitseg.raster.masks": ("read_mask",),
    "evitseg.raster.open": ("open_mask_writer", "open_raster"),
    "evitseg.raster.polygons": ("polygonize",),
    "evitseg.runtime.segmenter": ("Prediction", "Segmenter"),
    "evitseg.tiling.region": ("render_region",),
    "evitseg.tiling.sliding_window": ("sliding_window",),
    "evitseg.tiling.stream": ("segment_large",),
    "evitseg.tiling.verify": ("verify_bands",),
    "evitseg.train": (
        "AugmentConfig", "AverageConfig", "DataConfig", "DistillConfig", "LossConfig", "OptimConfig", "TrainConfig",
        "fit",
    ),
    "evitseg.video.segment": ("segment_video", "write_video"),
}  # fmt: skip
"""Every public name and its module, which is imported when the name is first used.

The block above tells type checkers the same; a test compares the two.
"""

_HOMES = {name: module for module, names in _MODULES.items() for name in names}
_PUBLIC_MODULES = ("cluster", "errors")
_EXTRAS = {"export": "export", "fit": "train", "TrainConfig": "train"}

__all__ = sorted([*_HOMES, *_PUBLIC_MODULES])

if not TYPE_CHECKING:  # otherwise a type checker would accept any name

    def __getattr__(name: str) -> object:
        if name in _PUBLIC_MODULES:
            return import_module(f"evitseg.{name}")
        if name not in _HOMES:
            raise AttributeError(f"module 'evitseg' has no attribute {name!r}")
        try:
            return getattr(import_module(_HOMES[name]), name)
        except ModuleNotFoundError as error:
            if error.name != "torch":
                raise
            return _missing(name, error)


def _missing(name: str, cause: Exception) -> object:
    """A function in place of a name that needs PyTorch. Introspection works; a call raises MissingPackageError."""
    from evitseg.errors import MissingPackageError

    extra = _EXTRAS.get(name, "torch")

    def missing(*args: object, **settings: object) -> NoReturn:
        raise MissingPackageError(f"evitseg.{name}", extra) from cause

    missing.__name__ = missing.__qualname__ = name
    missing.__doc__ = f"Needs packages that are not installed, the extra {extra!r}."
    return missing


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
