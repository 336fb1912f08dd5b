from __future__ import annotations

import ctypes

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from evitseg.errors import ConfigError, EngineError
from evitseg.image import MAX_PIXELS
from evitseg.preprocess import Preprocess, ResampledSide, resampled, resampled_window
from evitseg.runtime.core import instruction_sets
from evitseg.system.core_library import open_library

Array = NDArray[np.uint8]
BAD_ARGUMENT = 4


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


def pillow(image: Array, size: tuple[int, int]) -> Array:
    """The image resized by Pillow: across, then down."""
    height, width = size
    across = Image.fromarray(image).resize((width, len(image)), Image.Resampling.BILINEAR)
    return np.asarray(across.resize((width, height), Image.Resampling.BILINEAR))


def sides(image: tuple[int, ...], size: tuple[int, int]) -> tuple[ResampledSide, ResampledSide]:
    return ResampledSide(image[0], size[0]), ResampledSide(image[1], size[1])


def evs_resize(
    image: Array, row_bytes: int, down: ResampledSide, across: ResampledSide, isa: bytes | None, out: Array
) -> int:
    """The code that the core returns."""
    resize, pointer = open_library().evs_resize, ctypes.c_void_p
    resize.argtypes = [pointer, ctypes.c_size_t, pointer, pointer, ctypes.c_char_p, pointer]
    return int(
        resize(image.ctypes.data, row_bytes, ctypes.addressof(down), ctypes.addressof(across), isa, out.ctypes.data)
    )


def random_case(rng: np.random.Generator, turn: int) -> tuple[Array, tuple[int, int]]:
    """An image, noise or white, and a size: near its own, smaller or larger."""
    most = 900 if turn % 8 == 0 else 90
    height, width = (int(side) for side in rng.integers(1, most, 2))
    size = (int(rng.integers(1, most)), int(rng.integers(1, most)))
    if turn % 3 == 0:
        size = Preprocess().fit((height, width))
    elif turn % 3 == 1:
        size = (height, size[1]) if turn % 2 else (size[0], width)
    image = rng.integers(0, 256, (height, width, 3), np.uint8)
    return image if turn % 5 else np.full_like(image, 255), size


@pytest.mark.parametrize("isa", instruction_sets())
def test_resampled_pixels_are_pillows(isa: str) -> None:
    rng = np.random.default_rng(0)
    for turn in range(150):
        image, size = random_case(rng, turn)
        down, across = sides(image.shape, size)
        out = np.full((*size, 3), 7, np.uint8)
        assert evs_resize(image, image.strides[0], down, across, isa.encode(), out) == 0
        np.testing.assert_array_equal(out, pillow(image, size), err_msg=f"{image.shape} to {size}")


@pytest.mark.parametrize(
    ("image", "size"),
    [
        ((1, 30_000), (3, 32)),
        ((30_000, 1), (32, 1)),
        ((1, 3), (2, 20_000)),
        ((2, 20_001), (2, 19_999)),
        ((1, 1), (99, 70)),
    ],
)
def test_extreme_sizes_are_resampled_like_pillow(image: tuple[int, int], size: tuple[int, int]) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (*image, 3), np.uint8)
    np.testing.assert_array_equal(resampled(pixels, size), pillow(pixels, size))


def test_a_view_of_an_image_is_resampled_like_a_copy() -> None:
    image = np.random.default_rng(0).integers(0, 256, (60, 80, 4), np.uint8)
    for view in (image[5:50, 7:71, :3], image[::-1, :, :3], image[:, :, 2::-1], image[:, :60].reshape(60, 80, 3)):
        np.testing.assert_array_equal(resampled(view, (40, 72)), pillow(np.ascontiguousarray(view), (40, 72)))


def test_windows_read_only_what_they_depend_on() -> None:
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (211, 307, 3), np.uint8)
    for size in ((192, 320), (211, 288), (37, 500), (211, 307)):
        whole = pillow(image, size)
        for _ in range(20):
            top, left = (int(rng.integers(0, side)) for side in size)
            height, width = int(rng.integers(1, size[0] - top + 1)), int(rng.integers(1, size[1] - left + 1))
            down, across = ResampledSide(211, size[0], top, height), ResampledSide(307, size[1], left, width)
            rows = slice(down.source_first, down.source_first + down.source_count)
            columns = slice(across.source_first, across.source_first + across.source_count)
            window = resampled_window(image[rows, columns], down, across)
            np.testing.assert_array_equal(window, whole[top : top + height, left : left + width])


@pytest.mark.parametrize(
    "numbers",
    [
        (0, 8, 0, 8, 0, 8), (8, 0, 0, 8, 0, 8), (-8, 8, 0, 8, 0, 8), (2**31 - 1, 8, 0, 8, 0, 8),
        (8, 2**31 - 1, 0, 8, 0, 8),
        (8, 8, -1, 8, 0, 8), (8, 8, 1, 8, 0, 8), (8, 8, 0, 0, 0, 8), (8, 8, 2**31 - 1, 2**31 - 1, 0, 8),
        (8, 8, 0, 8, -1, 8), (8, 8, 0, 8, 0, 7), (8, 8, 0, 8, 1, 7), (8, 8, 0, 8, 0, 9), (8, 8, 0, 8, 0, 0),
        (8, 8, 0, 8, 2**31 - 1, 2**31 - 1), (8, 6, 0, 6, 1, 6), (8, 6, 0, 6, 0, 7), (8, 13, 5, 4, 4, 2),
    ],
)  # fmt: skip
def test_sides_that_do_not_fit_are_refused(numbers: tuple[int, ...]) -> None:
    good, bad = ResampledSide(8, 8), ResampledSide(8, 8)
    for (name, *_), number in zip(ResampledSide._fields_, numbers, strict=True):
        setattr(bad, name, number)
    image, out = np.zeros((8, 8, 3), np.uint8), np.full((8, 8, 3), 7, np.uint8)
    for down, across in ((good, bad), (bad, good)):
        assert evs_resize(image, 24, down, across, None, out) == BAD_ARGUMENT
    assert (out == 7).all()


def test_wrong_rows_and_instruction_sets_are_refused() -> None:
    side, image, out = ResampledSide(8, 7), np.zeros((8, 8, 3), np.uint8), np.full((7, 7, 3), 7, np.uint8)
    assert evs_resize(image, 23, side, side, None, out) == BAD_ARGUMENT
    assert evs_resize(image, 24, side, side, b"vax", out) == BAD_ARGUMENT
    assert (out == 7).all()
    assert evs_resize(image, 24, side, side, None, out) == 0
    assert (out == 0).all()


@pytest.mark.parametrize("arguments", [(0, 8), (8, 0), (8, 8, 8), (8, 8, -1), (8, 8, 4, 5), (2**25, 8)])
def test_a_window_outside_the_image_is_an_error(arguments: tuple[int, ...]) -> None:
    with pytest.raises(EngineError, match="out of range"):
        ResampledSide(*arguments)
