from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

import evitseg
from evitseg.bench import bench
from evitseg.bundled import EXAMPLE_PICTURE
from evitseg.errors import ConfigError


def command(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "evitseg", "bench", *arguments], capture_output=True, text=True, check=False
    )


def test_every_size_is_measured_from_small_to_large() -> None:
    timings = list(bench(evitseg.load(), EXAMPLE_PICTURE, [(128, 160), (64, 96)], turns=3))
    assert [(timing.height, timing.width) for timing in timings] == [(64, 96), (128, 160)]
    for timing in timings:
        assert 0 < timing.network_ms <= timing.network_p90_ms
        assert timing.network_ms < timing.end_to_end_ms <= timing.end_to_end_p90_ms
        assert timing.turns == 3
        assert timing.ms_per_megapixel == pytest.approx(timing.network_ms * 1e6 / timing.height / timing.width)
    assert timings[0].peak_mib <= timings[1].peak_mib < 4096
    with pytest.raises(ConfigError, match="96x96 fits"):
        next(bench(evitseg.load(), EXAMPLE_PICTURE, [(100, 100)]))


def test_a_model_of_one_size_is_measured_at_it(tmp_path: Path) -> None:
    from evitseg.exporters import export
    from evitseg.loading import network_of

    path, _ = export(network_of("b0-camvid"), "onnx", tmp_path / "m.onnx", size=(64, 96))
    (timing,) = bench(evitseg.load(path), EXAMPLE_PICTURE, turns=1)
    assert (timing.height, timing.width) == (64, 96)
    with pytest.raises(ConfigError, match="64x96 .* and no others"):
        next(bench(evitseg.load(path), EXAMPLE_PICTURE, [(128, 96)], turns=1))


def test_the_command_prints_a_table_or_json() -> None:
    content = json.loads(command("--size", "64x96", "--turns", "1", "--json").stdout)
    assert content["model"] == "b0-camvid"
    assert content["sizes"][0]["width"] == 96
    table = command("--size", "64x96", "--turns", "1", "--markdown").stdout.splitlines()
    assert table[1].startswith("| size | network ms |")
    assert table[3].startswith("| 64x96 |")
    run = command("--size", "512")
    assert run.returncode == 2
    assert "such as 512x1024" in run.stderr
