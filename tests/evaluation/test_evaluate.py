from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from evitseg.data.lists import Pair
from evitseg.errors import ConfigError, DatasetError
from evitseg.evaluation.evaluate import PredictedMasks, evaluate
from evitseg.evaluation.html import write_html
from evitseg.evaluation.metrics import boundary_band, confusion_matrix, count, iou, mean_iou
from evitseg.labels import load_labels, numbered
from evitseg.raster.masks import read_truth, save_mask
from evitseg.visualize import error_map
from tests.optional import needs


def test_a_confusion_matrix_counted_by_hand() -> None:
    truth = np.array([[0, 0, 1], [1, 255, 2]])
    prediction = np.array([[0, 1, 1], [1, 0, 0]])
    confusion = confusion_matrix(truth, prediction, 3, ignore_index=255)
    np.testing.assert_array_equal(confusion, [[1, 1, 0], [0, 2, 0], [1, 0, 0]])
    np.testing.assert_allclose(iou(confusion), [1 / 3, 2 / 3, 0])
    assert mean_iou(confusion) == pytest.approx(1 / 3)


def test_a_class_that_occurs_nowhere_does_not_count() -> None:
    confusion = np.array([[3, 1, 0], [2, 4, 0], [0, 0, 0]])
    np.testing.assert_allclose(iou(confusion), [3 / 6, 4 / 7, np.nan])
    assert mean_iou(confusion) == pytest.approx((3 / 6 + 4 / 7) / 2)
    assert np.isnan(mean_iou(np.zeros((2, 2), np.int64)))


def test_masks_that_cannot_be_compared_are_an_error() -> None:
    with pytest.raises(ConfigError, match="cannot be compared"):
        confusion_matrix(np.zeros((2, 2), int), np.zeros((2, 3), int), 2, 255)
    with pytest.raises(ConfigError, match="prediction has class index 7"):
        confusion_matrix(np.zeros((1, 2), int), np.array([[0, 7]]), 2, 255)


def test_the_metric_agrees_with_torchmetrics_on_real_masks(shared: Callable[[str], Path]) -> None:
    needs("torchmetrics", "torch")
    import torch
    from torchmetrics import JaccardIndex

    labels = load_labels("camvid")
    paths = sorted((shared("data/camvid") / "valannot").iterdir())[:12]
    masks = [read_truth(path, labels) for path in paths]
    jaccard = JaccardIndex("multiclass", num_classes=11, average="none", ignore_index=255)
    confusion = np.zeros((11, 11), np.int64)
    # The next frame's mask, its void as sky, is a prediction with plausible errors.
    for truth, other in itertools.pairwise(masks):
        prediction = np.where(other == 255, 0, other)
        confusion += confusion_matrix(truth, prediction, 11, 255)
        jaccard.update(torch.from_numpy(prediction.astype(np.int64)), torch.from_numpy(truth.astype(np.int64)))
    expected = jaccard.compute().numpy()
    occurring = ~np.isnan(iou(confusion))
    np.testing.assert_allclose(iou(confusion)[occurring], expected[occurring], rtol=1e-6)


def slow_band(mask: NDArray[np.integer], distance: int) -> NDArray[np.bool_]:
    """The band's definition, pixel by pixel."""
    height, width = mask.shape
    band = np.zeros(mask.shape, bool)
    for y in range(height):
        for x in range(width):
            if min(y, x, height - 1 - y, width - 1 - x) < distance:
                band[y, x] = True
                continue
            around = mask[y - distance : y + distance + 1, x - distance : x + distance + 1]
            band[y, x] = (around != mask[y, x]).any()
    return band


@pytest.mark.parametrize("distance", [1, 2, 3, 7])
def test_the_boundary_band_is_what_its_definition_says(distance: int) -> None:
    rng = np.random.default_rng(0)
    mask = rng.integers(0, 3, (6, 8)).repeat(5, 0).repeat(5, 1).astype(np.uint8)
    np.testing.assert_array_equal(boundary_band(mask, distance), slow_band(mask, distance))


def test_boundary_iou_counted_by_hand() -> None:
    # 1×8 pixels, distance 1: the band is everything, for the image is one pixel high.
    truth = np.array([[0, 0, 0, 1, 1, 1, 1, 255]], np.uint8)
    prediction = np.array([[0, 0, 1, 1, 1, 1, 0, 0]], np.uint8)
    counts = count(truth, prediction, numbered(2))
    np.testing.assert_array_equal(counts.boundary_intersection, [2, 3])
    np.testing.assert_array_equal(counts.boundary_union, [4, 5])


def test_a_perfect_prediction_has_a_perfect_boundary_whatever_it_says_of_void() -> None:
    rng = np.random.default_rng(0)
    truth = rng.integers(0, 3, (6, 8)).repeat(9, 0).repeat(9, 1).astype(np.uint8)
    truth[10:40, 20:50] = 255
    prediction = np.where(truth == 255, 1, truth)
    counts = count(truth, prediction, numbered(3))
    np.testing.assert_array_equal(counts.boundary_intersection, counts.boundary_union)
    assert counts.boundary_union.min() > 0


def test_boundary_pixels_are_part_of_the_classes_pixels() -> None:
    rng = np.random.default_rng(1)
    truth, prediction = rng.integers(0, 2, (2, 40, 40)).astype(np.uint8)
    counts = count(truth, prediction, numbered(2))
    assert (counts.boundary_intersection <= np.diag(counts.confusion)).all()


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


def pairs_of(folder: Path) -> list[Pair]:
    return [Pair(path, folder / "masks" / path.name) for path in sorted((folder / "images").iterdir())]


def by_brightness(image: NDArray[np.uint8]) -> NDArray[np.integer]:
    mask: NDArray[np.integer] = image[..., 0] // 100
    return mask


def almost(image: NDArray[np.uint8]) -> NDArray[np.integer]:
    mask: NDArray[np.integer] = by_brightness(image).copy()
    mask[:, :8] = 0
    return mask


def test_a_perfect_function_scores_one(folder: Path) -> None:
    report = evaluate(by_brightness, pairs_of(folder), numbered(3))
    assert report.miou == report.pixel_accuracy == report.frequency_weighted_iou == report.mean_boundary_iou == 1
    assert len(report.images) == 6


def test_several_processes_count_what_one_does(folder: Path) -> None:
    alone = evaluate(almost, pairs_of(folder), numbered(3))
    done: list[int] = []
    together = evaluate(almost, pairs_of(folder), numbered(3), workers=2, progress=done.append)
    assert done == [1] * 6
    assert 0.5 < alone.miou < 1
    np.testing.assert_array_equal(alone.counts.confusion, together.counts.confusion)
    assert together.images == alone.images
    confusion = alone.counts.confusion
    assert alone.pixel_accuracy == np.trace(confusion) / confusion.sum()
    np.testing.assert_allclose(alone.accuracy, np.diag(confusion) / confusion.sum(1))
    assert alone.frequency_weighted_iou == pytest.approx((alone.iou * confusion.sum(1)).sum() / confusion.sum())


def test_a_function_that_other_processes_cannot_get_is_an_error(folder: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be sent to other processes"):
        evaluate(lambda image: by_brightness(image), pairs_of(folder), numbered(3), workers=2)


def test_pairs_that_cannot_be_read_are_reported_and_not_counted(folder: Path) -> None:
    (folder / "images/2.png").write_bytes(b"")
    Image.new("L", (3, 3)).save(folder / "masks/4.png")
    report = evaluate(by_brightness, pairs_of(folder), numbered(3))
    assert report.miou == 1
    assert len(report.images) == 4
    assert len(report.skipped) == 2
    with pytest.raises(DatasetError, match="nothing to measure"):
        evaluate(by_brightness, pairs_of(folder)[2:3], numbered(3))


def test_masks_predicted_before_are_found_by_name(folder: Path) -> None:
    labels = numbered(3)
    for pair in pairs_of(folder):
        with Image.open(pair.image) as image:
            save_mask(almost(np.asarray(image)), folder / "out" / f"{pair.image.stem}_mask.png", labels)
    again = evaluate(PredictedMasks(folder / "out", labels), pairs_of(folder), labels)
    expected = evaluate(almost, pairs_of(folder), labels)
    np.testing.assert_array_equal(again.counts.confusion, expected.counts.confusion)
    save_mask(np.full((32, 40), 9, np.uint8), folder / "out/1_mask.png", labels)
    report = evaluate(PredictedMasks(folder / "out", labels), pairs_of(folder), labels)
    assert "1_mask.png: palette index 9 of colour (0, 0, 0) is neither" in report.skipped[0]
    (folder / "out/1_mask.png").unlink()
    (folder / "out/elsewhere").mkdir()
    (folder / "out/3_mask.png").rename(folder / "out/elsewhere/3_mask.png")
    report = evaluate(PredictedMasks(folder / "out", labels), pairs_of(folder), labels)
    assert len(report.skipped) == 2
    assert all("no mask of its name" in sentence for sentence in report.skipped)
    with pytest.raises(DatasetError, match="no masks"):
        PredictedMasks(folder / "nowhere", labels)


def test_the_page_holds_everything_and_escapes_names(folder: Path) -> None:
    report = evaluate(almost, pairs_of(folder), numbered(3), settings={"model": "<script>alert(1)</script>"})

    write_html(report, folder / "report.html", almost)
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert "<script>" not in page
    assert "http" not in page
    assert page.count("data:image/jpeg;base64,") == 12
    assert f"{100 * report.miou:.1f}" in page


def test_errors_are_drawn_where_they_are() -> None:
    truth = np.array([[0, 1], [255, 1]], np.uint8)
    drawn = np.asarray(error_map(np.zeros((2, 2, 3), np.uint8), truth, np.zeros((2, 2), np.uint8), numbered(2)))
    assert (drawn[0, 0] == 0).all()
    assert drawn[0, 1, 0] > 100 > drawn[0, 1, 1]
    assert (drawn[1, 0] > 100).all()


def optimised(path: Path, to: Path) -> None:
    """Write a PNG mask as an optimiser does: the same colours, the palette sorted and cut."""
    with Image.open(path) as image:
        shown = np.asarray(image.convert("RGB"))
    colors, indices = np.unique(shown.reshape(-1, 3), axis=0, return_inverse=True)
    result = Image.fromarray(indices.reshape(shown.shape[:2]).astype(np.uint8))
    result.putpalette(colors.tobytes())
    result.save(to, bits=4)


def test_predicted_masks_are_measured_alike_after_an_optimiser(folder: Path) -> None:
    labels = load_labels("camvid")
    own, rewritten = folder / "own", folder / "rewritten"
    own.mkdir()
    rewritten.mkdir()
    pairs = pairs_of(folder)
    rng = np.random.default_rng(0)
    for pair in pairs:
        with Image.open(pair.mask) as image:
            mask = rng.choice([0, 1, 2, 8, 10], image.size[::-1]).astype(np.uint8)
        save_mask(mask, own / f"{pair.image.stem}_mask.png", labels)
        optimised(own / f"{pair.image.stem}_mask.png", rewritten / f"{pair.image.stem}_mask.png")
    found = [evaluate(PredictedMasks(place, labels), pairs, labels).counts.confusion for place in (own, rewritten)]
    assert found[0].any()
    np.testing.assert_array_equal(found[0], found[1])


def test_evaluate_takes_a_segmenter_and_a_folder(tmp_path: Path, photograph: NDArray[np.uint8]) -> None:
    """As DESIGN.md promises, with the pixels and classes that `evitseg eval` takes."""
    import evitseg

    for split, shift in (("train", 0), ("val", 40)):
        for place in ("images", "masks"):
            (tmp_path / split / place).mkdir(parents=True)
        Image.fromarray(np.roll(photograph, shift, 1)).save(tmp_path / split / "images/a.jpg", quality=95)
        Image.fromarray(np.full(photograph.shape[:2], 3, np.uint8)).save(tmp_path / split / "masks/a.png")
    segment = evitseg.load()
    report = evitseg.evaluate(segment, tmp_path, split="val")
    expected = np.bincount(segment(tmp_path / "val/images/a.jpg").mask.ravel(), minlength=11)
    np.testing.assert_array_equal(report.counts.confusion[3], expected)
    assert report.labels == segment.labels
    by_pairs = evitseg.evaluate(segment, evitseg.find_pairs(tmp_path, "val"))
    np.testing.assert_array_equal(by_pairs.counts.confusion, report.counts.confusion)
    assert evitseg.evaluate(segment, tmp_path).counts.confusion.sum() == photograph[..., 0].size  # val alone
    # The data's own classes, in another order, come in the model's.
    (tmp_path / "classes.txt").write_text("\n".join(reversed(segment.labels.names)))
    own = evitseg.evaluate(segment, tmp_path, split="val")
    assert own.labels.names == segment.labels.names
    np.testing.assert_array_equal(own.counts.confusion[10 - 3], expected)
    with pytest.raises(ConfigError, match="split 'val' cannot be chosen"):
        evitseg.evaluate(segment, evitseg.find_pairs(tmp_path), split="val")
