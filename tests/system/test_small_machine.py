"""The README's first command where there is little: real control groups, where this user may make them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from click.testing import CliRunner

from evitseg.cli import app
from evitseg.runtime.native import NativeEngine
from evitseg.tiling import memory_model as memory

MIB = 1024**2
SETTINGS = {
    #                          version 2                       version 1
    "memory": (("memory.max", "{memory}"), ("memory.limit_in_bytes", "{memory}")),
    "cpu": (("cpu.max", "100000 100000"), ("cpu.cfs_quota_us", "100000")),
}
Limited = Callable[[int], list[str]]


@pytest.fixture
def limited() -> Iterator[Limited]:
    """What goes before a command so that it and all it starts have one core and so many bytes, as in a container."""
    made: list[Path] = []
    top = Path("/sys/fs/cgroup")

    def limit(size: int) -> list[str]:
        for controller, choices in SETTINGS.items():
            for root, (name, value) in zip((top, top / controller), choices, strict=True):
                folder = root / f"evitseg-{os.getpid()}"
                with suppress(OSError):
                    if folder not in made and (root / "cgroup.procs").exists():
                        folder.mkdir()
                        made.append(folder)
                    (folder / name).write_text(value.format(memory=size))
                    break
            else:
                pytest.skip("this user may make no control groups for memory and cores")
        into = "; ".join(f"echo $$ > {folder}/cgroup.procs" for folder in made)
        return ["sh", "-c", f'{into}; exec "$@"', "sh"]

    yield limit
    for folder in made:
        with suppress(OSError):
            folder.rmdir()


def test_the_first_command_of_the_readme_runs_in_512_mb_and_one_core(limited: Limited, tmp_path: Path) -> None:
    command = [*limited(512 * 10**6), sys.executable, "-m", "evitseg", "predict", "--example", "--json"]
    run = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    content = json.loads(run.stdout)
    assert " 1 thread," in content["engine"]
    assert sorted(path.name for path in (tmp_path / "predictions").iterdir()) == [
        "street_mask.png",
        "street_overlay.jpg",
    ]


def test_the_limits_of_a_real_control_group_are_seen(limited: Limited) -> None:
    code = "from evitseg.system.machine import *; print(physical_cores(), logical_cores(), free_memory())"
    run = subprocess.run([*limited(300 * MIB), sys.executable, "-c", code], capture_output=True, text=True, check=True)
    physical, logical, free = map(int, run.stdout.split())
    assert (physical, logical) == (1, 1)
    assert 200 * MIB < free < 300 * MIB


@pytest.mark.parametrize("free", [512, 300])
def test_with_little_memory_free_the_example_still_goes_through_whole(
    free: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "free_memory", lambda: free * MIB)
    run = CliRunner().invoke(app, ["predict", "--example", "--out", str(tmp_path / "o")])
    assert run.exit_code == 0, run.output
    # An overlay is only made where the image goes through whole.
    assert sorted(path.name for path in (tmp_path / "o").iterdir()) == ["street_mask.png", "street_overlay.jpg"]


def test_below_what_is_possible_there_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "free_memory", lambda: 0)
    monkeypatch.setattr(memory, "held_memory", lambda: 60 * MIB)
    run = CliRunner().invoke(app, ["predict", "--example", "--out", str(tmp_path / "o")])
    assert run.exit_code == 1
    assert isinstance(run.exception, SystemExit)  # and nothing that a person cannot read
    assert "60 MiB of memory is not enough" in run.output


def test_what_the_process_holds_is_not_counted_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "free_memory", lambda: 200 * MIB)
    monkeypatch.setattr(memory, "held_memory", lambda: memory.BASE_BYTES)
    assert memory.default_memory() == memory.BASE_BYTES + 150 * MIB
    monkeypatch.setattr(memory, "held_memory", lambda: 5 * 2**30)  # other things of the program's own
    assert memory.default_memory() == memory.BASE_BYTES + 150 * MIB
    assert memory.default_memory(held=2**20) == memory.BASE_BYTES + 2**20 + 150 * MIB


def test_images_in_hand_at_once_share_what_is_free(monkeypatch: pytest.MonkeyPatch) -> None:
    from evitseg.architecture import model_config

    config, image = model_config("b0", 11), (4000, 5000)
    features = memory.unfused_bytes(config, (1024, 1280))
    of_one = memory.whole_memory(config, image, (1024, 1280), features) - memory.BASE_BYTES
    monkeypatch.setattr(memory, "held_memory", lambda: memory.BASE_BYTES)
    monkeypatch.setattr(memory, "free_memory", lambda: 4 * of_one)
    assert memory.fits(config, image, (1024, 1280), features, at_once=3)
    assert not memory.fits(config, image, (1024, 1280), features, at_once=4)


def test_an_engine_that_keeps_all_features_of_a_block_needs_more_memory_than_the_core() -> None:
    import evitseg

    segment, image = evitseg.load(threads=1), (2048, 4096)
    assert isinstance(segment.engine, NativeEngine)
    config, own = segment.manifest.model, segment.engine.memory(image)
    needed = memory.whole_memory(config, image, image, own)
    assert memory.BASE_BYTES + own < needed
    assert own < memory.unfused_bytes(config, image)
    assert memory.fits(config, image, image, own, needed)
    assert not memory.fits(config, image, image, own, needed - 1)
