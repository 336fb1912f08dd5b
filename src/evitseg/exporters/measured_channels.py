"""Give the channels between two convolutions with ReLU about the same size, so that one 8-bit scale fits all of them.

A positive factor of a channel can move through ReLU into the next convolution. The factors are powers of two: in
float32 every result keeps its bits. No factor can move through hard-swish or GELU, so their channels stay as they are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from evitseg.exporters.measured_heads import MEASURED_ON
from evitseg.image import ImageArray
from evitseg.model.fold import folded, set_folded, with_folded_norms
from evitseg.model.layers import ConvNormAct, ConvSequence
from evitseg.model.network import EfficientViT, NormalizedModel
from evitseg.preprocess import Preprocess
from evitseg.runtime.head_factors import powers_of_two


def with_measured_channel_factors(
    model: EfficientViT, preprocess: Preprocess, images: Sequence[ImageArray]
) -> EfficientViT:
    """A copy with folded batch norms that computes the same function, with scaled channels.

    Args:
        images: of any sizes; at most `MEASURED_ON` of them are used.
    """
    network = with_folded_norms(model)
    pairs = list(_pairs(network))
    largest: dict[ConvNormAct, list[Tensor]] = {first: [] for first, _ in pairs}

    def watch(module: ConvNormAct) -> Callable[..., None]:
        return lambda _, given, features: largest[module].append(features.amax((0, 2, 3)))

    hooks = [first.register_forward_hook(watch(first)) for first, _ in pairs]
    ready = NormalizedModel(network, preprocess)
    with torch.inference_mode():
        for image in images[:: -(-len(images) // MEASURED_ON)] if pairs else ():
            ready(torch.from_numpy(preprocess.apply(image).copy())[None])
    for hook in hooks:
        hook.remove()
    for first, second in pairs:
        sizes = torch.stack(largest[first]).double().mean(0).numpy()
        weight, bias = folded(first)
        after, bias_after = folded(second)
        if second.conv.groups == 1:
            # The next weights have one step for all inputs, so what they gain in size, others lose in precision.
            columns = np.abs(after).max((0, 2, 3))
            sizes = np.sqrt(sizes / np.where(columns > 0, columns, 1))
        factors = powers_of_two(sizes)
        set_folded(first, weight * factors[:, None, None, None], None if bias is None else bias * factors)
        along: NDArray[np.float64] = factors[:, None, None, None] if second.conv.groups > 1 else factors[:, None, None]
        set_folded(second, after / along, bias_after)
    return network


def _pairs(network: EfficientViT) -> Iterator[tuple[ConvNormAct, ConvNormAct]]:
    """Convolutions with ReLU, each with the only one that reads its result."""
    for block in network.modules():
        if isinstance(block, ConvSequence):
            convs = [module for module in block if isinstance(module, ConvNormAct)]
            yield from (pair for pair in pairwise(convs) if isinstance(getattr(pair[0], "act", None), nn.ReLU))
