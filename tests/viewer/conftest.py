from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image


@pytest.fixture(scope="session")
def street(photograph: NDArray[np.uint8], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A photograph as a PNG file."""
    path = tmp_path_factory.mktemp("street") / "street.png"
    Image.fromarray(photograph).save(path)
    return path
