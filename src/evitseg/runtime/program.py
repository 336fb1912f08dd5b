"""Compile a network into a program for the core: operations, feature maps and packed weights, as bytes.

All knowledge of EfficientViT is here. The core (`core/`) has a dozen operations and runs segments of them. A segment
starts at the image, at stored feature maps or at an attention whose sums are known. It ends when features are stored,
or when the next attention, or a classifier, needs sums over the whole image.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from evitseg.architecture import (
    STRIDE,
    AttentionBlock,
    Block,
    ClassificationHead,
    ConvBlock,
    ModelConfig,
    head_plan,
    placed_convs,
    stage_plans,
    stem_plan,
)
from evitseg.errors import ConfigError
from evitseg.preprocess import Preprocess
from evitseg.runtime.head_factors import factors_of_weights, with_head_factors
from evitseg.runtime.weights import Weights

MAGIC = b"EVITSEG2"
BLOCK = 16
"""Channels that are contiguous in the core's memory; numbers of channels are padded to a multiple of it."""
MAX_SCALES = 4
NARROW = 8
"""Number of channels whose rows are stored as planes, so that no vector is half empty."""

(IMAGE, VALUE, ATTEND, CONV3, INVERTED, FUSED, RESIDUAL, POINTWISE, UPSUM, TEE, STORE, SUMS, POOL, CUT) = range(14)
_ACTIVATIONS = {"hardswish": 1, "gelu_tanh": 2, "relu": 3}

_OP = np.dtype(
    [(name, "<i4") for name in ("kind", "act", "in", "mid", "out", "stride", "residual", "value", "value2", "value3",
                                "heads", "head_dim", "scales")]
    + [("kernels", "<i4", MAX_SCALES), ("expands", "<i4")]
    + [(name, "<i8") for name in ("w1", "b1", "w2", "b2", "w3", "b3")]
    + [(name, "<i8", MAX_SCALES) for name in ("wa", "ba", "wg", "bg")]
    + [("eps", "<f4"), ("planar", "<i4")]
)  # fmt: skip
_HEADER = np.dtype(
    [("magic", "S8"), ("op_bytes", "<i4"), ("ops", "<i4"), ("values", "<i4"), ("segments", "<i4"), ("classes", "<i4"),
     ("logits", "<i4"), ("weights", "<i8")]
)  # fmt: skip
_VALUE, _SEGMENT = 2, 3
"""Numbers in the table entry of a value and of a segment."""
_ALIGNMENT = 64


@dataclass(frozen=True)
class ClassifierLayers:
    """The layers of a classifier after the average, which `placed_convs` leaves out.

    Attributes:
        features: (features, hidden) the first linear layer.
        scale, shift: (features,) of layer norm.
        classify: (classes, features) the last linear layer.
        bias: (classes,) of the last linear layer.
    """

    features: NDArray[np.float32]
    scale: NDArray[np.float32]
    shift: NDArray[np.float32]
    classify: NDArray[np.float32]
    bias: NDArray[np.float32]


def compile_program(
    config: ModelConfig, preprocess: Preprocess, weights: Sequence[Weights], layers: ClassifierLayers | None = None
) -> bytes:
    """The program of a network, with the normalisation of `preprocess` and head factors inside.

    Args:
        weights: of every convolution, with batch norm folded in, in the order of `placed_convs`.
        layers: of a classifier, after the average.

    Raises: ConfigError for a network that the core does not support.
    """
    if isinstance(config.head, ClassificationHead) and layers is None:
        raise ConfigError("the network is a classifier, which gives no masks; to get its scores, give its last layers.")
    if config.backbone.head_dim % BLOCK:
        raise ConfigError(
            f"the native engine needs a head_dim that is a multiple of {BLOCK}, not {config.backbone.head_dim}."
        )
    if len(config.backbone.attention_kernels) > MAX_SCALES or any(k > 7 for k in config.backbone.attention_kernels):
        raise ConfigError("the native engine aggregates at up to four scales, with kernels up to 7.")
    balanced = with_head_factors(config, weights, factors_of_weights(config, weights))
    return _Compiler(config, preprocess, balanced, layers).program()


def is_complete(program: bytes) -> bool:
    """Whether a program of this version has the length that its header gives it."""
    if len(program) < _HEADER.itemsize:
        return False
    header = np.frombuffer(program, _HEADER, 1)[0]
    numbers = {name: int(header[name]) for name in ("op_bytes", "ops", "values", "segments", "weights")}
    if header["magic"] != MAGIC or numbers["op_bytes"] != _OP.itemsize or min(numbers.values()) < 0:
        return False
    tables = numbers["ops"] * _OP.itemsize + 4 * (_VALUE * numbers["values"] + _SEGMENT * numbers["segments"])
    start = _HEADER.itemsize + tables
    return len(program) == start + -start % _ALIGNMENT + 4 * numbers["weights"]


def read_operations(program: bytes) -> NDArray[np.void]:
    """The table of a program's operations, with the fields of `_OP`, such as "kind" and "in"."""
    header = np.frombuffer(program, _HEADER, 1)[0]
    return np.frombuffer(program, _OP, int(header["ops"]), _HEADER.itemsize)


def has_half_precision(config: ModelConfig) -> bool:
    """Whether the core can run a network in half precision, whose channels lie in blocks of 32."""
    return config.backbone.head_dim == BLOCK or config.backbone.head_dim % (2 * BLOCK) == 0


def _blocks(channels: int) -> int:
    return -(-channels // BLOCK)


@dataclass
class _Compiler:
    config: ModelConfig
    preprocess: Preprocess
    weights: Sequence[Weights]
    layers: ClassifierLayers | None
    ops: list[dict[str, Any]] = field(default_factory=list)
    values: list[tuple[int, int]] = field(default_factory=list)
    segments: list[tuple[int, int, int]] = field(default_factory=list)
    packed: list[NDArray[np.float32]] = field(default_factory=list)
    size: int = 0
    first: int = 0  # operation of the segment being written

    def __post_init__(self) -> None:
        names = [(placed.block, placed.name) for placed in placed_convs(self.config)]
        self.by_name = dict(zip(names, self.weights, strict=True))

    def _act(self, block: str) -> int:
        return _ACTIVATIONS[self.config.backbone.activation_in(block.split(".")[0])]

    def _pack(self, numbers: NDArray[Any]) -> int:
        """Store numbers among the weights; returns their offset."""
        at = self.size
        flat = np.ascontiguousarray(numbers, np.float32).reshape(-1)
        self.packed.append(np.pad(flat, (0, -len(flat) % BLOCK)))
        self.size += len(self.packed[-1])
        return at

    def _bias(self, weights: Weights, outputs: int) -> int:
        bias = np.zeros(_blocks(outputs) * BLOCK, np.float32)
        if weights.bias is not None:
            bias[:outputs] = weights.bias
        return self._pack(bias)

    def _dense(self, block: str, name: str) -> tuple[int, int]:
        return self._dense_weights(self.by_name[block, name])

    def _by_part(self, block: str, name: str, heads: int) -> Weights:
        """Weights whose outputs are (heads, queries, keys and values) in the order that the core has them: (queries,
        keys and values, heads). So all queries come first, and can be computed alone."""
        weights = self.by_name[block, name]

        def ordered(numbers: NDArray[np.float32]) -> NDArray[np.float32]:
            parts: NDArray[np.float32] = numbers.reshape(heads, 3, -1, *numbers.shape[1:]).swapaxes(0, 1)
            return parts.reshape(numbers.shape)

        return Weights(ordered(weights.kernel), None if weights.bias is None else ordered(weights.bias))

    def _dense_weights(self, weights: Weights) -> tuple[int, int]:
        """[output block][tap][input channel][16]."""
        outputs, inputs, height, width = weights.kernel.shape
        kernel = np.zeros((_blocks(outputs) * BLOCK, inputs, height, width), np.float32)
        kernel[:outputs] = weights.kernel
        kernel = kernel.reshape(-1, BLOCK, inputs, height * width).transpose(0, 3, 2, 1)
        return self._pack(kernel), self._bias(weights, outputs)

    def _depthwise(self, block: str, name: str) -> tuple[int, int]:
        return self._depthwise_weights(self.by_name[block, name])

    def _depthwise_weights(self, weights: Weights) -> tuple[int, int]:
        """[block][tap][16]."""
        channels, _, height, width = weights.kernel.shape
        kernel = np.zeros((_blocks(channels) * BLOCK, height * width), np.float32)
        kernel[:channels] = weights.kernel.reshape(channels, -1)
        return self._pack(kernel.reshape(-1, BLOCK, height * width).transpose(0, 2, 1)), self._bias(weights, channels)

    def _grouped_weights(self, weights: Weights, dim: int) -> tuple[int, int]:
        """[group][output block][input channel][16]."""
        kernel = weights.kernel.reshape(-1, dim // BLOCK, BLOCK, dim).transpose(0, 1, 3, 2)
        return self._pack(kernel), self._bias(weights, len(weights.kernel))

    def _op(self, kind: int, **fields: Any) -> None:
        self.ops.append({"kind": kind, "stride": 1, **fields})

    def _value(self, channels: int, stride: int) -> int:
        self.values.append((channels, stride))
        return len(self.values) - 1

    def _end(self, stride: int) -> None:
        self.segments.append((self.first, len(self.ops) - self.first, stride))
        self.first = len(self.ops)

    def _store(self, channels: int, stride: int) -> int:
        self._drop_cut()
        value = self._value(channels, stride)
        self._op(STORE, **{"in": channels}, out=channels, value=value)
        self._end(stride)
        return value

    def _cut(self, channels: int, stride: int) -> None:
        """Mark a place where the core may cut the segment in two, if that saves work at the borders of windows."""
        self._op(CUT, **{"in": channels}, out=channels, value=self._value(channels, stride))

    def _drop_cut(self) -> None:
        """Remove a cut just before a tee or an end, which would be useless."""
        if self.ops[-1]["kind"] == CUT:
            self.ops.pop()
            self.values.pop()

    def _load(self, value: int) -> None:
        channels = self.values[value][0]
        self._op(VALUE, **{"in": channels}, out=channels, value=value)

    def _block(self, where: str, block: ConvBlock) -> None:
        convs = block.convs
        first, last = next(iter(convs.values())), next(reversed(convs.values()))
        fields: dict[str, Any] = {
            "in": first.inputs, "out": last.outputs, "stride": block.stride, "residual": int(block.residual),
            "act": self._act(where),
        }  # fmt: skip
        if set(convs) == {"conv"}:
            w1, b1 = self._dense(where, "conv")
            self._op(CONV3, **fields | {"act": self._act(where) * first.act}, w1=w1, b1=b1)
        elif "depthwise" in convs:
            expands = "expand" in convs
            w1, b1 = self._dense(where, "expand") if expands else (0, 0)
            w2, b2 = self._depthwise(where, "depthwise")
            w3, b3 = self._dense(where, "pointwise")
            self._op(INVERTED, **fields, mid=convs["depthwise"].outputs, expands=int(expands), w1=w1, b1=b1, w2=w2,
                     b2=b2, w3=w3, b3=b3)  # fmt: skip
        else:
            names = list(convs)
            w1, b1 = self._dense(where, names[0])
            w3, b3 = self._dense(where, names[1])
            kind = FUSED if names == ["spatial", "pointwise"] else RESIDUAL
            if kind == RESIDUAL and not block.residual:
                raise ConfigError("the native engine runs no residual block that changes its size.")
            self._op(kind, **fields, mid=first.outputs, w1=w1, b1=b1, w3=w3, b3=b3)

    def _pointwise(self, block: str, name: str, inputs: int, outputs: int, act: bool = False) -> None:
        w1, b1 = self._dense(block, name)
        self._op(POINTWISE, **{"in": inputs}, out=outputs, act=self._act(block) * act, w1=w1, b1=b1)

    def _attention(self, where: str, block: AttentionBlock, stride: int) -> None:
        """End a segment with this attention's sums, and start the next one with its application."""
        self._drop_cut()
        width, dim, scales = block.width, block.head_dim, len(block.kernels)
        tee, queries = self._value(width, stride), self._value(width * (1 + scales), stride)
        self._op(TEE, **{"in": width}, out=width, value=tee)
        where = f"{where}.attention"
        heads = block.heads_per_scale
        w1, b1 = self._dense_weights(self._by_part(where, "qkv", heads))
        places: dict[str, list[int]] = {name: [0] * MAX_SCALES for name in ("wa", "ba", "wg", "bg", "kernels")}
        for i, kernel in enumerate(block.kernels):
            places["kernels"][i] = kernel
            depthwise, pointwise = (
                self._by_part(where, f"aggregate.{i}.{name}", heads) for name in ("depthwise", "pointwise")
            )
            places["wa"][i], places["ba"][i] = self._depthwise_weights(depthwise)
            places["wg"][i], places["bg"][i] = self._grouped_weights(pointwise, dim)
        slot = len(self.segments)
        about = {"heads": heads, "head_dim": dim, "scales": scales, "value2": queries, "value3": slot}
        self._op(SUMS, **{"in": width}, out=width, w1=w1, b1=b1, **about, **places)
        self._end(stride)
        w1, b1 = self._dense(where, "proj")
        self._op(ATTEND, **{"in": width}, out=width, value=tee, eps=block.eps, w1=w1, b1=b1, **about)

    def _blocks_of(self, blocks: Sequence[Block], where: str, stride: int) -> int:
        for i, block in enumerate(blocks):
            stride *= block.stride
            if isinstance(block, AttentionBlock):
                self._attention(f"{where}.block{i}", block, stride)
                self._block(f"{where}.block{i}.local", block.local)
                self._cut(block.width, stride)
            else:
                self._block(f"{where}.block{i}", block)
                self._cut(self.ops[-1]["out"], stride)
        return stride

    def program(self) -> bytes:
        backbone, head = self.config.backbone, self.config.head
        scale = 1 / (255 * np.array(self.preprocess.std, np.float64))
        shift = -np.array(self.preprocess.mean, np.float64) / np.array(self.preprocess.std, np.float64)
        self._op(IMAGE, out=3, w1=self._pack(np.concatenate([scale, [0], shift, [0]])))
        for i, block in enumerate(stem_plan(backbone)):
            self._block(f"stem.block{i}", block)
            self._cut(self.ops[-1]["out"], 2)
        stride, features = 2, {}
        for number, blocks in enumerate(stage_plans(backbone), 1):
            stride = self._blocks_of(blocks, f"stage{number}", stride)
            width = backbone.stages[number - 1].width
            if isinstance(head, ClassificationHead):
                continue
            if number == 4:
                features[number] = self._store(width, stride)
            elif number > 1:
                self._drop_cut()
                features[number] = self._value(width, stride)
                self._op(TEE, **{"in": width}, out=width, value=features[number])
        if isinstance(head, ClassificationHead):
            self._classify(head)
            self._make_planar()
            return self._bytes(head.num_classes, -1)
        plan = head_plan(backbone, head)
        coarse = {}
        for number, conv in zip((4, 3), plan.inputs[:2], strict=True):
            self._load(features[number])
            self._pointwise(f"head.from_stage{number}", "conv", conv.inputs, conv.outputs)
            coarse[number] = self._store(head.width, 2 ** (number + 1))
        self._load(features[2])
        self._pointwise("head.from_stage2", "conv", plan.inputs[2].inputs, head.width)
        self._op(UPSUM, **{"in": head.width}, out=head.width, value=coarse[4], value2=coarse[3])
        self._cut(head.width, 8)
        for i, block in enumerate(plan.blocks):
            self._block(f"head.block{i}", block)
            self._cut(head.width, 8)
        for name, conv in plan.outputs.items():
            self._pointwise("head.outputs", name, conv.inputs, conv.outputs, conv.act)
        logits = self._store(head.num_classes, 8)
        self._make_planar()
        return self._bytes(head.num_classes, logits)

    def _classify(self, head: ClassificationHead) -> None:
        """End the network with a classifier's scores."""
        layers = self.layers
        assert layers is not None
        hidden, features = head.widths
        self._pointwise("head", "widen", self.config.backbone.stages[-1].width, hidden, act=True)
        w1, b1 = self._dense_weights(Weights(layers.features[..., None, None], None))
        w2, b2 = self._pack(layers.scale), self._pack(layers.shift)
        w3, b3 = self._dense_weights(Weights(layers.classify[..., None, None], layers.bias))
        eps = self.config.backbone.norm_eps
        self._op(POOL, **{"in": hidden}, mid=features, out=head.num_classes, act=self._act("head"), eps=eps,
                 value3=len(self.segments), w1=w1, b1=b1, w2=w2, b2=b2, w3=w3, b3=b3)  # fmt: skip
        self._end(STRIDE)

    def _make_planar(self) -> None:
        """Use planar rows for as many operations after the image as the core supports."""
        chain: list[dict[str, Any]] = []
        for op in self.ops[1:]:
            if op["out"] != NARROW or not (op["kind"] == CUT or op["stride"] == (1 if chain else 2)):
                break
            if op["kind"] not in (CUT, INVERTED if chain else CONV3) or op.get("expands"):
                break
            chain.append(op)
        after = self.ops[1 + len(chain)]
        if chain and after["kind"] == INVERTED and after["expands"] and not after["residual"]:
            for op in chain:
                op["planar"] = 1

    def _bytes(self, classes: int, logits: int) -> bytes:
        ops = np.zeros(len(self.ops), _OP)
        for row, op in zip(ops, self.ops, strict=True):
            for name, value in op.items():
                row[name] = value
        tables = b"".join(
            [ops.tobytes(), np.array(self.values, "<i4").tobytes(), np.array(self.segments, "<i4").tobytes()]
        )
        header = np.zeros((), _HEADER)
        for name, value in zip(
            _HEADER.names or (),
            (MAGIC, _OP.itemsize, len(ops), len(self.values), len(self.segments), classes, logits, self.size),
            strict=True,
        ):
            header[name] = value
        start = header.tobytes() + tables
        return b"".join(
            [start, bytes(-len(start) % _ALIGNMENT), *(part.astype("<f4").tobytes() for part in self.packed)]
        )
