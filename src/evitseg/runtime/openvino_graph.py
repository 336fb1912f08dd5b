"""The network written for OpenVINO on a CPU: the function of the exported model's graph, in a third less time.

Three things differ from the graph in the file, none of which changes the function:

- What lies before attention is local, and its features are by far the largest: at 1024×2048 B0 writes and reads 64 MB
  at stride 2. With the size of the image known, this part runs tile by tile, each tile through all its layers while
  they are in the processor's cache. Tiles overlap by the receptive field, rows and columns that a tile's own border
  has spoilt are dropped, and the true border is a tile's border: every pixel comes out as from the whole image.
- OpenVINO keeps features with the channels last, where one head's channels cannot be cut out without a copy. So all
  heads of a scale are one matrix product, from which a mask keeps the blocks of each head with itself: more sums, and
  no copies. Queries, keys and values are convolutions of their own, and so are the scales' parts of the projection.
- Bicubic up-sampling is two products with fixed matrices, the last of which also adds stage 3 to stage 4.

`benchmarks/peers.py` measures it beside plain conversions.
"""

from __future__ import annotations

import platform
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from evitseg.architecture import (
    LOGIT_STRIDE,
    AttentionBlock,
    Block,
    Conv,
    ConvBlock,
    ModelConfig,
    SegmentationHead,
    head_plan,
    stage_plans,
    stem_plan,
)
from evitseg.errors import WeightsError
from evitseg.preprocess import Preprocess
from evitseg.runtime.upsample import bicubic_matrix
from evitseg.runtime.weights import Weights, check_weights, strange_graph

if TYPE_CHECKING:
    import openvino

FIRST = 2
"""Stages before the first that may attend; they run with the stem, tile by tile."""
TILE_BYTES = 8 * 2**20
"""What a tile's largest features may take."""
SMALLEST_DIVISOR = 2.0**-100
"""Keeps a query that no key matches at 0; far below every sum of keys that matters."""


def writes_fast(precision: str) -> bool:
    """Whether graphs written here are meant for this processor and precision."""
    return precision in ("float32", "bfloat16") and platform.machine() in ("x86_64", "AMD64")


def read_weights(model: openvino.Model, config: ModelConfig, model_file: Path) -> list[Weights]:
    """The convolutions' weights of an exported model's graph, in the order of the plan.

    Raises: WeightsError for a graph that is not the one `evitseg export` writes for this configuration.
    """
    from openvino.passes import ConstantFolding, Manager

    model = model.clone()
    passes = Manager()
    passes.register_pass(ConstantFolding())  # a bias is a small graph of its own
    passes.run_passes(model)
    found: dict[int, Weights] = {}
    for node in model.get_ops():
        try:
            number = re.match(r"Conv_(\d+)", node.get_friendly_name())
        except UnicodeDecodeError as error:
            raise strange_graph(model_file) from error
        if number is None or node.get_type_name() not in ("Convolution", "GroupConvolution"):
            continue
        kernel = _value(node.input_value(1).get_node())
        follows = [target.get_node() for target in node.output(0).get_target_inputs()]
        added = [node for node in follows if node.get_type_name() == "Add" and _is_constant(node.input_value(1))]
        bias = _value(added[0].input_value(1).get_node()).reshape(-1) if len(follows) == 1 and added else None
        found[int(number[1])] = Weights(kernel.reshape(-1, *kernel.shape[-3:]), bias)
    weights = [found[number] for number in sorted(found)]
    check_weights(weights, config, model_file)
    return weights


def _is_constant(value: openvino.Output) -> bool:
    node = value.get_node()
    return node.get_type_name() == "Constant" or (bool(node.inputs()) and all(map(_is_constant, node.input_values())))


def _value(node: openvino.Node) -> NDArray[np.float32]:
    """The values of a constant. OpenVINO restores one that is stored smaller by arithmetic in the graph."""
    if node.get_type_name() == "Constant":
        return np.array(node.data, np.float32)
    first, *others = (_value(value.get_node()) for value in node.input_values())
    match node.get_type_name(), others:
        case "Convert", []:
            return first
        case "Multiply", [factor]:
            return first * factor
        case "Subtract", [zero]:
            return first - zero
        case "Reshape", [shape]:
            return first.reshape(shape.astype(np.int64))
        case kind, _:
            raise WeightsError(f"weights are stored with {kind}, which evitseg export does not write; export again.")


@dataclass(frozen=True)
class Tile:
    """A piece of the part that runs in tiles, along one side of the image.

    Attributes:
        start, stop: of its input, in pixels.
        skip, keep: features at its beginning that its own border has spoilt, and how many come after them that count.
    """

    start: int
    stop: int
    skip: int
    keep: int


def tiles(side: int, count: int, convs: Sequence[Conv]) -> list[Tile]:
    """A side of the image in so many pieces, each with what its features see."""
    stride = prod(conv.stride for conv in convs)
    edges = [round(i * (side // stride) / count) for i in range(count + 1)]
    pieces = []
    for first, last in pairwise(edges):
        low, high = first, last
        for conv in reversed(convs):
            low, high = low * conv.stride - conv.kernel // 2, high * conv.stride + conv.kernel // 2
        start, stop = max(0, low // stride * stride), min(side, -(-high // stride) * stride)
        pieces.append(Tile(start, stop, first - start // stride, last - first))
    return pieces


def tile_counts(size: tuple[int, int], convs: Sequence[Conv], number_bytes: int) -> tuple[int, int]:
    """How many rows and columns of tiles: the least work, with the largest features of a tile within `TILE_BYTES`."""
    stride, per_pixel = 1, 0.0
    for conv in convs:
        stride *= conv.stride
        per_pixel = max(per_pixel, conv.outputs * number_bytes / stride**2)
    pixels = TILE_BYTES / per_pixel

    def sides(side: int, count: int) -> list[int]:
        return [tile.stop - tile.start for tile in tiles(side, count, convs)]

    best, least = (1, 1), float("inf")
    most = [max(1, side // (16 * stride)) for side in size]
    for rows in range(1, most[0] + 1):
        heights = sides(size[0], rows)
        # The fewest columns that are narrow enough; more only add overlap.
        for columns in range(1, most[1] + 1):
            widths = sides(size[1], columns)
            if max(heights) * max(widths) <= pixels or columns == most[1]:
                work = sum(heights) * sum(widths) + (max(heights) * max(widths) > pixels) * 1e12
                if work < least:
                    best, least = (rows, columns), work
                break
    return best


def fast_graph(
    config: ModelConfig, preprocess: Preprocess, weights: Sequence[Weights], size: tuple[int, int], precision: str
) -> openvino.Model:
    """The network with its normalisation inside, for images of one size.

    Input: image (1, height, width, 3) uint8. Output: logits (1, classes, height / 8, width / 8) float32.

    Args:
        weights: as `read_weights` gives them.
        size: (height, width) in pixels.
        precision: of the arithmetic it will run in, "float32" or "bfloat16", whose ranges need no scaled attention.
    """
    return Writer(config, preprocess, weights, size, precision).model()


Chain = list[tuple[str, ConvBlock, dict[str, Weights]]]
"""Blocks one after the other, each with its name in the graph and its weights."""


class Writer:
    parts = 1
    """Of `TILE_BYTES`: how many a tile of the head takes one of."""

    def __init__(
        self,
        config: ModelConfig,
        preprocess: Preprocess,
        weights: Sequence[Weights],
        size: tuple[int, int],
        precision: str,
    ) -> None:
        from openvino import opset13

        self.ops = opset13
        self.config, self.preprocess, self.size = config, preprocess, size
        self.act = config.backbone.activation
        self.low_precision = precision != "float32"
        self.exact_biases = False
        self._left = iter(weights)

    def model(self) -> openvino.Model:
        import openvino

        backbone = self.config.backbone
        image = self.ops.parameter([1, *self.size, 3], np.uint8, name="image")
        stages = stage_plans(backbone)
        before: list[tuple[str, Block]] = [(f"stem.block{i}", block) for i, block in enumerate(stem_plan(backbone))]
        before += [(f"stage{s + 1}.block{i}", block) for s in range(FIRST) for i, block in enumerate(stages[s])]
        x = self.local(self.pixels(image), self.size, [self.part(name, block) for name, block in before])
        features = [x]
        # OpenVINO 2026.4 rounds a convolution's bias to bfloat16 with everything else. A bias is added in float32 if it
        # does not directly follow its convolution, so `conv` puts a limit that no number reaches between the two. Where
        # it matters is in these stages, whose biases are large because no batch norm follows their blocks' first
        # convolutions; everywhere would cost another twentieth of the time (docs/results/speed.md).
        self.exact_biases = self.low_precision
        for number, blocks in enumerate(stages[FIRST:], start=FIRST + 1):
            for i, block in enumerate(blocks):
                name, size = f"stage{number}.block{i}", self.at(2 ** (number + 1))
                if isinstance(block, AttentionBlock):
                    own = {key: next(self._left) for key in block.convs}
                    x = self.ops.add(x, self.attention(f"{name}.attention", x, size, block, own))
                    x = self.local(self.features(x), size, [self.part(f"{name}.local", block.local)])
                else:
                    x = self.local(
                        self.features(x), self.at(2 ** (number + 1) // block.stride), [self.part(name, block)]
                    )
            features.append(x)
        self.exact_biases = False
        return openvino.Model([self.ops.result(self.head(features))], [image], "evitseg")

    def at(self, stride: int) -> tuple[int, int]:
        """(height, width) of the features at a stride."""
        return self.size[0] // stride, self.size[1] // stride

    def part(self, name: str, block: Block) -> tuple[str, ConvBlock, dict[str, Weights]]:
        """A block with the next weights."""
        assert isinstance(block, ConvBlock)
        return name, block, {key: next(self._left) for key in block.convs}

    def constant(self, values: Any, dtype: type = np.float32) -> Any:
        return self.ops.constant(np.asarray(values, dtype))

    def conv(self, name: str, x: Any, conv: Conv, own: Weights) -> Any:
        ops, pads = self.ops, [conv.kernel // 2] * 2
        if conv.groups == 1:
            x = ops.convolution(x, self.constant(own.kernel), [conv.stride] * 2, pads, pads, [1, 1])
        else:
            kernel = own.kernel.reshape(conv.groups, -1, *own.kernel.shape[1:])
            x = ops.group_convolution(x, self.constant(kernel), [conv.stride] * 2, pads, pads, [1, 1])
        x.set_friendly_name(name)
        if own.bias is not None:
            if self.exact_biases:
                x = ops.clamp(x, -1e30, 1e30)
            x = ops.add(x, self.constant(own.bias.reshape(1, -1, 1, 1)))
        if not conv.act:
            return x
        return ops.hswish(x) if self.act == "hardswish" else ops.gelu(x, "tanh")

    def local(self, cut: Callable[[Tile, Tile], Any], size: tuple[int, int], chain: Chain, parts: int = 1) -> Any:
        """Convolution blocks, tile by tile where their features are large.

        Args:
            cut: gives a tile of their input, from its rows and its columns.
            size: (height, width) of that input.
            parts: of `TILE_BYTES`, of which a tile may take one.
        """
        convs = [conv for _, block, _ in chain for conv in block.convs.values()]
        counts = tile_counts(size, convs, parts * (2 if self.low_precision else 4))
        lines = []
        for r, down in enumerate(tiles(size[0], counts[0], convs)):
            line = []
            for c, across in enumerate(tiles(size[1], counts[1], convs)):
                x = cut(down, across)
                for name, block, own in chain:
                    y = x
                    for key, conv in block.convs.items():
                        y = self.conv(f"{name}/{key}" + f" tile {r},{c}" * (counts != (1, 1)), y, conv, own[key])
                    x = self.ops.add(x, y) if block.residual else y
                line.append(self.slice(x, 2, down.skip, down.keep, across.skip, across.keep))
            lines.append(self.joined(line, 3))
        return self.joined(lines, 2)

    def joined(self, parts: list[Any], axis: int) -> Any:
        return self.ops.concat(parts, axis) if len(parts) > 1 else parts[0]

    def slice(self, x: Any, axis: int, top: int, height: int, left: int, width: int) -> Any:
        """Of two axes that follow each other; what is whole is not cut."""
        spans = [(axis, top, height), (axis + 1, left, width)]
        cut = [(i, at, at + length) for i, at, length in spans if (at, length) != (0, x.shape[i])]
        if not cut:
            return x
        axes, starts, stops = (self.constant(values, np.int64) for values in zip(*cut, strict=True))
        return self.ops.slice(x, starts, stops, self.constant([1] * len(cut), np.int64), axes)

    def features(self, x: Any) -> Callable[[Tile, Tile], Any]:
        """Tiles of features, for `local`."""
        return lambda down, across: self.slice(
            x, 2, down.start, down.stop - down.start, across.start, across.stop - across.start
        )

    def pixels(self, image: Any) -> Callable[[Tile, Tile], Any]:
        """Tiles of the image, normalised."""
        ops = self.ops
        mean, std = (np.array(v, np.float64) * 255 for v in (self.preprocess.mean, self.preprocess.std))

        def cut(down: Tile, across: Tile) -> Any:
            x = self.slice(image, 1, down.start, down.stop - down.start, across.start, across.stop - across.start)
            x = ops.multiply(ops.add(ops.convert(x, "f32"), self.constant(-mean)), self.constant(1 / std))
            x.set_friendly_name(f"input/normalise tile {down.start},{across.start}")
            return self.channels_first(x)  # last until here: so the change of axes costs nothing

        return cut

    def channels_first(self, x: Any) -> Any:
        return self.ops.transpose(x, self.constant([0, 3, 1, 2], np.int64))

    def channels_last(self, x: Any) -> Any:
        return self.ops.transpose(x, self.constant([0, 2, 3, 1], np.int64))

    def reshape(self, x: Any, *shape: int) -> Any:
        """-1 takes what is left."""
        return self.ops.reshape(x, self.constant(shape, np.int64), False)

    def attention(
        self, name: str, x: Any, size: tuple[int, int], block: AttentionBlock, own: dict[str, Weights]
    ) -> Any:
        """Args: size: (height, width) of `x`."""
        ops, width = self.ops, block.width
        same_head = self.same_head(block)
        attended = None
        for i, (q, k, v) in enumerate(self.tokens(name, x, block, own, "qkv")):
            context = ops.multiply(self.product(f"{name}/keys×values.{i}", k, v, transposed=True), same_head)
            key_sum = self.reshape(self.key_sum(k, size), 1, width, 1)
            divisor = self.product(f"{name}/divisor.{i}", q, ops.multiply(key_sum, same_head))
            # A divisor of the same size for every channel of a head: no head needs to be cut out.
            eps = self.constant(block.eps) if block.eps else None
            y = self.answered(f"{name}/queries×context.{i}", q, context, divisor, eps)
            y = self.projected(name, i, y, size, block, own)
            attended = y if attended is None else ops.add(attended, y)
        return attended

    def key_sum(self, k: Any, size: tuple[int, int]) -> Any:
        """(1, 1, width): the sum over tokens; in float32 of rows, and of those.

        OpenVINO 2026.4 adds up one float32 number after the other, and was off by a relative 5e-5 for the 65,536 tokens
        of a B1. The change of shape keeps it from making one sum of the two. In bfloat16 it would round the rows'.

        Args:
            size: (height, width) of the tokens.
        """
        over = self.constant([1], np.int64)
        if self.low_precision:
            return self.ops.reduce_sum(k, over, True)
        rows = self.ops.reduce_sum(self.reshape(k, 1, *size, -1), self.constant([2], np.int64), True)
        return self.ops.reduce_sum(self.reshape(rows, 1, size[0], -1), over, True)

    def same_head(self, block: AttentionBlock) -> Any:
        """1 where two of a scale's channels are of one head."""
        return self.constant(np.kron(np.eye(block.heads_per_scale), np.ones((block.head_dim, block.head_dim)))[None])

    def tokens(self, name: str, x: Any, block: AttentionBlock, own: dict[str, Weights], parts: str) -> list[list[Any]]:
        """For every scale those of queries, keys and values that are asked for, such as "kv": (1, tokens, width)."""
        ops, width, dim = self.ops, block.width, block.head_dim
        heads = block.heads_per_scale
        # The published channels are head by head its q, k and v; here they are all heads' q, then k, then v.
        order = np.arange(3 * width).reshape(heads, 3, dim).transpose(1, 0, 2).reshape(3, width)
        one = Conv(width, width, norm=False)
        chosen = [(letter, order["qkv".index(letter)]) for letter in parts]
        scales = [
            [
                self.conv(f"{name}/qkv.{letter}", x, one, Weights(own["qkv"].kernel[channels], None))
                for letter, channels in chosen
            ]
        ]
        for i, kernel in enumerate(block.kernels):
            around = Conv(width, width, kernel, groups=width, norm=False)
            mixing = Conv(width, width, groups=heads, norm=False)
            depthwise, pointwise = (own[f"aggregate.{i}.{part}"].kernel for part in ("depthwise", "pointwise"))
            scale = []
            for (letter, channels), y in zip(chosen, scales[0], strict=True):
                y = self.conv(f"{name}/aggregate.{i}.depthwise.{letter}", y, around, Weights(depthwise[channels], None))
                y = self.conv(f"{name}/aggregate.{i}.pointwise.{letter}", y, mixing, Weights(pointwise[channels], None))
                scale.append(y)
            scales.append(scale)
        return [
            [
                self.reshape(self.channels_last(y if letter == "v" else ops.relu(y)), 1, -1, width)
                for letter, y in zip(parts, scale, strict=True)
            ]
            for scale in scales
        ]

    def answered(self, name: str, q: Any, context: Any, divisor: Any, eps: Any) -> Any:
        """(1, tokens, width). Args: eps: what is added to the divisor, or None."""
        ops = self.ops
        divisor = ops.add(divisor, eps) if eps is not None else ops.maximum(divisor, self.constant(SMALLEST_DIVISOR))
        return ops.divide(self.product(name, q, context), divisor)

    def projected(
        self, name: str, scale: int, y: Any, size: tuple[int, int], block: AttentionBlock, own: dict[str, Weights]
    ) -> Any:
        """One scale's part of what attention gives: (1, width, *size)."""
        width = block.width
        y = self.channels_first(self.reshape(y, 1, *size, width))
        part = own["proj"].kernel[:, scale * width : (scale + 1) * width]
        bias = own["proj"].bias if scale == len(block.kernels) else None
        return self.conv(f"{name}/proj.{scale}", y, Conv(width, width, norm=False), Weights(part, bias))

    def product(self, name: str, one: Any, other: Any, transposed: bool = False) -> Any:
        x = self.ops.matmul(one, other, transposed, False)
        x.set_friendly_name(name)
        return x

    def head(self, stages: list[Any]) -> Any:
        """Args: stages: the features of stages 2, 3 and 4."""
        config = self.config
        assert isinstance(config.head, SegmentationHead)
        plan = head_plan(config.backbone, config.head)
        own = [next(self._left) for _ in plan.inputs]
        merged = [
            self.conv(f"head.from_stage{number}/conv", feature, conv, weights)
            for number, conv, feature, weights in zip((4, 3, 2), plan.inputs, reversed(stages), own, strict=True)
        ]
        chain = [self.part(f"head.block{i}", block) for i, block in enumerate(plan.blocks)]
        chain.append(self.part("head.outputs", ConvBlock(plan.outputs, residual=False)))
        return self.merged(merged, chain)

    def merged(self, features: list[Any], chain: Chain, last: Sequence[bool] = (False, False, False)) -> Any:
        """The logits.

        Args:
            features: what the head's convolutions make of stages 4, 3 and 2.
            chain: the head's blocks.
            last: which of the features have their channels last. What a convolution gives is better taken as it is.
        """
        coarse, middle, fine = features
        size = self.at(LOGIT_STRIDE)

        def cut(down: Tile, across: Tile) -> Any:
            height, width = down.stop - down.start, across.stop - across.start
            rows, wide = [], []
            for factor, x, is_last in ((4, coarse, last[0]), (2, middle, last[1])):
                (top, bottom, vertical), (left, right, horizontal) = (
                    _bicubic(tile, side, factor) for tile, side in zip((down, across), size, strict=True)
                )
                x = self.slice(x, 1 if is_last else 2, top, bottom - top, left, right - left)
                x = x if is_last else self.channels_last(x)
                x = self.product(
                    f"head.up/width.{factor} tile {down.start},{across.start}", self.constant(horizontal), x
                )
                wide.append(self.reshape(x, bottom - top, -1))
                rows.append(vertical)
            tall = self.product(
                f"head.up/height tile {down.start},{across.start}",
                self.constant(np.concatenate(rows, axis=1)),
                self.joined(wide, 0),
            )
            x = self.reshape(tall, 1, height, width, -1)
            if last[2]:
                x = self.ops.add(x, self.slice(fine, 1, down.start, height, across.start, width))
                return self.channels_first(x)
            return self.ops.add(self.channels_first(x), self.slice(fine, 2, down.start, height, across.start, width))

        return self.local(cut, size, chain, self.parts)


def _bicubic(tile: Tile, side: int, factor: int) -> tuple[int, int, NDArray[np.float32]]:
    """What a tile needs of features that are `factor` times smaller: from where, to where, and the weights."""
    first, last = max(0, tile.start // factor - 2), min(side // factor, -(-tile.stop // factor) + 2)
    return first, last, bicubic_matrix(side // factor, factor)[tile.start : tile.stop, first:last]
