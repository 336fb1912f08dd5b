"""Write an integer network as an ONNX file with QuantizeLinear and DequantizeLinear around every operator (QDQ)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from evitseg.errors import MissingPackageError
from evitseg.exporters.integer_graph import MIDDLE_GREY, IntegerNode
from evitseg.exporters.integer_simulation import IntegerNetwork, Scale

if TYPE_CHECKING:
    import onnx

OPSET, IR_VERSION = 21, 10
"""The oldest that quantise to 16 bits."""
_OPERATORS = {
    "hardswish": "HardSwish", "relu": "Relu", "add": "Add", "concat": "Concat", "product": "MatMul", "quotient": "Div",
}  # fmt: skip


def write_integer_onnx(network: IntegerNetwork, path: Path) -> None:
    """Write the file, without a manifest. Raises: MissingPackageError."""
    try:
        import onnx  # noqa: F401
    except ImportError as error:
        raise MissingPackageError("export to ONNX", "export") from error
    path.write_bytes(_Writer(network).proto().SerializeToString())


class _Writer:
    """A file under construction: `at` has the name of every tensor of the graph, restored from its integers.

    Feature maps are (1, channels, height, width).
    """

    def __init__(self, network: IntegerNetwork) -> None:
        self.network, self.graph = network, network.graph
        self.nodes: list[onnx.NodeProto] = []
        self.constants: dict[str, onnx.TensorProto] = {}
        self.at: dict[str, str] = {}

    def proto(self) -> onnx.ModelProto:
        import onnx
        from onnx import TensorProto, helper

        grey = [self.constant(np.float32(1)), self.constant(np.uint8(MIDDLE_GREY))]
        pixels = self.add("DequantizeLinear", "image", *grey)
        self.at["image"] = self.add("Transpose", pixels, perm=[0, 3, 1, 2])
        for node in self.graph.nodes:
            result = self.result(node, [self.at[name] for name in node.inputs])
            self.at[node.output] = self.restored(self.network.scale(node.output), result)
        self.nodes[-1].output[0] = "logits"
        _, height, width, classes = self.graph.shapes["logits"]
        proto = helper.make_model(
            helper.make_graph(
                self.nodes,
                "evitseg",
                [helper.make_tensor_value_info("image", TensorProto.UINT8, self.graph.shapes["image"])],
                [helper.make_tensor_value_info("logits", TensorProto.FLOAT, [1, classes, height, width])],
                list(self.constants.values()),
            ),
            opset_imports=[helper.make_opsetid("", OPSET)],
            ir_version=IR_VERSION,
            producer_name="evitseg",
        )
        onnx.checker.check_model(proto)
        return proto

    def add(self, operator: str, *inputs: str, **attributes: Any) -> str:
        from onnx import helper

        name = f"{operator}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(operator, inputs, [name], name=name, **attributes))
        return name

    def constant(self, values: NDArray[Any] | np.generic) -> str:
        from onnx import numpy_helper

        name = f"constant_{len(self.constants)}"
        self.constants[name] = numpy_helper.from_array(np.asarray(values), name)
        return name

    def ints(self, values: Sequence[int]) -> str:
        return self.constant(np.array(values, np.int64))

    def restored(self, scale: Scale, x: str) -> str:
        """A tensor rounded to its integers, and restored from them."""
        own = [
            self.constant(np.float32(scale.step)),
            self.constant((np.int8 if scale.bits == 8 else np.int16)(scale.zero)),
        ]
        return self.add("DequantizeLinear", self.add("QuantizeLinear", x, *own), *own)

    def result(self, node: IntegerNode, inputs: list[str]) -> str:
        """The output of an operation, before it is rounded."""
        shape = self.graph.shapes[node.output]
        match node.kind:
            case "requantize":
                return inputs[0]
            case "conv":
                return self.conv(node, inputs[0])
            case "interpolate":
                own, kernel = self.network.kernels[node.output], node.kernel
                assert kernel is not None
                whole = own.whole if kernel.axis == 1 else own.whole.T
                matrix = self.add(
                    "DequantizeLinear",
                    self.constant(np.ascontiguousarray(whole)),
                    self.constant(np.float32(own.step[0])),
                )
                return self.add("MatMul", *((matrix, inputs[0]) if kernel.axis == 1 else (inputs[0], matrix)))
            case "split_heads":
                heads, tokens, dim = shape[1:]
                parts = self.add("Reshape", inputs[0], self.ints((1, heads, dim, tokens)))
                return self.add("Transpose", parts, perm=[0, 1, 3, 2])
            case "split_heads_transposed":
                return self.add("Reshape", inputs[0], self.ints(shape))
            case "merge_heads":
                _, height, width, channels = shape
                parts = self.add("Transpose", inputs[0], perm=[0, 1, 3, 2])
                return self.add("Reshape", parts, self.ints((1, channels, height, width)))
            case "total":
                return self.add("ReduceSum", inputs[0], self.ints([3]), keepdims=1)
            case "floor":
                step = self.network.scale(node.output).step
                return self.add("Max", inputs[0], self.constant(np.float32(step)))
            case "concat":
                return self.add("Concat", *inputs, axis=1)
            case _:
                return self.add(_OPERATORS[node.kind], *inputs)

    def conv(self, node: IntegerNode, x: str) -> str:
        kernel, own = node.kernel, self.network.kernels[node.output]
        input_step = self.network.scale(node.inputs[0]).step
        assert kernel is not None
        weight, bias = (
            self.add("DequantizeLinear", self.constant(whole), self.constant(step.astype(np.float32)), axis=0)
            for whole, step in (
                (own.whole, own.step),
                (own.whole_bias(input_step).astype(np.int32), own.step * input_step),
            )
        )
        side = kernel.weight.shape[-1]
        x = self.add(
            "Conv",
            x,
            weight,
            bias,
            kernel_shape=[side, side],
            strides=[kernel.stride] * 2,
            pads=[side // 2] * 4,
            group=kernel.groups,
        )
        return self.add("Relu", x) if kernel.relu else x
