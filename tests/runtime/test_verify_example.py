"""The C++ program in docs/how-to/verify-on-device.md, compiled and run."""

from __future__ import annotations

import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from evitseg.runtime.evit_file import set_evit_manifest
from evitseg.system.core_library import LIBRARY
from tests.runtime.checked import checked_model

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs/how-to/verify-on-device.md"


def test_the_program_of_the_docs_agrees_and_disagrees(tmp_path: Path) -> None:
    compiler = shutil.which("c++")
    if compiler is None:
        pytest.skip("needs a C++ compiler (c++)")
    for name, start in (("self_check.h", "#include <array>"), ("verify.cpp", "#include <fstream>")):
        found = re.search(rf"```cpp\n({re.escape(start)}.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
        assert found is not None
        (tmp_path / name).write_text(found[1], encoding="utf-8")
    link = [f"-I{ROOT / 'core/include'}", str(LIBRARY), f"-Wl,-rpath,{LIBRARY.parent}", "-lpthread"]
    flags = ["-std=c++20", "-O0", "-Wall", "-Wextra", "-Werror"]
    subprocess.run([compiler, *flags, "verify.cpp", *link, "-o", "verify"], cwd=tmp_path, check=True)

    def verified() -> tuple[int, str]:
        run = subprocess.run(["./verify", "model.evit"], cwd=tmp_path, capture_output=True, text=True, check=False)
        return run.returncode, run.stdout + run.stderr

    path, manifest = checked_model(tmp_path)
    check = manifest.self_check
    assert check is not None
    status, text = verified()
    assert (status, text.splitlines()[0]) == (0, "largest difference 0.0e+00, equal classes 96 of 96")
    assert text.splitlines()[1].startswith("agrees in ")
    moved = check.logits[400:] + check.logits[:400]
    set_evit_manifest(path, replace(manifest, self_check=replace(check, logits=moved)))
    status, text = verified()
    assert status == 1
    assert "DISAGREES in " in text
    set_evit_manifest(path, replace(manifest, self_check=None))
    assert verified() == (1, "no self-check that this program can draw\n")
