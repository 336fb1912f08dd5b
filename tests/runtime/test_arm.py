"""The core on another processor, in an emulator."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.optional import needs

needs("torch")

from evitseg.architecture import model_config
from evitseg.runtime.core import Core, instruction_sets
from evitseg.runtime.upsample import argmax_upsampled
from tests.programs import image, network, program_of
from tests.runtime.programs import CLASSIFIER
from tests.runtime.programs import program as random_program

CORE = Path(__file__).parents[2] / "core"
SIZE = (64, 96)


@pytest.fixture(scope="module")
def on_arm(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Runs a program for an image of `SIZE`; the file has the logits and their mask."""
    compiler, emulator = shutil.which("aarch64-linux-gnu-g++"), shutil.which("qemu-aarch64-static")
    if compiler is None or emulator is None:
        pytest.skip("needs g++-aarch64-linux-gnu and qemu-user-static")
    folder = tmp_path_factory.mktemp("arm")
    library = folder / "libevitseg.so"
    subprocess.run([sys.executable, CORE / "build.py", library, compiler], check=True)
    link = ["-x", "c", str(CORE / "tests" / "logits.c"), "-x", "none", str(library), f"-Wl,-rpath,{folder}", "-lm"]
    subprocess.run([compiler, *link, "-o", str(folder / "logits")], check=True)

    def run(program: bytes, pixels: NDArray[np.uint8], *isa: str) -> Path:
        (folder / "program").write_bytes(program)
        (folder / "image").write_bytes(pixels.tobytes())
        arguments = ["program", "image", *map(str, SIZE), "2", "out", *isa]
        subprocess.run([emulator, "-L", "/usr/aarch64-linux-gnu", "./logits", *arguments], check=True, cwd=folder)
        return folder / "out"

    return run


def test_arm_gives_the_same_bytes(on_arm: Callable[..., Path]) -> None:
    pixels = image(*SIZE)
    isa = next(name for name in reversed(instruction_sets()) if name != "sse4")  # with fused multiply-add
    for program in (program_of(network(model_config("b0", 5))), random_program(CLASSIFIER)):
        logits = Core(program, isa=isa)(pixels)
        mask = argmax_upsampled(logits, (59, 103)).tobytes() if logits.ndim == 3 else b""
        assert on_arm(program, pixels).read_bytes() == logits.tobytes() + mask


def test_arms_float16_is_close_to_float32(on_arm: Callable[..., Path]) -> None:
    pixels, program = image(*SIZE), program_of(network(model_config("b0", 5)))
    expected = Core(program)(pixels)
    found = np.fromfile(on_arm(program, pixels, "neonfp16"), np.float32, expected.size).reshape(expected.shape)
    assert np.sqrt(np.mean((found - expected) ** 2)) < 0.03 * np.sqrt(np.mean(expected**2))
