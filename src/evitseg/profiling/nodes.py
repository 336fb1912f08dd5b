"""Read the engines' counters: the time of every node of the network."""

from __future__ import annotations

import json
import math
import re
import tempfile
import time
from collections.abc import Callable, Container
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from evitseg.architecture import ModelConfig, placed_convs
from evitseg.engine import Engine
from evitseg.profiling.machine_peak import MachinePeak, core_gflops, onnxruntime_product, openvino_product, peak_gflops
from evitseg.profiling.worker import warm_up
from evitseg.runtime.weights import strange_graph

if TYPE_CHECKING:
    import openvino

    from evitseg.runtime.operations import Operation

INPUT = "input"
"""The block of everything before the first convolution: layout, number format, normalisation."""


@dataclass(frozen=True)
class Work:
    """Work that the engine did, and its time.

    Attributes:
        name, block: in the network's terms; see `evitseg.architecture.PlacedConv`.
        count: number of the engine's nodes.
        ms: mean time over the rounds.
        macs: multiply-adds.
        bytes_in, bytes_out: size of all inputs, with the weights, and of all outputs.
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
        """10⁹ floating-point operations per second."""
        return 2 * self.macs / self.ms / 1e6 if self.ms else 0.0

    @property
    def gb_per_s(self) -> float:
        """10⁹ bytes per second, inputs and outputs."""
        return (self.bytes_in + self.bytes_out) / self.ms / 1e6 if self.ms else 0.0

    @property
    def intensity(self) -> float:
        """Floating-point operations per byte."""
        return 2 * self.macs / max(1, self.bytes_in + self.bytes_out)

    def roof_ms(self, peak: MachinePeak) -> float:
        """The roofline's time."""
        return peak.ms(self.macs, self.bytes_in + self.bytes_out)


@dataclass(frozen=True)
class Node(Work):
    """One of the engine's nodes, or several with the same name.

    Attributes:
        type, kernel: the engine's names of the operator and of the code that runs it.
        engine_name: the engine's name of the first node.
    """

    type: str
    kernel: str
    engine_name: str


@dataclass(frozen=True)
class _Place:
    """A node's place: its name in the network, its block, and the number of the convolution that it is or follows."""

    name: str
    block: str
    number: int = -1


def multiply_adds(model: openvino.Model) -> dict[str, int]:
    """Multiply-adds of every operator that has any, by its name in the file."""
    counts = {}
    for operator in model.get_ordered_ops():
        kind = operator.get_type_name()
        if kind in ("Convolution", "GroupConvolution"):
            out, weight = (list(value.get_shape()) for value in (operator.output(0), operator.input_value(1)))
            each = math.prod(weight) // out[1]
        elif kind == "MatMul":
            out = list(operator.output(0).get_shape())
            # Either input may be transposed.
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
    """An operator's name without OpenVINO's suffix."""
    return name.removesuffix("/WithoutBiases")


def _places(model: openvino.Model, config: ModelConfig, model_file: Path) -> dict[str, _Place]:
    """The places of the graph's convolutions by name. Raises: WeightsError for a graph that evitseg did not write."""
    planned = list(placed_convs(config))
    written = [
        _plain(operator.friendly_name)
        for operator in model.get_ordered_ops()
        if operator.get_type_name() in ("Convolution", "GroupConvolution")
    ]
    if len(written) != len(planned) or not all(re.fullmatch(r"Conv_\d+", name) for name in written):
        raise strange_graph(model_file)
    written.sort(key=lambda name: int(name.removeprefix("Conv_")))
    return {
        name: _Place(f"{conv.block}.{conv.name}", conv.block, number)
        for number, (name, conv) in enumerate(zip(written, planned, strict=True))
    }


@dataclass(frozen=True)
class _Profiled:
    """A profiler's result.

    Attributes:
        network_ms, rounds: see `Profile`.
        nodes: one for each of the engine's nodes.
        gflops: measures the peak arithmetic throughput in the same engine, precision and threads.
    """

    network_ms: float
    rounds: int
    nodes: list[Node]
    gflops: Callable[[], float]


def _in_openvino(engine: Engine, model_file: Path, images: NDArray[np.uint8], rounds: int) -> _Profiled:
    from evitseg.runtime.openvino_engine import OpenVinoEngine

    assert isinstance(engine, OpenVinoEngine)
    size = images.shape[1], images.shape[2]
    graph = engine.graph(size)
    compiled = engine.compile(graph, PERF_COUNT="YES")
    macs, known = multiply_adds(graph), _places(graph, engine.manifest.model, model_file)
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

    def total_ms() -> dict[str, float]:
        """Total time of each node over all calls; OpenVINO's counters are means over them."""
        counters = request.get_profiling_info()
        return {node.node_name: calls * node.real_time / timedelta(milliseconds=1) for node in counters}

    warm_up(counted)
    rounds = max(rounds, 2 * calls)  # the means are whole microseconds, so the subtracted warm-up must stay small
    before = total_ms()
    network_ms = 1000 * sum(counted() for _ in range(rounds)) / rounds
    after = total_ms()

    nodes, places = [], dict[str, _Place]()
    for operator in compiled.get_runtime_model().get_ordered_ops():
        name, about = operator.friendly_name, {key: str(value.value) for key, value in operator.get_rt_info().items()}
        originals = [_plain(original) for original in about["originalLayersNames"].split(",") if original]
        sources = [places[value.get_node().friendly_name] for value in operator.input_values()]
        # Other nodes belong to the last convolution that they depend on.
        last = max(sources, key=lambda place: place.number, default=_Place(INPUT, INPUT))
        own = next((known[original] for original in originals if original in known), None)
        place = places[name] = own or last
        if not after.get(name):  # a constant, or computed once during compilation
            continue
        nodes.append(
            Node(
                name=own.name if own else f"{place.block}/{_operator(about['layerType'], name)}",
                block=place.block,
                count=1,
                ms=max(0.0, after[name] - before.get(name, 0.0)) / rounds,
                macs=sum(macs.get(original, 0) for original in dict.fromkeys(originals)),
                bytes_in=sum(_bytes(value) for value in operator.input_values()),
                bytes_out=sum(_bytes(value) for value in operator.outputs()),
                type=about["layerType"],
                kernel=about["primitiveType"],
                engine_name=name,
            )
        )
    return _Profiled(network_ms, rounds, nodes, partial(peak_gflops, openvino_product(compiled)))


def _operator(kind: str, name: str) -> str:
    """An operator's name in the file if the engine kept it, else its kind."""
    return name if re.fullmatch(r"[A-Za-z]+_\d+", name) else kind


def _bytes(value: Any) -> int:
    return int(math.prod(value.get_partial_shape().to_shape()) * value.get_element_type().size)


def original_name(node: str, operators: Container[str]) -> str:
    """The operator of the file that a node of ONNX Runtime runs; the node's own name if there is none.

    Fused and rewritten nodes contain the names of their operators, such as "fused Conv_12_nchwc".

    Args:
        operators: names of the operators in the file.
    """
    return next((part for part in re.findall(r"[A-Za-z]+_\d+", node) if part in operators), node)


def _in_onnxruntime(engine: Engine, model_file: Path, images: NDArray[np.uint8], rounds: int) -> _Profiled:
    import onnxruntime

    from evitseg.runtime.openvino_engine import for_size, read_openvino

    # OpenVINO reads the operators' names and attributes, which ONNX Runtime does not report.
    graph = for_size(read_openvino(model_file)[0], (images.shape[1], images.shape[2]))
    macs, known = multiply_adds(graph), _places(graph, engine.manifest.model, model_file)
    threads = engine.info.threads
    with tempfile.TemporaryDirectory() as folder:
        options = onnxruntime.SessionOptions()
        options.add_session_config_entry("session.disable_quant_qdq", "1")  # like the engine
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
    for name, about in first.items():
        original = original_name(name.replace(written, last), macs)
        place = known.get(original, place)  # nodes run one by one, so other nodes follow the last convolution
        sizes = [
            sum(
                math.prod(shape) * np.dtype(_ONNX_TYPES.get(kind, kind)).itemsize
                for value in about[side]
                for kind, shape in value.items()
            )
            for side in ("input_type_shape", "output_type_shape")
        ]
        nodes.append(
            Node(
                name=place.name if original in known else f"{place.block}/{_operator(about['op_name'], original)}",
                block=place.block,
                count=1,
                ms=sum(taken[name][-rounds:]) / rounds / 1000,
                macs=macs.get(original, 0),
                bytes_in=sizes[0],
                bytes_out=sizes[1],
                type=about["op_name"],
                kernel="nchwc" if name.endswith("_nchwc") else "",
                engine_name=name,
            )
        )
    return _Profiled(network_ms, rounds, nodes, partial(peak_gflops, onnxruntime_product(threads)))


_ONNX_TYPES = {"float": "float32", "double": "float64"}


def _in_core(engine: Engine, model_file: Path, images: NDArray[np.uint8], rounds: int) -> _Profiled:
    from evitseg.runtime.native import NativeEngine

    assert isinstance(engine, NativeEngine)
    height, width = images.shape[1:3]
    threads = engine.info.threads

    def call() -> float:
        start = time.perf_counter()
        engine(images)
        return time.perf_counter() - start

    warm_up(call)
    core, operations = engine.core, engine.operations()
    core.profile(True)
    network_ms = 1000 * sum(call() for _ in range(rounds)) / rounds
    times = core.times(operations[-1].rows[-1] + 1)
    core.profile(False)
    number = 4 if core.precision == "float32" else 2  # bytes

    def node(operation: Operation) -> Node:
        pixels = height * width
        return Node(
            name=operation.name,
            block=operation.block,
            count=1,
            ms=float(times[list(operation.rows)].sum()) / (1e6 * rounds * threads),
            macs=round(operation.macs * pixels),
            bytes_in=round((operation.image_bytes + number * operation.read) * pixels) + number * operation.weights,
            bytes_out=round(number * operation.written * pixels),
            type=operation.kind,
            kernel=", ".join(operation.convs),
            engine_name=operation.name,
        )

    return _Profiled(network_ms, rounds, [node(each) for each in operations], partial(core_gflops, core, threads))


PROFILERS = {"OpenVINO": _in_openvino, "ONNX Runtime": _in_onnxruntime, "evitseg core": _in_core}
"""By what `EngineInfo` calls the engine, without what follows in parentheses."""
