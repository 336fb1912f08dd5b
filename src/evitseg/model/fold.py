"""A convolution together with its batch norm: one weight, one bias."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from evitseg.architecture import ModelConfig, placed_convs
from evitseg.errors import ExportError
from evitseg.model.layers import ConvNormAct
from evitseg.model.network import EfficientViT

Weights = NDArray[np.float64]


def folded(module: ConvNormAct) -> tuple[Weights, Weights | None]:
    """Weight (outputs, inputs / groups, h, w) and bias (outputs,) with batch norm inside, computed in float64."""

    def double(tensor: Tensor) -> Weights:
        return tensor.detach().to("cpu", torch.float64).numpy()

    weight = double(module.conv.weight)
    bias = None if module.conv.bias is None else double(module.conv.bias)
    norm = getattr(module, "norm", None)
    if norm is not None:
        factor = double(norm.weight) / np.sqrt(double(norm.running_var) + norm.eps)
        weight = weight * factor[:, None, None, None]
        bias = double(norm.bias) + ((0 if bias is None else bias) - double(norm.running_mean)) * factor
    return weight, bias


@torch.no_grad()
def set_folded(module: ConvNormAct, weight: Weights, bias: Weights | None) -> None:
    """Give a convolution what `folded` returns; its batch norm becomes the identity but for the bias."""
    module.conv.weight.copy_(torch.from_numpy(weight))
    norm = getattr(module, "norm", None)
    if norm is not None:
        norm.weight.fill_(1)
        norm.running_mean.fill_(0)
        norm.running_var.fill_(1 - norm.eps)
        if module.conv.bias is not None:
            module.conv.bias.fill_(0)
    place = module.conv.bias if norm is None else norm.bias
    assert (place is None) == (bias is None)
    if place is not None:
        place.copy_(torch.from_numpy(bias))


def network_of_folded(
    config: ModelConfig, weights: Sequence[tuple[NDArray[np.float32], NDArray[np.float32] | None]]
) -> EfficientViT:
    """A network from the weights of an exported model, ready to be trained or exported on.

    Its batch norms are the identity: the convolutions have absorbed them.

    Args:
        weights: kernel (outputs, inputs / groups, side, side) and bias (outputs,) of every convolution, in the order
            of `placed_convs`.
    """
    model = EfficientViT(config).eval()
    for placed, (kernel, bias) in zip(placed_convs(config), weights, strict=True):
        module = model.get_submodule(placed.module_name)
        assert isinstance(module, ConvNormAct)
        set_folded(module, kernel.astype(np.float64), None if bias is None else bias.astype(np.float64))
    return model


def in_half(weight: NDArray[Any]) -> NDArray[np.float16]:
    """Raises: ExportError where float16 cannot hold it."""
    if np.abs(weight).max() > np.finfo(np.float16).max:
        raise ExportError("a weight is larger than float16 holds (65504); export with --weights float32.")
    return weight.astype(np.float16)


def convolutions(model: nn.Module) -> dict[str, ConvNormAct]:
    """By the names of their modules."""
    return {name: module for name, module in model.named_modules() if isinstance(module, ConvNormAct)}


def with_folded_norms(model: EfficientViT) -> EfficientViT:
    """A float32 copy of the same function whose batch norms only add biases."""
    model = copy.deepcopy(model).float().eval()
    for module in convolutions(model).values():
        set_folded(module, *folded(module))
    return model
