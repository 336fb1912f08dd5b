"""evitseg view: its command line, and its end."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

Cli = Callable[..., Any]


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("--mask", "m.png", "--model", "b0-camvid"), "--model has no effect with --mask"),
        (("--mask", "m.png", "--context", "c.npz"), "--context has no effect with --mask"),
        (("--labels", "camvid"), "--labels needs --mask"),
        (("--port", "70000"), "--port"),
        (("--size", "huge"), "neither a number of pixels nor 'native'"),
    ],
)
def test_a_wrong_command_line_ends_with_status_2(
    arguments: tuple[str, ...], told: str, cli: Cli, tmp_path: Path
) -> None:
    run = cli("view", tmp_path / "a.png", "--no-browser", *arguments)
    assert run.status == 2
    assert told in run.stderr


def test_a_file_that_cannot_be_shown_ends_with_status_1(cli: Cli, tmp_path: Path) -> None:
    run = cli("view", tmp_path / "a.png", "--no-browser")
    assert (run.status, run.stderr) == (1, f"error: {tmp_path / 'a.png'}: no such file.\n")
    (tmp_path / "a.png").write_text("no image")
    run = cli("view", tmp_path / "a.png", "--no-browser", "--cache", tmp_path / "cache")
    assert run.status == 1
    assert "not in a supported image format" in run.stderr


def test_ctrl_c_is_the_usual_end(photograph: NDArray[np.uint8], tmp_path: Path) -> None:
    Image.fromarray(photograph).save(tmp_path / "a.png")
    command = [sys.executable, "-m", "evitseg", "view", "a.png", "--no-browser", "--cache", "cache"]
    process = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    address = re.search(r"http://127\.0\.0\.1:\d+/[\w-]{22}/", process.stdout.readline())
    assert address is not None
    with urllib.request.urlopen(f"{address[0]}about.json", timeout=30) as answer:
        assert b'"a.png"' in answer.read()
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 0, errors
    assert "Traceback" not in errors
