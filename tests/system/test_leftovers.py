from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

import pytest
from click.testing import CliRunner

from evitseg.cli import app
from evitseg.errors import FileError
from evitseg.system.files import LOCK, STATE, replacing
from evitseg.system.leftovers import find_leftovers

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="Windows has no locks that tell who works")


def interrupted(folder: Path, image: Path, number: int) -> Path:
    """Interrupted work on an image as it is now."""
    place = folder / f".evitseg-{number:016x}"
    place.mkdir(parents=True)
    about = image.stat()
    source = f"{image} {about.st_size} {about.st_mtime_ns}"
    (place / STATE).write_text(json.dumps({"identity": {"source": source}}))
    (place / "features").write_bytes(bytes(100_000 * number))
    return place


@pytest.fixture
def results(tmp_path: Path) -> Path:
    """A folder with work on a.tif, on b.tif which changed, a temporary file, and things that are nobody's leftovers."""
    for name in ("a b.tif", "b.tif"):
        (tmp_path / name).write_bytes(b"image")
    interrupted(tmp_path / "r", tmp_path / "a b.tif", 1)
    interrupted(tmp_path / "r/deep", tmp_path / "b.tif", 2)
    (tmp_path / "b.tif").write_bytes(b"another image")
    (tmp_path / "r/.evitseg-0123456789ab").write_bytes(bytes(10))
    (tmp_path / "r/.evitseg-notes").write_bytes(b"of a person")
    (tmp_path / "r/.git/.evitseg-0123456789ab").mkdir(parents=True)
    (tmp_path / "r/mask.png").write_bytes(b"a result")
    return tmp_path / "r"


def test_leftovers_are_found_with_their_image_size_and_age(results: Path) -> None:
    old = time.time() - 86_400 * 3
    for file in (results / ".evitseg-0000000000000001").iterdir():
        os.utime(file, (old, old))
    found = {each.path.relative_to(results).as_posix(): each for each in find_leftovers(results)}
    assert {name: each.state for name, each in found.items()} == {
        ".evitseg-0000000000000001": "resumable", "deep/.evitseg-0000000000000002": "outdated",
        ".evitseg-0123456789ab": "unfinished",
    }  # fmt: skip
    mine = found[".evitseg-0000000000000001"]
    assert mine.image == str(results.parent / "a b.tif")
    assert 100_000 <= mine.size_bytes < 120_000
    assert mine.age_s == pytest.approx(3 * 86_400, abs=60)
    with pytest.raises(FileError, match="cannot be listed"):
        find_leftovers(results / "absent")


def test_the_verb_lists_and_removes_but_never_what_is_in_use(results: Path) -> None:
    before = sorted(results.rglob("*"))
    run = CliRunner().invoke(app, ["clean", str(results)])
    assert run.exit_code == 0, run.output
    assert "the same command resumes it" in run.output
    assert "its image has changed or is gone" in run.output
    assert "3 leftovers" in run.output
    assert sorted(results.rglob("*")) == before
    with replacing(results / "new.png") as file:
        file.write(b"half")
        file.flush()
        (results / ".evitseg-0123456789ab").write_bytes(bytes(10))  # `replacing` has swept it
        run = CliRunner().invoke(app, ["clean", str(results), "--remove", "--json"])
    assert run.exit_code == 0, run.output
    states = [(row["state"], row["removed"]) for row in json.loads(run.stdout)["leftovers"]]
    assert sorted(states) == [("in use", False), ("outdated", True), ("resumable", True), ("unfinished", True)]
    assert (results / "new.png").read_bytes() == b"half"
    assert {path.name for path in results.iterdir()} == {".evitseg-notes", ".git", "mask.png", "new.png", "deep"}
    assert (results / ".git/.evitseg-0123456789ab").exists()
    assert "no leftovers" in CliRunner().invoke(app, ["clean", str(results)]).output


def test_a_folder_whose_lock_is_held_stays(results: Path) -> None:
    import fcntl

    place = results / ".evitseg-0000000000000001"
    with open(place / LOCK, "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        run = CliRunner().invoke(app, ["clean", str(results), "--remove"])
    assert run.exit_code == 0, run.output
    assert "a process is working on it" in run.output
    assert (place / STATE).exists()


def test_recent_leftovers_can_be_spared(results: Path) -> None:
    run = CliRunner().invoke(app, ["clean", str(results), "--remove", "--older-than", "1"])
    assert run.exit_code == 0, run.output
    assert "no leftovers" in run.output
    assert len(find_leftovers(results)) == 3
