"""The tensors of integer files as LiteRT and ONNX Runtime compute them, and how far each is from the simulation."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from evitseg.exporters.integer_simulation import IntegerNetwork, computed, graph_input, reshaped

OF_HEADS = {"split_heads", "split_heads_transposed", "product", "total", "floor", "quotient"}
"""Kinds of operations whose results are (1, heads, ...)."""


def in_litert(path: Path, network: IntegerNetwork, image: NDArray[np.uint8]) -> dict[str, Tensor]:
    """Every tensor of the graph, from LiteRT's own operators."""
    from ai_edge_litert.interpreter import Interpreter, OpResolverType

    plain = OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES  # a delegate keeps no tensors
    interpreter = Interpreter(
        str(path), num_threads=1, experimental_preserve_all_tensors=True, experimental_op_resolver_type=plain
    )
    interpreter.allocate_tensors()
    interpreter.set_tensor(interpreter.get_input_details()[0]["index"], image[None])
    interpreter.invoke()
    details: dict[str, Any] = {tensor["name"]: tensor for tensor in interpreter.get_tensor_details()}

    def stored(name: str) -> Tensor:
        """A tensor in the file; those that hold six times their numbers are divided by 6."""
        step, zero = details[name]["quantization"]
        factor = step / network.scale(name).step
        assert factor == pytest.approx(1) or factor == pytest.approx(6)
        whole = interpreter.get_tensor(details[name]["index"]).astype(np.float32) - zero
        return torch.from_numpy(whole) * network.scale(name).step

    return {node.output: stored(node.output) for node in network.graph.nodes}


def in_onnx_runtime(path: Path, network: IntegerNetwork, image: NDArray[np.uint8]) -> dict[str, Tensor]:
    """Every tensor of the graph, from ONNX Runtime with the options of our engine."""
    import onnx
    import onnxruntime

    proto = onnx.load(path)
    # The writer rounds one tensor after the other, in the order of the graph.
    names = [node.output[0] for node in proto.graph.node if node.op_type == "QuantizeLinear"]
    for name in names:
        proto.graph.output.append(onnx.ValueInfoProto(name=name))
    options = onnxruntime.SessionOptions()
    options.add_session_config_entry("session.disable_quant_qdq", "1")
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    tensors = {}
    for node, whole in zip(network.graph.nodes, session.run(names, {"image": image[None]}), strict=True):
        scale = network.scale(node.output)
        tensor = (torch.from_numpy(whole.astype(np.float32)) - scale.zero) * scale.step
        # Feature maps have their channels last in the graph, and first in the file.
        tensors[node.output] = tensor if node.kind in OF_HEADS else tensor.permute(0, 2, 3, 1)
        assert tensors[node.output].shape == network.graph.shapes[node.output], node.output
    return tensors


def steps_apart(
    network: IntegerNetwork, tensors: Mapping[str, Tensor], image: NDArray[np.uint8]
) -> Iterator[tuple[str, Tensor]]:
    """For every operation, how many steps its result is from what the simulation computes from the same inputs."""
    stored = {"image": graph_input(image), **tensors}
    for node in network.graph.nodes:
        inputs, scale = [stored[name] for name in node.inputs], network.scale(node.output)
        expected = reshaped(node, inputs[0], network.graph.shapes[node.output])
        if expected is None:
            kernel = None
            if node.kernel is not None:
                kernel = network.kernels[node.output].restored(node.kernel)
            expected = scale.rounded(computed(node, inputs, kernel, scale.step))
        yield node.output, (stored[node.output] - expected).abs() / scale.step
