"""Read evitseg's checkpoints without PyTorch: the manifest, and the weights with batch norm folded in."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from evitseg.architecture import PlacedConv, placed_convs
from evitseg.errors import WeightsError
from evitseg.manifest import METADATA_KEY, Manifest, parse_manifest
from evitseg.runtime.weights import Weights
from evitseg.system.files import file_sha256


def read_checkpoint(path: str | os.PathLike[str]) -> tuple[Manifest, list[Weights]]:
    """The manifest of a .safetensors file, and its convolutions in the order of `evitseg.architecture.placed_convs`.

    Raises: NoManifestError for a file of another program, WeightsError for one that is damaged or holds numbers that
    are not finite, ConfigError.
    """
    path = Path(path)
    with _opened(path) as (file, manifest):
        names = set(file.keys())

        def tensor(name: str, shape: tuple[int, ...]) -> NDArray[np.float64]:
            if name not in names:
                raise WeightsError(f"{path}: {name} is missing from the weights.")
            if (stored := tuple(file.get_slice(name).get_shape())) != shape:
                raise WeightsError(f"{path}: {name} has the shape {stored}; its network needs {shape}.")
            values = np.asarray(file.get_tensor(name), np.float64)
            if not np.isfinite(values).all():
                raise WeightsError(f"{path}: {name} holds numbers that are not finite; the training diverged.")
            if name.endswith("running_var") and (values < 0).any():
                raise WeightsError(f"{path}: {name} holds negative variances; the file is damaged.")
            return values

        eps = manifest.model.backbone.norm_eps
        return manifest, [_folded(tensor, placed, eps) for placed in placed_convs(manifest.model)]


def read_checkpoint_manifest(path: str | os.PathLike[str]) -> Manifest:
    """The manifest of a .safetensors file. Raises: NoManifestError, WeightsError, ConfigError."""
    with _opened(Path(path)) as (_, manifest):
        return manifest


class NoManifestError(WeightsError):
    """A checkpoint that another program wrote; PyTorch recognises its network by names and shapes."""


@contextmanager
def _opened(path: Path) -> Iterator[tuple[Any, Manifest]]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "np") as file:
            metadata = file.metadata() or {}
            if METADATA_KEY not in metadata:
                raise NoManifestError(f"{path}: has no manifest, so its network, classes and sizes are unknown.")
            manifest = parse_manifest(metadata[METADATA_KEY], path)
            yield file, replace(manifest, checkpoint_sha256=file_sha256(path))
    except FileNotFoundError as error:
        raise WeightsError(f"{path}: no such file.") from error
    except (SafetensorError, OSError, TypeError) as error:
        raise WeightsError(f"{path}: damaged, or not a checkpoint ({error}).") from error


def _folded(tensor: Any, placed: PlacedConv, eps: float) -> Weights:
    """One convolution with its batch norm inside, computed in float64."""
    conv, name = placed.conv, placed.module_name
    kernel = tensor(f"{name}.conv.weight", (conv.outputs, conv.inputs // conv.groups, conv.kernel, conv.kernel))
    bias = tensor(f"{name}.conv.bias", (conv.outputs,)) if conv.bias else None
    if conv.norm:
        weight, shift, mean, variance = (
            tensor(f"{name}.norm.{part}", (conv.outputs,)) for part in ("weight", "bias", "running_mean", "running_var")
        )
        factor = weight / np.sqrt(variance + eps)
        kernel = kernel * factor[:, None, None, None]
        bias = shift + ((0 if bias is None else bias) - mean) * factor
    return Weights(kernel.astype(np.float32), None if bias is None else bias.astype(np.float32))
