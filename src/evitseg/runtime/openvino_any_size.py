"""The network as a graph for OpenVINO, for images of any size: what `evitseg export` writes, made from the weights."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from evitseg.architecture import (
    AttentionBlock,
    Block,
    Conv,
    ModelConfig,
    SegmentationHead,
    head_plan,
    stage_plans,
    stem_plan,
)
from evitseg.preprocess import Preprocess
from evitseg.runtime.weights import Weights

if TYPE_CHECKING:
    import openvino

SMALLEST = 2.0**-14
"""Divisors are at least the smallest normal number of float16, as in the exported graph."""


def any_size_graph(config: ModelConfig, preprocess: Preprocess, weights: Sequence[Weights]) -> openvino.Model:
    """The network with its normalisation inside.

    Input: image (batch, height, width, 3) uint8. Output: logits (batch, classes, height / 8, width / 8) float32.

    Args:
        weights: of every convolution, in the order of `placed_convs`.
    """
    return _Graph(config, preprocess, weights).model()


class _Graph:
    def __init__(self, config: ModelConfig, preprocess: Preprocess, weights: Sequence[Weights]) -> None:
        from openvino import opset13

        self.ops = opset13
        self.config, self.preprocess = config, preprocess
        self._left = iter(weights)
        self._convs = 0

    def model(self) -> openvino.Model:
        import openvino

        ops, backbone, head = self.ops, self.config.backbone, self.config.head
        assert isinstance(head, SegmentationHead)
        image = ops.parameter(openvino.PartialShape([-1, -1, -1, 3]), np.uint8, name="image")
        mean, std = (np.array(v).reshape(1, 3, 1, 1) * 255 for v in (self.preprocess.mean, self.preprocess.std))
        pixels = ops.convert(ops.transpose(image, self._ints(0, 3, 1, 2)), "f32")
        x = ops.multiply(ops.add(pixels, self._floats(-mean)), self._floats(1 / std))
        for first in stem_plan(backbone):
            x = self._block(x, first)
        features = []
        for stage in stage_plans(backbone):
            for block in stage:
                x = self._block(x, block)
            features.append(x)
        plan, merged = head_plan(backbone, head), None
        for conv, feature, factor in zip(plan.inputs, reversed(features[1:]), (4, 2, 1), strict=True):
            y = self._conv(feature, conv)
            if factor > 1:
                y = ops.interpolate(
                    y, self._floats([factor, factor]), "cubic", "scales", cube_coeff=-0.75, axes=self._ints(2, 3)
                )
            merged = y if merged is None else ops.add(merged, y)
        for head_block in plan.blocks:
            merged = self._block(merged, head_block)
        for conv in plan.outputs.values():
            merged = self._conv(merged, conv)
        return openvino.Model([ops.result(merged)], [image], "evitseg")

    def _ints(self, *values: int) -> Any:
        return self.ops.constant(np.array(values, np.int64))

    def _floats(self, values: Any) -> Any:
        return self.ops.constant(np.asarray(values, np.float32))

    def _block(self, x: Any, block: Block) -> Any:
        if isinstance(block, AttentionBlock):
            return self._block(self.ops.add(x, self._attention(x, block)), block.local)
        y = x
        for conv in block.convs.values():
            y = self._conv(y, conv)
        return self.ops.add(x, y) if block.residual else y

    def _conv(self, x: Any, conv: Conv) -> Any:
        ops, own, pads = self.ops, next(self._left), [conv.kernel // 2] * 2
        if conv.groups == 1:
            x = ops.convolution(x, self._floats(own.kernel), [conv.stride] * 2, pads, pads, [1, 1])
        else:
            kernel = own.kernel.reshape(conv.groups, -1, *own.kernel.shape[1:])
            x = ops.group_convolution(x, self._floats(kernel), [conv.stride] * 2, pads, pads, [1, 1])
        x.set_friendly_name(f"Conv_{self._convs}")
        self._convs += 1
        if own.bias is not None:
            x = ops.add(x, self._floats(own.bias.reshape(1, -1, 1, 1)))
        if not conv.act:
            return x
        return ops.hswish(x) if self.config.backbone.activation == "hardswish" else ops.gelu(x, "tanh")

    def _attention(self, x: Any, block: AttentionBlock) -> Any:
        """What `evitseg.exporters.onnx` writes, operator by operator: tiles recognise attention by its shape."""
        ops, dim, heads = self.ops, block.head_dim, block.heads_per_scale * (1 + len(block.kernels))
        convs = block.convs
        scales = [self._conv(x, convs["qkv"])]
        for i in range(len(block.kernels)):
            depthwise = self._conv(scales[0], convs[f"aggregate.{i}.depthwise"])
            scales.append(self._conv(depthwise, convs[f"aggregate.{i}.pointwise"]))

        def at_least(value: Any) -> Any:
            return ops.maximum(value, self._floats(SMALLEST))

        tokens = ops.reshape(ops.concat(scales, 1), self._ints(0, heads, 3 * dim, -1), True)
        q, k, v = ops.variadic_split(tokens, self._ints(2), self._ints(dim, dim, dim)).outputs()
        q, k = ops.relu(q), ops.relu(k)
        query_scale = at_least(ops.reduce_max(q, self._ints(2), True))
        count = ops.convert(ops.gather(ops.shape_of(tokens), self._ints(3), self._ints(0)), "f32")
        root = ops.power(count, self._floats(-0.5))
        key_scale = ops.divide(root, at_least(ops.reduce_max(k, self._ints(2, 3), True)))
        k = ops.multiply(k, key_scale)
        context = ops.matmul(v, ops.transpose(k, self._ints(0, 1, 3, 2)), False, False)
        key_sum = ops.transpose(ops.reduce_sum(k, self._ints(3), True), self._ints(0, 1, 3, 2))
        sum_scale = at_least(ops.reduce_max(key_sum, self._ints(3), True))
        sums = ops.divide(ops.concat([context, key_sum], 2), sum_scale)
        out = ops.matmul(sums, ops.divide(q, query_scale), False, False)
        attended, divisor = ops.variadic_split(out, self._ints(2), self._ints(dim, 1)).outputs()
        if block.eps:
            eps = ops.divide(ops.multiply(key_scale, self._floats(block.eps)), sum_scale)
            divisor = ops.add(divisor, ops.divide(eps, query_scale))
        attended = ops.divide(attended, at_least(divisor))
        sides = ops.gather(ops.shape_of(x), self._ints(2, 3), self._ints(0))
        shape = ops.concat([self._ints(0, heads * dim), sides], 0)
        return self._conv(ops.reshape(attended, shape, True), convs["proj"])
