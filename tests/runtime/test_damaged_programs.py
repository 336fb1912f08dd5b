"""Programs from anywhere: whatever their bytes say, the core refuses them or runs them, and never crashes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from evitseg.runtime.core import instruction_sets
from evitseg.runtime.evit_file import write_evit
from tests.runtime.programs import ALL, manifest, program, tables

DAMAGE = """
import sys
import numpy as np
from evitseg.errors import EngineError
from evitseg.runtime.core import Core

whole, tables, seed = open(sys.argv[1], "rb").read(), int(sys.argv[2]), int(sys.argv[3])
precisions = sys.argv[4].split(",")
rng = np.random.default_rng(seed)
images = [np.full((*size, 3), 200, np.uint8) for size in ((32, 32), (64, 64))]
refused = 0
for turn in range(400):
    damaged = bytearray(whole)
    for _ in range(rng.integers(1, 4)):
        at = int(rng.integers(0, tables // 4)) * 4
        values = [0, 1, 2, 3, -1, 8, 16, 32, 2**31 - 1, -2**31, rng.integers(0, 2**16), rng.integers(0, 64)]
        if rng.integers(0, 3):
            new = int(values[rng.integers(0, len(values))])
        else:  # a number of this program in another place
            other = int(rng.integers(0, tables // 4)) * 4
            new = int.from_bytes(whole[other:other + 4], "little", signed=True)
        damaged[at:at + 4] = new.to_bytes(4, "little", signed=True)
    if turn % 10 == 0:
        damaged = damaged[: int(rng.integers(0, len(damaged)))]
    try:
        core = Core(bytes(damaged), 1 + turn % 2, precision=precisions[turn % len(precisions)])
    except EngineError:
        refused += 1
        continue
    for image in images:
        if core.memory(*image.shape[:2]) < 2**28:
            try:
                core(image)
            except EngineError as error:
                assert "grow beyond" in str(error)
print(refused)
"""


@pytest.mark.parametrize("name", ALL)
def test_damaged_programs_are_refused_or_run(name: str, tmp_path: Path) -> None:
    made = program(ALL[name])
    (tmp_path / "program").write_bytes(made)
    precisions = [name for name in ("float32", "float16") if instruction_sets(name)]
    arguments = [str(tmp_path / "program"), str(tables(made)), "0", ",".join(precisions)]
    # In a process of its own, because a crash would end this one.
    run = subprocess.run(
        [sys.executable, "-c", DAMAGE, *arguments], capture_output=True, text=True, check=False, timeout=300
    )
    assert run.returncode == 0, run.stderr[-2000:]
    assert 100 < int(run.stdout) < 400  # many run all the same


def test_no_byte_of_a_model_file_can_crash_the_core(tmp_path: Path) -> None:
    """Every byte of the head, the manifest's length among them, becomes the largest and the smallest number."""
    write_evit(tmp_path / "model.evit", manifest(ALL["mbconv"]), program(ALL["mbconv"]))
    code = """
import sys
from evitseg.errors import EngineError
from evitseg.runtime.core import Core

whole, loaded = open(sys.argv[1], "rb").read(), 0
for at in range(128):
    for value in (0, 255):
        try:
            Core(whole[:at] + bytes([value]) + whole[at + 1:])
            loaded += 1
        except EngineError:
            pass
print(loaded)
"""
    run = subprocess.run(
        [sys.executable, "-c", code, tmp_path / "model.evit"], capture_output=True, text=True, check=False, timeout=300
    )
    assert run.returncode == 0, run.stderr[-2000:]
    # The core does not read the manifest, so any of its 112 bytes here may change; so may the zeros of its length.
    assert 2 * 112 <= int(run.stdout) < 2 * 128


def test_a_residual_cannot_follow_planar_rows() -> None:
    """It would read them as if they were not planar, and get other numbers in every run."""
    from evitseg.runtime.core import Core

    made, pixels = program(ALL["depthwise"]), np.full((64, 32, 3), 9, np.uint8)
    core = Core(made)
    assert core(pixels).tobytes() == core(pixels).tobytes() == Core(made, 3)(pixels).tobytes()
