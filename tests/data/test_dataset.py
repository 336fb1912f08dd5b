from __future__ import annotations

from pathlib import Path

import pytest

from evitseg.data.dataset import split_pairs
from evitseg.data.lists import Pair
from evitseg.errors import DatasetError


def test_a_split_is_the_same_for_the_same_seed() -> None:
    pairs = [Pair(Path(f"{i}.jpg"), Path(f"{i}.png")) for i in range(50)]
    first, again, other = split_pairs(pairs), split_pairs(pairs), split_pairs(pairs, seed=1)
    assert first == again
    assert first != other
    assert len(first["val"]) == 10
    assert sorted([*first["train"], *first["val"]], key=lambda p: int(p.image.stem)) == pairs
    assert {len(part) for part in split_pairs(pairs[:2]).values()} == {1}
    with pytest.raises(DatasetError, match="at least two"):
        split_pairs(pairs[:1])
