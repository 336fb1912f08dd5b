"""Convolution blocks, built from their plan in `evitseg.config`."""

from __future__ import annotations

from torch import Tensor, nn

from evitseg.config import Activation, Conv, ConvBlock


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
    """Convolutions one after the other; with `residual` their input is added to their output."""

    def __init__(self, plan: ConvBlock, act: Activation, norm_eps: float) -> None:
        super().__init__()
        for name, conv in plan.convs.items():
            self.add_module(name, ConvNormAct(conv, act, norm_eps))
        self.residual = plan.residual

    def forward(self, x: Tensor) -> Tensor:
        out = x
        for conv in self:
            out = conv(out)
        return x + out if self.residual else out
