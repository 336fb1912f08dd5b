"""Write a network as one ONNX file with weights and manifest inside, for images of any height and width.

The graph is built here, operator by operator, instead of traced: tracing takes 22 s for B0 with free sizes and minutes
for larger networks, this takes a second. The file then contains exactly the intended operators, with batch norm folded
into the convolutions, no copies, and nothing about the machine that wrote it. `verify` compares it with the network.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from evitseg.architecture import LOGIT_STRIDE
from evitseg.errors import ExportError, MissingPackageError
from evitseg.exporters.export_model import up_sampling
from evitseg.exporters.int8 import in_steps, steps
from evitseg.manifest import METADATA_KEY, Manifest
from evitseg.model.attention import SMALLEST, AttentionSequence, MultiScaleAttention
from evitseg.model.fold import folded, in_half
from evitseg.model.layers import ConvNormAct, ConvSequence
from evitseg.model.network import EfficientViT, SegmentationNetworkHead
from evitseg.preprocess import Preprocess
from evitseg.system.files import replacing

if TYPE_CHECKING:
    import onnx

OPSET = 20
"""The oldest opset of ONNX that has GELU's tanh approximation as one operator."""
IR_VERSION = 9
"""The oldest IR version for opset 20, which most runtimes read."""


def write_onnx(model: EfficientViT, manifest: Manifest, path: Path) -> None:
    """Write the model without verifying it. Raises: ExportError, MissingPackageError."""
    path.write_bytes(_with_manifest(onnx_graph(model, manifest.preprocess, manifest.weights), manifest))


def set_onnx_manifest(path: Path, manifest: Manifest) -> None:
    """Replace the manifest in an exported file."""
    import onnx

    content = _with_manifest(onnx.load(path, load_external_data=False), manifest)
    with replacing(path) as file:
        file.write(content)


def _with_manifest(proto: onnx.ModelProto, manifest: Manifest) -> bytes:
    del proto.metadata_props[:]
    proto.metadata_props.add(key=METADATA_KEY, value=manifest.to_json())
    content: bytes = proto.SerializeToString()
    return content


def onnx_graph(model: EfficientViT, preprocess: Preprocess, weights: str = "float32") -> onnx.ModelProto:
    """The network as an ONNX model, with normalisation as its first step.

    Raises: ExportError, MissingPackageError.

    Input: image (batch, height, width, 3) uint8 RGB. Output: logits (batch, classes, height / 8, width / 8) float32.
    Every size except the number of classes is free. A `preprocess` with a fixed size fixes all of them, with a batch of
    1; the graph then has no shape arithmetic and no cubic Resize, which TensorRT does not support.

    Args:
        weights: "float16" stores the convolutions' weights in half the bytes; "int8" stores those that `rounded` has
            rounded in a quarter of the bytes and the others in half. Engines convert them back once, on loading.
    """
    try:
        import onnx  # noqa: F401
    except ImportError as error:
        raise MissingPackageError("export to ONNX", "export") from error
    if not isinstance(model.head, SegmentationNetworkHead):
        raise ExportError("a classifier predicts no masks; export a segmentation network.")

    return _written(model, preprocess, weights)[0]


def _written(
    model: EfficientViT, preprocess: Preprocess, weights: str
) -> tuple[onnx.ModelProto, list[tuple[str, ConvNormAct]]]:
    """The graph, and the module behind each convolution's name in the graph."""
    import onnx
    from onnx import TensorProto, helper

    assert isinstance(model.head, SegmentationNetworkHead)
    graph = _Graph(weights)
    size = preprocess.fixed
    if size is None:  # transposed as uint8, a quarter of the bytes
        pixels = graph.add("Cast", graph.add("Transpose", "image", perm=[0, 3, 1, 2]), to=TensorProto.FLOAT)
    else:  # TensorRT accepts bytes only as input of a Cast
        pixels = graph.add("Transpose", graph.add("Cast", "image", to=TensorProto.FLOAT), perm=[0, 3, 1, 2])
    mean, std = (np.array(v, np.float64).reshape(1, 3, 1, 1) * 255 for v in (preprocess.mean, preprocess.std))
    x = graph.add("Mul", graph.add("Add", pixels, graph.constant(-mean)), graph.constant(1 / std))
    for block in model.backbone.stem:
        x = _sequence(graph, block, x)
    features = []
    for stride, stage in zip((4, 8, 16, 32), model.backbone.stages, strict=True):
        assert isinstance(stage, nn.Sequential)
        for block in stage:
            x = (
                _attention_sequence(graph, block, x, None if size is None else (size[0] // stride, size[1] // stride))
                if isinstance(block, AttentionSequence)
                else _sequence(graph, block, x)
            )
        features.append(x)
    logits = _head(graph, model.head, features, size)
    graph.nodes[-1].output[0] = "logits"
    assert logits not in {name for node in graph.nodes for name in node.input}

    given: list[str | int] = ["batch", "height", "width", 3]
    shape: list[str | int] = ["batch", model.config.num_classes, f"height/{LOGIT_STRIDE}", f"width/{LOGIT_STRIDE}"]
    if preprocess.fixed is not None:
        given = [1, *preprocess.fixed, 3]
        shape = [1, model.config.num_classes, *(side // LOGIT_STRIDE for side in preprocess.fixed)]
    inputs = [helper.make_tensor_value_info("image", TensorProto.UINT8, given)]
    outputs = [helper.make_tensor_value_info("logits", TensorProto.FLOAT, shape)]
    proto = helper.make_model(
        helper.make_graph(graph.nodes, "evitseg", inputs, outputs, graph.initializers),
        opset_imports=[helper.make_opsetid("", OPSET)],
        ir_version=IR_VERSION,
        producer_name="evitseg",
    )
    onnx.checker.check_model(proto)
    return proto, graph.convs


class _Graph:
    """A graph under construction: nodes in the order they run, each named after its operator."""

    def __init__(self, weights: str) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[onnx.TensorProto] = []
        self.convs: list[tuple[str, ConvNormAct]] = []
        self._weights = weights
        self._constants: dict[tuple[Any, ...], str] = {}

    def add(self, operator: str, *inputs: str, outputs: int = 1, **attributes: Any) -> Any:
        """Add a node. Returns: its output's name, or a list of names for several."""
        from onnx import helper

        name = f"{operator}_{len(self.nodes)}"
        names = [name] if outputs == 1 else [f"{name}.{i}" for i in range(outputs)]
        self.nodes.append(helper.make_node(operator, inputs, names, name=name, **attributes))
        return name if outputs == 1 else names

    def constant(self, values: Any, dtype: type = np.float32) -> str:
        """The name of a constant; the same values are stored once."""
        from onnx import numpy_helper

        array: NDArray[Any] = np.asarray(values, dtype)
        key = (array.dtype, array.shape, array.tobytes())
        if key not in self._constants:
            self._constants[key] = f"constant_{len(self._constants)}"
            self.initializers.append(numpy_helper.from_array(array, self._constants[key]))
        return self._constants[key]

    def weight(self, values: NDArray[np.float64]) -> str:
        """The name of a convolution's weight, in the number format the file stores."""
        from onnx import TensorProto

        if self._weights == "float32":
            return self.constant(values)
        whole = in_steps(values) if self._weights == "int8" else None
        if whole is not None:
            step = self.constant(steps(values).ravel())
            restored: str = self.add("DequantizeLinear", self.constant(whole, np.int8), step, axis=0)
            return restored
        name: str = self.add("Cast", self.constant(in_half(values), np.float16), to=TensorProto.FLOAT)
        return name


def _conv(graph: _Graph, module: nn.Module, x: str) -> str:
    assert isinstance(module, ConvNormAct)
    weight, bias = folded(module)
    conv = module.conv
    inputs = [x, graph.weight(weight)] + ([] if bias is None else [graph.constant(bias)])
    x = graph.add(
        "Conv",
        *inputs,
        kernel_shape=list(conv.kernel_size),
        strides=list(conv.stride),
        pads=[int(p) for p in (*conv.padding, *conv.padding)],
        group=conv.groups,
    )
    graph.convs.append((x, module))
    match getattr(module, "act", None):
        case nn.Hardswish():
            x = graph.add("HardSwish", x)
        case nn.GELU():
            x = graph.add("Gelu", x, approximate="tanh")
        case nn.ReLU():
            x = graph.add("Relu", x)
    return x


def _sequence(graph: _Graph, block: nn.Module, x: str) -> str:
    assert isinstance(block, ConvSequence)
    out = x
    for conv in block:
        out = _conv(graph, conv, out)
    return graph.add("Add", x, out) if block.residual else out


def _attention_sequence(graph: _Graph, block: AttentionSequence, x: str, size: tuple[int, int] | None) -> str:
    return _sequence(graph, block.local, graph.add("Add", x, _attention(graph, block.attention, x, size)))


def _attention(graph: _Graph, module: MultiScaleAttention, x: str, size: tuple[int, int] | None) -> str:
    """Add `MultiScaleAttention` step by step; `relu_linear_attention` explains the scales.

    Args:
        size: (height, width) of the features; None for free sizes.
    """
    from onnx import TensorProto

    dim, heads = module.head_dim, module.num_heads
    qkv = _conv(graph, module.qkv, x)
    scales = [qkv]
    for aggregate in module.aggregate:
        assert isinstance(aggregate, nn.Sequential)
        scale = qkv
        for conv in aggregate:
            scale = _conv(graph, conv, scale)
        scales.append(scale)

    def ints(*values: int) -> str:
        return graph.constant(values, np.int64)

    def at_least(values: str) -> str:
        name: str = graph.add("Max", values, graph.constant(SMALLEST))
        return name

    tokens = graph.add("Reshape", graph.add("Concat", *scales, axis=1), ints(0, heads, 3 * dim, -1))
    q, k, v = graph.add("Split", tokens, ints(dim, dim, dim), outputs=3, axis=2)
    q, k = graph.add("Relu", q), graph.add("Relu", k)
    query_scale = at_least(graph.add("ReduceMax", q, ints(2), keepdims=1))
    if size is None:
        count = graph.add("Cast", graph.add("Shape", tokens, start=3, end=4), to=TensorProto.FLOAT)
        root = graph.add("Reciprocal", graph.add("Sqrt", count))
    else:
        root = graph.constant((size[0] * size[1]) ** -0.5)
    key_scale = graph.add("Div", root, at_least(graph.add("ReduceMax", k, ints(2, 3), keepdims=1)))
    k = graph.add("Mul", k, key_scale)

    context = graph.add("MatMul", v, graph.add("Transpose", k, perm=[0, 1, 3, 2]))
    key_sum = graph.add("ReduceSum", k, ints(3), keepdims=1)
    sum_scale = at_least(graph.add("ReduceMax", key_sum, ints(2), keepdims=1))
    key_sum = graph.add("Div", key_sum, sum_scale)
    q = graph.add("Div", q, query_scale)
    matched, eps = graph.add("ReduceSum", graph.add("Mul", q, key_sum), ints(2), keepdims=1), ""
    if module.eps:
        eps = graph.add("Div", graph.add("Mul", key_scale, graph.constant(module.eps)), sum_scale)
        eps = graph.add("Div", eps, query_scale)
        matched = graph.add("Add", matched, eps)
    # Divided by what it matches, a query keeps its result in float16 even if that is little.
    matched = at_least(matched)
    key_sum = graph.add("Transpose", key_sum, perm=[0, 1, 3, 2])
    sums = graph.add("Concat", graph.add("Div", context, sum_scale), key_sum, axis=2)
    out = graph.add("MatMul", sums, graph.add("Div", q, matched))

    attended, divisor = graph.add("Split", out, ints(dim, 1), outputs=2, axis=2)
    if eps:
        divisor = graph.add("Add", divisor, graph.add("Div", eps, matched))
    attended = graph.add("Div", attended, at_least(divisor))
    if size is None:
        shape = graph.add("Concat", ints(0, heads * dim), graph.add("Shape", x, start=2, end=4), axis=0)
    else:
        shape = ints(1, heads * dim, *size)
    return _conv(graph, module.proj, graph.add("Reshape", attended, shape))


def _head(graph: _Graph, head: SegmentationNetworkHead, features: list[str], size: tuple[int, int] | None) -> str:
    merged = ""
    for conv, feature, factor in zip(head.inputs, reversed(features[1:]), (4, 2, 1), strict=True):
        x = _conv(graph, conv, feature)
        if size is None and factor > 1:
            x = graph.add(
                "Resize",
                x,
                "",
                graph.constant([1, 1, factor, factor]),
                mode="cubic",
                cubic_coeff_a=-0.75,
                coordinate_transformation_mode="half_pixel",
            )
        elif size is not None and factor > 1:
            down, across = (up_sampling(side // LOGIT_STRIDE // factor, factor).numpy() for side in size)
            x = graph.add("MatMul", graph.constant(down), graph.add("MatMul", x, graph.constant(across.T)))
        merged = graph.add("Add", merged, x) if merged else x
    for block in head.blocks:
        merged = _sequence(graph, block, merged)
    for conv in head.outputs:
        merged = _conv(graph, conv, merged)
    return merged
