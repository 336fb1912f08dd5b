"""The tests themselves: what they do on a machine that lacks packages or shared files."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.optional import EXTRAS, WITHOUT

ROOT = Path(__file__).parents[1]


def run_pytest(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("PYTEST_", "EVITSEG_"))}
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-p", "no:xdist", "--color=no", *arguments]
    return subprocess.run(
        command, cwd=ROOT, env=inherited | environment, capture_output=True, text=True, check=False, timeout=300
    )


def test_every_optional_package_is_that_of_an_extra() -> None:
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    extras = re.findall(
        r"^([\w-]+) = \[", text.split("[project.optional-dependencies]")[1].split("\n[project")[0], re.M
    )
    assert set(EXTRAS.values()) <= set(extras)


def test_every_test_file_can_be_collected_with_no_optional_package() -> None:
    run = run_pytest("--collect-only", "-q", **{WITHOUT: ",".join(EXTRAS)})
    assert run.returncode == 0, run.stdout[-3000:]
    assert "needs torch, which pip install '.[torch]' installs" in run.stdout


def test_a_test_that_needs_a_missing_package_skips_and_the_others_run() -> None:
    run = run_pytest("tests/test_architecture.py", **{WITHOUT: "torch"})
    assert run.returncode == 0, run.stdout
    summary = run.stdout.splitlines()[-1]
    assert re.search(r"[1-9]\d* passed, [1-9]\d* skipped", summary), summary


@pytest.mark.parametrize(
    ("environment", "status", "outcome"),
    [({}, 0, "1 skipped"), ({"CI": "true"}, 0, "1 skipped"), ({"EVITSEG_REQUIRE_SHARED": "1"}, 1, "1 failed")],
)
def test_missing_shared_files_skip_a_test_unless_they_are_required(
    environment: dict[str, str], status: int, outcome: str, tmp_path: Path
) -> None:
    name = "tests/data/test_layouts.py::test_camvid_is_recognised"
    run = run_pytest(name, **environment, EVITSEG_SHARED=str(tmp_path))
    assert run.returncode == status, run.stdout
    assert outcome in run.stdout
    assert f"needs {tmp_path / 'data/camvid'}" in run.stdout
