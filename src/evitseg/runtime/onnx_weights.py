"""Read the manifest and the weights of an ONNX file that evitseg wrote, without the onnx package or an engine."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from evitseg.errors import EngineError, WeightsError
from evitseg.manifest import METADATA_KEY, Manifest
from evitseg.runtime.model_file import check_graph, manifest_inside, read
from evitseg.runtime.onnx_file import check_onnx, fields, packed_integers
from evitseg.runtime.weights import Weights, check_weights, strange_graph

# Numbers of the fields of onnx.proto's messages.
_GRAPH, _METADATA = 7, 14
_NODES, _TENSORS, _INPUTS, _OUTPUTS = 1, 5, 11, 12
_NODE_INPUTS, _NODE_OUTPUTS, _NODE_NAME, _OPERATOR = 1, 2, 3, 4
_DIMS, _TYPE, _TENSOR_NAME, _RAW = 1, 2, 8, 9
_DTYPES = {1: "<f4", 3: "<i1", 7: "<i8", 10: "<f2"}
"""numpy's names of the tensor types that `evitseg export` writes."""
_ELEMENTS = {1: "f32", 2: "u8"}


@dataclass(frozen=True)
class _Node:
    operator: str
    name: str
    inputs: list[str]


def read_onnx_manifest(model_file: Path) -> Manifest:
    """The manifest of an ONNX file. Raises: WeightsError, ConfigError."""
    return _Model(model_file).manifest


def read_onnx(model_file: Path) -> tuple[Manifest, list[Weights]]:
    """The manifest of an ONNX file, and its convolutions in the order of `evitseg.architecture.placed_convs`.

    Raises: WeightsError for a file that is damaged or that `evitseg export` did not write, EngineError for one with
    integer arithmetic, ConfigError.
    """
    return _Model(model_file).weights()


class _Model:
    def __init__(self, model_file: Path) -> None:
        content = read(model_file)
        check_onnx(content, model_file)
        self._where = model_file
        try:
            properties = {_text(own, 1): _text(own, 2) for own in _messages(memoryview(content), _METADATA)}
            graphs = [*_messages(memoryview(content), _GRAPH)]
        except (ValueError, IndexError) as error:
            raise WeightsError(f"{model_file}: damaged, or not an ONNX file; export it again.") from error
        self.manifest = manifest_inside(properties.get(METADATA_KEY), model_file)
        if len(graphs) != 1:
            raise strange_graph(model_file)
        self._graph = graphs[0]

    def weights(self) -> tuple[Manifest, list[Weights]]:
        if self.manifest.weights == "w8a8":
            raise EngineError(
                f"{self._where}: has integer arithmetic, which only ONNX Runtime computes; use --engine "
                "onnxruntime, with other models exported to ONNX, too, or the checkpoint it was exported from."
            )
        try:
            self._check_ends()
            self._tensors = {_text(tensor, _TENSOR_NAME): tensor for tensor in _messages(self._graph, _TENSORS)}
            self._nodes: dict[str, _Node] = {}
            for node in _messages(self._graph, _NODES):
                own = _Node(_text(node, _OPERATOR), _text(node, _NODE_NAME), _texts(node, _NODE_INPUTS))
                self._nodes |= dict.fromkeys(_texts(node, _NODE_OUTPUTS), own)
            weights = [own for _, own in sorted(self._convolutions(), key=lambda numbered: numbered[0])]
        except (ValueError, IndexError, KeyError, OverflowError) as error:
            raise strange_graph(self._where) from error
        check_weights(weights, self.manifest.model, self._where)
        return self.manifest, weights

    def _check_ends(self) -> None:
        """Refuse a graph whose input or output contradicts its manifest. Raises: WeightsError."""
        inputs, outputs = ([*_messages(self._graph, number)] for number in (_INPUTS, _OUTPUTS))
        if len(inputs) != 1 or len(outputs) != 1:
            raise WeightsError(
                f"{self._where}: has {len(inputs)} inputs and {len(outputs)} outputs, not one of each, so evitseg did "
                "not write it; give a file that evitseg export wrote."
            )
        (kind, given), (_, logits) = map(_tensor_type, (*inputs, *outputs))
        check_graph(_ELEMENTS.get(kind, "another type"), given, logits, self.manifest, self._where)

    def _convolutions(self) -> Iterator[tuple[int, Weights]]:
        """Every convolution with the number in its name."""
        for node in self._nodes.values():
            if node.operator != "Conv":
                continue
            number = re.fullmatch(r"Conv_(\d{1,9})", node.name)
            if number is None:
                raise ValueError("a convolution without a number")
            _, kernel, *bias = node.inputs
            yield int(number[1]), Weights(self._value(kernel), self._value(bias[0]) if bias else None)

    def _value(self, name: str) -> NDArray[np.float32]:
        """The values of a constant, restored if it is stored smaller. Raises: ValueError, KeyError."""
        if name in self._tensors:
            return _array(self._tensors[name])
        node = self._nodes[name]
        match node.operator, [_array(self._tensors[given]) for given in node.inputs]:
            case "Cast", [values]:
                return values
            case "DequantizeLinear", [values, steps]:
                return values * steps.reshape(-1, *[1] * (values.ndim - 1))
        raise ValueError(f"weights from {node.operator}")


def _array(tensor: memoryview) -> NDArray[np.float32]:
    """The numbers of a tensor. Raises: ValueError, KeyError for a type that evitseg does not write."""
    dims: list[int] = []
    data_type, raw = 0, memoryview(b"")
    for number, value in fields(tensor):
        if number == _DIMS:
            dims += [value] if isinstance(value, int) else packed_integers(value)
        elif number == _TYPE and isinstance(value, int):
            data_type = value
        elif number == _RAW and isinstance(value, memoryview):
            raw = value
    return np.frombuffer(raw, _DTYPES[data_type]).reshape(dims).astype(np.float32)


def _tensor_type(end: memoryview) -> tuple[int, list[int | None]]:
    """The type of an input's or output's numbers, and its shape; None stands for a free size."""
    (about,) = _messages(end, 2)
    (tensor,) = _messages(about, 1)
    kind = next((value for number, value in fields(tensor) if number == 1 and isinstance(value, int)), 0)
    shape: list[int | None] = []
    for dims in _messages(tensor, 2):
        for side in _messages(dims, 1):
            shape.append(next((value for number, value in fields(side) if number == 1), None))
    return kind, shape


def _messages(content: memoryview, wanted: int) -> Iterator[memoryview]:
    for number, value in fields(content):
        if number == wanted and isinstance(value, memoryview):
            yield value


def _texts(content: memoryview, wanted: int) -> list[str]:
    return [str(value, "utf-8") for value in _messages(content, wanted)]


def _text(content: memoryview, wanted: int) -> str:
    return next(iter(_texts(content, wanted)), "")
