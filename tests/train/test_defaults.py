from __future__ import annotations

import math

import pytest

from tests.optional import needs

needs("torch", "accelerate")

from evitseg.architecture import STRIDE
from evitseg.train import TrainConfig
from evitseg.train.config import AUTO_KEYS, KEYS
from evitseg.train.defaults import resolve_defaults
from evitseg.train.settings import flattened, make_config

CAMVID = (360, 480)


def test_sixty_images_of_camvid_by_hand() -> None:
    # 3/4 of 360 is 270, of 480 is 360: 256 and 352 are the multiples of 32 below. An epoch has ceil(60 / 8) = 8 steps.
    config = resolve_defaults(TrainConfig(epochs=10), [CAMVID] * 60)
    assert (config.batch_size, config.data.crop, config.data.size) == (8, (256, 352), 0)
    assert config.augment.scale[0] == pytest.approx(352 / 480)
    assert config.augment.scale[1] == 2.0
    assert config.optim.warmup_fraction == 0.3  # 50 of 80 steps are more than 30 %
    assert config.average.ema_decay == 1 - 10 / 80


@pytest.mark.parametrize(("images", "batch"), [(1, 2), (3, 2), (8, 2), (10, 2), (16, 4), (31, 4), (32, 8), (10_000, 8)])
def test_few_images_have_small_batches(images: int, batch: int) -> None:
    assert resolve_defaults(TrainConfig(), [CAMVID] * images).batch_size == batch


@pytest.mark.parametrize(
    ("size", "crop"),
    [((20, 30), (32, 32)), ((64, 100), (64, 96)), ((256, 300), (256, 256)), ((360, 480), (256, 352)),
     ((600, 2000), (448, 512)), ((4000, 6000), (512, 512))],
)  # fmt: skip
def test_a_crop_is_no_larger_than_the_scaled_image(size: tuple[int, int], crop: tuple[int, int]) -> None:
    config = resolve_defaults(TrainConfig(), [size] * 20)
    assert config.data.crop == crop
    assert all(side % STRIDE == 0 for side in config.data.crop)
    if min(size) >= STRIDE:
        assert all(config.augment.scale[0] * whole >= part - 1e-6 for whole, part in zip(size, crop, strict=True))
    assert config.augment.scale[0] >= 0.5


def test_the_crop_follows_the_working_size() -> None:
    assert resolve_defaults(TrainConfig().updated({"data.size": 720}), [CAMVID] * 60).data.crop == (512, 512)
    assert resolve_defaults(TrainConfig(), [CAMVID] * 60, short_side=720).data.size == 720  # the start's
    assert resolve_defaults(TrainConfig().updated({"data.size": 0}), [CAMVID] * 60, short_side=720).data.size == 0
    mixed = [(100, 400), (300, 200), (300, 400)]
    assert resolve_defaults(TrainConfig(), mixed).data.crop == (256, 288)  # medians: 300 and 400


def test_long_runs_average_longer_and_warm_up_for_a_smaller_part() -> None:
    long, short = (resolve_defaults(TrainConfig(epochs=epochs), [CAMVID] * 800) for epochs in (100, 1))
    assert (long.average.ema_decay, short.average.ema_decay) == (0.998, 0.9)
    assert (long.optim.warmup_fraction, short.optim.warmup_fraction) == (0.05, 0.3)
    # Of the average, hardly anything is still the start: in 100 steps at 0.9, 0.9 ** 100.
    assert short.average.ema_decay**100 < 1e-4
    assert resolve_defaults(TrainConfig(epochs=1), [CAMVID]).average.ema_decay == 0.0  # one step: its result


@pytest.mark.parametrize("known", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("freeze_norm", [False, True])
@pytest.mark.parametrize("start", ["none", "b0-cityscapes"])
@pytest.mark.parametrize("images", [1, 2, 10, 60, 300, 20_000])
def test_every_choice_is_made_and_allowed(start: str, known: float, freeze_norm: bool, images: int) -> None:
    for epochs in (1, 3, 10, 40, 300):
        given = TrainConfig(start=start, epochs=epochs).updated({"optim.freeze_norm": freeze_norm})
        config = resolve_defaults(given, [CAMVID] * images, known)
        assert None not in config.flat().values()
        assert make_config(flattened(config.to_dict(), "again"), "again") == config
        assert all(config.flat()[key] == given.flat()[key] for key in KEYS if key not in AUTO_KEYS)
        assert 0 < config.optim.learning_rate <= 2e-3


def test_what_is_given_is_never_changed_and_the_rest_follows_from_it() -> None:
    given = TrainConfig(batch_size=3).updated(
        {
            "data.crop": (512, 1024),
            "data.size": 100,
            "augment.scale": (0.1, 9.0),
            "optim.learning_rate": 0.5,
            "optim.warmup_fraction": 0.0,
            "average.ema_decay": 0.1,
            "optim.freeze_norm": False,
            "distill.features": 0.1,
        }
    )
    assert resolve_defaults(given, [CAMVID] * 60, 1.0) == given
    assert resolve_defaults(resolve_defaults(TrainConfig(), [CAMVID] * 7), [CAMVID] * 7000) == resolve_defaults(
        TrainConfig(), [CAMVID] * 7
    )
    usual, double = (resolve_defaults(TrainConfig(batch_size=batch), [CAMVID] * 10_000) for batch in (8, 16))
    assert double.optim.learning_rate == pytest.approx(math.sqrt(2) * usual.optim.learning_rate, rel=0.02)  # two digits
    assert resolve_defaults(TrainConfig().updated({"data.crop": (352, 480)}), [CAMVID] * 60).augment.scale[
        0
    ] == pytest.approx(1.0)


def test_features_are_distilled_where_the_start_of_a_run_with_integers_is_a_teacher() -> None:
    for qat, teachers, weight in ((True, ("b0",), 0.3), (True, ("b1",), 0.0), (False, ("b0",), 0.0)):
        config = TrainConfig(qat=qat, start="b0").updated({"distill.teachers": teachers})
        assert resolve_defaults(config, [CAMVID]).distill.features == weight


def test_frozen_statistics_and_a_start_ask_for_lower_rates() -> None:
    for images, epochs, known, frozen in (
        (31, 1000, 1.0, True), (60, 6, 1.0, True), (60, 7, 1.0, False), (60, 3, 0.9, False), (10, 3, 0.0, False)
    ):  # fmt: skip
        assert resolve_defaults(TrainConfig(epochs=epochs), [CAMVID] * images, known).optim.freeze_norm == frozen

    for rate, frozen in ((1e-3, False), (1e-5, True)):
        assert (
            resolve_defaults(TrainConfig().updated({"optim.learning_rate": rate}), [CAMVID] * 10, 1.0).optim.freeze_norm
            == frozen
        )

    def rate_of(start: str = "b0-cityscapes", known: float = 1.0, freeze_norm: bool = False) -> float:
        config = TrainConfig(start=start).updated({"optim.freeze_norm": freeze_norm})
        return resolve_defaults(config, [CAMVID] * 60, known).optim.learning_rate

    assert rate_of() < rate_of(known=0.5) <= rate_of("none", known=0)
    assert rate_of(freeze_norm=True) <= rate_of() / 10
