"""Replace hard-swish in the first stages by ReLU, fitted so that the network knows nearly what it knew before.

Each channel's a · relu(x + d) + c is fitted to the hard-swish of the original network by least squares, layer by
layer. The factor and the shift go into the convolution before, the constant into the bias of the one after. At the end
of each block, the weights of the last convolution are fitted, too, so that the block's output is the original one; that
also corrects errors of the blocks before. On CamVid, 96 % of the mask's pixels stay the same; ReLU alone leaves a
network that recognises nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from evitseg.image import ImageArray
from evitseg.model.fold import folded, set_folded, with_folded_norms
from evitseg.model.layers import ConvNormAct, ConvSequence
from evitseg.model.network import EfficientViT, NormalizedModel
from evitseg.preprocess import Preprocess

Array = NDArray[np.float64]

FITTED_ON = 4
"""Maximum number of images."""
PIXELS = 16_000
"""Maximum number of pixels of a feature map, over all images, that a layer is fitted on. They are random: with every
second row and column, 4 points fewer of the mask's pixels stayed the same. In enlarged images, all of these lie at the
same place between the pixels of the original."""
RIDGE = 0.01
"""How much changed weights of a block's last convolution cost, relative to the error that they avoid."""
SHIFTS = np.linspace(-1, 3.5, 19)
"""The shifts that are tried; hard-swish differs from ReLU between -3 and 3."""
SMALLEST_FACTOR, LARGEST_FACTOR = 1e-3, 1.5
"""Hard-swish is nowhere steeper than 1.5; a channel that hardly varies on the images would get any factor."""


@torch.no_grad()
def fitted_to_relu(network: EfficientViT, preprocess: Preprocess, images: Sequence[ImageArray]) -> EfficientViT:
    """A copy with folded batch norms whose ReLUs in the first stages are fitted to hard-swish.

    Args:
        network: has ReLU in the first stages, and weights that were trained with hard-swish there.
        images: of the kind the network will see, of any sizes; at most `FITTED_ON` are used.
    """
    backbone = network.config.backbone
    assert backbone.early_activation == "relu"
    assert backbone.activation == "hardswish"
    new = with_folded_norms(network)
    old = EfficientViT(replace(network.config, backbone=replace(backbone, early_activation=None))).eval()
    old.load_state_dict(new.state_dict())
    chosen = images[:: -(-len(images) // FITTED_ON)]
    size = preprocess.apply(chosen[0]).shape
    fixed = replace(preprocess, fixed=(size[0], size[1]))
    ready = NormalizedModel(new, preprocess)
    stack = torch.from_numpy(np.stack([fixed.apply(image) for image in chosen])).permute(0, 3, 1, 2)
    exact = fitted = (stack.float() + ready.shift) * ready.scale
    generator = torch.Generator().manual_seed(0)
    for before, after in zip(_early_blocks(old), _early_blocks(new), strict=True):
        exact, fitted = _fit_block(before, after, exact, fitted, generator)
    return new


def _early_blocks(network: EfficientViT) -> list[ConvSequence]:
    blocks = []
    for part in (network.backbone.stem, *network.backbone.stages[:2]):
        assert isinstance(part, nn.Sequential)
        blocks += [block for block in part if isinstance(block, ConvSequence)]
    return blocks


def _fit_block(
    before: ConvSequence, after: ConvSequence, exact: Tensor, fitted: Tensor, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Fit a block of the new network; returns the features of both networks after it."""
    inputs = exact, fitted
    convs = [[module for module in block if isinstance(module, ConvNormAct)] for block in (before, after)]
    following = dict(pairwise(convs[1]))
    for old, new in zip(*convs, strict=True):
        exact = old.norm(old.conv(exact))
        pixels = _Pixels(exact, generator)
        weight, bias = folded(new)
        assert bias is not None
        if not hasattr(new, "act"):
            wanted = pixels(exact)
            if before.residual:  # correct what the features that are added got wrong, too
                wanted = wanted + pixels(inputs[0]) - pixels(inputs[1])
            set_folded(new, *_matched(pixels(fitted), wanted, weight, bias))
            fitted = new.norm(new.conv(fitted))
            continue
        fitted = new.norm(new.conv(fitted))
        exact = F.hardswish(exact)
        factor, shift, constant = _fit(pixels(fitted), pixels(exact), new in following)
        numbers = [values.double().numpy() for values in (factor, shift, constant)]
        set_folded(new, weight * numbers[0][:, None, None, None], (bias + numbers[1]) * numbers[0])
        fitted = ((fitted + shift[:, None, None]) * factor[:, None, None]).relu()
        if new in following:
            weight, bias = folded(following[new])
            assert bias is not None
            taps = weight.sum((2, 3))
            grouped = following[new].conv.groups > 1
            set_folded(following[new], weight, bias + (taps[:, 0] * numbers[2] if grouped else taps @ numbers[2]))
    if before.residual:
        return exact + inputs[0], fitted + inputs[1]
    return exact, fitted


class _Pixels:
    """The same random pixels of feature maps of one size, as (channels, pixels)."""

    def __init__(self, features: Tensor, generator: torch.Generator) -> None:
        count, _, height, width = features.shape
        chosen = torch.randperm(count * height * width, generator=generator)[:PIXELS]
        self._at = torch.unravel_index(chosen, (count, height, width))

    def __call__(self, features: Tensor) -> Tensor:
        image, row, column = self._at
        return features[image, :, row, column].T


def _matched(x: Tensor, target: Tensor, weight: Array, bias: Array) -> tuple[Array, Array]:
    """The weight and bias of a 1x1 convolution that give the target with the least squared error.

    Args:
        x: (inputs, pixels).
        target: (outputs, pixels).
        weight, bias: of the original; the more a channel of `x` varies, the further its weights may go from there.
    """
    given, wanted = x.double().numpy(), target.double().numpy()
    old = weight[:, :, 0, 0]
    missing = wanted - old @ given - bias[:, None]
    mean, missing_mean = given.mean(1, keepdims=True), missing.mean(1, keepdims=True)
    given, missing = given - mean, missing - missing_mean
    products = given @ given.T / given.shape[1]
    squares = np.diag(products)
    penalty = np.diag(RIDGE * (squares + squares.mean()) + 1e-12)
    change = np.linalg.solve(products + penalty, given @ missing.T / given.shape[1]).T
    return (old + change)[:, :, None, None], bias + (missing_mean - change @ mean)[:, 0]


def _fit(x: Tensor, target: Tensor, with_constant: bool) -> tuple[Tensor, Tensor, Tensor]:
    """The factor, shift and constant of every channel.

    Args:
        x: (channels, pixels) before ReLU.
        target: what the fitted ReLU should give.
        with_constant: whether there is a constant; it is 0 otherwise.
    """
    mean = target.mean(1, keepdim=True) * with_constant
    best = torch.stack([torch.full_like(mean, torch.inf), *[torch.zeros_like(mean)] * 3])
    for shift in SHIFTS:
        y = (x + shift).relu()
        center = y.mean(1, keepdim=True) * with_constant
        products, squares = (((y - center) * other).mean(1, keepdim=True) for other in (target - mean, y - center))
        factor = (products / squares.clamp(min=1e-12)).clamp(SMALLEST_FACTOR, LARGEST_FACTOR)
        constant = mean - factor * center
        error = (factor * y + constant - target).square().mean(1, keepdim=True)
        best = torch.where(
            error < best[0], torch.stack([error, factor, torch.full_like(factor, shift), constant]), best
        )
    return best[1].flatten(), best[2].flatten(), best[3].flatten()
