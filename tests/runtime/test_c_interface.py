"""The core as C programs use it: the example, and the core's own test program."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from evitseg.preprocess import resampled
from evitseg.runtime.core import Core, instruction_sets, library
from evitseg.runtime.evit_file import write_evit
from evitseg.runtime.upsample import argmax_upsampled
from evitseg.system.core_library import LIBRARY
from tests.runtime.programs import ALL, CONFIGS, manifest, program

CORE = Path(__file__).parents[2] / "core"
FUSED = [name for name in instruction_sets() if name != "sse4"]


def compiled(source: str, folder: Path) -> Path:
    """A C program linked with the core's library."""
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("needs a C compiler (cc)")
    link = [str(LIBRARY), f"-Wl,-rpath,{LIBRARY.parent}", "-lpthread"]
    strict = ["-std=c11", "-O1", "-Wall", "-Wextra", "-Werror", "-D_POSIX_C_SOURCE=200809L"]
    subprocess.run([compiler, *strict, str(CORE / source), *link, "-o", str(folder / "program")], check=True)
    return folder / "program"


def test_the_header_and_the_library_name_the_same_functions() -> None:
    header = (CORE / "include" / "evitseg.h").read_text()
    names = re.findall(r"^EVS_API .*?\b(evs_\w+)\(", header, re.MULTILINE)
    assert len(names) > 10
    for name in names:
        assert hasattr(library(), name), f"evitseg.h declares {name}, which the library does not export"


@pytest.mark.parametrize("size", [(64, 96), (50, 70)])
def test_the_example_writes_the_mask_of_an_image(size: tuple[int, int], tmp_path: Path) -> None:
    network = CONFIGS["fused"]
    write_evit(tmp_path / "model.evit", manifest(network), program(network))
    pixels = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "image.ppm")
    example = compiled("examples/segment.c", tmp_path)
    subprocess.run([example, "model.evit", "image.ppm", "mask.pgm"], check=True, cwd=tmp_path)
    mask = np.asarray(Image.open(tmp_path / "mask.pgm"))
    taken = resampled(pixels, (-(-size[0] // 32) * 32, -(-size[1] // 32) * 32))
    logits = Core(program(network))(taken)
    np.testing.assert_array_equal(mask, argmax_upsampled(logits, size))
    assert len(np.unique(mask)) > 2


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (("model.evit", b"no model"), "model.evit: the program is damaged"),
        (("image.ppm", b"P6 32 32 255\n"), "image.ppm: ends too early"),
        (("image.ppm", b"P6 32 -1 255\n"), "image.ppm: too large"),
        (("image.ppm", b"P3 1 1 255\n0 0 0"), "image.ppm: not a binary PPM"),
    ],
)
def test_the_example_refuses_what_it_cannot_read(damage: tuple[str, bytes], message: str, tmp_path: Path) -> None:
    write_evit(tmp_path / "model.evit", manifest(CONFIGS["mbconv"]), program(CONFIGS["mbconv"]))
    Image.new("RGB", (32, 32)).save(tmp_path / "image.ppm")
    (tmp_path / damage[0]).write_bytes(damage[1])
    example = compiled("examples/segment.c", tmp_path)
    run = subprocess.run(
        [example, "model.evit", "image.ppm", "mask.pgm"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert run.returncode == 1
    assert run.stderr.startswith(message)
    assert not (tmp_path / "mask.pgm").exists()


def checksum(data: bytes) -> int:
    """FNV-1a."""
    value = 14695981039346656037
    for byte in data:
        value = (value ^ byte) * 1099511628211 % 2**64
    return value


def test_the_cores_own_test_agrees_with_python(tmp_path: Path) -> None:
    for name, network in ALL.items():
        (tmp_path / f"{name}.program").write_bytes(program(network))
    names = [f"{name}.program" for name in ALL]
    run = subprocess.run([compiled("tests/check.c", tmp_path), *names], cwd=tmp_path, capture_output=True, check=True)
    lines = run.stdout.decode().splitlines()
    assert [line.split()[0] for line in lines[:3]] == ["resized", "masks", "png"]
    assert len(lines) == 3 + 5 * len(ALL)
    # Its image is a linear congruential generator's, with five bytes between the rows.
    numbers, state = [], 1
    for _ in range(32 * (32 * 3 + 5)):
        state = (state * 1664525 + 1013904223) % 2**32
        numbers.append(state >> 24)
    pixels = np.array(numbers, np.uint8).reshape(32, -1)[:, : 32 * 3].reshape(32, 32, 3)
    for name in ALL:
        logits = Core(program(ALL[name]), isa=FUSED[0])(pixels)
        assert f"{name}.program 32x32 {checksum(logits.tobytes()):016x}" in lines
