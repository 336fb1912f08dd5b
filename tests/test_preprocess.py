from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from evitseg.errors import ConfigError
from evitseg.image import MAX_PIXELS
from evitseg.preprocess import Preprocess

Array = NDArray[np.uint8]


@pytest.fixture
def pixels() -> Array:
    return np.random.default_rng(0).integers(0, 256, (9, 14, 3), np.uint8)


@pytest.mark.parametrize(
    ("rule", "image", "size", "expected"),
    [
        (Preprocess(720), (360, 480), None, (704, 960)),  # 720 is halfway; even multiples win, as Python rounds
        (Preprocess(720), (1080, 1920), None, (704, 1280)),
        (Preprocess(720), (4032, 3024), None, (960, 704)),
        (Preprocess(720), (100, 100), None, (192, 192)),  # enlarged at most twice: 200, and 192 is nearest
        (Preprocess(720), (360, 480), 480, (480, 640)),
        (Preprocess(720), (100, 100), 640, (640, 640)),  # who asks for a size gets it
        (Preprocess(720), (1024, 2048), "native", (1024, 2048)),
        (Preprocess(720), (1000, 2000), "native", (992, 1984)),
        (Preprocess(), (1000, 2000), None, (992, 1984)),
        (Preprocess(), (1, 1), None, (32, 32)),
        (Preprocess(720), (1, 1), None, (32, 32)),
        (Preprocess(720), (10, 4000), None, (32, 8000)),
    ],
)
def test_the_working_size_follows_the_rule(
    rule: Preprocess, image: tuple[int, int], size: int | None, expected: tuple[int, int]
) -> None:
    assert rule.fit(image, size) == expected
    if max(image) < 2000:
        assert rule.apply(np.zeros((*image, 3), np.uint8), size).shape == (*expected, 3)


def test_an_image_of_the_working_size_is_not_resampled(pixels: Array) -> None:
    image = np.tile(pixels, (8, 8, 1))[:64, :96]
    np.testing.assert_array_equal(Preprocess().apply(image), image)


def test_settings_that_cannot_work_are_refused() -> None:
    with pytest.raises(ConfigError, match="size 5 is out of range"):
        Preprocess(5)
    with pytest.raises(ConfigError, match="std"):
        Preprocess(std=(1.0, 0.0, 1.0))
    with pytest.raises(ConfigError, match=f"{MAX_PIXELS:,}"):
        Preprocess(720).fit((10, 400_000), size=1024)
