from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from evitseg.errors import DatasetError
from evitseg.evaluation.comparison import Comparison, compare_models
from evitseg.evaluation.comparison_html import points, write_comparison
from evitseg.evaluation.evaluate import evaluate
from evitseg.evaluation.metrics import confusion_matrix, mean_iou
from evitseg.image import ImageArray, Mask
from evitseg.labels import numbered
from tests.evaluation.test_evaluate import almost, by_brightness, pairs_of

LABELS = numbered(4)
"""The fourth class does not occur."""


def worse(image: ImageArray) -> Mask:
    mask: Mask = almost(image).copy()
    mask[:8] = 2
    return mask


def compared(folder: Path, resamples: int = 300) -> Comparison:
    return compare_models([almost, by_brightness, worse, almost], pairs_of(folder), LABELS, resamples=resamples)


def test_scores_are_those_of_evaluate(folder: Path) -> None:
    found = compared(folder)
    for model, scores in zip((almost, by_brightness, worse), found.scores[:3], strict=True):
        alone = evaluate(model, pairs_of(folder), LABELS)
        assert scores.miou.value == alone.miou
        np.testing.assert_array_equal([each.value for each in scores.iou], [*alone.iou[:3], math.nan])
        np.testing.assert_array_equal(scores.report.counts.confusion, alone.counts.confusion)
        assert scores.miou.low <= scores.miou.value <= scores.miou.high
        assert scores.miou_difference.value == scores.miou.value - found.scores[0].miou.value
    assert points(found.scores[1].iou_difference[3]) == "–"


def test_the_intervals_are_those_of_drawing_whole_images(folder: Path) -> None:
    pairs, drawn = pairs_of(folder), []
    confusions: dict[str, list[np.ndarray]] = {"almost": [], "worse": []}
    for pair in pairs:
        image, truth = (np.asarray(Image.open(path)) for path in (pair.image, pair.mask))
        for model in (almost, worse):
            confusions[model.__name__].append(confusion_matrix(truth, model(image), 4, 255))
    rng = np.random.default_rng(5)
    for _ in range(4000):
        chosen = rng.integers(0, len(pairs), len(pairs))
        of = {name: mean_iou(sum(own[i] for i in chosen)) for name, own in confusions.items()}
        drawn.append(of["worse"] - of["almost"])
    found = compared(folder, 4000).scores[2].miou_difference
    low, high = np.quantile(drawn, [0.025, 0.975])
    assert (found.low, found.high) == pytest.approx((low, high), abs=0.1 * (high - low))  # other random numbers


def test_certain_differences_exclude_zero_and_equal_models_have_none(folder: Path) -> None:
    _, perfect, bad, equal = compared(folder).scores
    assert perfect.miou_difference.excludes_zero
    assert perfect.miou_difference.low > 0
    assert bad.miou_difference.high < 0
    same = equal.miou_difference
    assert (same.value, same.low, same.high, same.excludes_zero) == (0, 0, 0, False)


def test_one_image_tells_nothing_about_the_choice_of_images(folder: Path) -> None:
    alone = compare_models([by_brightness, almost], pairs_of(folder)[:1], LABELS, resamples=10).scores[1]
    assert alone.miou_difference.value != 0
    assert not alone.miou_difference.excludes_zero
    assert math.isnan(alone.miou_difference.low)
    assert "[" not in points(alone.miou_difference)

    def with_a_class_in_one_image(image: ImageArray) -> Mask:
        mask: Mask = by_brightness(image).copy()
        mask[:1] = 3 if first.shape == image.shape and (image == first).all() else mask[:1]
        return mask

    first = np.asarray(Image.open(pairs_of(folder)[0].image))
    found = compare_models([with_a_class_in_one_image, almost], pairs_of(folder), LABELS, resamples=10)
    assert [math.isnan(each.low) for each in found.scores[0].iou] == [False, False, False, True]
    assert found.scores[0].iou[3].value == 0


def test_the_images_that_differ_most_come_first(folder: Path) -> None:
    with Image.open(folder / "images/3.png") as image:
        Image.new("RGB", image.size).save(folder / "images/3.png")  # one class: the models agree
    found = compare_models([by_brightness, almost], pairs_of(folder), LABELS, resamples=10)
    differs = [
        float((by_brightness(image) != almost(image)).mean())
        for image in (np.asarray(Image.open(pair.image)) for pair in pairs_of(folder))
    ]
    assert [fraction for _, fraction in found.different] == pytest.approx(differs)
    most = found.most_different(8)
    assert [fraction for _, fraction in most] == sorted((each for each in differs if each), reverse=True)
    assert len(most) == 5


def test_a_pair_that_one_model_cannot_measure_counts_for_none(folder: Path) -> None:
    (folder / "images/2.png").write_bytes(b"")
    found = compared(folder, 10)
    assert [len(scores.report.images) for scores in found.scores] == [5, 5, 5, 5]
    assert len(found.skipped) == 1
    assert "2.png" in found.skipped[0]
    with pytest.raises(DatasetError, match=r"nothing to measure.*2\.png"):
        compare_models([almost, worse], pairs_of(folder)[2:3], LABELS)


def test_the_page_holds_everything_and_escapes_names(folder: Path) -> None:
    models = [almost, by_brightness]
    found = compare_models(models, pairs_of(folder), LABELS, resamples=50)
    facts = [{"network ms": "1.0", "engine": "<b>ours</b>"}, {"network ms": "2.0", "engine": "theirs"}]
    write_comparison(found, ["first", "<script>"], facts, folder / "c.html", models, "a title")
    page = (folder / "c.html").read_text(encoding="utf-8")
    assert "<script>" not in page
    assert "<b>ours" not in page
    assert "http" not in page
    assert page.count("data:image/jpeg;base64,") == 12  # six images, each with one map of differences
    assert page.count("<circle") == 3  # one per class that occurs
    assert points(found.scores[1].miou_difference).split()[0] in page
    assert "class=up" in page
