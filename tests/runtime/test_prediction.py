"""What a prediction offers beyond its mask, and what a segmenter accepts as an image."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

import evitseg
from evitseg.bundled import EXAMPLE_IMAGE
from evitseg.errors import ConfigError, ImageError
from evitseg.labels import named
from evitseg.raster.files import ImageSource
from evitseg.runtime.segmenter import Prediction, Segmenter
from tests.optional import needs


@pytest.fixture(scope="module")
def segment() -> Segmenter:
    return evitseg.load(size=128)


@pytest.fixture
def squares() -> Prediction:
    """A field with a house of 3×4 pixels, which has a window of 1×1, and a pole of 1×1."""
    mask = np.zeros((8, 10), np.uint8)
    mask[2:5, 1:5] = 1
    mask[3, 2] = 0
    mask[0, 9] = 2
    image = np.full((8, 10, 3), 100, np.uint8)
    return Prediction(mask, image, named("scene", ["field", "house", "pole"]))


def test_probabilities_are_the_softmax_of_the_logits(segment: Segmenter, photograph: NDArray[np.uint8]) -> None:
    logits = segment.logits(photograph).astype(np.float64)
    expected = np.exp(logits) / np.exp(logits).sum(0)
    probs = segment(photograph).probabilities()
    assert probs.dtype == np.float32
    assert probs.shape == logits.shape == (11, 16, 28)  # 128×224 at stride 8
    np.testing.assert_allclose(probs, expected, rtol=1e-5)


def test_probabilities_of_a_jpeg_that_is_decoded_smaller_belong_to_its_mask(segment: Segmenter) -> None:
    prediction = segment(EXAMPLE_IMAGE)
    assert isinstance(prediction.source, Path)  # decoded at a reduced size
    probs = prediction.probabilities()
    height, width = probs.shape[1:]
    rows = (np.arange(height) + 0.5) * prediction.mask.shape[0] / height
    columns = (np.arange(width) + 0.5) * prediction.mask.shape[1] / width
    at_cells = prediction.mask[rows.astype(int)][:, columns.astype(int)]
    assert (probs.argmax(0) == at_cells).mean() > 0.95


def test_a_batch_keeps_each_images_own_logits(segment: Segmenter, photograph: NDArray[np.uint8]) -> None:
    for prediction in segment.batch([photograph, np.ascontiguousarray(photograph[::-1])]):
        assert prediction.logits is not None
        assert prediction.logits.base is None  # no view that keeps the whole batch
        np.testing.assert_array_equal(prediction.mask, segment(prediction.image).mask)


def test_without_logits_probabilities_say_how_to_get_them(squares: Prediction) -> None:
    with pytest.raises(ConfigError, match=r"segment\(prediction.image\)"):
        squares.probabilities()


def test_polygons_are_the_regions_with_their_holes(squares: Prediction) -> None:
    needs("rasterio")
    found = {(str(f["properties"]["name"]), int(f["properties"]["pixels"])): f for f in squares.polygons()}
    assert sorted(found) == [("field", 1), ("field", 67), ("house", 11), ("pole", 1)]
    house = found["house", 11]
    assert house["type"] == "Feature"
    assert house["properties"]["class"] == 1
    outer, hole = house["geometry"]["coordinates"]
    assert sorted(map(tuple, outer[:-1])) == [(1, 2), (1, 5), (5, 2), (5, 5)]
    assert sorted(map(tuple, hole[:-1])) == [(2, 3), (2, 4), (3, 3), (3, 4)]
    assert outer[0] == outer[-1]


def test_polygons_can_be_filtered_by_class_and_area(squares: Prediction) -> None:
    needs("rasterio")
    assert [f["properties"]["pixels"] for f in squares.polygons(min_pixels=2, classes=["house", "pole"])] == [11]
    with pytest.raises(ConfigError, match="did you mean 'house'"):
        squares.polygons(classes=["huose"])
    with pytest.raises(ConfigError, match="min_pixels is 0"):
        squares.polygons(min_pixels=0)


def test_an_overlay_takes_opacity_and_colours(squares: Prediction) -> None:
    plain = np.asarray(squares.overlay(legend=False, opacity=0))
    np.testing.assert_array_equal(plain, squares.image)
    by_name = np.asarray(squares.overlay(legend=False, opacity=1, palette={"house": (1, 2, 3)}))
    assert by_name[2, 1].tolist() == [1, 2, 3]
    assert by_name[0, 0].tolist() == list(squares.labels.classes[0].color)
    in_order = np.asarray(squares.overlay(legend=False, opacity=1, palette=[(9, 9, 9), (8, 8, 8), (7, 7, 7)]))
    np.testing.assert_array_equal(in_order[..., 0], 9 - squares.mask)
    with_legend = squares.overlay(palette={"field": (250, 0, 250)})
    assert (np.asarray(with_legend)[8:] == (250, 0, 250)).all(-1).any()  # the legend has the new colour


@pytest.mark.parametrize(
    ("opacity", "palette", "words"),
    [
        (1.5, None, "opacity is 1.5"),
        (0.5, {"hose": (0, 0, 0)}, "did you mean 'house'"),
        (0.5, [(0, 0, 0)], "1 colours for the 3 classes"),
        (0.5, {"house": (0, 0, 300)}, "0 to 255"),
        (0.5, {"house": (0.1, 0.2, 0.3)}, "is no colour"),
        (0.5, {"house": "red"}, "'red' is no colour"),
    ],
)
def test_a_wrong_opacity_or_palette_is_one_sentence(
    opacity: float,
    palette: dict[str, tuple[int, int, int]] | list[tuple[int, int, int]] | None,
    words: str,
    squares: Prediction,
) -> None:
    with pytest.raises(ConfigError, match=words):
        squares.overlay(opacity=opacity, palette=palette)


def test_bytes_and_open_files_give_what_the_file_gives(segment: Segmenter) -> None:
    expected = segment(EXAMPLE_IMAGE)
    content = EXAMPLE_IMAGE.read_bytes()
    with EXAMPLE_IMAGE.open("rb") as file:
        for source in (content, io.BytesIO(content), file):
            prediction = segment(source)
            np.testing.assert_array_equal(prediction.mask, expected.mask)
            np.testing.assert_array_equal(prediction.image, expected.image)


def test_lists_tuples_and_iterators_give_what_each_image_gives(
    segment: Segmenter, photograph: NDArray[np.uint8]
) -> None:
    images: list[ImageSource] = [photograph, EXAMPLE_IMAGE, Image.fromarray(photograph[:100])]
    expected = [segment(image).mask for image in images]
    for predictions in (segment(images), segment(tuple(images)), list(segment(iter(images)))):
        assert isinstance(predictions, list)
        for prediction, mask in zip(predictions, expected, strict=True):
            np.testing.assert_array_equal(prediction.mask, mask)
    assert segment([]) == []


def test_an_iterator_is_read_only_as_far_as_predictions_are_asked_for(
    segment: Segmenter, photograph: NDArray[np.uint8]
) -> None:
    taken: list[int] = []

    def images() -> Iterator[NDArray[np.uint8]]:
        for number in range(1_000):
            taken.append(number)
            yield photograph

    predictions = segment(images())
    assert taken == []
    next(predictions)
    next(predictions)
    assert taken == [0, 1]


@pytest.mark.parametrize(
    ("source", "words"),
    [
        (np.zeros((8, 8, 3), np.float32), r"array of float32.*\(array \* 255\)"),
        (np.zeros((8, 8, 3), np.int64), "array of int64"),
        (np.zeros((3, 8, 8), np.uint8), r"array.transpose\(1, 2, 0\)"),
        (np.zeros((8, 8, 4), np.uint8), r"array\[\.\.\., :3\].*BGRA"),
        (np.zeros((2, 8, 8, 3), np.uint8), r"list\(array\)"),
        (b"", "the image"),
        (b"GIF but not really", "the image"),
        (io.StringIO("text"), "'rb'"),
        (7, "a int is not an image; give a path, bytes"),
    ],
)
def test_a_source_that_is_no_image_is_refused_with_the_way_to_convert_it(
    source: NDArray[np.uint8], words: str, segment: Segmenter
) -> None:
    with pytest.raises(ImageError, match=words):
        segment(source)


def test_a_tensor_is_refused_with_the_way_to_convert_it(segment: Segmenter) -> None:
    needs("torch")
    import torch

    with pytest.raises(ImageError, match="convert it to a numpy array"):
        segment(torch.zeros(3, 8, 8))  # type: ignore[call-overload]
