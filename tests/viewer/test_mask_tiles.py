from __future__ import annotations

import os
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from evitseg.errors import FileError
from evitseg.labels import load_labels
from evitseg.viewer.mask_tiles import MaskTiles, open_entry
from evitseg.viewer.pyramid import TILE, Pyramid

CAMVID = load_labels("camvid")
SIZE = (1100, 1537)


def random_mask(seed: int = 0) -> NDArray[np.uint8]:
    """Small patches of classes, and a part without data."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 11, (SIZE[0] // 3 + 1, SIZE[1] // 3 + 1), np.uint8)
    mask: NDArray[np.uint8] = coarse.repeat(3, 0).repeat(3, 1)[: SIZE[0], : SIZE[1]].copy()
    mask[:200, :300] = CAMVID.ignore_index
    return mask


def filled(folder: Path, mask: NDArray[np.uint8], seed: int = 0, limit: int = 2**30) -> MaskTiles:
    tiles = MaskTiles(folder, Pyramid(SIZE), CAMVID, limit)
    places = [(y, x) for y in range(0, SIZE[0], TILE) for x in range(0, SIZE[1], TILE)]
    np.random.default_rng(seed).shuffle(places)
    for y, x in places:
        tiles.write(y, x, mask[y : y + TILE, x : x + TILE])
    return tiles


def level_of(tiles: MaskTiles, level: int) -> NDArray[np.integer]:
    rows, columns = tiles.pyramid.grid(level)
    parts = [[tiles.read(level, y, x) for x in range(columns)] for y in range(rows)]
    return np.vstack([np.hstack([part for part in row if part is not None]) for row in parts])


def test_a_pyramid_has_the_most_frequent_class_of_four_whatever_the_order_of_its_parts(tmp_path: Path) -> None:
    mask = random_mask()
    tiles, other = filled(tmp_path / "a", mask, seed=1), filled(tmp_path / "b", mask, seed=2)
    np.testing.assert_array_equal(level_of(tiles, 0), mask)
    for level in range(1, tiles.pyramid.levels):
        finer, found = level_of(tiles, level - 1), level_of(tiles, level)
        np.testing.assert_array_equal(found, level_of(other, level))
        padded = np.pad(finer, [(0, side % 2) for side in finer.shape], "edge")
        for y, x in np.random.default_rng(level).integers(0, found.shape, (300, 2)):
            counts = Counter(padded[2 * y : 2 * y + 2, 2 * x : 2 * x + 2].ravel().tolist())
            assert counts[int(found[y, x])] == max(counts.values())


def test_a_later_viewer_finds_the_tiles_and_the_counts(tmp_path: Path) -> None:
    mask = random_mask()
    expected = np.bincount(mask.ravel(), minlength=256)
    first = filled(tmp_path, mask)
    assert first.is_complete
    np.testing.assert_array_equal(first.counts(), expected)
    second = MaskTiles(tmp_path, Pyramid(SIZE), CAMVID)
    assert (second.is_complete, second.fraction, second.missing()) == (True, 1.0, [])
    np.testing.assert_array_equal(second.counts(), expected)
    np.testing.assert_array_equal(level_of(second, 1), level_of(first, 1))


def test_an_interrupted_pyramid_is_continued(tmp_path: Path) -> None:
    mask = random_mask()
    tiles = MaskTiles(tmp_path, Pyramid(SIZE), CAMVID)
    tiles.write(0, 0, mask[:TILE])
    assert tiles.counts() is None
    tiles = MaskTiles(tmp_path, Pyramid(SIZE), CAMVID)
    assert tiles.missing() == [(row, column) for row in (1, 2) for column in range(4)]
    assert tiles.read(1, 0, 0) is None
    for row, column in tiles.missing():
        y, x = row * TILE, column * TILE
        tiles.write(y, x, mask[y : y + TILE, x : x + TILE])
    np.testing.assert_array_equal(tiles.counts(), np.bincount(mask.ravel(), minlength=256))
    assert tiles.read(tiles.pyramid.levels - 1, 0, 0) is not None


def test_a_damaged_tile_is_as_if_it_were_not_there(tmp_path: Path) -> None:
    tiles = filled(tmp_path, random_mask())
    path = tmp_path / "0/0/0.z"
    path.write_bytes(path.read_bytes()[:-9])
    assert tiles.read(0, 0, 0) is None
    path.unlink()
    assert tiles.read(0, 0, 0) is None
    assert tiles.read(0, 0, 1) is not None


def test_the_folder_stays_below_its_limit(tmp_path: Path) -> None:
    mask = random_mask()
    filled(tmp_path / "all", mask)
    needed = sum(path.stat().st_size for path in tmp_path.rglob("*.z"))
    tiles = MaskTiles(tmp_path / "some", Pyramid(SIZE), CAMVID, needed * 8 // 10)
    for y in range(0, SIZE[0], TILE):
        tiles.write(y, 0, mask[y : y + TILE])
    held = sum(path.stat().st_size for path in (tmp_path / "some").rglob("*.z"))
    assert needed * 5 // 10 < held <= needed * 8 // 10
    assert tiles.is_complete
    assert tiles.read(tiles.pyramid.levels - 1, 0, 0) is not None


def test_folders_that_were_not_used_for_longest_are_removed_first(tmp_path: Path) -> None:
    for age, name in enumerate(("a" * 24, "b" * 24, "c" * 24)):
        with open_entry(tmp_path, name) as folder:
            (folder / "content").write_bytes(bytes(1000))
        os.utime(folder, (1e9 - age, 1e9 - age))
    with open_entry(tmp_path, "b" * 24, limit=10**9), open_entry(tmp_path, "d" * 24, limit=2500):
        assert sorted(path.name for path in tmp_path.iterdir()) == ["a" * 24, "b" * 24, "d" * 24]
    with open_entry(tmp_path, "d" * 24, limit=0):
        assert sorted(path.name for path in tmp_path.iterdir()) == ["d" * 24]


def test_folders_of_others_in_the_cache_are_not_removed(tmp_path: Path) -> None:
    for name in ("thesis", "a" * 24):
        (tmp_path / name).mkdir()
        (tmp_path / name / "content").write_bytes(bytes(1000))
    (tmp_path / "thesis" / "lock").touch()
    with open_entry(tmp_path, "b" * 24, limit=0):
        assert sorted(path.name for path in tmp_path.iterdir()) == ["a" * 24, "b" * 24, "thesis"]


def test_a_folder_in_use_is_not_removed(tmp_path: Path) -> None:
    with open_entry(tmp_path, "a" * 24) as folder:
        (folder / "content").write_bytes(bytes(1000))
        with open_entry(tmp_path, "b" * 24, limit=0):
            assert folder.exists()


def test_a_cache_that_cannot_be_written_is_reported(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(FileError, match="--cache"), open_entry(tmp_path / "file", "mine"):
        pass
