"""Where the network's time goes: every node that the engine runs, beside what this machine could do at best.

A node's name says which convolution of the plan it is, or which it follows, so that a row of the profile is found in
the network; nodes of the same name, such as those of tiles, are one row. Multiply-adds are counted on the graph that
the engine is given, bytes on the one that it makes of it.
"""

from __future__ import annotations

import json
import math
import re
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from evitseg.bench import Subject, Table, warm_up
from evitseg.config import ModelConfig, cost, placed_convs
from evitseg.engine import Engine, EngineInfo
from evitseg.errors import EngineError, MissingPackageError, PictureError, WeightsError
from evitseg.files import replacing
from evitseg.image import read_picture

if TYPE_CHECKING:
    import openvino
    from matplotlib.axes import Axes

INPUT = "input"
"""The block of what comes before the first convolution: layout, number format, normalisation."""
PEAK_SIDE = 2048
"""Of the square matrices whose product says what the machine can multiply."""
COPIED_BYTES = 256 * 2**20
"""By each thread: far more than any cache."""


@dataclass(frozen=True)
class Floors:
    """What the machine does at best.

    Attributes:
        gflops: 10⁹ floating-point operations a second, two for a multiply-add, in a product of large matrices by the
            same engine in the same precision on as many threads.
        gb_per_s: 10⁹ bytes a second, read and written, while as many threads copy memory.
    """

    gflops: float
    gb_per_s: float

    def ms(self, macs: float, moved_bytes: float) -> float:
        """What the roofline gives for so much work, if all of it comes from memory; from a cache it can take less."""
        return max(2 * macs / self.gflops, moved_bytes / self.gb_per_s) / 1e6


@dataclass(frozen=True)
class Work:
    """What was done, and how long it took.

    Attributes:
        name, block: in the network's terms; see `evitseg.config.PlacedConv`.
        count: how many of the engine's nodes do it: tiles, and what a block has several of.
        ms: mean over the turns.
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

    def roof_ms(self, floors: Floors) -> float:
        return floors.ms(self.macs, self.bytes_in + self.bytes_out)


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
class Profile:
    """Of one model at one size.

    Attributes:
        height, width: of the picture.
        network_ms: mean over the same turns of the whole call; the nodes' sum is less by what lies between them.
        turns: how many were measured.
        plan_macs: multiply-adds that the network's plan needs. The graph that runs may do more: where tiles overlap,
            and where a larger product is faster than a smaller one.
        nodes: in the order they run, each name once.
        floors: of this machine.
        info: what ran.
    """

    height: int
    width: int
    network_ms: float
    turns: int
    plan_macs: int
    nodes: tuple[Node, ...]
    floors: Floors
    info: EngineInfo

    @property
    def nodes_ms(self) -> float:
        return math.fsum(node.ms for node in self.nodes)

    @property
    def macs(self) -> int:
        """Of the graph that runs."""
        return sum(node.macs for node in self.nodes)

    @property
    def blocks(self) -> list[Work]:
        """The nodes' sums by block, in the order they begin to run."""
        grouped: dict[str, list[Node]] = {}
        for node in self.nodes:
            grouped.setdefault(node.block, []).append(node)
        return [
            Work(
                block,
                block,
                sum(node.count for node in nodes),
                math.fsum(node.ms for node in nodes),
                sum(node.macs for node in nodes),
                sum(node.bytes_in for node in nodes),
                sum(node.bytes_out for node in nodes),
            )
            for block, nodes in grouped.items()
        ]

    def slowest(self, count: int) -> list[Node]:
        return sorted(self.nodes, key=lambda node: -node.ms)[:count]

    def roof_ms(self, nodes: Sequence[Work] | None = None) -> float:
        """The sum of what the roofline gives for each."""
        return math.fsum(node.roof_ms(self.floors) for node in (self.nodes if nodes is None else nodes))

    def to_dict(self) -> dict[str, Any]:
        def row(work: Work) -> dict[str, Any]:
            return asdict(work) | {
                "share": work.ms / self.nodes_ms,
                "gflops": work.gflops,
                "gb_per_s": work.gb_per_s,
                "intensity": work.intensity,
                "roof_ms": work.roof_ms(self.floors),
            }

        return {
            "height": self.height,
            "width": self.width,
            "turns": self.turns,
            "network_ms": self.network_ms,
            "nodes_ms": self.nodes_ms,
            "roof_ms": self.roof_ms(),
            "macs": self.macs,
            "plan_macs": self.plan_macs,
            "floors": asdict(self.floors),
            "blocks": [row(block) | {"roof_ms": self._block_roof(block.block)} for block in self.blocks],
            "nodes": [row(node) for node in self.nodes],
        }

    def tables(self, markdown: bool, count: int = 20) -> list[str]:
        """Lines: what it was measured against, the blocks, and the slowest nodes."""

        def cells(work: Work, roof_ms: float) -> list[str]:
            speeds = (f"{work.gflops:.0f}" if work.macs else "–", f"{work.gb_per_s:.0f}")
            share = f"{work.ms / self.nodes_ms:.1%}"
            return [str(work.count), f"{work.ms:.2f}", share, f"{work.macs / 1e6:.0f}", *speeds, f"{roof_ms:.2f}"]

        header = ("nodes", "ms", "share", "M multiply-adds", "GFLOP/s", "GB/s", "roofline ms")
        blocks = Table(("block", *header), markdown, first=28)
        nodes = Table((f"slowest {count} names", *header, "kernel"), markdown, first=40)
        total = Work("sum", "", sum(node.count for node in self.nodes), self.nodes_ms, self.macs, 0, 0)
        return [
            f"{self.height}x{self.width}: {self.network_ms:.1f} ms a call while its nodes are timed, of which they "
            f"take {self.nodes_ms:.1f}; this machine, measured now: {self.floors.gflops:.0f} GFLOP/s in large "
            f"products, {self.floors.gb_per_s:.0f} GB/s copying",
            f"multiply-adds: {self.macs / 1e6:.0f} M in the graph that runs, {self.plan_macs / 1e6:.0f} M in the "
            "network's plan",
            "",
            *blocks.lines([[block.name, *cells(block, self._block_roof(block.block))] for block in self.blocks]),
            blocks.row([total.name, *cells(total, self.roof_ms())[:5], "", f"{self.roof_ms():.2f}"]),
            "",
            *nodes.lines(
                [
                    [node.name, *cells(node, node.roof_ms(self.floors)), f"  {node.type} {node.kernel}"]
                    for node in self.slowest(count)
                ]
            ),
        ]

    def _block_roof(self, block: str) -> float:
        return self.roof_ms([node for node in self.nodes if node.block == block])


def profile(subject: Subject, picture: Path, size: tuple[int, int], turns: int = 15) -> Profile:
    """Measure every node of an .onnx or .xml artefact in OpenVINO or ONNX Runtime.

    Raises: EngineError for another engine, ConfigError for a size that the model does not take, PictureError.
    """
    from PIL import Image

    from evitseg.loading import artefact_of

    (size,) = subject.sizes([size], ())
    segment = subject.segmenter
    artefact = artefact_of(subject.model)
    if artefact is None or segment.info.engine not in _PROFILERS:
        raise EngineError(
            f"{segment.info.engine} does not say how long its layers take; profile an .onnx or .xml artefact, in "
            "OpenVINO or ONNX Runtime."
        )
    stretched = np.asarray(Image.fromarray(read_picture(picture)).resize(size[::-1], Image.Resampling.LANCZOS))
    profiled = _PROFILERS[segment.info.engine](segment.engine, artefact, stretched[None], turns)
    return Profile(
        height=size[0],
        width=size[1],
        network_ms=profiled.network_ms,
        turns=profiled.turns,
        plan_macs=round(cost(segment.manifest.model).macs(*size)),
        nodes=tuple(_by_name(profiled.nodes)),
        floors=Floors(_peak_gflops(profiled.product), _copy_gb_per_s(segment.info.threads)),
        info=segment.info,
    )


def _by_name(nodes: Sequence[Node]) -> list[Node]:
    """One for each name, in the order in which they begin to run."""
    grouped: dict[str, list[Node]] = {}
    for node in nodes:
        grouped.setdefault(node.name, []).append(node)
    return [
        replace(
            same[0],
            count=len(same),
            ms=math.fsum(node.ms for node in same),
            macs=sum(node.macs for node in same),
            bytes_in=sum(node.bytes_in for node in same),
            bytes_out=sum(node.bytes_out for node in same),
            kernel=", ".join(dict.fromkeys(node.kernel for node in same)),
        )
        for same in grouped.values()
    ]


# What the graph says: names and multiply-adds.


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


def _places(model: openvino.Model, config: ModelConfig, artefact: Path) -> dict[str, _Place]:
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
                raise WeightsError(f"{artefact}: its graph is not the one that evitseg export writes; export it again.")
            places[name] = _Place(f"{block}.{part}", block, number)
        elif slash and operator.get_type_name() != "Constant":
            places[name] = _Place(f"{block}/{part}", block)
    return places


# What the engines say.


@dataclass(frozen=True)
class _Profiled:
    """What a profiler gives.

    Attributes:
        network_ms, turns: see `Profile`.
        nodes: one for each of the engine's.
        product: multiplies two square matrices of `PEAK_SIDE` in the same engine, precision and threads.
    """

    network_ms: float
    turns: int
    nodes: list[Node]
    product: Callable[[], object]


def _in_openvino(engine: Engine, artefact: Path, images: NDArray[np.uint8], turns: int) -> _Profiled:
    from evitseg.runtime.engines import OpenVinoEngine

    assert isinstance(engine, OpenVinoEngine)
    size = images.shape[1], images.shape[2]
    graph, compiled = engine.graph(size), engine.compile(size, PERF_COUNT="YES")
    macs, known = multiply_adds(graph), _places(graph, engine.manifest.model, artefact)
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
    turns = max(turns, 2 * calls)  # the means are whole microseconds; what is taken off for warming up must stay small
    before = microseconds()
    network_ms = 1000 * sum(counted() for _ in range(turns)) / turns
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
                ms=max(0, after[name] - before.get(name, 0)) / turns / 1000,
                macs=sum(macs.get(original, 0) for original in dict.fromkeys(originals)),
                bytes_in=sum(_bytes(value) for value in operator.input_values()),
                bytes_out=sum(_bytes(value) for value in operator.outputs()),
                type=told["layerType"],
                kernel=told["primitiveType"],
                engine_name=name,
            )
        )
    return _Profiled(network_ms, turns, nodes, _openvino_product(compiled))


def _operator(kind: str, name: str) -> str:
    """An operator's name in the file, if it is still in the engine's name, else its kind."""
    return name if re.fullmatch(r"[A-Za-z]+_\d+", name) else kind


def _bytes(value: Any) -> int:
    return int(math.prod(value.get_partial_shape().to_shape()) * value.get_element_type().size)


def _in_onnxruntime(engine: Engine, artefact: Path, images: NDArray[np.uint8], turns: int) -> _Profiled:
    import onnxruntime

    from evitseg.runtime.engines import OpenVinoEngine

    # What OpenVINO reads of the file says what ONNX Runtime does not: the operators' names and attributes.
    graph = OpenVinoEngine(artefact, "float32").graph(None)
    graph.reshape(list(images.shape))
    macs, known = multiply_adds(graph), _places(graph, engine.manifest.model, artefact)
    threads = engine.info.threads
    with tempfile.TemporaryDirectory() as folder:
        options = onnxruntime.SessionOptions()
        options.add_session_config_entry("session.disable_quant_qdq", "1")  # as the engine does
        options.log_severity_level = 3
        options.intra_op_num_threads = threads
        options.enable_profiling = True
        options.profile_file_prefix = str(Path(folder) / "profile")
        session = onnxruntime.InferenceSession(artefact.read_bytes(), options, providers=["CPUExecutionProvider"])
        given, written = session.get_inputs()[0].name, session.get_outputs()[0].name

        def call() -> float:
            start = time.perf_counter()
            session.run(None, {given: images})
            return time.perf_counter() - start

        warm_up(call)
        network_ms = 1000 * sum(call() for _ in range(turns)) / turns
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
                ms=sum(taken[name][-turns:]) / turns / 1000,
                macs=macs.get(original, 0),
                bytes_in=sizes[0],
                bytes_out=sizes[1],
                type=told["op_name"],
                kernel="nchwc" if name.endswith("_nchwc") else "",
                engine_name=name,
            )
        )
    return _Profiled(network_ms, turns, nodes, _onnxruntime_product(threads))


_ONNX_TYPES = {"float": "float32", "double": "float64"}


# What the machine does at best.


def _openvino_product(compiled: openvino.CompiledModel) -> Callable[[], object]:
    """Args: compiled: what runs in the same precision on as many threads."""
    import openvino
    from openvino import opset13 as ops

    from evitseg.runtime.openvino_core import openvino_core

    same = ("INFERENCE_PRECISION_HINT", "INFERENCE_NUM_THREADS", "NUM_STREAMS", "ENABLE_CPU_PINNING")
    left = ops.parameter([PEAK_SIDE, PEAK_SIDE], np.float32)
    product = ops.matmul(left, ops.constant(_square()), False, False)
    model = openvino.Model([product], [left])
    settings = {name: compiled.get_property(name) for name in same}
    request = openvino_core().compile_model(model, "CPU", settings).create_infer_request()
    return partial(request.infer, [_square()], share_inputs=True, share_outputs=True)


def _onnxruntime_product(threads: int) -> Callable[[], object]:
    import onnxruntime

    try:
        from onnx import TensorProto, helper, numpy_helper
    except ImportError as error:
        raise MissingPackageError("the machine's peak in ONNX Runtime", "export") from error
    values = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, [PEAK_SIDE, PEAK_SIDE]) for name in ("left", "product")
    ]
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["left", "right"], ["product"])],
        "peak",
        values[:1],
        values[1:],
        [numpy_helper.from_array(_square(), "right")],
    )
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return partial(session.run, None, {"left": _square()})


def _square() -> NDArray[np.float32]:
    return np.random.default_rng(0).standard_normal((PEAK_SIDE, PEAK_SIDE), np.float32)


_PROFILERS = {"OpenVINO": _in_openvino, "ONNX Runtime": _in_onnxruntime}
"""By what `EngineInfo` calls the engine."""


def _peak_gflops(product: Callable[[], object]) -> float:
    return 2 * PEAK_SIDE**3 / _fastest(product) / 1e9


def _copy_gb_per_s(threads: int) -> float:
    pairs = [(np.ones(COPIED_BYTES, np.uint8), np.zeros(COPIED_BYTES, np.uint8)) for _ in range(threads)]
    with ThreadPoolExecutor(threads) as pool:  # numpy lets others run while it copies
        seconds = _fastest(lambda: list(pool.map(lambda pair: np.copyto(pair[1], pair[0]), pairs)))
    return 2 * COPIED_BYTES * threads / seconds / 1e9


def _fastest(work: Callable[[], object], turns: int = 9) -> float:
    """Seconds: of what a machine can do at best, the best is what counts."""
    best = float("inf")
    for _ in range(turns):
        start = time.perf_counter()
        work()
        best = min(best, time.perf_counter() - start)
    return best


# The picture.


def check_drawing(path: Path) -> None:
    """Raises: PictureError for another ending than .png, MissingPackageError."""
    if path.suffix.lower() != ".png":
        raise PictureError(f"{path}: a roofline is drawn as a PNG file; give it the ending .png.")
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise MissingPackageError("a roofline picture", "bench") from error


PARTS = {
    "input": "#7f7f7f",
    "stem": "#17a2b8",
    "stage1": "#2ca02c",
    "stage2": "#bcbd22",
    "stage3": "#ff7f0e",
    "stage4": "#d62728",
    "head": "#5b4bc4",
}
"""Parts of the network, with colours."""


def draw(profile: Profile, title: str, path: Path) -> None:
    """Write a PNG: every node with multiply-adds under the machine's roof, and the blocks' times beside their roofs.

    Raises: PictureError, MissingPackageError, FileError.
    """
    check_drawing(path)
    from matplotlib.figure import Figure

    figure = Figure(figsize=(16, 8.5), dpi=120, layout="constrained")
    figure.suptitle(f"{title}: {profile.network_ms:.1f} ms in {profile.info}", fontsize=13)
    left, right = figure.subplots(1, 2, width_ratios=(1.35, 1))
    _draw_roof(left, profile)
    _draw_blocks(right, profile)
    with replacing(path) as file:
        figure.savefig(file, format="png", metadata={"Software": "evitseg"})


def _part(block: str) -> str:
    return PARTS[block.split(".")[0]]


def _draw_roof(axes: Axes, profile: Profile) -> None:
    from matplotlib.lines import Line2D
    from matplotlib.patheffects import withStroke
    from matplotlib.ticker import LogLocator, NullLocator

    floors = profile.floors
    nodes = [node for node in profile.nodes if node.macs and node.ms]
    intensities = [node.intensity for node in nodes]
    ridge = floors.gflops / floors.gb_per_s
    low = min(intensities) / 2
    xs = np.geomspace(low, 2 * max(ridge, *intensities), 200)
    axes.plot(xs, np.minimum(floors.gflops, xs * floors.gb_per_s), color="black", linewidth=1.8, zorder=2)
    axes.fill_between(xs, np.minimum(floors.gflops, xs * floors.gb_per_s), 1e9, color="black", alpha=0.05, zorder=0)
    for node in sorted(nodes, key=lambda node: -node.ms):
        axes.scatter(
            node.intensity,
            node.gflops,
            s=20 + 4000 * node.ms / profile.nodes_ms,
            marker="s" if node.type == "MatMul" else "^" if "depthwise" in node.name else "o",
            color=_part(node.block),
            edgecolor="white",
            linewidth=0.7,
            alpha=0.8,
            zorder=3,
        )
    axes.set(
        xscale="log",
        yscale="log",
        xlim=(low, xs[-1]),
        ylim=(min(node.gflops for node in nodes) / 2, 2 * floors.gflops),
        xlabel="floating-point operations for a byte read or written",
        ylabel="GFLOP/s achieved",
        title="Nodes with multiply-adds; area: share of the time; above the slope: data came from a cache",
    )
    for axis in (axes.xaxis, axes.yaxis):  # 1, 2, 5, 10 instead of powers
        axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.set_major_formatter("{x:g}")
        axis.set_minor_locator(NullLocator())
    axes.grid(alpha=0.3)
    roof = f"roof: {floors.gb_per_s:.0f} GB/s copying memory\n{floors.gflops:.0f} GFLOP/s in large products"
    axes.text(0.015, 0.98, roof, transform=axes.transAxes, va="top")  # above the roof, where hardly a node is
    assert axes.figure is not None
    axes.figure.draw_without_rendering()  # type: ignore[union-attr]  # only then it is known where a node is seen
    taken: list[tuple[float, float]] = []  # where labels are, in points
    for node in sorted(nodes, key=lambda node: -node.ms)[:8]:
        x, y = axes.transData.transform((node.intensity, node.gflops)) * 72 / axes.figure.dpi
        down = 9
        while any(abs(x - other_x) < 150 and abs(y - down - other_y) < 9 for other_x, other_y in taken):
            down += 3
        taken.append((x, y - down))
        axes.annotate(
            f"{node.name} {node.ms:.1f} ms", (node.intensity, node.gflops), xytext=(8, -down),
            textcoords="offset points", fontsize=8, zorder=4,
            path_effects=[withStroke(linewidth=2.5, foreground="white")],
        )  # fmt: skip
    shapes = {"o": "convolution", "^": "depthwise convolution", "s": "matrix product"}
    handles = [
        Line2D([], [], linestyle="", marker="o", color=color, label=part)
        for part, color in PARTS.items()
        if part != INPUT
    ]
    handles += [Line2D([], [], linestyle="", marker=key, color="grey", label=text) for key, text in shapes.items()]
    axes.legend(handles=handles, loc="lower right", fontsize=9, framealpha=0.95)


def _draw_blocks(axes: Axes, profile: Profile) -> None:
    blocks = profile.blocks
    for row, block in enumerate(blocks):
        nodes = [node for node in profile.nodes if node.block == block.block]
        counting = math.fsum(node.ms for node in nodes if node.macs)
        axes.barh(row, counting, color=_part(block.block), zorder=2)
        axes.barh(row, block.ms - counting, left=counting, color=_part(block.block), alpha=0.4, hatch="///", zorder=2)
        roof = profile.roof_ms(nodes)
        axes.plot([roof, roof], [row - 0.42, row + 0.42], color="black", linewidth=2, zorder=3)
    axes.set(
        yticks=range(len(blocks)),
        yticklabels=[block.name for block in blocks],
        xlabel="milliseconds",
        title="Blocks; hatched: nodes without multiply-adds; black: the roofline",
    )
    axes.invert_yaxis()
    axes.grid(axis="x", alpha=0.3)
