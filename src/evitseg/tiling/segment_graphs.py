"""Segments of the network written for OpenVINO, in the faster form that `openvino_graph` gives the whole network.

Inputs and outputs are those of `Partition.model`; only the inside differs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from evitseg.architecture import (
    AttentionBlock,
    ConvBlock,
    ModelConfig,
    SegmentationHead,
    head_plan,
    stage_plans,
    stem_plan,
)
from evitseg.preprocess import Preprocess
from evitseg.runtime.openvino_graph import FIRST, Chain, Writer
from evitseg.runtime.weights import Weights
from evitseg.tiling.graph_cut import EPS, IMAGE, SUMS, WEIGHT, AttentionNodes, Features, Partition, Segment

if TYPE_CHECKING:
    import openvino


def fast_segment(
    partition: Partition, segment: Segment, config: ModelConfig, preprocess: Preprocess, weights: Sequence[Weights],
    size: tuple[int, int], precision: str,
) -> openvino.Model:  # fmt: skip
    """A part of the network or the whole of it with given sums, for windows of one size.

    Features have the precision that the segment runs in. Keys are not scaled: float32 and bfloat16 have the range, and
    any factor cancels.
    """
    return _SegmentWriter(config, preprocess, weights, size, precision).segment(partition, segment)


class _SegmentWriter(Writer):
    parts = 2  # two tiles run at once, and the head's products grow with them

    def segment(self, partition: Partition, segment: Segment) -> openvino.Model:
        import openvino

        backbone, number, is_whole = self.config.backbone, segment.index, segment.kind == "whole"
        assert isinstance(self.config.head, SegmentationHead)
        self.partition, self.parameters = partition, list[Any]()
        dtype = openvino.Type.bf16 if self.low_precision else openvino.Type.f32
        # Channels last.
        given = {f: self.parameter(f.name, *self.at(f.stride), f.channels, dtype=dtype) for f in segment.inputs}
        entering = {f: i for f in partition.features for i, a in enumerate(partition.attentions) if a.x == f.tensor}
        made: dict[Features, Any] = {}
        sums: list[Any] = []
        stages = stage_plans(backbone)

        before = [self.part(f"stem.block{i}", block) for i, block in enumerate(stem_plan(backbone))]
        for s in range(FIRST):
            before += [self.part(f"stage{s + 1}.block{i}", block) for i, block in enumerate(stages[s])]
        x = None
        if segment.takes_image:
            image = self.ops.parameter([1, *self.size, 3], np.uint8)
            image.output(0).get_tensor().set_names({IMAGE})
            self.parameters.append(image)
            x = self.local(self.pixels(image), self.size, before)
        ends, passed = {FIRST: x}, 0
        self.exact_biases = self.low_precision
        for stage, blocks in enumerate(stages[FIRST:], start=FIRST + 1):
            for i, block in enumerate(blocks):
                name, stride = f"stage{stage}.block{i}", 2 ** (stage + 1)
                if not isinstance(block, AttentionBlock):
                    chain: Chain = [self.part(name, block)]
                    if is_whole or passed == number:
                        x = self.local(self.features(x), self.at(stride // block.stride), chain)
                    continue
                own = {key: next(self._left) for key in block.convs}
                chain = [self.part(f"{name}.local", block.local)]
                if passed == number and not is_whole:
                    (feature,) = (f for f, entered in entering.items() if entered == passed)
                    made[feature] = x
                    sums = self.summands(f"{name}.attention", x, stride, block, own, partition.attentions[passed])
                elif is_whole or passed == segment.attention_before:
                    if not is_whole:
                        (x,) = (self.first(value) for f, value in given.items() if entering.get(f) == passed)
                    x = self.ops.add(x, self.answers(f"{name}.attention", x, stride, block, own, passed))
                    x = self.local(self.features(x), self.at(stride), chain)
                passed += 1
            ends[stage] = x if is_whole or passed == number else None
        self.exact_biases = False

        plan = head_plan(backbone, self.config.head)
        merged, last = [], []
        for stage, conv in zip((4, 3, 2), plan.inputs, strict=True):
            own_head, end, stride = next(self._left), ends[stage], 2 ** (stage + 1)
            # As in `Partition`: the narrower of the convolution's input and output is stored.
            ends_here = [f for f in partition.features if f not in entering and f.stride == stride]
            keeps_input = bool(ends_here) and conv.inputs < conv.outputs and not is_whole
            if end is None and ends_here and ends_here[0] in given:
                value = given[ends_here[0]]
                if keeps_input:
                    value = self.conv(f"head.from_stage{stage}/conv", self.first(value), conv, own_head)
                merged.append(value if keeps_input else self.ops.convert(value, "f32"))
                last.append(not keeps_input)
            elif end is not None:
                after = end if keeps_input else self.conv(f"head.from_stage{stage}/conv", end, conv, own_head)
                if ends_here and ends_here[0].made_by == number and not is_whole:
                    made[ends_here[0]] = after
                merged.append(after)
                last.append(False)
        # Converting before the axes change lets OpenVINO do both at no cost.
        results = [self.ops.result(self.channels_last(self.ops.convert(made[f], dtype))) for f in segment.outputs]
        if partition.attention_after(segment) is None:
            head: Chain = [self.part(f"head.block{i}", block) for i, block in enumerate(plan.blocks)]
            head.append(self.part("head.outputs", ConvBlock(plan.outputs, residual=False)))
            results.append(self.ops.result(self.merged(merged, head, last)))
        results += [self.ops.result(value) for value in sums]
        return openvino.Model(results, self.parameters, str(segment))

    def first(self, x: Any) -> Any:
        """Stored features in the layout and type that convolutions read."""
        return self.ops.convert(self.channels_first(x), "f32")

    def parameter(self, name: str, *shape: int, dtype: Any = np.float32) -> Any:
        parameter = self.ops.parameter([1, *shape], dtype)
        parameter.output(0).get_tensor().set_names({name})
        self.parameters.append(parameter)
        return parameter

    def summands(
        self, name: str, x: Any, stride: int, block: AttentionBlock, own: dict[str, Weights], attention: AttentionNodes
    ) -> list[Any]:
        """A window's contribution to an attention layer's sums, and two scales that are 1."""
        ops, (height, width) = self.ops, self.at(stride)
        heads, dim = block.heads_per_scale, block.head_dim
        weight = self.reshape(self.parameter(WEIGHT, 1, 1, height * width), 1, -1, 1)
        same_head = self.same_head(block)
        # Picks the blocks of each head with itself from the (width, width) sums; keys along the columns.
        picks = self.constant(np.kron(np.ones((heads, 1)), np.eye(dim))[None])  # (1, width, dim)
        parts = []
        for i, (k, v) in enumerate(self.tokens(name, x, block, own, "kv")):
            k = ops.multiply(k, weight)
            context = self.product(f"{name}/values×keys.{i}", v, k, transposed=True)  # (1, width, width)
            values = self.reshape(ops.matmul(ops.multiply(context, same_head), picks, False, False), 1, heads, dim, dim)
            keys = self.reshape(self.key_sum(k, (height, width)), 1, heads, 1, dim)
            parts.append(ops.concat([values, keys], 2))
        ones = [self.constant(np.ones((1, attention.heads, 1, 1))) for _ in range(2)]
        return [self.joined(parts, 1), *ones]

    def answers(
        self, name: str, x: Any, stride: int, block: AttentionBlock, own: dict[str, Weights], number: int
    ) -> Any:
        """The attention layer's output for given sums of the image."""
        ops, heads, dim = self.ops, block.heads_per_scale, block.head_dim
        attention = self.partition.attentions[number]
        sums = self.parameter(f"{SUMS}{number}", attention.heads, dim + 1, dim)
        eps = self.parameter(f"{EPS}{number}", attention.heads, 1, 1) if attention.eps_term else None
        same_head = self.same_head(block)
        attended = None
        for i, (q,) in enumerate(self.tokens(name, x, block, own, "q")):
            values = self.slice(sums, 1, i * heads, heads, 0, dim)
            keys = self.slice(sums, 1, i * heads, heads, dim, 1)
            values = self.reshape(ops.transpose(values, self.constant([0, 1, 3, 2], np.int64)), 1, block.width, dim)
            context = ops.multiply(ops.concat([values] * heads, 2), same_head)
            key_sum = ops.multiply(self.reshape(keys, 1, block.width, 1), same_head)
            divisor = self.product(f"{name}/divisor.{i}", q, key_sum)
            more = None
            if eps is not None:
                own_eps = self.slice(eps, 1, i * heads, heads, 0, 1)
                more = self.reshape(ops.concat([own_eps] * dim, 2), 1, 1, block.width)
            y = self.answered(f"{name}/queries×context.{i}", q, context, divisor, more)
            y = self.projected(name, i, y, self.at(stride), block, own)
            attended = y if attended is None else ops.add(attended, y)
        return attended
