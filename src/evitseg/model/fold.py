"""Fold batch norm into its convolution: one weight and one bias."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from evitseg.architecture import ModelConfig, placed_convs
from evitseg.errors import ExportError
from evitseg.model.layers import ConvNormAct
from evitseg.model.network import EfficientViT

_Float64 = NDArray[np.float64]
FoldedWeights: TypeAlias = tuple[NDArray[np.float32], NDArray[np.float32] | None]
"""A convolution's kernel (outputs, inputs / groups, side, side) and bias (outputs,) or None."""


def folded(module: ConvNormAct) -> tuple[_Float64, _Float64 | None]:
    """Weight (outputs, inputs / groups, h, w) and bias (outputs,) with batch norm inside, computed in float64."""

    def double(tensor: Tensor) -> _Float64:
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
def set_folded(module: ConvNormAct, weight: _Float64, bias: _Float64 | None) -> None:
    """Set a convolution to what `folded` returns; its batch norm then only adds the bias."""
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


def folded_weights(model: EfficientViT) -> list[FoldedWeights]:
    """Kernel and bias of every convolution in float32, in the order of `placed_convs`."""
    weights = []
    for placed in placed_convs(model.config):
        module = model.get_submodule(placed.module_name)
        assert isinstance(module, ConvNormAct)
        kernel, bias = folded(module)
        weights.append((kernel.astype(np.float32), None if bias is None else bias.astype(np.float32)))
    return weights


def network_of_folded(config: ModelConfig, weights: Sequence[FoldedWeights]) -> EfficientViT:
    """A network with the weights of an exported model, ready to be trained or exported.

    Its batch norms only add biases, because the weights contain them.

    Args:
        weights: of every convolution, in the order of `placed_convs`.
    """
    model = EfficientViT(config).eval()
    for placed, (kernel, bias) in zip(placed_convs(config), weights, strict=True):
        module = model.get_submodule(placed.module_name)
        assert isinstance(module, ConvNormAct)
        set_folded(module, kernel.astype(np.float64), None if bias is None else bias.astype(np.float64))
    return model


def in_half(weight: NDArray[Any]) -> NDArray[np.float16]:
    """A weight in float16. Raises: ExportError if it is too large."""
    if np.abs(weight).max() > np.finfo(np.float16).max:
        raise ExportError("a weight is larger than float16's maximum (65504); export with --weights float32.")
    return weight.astype(np.float16)


def convolutions(model: nn.Module) -> dict[str, ConvNormAct]:
    """A network's convolutions by the names of their modules."""
    return {name: module for name, module in model.named_modules() if isinstance(module, ConvNormAct)}


def with_folded_norms(model: EfficientViT) -> EfficientViT:
    """A float32 copy that computes the same function, with batch norms that only add biases."""
    model = copy.deepcopy(model).float().eval()
    for module in convolutions(model).values():
        set_folded(module, *folded(module))
    return model
