"""Write a network as one file for our own core, for programs in C, C++ and every language that can call C."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from evitseg.architecture import placed_convs
from evitseg.manifest import Manifest
from evitseg.model.fold import folded
from evitseg.model.layers import ConvNormAct
from evitseg.model.network import EfficientViT
from evitseg.runtime import evit_file
from evitseg.runtime.openvino_graph import Weights
from evitseg.runtime.program import compile_program


def write_evit(model: EfficientViT, manifest: Manifest, path: Path) -> None:
    """Write the model without verifying it. Raises: ConfigError for a network that the core does not support."""
    weights = []
    for placed in placed_convs(model.config):
        module = model.get_submodule(placed.module_name)
        assert isinstance(module, ConvNormAct)
        kernel, bias = folded(module)
        weights.append(Weights(kernel.astype(np.float32), None if bias is None else bias.astype(np.float32)))
    evit_file.write_evit(path, manifest, compile_program(model.config, manifest.preprocess, weights))
