from __future__ import annotations

import subprocess
import sys
import textwrap
import threading

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

import evitseg
from evitseg.bundled import bundled_models
from evitseg.errors import ConfigError, ImageError
from evitseg.raster.window import ArraySink, ArraySource, Source
from evitseg.runtime.upsample import argmax_upsampled
from evitseg.tiling.network import Network
from evitseg.tiling.progress import BandProgress
from evitseg.tiling.sliding_window import sliding_window
from evitseg.tiling.windows import Window

BUNDLED = bundled_models()["b0-camvid"]
IGNORE = 255


@pytest.fixture(scope="module")
def network() -> Network:
    return Network(BUNDLED, "float32")


@pytest.fixture(scope="module")
def street(photograph: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """An image whose sides are no multiples of 32."""
    return np.ascontiguousarray(np.asarray(Image.fromarray(photograph).resize((515, 397))))


def blended(image: NDArray[np.uint8], network: Network, window: int) -> NDArray[np.integer]:
    sink = ArraySink(image.shape[:2])
    sliding_window(network, ArraySource(image), sink, window)
    return sink.mask


class Tiled(ArraySink):
    """Takes windows where a file does: from a line of its tiles on, whole rows of them or one of several."""

    def __init__(self, size: tuple[int, ...]) -> None:
        super().__init__((size[0], size[1]))
        self.tile = (96, 160)

    def write(self, top: int, left: int, mask: NDArray[np.integer]) -> None:
        height, width = self.mask.shape
        assert top % 96 == left % 160 == 0
        assert top + mask.shape[0] == height or mask.shape[0] == 96
        assert left + mask.shape[1] == width or mask.shape[1] % 160 == 0
        super().write(top, left, mask)


def test_one_window_is_the_whole_and_more_cover_the_image(street: NDArray[np.uint8], network: Network) -> None:
    expected = evitseg.load(BUNDLED, precision="float32", size="native").mask(street)
    np.testing.assert_array_equal(blended(street, network, 512), expected)
    for window in (128, 192, 256):
        sink = ArraySink(street.shape[:2])
        sink.mask[:] = IGNORE
        found = sliding_window(network, ArraySource(street), sink, window)
        np.testing.assert_array_equal(found.counts, np.bincount(sink.mask.ravel(), minlength=IGNORE + 1))
        assert found.counts[IGNORE] == 0
        assert 0.001 < (sink.mask != expected).mean() < 0.5


def test_windows_are_weighed_as_a_naive_sum_does(street: NDArray[np.uint8], network: Network) -> None:
    image = np.ascontiguousarray(street[:160, :224])  # multiples of 32: nothing is resampled
    own = evitseg.load(BUNDLED, precision="float32", size="native")
    total, weight = np.zeros((11, 20, 28)), np.zeros((20, 28))
    tent = np.minimum(*np.meshgrid(*[np.concatenate([np.arange(1, 9), np.arange(8, 0, -1)])] * 2))
    for top in (0, 32):
        for left in (0, 64, 96):
            part = np.ascontiguousarray(image[top : top + 128, left : left + 128])
            rows, columns = slice(top // 8, top // 8 + 16), slice(left // 8, left // 8 + 16)
            total[:, rows, columns] += own.logits(part) * tent
            weight[rows, columns] += tent
    expected = argmax_upsampled((total / weight).astype(np.float32), (160, 224))
    assert (blended(image, network, 128) != expected).mean() < 1e-3


def test_the_mask_is_the_same_bits_with_other_threads_and_in_other_tiles(
    street: NDArray[np.uint8], network: Network
) -> None:
    one_thread = Network(BUNDLED, "float32", threads=1)
    for window in (64, 320):
        expected = blended(street, network, window)
        np.testing.assert_array_equal(blended(street, one_thread, window), expected)
        sink = Tiled(street.shape[:2])
        sliding_window(network, ArraySource(street), sink, window)
        np.testing.assert_array_equal(sink.mask, expected)


@pytest.mark.parametrize("size", [256, 800])
def test_another_working_size_gives_a_mask_of_the_images_size(
    size: int, street: NDArray[np.uint8], network: Network
) -> None:
    def mask(sink: ArraySink, window: int) -> NDArray[np.integer]:
        sink.mask[:] = IGNORE
        sliding_window(network, ArraySource(street), sink, window, size=size)
        return sink.mask

    one_window = mask(ArraySink(street.shape[:2]), 1088)
    expected = evitseg.load(BUNDLED, precision="float32", size=size).mask(street)
    assert (one_window != expected).mean() < 1e-3
    many_windows = mask(ArraySink(street.shape[:2]), size // 128 * 64)
    assert 0.01 < (many_windows != expected).mean() < 0.4
    np.testing.assert_array_equal(mask(Tiled(street.shape[:2]), size // 128 * 64), many_windows)


def test_what_cannot_be_read_is_told_once_and_has_no_class(street: NDArray[np.uint8], network: Network) -> None:
    class Damaged(ArraySource):
        tile = (64, 64)

        def read(self, top: int, left: int, height: int, width: int) -> NDArray[np.uint8]:
            if Window(top, left, height, width).common(Window(128, 192, 64, 64)):
                raise ImageError("a tile is damaged")
            return super().read(top, left, height, width)

    expected = np.zeros(street.shape[:2], np.bool_)
    expected[128:192, 192:256] = True
    expected[:9, 500:] = True
    for sink in (ArraySink(street.shape[:2]), Tiled(street.shape[:2])):
        valid = np.ones(street.shape[:2], np.bool_)
        valid[:9, 500:] = False
        found = sliding_window(network, Damaged(street, valid), sink, 128)
        assert [(damage.window, damage.reason) for damage in found.damages] == [
            (Window(128, 192, 64, 64), "a tile is damaged")
        ]
        np.testing.assert_array_equal(sink.mask == IGNORE, expected)
        assert found.counts[IGNORE] == 64 * 64 + 9 * 15


@pytest.mark.parametrize("window", [0, -64, 32, 100, 96])
def test_a_window_that_does_not_fit_the_stride_is_refused(window: int, network: Network) -> None:
    with pytest.raises(ConfigError, match=f"a window of {window} pixels does not fit .* give a multiple of 64"):
        sliding_window(network, ArraySource(np.zeros((400, 400, 3), np.uint8)), ArraySink((400, 400)), window)


def test_too_little_memory_is_refused_before_anything_is_read(network: Network) -> None:
    class Endless(Source):
        size = (100_000, 100_000)

        def read(self, top: int, left: int, height: int, width: int) -> NDArray[np.uint8]:
            pytest.fail("read")

        def valid(self, top: int, left: int, height: int, width: int) -> None:
            return None

    # 128 rows of a window's logits and 12 numbers for each of them, 12,500 across, are 73 MiB of it.
    refused = pytest.raises(ConfigError, match=r"140 MiB of memory is not enough: windows of 1024 .* need \d{3} MiB; ")
    with refused as told:
        sliding_window(network, Endless(), ArraySink((1, 1)), 1024, memory=140 * 1024**2)
    assert 148 < int(str(told.value).split("need ")[1].split()[0]) < 350


MEASURED = """
import sys, numpy as np
from evitseg.system.machine import peak_mib
from evitseg.errors import ConfigError
from evitseg.tiling.sliding_window import sliding_window
from evitseg.tiling.network import Network
from evitseg.raster.window import ArraySink, Source

class Grey(Source):
    size = (1600, 1590)
    def read(self, top, left, height, width):
        return np.full((height, width, 3), 99, np.uint8)
    def valid(self, top, left, height, width):
        return None

network = Network(sys.argv[1], "float32", threads=2)
try:
    sliding_window(network, Grey(), ArraySink(Grey.size), 1024, memory=1)
except ConfigError as error:
    print(error)
sliding_window(network, Grey(), ArraySink(Grey.size), 1024)
print(peak_mib())
"""


def test_what_is_said_to_be_needed_is_what_is_held(network: Network) -> None:
    run = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(MEASURED), str(BUNDLED)], check=True, capture_output=True, text=True
    )
    told, peak = run.stdout.splitlines()
    needed = int(told.split("need ")[1].split()[0])
    assert needed - 100 < float(peak) < needed


def test_memory_that_the_source_holds_is_needed_too(street: NDArray[np.uint8], network: Network) -> None:
    needed = []
    for held in (0, 123 * 1024**2):
        source = ArraySource(street)
        source.held = held
        with pytest.raises(ConfigError, match="is not enough") as told:
            sliding_window(network, source, ArraySink(street.shape[:2]), 256, memory=1)
        needed.append(int(str(told.value).split("need ")[1].split()[0]))
    assert needed[1] - needed[0] == 123


def test_every_window_is_counted(street: NDArray[np.uint8], network: Network) -> None:
    seen: list[BandProgress] = []
    sliding_window(network, ArraySource(street), ArraySink(street.shape[:2]), 192, watch=seen.append)
    # 397×515 pixels become 384×512: windows begin at 0, 96, 192 and, of the columns, at 288 and 320, too.
    assert seen == [BandProgress(0, 1, i + 1, 3 * 5, (i + 1) / 15) for i in range(15)]


def test_windows_are_read_together_by_as_many_threads_as_the_network_has(street: NDArray[np.uint8]) -> None:
    class Meeting(ArraySource):
        """The first two windows are read together, or not at all."""

        together, reads = threading.Barrier(2), 0

        def read(self, top: int, left: int, height: int, width: int) -> NDArray[np.uint8]:
            self.reads += 1
            if self.reads <= 2:
                self.together.wait(timeout=20)
            return super().read(top, left, height, width)

    sliding_window(Network(BUNDLED, "float32", threads=2), Meeting(street), ArraySink(street.shape[:2]), 256)


def test_after_an_interrupt_no_window_is_under_way(street: NDArray[np.uint8], network: Network) -> None:
    def stop(progress: BandProgress) -> None:
        if progress.window == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        sliding_window(network, ArraySource(street), ArraySink(street.shape[:2]), 64, watch=stop)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("evitseg")]


def test_windows_without_data_do_not_run_and_their_neighbours_do_not_feel_them(
    street: NDArray[np.uint8], network: Network
) -> None:
    valid = np.ones(street.shape[:2], np.bool_)
    valid[:, 300:] = False
    image = street.copy()
    masks = []
    for value in (0, 255):
        image[:, 300:] = value  # windows that begin at 320 have no data; those before see it
        sink = ArraySink(image.shape[:2])
        seen = list[BandProgress]()
        found = sliding_window(network, ArraySource(image, valid), sink, 64, watch=seen.append)
        assert found.counts[IGNORE] == (~valid).sum()
        assert (sink.mask[:, :300] != IGNORE).all()
        masks.append(sink.mask[:, :224])
    np.testing.assert_array_equal(masks[0], masks[1])


@pytest.mark.parametrize("size", [(1, 640), (640, 1), (1, 1), (3, 40)])
def test_the_narrowest_images_are_segmented_as_whole(size: tuple[int, int], network: Network) -> None:
    image = np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8)
    expected = evitseg.load(BUNDLED, precision="float32", size="native").mask(image)
    np.testing.assert_array_equal(blended(image, network, 1024), expected)
