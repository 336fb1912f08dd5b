"""What killed processes leave is swept; what others hold is not."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from evitseg.system.files import replacing, sweep, temporary_folder

HOLD = """
import sys, time
from pathlib import Path
from evitseg.system.files import replacing, temporary_folder
with replacing(Path(sys.argv[1]) / "a.png") as file, temporary_folder(Path(sys.argv[1])) as folder:
    (folder / "content").write_text("x")
    print("ready", flush=True)
    time.sleep(60)
"""


def hidden(folder: Path) -> list[str]:
    return [p.name for p in folder.iterdir() if p.name.startswith(".evitseg-")]


@pytest.mark.skipif(sys.platform == "win32", reason="Windows removes no open file")
def test_what_a_killed_process_left_is_swept_and_what_a_living_one_holds_is_not(tmp_path: Path) -> None:
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    assert len(hidden(tmp_path)) == 2
    sweep(tmp_path)
    assert len(hidden(tmp_path)) == 2
    process.kill()
    process.wait()
    process.stdout.close()
    assert len(hidden(tmp_path)) == 2
    with replacing(tmp_path / "b.png") as file:
        file.write(b"b")
    assert [p.name for p in tmp_path.iterdir()] == ["b.png"]


def test_only_what_has_one_of_our_names_is_swept(tmp_path: Path) -> None:
    for name in (".evitseg-cache", ".evitseg-0123456789ab", ".other"):
        (tmp_path / name).write_text("x")
    (tmp_path / ".evitseg-0123456789abcdef").mkdir()
    (tmp_path / ".evitseg-0123456789abcdef/state.json").write_text("{}")
    (tmp_path / ".evitseg-fedcba9876543210").mkdir()
    sweep(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == [".evitseg-0123456789abcdef", ".evitseg-cache", ".other"]


def test_a_link_in_the_place_of_a_leftover_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data/photo.jpg").write_text("x")
    (tmp_path / "out").mkdir()
    (tmp_path / "out/.evitseg-0123456789ab").symlink_to(tmp_path / "data")
    sweep(tmp_path / "out")
    assert (tmp_path / "data/photo.jpg").exists()


def test_a_folder_on_its_way_is_gone_afterwards_also_after_a_failure(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), temporary_folder(tmp_path) as folder:
        os.mkfifo(folder / "pipe")
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []


def test_a_failure_while_writing_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    path.write_bytes(b"old")
    with pytest.raises(RuntimeError), replacing(path) as file:
        file.write(b"half of the new")
        raise RuntimeError
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.skipif(os.name != "posix", reason="Windows has no such permissions")
def test_a_result_has_the_rights_of_any_new_file(tmp_path: Path) -> None:
    (tmp_path / "plain").touch()
    with replacing(tmp_path / "ours") as file:
        file.write(b"x")
    assert (tmp_path / "ours").stat().st_mode == (tmp_path / "plain").stat().st_mode
