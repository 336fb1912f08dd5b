"""The pieces between attention sums, written as `openvino_graph` writes the whole network: the same, sooner.

A piece takes and gives what `cutting` says of it; only what is inside differs.
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
from evitseg.runtime.openvino_graph import FIRST, Chain, Weights, Writer
from evitseg.tiling.graph_cut import EPS, IMAGE, SUMS, WEIGHT, WHOLE, Attention, Cut, Features, Piece

if TYPE_CHECKING:
    import openvino


def fast_piece(
    cut: Cut, piece: Piece, config: ModelConfig, preprocess: Preprocess, weights: Sequence[Weights],
    size: tuple[int, int], precision: str,
) -> openvino.Model:  # fmt: skip
    """As `Cut.model`, for one of `Cut.pieces` or `Cut.whole`; features are taken and given in the precision it runs in.

    Keys are not scaled: neither float32 nor bfloat16 needs it, and any factor cancels.
    """
    return _PieceWriter(config, preprocess, weights, size, precision).piece(cut, piece)


class _PieceWriter(Writer):
    parts = 2  # two tiles are in hand at once, and the products in the head's grow with them

    def piece(self, cut: Cut, piece: Piece) -> openvino.Model:
        import openvino

        backbone, number, is_whole = self.config.backbone, piece.number, piece.number == WHOLE
        assert isinstance(self.config.head, SegmentationHead)
        self.cut, self.parameters = cut, list[Any]()
        kept = openvino.Type.bf16 if self.low_precision else openvino.Type.f32
        # Channels last.
        given = {f: self.parameter(f.name, *self.at(f.stride), f.channels, dtype=kept) for f in piece.inputs}
        entering = {f: i for f in cut.features for i, a in enumerate(cut.attentions) if a.x == f.tensor}
        made: dict[Features, Any] = {}
        sums: list[Any] = []
        stages = stage_plans(backbone)

        before = [self.part(f"stem.block{i}", block) for i, block in enumerate(stem_plan(backbone))]
        for s in range(FIRST):
            before += [self.part(f"stage{s + 1}.block{i}", block) for i, block in enumerate(stages[s])]
        x = None
        if number == 0 or is_whole:
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
                if passed == number:
                    (feature,) = (f for f, entered in entering.items() if entered == passed)
                    made[feature] = x
                    sums = self.summands(f"{name}.attention", x, stride, block, own, cut.attentions[passed])
                elif is_whole or passed == number - 1:
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
            # As `Cut` has it: kept is the narrower of what enters the convolution and what leaves it.
            ends_here = [f for f in cut.features if f not in entering and f.stride == stride]
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
        # Converted before the axes change, not after: so OpenVINO does nothing for either.
        results = [self.ops.result(self.channels_last(self.ops.convert(made[f], kept))) for f in piece.outputs]
        if cut.attention_behind(piece) is None:
            head: Chain = [self.part(f"head.block{i}", block) for i, block in enumerate(plan.blocks)]
            head.append(self.part("head.outputs", ConvBlock(plan.outputs, residual=False)))
            results.append(self.ops.result(self.merged(merged, head, last)))
        results += [self.ops.result(value) for value in sums]
        return openvino.Model(results, self.parameters, f"piece {number}")

    def first(self, x: Any) -> Any:
        """Features as they are kept, as convolutions take them."""
        return self.ops.convert(self.channels_first(x), "f32")

    def parameter(self, name: str, *shape: int, dtype: Any = np.float32) -> Any:
        parameter = self.ops.parameter([1, *shape], dtype)
        parameter.output(0).get_tensor().set_names({name})
        self.parameters.append(parameter)
        return parameter

    def summands(
        self, name: str, x: Any, stride: int, block: AttentionBlock, own: dict[str, Weights], attention: Attention
    ) -> list[Any]:
        """What a window adds to an attention layer's sums, and two scales that are 1."""
        ops, (height, width) = self.ops, self.at(stride)
        heads, dim = block.heads_per_scale, block.head_dim
        weight = self.reshape(self.parameter(WEIGHT, 1, 1, height * width), 1, -1, 1)
        same_head = self.same_head(block)
        # Of (width, width) sums the blocks of each head with itself, keys along the columns.
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
        """What attention gives for the image's sums."""
        ops, heads, dim = self.ops, block.heads_per_scale, block.head_dim
        attention = self.cut.attentions[number]
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
