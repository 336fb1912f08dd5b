"""Fold into a network the head factors that its activations on real images ask for.

The heads' queries and keys then have about the same size, so formats with little range hold all of them: float16 on a
GPU, and the one scale per tensor of 8-bit formats, for which it is worth three points of mIoU.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from evitseg.architecture import SegmentationHead
from evitseg.image import ImageArray
from evitseg.model.attention import MultiScaleAttention
from evitseg.model.fold import folded_weights, network_of_folded
from evitseg.model.network import EfficientViT, NormalizedModel
from evitseg.preprocess import Preprocess
from evitseg.runtime.head_factors import HeadFactors, attention_layers, powers_of_two, with_head_factors
from evitseg.runtime.weights import Weights

MEASURED_ON = 10
"""Maximum number of images."""
TOP = 0.999
"""The quantile of a head's queries that becomes 1; the largest query would be a matter of chance."""


def with_measured_head_factors(
    model: EfficientViT, preprocess: Preprocess, images: Sequence[ImageArray]
) -> EfficientViT:
    """A copy with folded batch norms that computes the same function, with scaled queries and keys.

    A classifier, which has no export, stays as it is.

    Args:
        images: of any sizes; at most `MEASURED_ON` of them are used.
    """
    if not isinstance(model.config.head, SegmentationHead):
        return model
    factors = measured_factors(model, preprocess, images[:: -(-len(images) // MEASURED_ON)])
    weights = [Weights(*own) for own in folded_weights(model)]
    balanced = with_head_factors(model.config, weights, factors)
    return network_of_folded(model.config, [(own.kernel, own.bias) for own in balanced])


def measured_factors(model: EfficientViT, preprocess: Preprocess, images: Sequence[ImageArray]) -> HeadFactors:
    """Factors that bring every head's large queries to about 1, and the largest sum of its keys to the square root of
    their number, so that neither a single key nor the sum leaves float16's range.

    Args:
        images: of any sizes.
    """
    sizes: dict[str, list[NDArray[np.float64]]] = {}

    def watch(name: str, layer: MultiScaleAttention) -> None:
        sizes[name] = []
        parts: list[Tensor] = []

        def keep(_: object, given: object, tokens: Tensor) -> None:
            parts.append(tokens)

        def summarize(*_: object) -> None:
            per_head = [part.reshape(-1, 3, layer.head_dim, part.shape[-2] * part.shape[-1]) for part in parts]
            sizes[name].append(np.stack([_head_sizes(part) for part in per_head]))
            parts.clear()

        for module in (layer.qkv, *layer.aggregate):
            module.register_forward_hook(keep)
        layer.register_forward_hook(summarize)

    network = copy.deepcopy(model).float().eval()
    ready = NormalizedModel(network, preprocess)
    for name, _ in attention_layers(model.config):
        layer = network.get_submodule(_module_name(name))
        assert isinstance(layer, MultiScaleAttention)
        watch(name, layer)
    with torch.inference_mode():
        for image in images:
            ready(torch.from_numpy(preprocess.apply(image).copy())[None])
    return {name: powers_of_two(np.mean(measured, axis=0)) for name, measured in sizes.items()}


def _head_sizes(tokens: Tensor) -> NDArray[np.float64]:
    """(heads, 2) sizes of the queries and keys in (heads, 3, head_dim, tokens)."""
    q, k = tokens[:, 0].relu().flatten(1), tokens[:, 1].relu()
    rank = max(1, int(q.shape[1] * TOP))
    sizes = q.kthvalue(rank).values, k.sum(-1).amax(-1) / k.shape[-1] ** 0.5
    return torch.stack(sizes, dim=-1).double().numpy()


def _module_name(layer: str) -> str:
    stage, block, part = layer.split(".")
    return f"backbone.stages.{int(stage.removeprefix('stage')) - 1}.{block.removeprefix('block')}.{part}"
