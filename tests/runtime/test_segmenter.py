from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

import evitseg
from evitseg.bundled import EXAMPLE_IMAGE
from evitseg.errors import ConfigError, EngineError, ImageError, WeightsError
from evitseg.preprocess import Preprocess
from evitseg.raster.files import read_image, read_reduced
from evitseg.runtime.segmenter import Segmenter
from evitseg.runtime.upsample import argmax_upsampled
from tests.optional import needs


@pytest.fixture(scope="module")
def segment() -> Segmenter:
    return evitseg.load()


def test_the_bundled_model_knows_a_street(segment: Segmenter) -> None:
    prediction = segment(EXAMPLE_IMAGE)
    assert prediction.mask.shape == (1080, 1920)
    fractions = prediction.fractions()
    assert sum(fractions.values()) == pytest.approx(1)
    # By eye: road below, sky above, houses and trees between.
    assert 0.3 < fractions["road"] < 0.5
    assert 0.2 < fractions["sky"] < 0.3
    assert 0.1 < fractions["building"] < 0.25
    names = prediction.labels.names
    assert names[prediction.mask[1000, 900]] == "road"
    assert names[prediction.mask[50, 700]] == "sky"
    assert names[prediction.mask[400, 1000]] == "building"


def test_a_path_an_image_and_an_array_give_the_same(
    segment: Segmenter, photograph: NDArray[np.uint8], tmp_path: Path
) -> None:
    path = tmp_path / "a.png"
    Image.fromarray(photograph).save(path)
    expected = segment(photograph).mask
    for source in (path, str(path), Image.fromarray(photograph)):
        np.testing.assert_array_equal(segment(source).mask, expected)


@pytest.mark.parametrize("size", [(1, 1), (1, 700), (37, 3), (31, 33), (270, 480)])
def test_any_image_size_gives_a_mask_of_that_size(size: tuple[int, int], segment: Segmenter) -> None:
    image = np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8)
    for working_size in (None, "native", 64):
        mask = Segmenter(segment.engine, working_size)(image).mask
        assert mask.shape == size
        assert mask.dtype == np.uint8


def test_a_batch_gives_what_single_images_give(segment: Segmenter, photograph: NDArray[np.uint8]) -> None:
    images = [photograph, photograph[:, ::-1], photograph[:200], photograph[:, :, ::-1], photograph[::-1]]
    together = list(segment.batch(images, size=2))
    assert len(together) == len(images)
    for image, prediction in zip(images, together, strict=True):
        single = segment(np.ascontiguousarray(image)).mask
        # bfloat16 kernels may sum in another order in a batch.
        assert (prediction.mask == single).mean() > 0.999


def test_a_batch_gives_what_was_done_before_a_bad_image(segment: Segmenter, photograph: NDArray[np.uint8]) -> None:
    predictions = segment.batch([photograph, photograph, "absent.jpg", photograph])
    assert next(predictions).mask.shape == next(predictions).mask.shape
    with pytest.raises(ImageError, match="no such file"):
        next(predictions)
    with pytest.raises(ConfigError, match="a batch of 0"):
        next(segment.batch([photograph], size=0))


def test_one_look_interpolates_probabilities_and_more_differ(segment: Segmenter, photograph: NDArray[np.uint8]) -> None:
    prediction = segment(photograph)
    alone = segment.mask_tta(photograph, scales=(1.0,), flip=False)
    size = photograph.shape[:2]
    np.testing.assert_array_equal(alone, argmax_upsampled(prediction.probabilities(), size))

    # Between grid points of one class, no interpolation gives another: neither of logits nor of probabilities.
    assert prediction.logits is not None
    classes = prediction.logits.argmax(0)
    places = [
        ((np.arange(pixels) + 0.5) * points / pixels - 0.5).clip(0, points - 1)
        for points, pixels in zip(classes.shape, size, strict=True)
    ]
    rows, columns = ([np.floor(place).astype(int), np.ceil(place).astype(int)] for place in places)
    around = np.stack([classes[np.ix_(row, column)] for row in rows for column in columns])
    inside = (around == around[0]).all(0)
    assert inside.mean() > 0.5
    np.testing.assert_array_equal(alone[inside], prediction.mask[inside])

    several = segment.mask_tta(photograph)
    assert 0.9 < (several == prediction.mask).mean() < 1
    with pytest.raises(ConfigError, match="at least one scale"):
        segment.mask_tta(photograph, scales=())


def test_one_segmenter_serves_several_threads(segment: Segmenter, photograph: NDArray[np.uint8]) -> None:
    expected = segment(photograph).mask
    with ThreadPoolExecutor(4) as pool:
        for prediction in pool.map(segment, [photograph] * 12):
            np.testing.assert_array_equal(prediction.mask, expected)


def test_saving_and_drawing(segment: Segmenter, photograph: NDArray[np.uint8], tmp_path: Path) -> None:
    prediction = segment(photograph)
    prediction.save(tmp_path / "mask.png")
    with Image.open(tmp_path / "mask.png") as image:
        np.testing.assert_array_equal(np.asarray(image), prediction.mask)
    assert prediction.overlay().width == 480


@pytest.mark.usefixtures("small_examples")
def test_a_checkpoint_runs_as_its_exported_model_does(
    b0_checkpoint: Path, photograph: NDArray[np.uint8], tmp_path: Path
) -> None:
    needs("torch", "onnx")
    model_file, _ = evitseg.export(b0_checkpoint, "onnx", tmp_path / "b0.onnx", preprocess=Preprocess(256))
    checkpoint = evitseg.load(b0_checkpoint, engine="torch", size=256)
    assert checkpoint.info.engine == "PyTorch"
    expected = checkpoint(photograph).mask
    own, exported = (
        evitseg.load(file, precision="float32", size=256)(photograph).mask for file in (b0_checkpoint, model_file)
    )
    np.testing.assert_array_equal(own, exported)
    assert (own == expected).mean() > 0.999


def test_models_that_are_not_there_are_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="did you mean 'b0-camvid'"):
        evitseg.load("b0-camvd")
    with pytest.raises(WeightsError, match=r"no such file"):
        evitseg.load(tmp_path / "absent.onnx")
    (tmp_path / "notes.txt").write_text("hello")
    with pytest.raises(WeightsError, match="not a model; models end in"):
        evitseg.load(tmp_path / "notes.txt")
    with pytest.raises(EngineError, match="torch runs checkpoints"):
        evitseg.load("absent.onnx", engine="torch")
    with pytest.raises(EngineError, match="export it first"):
        evitseg.load("b0-cityscapes", engine="onnxruntime")
    with pytest.raises(ConfigError, match="size 'large' is unknown"):
        evitseg.load(size="large")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="size 3 is out of range"):
        evitseg.load(size=3)
    with pytest.raises(ImageError, match="no such file"):
        evitseg.load()("absent.jpg")


def test_a_large_jpeg_is_decoded_smaller_and_its_mask_is_of_its_own_size(tmp_path: Path) -> None:
    large = tmp_path / "large.jpg"
    turned = tmp_path / "turned.jpg"
    with Image.open(EXAMPLE_IMAGE) as image:
        grown = image.convert("RGB").resize((2000, 1500), Image.Resampling.BICUBIC)
    grown.save(large, quality=95)
    exif = Image.Exif()
    exif[0x0112] = 6
    grown.transpose(Image.Transpose.ROTATE_90).save(turned, quality=95, exif=exif)
    segment = evitseg.load(precision="float32", size=512)
    expected = segment(read_image(large)).mask  # from an array, all pixels decoded
    for path in (large, turned):
        prediction = segment(path)
        assert prediction.mask.shape == (1500, 2000)
        assert prediction.source == path  # the full pixels were not needed
        assert (prediction.mask == expected).mean() > 0.99
        assert prediction.image.shape == (1500, 2000, 3)
    assert not isinstance(evitseg.load(size=720)(EXAMPLE_IMAGE).source, Path)


def test_a_jpeg_is_never_decoded_smaller_than_the_network_wants(tmp_path: Path) -> None:
    path = tmp_path / "p.jpg"
    Image.new("RGB", (1300, 999)).save(path)
    assert read_reduced(path, lambda size: (500, 650)).pixels.shape == (999, 1300, 3)
    assert read_reduced(path, lambda size: (499, 650)).pixels.shape == (500, 650, 3)
    assert read_reduced(path, lambda size: (126, 163)).pixels.shape == (250, 325, 3)
    assert read_reduced(path, lambda size: (8, 8)).pixels.shape == (125, 163, 3)
    assert read_reduced(path, lambda size: (8, 8)).size == (999, 1300)
