from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from evitseg.cli import app


def run(*arguments: str) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, [*arguments, "--workers", "1"], env={"COLUMNS": "200"})
    return result.exit_code, result.stdout, result.stderr


@pytest.fixture
def data(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    exif = Image.Exif()
    exif[0x0112] = 3
    for place in ("images", "masks"):
        (tmp_path / place).mkdir()
    for name in ("a", "b", "c", "d"):
        Image.fromarray(rng.integers(0, 256, (6, 8, 3), np.uint8)).save(tmp_path / f"images/{name}.png", exif=exif)
        Image.fromarray(rng.integers(0, 3, (6, 8), np.uint8)).save(tmp_path / f"masks/{name}.png")
    (tmp_path / "images/raw.nef").touch()
    (tmp_path / "images/d.png").write_bytes(b"no image")
    (tmp_path / "masks/c.png").unlink()
    return tmp_path


def test_skipped_files_are_counted_by_reason(data: Path) -> None:
    status, out, err = run("check", str(data))
    assert status == 0
    assert "skipped images that cannot be read: 1; files without a partner: 1; .nef files, which are not read: 1" in out
    assert "note: 2 images are rotated by their EXIF orientation" in out
    assert "ready to train; 1 pair will be skipped" in out
    assert err.count("warning: ") == 2
    assert "error: " not in err
    status, out, _ = run("check", str(data), "--json")
    assert json.loads(out)["skipped"] == {
        "images that cannot be read": 1,
        "files without a partner": 1,
        ".nef files, which are not read": 1,
    }


@pytest.mark.skipif(os.name == "nt", reason="names are text there")
def test_names_that_are_not_utf_8_are_printed(data: Path) -> None:
    folder = Path(os.fsdecode(os.fsencode(data.parent) + b"/caf\xe9"))
    data.rename(folder)
    (folder / "masks/b.png").rename(folder / "masks" / os.fsdecode(b"b\xff.png"))
    status, out, err = run("check", str(folder))
    assert status == 1  # one pair is left
    assert "one usable pair" in err
    assert "no matching" in err
    status, out, err = run("check", str(folder), "--json")
    assert json.loads(out)["layout"] == "images/ and masks/"


@pytest.mark.parametrize(("names", "reason"), [("fg\n", "name two classes"), ("bg\na\n", "id 2 is not in label space")])
def test_masks_that_do_not_fit_the_names_end_with_status_1(names: str, reason: str, data: Path) -> None:
    (data / "classes.txt").write_text(names)
    status, _, err = run("check", str(data))
    assert status == 1
    assert reason in err
    assert "Traceback" not in err
