"""Convolution blocks, built from their plan in `evitseg.architecture`."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from evitseg.architecture import Activation, Conv, ConvBlock


def activation(name: Activation) -> nn.Module:
    """The activation's module."""
    modules = {
        "hardswish": nn.Hardswish(inplace=True),
        "gelu_tanh": nn.GELU(approximate="tanh"),
        "relu": nn.ReLU(inplace=True),
    }
    return modules[name]


class ConvNormAct(nn.Sequential):
    """A convolution, followed by batch norm and an activation if the plan has them.

    Args:
        plan: the convolution's shape.
        act: the activation, used if the plan asks for one.
        norm_eps: epsilon of batch norm.
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
    """Convolutions in sequence; with `residual`, their input is added to their output.

    Attributes:
        drop_path: probability, in training, that a sample skips the convolutions; see `drop_path`.
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
        return x + drop_path(out, self.drop_path if self.training else 0.0)


def drop_path(branch: Tensor, probability: float) -> Tensor:
    """A residual branch with some samples set to zero, and the others scaled up so that the expected value stays.

    Source: stochastic depth, arXiv:1603.09382.
    """
    if not probability:
        return branch
    kept = torch.rand(len(branch), 1, 1, 1, device=branch.device) >= probability
    return branch * (kept.to(branch.dtype) / (1 - probability))
