from __future__ import annotations

import os
from pathlib import Path

import pytest
from PIL import Image

import evitseg
from evitseg.cli.whole_images import WholeImages, workers_of
from evitseg.system.files import begin_to_read


def test_free_memory_is_asked_for_once_a_second_for_images_of_one_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now, free, asked = [100.0], [2**33], [0]

    def free_memory() -> int:
        asked[0] += 1
        return free[0]

    monkeypatch.setattr("evitseg.cli.whole_images.time.monotonic", lambda: now[0])
    monkeypatch.setattr("evitseg.tiling.memory_model.free_memory", free_memory)
    for name, size in (("a", (64, 64)), ("b", (64, 64)), ("c", (96, 64))):
        Image.new("RGB", size).save(tmp_path / f"{name}.png")
    whole = WholeImages(evitseg.load(threads=1), None, at_once=1)
    assert [whole.too_large(tmp_path / f"{name}.png") for name in "abcab"] == [""] * 5
    assert asked == [2]
    free[0], now[0] = 0, 101.5
    assert "does not fit" in whole.too_large(tmp_path / "a.png")
    assert asked == [3]


@pytest.mark.parametrize(("threads", "streams", "workers"), [(2, 2, 2), (4, 2, 3), (1, 1, 1)])
def test_one_more_image_is_in_progress_where_cores_would_wait(threads: int, streams: int, workers: int) -> None:
    assert workers_of(evitseg.load(threads=threads, streams=streams)) == workers


def test_reading_ahead_ignores_what_is_no_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")  # opening it would wait for its other end
    for name in ("pipe", "missing", ".", "a\0b"):
        begin_to_read(tmp_path / name)
