from __future__ import annotations

import json
import math
from collections import Counter as Counts
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from evitseg.architecture import cost, model_config, placed_convs
from evitseg.bundled import EXAMPLE_IMAGE, bundled_models
from evitseg.errors import EngineError, ImageError, WeightsError
from evitseg.profiling import nodes, worker
from evitseg.profiling.bench import Subject
from evitseg.profiling.machine_peak import MachinePeak
from evitseg.profiling.nodes import PROFILERS
from evitseg.profiling.profile import Profile, profile
from evitseg.profiling.roofline import draw
from evitseg.runtime.checkpoint import read_checkpoint
from evitseg.runtime.core import CORE_PRECISIONS, Core, CorePrecision, instruction_sets
from evitseg.runtime.evit_file import write_evit
from evitseg.runtime.program import compile_program
from tests.exported import bundled_onnx
from tests.optional import needs
from tests.runtime.programs import CONFIGS, program

SMALL = (64, 96)


@pytest.fixture(autouse=True)
def _short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker, "WARM_UP_LEAST", 0.05)


def bundled_manifest() -> Any:
    return Subject().segmenter.manifest


def check_accounts(found: Profile, size: tuple[int, int]) -> None:
    """What holds of every engine's profile."""
    assert found.network_ms > 0
    assert found.nodes_ms > 0
    config = bundled_manifest().model
    assert found.plan_macs == cost(config).macs(*size)
    assert math.fsum(block.ms for block in found.blocks) == pytest.approx(found.nodes_ms)
    assert len({node.name for node in found.nodes}) == len(found.nodes)
    plan = {f"{conv.block}.{conv.name}": conv for conv in placed_convs(config)}
    for name, conv in plan.items():
        parts = [node for node in found.nodes if f"{node.name}.".startswith(f"{name}.")]
        pixels = size[0] * size[1] // conv.stride**2
        assert sum(node.macs for node in parts) == conv.conv.macs * pixels
        assert all(node.count == 1 and node.block == conv.block for node in parts)
        assert sum(node.bytes_out for node in parts) >= 2 * conv.conv.outputs * pixels  # 16 bits at least
    assert {node.block for node in found.nodes} == {"input", *(conv.block for conv in plan.values())}
    assert 1 < found.peak.gb_per_s < found.peak.gflops


class Clock:
    """A clock that advances by a second whenever it is read."""

    def __init__(self) -> None:
        self.seconds = 0

    def perf_counter(self) -> int:
        self.seconds += 1
        return self.seconds


@dataclass
class Counter:
    """A node's time as OpenVINO reports it: the mean over all calls."""

    node_name: str
    real_time: timedelta


class Request:
    """A request whose nodes took 1.3 s each on average during the warm-up and 1.2 s at the end."""

    def __init__(self, request: Any) -> None:
        self.request, self.infer, self.means = request, request.infer, iter((1.3, 1.2))

    def get_profiling_info(self) -> list[Counter]:
        mean = next(self.means)
        names = [node.node_name for node in self.request.get_profiling_info()]
        return [Counter(name, timedelta(seconds=mean)) for name in names]


class Compiled:
    """A compiled model whose requests are `Request`."""

    def __init__(self, compiled: Any) -> None:
        self.compiled = compiled

    def create_infer_request(self) -> Request:
        return Request(self.compiled.create_infer_request())

    def __getattr__(self, name: str) -> Any:
        return getattr(self.compiled, name)


def test_openvinos_means_over_all_calls_become_times_without_the_warm_up(monkeypatch: pytest.MonkeyPatch) -> None:
    needs("openvino")
    subject = Subject(str(bundled_onnx()), "openvino", "float32")
    engine: Any = subject.segmenter.engine
    compile_model = engine.compile
    monkeypatch.setattr(engine, "compile", lambda graph, **settings: Compiled(compile_model(graph, **settings)))
    monkeypatch.setattr(nodes, "time", Clock())
    monkeypatch.setattr(nodes, "warm_up", lambda call: [call() for _ in range(3)])
    found = PROFILERS["OpenVINO"](engine, bundled_onnx(), np.zeros((1, *SMALL, 3), np.uint8), 12)
    assert (found.network_ms, found.rounds) == (1000, 12)
    # 15 calls took 15 × 1.2 s, the first three of them 3 × 1.3 s; the other twelve are the measurement.
    assert [node.ms for node in found.nodes] == [pytest.approx((15 * 1200 - 3 * 1300) / 12)] * len(found.nodes)


def test_onnx_runtimes_events_become_times_without_the_warm_up(monkeypatch: pytest.MonkeyPatch) -> None:
    needs("onnxruntime")
    import onnxruntime

    class Session(onnxruntime.InferenceSession):  # type: ignore[misc]
        """A session whose nodes take 5 µs in the first call, 6 µs in the second and so on."""

        def end_profiling(self) -> str:
            path = str(super().end_profiling())
            events, calls = json.loads(Path(path).read_text()), Counts[str]()
            for event in events:
                event["dur"] = 5 + calls[event["name"]]
                calls[event["name"]] += 1
            Path(path).write_text(json.dumps(events))
            return path

    subject = Subject(str(bundled_onnx()), "onnxruntime", "float32")
    engine = subject.segmenter.engine
    monkeypatch.setattr(onnxruntime, "InferenceSession", Session)
    monkeypatch.setattr(nodes, "time", Clock())
    monkeypatch.setattr(nodes, "warm_up", lambda call: [call() for _ in range(3)])
    found = PROFILERS["ONNX Runtime"](engine, bundled_onnx(), np.zeros((1, *SMALL, 3), np.uint8), 2)
    assert (found.network_ms, found.rounds) == (1000, 2)
    # The last two of five calls took 8 and 9 µs.
    assert [node.ms for node in found.nodes] == [pytest.approx(0.0085)] * len(found.nodes)


@pytest.mark.parametrize(
    ("engine", "precision"), [("openvino", "float32"), ("openvino", "auto"), ("onnxruntime", "float32")]
)
def test_a_profile_accounts_for_the_graph_in_the_file(engine: str, precision: Any) -> None:
    needs("openvino", engine)
    size = (256, 320)
    found = profile(Subject(str(bundled_onnx()), engine, precision), EXAMPLE_IMAGE, size, rounds=10)
    check_accounts(found, size)
    # An independent count: on the plan, not on the engine's graph.
    assert found.macs == found.plan_macs


@pytest.mark.parametrize("precision", CORE_PRECISIONS)
def test_a_profile_accounts_for_the_operations_of_the_core(precision: CorePrecision) -> None:
    if precision != "float32" and not instruction_sets(precision):
        pytest.skip(f"the processor does not compute in {precision}")
    found = profile(Subject(engine="native", precision=precision, threads=2), EXAMPLE_IMAGE, SMALL, rounds=2)
    config = bundled_manifest().model
    assert found.macs == found.plan_macs == cost(config).macs(*SMALL)
    assert 0 < found.nodes_ms < found.network_ms
    assert all(node.ms > 0 for node in found.nodes)
    # Every convolution of the plan is in one operation of its block.
    plan = Counts((conv.block, conv.name) for conv in placed_convs(config))
    assert Counts((node.block, name) for node in found.nodes for name in node.kernel.split(", ") if name) == plan
    number = 4 if precision == "float32" else 2
    padded = 16 if precision == "float32" or "avx512bf16" in found.info.engine else 32
    nodes_by_name = {node.name: node for node in found.nodes}
    pixels = SMALL[0] * SMALL[1]
    assert nodes_by_name["head.outputs/store"].bytes_out == number * padded * pixels / 64
    assert nodes_by_name["stem.block0.conv"].bytes_in == 3 * pixels + number * (3 * 3 * 3 * 8 + 8)
    # Attention reads two scales of queries, what was before it, and the weights and biases of its projection.
    attend = nodes_by_name["stage3.block1.attention/attend"]
    assert attend.bytes_in == number * (3 * 64 * pixels / 256 + 2 * 64 * 64 + 64)
    assert found.peak.gflops > 0


def test_a_profile_of_the_core_is_the_same_for_every_file_it_runs(tmp_path: Path) -> None:
    manifest, weights = read_checkpoint(bundled_models()["b0-camvid"])
    program = compile_program(manifest.model, manifest.preprocess, weights)
    write_evit(tmp_path / "model.evit", manifest, program)
    files = None, str(bundled_onnx()), str(tmp_path / "model.evit")
    of_file = [profile(Subject(file, "native", "float32", 1), EXAMPLE_IMAGE, SMALL, rounds=1) for file in files]
    first, *others = ([replace(node, ms=0.0) for node in found.nodes] for found in of_file)
    assert others == [first, first]
    b1 = replace(manifest, model=model_config("b1", manifest.model.num_classes))
    write_evit(tmp_path / "other.evit", b1, program)
    with pytest.raises(WeightsError, match="not that of the network in its manifest"):
        profile(Subject(str(tmp_path / "other.evit"), "native"), EXAMPLE_IMAGE, SMALL)


def test_every_instruction_set_and_precision_has_a_peak() -> None:
    for precision in CORE_PRECISIONS:
        for isa in instruction_sets(precision):
            # More than a multiply-add per microsecond, and fewer than a million per nanosecond, on any machine.
            assert 1e6 < Core(program(CONFIGS["mbconv"]), isa=isa, precision=precision).peak() < 1e15


def test_what_is_no_convolution_belongs_to_what_it_follows() -> None:
    needs("openvino")
    found = profile(Subject(str(bundled_onnx()), "openvino", "float32"), EXAMPLE_IMAGE, SMALL, rounds=1)
    blocks = {node.engine_name: node.block for node in found.nodes}
    resized = [block for name, block in blocks.items() if name.startswith("Resize")]
    products = [block for name, block in blocks.items() if name.startswith("MatMul")]
    assert resized == ["head.from_stage4", "head.from_stage3"]
    assert len(products) == 8
    assert set(products) == {f"stage{s}.block{b}.attention" for s in (3, 4) for b in (1, 2)}


def test_a_profile_of_what_has_none_is_refused(tmp_path: Path) -> None:
    needs("torch", "onnx")
    import onnx

    with pytest.raises(EngineError, match=r"PyTorch.* does not report the time of its layers"):
        profile(Subject(engine="torch"), EXAMPLE_IMAGE, SMALL)
    content = onnx.load(bundled_onnx())
    node = next(node for node in content.graph.node if node.op_type == "Conv")
    node.name = "other"
    onnx.save(content, tmp_path / "m.onnx")
    with pytest.raises(WeightsError, match="not the one that evitseg export writes"):
        profile(Subject(str(tmp_path / "m.onnx"), "openvino"), EXAMPLE_IMAGE, SMALL)


@pytest.mark.parametrize("engine", ["native", "openvino"])
def test_a_roofline_is_drawn(engine: str, tmp_path: Path) -> None:
    needs("matplotlib")
    model = None
    if engine == "openvino":
        needs("openvino")
        model = str(bundled_onnx())
    found = profile(Subject(model, engine), EXAMPLE_IMAGE, SMALL, rounds=1)
    draw(found, "b0-camvid at 64x96", tmp_path / "roofline.png")
    with Image.open(tmp_path / "roofline.png") as image:
        image.load()
        assert image.format == "PNG"
        assert image.width > 1000
        assert len(image.convert("RGB").getcolors(2**24) or []) > 50
    with pytest.raises(ImageError, match=r"roofline\.pdf: .*\.png"):
        draw(found, "", tmp_path / "roofline.pdf")


def test_a_roof_is_the_slower_of_arithmetic_and_memory() -> None:
    peak = MachinePeak(gflops=100.0, gb_per_s=10.0)
    assert peak.ms(macs=50_000_000, moved_bytes=1_000_000) == pytest.approx(1.0)  # 0.1 GFLOP at 100 a second
    assert peak.ms(macs=50_000_000, moved_bytes=20_000_000) == pytest.approx(2.0)  # 0.02 GB at 10 a second
