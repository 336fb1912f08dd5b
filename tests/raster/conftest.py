from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

SIZE = (1100, 1400)


@pytest.fixture(scope="session")
def pixels() -> NDArray[np.uint8]:
    """Noise over a slope: no two windows are alike, and JPEG keeps them apart."""
    rng = np.random.default_rng(0)
    slope = np.linspace(0, 200, SIZE[0])[:, None, None] + np.linspace(0, 30, SIZE[1])[None, :, None]
    return (slope + rng.integers(0, 25, (*SIZE, 3))).astype(np.uint8)


@pytest.fixture(scope="session")
def mask() -> NDArray[np.uint8]:
    rng = np.random.default_rng(1)
    return np.kron(rng.integers(0, 11, (44, 56)), np.ones((25, 25))).astype(np.uint8)
