"""The network as a graph of operations on integer tensors, from which full-integer files are written.

Feature maps are (1, height, width, channels), as in LiteRT; tensors of attention are (1, heads, ...). The graph says
which tensors have 16 bits and which share a scale. `integer_calibration` finds the scales.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field, replace
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from evitseg.architecture import EARLY, LOGIT_STRIDE
from evitseg.errors import ExportError
from evitseg.exporters.export_model import up_sampling
from evitseg.model.attention import AttentionSequence, MultiScaleAttention
from evitseg.model.fold import convolutions, folded
from evitseg.model.layers import ConvNormAct, ConvSequence
from evitseg.model.network import EfficientViT, SegmentationNetworkHead
from evitseg.preprocess import Preprocess

Array = NDArray[np.float64]

WIDE = (*EARLY, "head")
"""Parts of the network whose tensors have 16 bits. In the first ones, expanded channels span two orders of magnitude
more than their median, and hard-swish keeps a factor per channel from being moved through it. What the head's block
rounds changes the logits directly: 8 bits there cost half a point of mIoU."""
MIDDLE_GREY = 114
"""The pixel that is 0 inside the network, near the mean of the usual normalisation, so that padding is grey."""


@dataclass(frozen=True)
class Kernel:
    """The weights of a convolution or of an interpolation.

    Attributes:
        weight: (outputs, inputs / groups, side, side) of a convolution; (outputs, inputs) of an interpolation.
        bias: (outputs,), of a convolution.
        stride, groups: of a convolution.
        axis: of a feature map, that an interpolation lengthens.
        relu: whether negative outputs become 0.
    """

    weight: Array
    bias: Array | None = None
    stride: int = 1
    groups: int = 1
    axis: int = 0
    relu: bool = False

    @property
    def is_depthwise(self) -> bool:
        return self.groups > 1 and self.groups == len(self.weight) and self.weight.shape[1] == 1


@dataclass(frozen=True)
class IntegerNode:
    """An operation.

    Attributes:
        kind: "conv", "interpolate", "hardswish", "relu", "add", "concat", "split_heads", "split_heads_transposed",
            "merge_heads", "product", "total", "floor", "quotient" or "requantize".
        output: its tensor, which is also its name.
        inputs: names of tensors.
        kernel: of a convolution or an interpolation.
        layer: the layer of the network that it belongs to.
        part: of a convolution in attention, whether it computes queries (0), keys (1) or values (2) only.
    """

    kind: str
    output: str
    inputs: tuple[str, ...]
    kernel: Kernel | None = None
    layer: str = ""
    part: int | None = None


@dataclass
class IntegerGraph:
    """Operations in the order they run, and their tensors.

    Attributes:
        shapes: of every tensor by name; "image" is the input, "logits" the output.
        sixteen: names of the tensors with 16 bits.
        scale_of: the tensor whose scale another one has, too.
        tokens: of tensors that are sums over all tokens, the number of tokens.
        stages: names of the features that each stage ends with.
    """

    nodes: list[IntegerNode] = field(default_factory=list)
    shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)
    sixteen: set[str] = field(default_factory=set)
    scale_of: dict[str, str] = field(default_factory=dict)
    tokens: dict[str, int] = field(default_factory=dict)
    stages: list[str] = field(default_factory=list)

    def add(
        self,
        kind: str,
        name: str,
        inputs: tuple[str, ...],
        shape: tuple[int, ...],
        kernel: Kernel | None = None,
        *,
        sixteen: bool | None = None,
        scale_of: str = "",
        part: int | None = None,
    ) -> str:
        """Add an operation; returns the name of its output.

        Args:
            sixteen: whether the output has 16 bits; None for as many as the first input.
            scale_of: a tensor with the same scale; the output may come before it.
        """
        assert name not in self.shapes, name
        layer = name.split("/")[0]
        self.nodes.append(IntegerNode(kind, name, inputs, kernel, layer, part))
        self.shapes[name] = shape
        if inputs[0] in self.sixteen if sixteen is None else sixteen:
            self.sixteen.add(name)
        if scale_of:
            self.scale_of[name] = scale_of
        return name


Numbers = TypeVar("Numbers", Array, Tensor)


def of_part(numbers: Numbers, part: int, head_dim: int) -> Numbers:
    """The rows for queries (0), keys (1) or values (2) of weights or biases whose outputs are (heads, 3, head_dim)."""
    return numbers.reshape(-1, 3, head_dim, *numbers.shape[1:])[:, part].reshape(-1, *numbers.shape[1:])


def integer_graph(model: EfficientViT, preprocess: Preprocess, wide: Collection[str] | None = None) -> IntegerGraph:
    """The graph of a network at the fixed size of `preprocess`.

    Args:
        wide: parts of the network whose tensors have 16 bits; of the head, those of its blocks. None for `WIDE`, or for
            no parts if the network has ReLU in the first ones, which is for hardware without 16 bits.

    Raises: ExportError for a network that has no such graph.
    """
    if not isinstance(model.head, SegmentationNetworkHead):
        raise ExportError("a classifier predicts no masks; export a segmentation network.")
    backbone = model.config.backbone
    if backbone.activation != "hardswish" or backbone.attention_eps:
        raise ExportError("integer arithmetic is for networks of the b series; export this one with --weights int8.")
    if backbone.early_activation not in (None, "relu"):
        raise ExportError(f"integer arithmetic has no {backbone.early_activation} in the first stages.")
    if wide is None:
        wide = () if backbone.early_activation else WIDE
    return _Builder(model, preprocess, wide).graph


class _Builder:
    def __init__(self, model: EfficientViT, preprocess: Preprocess, wide: Collection[str]) -> None:
        assert preprocess.fixed is not None
        assert isinstance(model.head, SegmentationNetworkHead)
        self.graph = graph = IntegerGraph()
        self.names = {id(module): name for name, module in convolutions(model).items()}
        self.first = self.names[id(next(iter(convolutions(model).values())))]
        self.preprocess, self.parts = preprocess, wide
        height, width = preprocess.fixed
        graph.shapes["image"] = (1, height, width, 3)
        x, features = self.with_bits("image", "stem" in wide), graph.stages
        for block in model.backbone.stem:
            x = self.sequence(block, x)
        x = self.with_bits(x, "stage1" in wide)
        for number, stage in enumerate(model.backbone.stages, 1):
            assert isinstance(stage, nn.Sequential)
            for block in stage:
                x = (
                    self.attention_sequence(block, x)
                    if isinstance(block, AttentionSequence)
                    else self.sequence(block, x)
                )
            x = self.with_bits(x, f"stage{number + 1}" in wide)
            features.append(x)
        self.head(model.head, features)

    def with_bits(self, x: str, sixteen: bool) -> str:
        """The tensor with 16 or 8 bits."""
        if (x in self.graph.sixteen) == sixteen:
            return x
        name = f"{x}/{16 if sixteen else 8} bits"
        return self.graph.add("requantize", name, (x,), self.graph.shapes[x], sixteen=sixteen)

    def conv(
        self,
        module: nn.Module,
        x: str,
        part: int | None = None,
        *,
        relu: bool = False,
        name: str = "",
        scale_of: str = "",
    ) -> str:
        """A convolution and its activation.

        Args:
            part: only the outputs for queries (0), keys (1) or values (2), of a convolution in attention.
        """
        assert isinstance(module, ConvNormAct)
        layer = self.names[id(module)]
        act = getattr(module, "act", None)
        kernel = self.kernel(module, part, relu or isinstance(act, nn.ReLU))
        if layer == self.first:
            kernel = self.on_pixels(kernel)
        _, height, width, _ = self.graph.shapes[x]
        shape = (1, height // kernel.stride, width // kernel.stride, len(kernel.weight))
        name = layer if part is None else f"{layer}/{'qkv'[part]}"
        x = self.graph.add("conv", name, (x,), shape, kernel, scale_of=scale_of, part=part)
        if isinstance(act, nn.Hardswish):
            x = self.graph.add("hardswish", f"{name}/hardswish", (x,), shape)
        return x

    def kernel(self, module: ConvNormAct, part: int | None, relu: bool) -> Kernel:
        weight, bias = folded(module)
        groups = module.conv.groups
        if part is not None:
            weight = of_part(weight, part, self.head_dim)
            bias = None if bias is None else of_part(bias, part, self.head_dim)
            groups = max(1, groups // 3)
        return Kernel(weight, bias, int(module.conv.stride[0]), groups, relu=relu)

    def on_pixels(self, kernel: Kernel) -> Kernel:
        """The first convolution with normalisation inside, for pixels minus MIDDLE_GREY."""
        mean, std = (np.array(values, np.float64) * 255 for values in (self.preprocess.mean, self.preprocess.std))
        weight = kernel.weight / std[:, None, None]
        shift = (weight * (MIDDLE_GREY - mean)[:, None, None]).sum((1, 2, 3))
        return replace(kernel, weight=weight, bias=shift + (0 if kernel.bias is None else kernel.bias))

    def sequence(self, block: nn.Module, x: str) -> str:
        assert isinstance(block, ConvSequence)
        out = x
        for conv in block:
            out = self.conv(conv, out)
        if not block.residual:
            return out
        return self.graph.add("add", f"{out}/sum", (x, out), self.graph.shapes[x])

    def attention_sequence(self, block: AttentionSequence, x: str) -> str:
        out = self.attention(block.attention, x)
        x = self.graph.add("add", f"{out}/sum", (x, out), self.graph.shapes[x])
        return self.sequence(block.local, x)

    def attention(self, layer: MultiScaleAttention, x: str) -> str:
        """Queries, keys and values in tensors of their own, so that each has its scale."""
        graph, dim, heads = self.graph, layer.head_dim, layer.num_heads
        self.head_dim = dim
        where = self.names[id(layer.qkv)].removesuffix(".qkv")
        _, height, width, _ = graph.shapes[x]
        tokens = height * width
        together = []
        for part, letter in enumerate("qkv"):
            name = f"{where}/{letter}"
            first = self.conv(layer.qkv, x, part)
            kind = "requantize" if letter == "v" else "relu"
            scales = [graph.add(kind, f"{first}/{kind}", (first,), graph.shapes[first], scale_of=name)]
            for aggregate in layer.aggregate:
                assert isinstance(aggregate, nn.Sequential)
                depthwise, pointwise = aggregate
                near = self.conv(depthwise, first, part)
                scales.append(self.conv(pointwise, near, part, relu=letter != "v", scale_of=name))
            together.append(graph.add("concat", name, tuple(scales), (1, height, width, heads * dim)))
        by_token, by_channel = (1, heads, tokens, dim), (1, heads, dim, tokens)
        q, k, v = (
            graph.add(kind, f"{name}/heads", (name,), shape, scale_of=name)
            for name, kind, shape in zip(
                together,
                ("split_heads", "split_heads_transposed", "split_heads"),
                (by_token, by_channel, by_token),
                strict=True,
            )
        )
        context = graph.add("product", f"{where}/context", (k, v), (1, heads, dim, dim))
        total = graph.add("total", f"{where}/key sum", (k,), (1, heads, dim, 1))
        numerator = graph.add("product", f"{where}/numerator", (q, context), by_token)
        divisor = graph.add("product", f"{where}/divisor", (q, total), (1, heads, tokens, 1))
        positive = graph.add("floor", f"{divisor}/positive", (divisor,), (1, heads, tokens, 1), scale_of=divisor)
        graph.tokens |= dict.fromkeys((context, total, numerator, divisor), tokens)
        quotient = graph.add("quotient", f"{where}/quotient", (numerator, positive), by_token)
        shape = (1, height, width, heads * dim)
        merged = graph.add("merge_heads", f"{quotient}/merged", (quotient,), shape, scale_of=quotient)
        return self.conv(layer.proj, merged)

    def head(self, head: SegmentationNetworkHead, features: list[str]) -> None:
        graph, merged = self.graph, ""
        for conv, feature, factor in zip(head.inputs, reversed(features[1:]), (4, 2, 1), strict=True):
            x = self.conv(conv, feature)
            for axis in (2, 1) if factor > 1 else ():
                sides = list(graph.shapes[x])
                matrix = up_sampling(sides[axis], factor).double().numpy()
                sides[axis] *= factor
                name = f"{self.names[id(conv)]}/up {'across' if axis == 2 else 'down'}"
                x = graph.add("interpolate", name, (x,), tuple(sides), Kernel(matrix, axis=axis))
            merged = graph.add("add", f"{x}/sum", (merged, x), graph.shapes[x]) if merged else x
        merged = self.with_bits(merged, "head" in self.parts)
        for block in head.blocks:
            merged = self.sequence(block, merged)
        merged = self.with_bits(merged, False)
        for conv in head.outputs:
            merged = self.conv(conv, merged)
        shape = graph.shapes[merged]
        assert shape[1] * LOGIT_STRIDE == graph.shapes["image"][1]
        last = graph.nodes.pop()
        graph.shapes["logits"] = graph.shapes.pop(last.output)
        graph.nodes.append(replace(last, output="logits"))
