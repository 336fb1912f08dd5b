from __future__ import annotations

import ctypes
import random
import subprocess
import sys
import textwrap
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import NoReturn

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from tests.optional import needs

needs("torch", "onnx")

import evitseg
from evitseg.architecture import BACKBONES, ModelConfig, model_config
from evitseg.bundled import bundled_models
from evitseg.engine import Precision
from evitseg.errors import ConfigError, EngineError, FileError, ImageError, WeightsError
from evitseg.exporters.onnx import write_onnx
from evitseg.labels import numbered
from evitseg.manifest import Manifest, Training
from evitseg.model.network import EfficientViT
from evitseg.preprocess import Preprocess
from evitseg.raster.window import ArraySink, ArraySource, Sink, Source
from evitseg.runtime.core import CORE_PRECISIONS, CorePrecision, instruction_sets
from evitseg.runtime.evit_file import write_evit
from evitseg.runtime.segmenter import Segmenter
from evitseg.runtime.upsample import Side, argmax_upsampled
from evitseg.tiling.context import Context
from evitseg.tiling.job import ImageRows, strip_shape
from evitseg.tiling.network import Network
from evitseg.tiling.plan import BAND_STEP, Plan, make_plan
from evitseg.tiling.progress import BandProgress, Beginning, Watcher
from evitseg.tiling.region import render_region
from evitseg.tiling.scratch import LiveRange, Scratch, allocate
from evitseg.tiling.stream import LargeImageResult, segment_large
from evitseg.tiling.verify import banded_logits, verify_bands
from evitseg.tiling.windows import Resampled, Window, tiles_of
from tests.networks import lively
from tests.programs import image as drawn
from tests.runtime import programs

BUNDLED = bundled_models()["b0-camvid"]
IGNORE = 255

CONFIGS: dict[str, ModelConfig] = {
    "b0": model_config("b0", 19),
    "b1": model_config("b1", 19),
    "l1": model_config("l1", 19),
    "timm's epsilon": replace(model_config("b0", 3), backbone=replace(BACKBONES["b0"], attention_eps=1e-1)),
    "three scales": replace(model_config("b0", 3), backbone=replace(BACKBONES["b0"], attention_kernels=(3, 5, 7))),
    "one scale": replace(model_config("b0", 3), backbone=replace(BACKBONES["b0"], attention_kernels=())),
}


Artefact = Callable[[str], Path]


@pytest.fixture(scope="module")
def artefact(tmp_path_factory: pytest.TempPathFactory) -> Artefact:
    """A row of `CONFIGS` with random weights, as a file."""
    folder, made = tmp_path_factory.mktemp("artefacts"), dict[str, Path]()

    def make(name: str) -> Path:
        if name not in made:
            config = CONFIGS[name]
            manifest = Manifest(
                "random", config, numbered(config.num_classes), Preprocess(), Training("generated", "CC0")
            )
            made[name] = folder / f"{len(made)}.onnx"
            write_onnx(lively(EfficientViT(config)), manifest, made[name])
        return made[name]

    return make


@pytest.fixture(scope="module")
def network() -> Network:
    return Network(BUNDLED, "float32")


@pytest.fixture(scope="module")
def segment() -> Segmenter:
    return evitseg.load(BUNDLED, precision="float32", size="native")


@pytest.fixture(scope="module")
def street(photograph: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """An image whose sides are no multiples of 32."""
    return np.ascontiguousarray(np.asarray(Image.fromarray(photograph).resize((515, 397))))


def tall(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The image several times below itself, so that there are several bands."""
    return np.tile(image, (3, 1, 1))


def stream(
    image: NDArray[np.uint8], network: Network, scratch: Path | None, band: int | None = None
) -> tuple[NDArray[np.integer], LargeImageResult]:
    sink = ArraySink(image.shape[:2])
    streamed = segment_large(network, ArraySource(image), sink, scratch=scratch, band=band)
    return sink.mask, streamed


def context_of(streamed: LargeImageResult) -> Context:
    assert streamed.context is not None
    return streamed.context


def assert_same_bits(actual: NDArray[np.float32], expected: NDArray[np.float32]) -> None:
    np.testing.assert_array_equal(actual.view(np.uint32), expected.view(np.uint32))


@pytest.mark.parametrize("name", CONFIGS)
def test_bands_give_the_whole_images_logits_bit_for_bit(
    name: str, artefact: Artefact, street: NDArray[np.uint8], tmp_path: Path
) -> None:
    networks = [Network(artefact(name), "float32", threads) for threads in (1, 2)]
    for height, width in ((301, 207), (600, 64)):
        image = np.ascontiguousarray(tall(street)[:height, :width])
        expected = evitseg.load(artefact(name), precision="float32", size="native").logits(image)
        for band, network in ((128, networks[0]), (256, networks[1])):
            assert_same_bits(banded_logits(ArraySource(image), network, band, tmp_path), expected)


@pytest.mark.parametrize("precision", ["float16", "bfloat16"])
def test_half_precision_gives_the_same_bits_in_bands(
    precision: Precision, street: NDArray[np.uint8], tmp_path: Path, skip_without: Callable[[str, Exception], NoReturn]
) -> None:
    try:
        network = Network(BUNDLED, precision)
    except EngineError as error:
        skip_without(precision, error)
    expected = evitseg.load(BUNDLED, precision=precision, size="native").logits(tall(street))
    assert_same_bits(banded_logits(ArraySource(tall(street)), network, BAND_STEP, tmp_path), expected)


@pytest.mark.parametrize(("height", "width"), [(1191, 515), (397, 515), (301, 207), (64, 515), (40, 50), (7, 9)])
def test_the_mask_is_that_of_the_whole_image(
    height: int, width: int, street: NDArray[np.uint8], network: Network, segment: Segmenter, tmp_path: Path
) -> None:
    image = np.ascontiguousarray(tall(street)[-height:, :width])
    expected = segment.mask(image)
    for band in (128, 384, None):
        for scratch in (tmp_path, None):  # features on disk, and in memory
            mask, streamed = stream(image, network, scratch, band)
            np.testing.assert_array_equal(mask, expected)
            assert streamed.counts[:-1].sum() == height * width
    assert not list(tmp_path.iterdir())


def test_a_mask_is_the_same_however_large_the_tiles_of_its_file_are(
    street: NDArray[np.uint8], network: Network, segment: Segmenter
) -> None:
    image = tall(street)
    expected = segment.mask(image)
    for tile in ((1, 515), (96, 64), (512, 512), (7, 515), (2000, 2000)):

        class Tiles(ArraySink):
            def write(self, top: int, left: int, mask: NDArray[np.integer]) -> None:
                assert top % self.tile[0] == left % self.tile[1] == 0
                super().write(top, left, mask)

        sink = Tiles(image.shape[:2])
        sink.tile = tile
        segment_large(network, image, sink, band=128)
        np.testing.assert_array_equal(sink.mask, expected)


class Reads(ArraySource):
    """Counts windows."""

    count = 0

    def read(self, top: int, left: int, height: int, width: int) -> NDArray[np.uint8]:
        self.count += 1
        return super().read(top, left, height, width)


@pytest.mark.parametrize("precision", [each for each in CORE_PRECISIONS if instruction_sets(each)])
@pytest.mark.parametrize("name", programs.CONFIGS)
def test_bands_and_known_sums_give_the_wholes_bits_also_where_heads_share_blocks(
    name: str, precision: CorePrecision, tmp_path: Path
) -> None:
    """Bands compute no queries with the sums, and runs with known sums no keys and values."""
    path, pixels, config = tmp_path / "model.evit", drawn(256, 320), programs.CONFIGS[name]
    write_evit(path, programs.manifest(config), programs.program(config))
    network = Network(path, precision)
    whole = network.core.core(pixels)
    assert banded_logits(ArraySource(pixels), network, 128, tmp_path).tobytes() == whole.tobytes()
    context = segment_large(network, pixels, ArraySink(pixels.shape[:2]), band=128).context
    assert context is not None
    assert network.core.logits(pixels, np.concatenate(context.sums)).tobytes() == whole.tobytes()


def test_a_region_from_its_context_is_that_part_of_the_mask(
    street: NDArray[np.uint8], network: Network, tmp_path: Path
) -> None:
    mask, streamed = stream(street, network, tmp_path)
    context_of(streamed).save(tmp_path / "street.npz")
    assert (tmp_path / "street.npz").stat().st_size < 200_000
    context = Context.load(tmp_path / "street.npz", network)
    for region in (Window(0, 0, 50, 70), Window(133, 201, 90, 3), Window(396, 514, 1, 1), Window(0, 0, 397, 515)):
        part, _ = render_region(network, ArraySource(street), context, region)
        rows, columns = region.inside(Window(0, 0, 397, 515))
        np.testing.assert_array_equal(part, mask[rows, columns])
    _, other = stream(255 - street, network, tmp_path)
    elsewhere = replace(context, sums=context_of(other).sums)
    assert (render_region(network, ArraySource(street), elsewhere, Window(0, 0, 397, 515))[0] != mask).mean() > 0.01


def test_a_region_is_rendered_in_parts_where_the_memory_asks_for_it(
    street: NDArray[np.uint8], network: Network, tmp_path: Path
) -> None:
    image = np.tile(street, (4, 4, 1))
    valid = np.ones(image.shape[:2], np.bool_)
    valid[800:810, 1000:] = False
    sink = ArraySink(image.shape[:2])
    context = context_of(segment_large(network, ArraySource(image, valid), sink, scratch=tmp_path))
    region = Window(307, 309, 901, 1200)
    with pytest.raises(ConfigError, match="1 MiB of memory is not enough: the smallest part") as told:
        render_region(network, ArraySource(image, valid), context, region, memory=1)
    needed = int(str(told.value).split("needs ")[1].split()[0]) << 20
    counts = []
    for memory in (needed, needed + (12 << 20), 4 << 30):
        reads = Reads(image, valid)
        part, damages = render_region(network, reads, context, region, memory=memory)
        assert damages == ()
        np.testing.assert_array_equal(part, sink.mask[307 : 307 + 901, 309 : 309 + 1200])
        counts.append(reads.count)
    looks = 16  # parts of the image by which the context knows it
    assert counts[0] > counts[1] > counts[2] == looks + 1


def test_what_lies_farther_than_the_halo_does_not_matter(network: Network, artefact: Artefact) -> None:
    """The smallest halo for which that is so, in steps of the stride, is the network's."""
    for each in (network, Network(artefact("l1"), "float32")):
        rng, side = np.random.default_rng(0), 2 * each.halo + 96
        image = rng.integers(0, 256, (side, side, 3), np.uint8)
        sums = np.ones(sum(segment.sums for segment in each.core.segments), np.float32)
        middle = slice((each.halo + 32) // 8, (each.halo + 64) // 8)
        expected = each.core.logits(image, sums)[:, middle, middle]
        changed = image.copy()
        changed[:32], changed[-32:], changed[:, :32], changed[:, -32:] = 0, 0, 0, 0
        assert_same_bits(np.ascontiguousarray(each.core.logits(changed, sums)[:, middle, middle]), expected.copy())


def test_a_context_of_another_model_or_image_is_refused(
    artefact: Artefact, street: NDArray[np.uint8], network: Network, tmp_path: Path
) -> None:
    _, streamed = stream(street, network, tmp_path)
    context = context_of(streamed)
    context.save(tmp_path / "c.npz")
    with pytest.raises(WeightsError, match="made with another model"):
        Context.load(tmp_path / "c.npz", Network(artefact("b0"), "float32"))
    replace(context, arithmetic="float16 (avx1024)").save(tmp_path / "d.npz")
    with pytest.raises(ConfigError, match=r"made in float16 \(avx1024\), and this run is in float32; make both"):
        Context.load(tmp_path / "d.npz", network)
    with pytest.raises(ConfigError, match="another image, of 515×397 pixels, not 100×50"):
        render_region(network, ArraySource(street[:50, :100]), context, Window(0, 0, 5, 5))
    with pytest.raises(ConfigError, match="not inside the image"):
        render_region(network, ArraySource(street), context, Window(390, 0, 20, 5))


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 and no more", b"x" * 1000])
def test_a_file_that_is_no_context_is_refused(content: bytes, network: Network, tmp_path: Path) -> None:
    (tmp_path / "c.npz").write_bytes(content)
    with pytest.raises(FileError, match="not a context file"):
        Context.load(tmp_path / "c.npz", network)


class Hostile:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[Path]]:
        return Path.touch, (self.path,)


def test_a_context_file_runs_no_code(network: Network, tmp_path: Path) -> None:
    np.savez(tmp_path / "c.npz", about=np.array([Hostile(tmp_path / "touched")], dtype=object))
    with pytest.raises(FileError, match="not a context file"):
        Context.load(tmp_path / "c.npz", network)
    assert not (tmp_path / "touched").exists()


def test_pixels_without_data_are_neither_seen_by_the_sums_nor_written(
    street: NDArray[np.uint8], network: Network, tmp_path: Path
) -> None:
    """Beyond what convolutions see of it, the image's other half must not matter."""
    valid = np.ones(street.shape[:2], np.bool_)
    valid[:, 256:] = False
    masks, contexts = [], []
    for value in (0, 255):
        image = street.copy()
        image[:, 256 + 128 :] = value  # further than the convolutions before the first attention look
        sink = ArraySink(street.shape[:2])
        streamed = segment_large(network, ArraySource(image, valid), sink, scratch=tmp_path)
        masks.append(sink.mask)
        contexts.append(context_of(streamed))
    for one, other in zip(contexts[0].sums[:1], contexts[1].sums[:1], strict=True):
        assert_same_bits(one, other)
    everywhere = context_of(segment_large(network, street, ArraySink(street.shape[:2])))
    assert (everywhere.sums[0] != contexts[0].sums[0]).any()
    assert (masks[0][:, 256:] == IGNORE).all()
    assert (masks[0][:, :256] != IGNORE).all()
    assert streamed.counts[IGNORE] == (~valid).sum()


class Torn(Source):
    """An image of tiles of which some cannot be read."""

    tile = (64, 64)

    def __init__(self, image: NDArray[np.uint8], torn: list[tuple[int, int]]) -> None:
        self.size, self._image, self._torn = (image.shape[0], image.shape[1]), image, torn

    def read(self, top: int, left: int, height: int, width: int) -> NDArray[np.uint8]:
        for row, column in self._torn:
            if (
                top < row * 64 + 64
                and row * 64 < top + height
                and left < column * 64 + 64
                and column * 64 < left + width
            ):
                raise ImageError(f"tile {row},{column} is damaged")
        return self._image[top : top + height, left : left + width]

    def valid(self, top: int, left: int, height: int, width: int) -> None:
        return None


@pytest.mark.parametrize("band", [128, 256, None])
def test_a_torn_tile_is_named_left_out_and_the_rest_is_done(
    band: int | None, street: NDArray[np.uint8], network: Network, tmp_path: Path
) -> None:
    torn = Torn(street, [(1, 2), (6, 8)])
    sink = ArraySink(street.shape[:2])
    streamed = segment_large(network, torn, sink, scratch=tmp_path, band=band)
    expected = np.zeros(street.shape[:2], np.bool_)
    expected[64:128, 128:192] = expected[384:, 512:] = True
    np.testing.assert_array_equal(sink.mask == IGNORE, expected)
    assert {d.reason for d in streamed.damages} == {"tile 1,2 is damaged", "tile 6,8 is damaged"}
    assert {d.window for d in streamed.damages} == {Window(64, 128, 64, 64), Window(384, 512, 13, 3)}


class Endless(Source):
    """An image larger than any disk."""

    size = (300_000, 300_000)

    def read(self, top: int, left: int, height: int, width: int) -> NDArray[np.uint8]:
        return np.zeros((height, width, 3), np.uint8)

    def valid(self, top: int, left: int, height: int, width: int) -> None:
        return None


def test_a_disk_that_is_too_small_is_said_at_the_start(network: Network, tmp_path: Path) -> None:
    with pytest.raises(FileError, match=r"needs .* GiB of disk space and .* GiB are free; choose a scratch folder"):
        segment_large(
            network, Endless(), ArraySink((1, 1)), scratch=tmp_path, watch=lambda progress: pytest.fail("too late")
        )
    assert not list(tmp_path.iterdir())


def test_too_little_memory_is_said_with_what_is_needed(network: Network, tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError,
        match=r"10 MiB of memory is not enough: this image, even in the smallest bands, needs \d+ MiB; give more",
    ):
        segment_large(network, Endless(), ArraySink((1, 1)), scratch=tmp_path, memory=10 * 1024**2)


def test_after_an_error_nothing_is_left(street: NDArray[np.uint8], network: Network, tmp_path: Path) -> None:
    def fail(progress: BandProgress) -> None:
        if progress.segment == 2:
            raise EngineError("stop here")

    with pytest.raises(EngineError, match="stop here"):
        segment_large(network, ArraySource(street), ArraySink(street.shape[:2]), scratch=tmp_path, watch=fail)
    assert not list(tmp_path.iterdir())


KILLED = """
import sys, numpy as np
from evitseg.tiling.network import Network
from evitseg.tiling.stream import segment_large
from evitseg.raster.window import ArraySink

image = np.load(sys.argv[1])
sink = ArraySink(image.shape[:2])
def watch(progress):
    print(progress.segment, progress.window, flush=True)
streamed = segment_large(
    Network(sys.argv[2], "float32"), image, sink, scratch=sys.argv[3], band=int(sys.argv[4]), watch=watch
)
np.save(sys.argv[5], sink.mask)
print("resumed", streamed.resumed)
"""


def test_killed_five_times_and_resumed_it_gives_the_same_file(
    street: NDArray[np.uint8], network: Network, tmp_path: Path
) -> None:
    band, rng = 128, random.Random(3)
    np.save(tmp_path / "image.npy", tall(street))
    (tmp_path / "scratch").mkdir()

    def command(scratch: str, out: str) -> list[str]:
        places = [
            tmp_path / "image.npy",
            BUNDLED,
            tmp_path / scratch,
            band,
            tmp_path / out,
        ]
        return [sys.executable, "-c", textwrap.dedent(KILLED), *map(str, places)]

    subprocess.run(command("other", "whole.npy"), check=True, stdout=subprocess.DEVNULL)
    for _ in range(5):
        with subprocess.Popen(command("scratch", "resumed.npy"), stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            for _ in range(rng.randint(5, 25)):
                assert process.stdout.readline()
            process.kill()
        assert not (tmp_path / "resumed.npy").exists()
        assert list((tmp_path / "scratch").iterdir())
    done = subprocess.run(command("scratch", "resumed.npy"), check=True, capture_output=True, text=True).stdout
    assert int(done.split()[-1]) >= 5
    assert (tmp_path / "resumed.npy").read_bytes() == (tmp_path / "whole.npy").read_bytes()
    assert not list((tmp_path / "scratch").iterdir())


def test_work_on_another_image_begins_anew(street: NDArray[np.uint8], network: Network, tmp_path: Path) -> None:
    def interrupt(progress: BandProgress) -> None:
        if progress.segment == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        segment_large(network, ArraySource(street), ArraySink(street.shape[:2]), scratch=tmp_path, watch=interrupt)
    assert len(list(tmp_path.iterdir())) == 1
    other = np.ascontiguousarray(street[:, ::-1])
    _, streamed = stream(other, network, tmp_path)
    assert streamed.resumed == 0
    sink = ArraySink(street.shape[:2])
    assert segment_large(network, ArraySource(street), sink, scratch=tmp_path).resumed == 2
    assert not list(tmp_path.iterdir())


def test_an_artefact_of_one_size_and_one_of_another_engine_are_refused(tmp_path: Path) -> None:
    config = CONFIGS["b0"]
    fixed = Manifest("f", config, numbered(19), Preprocess(fixed=(64, 96)), Training("generated", "CC0"))
    write_onnx(EfficientViT(config).eval(), fixed, tmp_path / "fixed.onnx")
    with pytest.raises(EngineError, match="exported for images of 64x96 only"):
        Network(tmp_path / "fixed.onnx")
    with pytest.raises(EngineError, match=r"reads \.safetensors, \.onnx, \.evit"):
        Network(tmp_path / "model.tflite")


def test_a_neighbourhood_that_holds_the_image_is_the_image(
    street: NDArray[np.uint8], network: Network, tmp_path: Path
) -> None:
    masks, image = {}, street[:352, :352]
    for context in (None, 3 * 192, 3 * 96):
        sink = ArraySink(image.shape[:2])
        streamed = segment_large(network, ArraySource(image), sink, scratch=tmp_path, context_window=context)
        assert (streamed.context is None) == (context is not None)
        masks[context] = sink.mask
    assert (masks[None] != masks[3 * 192]).mean() < 1e-3  # sums are added in another order
    assert (masks[None] != masks[3 * 96]).mean() > 1e-3
    with pytest.raises(ConfigError, match="give at least 96"):
        segment_large(network, ArraySource(street), ArraySink((1, 1)), scratch=tmp_path, context_window=20)


@pytest.mark.parametrize("size", [(288, 192), (288, 224), (320, 192), (96, 64), (301, 224), (32, 512)])
def test_windows_of_a_resized_image_are_the_whole_ones_pixels(size: tuple[int, int], street: NDArray[np.uint8]) -> None:
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (301, 207, 3), np.uint8)  # noise, where rounding shows
    whole = np.asarray(Image.fromarray(image).resize((size[1], 301), Image.Resampling.BILINEAR))
    whole = np.asarray(Image.fromarray(whole).resize(size[::-1], Image.Resampling.BILINEAR))
    resampled = Resampled(ArraySource(image), size)
    for _ in range(10):
        top, left = (int(rng.integers(0, side - 1)) for side in size)
        window = Window(top, left, int(rng.integers(1, size[0] - top + 1)), int(rng.integers(1, size[1] - left + 1)))
        rows, columns = window.inside(Window(0, 0, *size))
        np.testing.assert_array_equal(resampled.read(window)[0], whole[rows, columns])


class Blocks(ArraySource):
    """An image in blocks that counts how often each pixel is read."""

    def __init__(self, image: NDArray[np.uint8], tile: tuple[int, int]) -> None:
        super().__init__(image)
        self.tile, self.reads = tile, np.zeros(self.size, np.int64)

    def read(self, top: int, left: int, height: int, width: int) -> NDArray[np.uint8]:
        rows, columns = Window(top, left, height, width).inside(Window(0, 0, *self.size))
        self.reads[rows, columns] += 1
        return super().read(top, left, height, width)


@pytest.mark.parametrize(
    ("tile", "strip"),
    [
        pytest.param((32, 64), (64, 9216), id="several rows of blocks fit in a strip"),
        pytest.param((512, 512), (512, 1024), id="a row of blocks is higher than a strip"),
        pytest.param((512, 300), (512, 2400), id="blocks whose width is no multiple of 32"),
        pytest.param((512, 9216), (448, 9216), id="blocks as wide as the image"),
        pytest.param((1024, 512), (448, 9216), id="a row of blocks takes too much memory"),
    ],
)
def test_an_image_in_blocks_is_read_in_strips_or_their_parts(tile: tuple[int, int], strip: tuple[int, int]) -> None:
    image = np.random.default_rng(0).integers(0, 256, (1280, 9216, 3), np.uint8)
    source = Blocks(image, tile)
    resampled = Resampled(source, source.size)
    assert strip_shape(resampled, 512) == strip
    rows, seen = ImageRows(resampled, 0, 512, 2), np.zeros(source.size, np.int64)
    for top in range(0, 1280, 256):
        wanted = range(max(0, top - 40), min(1280, top + 300))
        addresses, first, windows = rows.upto(wanted)
        assert first <= wanted.start
        for y in wanted:
            assert ctypes.string_at(int(addresses[y - first]), 9216 * 3) == image[y].tobytes()
        for window, damages in windows:
            seen[window.inside(Window(0, 0, *source.size))] += 1
            assert not damages
    rows.close()
    assert (source.reads == 1).all()
    assert (seen == 1).all()


@pytest.mark.parametrize("size", [(301, 207), (192, 256), (37, 500)])
def test_windows_of_a_mask_are_the_whole_ones_pixels(size: tuple[int, int]) -> None:
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(5, 24, 32)).astype(np.float32)
    whole = argmax_upsampled(logits, size)
    for place in tiles_of(size, (50, 70)):
        down, across = Side(24, size[0], 0, place.top), Side(32, size[1], 0, place.left)
        (y0, y1), (x0, x1) = down.needed(place.height), across.needed(place.width)
        part = argmax_upsampled(
            np.ascontiguousarray(logits[:, y0:y1, x0:x1]),
            (place.height, place.width),
            (replace(down, first_logit=y0), replace(across, first_logit=x0)),
        )
        rows, columns = place.inside(Window(0, 0, *size))
        np.testing.assert_array_equal(part, whole[rows, columns])


@pytest.mark.parametrize("plan", [Plan((1003, 777), (992, 768), (256, 384)), Plan((1003, 777), (992, 768), (), 160)])
def test_the_plan_covers_working_image_and_mask_once(plan: Plan) -> None:
    for segment in (0, 1):
        for size, mask in ((plan.working, False), (plan.image, True)):
            seen = np.zeros(size, np.uint8)
            for window in plan.windows(segment):
                rows, columns = (plan.mask_window(window) if mask else window).inside(Window(0, 0, *size))
                seen[rows, columns] += 1
            assert (seen == 1).all()


def test_what_is_needed_at_one_time_lies_apart() -> None:
    rng = random.Random(0)
    for _ in range(50):
        ranges = []
        for _ in range(rng.randint(1, 9)):
            first = rng.randint(0, 5)
            ranges.append(LiveRange(rng.randint(1, 5) * 4096 - rng.randint(0, 99), first, first + rng.randint(0, 3)))
        places, length = allocate(ranges)
        for now in range(9):
            alive = sorted(
                (at, at + each.bytes) for at, each in zip(places, ranges, strict=True) if each.first <= now <= each.last
            )
            assert all(one[1] <= other[0] for one, other in pairwise(alive))
            assert all(end <= length for _, end in alive)
        assert all(at % 4096 == 0 for at in places)
        assert length <= sum(-(-each.bytes // 4096) * 4096 for each in ranges)


def test_bytes_that_are_written_in_pieces_are_in_the_file(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    expected, extents = np.zeros(3_000_000, np.uint8), [(4096, 1_000_001), (1_500_000, 77), (1_700_000, 1_300_000)]
    store = Scratch(tmp_path / "work")
    store.open(len(expected))
    for _ in range(2):
        with store.to_write(extents) as addresses:
            for (at, length), address in zip(extents, addresses, strict=True):
                expected[at : at + length] = content = rng.integers(0, 256, length, np.uint8)
                ctypes.memmove(address, content.ctypes.data, length)
        store.wait()
        np.testing.assert_array_equal(store.bytes, expected)
    store.close()
    np.testing.assert_array_equal(np.fromfile(tmp_path / "work/features", np.uint8), expected)


def test_more_memory_makes_higher_bands(network: Network) -> None:
    plans = [make_plan(network, (40_000, 40_000), memory=mib * 1024**2) for mib in (300, 400, 600, 2000)]
    for smaller, larger in pairwise(plans):
        assert max(smaller.bands) <= 2048
        assert all(a <= b for a, b in zip(smaller.bands, larger.bands, strict=True))
    assert sum(plans[0].bands) < sum(plans[-1].bands)


def test_memory_that_the_source_holds_is_not_for_bands(street: NDArray[np.uint8], network: Network) -> None:
    roomy, tight = (make_plan(network, (40_000, 40_000), memory=600 * 1024**2, held=held << 20) for held in (0, 250))
    assert all(a >= b for a, b in zip(roomy.bands, tight.bands, strict=True))
    assert roomy.bands[0] > tight.bands[0]
    source = ArraySource(street)
    assert source.held == street.nbytes
    source.held = 123 * 1024**2
    with pytest.raises(ConfigError, match="1 MiB of memory is not enough") as told:
        segment_large(network, source, ArraySink(source.size), scratch="unused", memory=1)
    with pytest.raises(ConfigError) as less:
        make_plan(network, source.size, memory=1)
    with_it, without = (int(str(error.value).split("needs ")[1].split()[0]) for error in (told, less))
    assert with_it - without == 123
    assert max(make_plan(network, source.size, memory=without << 20).bands) > 0  # as much as was said is enough


def test_features_stay_in_memory_where_they_fit_and_no_folder_is_named(
    street: NDArray[np.uint8], network: Network, tmp_path: Path
) -> None:
    image, places = np.tile(street, (4, 4, 1)), list[Path | None]()
    with pytest.raises(ConfigError) as told:
        make_plan(network, (image.shape[0], image.shape[1]), memory=1, held=image.nbytes)
    least = int(str(told.value).split("needs ")[1].split()[0]) << 20
    masks = []
    for memory, scratch in ((1 << 30, None), (1 << 30, tmp_path), (least, None)):
        segment_large(
            network,
            image,
            tmp_path / "mask.png",
            memory=memory,
            scratch=scratch,
            watch=Watcher(begin=lambda beginning: places.append(beginning.scratch)),
        )
        masks.append((tmp_path / "mask.png").read_bytes())
    assert places[0] is None
    assert all(place is not None and place.parent.samefile(tmp_path) for place in places[1:])
    assert masks[0] == masks[1] == masks[2]


def test_a_watcher_sees_the_work_grow_to_its_end(street: NDArray[np.uint8], network: Network, tmp_path: Path) -> None:
    seen, begun = list[BandProgress](), list[Beginning]()
    image = tall(street)
    segment_large(
        network, image, ArraySink(image.shape[:2]), band=256, memory=1 << 30, scratch=tmp_path,
        watch=Watcher(begun.append, seen.append),
    )  # fmt: skip
    assert [each.memory for each in begun] == [1 << 30]
    assert begun[0].done == 0.0
    assert all(a.done < b.done for a, b in pairwise(seen))
    assert seen[-1].done == 1.0
    assert len(seen) == sum(len(begun[0].plan.windows(i)) for i in range(seen[0].segments))


def test_a_band_that_does_not_fit_the_sums_is_refused(network: Network) -> None:
    with pytest.raises(ConfigError, match="give a multiple of 128"):
        make_plan(network, (400, 400), band=100)


def test_verification_says_that_bands_and_whole_are_identical(
    street: NDArray[np.uint8], network: Network, tmp_path: Path
) -> None:
    found = verify_bands(network, street, side=256, scratch=tmp_path)
    assert found.part == Window(70, 129, 256, 256)
    assert found.identical


class Full(Sink):
    """A place that has no room."""

    def write(self, top: int, left: int, mask: NDArray[np.integer]) -> None:
        raise FileError("mask.tif: cannot be written (no space left).")


def test_a_sink_that_fails_leaves_the_finished_mask_for_the_next_call(
    street: NDArray[np.uint8], network: Network, tmp_path: Path
) -> None:
    with pytest.raises(FileError, match=r"no space left\)\. What was computed is kept in .*; the same call resumes"):
        segment_large(network, ArraySource(street), Full(), scratch=tmp_path)
    sink, expected = ArraySink(street.shape[:2]), ArraySink(street.shape[:2])
    seen = list[BandProgress]()
    again = segment_large(network, ArraySource(street), sink, scratch=tmp_path, watch=seen.append)
    assert again.resumed > 0
    assert {each.segment for each in seen} == {seen[0].segments - 1}  # only the last segment, which gives the mask
    assert not list(tmp_path.iterdir())
    segment_large(network, ArraySource(street), expected, scratch=tmp_path)
    np.testing.assert_array_equal(sink.mask, expected.mask)


def test_two_processes_do_not_work_in_one_folder_and_a_dead_ones_lock_is_none(tmp_path: Path) -> None:
    code = "import sys; from evitseg.tiling.scratch import *; from pathlib import Path\n" + (
        "with Scratch(Path(sys.argv[1])).locked(): print('in', flush=True); input()"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "work")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "in\n"
        refused = pytest.raises(FileError, match=rf"process {other.pid} is working on this image")
        with refused, Scratch(tmp_path / "work").locked():
            pass
        other.kill()
    with Scratch(tmp_path / "work").locked():
        assert (tmp_path / "work/lock").read_text().strip()
