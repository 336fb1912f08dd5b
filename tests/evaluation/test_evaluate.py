from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from evitseg.data.lists import Pair
from evitseg.errors import ConfigError, DatasetError
from evitseg.evaluation.evaluate import PredictedMasks, evaluate
from evitseg.labels import load_labels, numbered
from evitseg.raster.png import save_mask


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


def test_a_mask_that_two_images_could_have_is_refused(tmp_path: Path) -> None:
    labels = numbered(3)
    pairs = []
    for place in ("a", "b"):
        for kind in ("images", "masks"):
            (tmp_path / kind / place).mkdir(parents=True)
            Image.new("L", (8, 8), 1).save(tmp_path / kind / place / "1.png")
        pairs.append(Pair(tmp_path / "images" / place / "1.png", tmp_path / "masks" / place / "1.png"))
    save_mask(np.ones((8, 8), np.uint8), tmp_path / "out/1.png", labels)
    with pytest.raises(DatasetError, match=r"out/1\.png: could be the mask of .*a/1\.png and of .*b/1\.png"):
        evaluate(PredictedMasks(tmp_path / "out", labels), pairs, labels)
    assert evaluate(PredictedMasks(tmp_path / "masks", labels), pairs, labels).miou == 1
