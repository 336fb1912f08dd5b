"""Check an ONNX file before an engine reads it, without the onnx package.

An ONNX file can refer to weights elsewhere: in other files, which an engine would then read, or, for ONNX Runtime and
OpenVINO, at an address in the process's memory, which crashes it. `evitseg export` stores all weights inside.
"""

from __future__ import annotations

from collections.abc import Iterator
from math import prod
from pathlib import Path
from typing import Any

from evitseg.errors import WeightsError

# Fields of onnx.proto's messages that hold messages: number and kind of the inner message.
_MESSAGES: dict[str, dict[int, str]] = {
    "model": {7: "graph", 20: "training", 25: "function"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "training": {1: "graph", 2: "graph"},
    "function": {7: "node", 11: "attribute"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
    "tensor": {},
}
_DIMS, _TYPE, _RAW, _EXTERNAL, _LOCATION = 1, 2, 9, 13, 14
_ITEM_BYTES = {1: 4, 2: 1, 3: 1, 4: 2, 5: 2, 6: 4, 7: 8, 9: 1, 10: 2, 11: 8, 12: 4, 13: 8, 16: 2}
"""Bytes per number by the tensor's type; float32 is 1, uint8 2, int8 3, int64 7, float16 10."""
_DEEPEST = 32
"""Largest depth of graphs inside graphs."""


def check_onnx(content: bytes, model_file: Path) -> None:
    """Refuse weights outside the file, tensors of the wrong length, and other damage. Raises: WeightsError."""
    try:
        _check("model", memoryview(content), model_file, 0)
    except (ValueError, IndexError) as error:
        raise WeightsError(f"{model_file}: damaged, or not an ONNX file; export it again.") from error


def _check(kind: str, content: memoryview, model_file: Path, depth: int) -> None:
    if depth > _DEEPEST:
        raise ValueError("too deep")
    dims: list[int] = []
    data_type, raw = 0, None
    for number, value in fields(content):
        inner = _MESSAGES[kind].get(number)
        if inner is not None and isinstance(value, memoryview):
            _check(inner, value, model_file, depth + 1)
        elif kind != "tensor":
            continue
        elif number == _EXTERNAL or (number == _LOCATION and value):
            raise WeightsError(
                f"{model_file}: stores weights in other files or in memory, which are not read; evitseg export stores "
                "them inside."
            )
        elif number == _DIMS:
            dims += [value] if isinstance(value, int) else packed_integers(value)
        elif number == _TYPE and isinstance(value, int):
            data_type = value
        elif number == _RAW:
            raw = value
    if isinstance(raw, memoryview) and data_type in _ITEM_BYTES and prod(dims) * _ITEM_BYTES[data_type] != len(raw):
        raise WeightsError(f"{model_file}: damaged: a tensor of {prod(dims)} numbers has {len(raw)} bytes.")


def fields(content: memoryview) -> Iterator[tuple[int, Any]]:
    """Number and value of every field of a message: an int, or the bytes of a longer value.

    Raises: ValueError, IndexError for damage.
    """
    at = 0
    while at < len(content):
        key, at = _varint(content, at)
        match key & 7:
            case 0:
                value, at = _varint(content, at)
                yield key >> 3, value
            case 2:
                length, at = _varint(content, at)
                if at + length > len(content):
                    raise ValueError("longer than the file")
                yield key >> 3, content[at : at + length]
                at += length
            case 1:
                at += 8
            case 5:
                at += 4
            case _:
                raise ValueError("no such kind of field")


def packed_integers(content: memoryview) -> list[int]:
    """The numbers of a packed repeated field. Raises: ValueError, IndexError."""
    values, at = [], 0
    while at < len(content):
        value, at = _varint(content, at)
        values.append(value)
    return values


def _varint(content: memoryview, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = content[at]
        value |= (byte & 127) << shift
        at, shift = at + 1, shift + 7
        if byte < 128:
            return value, at
        if shift > 63:
            raise ValueError("a number of more than 64 bits")
