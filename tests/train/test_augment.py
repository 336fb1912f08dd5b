from __future__ import annotations

import numpy as np
import pytest

from tests.optional import needs

needs("torch", "accelerate")

from evitseg.errors import ConfigError
from evitseg.train import AugmentConfig
from evitseg.train.augment import classmix, paste_rare, rare_classes, vary_appearance


def test_another_appearance_shows_the_same_view() -> None:
    rng = np.random.default_rng(0)
    image = rng.integers(60, 200, (32, 48, 3)).astype(np.uint8)
    same = AugmentConfig(color_jitter=0.0)
    assert np.array_equal(vary_appearance(image, same, np.random.default_rng(1)), image)
    one, two = (vary_appearance(image, AugmentConfig(color_jitter=0.3), np.random.default_rng(5)) for _ in "ab")
    assert np.array_equal(one, two)
    assert not np.array_equal(one, image)
    for change in (AugmentConfig(color_jitter=0.0, blur_prob=1.0), AugmentConfig(color_jitter=0.0, jpeg_prob=1.0)):
        changed = vary_appearance(image, change, np.random.default_rng(1))
        assert changed.shape == image.shape
        assert changed.dtype == np.uint8
        assert 0 < np.abs(changed.astype(int) - image).mean() < 60


def test_color_jitter_is_brightness_contrast_and_saturation() -> None:
    # A grey image has no saturation to change, and its mean no contrast: only brightness is left.
    grey = np.full((16, 16, 3), 100, np.uint8)
    brightness = 1 + 0.3 * np.random.default_rng(7).uniform(-1, 1, 3)[0]
    seen = vary_appearance(grey, AugmentConfig(color_jitter=0.3), np.random.default_rng(7))
    assert np.abs(seen.astype(float) - 100 * brightness).max() <= 1


def test_classmix_pastes_whole_classes() -> None:
    rng = np.random.default_rng(0)
    truth, other_truth = np.zeros((8, 8), np.uint8), np.repeat(np.array([1, 2, 3, 255], np.uint8), 16).reshape(8, 8)
    image, other = np.zeros((8, 8, 3), np.uint8), np.full((8, 8, 3), 9, np.uint8)
    mixed, mixed_truth = classmix(image, truth, other, other_truth, 255, rng)
    pasted = mixed_truth != 0
    assert set(np.unique(mixed_truth[pasted])) < {1, 2, 3}
    assert len(np.unique(mixed_truth[pasted])) == 2
    assert np.array_equal(mixed_truth[pasted], other_truth[pasted])
    assert np.array_equal((mixed == 9).all(-1), pasted)


def test_rare_classes_are_pasted_each_on_its_own() -> None:
    augment = AugmentConfig(paste_prob=1.0, rare_below=0.03)
    rare = rare_classes(np.array([0.9, 0.03, 0.029, 0.0, 0.01]), augment)
    assert rare == [2, 4]  # the fourth does not occur
    truth, other_truth = np.zeros((6, 5), np.uint8), np.tile(np.array([0, 1, 2, 4, 255], np.uint8), (6, 1))
    image, other = np.zeros((6, 5, 3), np.uint8), np.full((6, 5, 3), 9, np.uint8)
    seen = set()
    for seed in range(30):
        mixed, mixed_truth = paste_rare(image, truth, other, other_truth, rare, np.random.default_rng(seed))
        pasted = mixed_truth != 0
        assert np.array_equal(mixed_truth[pasted], other_truth[pasted])
        assert np.array_equal((mixed == 9).all(-1), pasted)
        seen.add(frozenset(np.unique(mixed_truth[pasted]).tolist()))
    assert seen == {frozenset(), frozenset({2}), frozenset({4}), frozenset({2, 4})}


def test_pasting_is_refused_if_no_class_is_rare() -> None:
    frequencies = np.array([0.7, 0.3, 0.0])
    assert rare_classes(frequencies, AugmentConfig()) == []
    with pytest.raises(ConfigError, match=r"at least augment\.rare_below=0\.03 of the pixels; the rarest has 0\.3, so"):
        rare_classes(frequencies, AugmentConfig(paste_prob=0.5))
