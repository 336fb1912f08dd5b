from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from evitseg.architecture import cost, softmax_macs
from evitseg.bundled import EXAMPLE_IMAGE
from evitseg.errors import ConfigError, EngineError
from evitseg.profiling import bench as measure
from evitseg.profiling import worker
from evitseg.profiling.bench import Compared, Subject, bench
from evitseg.system.machine import peak_mib
from tests.exported import bundled_onnx
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
        assert 0 < timing.end_to_end_ms <= timing.end_to_end_p90_ms
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


@pytest.mark.usefixtures("small_examples")
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


@pytest.mark.slow
def test_every_engine_is_compared(bench_command: Callable[..., Any]) -> None:
    needs("torch", "onnxruntime")
    run = bench_command(str(bundled_onnx()), "--size", "64x96", "--rounds", "2", "--compare", "--json")
    assert run.status == 0, run.stderr
    rows = [Compared(**row) for row in json.loads(run.stdout)["engines"]]
    assert {row.engine for row in rows} == {"openvino", "onnxruntime", "native", "torch"}
    ran = [row for row in rows if not row.problem]
    assert {(row.engine, "float32") for row in rows} <= {(row.engine, row.precision) for row in ran}
    assert ran[0].times_fastest == 1
    assert all(row.precision in row.runs for row in ran)
    assert [row.median_ms for row in ran] == sorted(row.median_ms or 0 for row in ran)
    (problem,) = [row.problem for row in rows if (row.engine, row.precision) == ("onnxruntime", "bfloat16")]
    assert "float32 on a CPU" in problem


def test_the_command_prints_tables_or_json(bench_command: Callable[..., Any], tmp_path: Path) -> None:
    needs("matplotlib", "openvino")
    drawn, model = str(tmp_path / "r.png"), str(bundled_onnx())
    run = bench_command("--engine", "native", "--size", "64x96", "--rounds", "1", "--roofline", drawn, "--json")
    content = json.loads(run.stdout)
    assert set(content) == {"command", "machine", "model", "engine", "sizes", "noise", "profile", "error"}
    assert content["command"] == f"evitseg bench --engine native --size 64x96 --rounds 1 --roofline {drawn} --json"
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
    options = (model, "--engine", "openvino", "--size", "64x96", "--rounds", "1", "--profile", "--markdown")
    lines = bench_command(*options).stdout.splitlines()
    assert f"$ evitseg bench {' '.join(options)}" in lines
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
