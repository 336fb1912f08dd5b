from __future__ import annotations

import json
import math
import platform
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from evitseg.architecture import ModelConfig, SegmentationHead, cost, placed_convs, softmax_macs
from evitseg.bundled import EXAMPLE_IMAGE, bundled_models
from evitseg.errors import ConfigError, EngineError, ImageError, WeightsError
from evitseg.profiling import bench as measure
from evitseg.profiling import worker
from evitseg.profiling.bench import Compared, Subject, bench
from evitseg.profiling.machine_peak import MachinePeak
from evitseg.profiling.profile import Profile, profile
from evitseg.profiling.roofline import draw
from evitseg.system.machine import peak_mib
from tests.optional import needs

SMALL = (64, 96)


@pytest.fixture(autouse=True)
def _short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker, "WARM_UP_LEAST", 0.05)


@pytest.fixture
def bench_command(cli: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """Runs `evitseg bench ARGUMENTS...` inside this process; the workers that it starts are processes."""

    def run(*arguments: str) -> Any:
        monkeypatch.setattr(sys, "argv", ["evitseg", "bench", *arguments])  # bench prints its own command
        return cli("bench", *arguments)

    return run


def test_every_size_is_measured_from_small_to_large() -> None:
    timings = list(bench(Subject(), EXAMPLE_IMAGE, [(128, 160), SMALL], rounds=3))
    assert [(timing.height, timing.width) for timing in timings] == [SMALL, (128, 160)]
    for timing in timings:
        assert 0 < timing.network_ms <= timing.network_p90_ms
        assert timing.network_ms < timing.end_to_end_ms <= timing.end_to_end_p90_ms
        assert timing.rounds == 3
        assert timing.ms_per_megapixel == pytest.approx(timing.network_ms * 1e6 / timing.height / timing.width)
        assert timing.noise >= 1
        assert 50 < timing.peak_mib < 4096
        assert timing.per_pixel(timings) == (None, None)
    with pytest.raises(ConfigError, match="96x96 fits"):
        next(bench(Subject(), EXAMPLE_IMAGE, [(100, 100)]))


def test_peak_memory_is_that_of_one_size_alone() -> None:
    held = np.ones(2**30, np.uint8)  # 1 GiB in this process, none of it in theirs
    (timing,) = bench(Subject(), EXAMPLE_IMAGE, [SMALL], rounds=1)
    assert timing.peak_mib < 800 < peak_mib()
    assert held[-1]


def test_time_for_a_pixel_is_compared_with_the_reference() -> None:
    timings = [
        measure.Timing(1024, 1024, 20.0, 21.0, 30.0, 31.0, 9, 100.0, softmax_macs_per_pixel=2000.0),
        measure.Timing(2048, 2048, 88.0, 89.0, 120.0, 180.0, 9, 200.0, softmax_macs_per_pixel=8000.0),
    ]
    assert timings[1].per_pixel(timings) == pytest.approx((1.1, 4.0))
    assert timings[1].noise == pytest.approx(1.5)
    assert "idle" in measure.noise_message(timings[1].noise)
    assert "quiet" in measure.noise_message(timings[0].noise)
    assert timings[1].to_dict(timings)["per_pixel_to_reference"] == pytest.approx(1.1)


def test_warming_up_goes_on_while_it_gets_faster() -> None:
    took = [1.0, 0.5, 0.49, 0.3, 0.3, 0.299, 0.31, 0.2, 0.1]
    runs: list[float] = []

    def work() -> float:
        runs.append(took[len(runs)])
        return runs[-1]

    monkey = pytest.MonkeyPatch()
    with monkey.context() as patch:
        patch.setattr(worker, "WARM_UP_LEAST", 0.0)
        worker.warm_up(work)
    assert runs == took[:7]  # three in a row that bring nothing: 0.3, 0.299, 0.31


def test_softmax_attention_would_grow_with_the_square() -> None:
    config = bundled_manifest().model
    small, large = (softmax_macs(config, side, side) - cost(config).macs(side, side) for side in (1024, 4096))
    # B0 by hand: two blocks with 64 channels at stride 16, two with 128 at stride 32; q·k and the weighted sum, in
    # twice as many channels, since there are two scales.
    tokens = [1024**2 // 16**2, 1024**2 // 32**2]
    softmax = sum(2 * 2 * n * n * 2 * width for n, width in zip(tokens, (64, 128), strict=True))
    linear = sum(2 * n * (2 * width // 16) * 16 * 33 for n, width in zip(tokens, (64, 128), strict=True))
    assert small == softmax - linear
    assert large > 250 * small


def bundled_manifest() -> Any:
    return Subject().segmenter.manifest


def test_a_model_of_one_size_is_measured_at_it(tmp_path: Path) -> None:
    needs("torch", "onnx")
    from evitseg.exporters.export import export
    from evitseg.loading import network_of

    path, _ = export(network_of("b0-camvid"), "onnx", tmp_path / "m.onnx", size=SMALL)
    (timing,) = bench(Subject(str(path)), EXAMPLE_IMAGE, rounds=1)
    assert (timing.height, timing.width) == SMALL
    with pytest.raises(ConfigError, match="64x96 .* and no others"):
        next(bench(Subject(str(path)), EXAMPLE_IMAGE, [(128, 96)], rounds=1))


def test_a_process_that_ends_early_is_told() -> None:
    with worker.Worker([sys.executable, "-c", "print('{}'); raise SystemExit(3)"], "it") as other:
        other.begun()
        with pytest.raises(EngineError, match="ended early, with exit status 3"):
            other.ask("go")


def check_accounts(found: Profile, size: tuple[int, int]) -> None:
    """What holds of every engine's profile."""
    # The rest is the call itself and what lies between nodes: 0.2 to 0.5 ms here; other work may fall between, too.
    assert 0.1 * found.network_ms < found.nodes_ms <= 1.02 * found.network_ms
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
    assert {node.block for node in found.nodes} - {"head.up"} == {"input", *(conv.block for conv in plan.values())}
    assert 1 < found.peak.gb_per_s < found.peak.gflops


def surplus(config: ModelConfig, size: tuple[int, int]) -> int:
    """Multiply-adds of the graph for OpenVINO, without tiles, beyond the plan's."""
    height, width = size
    macs = 0
    for number, stage in enumerate(config.backbone.stages):
        if stage.attends:
            tokens = height * width // (4 << number) ** 2
            # All heads at once, in three products, instead of head by head, in two of which one has a row more.
            each = stage.width * (3 * stage.width - 2 * config.backbone.head_dim - 1)
            macs += stage.depth * (1 + len(config.backbone.attention_kernels)) * tokens * each
    assert isinstance(config.head, SegmentationHead)
    for stride in (16, 32):  # first every row becomes as wide as at stride 8, then every column as tall
        rows, columns = height // stride, width // stride
        macs += config.head.width * (rows * columns * (width // 8) + rows * (height // 8) * (width // 8))
    return macs


@pytest.mark.parametrize("precision", ["float32", "auto"])
def test_a_profile_accounts_for_the_graph_that_openvino_runs(precision: Any) -> None:
    size = (256, 320)
    found = profile(Subject(precision=precision), EXAMPLE_IMAGE, size, rounds=10)
    check_accounts(found, size)
    config = bundled_manifest().model
    assert found.macs == cost(config).macs(*size) + surplus(config, size)
    products = {node.name for node in found.nodes if node.type == "MatMul"}
    attention = {f"stage{s}.block{b}.attention" for s in (3, 4) for b in (1, 2)}
    kinds = ("keys×values", "queries×context", "divisor")
    up = {"head.up/width.4", "head.up/width.2", "head.up/height"}
    assert products == {f"{block}/{kind}.{i}" for block in attention for kind in kinds for i in (0, 1)} | up
    assert not [node.name for node in found.nodes if re.search(r"_\d|tile", node.name)]


def test_tiles_are_one_row(monkeypatch: pytest.MonkeyPatch) -> None:
    from evitseg.runtime import openvino_graph

    size, subject = (256, 320), Subject(precision="float32")
    whole = profile(subject, EXAMPLE_IMAGE, size, rounds=1)
    monkeypatch.setattr(openvino_graph, "TILE_BYTES", 2**20)
    tiled = profile(subject, EXAMPLE_IMAGE, size, rounds=1)
    before, after = ({node.name: node for node in found.nodes} for found in (whole, tiled))
    assert {name for name in before if before[name].macs} == {name for name in after if after[name].macs}
    stem = after["stem.block0.conv"]
    assert stem.count == after["input/normalise"].count > 1
    # Tiles overlap; how much, the bytes of their three float32 channels say.
    pixels = after["input/normalise"].bytes_out // 12
    assert pixels > size[0] * size[1]
    assert stem.macs == 3 * 3 * 3 * 8 * pixels // 4
    assert tiled.macs > whole.macs


@pytest.mark.parametrize("engine", ["openvino", "onnxruntime"])
def test_a_profile_accounts_for_the_graph_in_the_file(engine: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if engine == "onnxruntime":
        needs("onnxruntime")
    monkeypatch.setattr(platform, "machine", lambda: "aarch64")  # where OpenVINO runs the file's, too
    size = (256, 320)
    found = profile(Subject(engine=engine, precision="float32"), EXAMPLE_IMAGE, size, rounds=10)
    check_accounts(found, size)
    # An independent count: on the plan, not on the engine's graph.
    assert found.macs == found.plan_macs


def test_what_is_no_convolution_belongs_to_what_it_follows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "aarch64")
    found = profile(Subject(precision="float32"), EXAMPLE_IMAGE, SMALL, rounds=1)
    blocks = {node.engine_name: node.block for node in found.nodes}
    resized = [block for name, block in blocks.items() if name.startswith("Resize")]
    products = [block for name, block in blocks.items() if name.startswith("MatMul")]
    assert resized == ["head.from_stage4", "head.from_stage3"]
    assert len(products) == 8
    assert set(products) == {f"stage{s}.block{b}.attention" for s in (3, 4) for b in (1, 2)}


def test_a_profile_of_what_has_none_is_refused(tmp_path: Path) -> None:
    needs("torch", "onnx")
    import onnx

    with pytest.raises(EngineError, match="PyTorch does not report the time of its layers"):
        profile(Subject(engine="torch"), EXAMPLE_IMAGE, SMALL)
    content = onnx.load(bundled_models()["b0-camvid"])
    node = next(node for node in content.graph.node if node.op_type == "Conv")
    node.name = "other"
    onnx.save(content, tmp_path / "m.onnx")
    with pytest.raises(WeightsError, match="not the one that evitseg export writes"):
        profile(Subject(str(tmp_path / "m.onnx")), EXAMPLE_IMAGE, SMALL)


def test_a_roofline_is_drawn(tmp_path: Path) -> None:
    needs("matplotlib")
    found = profile(Subject(), EXAMPLE_IMAGE, SMALL, rounds=1)
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


@pytest.mark.slow
def test_every_engine_is_compared(bench_command: Callable[..., Any]) -> None:
    needs("torch", "onnxruntime")
    run = bench_command("--size", "64x96", "--rounds", "2", "--compare", "--json")
    assert run.status == 0, run.stderr
    rows = [Compared(**row) for row in json.loads(run.stdout)["engines"]]
    assert {row.engine for row in rows} == {"openvino", "onnxruntime", "native", "torch"}
    ran = [row for row in rows if not row.problem]
    assert {("openvino", "float32"), ("onnxruntime", "float32"), ("torch", "float32")} <= {
        (row.engine, row.precision) for row in ran
    }
    assert ran[0].times_fastest == 1
    assert all(row.precision in row.runs for row in ran)
    assert [row.median_ms for row in ran] == sorted(row.median_ms or 0 for row in ran)
    (problem,) = [row.problem for row in rows if (row.engine, row.precision) == ("onnxruntime", "bfloat16")]
    assert "float32 on a CPU" in problem


def test_the_command_prints_tables_or_json(bench_command: Callable[..., Any], tmp_path: Path) -> None:
    needs("matplotlib")
    drawn = str(tmp_path / "r.png")
    run = bench_command("--size", "64x96", "--rounds", "1", "--roofline", drawn, "--json")
    content = json.loads(run.stdout)
    assert set(content) == {"command", "machine", "model", "engine", "sizes", "noise", "profile", "error"}
    assert content["command"] == f"evitseg bench --size 64x96 --rounds 1 --roofline {drawn} --json"
    assert set(content["machine"]) == {"processor", "physical_cores", "logical_cores", "system"}
    assert content["model"] == "b0-camvid"
    assert content["sizes"][0]["width"] == 96
    assert {"blocks", "nodes", "peak", "network_ms", "nodes_ms", "macs", "plan_macs"} <= set(content["profile"])
    assert {
        "name",
        "block",
        "count",
        "type",
        "ms",
        "fraction",
        "macs",
        "bytes_in",
        "bytes_out",
        "gflops",
        "gb_per_s",
    } <= set(content["profile"]["nodes"][0])
    assert sum(node["fraction"] for node in content["profile"]["nodes"]) == pytest.approx(1)
    assert Path(drawn).stat().st_size > 10_000
    lines = bench_command("--size", "64x96", "--rounds", "1", "--profile", "--markdown").stdout.splitlines()
    assert "$ evitseg bench --size 64x96 --rounds 1 --profile --markdown" in lines
    assert any(line.startswith("| size | network ms |") for line in lines)
    assert any(line.startswith("| 64x96 |") for line in lines)
    assert any(line.startswith("| stage3.block1.attention |") for line in lines)
    tables = [line for line in lines if line.startswith("|")]
    assert all(line.endswith("|") for line in tables)


@pytest.mark.parametrize(
    ("arguments", "status", "sentence"),
    [
        (["--size", "512"], 2, "such as 512x1024"),
        (["--size", "64x64", "--size", "64x96", "--profile"], 2, "one size"),
        (["--compare", "--precision", "float32"], 2, "leave --engine and --precision out"),
        (["--roofline", "r.jpg"], 1, "the roofline plot is a PNG"),
        (["--roofline", "r.png", "nosuch.onnx"], 1, "nosuch.onnx: no such file"),
    ],
)
def test_wrong_options_are_one_sentence(
    arguments: list[str], status: int, sentence: str, bench_command: Callable[..., Any]
) -> None:
    if "r.png" in arguments:
        needs("matplotlib")
    run = bench_command(*arguments)
    assert run.status == status
    assert sentence in " ".join(run.stderr.replace("│", " ").split())
    assert "Traceback" not in run.stderr
