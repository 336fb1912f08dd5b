"""Convolution blocks, built from their plan in `evitseg.architecture`."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from evitseg.architecture import Activation, Conv, ConvBlock


def activation(name: Activation) -> nn.Module:
    return {"hardswish": nn.Hardswish(inplace=True), "gelu_tanh": nn.GELU(approximate="tanh")}[name]


class ConvNormAct(nn.Sequential):
    """A convolution, and batch norm and activation where the plan has them.

    Args:
        plan: its shape.
        act: activation, used where the plan asks for one.
        norm_eps: of batch norm.
    """

    def __init__(self, plan: Conv, act: Activation, norm_eps: float) -> None:
        super().__init__()
        self.conv = nn.Conv2d(
            plan.inputs, plan.outputs, plan.kernel, plan.stride, plan.kernel // 2, groups=plan.groups, bias=plan.bias
        )
        if plan.norm:
            self.norm = nn.BatchNorm2d(plan.outputs, eps=norm_eps)
        if plan.act:
            self.act = activation(act)


class ConvSequence(nn.Sequential):
    """Convolutions one after the other; with `residual` their input is added to their output.

    In training a share `drop_path` of the samples gets the input alone; see `sometimes`.
    """

    def __init__(self, plan: ConvBlock, act: Activation, norm_eps: float) -> None:
        super().__init__()
        for name, conv in plan.convs.items():
            self.add_module(name, ConvNormAct(conv, act, norm_eps))
        self.residual = plan.residual
        self.drop_path = 0.0

    def forward(self, x: Tensor) -> Tensor:
        out = x
        for conv in self:
            out = conv(out)
        if not self.residual:
            return out
        return x + sometimes(out, self.drop_path if self.training else 0.0)


def sometimes(addition: Tensor, drop_path: float) -> Tensor:
    """What is added to a residual: nothing for a share of the samples, the others' scaled up to make good for it.

    Source: stochastic depth, arXiv:1603.09382.
    """
    if not drop_path:
        return addition
    kept = torch.rand(len(addition), 1, 1, 1, device=addition.device) >= drop_path
    return addition * (kept.to(addition.dtype) / (1 - drop_path))
