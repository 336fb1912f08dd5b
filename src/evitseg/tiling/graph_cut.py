"""Partition of the network's graph at its attention sums, and the halo that each segment needs.

Every layer depends on a neighbourhood of bounded size, except attention, which depends on the whole image, but only
through a sum over tokens. The graph therefore splits into segments with one sum between neighbours. A segment's inputs
are features and the image's sums for its attention layer; its outputs are features and a tile's contribution to the
next sums. Segments run on windows of the image. `Segment.halo_before` and `Segment.halo_after` are the pixels around a
tile that its values depend on.

The segments are recognised by the graph's shape, in any model that `evitseg export` wrote with free sizes.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np

from evitseg.architecture import LOGIT_STRIDE, STRIDE
from evitseg.errors import EngineError

if TYPE_CHECKING:
    import openvino

IMAGE, LOGITS, WEIGHT, SUMS, EPS, PARTIAL, KEY_SCALE, LARGEST = (
    "image", "logits", "weight", "sums", "eps", "partial", "key_scale", "largest",
)  # fmt: skip
"""Names of a segment's inputs and outputs, apart from the features between segments."""

SegmentKind: TypeAlias = Literal["part", "whole", "standalone"]
"""Which part of the network a segment is: "part", one of those between two attention sums; "whole", the whole network,
with the attention sums as inputs; "standalone", the whole network, which computes its own sums."""

Tensor: TypeAlias = tuple[str, int]
"""A node's name and the number of one of its outputs."""

_CONVOLUTIONS = ("Convolution", "GroupConvolution")
_POINTWISE = frozenset(
    (
        "Add", "Clamp", "Concat", "Convert", "Divide", "Gelu", "HSwish", "MatMul", "Maximum", "Multiply", "ReduceMax",
        "ReduceSum", "Relu", "Reshape", "Transpose", "VariadicSplit",
    )
)  # fmt: skip
"""Operators of our graphs that do not look at neighbouring pixels."""
_OWN_MEMORY = frozenset((*_CONVOLUTIONS, "Parameter", "Interpolate", "MatMul", "Concat", "Convert", "Transpose"))
"""Operators whose result needs memory of its own; the engine runs the others in place."""


@dataclass(frozen=True)
class AttentionNodes:
    """The nodes of one attention layer.

    Attributes:
        x: the layer's input.
        scales: per scale, the chain of convolutions from x to its queries, keys and values.
        queries, keys: before scaling.
        context: product of values and keys.
        largest: largest key per head, at least the smallest normal float16 number.
        key_scale: factor that the keys are multiplied by.
        partial: (heads, head_dim + 1, head_dim), sums of value · key over tokens; the last row sums the keys.
        sums: `partial` divided by the largest sum of keys.
        eps_term, eps: the node that adds epsilon to the divisor, and epsilon; None and 0 without one.
        heads, head_dim: shape of the sums.
    """

    x: Tensor
    scales: tuple[tuple[str, ...], ...]
    queries: str
    keys: str
    context: str
    largest: str
    key_scale: str
    partial: str
    sums: str
    eps_term: str | None
    eps: float
    heads: int
    head_dim: int


@dataclass(frozen=True)
class Features:
    """A tensor that is stored between segments.

    Attributes:
        name: name of the segments' input or output.
        tensor: its place in the whole graph.
        channels, stride: its size per pixel.
        made_by, used_by: indices of the segment that outputs it and of the last that reads it.
    """

    name: str
    tensor: Tensor
    channels: int
    stride: int
    made_by: int
    used_by: int

    @property
    def values_per_pixel(self) -> float:
        return self.channels / self.stride**2


@dataclass(frozen=True)
class Segment:
    """One segment of the network.

    Attributes:
        kind: see `SegmentKind`.
        index: position among the parts. Part n reads the sums of attention layer n - 1. 0 for other kinds.
        inputs, outputs: features that are read and written.
        halo_before, halo_after: pixels of the image that a window needs around a tile, above and to the left, below
            and to the right; multiples of 32.
        bytes_per_pixel: estimate of the peak memory per pixel of the window, in float32.
    """

    kind: SegmentKind
    index: int
    inputs: tuple[Features, ...]
    outputs: tuple[Features, ...]
    halo_before: int
    halo_after: int
    bytes_per_pixel: float

    @property
    def takes_image(self) -> bool:
        return self.kind != "part" or self.index == 0

    @property
    def attention_before(self) -> int | None:
        """Index of the attention layer whose sums a part of the network reads; None for the first."""
        return self.index - 1 if self.kind == "part" and self.index else None

    def __str__(self) -> str:
        return f"segment {self.index}" if self.kind == "part" else f"{self.kind} network"


class Partition:
    """A model's graph and its segments.

    Attributes:
        attentions: the attention layers, in order.
        features: tensors that are stored between segments.
        segments: parts of the network, one more than attention layers.
        whole, standalone: the whole network, with given sums and with its own.

    Args:
        model: the whole network with a free size.
        where: the model's path, for messages.

    Raises: EngineError for a graph that `evitseg export` did not write.
    """

    def __init__(self, model: openvino.Model, where: Path) -> None:
        self._model, self._where = model, where
        self._ops = model.get_ordered_ops()
        self._by_name = {op.get_friendly_name(): op for op in self._ops}
        if len(self._by_name) != len(self._ops):
            raise self._refused("two nodes have one name")
        self._logits = model.outputs[0].get_node().input_value(0)
        self.attentions = tuple(filter(None, map(self._attention, self._ops)))
        self._data = self._data_nodes()
        self._strides = self._find_strides()
        self._levels, self._interiors = self._find_levels()
        self.features = self._find_features()
        self.segments = tuple(self._part(index) for index in range(len(self.attentions) + 1))
        self.whole, self.standalone = self._whole_network("whole"), self._whole_network("standalone")
        if (
            any(segment.bytes_per_pixel == 0 for segment in self.segments)
            or self._strides[self._key(self._logits)] != 8
        ):
            raise self._refused("its logits are not at stride 8")

    def _refused(self, why: str) -> EngineError:
        return EngineError(
            f"{self._where}: this graph cannot run in tiles ({why}); export the model again with evitseg export, "
            "without --size."
        )

    @staticmethod
    def _key(output: Any) -> Tensor:
        return output.get_node().get_friendly_name(), output.get_index()

    def _attention(self, product: Any) -> AttentionNodes | None:
        """The attention layer whose second product this is; None for another product."""
        try:
            sums = _into(product, 0, "MatMul", "Divide")
            partial = _into(sums, 0, "Divide", "Concat")
            context = _into(partial, 0, "Concat", "MatMul")
            scaled = _into(_into(context, 1, "MatMul", "Transpose"), 0, "Transpose", "Multiply")
            keys, key_scale = _into(scaled, 0, "Multiply", "Relu"), _into(scaled, 1, "Multiply", "Divide")
            largest = _into(key_scale, 1, "Divide", "Maximum")
            split = _into(keys, 0, "Relu", "VariadicSplit")
            concat = _into(_into(split, 0, "VariadicSplit", "Reshape"), 0, "Reshape", "Concat")
            queries = _into(_into(product, 1, "MatMul", "Divide"), 0, "Divide", "Relu")
        except _NotThereError:
            return None
        scales = []
        for given in concat.input_values():
            convs = [given.get_node()]
            while convs[0].get_type_name() == "GroupConvolution":
                convs.insert(0, convs[0].input_value(0).get_node())
            scales.append(convs)
        qkv = scales[0][0]
        if any(convs[0] != qkv or convs[0].get_type_name() != "Convolution" for convs in scales):
            raise self._refused("attention does not begin with one convolution")
        eps_term, eps = self._eps(key_scale)
        _, heads, rows, dim = partial.output(0).partial_shape
        if any(side.is_dynamic for side in (heads, rows, dim)) or rows.get_length() != dim.get_length() + 1:
            raise self._refused("attention's sums have no fixed shape")
        return AttentionNodes(
            x=self._key(qkv.input_value(0)),
            scales=tuple(tuple(conv.get_friendly_name() for conv in convs) for convs in scales),
            queries=queries.get_friendly_name(),
            keys=keys.get_friendly_name(),
            context=context.get_friendly_name(),
            largest=largest.get_friendly_name(),
            key_scale=key_scale.get_friendly_name(),
            partial=partial.get_friendly_name(),
            sums=sums.get_friendly_name(),
            eps_term=eps_term,
            eps=eps,
            heads=heads.get_length(),
            head_dim=dim.get_length(),
        )

    @staticmethod
    def _eps(key_scale: Any) -> tuple[str | None, float]:
        for target in key_scale.output(0).get_target_inputs():
            times = target.get_node()
            constant = times.input_value(1).get_node() if times.get_type_name() == "Multiply" else None
            if constant is not None and constant.get_type_name() == "Constant":
                (after,) = times.output(0).get_target_inputs()
                return after.get_node().get_friendly_name(), float(constant.get_data().reshape(-1)[0])
        return None, 0.0

    def _data_nodes(self) -> set[str]:
        """Names of the nodes whose values depend on pixels, not only on the image's size."""
        data: set[str] = set()
        for op in self._ops:
            kind = op.get_type_name()
            if kind == "Parameter" or (
                kind != "ShapeOf" and any(self._key(given)[0] in data for given in op.input_values())
            ):
                data.add(op.get_friendly_name())
        return data

    def _given(self, op: Any) -> list[Any]:
        """The inputs of a node that depend on pixels."""
        return [given for given in op.input_values() if self._key(given)[0] in self._data]

    def _find_strides(self) -> dict[Tensor, int]:
        strides: dict[Tensor, int] = {}
        for op in self._ops:
            name, kind = op.get_friendly_name(), op.get_type_name()
            if name not in self._data:
                continue
            stride = 1 if kind == "Parameter" else strides[self._key(self._given(op)[0])]
            if kind in _CONVOLUTIONS:
                stride *= _geometry(op)[2]
            elif kind == "Interpolate":
                stride //= self._factor(op)
            elif kind not in _POINTWISE and kind not in ("Parameter", "Result"):
                raise self._refused(f"{kind} is not among its operators")
            strides |= {(name, i): stride for i in range(op.get_output_size())}
        return strides

    def _factor(self, op: Any) -> int:
        attributes = op.get_attributes()
        scales = op.input_value(1).get_node()
        if attributes["coordinate_transformation_mode"] != "half_pixel" or scales.get_type_name() != "Constant":
            raise self._refused("it resizes features in an unknown way")
        factors = {float(f) for f in scales.get_data().reshape(-1)[-2:]}
        if len(factors) != 1 or not min(factors).is_integer():
            raise self._refused("it resizes features by a fraction")
        return int(factors.pop())

    def _find_levels(self) -> tuple[dict[str, int], list[set[str]]]:
        """Number of attention layers before each node, and the nodes inside each layer before its sums."""
        starts: dict[str, int] = {}
        for i, attention in enumerate(self.attentions, 1):
            starts |= {name: i for name in (attention.sums, attention.eps_term) if name}
        levels: dict[str, int] = {}
        for op in self._ops:
            name = op.get_friendly_name()
            if name in self._data:
                below = max((levels[self._key(given)[0]] for given in self._given(op)), default=0)
                levels[name] = max(below, starts.get(name, 0))
        interiors = []
        for attention in self.attentions:
            product = next(
                t.get_node()
                for t in self._by_name[attention.sums].output(0).get_target_inputs()
                if t.get_node().get_type_name() == "MatMul"
            )
            ends = [self._by_name[attention.partial], product.input_value(1).get_node()]
            interiors.append(self._back(ends, {attention.x}))
        return levels, interiors

    def _back(self, ends: Iterable[Any], stops: set[Tensor]) -> set[str]:
        """Names of the data nodes that `ends` depend on, including themselves, back to `stops`."""
        seen: set[str] = set()
        todo = list(ends)
        while todo:
            op = todo.pop()
            if op.get_friendly_name() in seen:
                continue
            seen.add(op.get_friendly_name())
            todo += [given.get_node() for given in self._given(op) if self._key(given) not in stops]
        return seen

    def _find_features(self) -> tuple[Features, ...]:
        """The inputs of attention layers, and what the head reads from earlier segments."""
        starts = {name for a in self.attentions for name in (a.sums, a.eps_term)}
        kept: dict[Tensor, int] = {}
        for op in self._ops:
            name = op.get_friendly_name()
            if name not in self._data or name in starts:
                continue
            for given in self._given(op):
                if self._levels[self._key(given)[0]] < self._levels[name]:
                    tensor = self._narrowest(given)
                    kept[tensor] = max(kept.get(tensor, 0), self._levels[name])
        found: list[Features] = []
        for tensor, used_by in kept.items():
            shape = self._by_name[tensor[0]].output(tensor[1]).partial_shape
            if len(shape) != 4 or shape[1].is_dynamic:
                raise self._refused("features have no fixed number of channels")
            made_by = self._levels[tensor[0]]
            name = f"features_{len(found)}"
            found.append(Features(name, tensor, shape[1].get_length(), self._strides[tensor], made_by, used_by))
        return tuple(found)

    def _narrowest(self, tensor: Any) -> Tensor:
        """The narrowest tensor before one that a later segment reads; recomputing the rest costs less than storing."""
        for attention, interior in zip(self.attentions, self._interiors, strict=True):
            if self._key(tensor)[0] in interior:
                return attention.x
        while tensor.get_node().get_type_name() == "Interpolate":
            tensor = tensor.get_node().input_value(0)
        conv = tensor.get_node()
        while conv.get_type_name() in ("Add", "Clamp") and len(self._given(conv)) == 1:
            conv = self._given(conv)[0].get_node()
        if conv.get_type_name() == "Convolution" and _geometry(conv)[0] == 1:
            before = conv.input_value(0)
            if before.partial_shape[1].get_length() < tensor.partial_shape[1].get_length():
                return self._key(before)
        return self._key(tensor)

    def _part(self, index: int) -> Segment:
        attention = self.attentions[index] if index < len(self.attentions) else None
        made = tuple(f for f in self.features if f.made_by == index)
        ends = [self._by_name[f.tensor[0]] for f in made]
        ends.append(self._by_name[attention.partial] if attention else self._logits.get_node())
        earlier = {f.tensor: f for f in self.features if f.made_by < index}
        nodes = self._back(ends, set(earlier) | self._sums_before(index + 1))
        taken = {
            self._key(given)
            for name in nodes
            for given in self._given(self._by_name[name])
            if self._key(given) in earlier
        }
        inputs = tuple(f for f in self.features if f.tensor in taken)
        if index and any(self._by_name[name].get_type_name() == "Parameter" for name in nodes):
            raise self._refused("a later layer reads the image itself")
        before, after = self._halo(nodes, ends, attention is None)
        return Segment("part", index, inputs, made, before, after, self._peak(nodes, inputs))

    def _whole_network(self, kind: SegmentKind) -> Segment:
        end = self._logits.get_node()
        nodes = self._back([end], self._sums_before(len(self.attentions) + 1))
        return Segment(kind, 0, (), (), *self._halo(nodes, [end], True), self._peak(nodes, ()))

    def _sums_before(self, number: int) -> set[Tensor]:
        given = self.attentions[: number - 1]
        return {(name, 0) for a in given for name in (a.sums, a.eps_term) if name}

    def _halo(self, nodes: set[str], ends: list[Any], last: bool) -> tuple[int, int]:
        """Pixels before and after a tile that its values depend on, rounded up to the network's stride.

        The last segment outputs one more logit on every side, because the mask is interpolated between logits.
        """
        tile = 64 * STRIDE
        spans: dict[str, tuple[int, int]] = {}
        for op in ends:
            stride, more = self._strides[op.get_friendly_name(), 0], LOGIT_STRIDE if last else 0
            spans[op.get_friendly_name()] = (-more // stride, (tile + more) // stride)
        low, high = 0, tile
        for op in reversed(self._ops):
            name = op.get_friendly_name()
            if name not in nodes or name not in spans:
                continue
            begin, end = spans[name]
            stride = self._strides[name, 0]
            low, high = min(low, begin * stride), max(high, end * stride)
            if op.get_type_name() in _CONVOLUTIONS:
                kernel, pad, step = _geometry(op)
                begin, end = begin * step - pad, (end - 1) * step - pad + kernel
            elif op.get_type_name() == "Interpolate":  # cubic: four values around each point
                factor = self._factor(op)
                begin = math.floor((begin + 0.5) / factor - 0.5) - 1
                end = math.floor((end - 0.5) / factor - 0.5) + 3
            for given in self._given(op):
                source, place = self._key(given)
                stride = self._strides[source, place]
                low, high = min(low, begin * stride), max(high, end * stride)
                if source in nodes:
                    was = spans.get(source, (begin, end))
                    spans[source] = (min(was[0], begin), max(was[1], end))
        return math.ceil(-low / STRIDE) * STRIDE, math.ceil((high - tile) / STRIDE) * STRIDE

    def _peak(self, nodes: set[str], inputs: tuple[Features, ...]) -> float:
        """Peak bytes per pixel of the nodes, run in order, in float32."""
        held = sum(f.values_per_pixel for f in inputs)
        sizes: dict[str, float] = {}
        owner: dict[str, str] = {}
        uses: dict[str, int] = {}
        peak = held
        for op in self._ops:
            name = op.get_friendly_name()
            if name not in nodes:
                continue
            before = [owner[self._key(g)[0]] for g in self._given(op) if self._key(g)[0] in owner]
            if op.get_type_name() in _OWN_MEMORY or not before:
                shape = op.output(0).partial_shape
                channels = shape[1].get_length() if len(shape) == 4 and not shape[1].is_dynamic else 3
                if (
                    len(shape) == 4 and not shape[2].is_dynamic and shape[2].get_length() > 1
                ):  # heads and their channels
                    channels *= shape[2].get_length()
                small = len(shape) == 4 and not shape[3].is_dynamic and op.get_type_name() != "Parameter"
                sizes[name] = 0.0 if small else channels / self._strides[name, 0] ** 2
                owner[name] = name
            else:
                owner[name] = max(before, key=lambda source: sizes[source])
            users = sum(t.get_node().get_friendly_name() in nodes for o in op.outputs() for t in o.get_target_inputs())
            uses[owner[name]] = uses.get(owner[name], 0) + users
            peak = max(peak, held + sum(sizes[n] for n, left in uses.items() if left > 0 or n == owner[name]))
            for source in before:
                uses[source] -= 1
        return 4 * peak

    def model(self, segment: Segment, height: int, width: int) -> openvino.Model:
        """A segment for windows of one size, in pixels of the image.

        Inputs, by name: "image" (1, height, width, 3) uint8; features (1, h, w, channels); "weight" (1, 1, 1, tokens),
        the weight of each token in the sums; "sums0", "eps0" and so on for the attention layers before. Outputs, in
        the order of `outputs_of`: features; then "partial", "key_scale" and "largest" of the attention layer after
        the segment, or "logits" (1, classes, h, w).
        """
        import openvino
        from openvino import opset13 as ops

        clone = self._model.clone()
        nodes = {op.get_friendly_name(): op for op in clone.get_ordered_ops()}
        # The interior of attention is recomputed from x, so every reader of a cut tensor can read the parameter.
        parameters: list[Any] = []

        def replace(output: Any, shape: list[int], name: str, order: list[int] | None = None) -> None:
            targets = list(output.get_target_inputs())
            parameter = ops.parameter(shape, np.float32)
            parameter.output(0).get_tensor().set_names({name})
            parameters.append(parameter)
            value = ops.transpose(parameter, np.array(order)) if order else parameter
            for target in targets:
                target.replace_source_output(value.output(0))

        for f in segment.inputs:
            at, shape = nodes[f.tensor[0]].output(f.tensor[1]), [1, height // f.stride, width // f.stride, f.channels]
            replace(at, shape, f.name, [0, 3, 1, 2])
        whole = segment.kind == "whole"
        before = segment.attention_before
        for i, attention in enumerate(self.attentions[: len(self.attentions) if whole else segment.index]):
            if i == before:
                tokens = _tokens(nodes, attention, (0,))
                nodes[attention.queries].input(0).replace_source_output(tokens.output(0))
            if whole or i == before:
                shape = [1, attention.heads, attention.head_dim + 1, attention.head_dim]
                replace(nodes[attention.sums].output(0), shape, f"{SUMS}{i}")
                if attention.eps_term:
                    replace(nodes[attention.eps_term].output(0), [1, attention.heads, 1, 1], f"{EPS}{i}")
        results = [
            ops.result(ops.transpose(nodes[f.tensor[0]].output(f.tensor[1]), np.array([0, 2, 3, 1])))
            for f in segment.outputs
        ]
        following = self.attention_after(segment)
        if following is None:
            name, place = self._key(self._logits)
            results.append(ops.result(nodes[name].output(place)))
        else:
            tokens = _tokens(nodes, following, (1, 2))
            sizes = np.array([following.head_dim] * 2)
            keys_and_values = ops.variadic_split(tokens, np.array(2), sizes)
            nodes[following.keys].input(0).replace_source_output(keys_and_values.output(0))
            nodes[following.context].input(0).replace_source_output(keys_and_values.output(1))
            stride = self._strides[following.x]
            weight = ops.parameter([1, 1, 1, height // stride * (width // stride)], np.float32)
            weight.output(0).get_tensor().set_names({WEIGHT})
            parameters.append(weight)
            keys = nodes[following.keys].output(0)
            targets = list(keys.get_target_inputs())
            counted = ops.multiply(keys, weight)
            for target in targets:
                target.replace_source_output(counted.output(0))
            gives = (following.partial, following.key_scale, following.largest)
            results += [ops.result(nodes[name].output(0)) for name in gives]
        image = clone.inputs[0].get_node()
        if segment.takes_image:
            image.set_partial_shape(openvino.PartialShape([1, height, width, 3]))
            image.output(0).get_tensor().set_names({IMAGE})
            parameters.append(image)
        model = openvino.Model(results, parameters, str(segment))
        model.validate_nodes_and_infer_types()
        return model

    def attention_after(self, segment: Segment) -> AttentionNodes | None:
        """The attention layer whose sums a segment contributes to; None if the segment outputs logits."""
        is_part = segment.kind == "part" and segment.index < len(self.attentions)
        return self.attentions[segment.index] if is_part else None

    def outputs_of(self, segment: Segment) -> list[str]:
        """Names of a segment's outputs, in order."""
        sums = [LOGITS] if self.attention_after(segment) is None else [PARTIAL, KEY_SCALE, LARGEST]
        return [f.name for f in segment.outputs] + sums

    def token_stride(self, attention: AttentionNodes) -> int:
        """Side in pixels of the area that one of its tokens represents."""
        return self._strides[attention.x]


def _tokens(nodes: dict[str, Any], attention: AttentionNodes, parts: tuple[int, ...]) -> Any:
    """(1, heads, parts · head_dim, tokens): those of queries, keys and values (0, 1, 2) that a segment needs.

    A segment that ends before the sums needs no queries, and the one after them needs only queries. Both recompute
    their parts from x, which is smaller to store.
    """
    from openvino import opset13 as ops

    dim, made = attention.head_dim, dict[str, Any]()
    outputs = []
    for scale in attention.scales:
        value = nodes[scale[0]].input_value(0)
        for name in scale:
            conv = nodes[name]
            attributes = conv.get_attributes()
            geometry = [attributes[key] for key in ("strides", "pads_begin", "pads_end", "dilations")]
            weights = conv.input_value(1)
            rows = weights.partial_shape[0].get_length()
            # Along channels: head, then its queries, keys and values; a group is one channel, or all of one part.
            run = dim if conv.get_type_name() == "Convolution" or weights.partial_shape[1].get_length() == 1 else 1
            chosen = [row for row in range(rows) if row // run % 3 in parts]
            weights = ops.gather(weights, np.array(chosen), np.array(0))
            operator = ops.convolution if conv.get_type_name() == "Convolution" else ops.group_convolution
            if name not in made:
                made[name] = operator(value, weights, *geometry).output(0)
            value = made[name]
        outputs.append(value)
    tokens = ops.concat(outputs, 1)
    shape = np.array([0, attention.heads, len(parts) * dim, -1])
    return ops.reshape(tokens, shape, True)


class _NotThereError(Exception):
    """The graph continues differently."""


def _into(op: Any, index: int, kind: str, wanted: str) -> Any:
    """The node that feeds an input, if both are of these kinds. Raises: _NotThereError."""
    if op.get_type_name() != kind or op.get_input_size() <= index:
        raise _NotThereError
    node = op.input_value(index).get_node()
    if node.get_type_name() != wanted:
        raise _NotThereError
    return node


def _geometry(op: Any) -> tuple[int, int, int]:
    """Kernel, padding and stride of a convolution; all of ours are square."""
    attributes = op.get_attributes()
    kernel = {side.get_length() for side in op.input_value(1).partial_shape[-2:]}
    pads = {int(p) for key in ("pads_begin", "pads_end") for p in attributes[key]}
    (size,), (pad,), (stride,) = kernel, pads, {int(s) for s in attributes["strides"]}
    return int(size), pad, stride
