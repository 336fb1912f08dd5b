"""The core as WebAssembly, in node: the numbers of the processor it runs on."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from evitseg.runtime.core import Core, instruction_sets
from tests.optional import is_installed
from tests.runtime.programs import CONFIGS, program

CORE = Path(__file__).parents[2] / "core"


@pytest.mark.slow
@pytest.mark.parametrize("flags", [(), ("-msimd128", "-mrelaxed-simd")])
def test_webassembly_gives_the_native_logits(flags: tuple[str, ...], tmp_path: Path) -> None:
    node = shutil.which("node")
    if node is None or not is_installed("ziglang"):
        pytest.skip("needs node, and ziglang, which pip install '.[wheels]' installs")
    zig = [sys.executable, "-m", "ziglang", "c++", "-target", "wasm32-wasi", *flags]
    subprocess.run([sys.executable, CORE / "build.py", tmp_path / "evitseg.wasm", *zig], check=True)
    pixels = np.random.default_rng(0).integers(0, 256, (64, 96, 3), dtype=np.uint8)
    (tmp_path / "image").write_bytes(pixels.tobytes())
    if (
        "--experimental-wasm-relaxed-simd"
        in subprocess.run([node, "--v8-options"], capture_output=True, text=True).stdout
    ):
        node_flags = ["--experimental-wasm-relaxed-simd"]
    else:  # newer versions have it
        node_flags = []
    for network in CONFIGS.values():
        (tmp_path / "program").write_bytes(program(network))
        command = [
            node,
            *node_flags,
            str(CORE / "tests" / "logits.mjs"),
            "evitseg.wasm",
            "program",
            "image",
            "64",
            "96",
            "out",
        ]
        run = subprocess.run(command, check=True, cwd=tmp_path, capture_output=True, text=True)
        assert run.stdout.strip() == ("wasmrelaxed" if flags else "wasm")
        logits = np.fromfile(tmp_path / "out", np.float32)
        expected = Core(program(network), isa=instruction_sets()[0])(pixels).ravel()
        if flags:  # fused multiply-add, as processors have it
            assert logits.tobytes() == expected.tobytes()
        else:
            np.testing.assert_allclose(logits, expected, atol=1e-5 * np.abs(expected).max())
