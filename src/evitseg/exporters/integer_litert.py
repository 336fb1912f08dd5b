"""Write an integer network as a LiteRT file without a single operator in floating point: uint8 in, int8 out.

The file is written operator by operator. LiteRT has no hard-swish with 16-bit tensors, so that becomes
x · relu6(x + 3), and the division by 6 moves into the weights that follow.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from evitseg.errors import MissingPackageError
from evitseg.exporters.integer_graph import MIDDLE_GREY, IntegerNode
from evitseg.exporters.integer_simulation import IntegerNetwork, Scale

_VERSIONS = {  # of operators with 8 and with 16 bits
    "CONV_2D": (3, 4), "DEPTHWISE_CONV_2D": (3, 5), "ADD": (2, 3), "MUL": (2, 4), "PAD": (2, 3), "QUANTIZE": (1, 2),
    "RELU": (2, 3), "CONCATENATION": (2, 3), "TRANSPOSE": (2, 5), "BATCH_MATMUL": (2, 3), "SUM": (2, 3),
    "MAXIMUM": (2, 4),
}  # fmt: skip
_GROUPED_CONV_VERSION = 6
_RELU, _RELU6 = 1, 3
_SAME, _VALID = 0, 1


def write_integer_litert(network: IntegerNetwork, path: Path) -> None:
    """Write the file. Raises: MissingPackageError."""
    try:
        from ai_edge_litert.tools import flatbuffer_utils
    except ImportError as error:
        raise MissingPackageError("export to LiteRT", "litert-export") from error
    flatbuffer_utils.write_model(_Writer(network).model(), str(path))


def operators(path: Path) -> list[tuple[str, str]]:
    """The operators of a LiteRT file with the type of their first output, such as ("CONV_2D", "INT8")."""
    from ai_edge_litert import schema_py_generated as schema
    from ai_edge_litert.tools import flatbuffer_utils

    model = flatbuffer_utils.read_model(str(path))
    names, types = ({value: key for key, value in vars(kind).items() if isinstance(value, int)}
                    for kind in (schema.BuiltinOperator, schema.TensorType))  # fmt: skip
    (graph,) = model.subgraphs
    return [
        (names[model.operatorCodes[op.opcodeIndex].builtinCode], types[graph.tensors[op.outputs[0]].type])
        for op in graph.operators
    ]


class _Writer:
    """A file under construction: `at` has the number of every tensor of the graph."""

    def __init__(self, network: IntegerNetwork) -> None:
        from ai_edge_litert import schema_py_generated as schema

        self.schema, self.network, self.graph = schema, network, network.graph
        self.tensors: list[Any] = []
        self.buffers: list[Any] = [schema.BufferT()]
        self.operators: list[Any] = []
        self.codes: dict[tuple[str, int], int] = {}
        self.at: dict[str, int] = {}
        # Tensors that hold a multiple of what the graph says.
        self.factors: dict[str, float] = {}
        self.only_for_convs = self._only_for_convs()

    def _only_for_convs(self) -> set[str]:
        uses: dict[str, set[str]] = {}
        for node in self.graph.nodes:
            for name in node.inputs:
                uses.setdefault(name, set()).add(node.kind)
        return {name for name, kinds in uses.items() if kinds == {"conv"}}

    def model(self) -> Any:
        schema, graph = self.schema, self.graph
        pixels = self.tensor("image", graph.shapes["image"], np.uint8, [1.0], [MIDDLE_GREY])
        self.at["image"] = self.tensor("signed", graph.shapes["image"], np.int8, [1.0], [MIDDLE_GREY - 128])
        self.operator("QUANTIZE", [pixels], self.at["image"])
        for node in graph.nodes:
            getattr(self, node.kind)(node)
        _, height, width, classes = graph.shapes["logits"]
        logits = self.like(network_scale := self.network.scale("logits"), "channels first", (1, classes, height, width))
        assert network_scale.bits == 8
        self.transpose(self.at["logits"], logits, (0, 3, 1, 2))

        made = schema.SubGraphT()
        made.name, made.tensors, made.operators = "main", self.tensors, self.operators
        made.inputs, made.outputs = [pixels], [logits]
        model = schema.ModelT()
        model.version, model.description = 3, "evitseg"
        model.operatorCodes = [self.code(name, version) for name, version in self.codes]
        model.subgraphs, model.buffers = [made], self.buffers
        signature = schema.SignatureDefT()
        signature.signatureKey = "serving_default"
        signature.inputs, signature.outputs = ([self.named(*pair)] for pair in (("image", pixels), ("logits", logits)))
        model.signatureDefs = [signature]
        return model

    def named(self, name: str, tensor: int) -> Any:
        entry = self.schema.TensorMapT()
        entry.name, entry.tensorIndex = name, tensor
        return entry

    def code(self, name: str, version: int) -> Any:
        code = self.schema.OperatorCodeT()
        code.builtinCode = getattr(self.schema.BuiltinOperator, name)
        code.deprecatedBuiltinCode = min(code.builtinCode, 127)
        code.version = version
        return code

    def tensor(
        self,
        name: str,
        shape: Sequence[int],
        dtype: type,
        steps: Sequence[float] | NDArray[np.float64] = (),
        zeros: Sequence[int] = (0,),
        axis: int = 0,
        content: NDArray[Any] | None = None,
    ) -> int:
        """Add a tensor, a constant if it has a content; returns its number."""
        tensor = self.schema.TensorT()
        tensor.name, tensor.shape, tensor.hasRank = name, [*map(int, shape)], True
        tensor.type = getattr(self.schema.TensorType, np.dtype(dtype).name.upper())
        if len(steps):
            own = self.schema.QuantizationParametersT()
            own.scale = np.asarray(steps, np.float32)
            own.zeroPoint = np.resize(np.asarray(zeros, np.int64), len(steps))
            own.quantizedDimension = axis
            tensor.quantization = own
        if content is not None:
            buffer = self.schema.BufferT()
            buffer.data = np.frombuffer(np.ascontiguousarray(content, dtype).tobytes(), np.uint8)
            self.buffers.append(buffer)
            tensor.buffer = len(self.buffers) - 1
        self.tensors.append(tensor)
        return len(self.tensors) - 1

    def like(self, scale: Scale, name: str, shape: Sequence[int], factor: float = 1.0) -> int:
        dtype = np.int8 if scale.bits == 8 else np.int16
        return self.tensor(name, shape, dtype, [scale.step * factor], [scale.zero])

    def output(self, node: IntegerNode, factor: float = 1.0) -> int:
        """Add the tensor of an operation's result."""
        name = node.output
        if factor != 1:
            self.factors[name] = factor
        self.at[name] = self.like(self.network.scale(name), name, self.graph.shapes[name], factor)
        return self.at[name]

    def operator(self, name: str, inputs: Sequence[int], output: int, version: int = 0, **options: Any) -> None:
        sixteen = self.tensors[output].type == self.schema.TensorType.INT16
        version = version or _VERSIONS.get(name, (1, 1))[sixteen]
        operator = self.schema.OperatorT()
        operator.opcodeIndex = self.codes.setdefault((name, version), len(self.codes))
        operator.inputs, operator.outputs = [*inputs], [output]
        kind = _OPTIONS.get(name)
        if kind is not None:
            operator.builtinOptionsType = getattr(self.schema.BuiltinOptions, kind)
            operator.builtinOptions = getattr(self.schema, f"{kind}T")()
            for key, value in options.items():
                assert hasattr(operator.builtinOptions, key), key
                setattr(operator.builtinOptions, key, value)
        self.operators.append(operator)

    def ints(self, values: Any) -> int:
        """A constant for shapes and axes."""
        array = np.asarray(values, np.int32)
        return self.tensor(f"constant {len(self.tensors)}", array.shape, np.int32, content=array)

    def number(self, scale: Scale, value: int) -> int:
        """A constant of one integer."""
        dtype = np.int8 if scale.bits == 8 else np.int16
        name = f"constant {len(self.tensors)}"
        return self.tensor(name, (1,), dtype, [scale.step], [scale.zero], content=np.array([value]))

    def transpose(self, x: int, output: int, order: Sequence[int]) -> None:
        self.operator("TRANSPOSE", [x, self.ints(order)], output)

    def reshape(self, x: int, output: int) -> None:
        shape = self.tensors[output].shape
        self.operator("RESHAPE", [x, self.ints(shape)], output, newShape=shape)

    def inputs(self, node: IntegerNode) -> list[int]:
        assert not any(name in self.factors for name in node.inputs)
        return [self.at[name] for name in node.inputs]

    def conv(self, node: IntegerNode) -> None:
        kernel, own = node.kernel, self.network.kernels[node.output]
        assert kernel is not None
        (name,) = node.inputs
        x, scale, factor = self.at[name], self.network.scale(name), self.factors.get(name, 1.0)
        side = kernel.weight.shape[-1]
        padding = _SAME
        if kernel.stride > 1:  # LiteRT would pad at the end, PyTorch pads at the beginning
            before, after = side // 2, side - kernel.stride - side // 2
            pads = [[0, 0], [before, after], [before, after], [0, 0]]
            shape = np.add(self.graph.shapes[name], np.sum(pads, 1))
            padded = self.like(scale, f"{node.output}/padded", shape, factor)
            self.operator("PAD", [x, self.ints(pads)], padded)
            x, padding = padded, _VALID
        whole = own.whole.transpose(1, 2, 3, 0) if kernel.is_depthwise else own.whole.transpose(0, 2, 3, 1)
        axis = 3 if kernel.is_depthwise else 0
        # The input holds `factor` times its numbers, so the weights are that much smaller.
        weights = self.tensor(
            f"{node.output}/weights", whole.shape, np.int8, own.step / factor, axis=axis, content=whole
        )
        step = own.step * scale.step  # the factors of weights and input cancel
        bias = own.whole_bias(scale.step)
        dtype = np.int64 if scale.bits == 16 else np.int32
        biases = self.tensor(f"{node.output}/bias", bias.shape, dtype, step, content=bias)
        options = {
            "padding": padding, "strideH": kernel.stride, "strideW": kernel.stride,
            "fusedActivationFunction": _RELU * kernel.relu,
        }  # fmt: skip
        inputs, output = [x, weights, biases], self.output(node)
        if kernel.is_depthwise:
            self.operator("DEPTHWISE_CONV_2D", inputs, output, depthMultiplier=1, **options)
        else:
            self.operator("CONV_2D", inputs, output, _GROUPED_CONV_VERSION * (kernel.groups > 1), **options)

    def hardswish(self, node: IntegerNode) -> None:
        (x,) = self.inputs(node)
        (name,) = node.inputs
        scale, shape = self.network.scale(name), self.graph.shapes[name]
        if scale.bits == 8:
            self.operator("HARD_SWISH", [x], self.output(node))
            return
        gate = self.like(Scale(6 / 32767, 0, 16), f"{node.output}/gate", shape)
        three = self.number(Scale(3 / 16384, 0, 16), 16384)
        self.operator("ADD", [x, three], gate, potScaleInt16=False, fusedActivationFunction=_RELU6)
        if node.output in self.only_for_convs:
            self.operator("MUL", [x, gate], self.output(node, factor=6.0))
            return
        sixth = self.number(Scale(1 / 6 / 16384, 0, 16), 16384)
        small = self.like(scale, f"{node.output}/sixth", shape, factor=1 / 6)
        self.operator("MUL", [x, sixth], small)
        self.operator("MUL", [small, gate], self.output(node))

    def relu(self, node: IntegerNode) -> None:
        self.operator("RELU", self.inputs(node), self.output(node))

    def requantize(self, node: IntegerNode) -> None:
        self.operator("QUANTIZE", self.inputs(node), self.output(node))

    def add(self, node: IntegerNode) -> None:
        self.operator("ADD", self.inputs(node), self.output(node), potScaleInt16=False)

    def concat(self, node: IntegerNode) -> None:
        self.operator("CONCATENATION", self.inputs(node), self.output(node), axis=3)

    def split_heads(self, node: IntegerNode, order: Sequence[int] = (0, 2, 1, 3)) -> None:
        (name,) = node.inputs
        _, height, width, channels = self.graph.shapes[name]
        heads = self.graph.shapes[node.output][1]
        shape = (1, height * width, heads, channels // heads)
        tokens = self.like(self.network.scale(name), f"{node.output}/tokens", shape)
        self.reshape(self.at[name], tokens)
        self.transpose(tokens, self.output(node), order)

    def split_heads_transposed(self, node: IntegerNode) -> None:
        self.split_heads(node, (0, 2, 3, 1))

    def merge_heads(self, node: IntegerNode) -> None:
        (x,) = self.inputs(node)
        _, heads, tokens, dim = self.graph.shapes[node.inputs[0]]
        ordered = self.like(self.network.scale(node.output), f"{node.output}/tokens", (1, tokens, heads, dim))
        self.transpose(x, ordered, (0, 2, 1, 3))
        self.reshape(ordered, self.output(node))

    def product(self, node: IntegerNode) -> None:
        self.operator("BATCH_MATMUL", self.inputs(node), self.output(node))

    def total(self, node: IntegerNode) -> None:
        self.operator("SUM", [*self.inputs(node), self.ints([3])], self.output(node), keepDims=True)

    def floor(self, node: IntegerNode) -> None:
        """LiteRT refuses a division by zero."""
        scale = self.network.scale(node.output)
        self.operator("MAXIMUM", [*self.inputs(node), self.number(scale, scale.zero + 1)], self.output(node))

    def quotient(self, node: IntegerNode) -> None:
        self.operator("DIV", self.inputs(node), self.output(node))

    def interpolate(self, node: IntegerNode) -> None:
        kernel, own = node.kernel, self.network.kernels[node.output]
        assert kernel is not None
        (x,) = self.inputs(node)
        _, height, width, channels = self.graph.shapes[node.inputs[0]]
        shape = (1, 1, *own.whole.shape)
        matrix = self.tensor(f"{node.output}/matrix", shape, np.int8, own.step, content=own.whole)
        if kernel.axis == 2:
            self.operator("BATCH_MATMUL", [matrix, x], self.output(node))
            return
        rows = self.like(self.network.scale(node.inputs[0]), f"{node.output}/rows", (1, 1, height, width * channels))
        self.reshape(x, rows)
        tall = self.like(
            self.network.scale(node.output), f"{node.output}/tall", (1, 1, len(own.whole), width * channels)
        )
        self.operator("BATCH_MATMUL", [matrix, rows], tall)
        self.reshape(tall, self.output(node))


_OPTIONS: Mapping[str, str] = {
    "CONV_2D": "Conv2DOptions", "DEPTHWISE_CONV_2D": "DepthwiseConv2DOptions", "ADD": "AddOptions", "MUL": "MulOptions",
    "DIV": "DivOptions", "PAD": "PadOptions", "QUANTIZE": "QuantizeOptions", "CONCATENATION": "ConcatenationOptions",
    "RESHAPE": "ReshapeOptions", "TRANSPOSE": "TransposeOptions", "BATCH_MATMUL": "BatchMatMulOptions",
    "SUM": "ReducerOptions", "MAXIMUM": "MaximumMinimumOptions", "HARD_SWISH": "HardSwishOptions",
}  # fmt: skip
