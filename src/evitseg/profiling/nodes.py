"""Read the engines' counters: the time of every node of the network."""

from __future__ import annotations

import json
import math
import re
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from evitseg.architecture import ModelConfig, placed_convs
from evitseg.engine import Engine
from evitseg.errors import WeightsError
from evitseg.profiling.machine_peak import MachinePeak, onnxruntime_product, openvino_product
from evitseg.profiling.worker import warm_up

if TYPE_CHECKING:
    import openvino

INPUT = "input"
"""The block of what comes before the first convolution: layout, number format, normalisation."""


@dataclass(frozen=True)
class Work:
    """What was done, and how long it took.

    Attributes:
        name, block: in the network's terms; see `evitseg.architecture.PlacedConv`.
        count: how many of the engine's nodes do it: tiles, and what a block has several of.
        ms: mean over the rounds.
        macs: multiply-adds.
        bytes_in, bytes_out: of all inputs with the weights, and of all outputs.
    """

    name: str
    block: str
    count: int
    ms: float
    macs: int
    bytes_in: int
    bytes_out: int

    @property
    def gflops(self) -> float:
        return 2 * self.macs / self.ms / 1e6 if self.ms else 0.0

    @property
    def gb_per_s(self) -> float:
        return (self.bytes_in + self.bytes_out) / self.ms / 1e6 if self.ms else 0.0

    @property
    def intensity(self) -> float:
        """Floating-point operations for a byte."""
        return 2 * self.macs / max(1, self.bytes_in + self.bytes_out)

    def roof_ms(self, peak: MachinePeak) -> float:
        return peak.ms(self.macs, self.bytes_in + self.bytes_out)


@dataclass(frozen=True)
class Node(Work):
    """A node as the engine runs it, or several of one name.

    Attributes:
        type, kernel: what the engine calls its operator, and the code that it chose for it.
        engine_name: what the engine calls it, or the first of several.
    """

    type: str
    kernel: str
    engine_name: str


@dataclass(frozen=True)
class _Place:
    """Where a node stands: its name in the network, its block, and the number of the convolution it is or follows."""

    name: str
    block: str
    number: int = -1


def multiply_adds(model: openvino.Model) -> dict[str, int]:
    """Of every operator that has any, by its name without what the reader adds to it."""
    counts = {}
    for operator in model.get_ordered_ops():
        kind = operator.get_type_name()
        if kind in ("Convolution", "GroupConvolution"):
            out, weight = (list(value.get_shape()) for value in (operator.output(0), operator.input_value(1)))
            each = math.prod(weight) // out[1]
        elif kind == "MatMul":
            out = list(operator.output(0).get_shape())
            # Both may be transposed; the inputs' elements and the output's say what was summed over.
            each = int(operator.input_value(0).get_shape()[-2 if operator.get_attributes()["transpose_a"] else -1])
        elif kind == "ScaledDotProductAttention":
            out = list(operator.output(0).get_shape())
            query, key = (operator.input_value(i).get_shape() for i in (0, 1))
            counts[_plain(operator.friendly_name)] = math.prod(query) * key[-2] + math.prod(out) * key[-2]
            continue
        else:
            continue
        counts[_plain(operator.friendly_name)] = math.prod(out) * each
    return counts


def _plain(name: str) -> str:
    return name.removesuffix("/WithoutBiases")


def _places(model: openvino.Model, config: ModelConfig, model_file: Path) -> dict[str, _Place]:
    """Of the operators that stand for something in the network, by name: in the file its convolutions.

    Names in the file end in places in the file; `openvino_graph` names what it writes after the plan's blocks.
    """
    planned = list(enumerate(placed_convs(config)))
    written = [
        _plain(operator.friendly_name)
        for operator in model.get_ordered_ops()
        if operator.get_type_name() in ("Convolution", "GroupConvolution")
    ]
    if len(written) == len(planned) and all(re.fullmatch(r"Conv_\d+", name) for name in written):
        written.sort(key=lambda name: int(name.removeprefix("Conv_")))
        return {
            name: _Place(f"{conv.block}.{conv.name}", conv.block, number)
            for name, (number, conv) in zip(written, planned, strict=True)
        }
    places = {}
    for operator in model.get_ordered_ops():
        name = _plain(operator.friendly_name)
        block, slash, part = re.sub(r" tile \d+,\d+$", "", name).rpartition("/")
        if name in written:
            number = next(
                (i for i, conv in planned if conv.block == block and f"{part}.".startswith(f"{conv.name}.")), -1
            )
            if number < 0:
                raise WeightsError(
                    f"{model_file}: its graph is not the one that evitseg export writes; export it again."
                )
            places[name] = _Place(f"{block}.{part}", block, number)
        elif slash and operator.get_type_name() != "Constant":
            places[name] = _Place(f"{block}/{part}", block)
    return places


@dataclass(frozen=True)
class _Profiled:
    """What a profiler gives.

    Attributes:
        network_ms, rounds: see `Profile`.
        nodes: one for each of the engine's.
        product: multiplies two square matrices of `PEAK_SIDE` in the same engine, precision and threads.
    """

    network_ms: float
    rounds: int
    nodes: list[Node]
    product: Callable[[], object]


def _in_openvino(engine: Engine, model_file: Path, images: NDArray[np.uint8], rounds: int) -> _Profiled:
    from evitseg.runtime.openvino_engine import OpenVinoEngine

    assert isinstance(engine, OpenVinoEngine)
    size = images.shape[1], images.shape[2]
    graph, compiled = engine.graph(size), engine.compile(size, PERF_COUNT="YES")
    macs, known = multiply_adds(graph), _places(graph, engine.manifest.model, model_file)
    in_file = any(name.startswith("Conv_") for name in known)
    request = compiled.create_infer_request()

    def call() -> float:
        start = time.perf_counter()
        request.infer([images], share_inputs=True, share_outputs=True)
        return time.perf_counter() - start

    calls = 0

    def counted() -> float:
        nonlocal calls
        calls += 1
        return call()

    def microseconds() -> dict[str, int]:
        """Of all calls so far: the counters are means over them."""
        return {node.node_name: calls * node.real_time.microseconds for node in request.get_profiling_info()}

    warm_up(counted)
    rounds = max(
        rounds, 2 * calls
    )  # the means are whole microseconds; what is taken off for warming up must stay small
    before = microseconds()
    network_ms = 1000 * sum(counted() for _ in range(rounds)) / rounds
    after = microseconds()

    nodes, places = [], dict[str, _Place]()
    for operator in compiled.get_runtime_model().get_ordered_ops():
        name, told = operator.friendly_name, {key: str(value.value) for key, value in operator.get_rt_info().items()}
        # A comma before a digit is a tile's own.
        originals = [_plain(original) for original in re.split(r",(?!\d)", told["originalLayersNames"]) if original]
        sources = [places[value.get_node().friendly_name] for value in operator.input_values()]
        # What is no convolution belongs to the last one that it depends on.
        last = max(sources, key=lambda place: place.number, default=_Place(INPUT, INPUT))
        own = next((known[original] for original in originals if original in known), None)
        place = places[name] = replace(own, number=max(own.number, last.number)) if own else last
        if not after.get(name):  # a constant, or what was done once while compiling
            continue
        if in_file:
            kind = _operator(told["layerType"], name)
        else:  # numbers that OpenVINO has given mean nothing
            kind = re.sub(r"_\d+$", "", (originals or [told["layerType"]])[-1])
        nodes.append(
            Node(
                name=own.name if own else f"{place.block}/{kind}",
                block=place.block,
                count=1,
                ms=max(0, after[name] - before.get(name, 0)) / rounds / 1000,
                macs=sum(macs.get(original, 0) for original in dict.fromkeys(originals)),
                bytes_in=sum(_bytes(value) for value in operator.input_values()),
                bytes_out=sum(_bytes(value) for value in operator.outputs()),
                type=told["layerType"],
                kernel=told["primitiveType"],
                engine_name=name,
            )
        )
    return _Profiled(network_ms, rounds, nodes, openvino_product(compiled))


def _operator(kind: str, name: str) -> str:
    """An operator's name in the file, if it is still in the engine's name, else its kind."""
    return name if re.fullmatch(r"[A-Za-z]+_\d+", name) else kind


def _bytes(value: Any) -> int:
    return int(math.prod(value.get_partial_shape().to_shape()) * value.get_element_type().size)


def _in_onnxruntime(engine: Engine, model_file: Path, images: NDArray[np.uint8], rounds: int) -> _Profiled:
    import onnxruntime

    from evitseg.runtime.openvino_engine import OpenVinoEngine

    # What OpenVINO reads of the file says what ONNX Runtime does not: the operators' names and attributes.
    graph = OpenVinoEngine(model_file, "float32").graph(None)
    graph.reshape(list(images.shape))
    macs, known = multiply_adds(graph), _places(graph, engine.manifest.model, model_file)
    threads = engine.info.threads
    with tempfile.TemporaryDirectory() as folder:
        options = onnxruntime.SessionOptions()
        options.add_session_config_entry("session.disable_quant_qdq", "1")  # as the engine does
        options.log_severity_level = 3
        options.intra_op_num_threads = threads
        options.enable_profiling = True
        options.profile_file_prefix = str(Path(folder) / "profile")
        session = onnxruntime.InferenceSession(model_file.read_bytes(), options, providers=["CPUExecutionProvider"])
        given, written = session.get_inputs()[0].name, session.get_outputs()[0].name

        def call() -> float:
            start = time.perf_counter()
            session.run(None, {given: images})
            return time.perf_counter() - start

        warm_up(call)
        network_ms = 1000 * sum(call() for _ in range(rounds)) / rounds
        events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))

    nodes = []
    place, last = _Place(INPUT, INPUT), max(known, key=lambda name: known[name].number)
    taken: dict[str, list[float]] = {}
    first: dict[str, dict[str, Any]] = {}
    for event in events:
        if event["cat"] == "Node" and event["name"].endswith("_kernel_time"):
            name = event["name"].removesuffix("_kernel_time")
            taken.setdefault(name, []).append(event["dur"])
            first.setdefault(name, event["args"])
    for name, told in first.items():
        # Fused and rewritten nodes keep what they were somewhere in their names, the last one what it writes.
        renamed = name.replace(written, last)
        original = next((part for part in re.findall(r"[A-Za-z]+_\d+", renamed) if part in macs), name)
        place = known.get(original, place)  # it runs them one by one: what is no convolution follows the last one
        sizes = [
            sum(
                math.prod(shape) * np.dtype(_ONNX_TYPES.get(kind, kind)).itemsize
                for value in told[side]
                for kind, shape in value.items()
            )
            for side in ("input_type_shape", "output_type_shape")
        ]
        nodes.append(
            Node(
                name=place.name if original in known else f"{place.block}/{_operator(told['op_name'], original)}",
                block=place.block,
                count=1,
                ms=sum(taken[name][-rounds:]) / rounds / 1000,
                macs=macs.get(original, 0),
                bytes_in=sizes[0],
                bytes_out=sizes[1],
                type=told["op_name"],
                kernel="nchwc" if name.endswith("_nchwc") else "",
                engine_name=name,
            )
        )
    return _Profiled(network_ms, rounds, nodes, onnxruntime_product(threads))


_ONNX_TYPES = {"float": "float32", "double": "float64"}


PROFILERS = {"OpenVINO": _in_openvino, "ONNX Runtime": _in_onnxruntime}
"""By what `EngineInfo` calls the engine."""
