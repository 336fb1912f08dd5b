from __future__ import annotations

import json
import math
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.optional import needs

needs("torch", "accelerate")

from evitseg.errors import ConfigError, EvitsegDeprecationWarning
from evitseg.train import AugmentConfig, DataConfig, DistillConfig, LossConfig, OptimConfig, TrainConfig
from evitseg.train.config import KEYS
from evitseg.train.old_names import OLD_NAMES, OLD_RECIPES
from evitseg.train.settings import flattened, make_config, parse_changes, read_recipe, recipes
from tests.train.scenes import SMALL

# Every setting as recipes and config.json had it when settings were flat.
FLAT: dict[str, Any] = {
    "variant": "b1", "start": "b1-cityscapes", "classes_from": {"pavement": ["sidewalk"]}, "train_on": ["train"],
    "epochs": 7, "batch": 4, "bands": "3,2,1", "value_range": "0,4095", "page": 2, "crop": [64, 96], "size": 320,
    "scale": [0.5, 2], "rotate": 10, "jitter": 0.1, "blur": 0.2, "jpeg": 0.3, "classmix": 0.4, "learning_rate": 0.001,
    "warm_up": 0.1, "weight_decay": 0.01, "clip": 1, "ema": 0.9, "keep_start": 0.2, "freeze_backbone": True,
    "freeze_norm": True, "drop_path": 0.1, "cross_entropy": 0.9, "dice": 0.1, "lovasz": 0.2, "lovasz_from": 0.3,
    "boundary": 0.4, "ohem": 0.5, "label_smoothing": 0.05, "balance": 0.6, "auxiliary": 0.7, "teachers": ["a.pt"],
    "distill": 0.8, "temperature": 2, "loss_stride": 3, "precision": "bfloat16", "workers": 2, "measure_every": 5,
    "save_every": 100, "seed": 3,
}  # fmt: skip


def test_every_old_flat_setting_is_read_with_one_warning_that_names_the_new_keys() -> None:
    with pytest.warns(EvitsegDeprecationWarning, match=r"learning_rate is now optim\.learning_rate") as caught:
        config = make_config(flattened(FLAT, "old.json"), "old.json")
    assert len(caught) == 1
    assert str(caught[0].message).startswith("old.json: ")
    assert set(OLD_NAMES) < set(FLAT)
    values = {OLD_NAMES.get(name, name): value for name, value in FLAT.items()}
    younger = {"qat": False, "distill.features": None, "augment.paste_prob": 0.0, "augment.rare_below": 0.03}
    values |= younger
    assert set(values) == set(KEYS)
    assert json.loads(json.dumps(config.flat())) == values
    assert config.data == DataConfig(("train",), 320, (64, 96), "3,2,1", "0,4095", 2, 2)
    assert config.distill == DistillConfig(("a.pt",), 0.8, 2.0)


def test_old_keywords_of_the_constructor_still_work() -> None:
    with pytest.warns(
        EvitsegDeprecationWarning, match=r"crop is now data\.crop, distill is now distill\.weight"
    ) as seen:
        old = TrainConfig(epochs=3, crop=(64, 96), distill=0.5, optim=OptimConfig(drop_path=0.1))  # type: ignore[call-arg, arg-type]
    assert seen[0].filename == __file__
    new = TrainConfig(
        epochs=3, data=DataConfig(crop=(64, 96)), distill=DistillConfig(weight=0.5), optim=OptimConfig(drop_path=0.1)
    )
    assert old == new
    with pytest.warns(EvitsegDeprecationWarning, match=r"lovasz is now loss\.lovasz"):
        changed = replace(new, lovasz=0.5)  # type: ignore[call-arg]
    assert changed == replace(new, loss=LossConfig(lovasz=0.5))
    with pytest.raises(TypeError, match="lovas"):
        TrainConfig(lovas=0.5)  # type: ignore[call-arg]


def test_a_nested_recipe_is_the_same_as_its_keys() -> None:
    nested = {"epochs": 7, "augment": {"rotate": 10, "scale": [0.5, 2]}, "optim": {"learning_rate": 3e-4}}
    keys = {"epochs": 7, "augment.rotate": 10, "augment.scale": [0.5, 2], "optim.learning_rate": 3e-4}
    config = make_config(flattened(nested, "recipe"), "recipe")
    assert config == make_config(flattened(keys, "recipe"), "recipe")
    assert config == TrainConfig(
        epochs=7, augment=AugmentConfig(scale=(0.5, 2.0), rotate=10.0), optim=OptimConfig(learning_rate=3e-4)
    )
    assert make_config(flattened(json.loads(json.dumps(config.to_dict())), "recipe"), "recipe") == config


def test_packaged_recipes_are_settings_without_old_names() -> None:
    assert {"camvid-scratch", "camvid-scratch-large", "camvid-transfer", "camvid-transfer-distilled"} == set(recipes())
    for name, path in recipes().items():
        assert "about" in json.loads(path.read_text()), name
        make_config(read_recipe(name), name)


@pytest.mark.parametrize("old", OLD_RECIPES)
def test_an_old_recipe_name_still_works(old: str) -> None:
    with pytest.warns(EvitsegDeprecationWarning, match=OLD_RECIPES[old]):
        settings = read_recipe(old)
    assert settings == read_recipe(OLD_RECIPES[old])


def test_changes_override_a_recipe(tmp_path: Path) -> None:
    (tmp_path / "own.json").write_text('{"about": "mine", "epochs": 7, "data": {"crop": [64, 96], "size": "native"}}')
    settings = read_recipe(str(tmp_path / "own.json"))
    settings |= parse_changes(["augment.rotate=10", "start=none", 'data={"workers": 0}'])
    config = make_config(settings, "own")
    assert (config.epochs, config.augment.rotate, config.start) == (7, 10, "none")
    assert config.data == DataConfig(crop=(64, 96), size=0, workers=0)
    with pytest.warns(EvitsegDeprecationWarning, match=r"--set: .*rotate is now augment\.rotate"):
        assert parse_changes(["rotate=10"]) == {"augment.rotate": 10}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("rotat=10", "unknown setting 'rotat'; did you mean 'augment.rotate'"),
        ("optim.learning_rat=1", "did you mean 'optim.learning_rate'"),
        ("augment.learning_rate=1", "did you mean 'optim.learning_rate'"),
        ("color_jitter=1", "did you mean 'augment.color_jitter'"),
        ("xyz=1", "unknown setting 'xyz'; known are"),
        ("augment=3", "augment is a group"),
        ("augment.rotate=much", "augment.rotate is 'much', not a number"),
        ("data.crop=[1]", "data.crop has 1 values, not 2"),
        ("epochs=true", "epochs is True, not a whole number"),
        ("data.splits=train", r"data.splits is 'train', not a list; use \[\"train\"\]"),
        ("augment.rotate", "write key=value"),
    ],
)
def test_a_wrong_setting_is_an_error_that_names_the_right_one(change: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message), warnings.catch_warnings():
        warnings.simplefilter("error")
        make_config(parse_changes([change]), "settings")


def test_unreadable_recipes_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="unknown recipe 'camvid'"):
        read_recipe("camvid")
    with pytest.raises(ConfigError, match="no such recipe"):
        read_recipe(str(tmp_path / "missing.json"))
    for content, message in (("{", "not valid JSON"), ("[]", "JSON object"), ('{"epoch": 1}', "did you mean 'epochs'")):
        (tmp_path / "broken.json").write_text(content)
        with pytest.raises(ConfigError, match=message):
            read_recipe(str(tmp_path / "broken.json"))


@pytest.mark.parametrize(
    "change",
    [
        {"variant": "b9"},
        {"data.crop": (100, 64)},
        {"augment.scale": (2.0, 1.0)},
        {"epochs": 0},
        {"precision": "int4"},
        {"data.size": 3},
        {"optim.grad_clip_norm": 0.0},
        {"data.crop": (64,)},
        {"data.crop": 64},
        {"epochs": 2.5},
        {"epochs": "3"},
        {"epochs": None},
        {"optim": "fast"},
        {"optim.learning_rate": 10**400},
        {"distill.teachers": "b1-cityscapes"},
        {"data.splits": "train"},
        {"data.splits": {"train": 1}},
        {"classes_from": {"a": "sidewalk"}},
        {"augment.scale": (0.5, math.inf)},
        {"optim.weight_decay": math.nan},
        {"average.start_weight": 0.5},
        {"data.crop": (32, 32), "batch_size": 1},
        {"loss.cross_entropy": 0.0, "loss.lovasz": 1.0},
        {"loss.cross_entropy": 0.0, "distill.teachers": ("a.pt",), "distill.weight": 0.0},
    ],
)
def test_settings_that_cannot_work_are_refused(change: dict[str, object]) -> None:
    with pytest.raises(ConfigError):
        SMALL.updated(change)


def test_a_group_of_another_type_is_refused() -> None:
    with pytest.raises(ConfigError, match="optim must be a OptimConfig"):
        TrainConfig(optim={"learning_rate": 1e-3})  # type: ignore[arg-type]
