from __future__ import annotations

import numpy as np

from tests.optional import needs

needs("torch", "accelerate")

from evitseg.train import AugmentConfig
from evitseg.train.augment import classmix, vary_appearance


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
