from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Six images whose brightness is their class."""
    rng = np.random.default_rng(0)
    for i in range(6):
        mask = rng.integers(0, 3, (4, 5)).repeat(8, 0).repeat(8, 1).astype(np.uint8)
        image = np.stack([mask * 100] * 3, -1).astype(np.uint8)
        for kind, values in (("images", image), ("masks", mask)):
            (tmp_path / kind).mkdir(exist_ok=True)
            Image.fromarray(values).save(tmp_path / kind / f"{i}.png")
    return tmp_path
