"""The core as WebAssembly, as it ships for browsers, in node: the numbers of the processor it runs on."""

from __future__ import annotations

import runpy
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from evitseg.runtime.core import Core, instruction_sets
from tests.optional import is_installed
from tests.runtime.programs import CONFIGS, program

ROOT = Path(__file__).parents[2]
LIBRARY = ROOT / "src/evitseg/web/library"


@pytest.fixture(scope="module")
def node() -> list[str]:
    found = shutil.which("node")
    if found is None:
        pytest.skip("needs node")
    flag = "--experimental-wasm-relaxed-simd"  # newer versions have it
    known = subprocess.run([found, "--v8-options"], capture_output=True, text=True).stdout
    return [found, *([flag] if flag in known else [])]


def test_the_files_for_browsers_are_built_from_this_source() -> None:
    script = runpy.run_path(str(ROOT / "scripts/build_web.py"))
    assert (LIBRARY / "core.sha256").read_text().strip() == script["source_hash"](), "run python scripts/build_web.py"


@pytest.mark.slow
def test_a_build_gives_the_bytes_of_the_files_for_browsers() -> None:
    if not is_installed("ziglang"):
        pytest.skip("needs ziglang, which pip install '.[wheels]' installs")
    assert runpy.run_path(str(ROOT / "scripts/build_web.py"))["outdated"]() == []


@pytest.mark.parametrize(
    ("file", "threads"),
    [("core.wasm", 1), ("core-threads.wasm", 3), ("core-relaxed.wasm", 1), ("core-relaxed-threads.wasm", 2)],
)
def test_webassembly_gives_the_native_logits(file: str, threads: int, node: list[str], tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (64, 96, 3), dtype=np.uint8)
    (tmp_path / "image").write_bytes(pixels.tobytes())
    relaxed = "relaxed" in file
    for network in CONFIGS.values():
        (tmp_path / "program").write_bytes(program(network))
        script = [
            *node,
            str(ROOT / "core/tests/logits.mjs"),
            str(LIBRARY / file),
            "program",
            "image",
            "64",
            "96",
            "out",
        ]
        run = subprocess.run([*script, str(threads)], check=True, cwd=tmp_path, capture_output=True, text=True)
        assert run.stdout.strip() == ("wasmrelaxed" if relaxed else "wasm")
        logits = np.fromfile(tmp_path / "out", np.float32)
        expected = Core(program(network), isa=instruction_sets()[0])(pixels).ravel()
        np.testing.assert_allclose(logits, expected, atol=1e-5 * np.abs(expected).max())
        if relaxed and network.backbone.activation == "hardswish":
            # Fused multiply-add, as processors have it. Clang 22 leaves one of GELU's products unfused.
            assert logits.tobytes() == expected.tobytes()
        elif not relaxed and "sse4" in instruction_sets():  # the only other one without
            assert logits.tobytes() == Core(program(network), isa="sse4")(pixels).tobytes()


def test_a_run_that_needs_more_memory_than_there_are_addresses_is_refused(node: list[str], tmp_path: Path) -> None:
    """Sizes of memory that were cut off to 32 bits would let a run write beyond its memory."""
    (tmp_path / "program").write_bytes(program(CONFIGS["mbconv"]))
    (tmp_path / "run.mjs").write_text(f"""
import {{ readFileSync }} from "node:fs";
import {{ Core }} from "{(LIBRARY / "core.js").as_uri()}";
const core = await Core.create(new WebAssembly.Module(readFileSync("{LIBRARY / "core.wasm"}")));
const runner = core.newRunner(core.loadModel(readFileSync("program")), 1);
const attempts = [
  () => core.run(runner, 64, 43008, 38912, 64), // needs 6 GB, of which 32 bits would leave 1 MB
  () => core.allocate(2 ** 32 + 64),
];
for (const attempt of attempts) {{
  try {{
    attempt();
  }} catch (error) {{
    console.log(error.code);
  }}
}}
""")
    run = subprocess.run([*node, "run.mjs"], check=True, cwd=tmp_path, capture_output=True, text=True)
    assert run.stdout.split() == ["memory", "memory"]
