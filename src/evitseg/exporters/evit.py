"""Write a network as one file for our own core, for programs in C, C++ and every language that can call C."""

from __future__ import annotations

from pathlib import Path

from evitseg.manifest import Manifest
from evitseg.model.fold import folded_weights
from evitseg.model.network import ClassificationNetworkHead, EfficientViT
from evitseg.preprocess import Preprocess
from evitseg.runtime import evit_file
from evitseg.runtime.program import ClassifierLayers, compile_program
from evitseg.runtime.weights import Weights


def network_program(model: EfficientViT, preprocess: Preprocess) -> bytes:
    """The program of a segmentation network or a classifier, for `evitseg.runtime.core.Core`.

    Raises: ConfigError for a network that the core does not support.
    """
    weights = [Weights(*own) for own in folded_weights(model)]
    head = model.head
    if not isinstance(head, ClassificationNetworkHead):
        return compile_program(model.config, preprocess, weights)
    tensors = head.features.weight, head.norm.weight, head.norm.bias, head.classify.weight, head.classify.bias
    layers = ClassifierLayers(*(tensor.detach().cpu().float().numpy() for tensor in tensors))
    return compile_program(model.config, preprocess, weights, layers)


def write_evit(model: EfficientViT, manifest: Manifest, path: Path) -> None:
    """Write the model without verifying it. Raises: ConfigError for a network that the core does not support."""
    evit_file.write_evit(path, manifest, network_program(model, manifest.preprocess))
