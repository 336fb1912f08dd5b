"""Write a network as one file for our own core, for programs in C, C++ and every language that can call C."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from evitseg.architecture import placed_convs
from evitseg.manifest import Manifest
from evitseg.model.fold import folded
from evitseg.model.layers import ConvNormAct
from evitseg.model.network import ClassificationNetworkHead, EfficientViT
from evitseg.preprocess import Preprocess
from evitseg.runtime import evit_file
from evitseg.runtime.openvino_graph import Weights
from evitseg.runtime.program import ClassifierLayers, compile_program


def network_program(model: EfficientViT, preprocess: Preprocess) -> bytes:
    """The program of a network for `evitseg.runtime.core.Core`: of a segmentation network or a classifier.

    Raises: ConfigError for a network that the core does not support.
    """
    weights = []
    for placed in placed_convs(model.config):
        module = model.get_submodule(placed.module_name)
        assert isinstance(module, ConvNormAct)
        kernel, bias = folded(module)
        weights.append(Weights(kernel.astype(np.float32), None if bias is None else bias.astype(np.float32)))
    head = model.head
    if not isinstance(head, ClassificationNetworkHead):
        return compile_program(model.config, preprocess, weights)
    tensors = head.features.weight, head.norm.weight, head.norm.bias, head.classify.weight, head.classify.bias
    layers = ClassifierLayers(*(tensor.detach().cpu().float().numpy() for tensor in tensors))
    return compile_program(model.config, preprocess, weights, layers)


def write_evit(model: EfficientViT, manifest: Manifest, path: Path) -> None:
    """Write the model without verifying it. Raises: ConfigError for a network that the core does not support."""
    evit_file.write_evit(path, manifest, network_program(model, manifest.preprocess))
