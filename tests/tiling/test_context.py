"""Context files are checked before they are unpacked; interrupted work that cannot be resumed is removed."""

from __future__ import annotations

import io
import json
import tracemalloc
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest

from evitseg.errors import ConfigError, FileError
from evitseg.raster.window import ArraySource, identity_of
from evitseg.system.files import STATE
from evitseg.tiling.context import Context, sample_digests
from evitseg.tiling.network import Network
from evitseg.tiling.scratch import Scratch
from evitseg.tiling.stream import remove_orphans, remove_superseded

NETWORK = cast(
    Network,
    SimpleNamespace(
        digest="d",
        arithmetic="float32",
        core=SimpleNamespace(segments=[SimpleNamespace(sums=0), SimpleNamespace(sums=24), SimpleNamespace(sums=0)]),
    ),
)
PIXELS = np.random.default_rng(0).integers(0, 255, (200, 300, 3), np.uint8)
SUMS = (np.arange(24, dtype=np.float32),)


def context(path: Path) -> Path:
    source = ArraySource(PIXELS)
    Context(SUMS, "d", "float32", source.size, (192, 288), sample_digests(source), "a.tif").save(path)
    return path


def test_a_context_comes_back_as_it_was_saved(tmp_path: Path) -> None:
    found = Context.load(context(tmp_path / "c.npz"), NETWORK)
    np.testing.assert_array_equal(found.sums[0], SUMS[0])
    assert (found.image, found.working, found.name) == ((200, 300), (192, 288), "a.tif")
    found.check_image(ArraySource(PIXELS.copy()))
    with pytest.raises(ConfigError, match=r"another image \(a.tif\) of the same size"):
        found.check_image(ArraySource(PIXELS[::-1]))
    for fewer in (found.samples[:1], ()):  # the parts that are left agree, or none are
        with pytest.raises(ConfigError, match="another image"):
            replace(found, samples=fewer).check_image(ArraySource(PIXELS.copy()))
    with pytest.raises(ConfigError, match=r"another image \(a.tif\), of 300×200 pixels, not 100×200"):
        found.check_image(ArraySource(PIXELS[:, :100]))


def replaced(path: Path, name: str, content: bytes) -> None:
    with zipfile.ZipFile(path) as old:
        members = {each: old.read(each) for each in old.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as new:
        for each, value in (members | {name: content}).items():
            new.writestr(each, value)


def npy(array: Any) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()


def claims(shape: str) -> bytes:
    """A member whose header claims more than it holds."""
    header = f"{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}, }}".ljust(117) + "\n"
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header.encode() + bytes(64)


@pytest.mark.parametrize(
    ("name", "make"),
    [
        ("sums0.npy", lambda: bytes(400 * 2**20)),  # of which deflate makes 400 KB
        ("sums0.npy", lambda: npy(np.zeros(24_000_000, np.float32))),
        ("sums0.npy", lambda: claims("(24,)")),
        ("sums0.npy", lambda: claims("(4611686018427387904,)")),
        ("sums0.npy", lambda: npy(np.zeros(24))),
        ("sums0.npy", lambda: npy(np.full(24, np.nan, np.float32))),
        ("sums0.npy", lambda: b"nonsense"),
        ("about.npy", lambda: npy(np.frombuffer(b"[" * 100_000, np.uint8))),
        ("about.npy", lambda: npy(np.frombuffer(json.dumps({"format": 1}).encode(), np.uint8))),
    ],
)
def test_a_context_that_is_none_is_refused_before_memory_is_taken(
    name: str, make: Callable[[], bytes], tmp_path: Path
) -> None:
    path = context(tmp_path / "c.npz")
    replaced(path, name, make())
    tracemalloc.start()
    try:
        with pytest.raises(FileError, match="not a context file"):
            Context.load(path, NETWORK)
        assert tracemalloc.get_traced_memory()[1] < 20 * 2**20
    finally:
        tracemalloc.stop()


def interrupted(folder: Path, name: str, source: str) -> Path:
    place = folder / f".evitseg-{name:0>16}"
    Scratch(place).save({"identity": {"source": source, "precision": name}})
    return place


def test_interrupted_work_on_an_image_that_changed_is_removed(tmp_path: Path) -> None:
    image = tmp_path / "a b.tif"
    image.write_bytes(b"one")
    same = interrupted(tmp_path, "1", identity_of(image))
    changed = interrupted(tmp_path, "2", f"{image} 99 1")
    gone = interrupted(tmp_path, "3", f"{tmp_path / 'gone.tif'} 3 1")
    elsewhere = interrupted(tmp_path, "4", f"{tmp_path / 'unmounted/x.tif'} 3 1")
    unknown = interrupted(tmp_path, "5", "")
    remove_orphans(tmp_path)
    assert [p.exists() for p in (same, changed, gone, elsewhere, unknown)] == [True, False, False, True, True]


def test_work_with_other_settings_is_removed_once_the_mask_is_done_unless_it_goes_on(tmp_path: Path) -> None:
    done = tmp_path / ".evitseg-0000000000000009"
    other, at_work = interrupted(tmp_path, "1", "/a.tif 1 2"), interrupted(tmp_path, "2", "/a.tif 1 2")
    of_another = interrupted(tmp_path, "3", "/b.tif 1 2")
    with Scratch(at_work).locked():
        remove_superseded(done, {"source": "/a.tif 1 2"})
        assert [p.exists() for p in (other, at_work, of_another)] == [False, True, True]
    assert (at_work / STATE).exists()


def test_a_second_process_on_one_image_is_told_of_the_first(tmp_path: Path) -> None:
    with Scratch(tmp_path / "s").locked():
        (tmp_path / "s/lock").write_bytes(b"")  # the first has not yet written its number
        with (
            pytest.raises(FileError, match="another process is working on this image"),
            Scratch(tmp_path / "s").locked(),
        ):
            pass
