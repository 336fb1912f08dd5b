"""A run that starts from a network which already knows the classes."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.optional import needs

needs("torch", "accelerate")

import torch

from evitseg.data.layouts import find_dataset
from evitseg.evaluation.evaluate import evaluate
from evitseg.loading import load
from evitseg.model.checkpoints import load_checkpoint, save_checkpoint
from evitseg.model.network import EfficientViT
from evitseg.train import Event, fit
from evitseg.train.run_log import read_log
from evitseg.train.settings import read_config
from tests.train.scenes import TINY, scenes

SIZE = (64, 96)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("data")
    for seed, (split, count) in enumerate((("train", 12), ("val", 6))):
        scenes(root / split, count, SIZE, seed)
    return root


@pytest.fixture(scope="module")
def start(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of ours that knows the data's four classes."""
    config = TINY.updated(
        {
            "epochs": 25,
            "batch_size": 6,
            "eval_interval": 25,
            "data.crop": SIZE,
            "augment.scale": (0.9, 1.3),
            "optim.learning_rate": 3e-3,
            "average.ema_decay": 0.9,
            "data.workers": 0,
        }
    )
    return fit(data, config, tmp_path_factory.mktemp("start") / "run").last


def miou(model: Path, data: Path) -> float:
    """As `evitseg eval` measures it."""
    dataset, segment = find_dataset(data), load(model, precision="float32")
    return evaluate(segment.mask, dataset.pairs("val"), segment.labels).miou


def test_the_best_is_never_below_the_start(data: Path, start: Path, tmp_path: Path) -> None:
    """At a rate that destroys the network in its first steps."""
    config = TINY.updated(
        {
            "start": str(start),
            "epochs": 2,
            "optim.learning_rate": 1.0,
            "optim.warmup_fraction": 0.0,
            "average.ema_decay": 0.0,
            "optim.freeze_norm": False,
            "data.workers": 0,
        }
    )
    seen: list[Event] = []
    run = fit(data, config, tmp_path / "run", watch=seen.append)
    given = miou(start, data)
    assert given > 0.5
    assert run.start_miou == pytest.approx(given, abs=1e-6)
    assert run.last_miou < given - 0.1
    assert run.miou == run.start_miou
    kept = load_checkpoint(run.best)[0].state_dict()
    for key, tensor in load_checkpoint(start)[0].state_dict().items():
        assert torch.equal(kept[key], tensor), key
    assert load_checkpoint(run.best)[1].accuracy[0].miou == round(100 * given, 2)
    first = read_log(tmp_path / "run")[0]
    assert (first["epoch"], first["step"], first["miou"]) == (0, 0, run.start_miou)
    assert seen[0].step == 0
    assert seen[0].report is not None
    assert seen[0].report.miou == run.start_miou


def test_pieces_unlike_the_images_do_not_spoil_what_is_kept(data: Path, start: Path, tmp_path: Path) -> None:
    """Small images on large pieces, most of which is black: batch norm's running statistics are of that black.

    The rate is so low that the weights stay as they were, so all that could be worse are statistics.
    """
    config = TINY.updated(
        {
            "start": str(start),
            "epochs": 6,
            "batch_size": 4,
            "data.crop": (192, 192),
            "augment.scale": (0.5, 0.7),
            "optim.learning_rate": 1e-8,
            "augment.color_jitter": 0,
            "data.workers": 0,
            "optim.freeze_norm": False,
        }
    )
    run = fit(data, config, tmp_path / "run")
    assert run.last_miou > run.start_miou - 0.02
    assert miou(run.last, data) == pytest.approx(run.last_miou, abs=1e-6)


@pytest.mark.parametrize("change", [{}, {"average.start_weight": 0.5}, {"optim.freeze_backbone": True}])
def test_the_default_run_does_not_end_below_its_start(
    data: Path, start: Path, tmp_path: Path, change: dict[str, float]
) -> None:
    losses: list[float] = []
    config = TINY.updated({"start": str(start), "epochs": 3, "data.workers": 0, **change})
    run = fit(data, config, tmp_path / "run", watch=lambda event: losses.append(event.loss))
    assert run.last_miou > run.start_miou - 0.02
    assert run.miou >= run.start_miou
    assert max(losses[1:]) < 3  # with frozen statistics it was 300 at the rate for others


def test_the_mixture_with_the_start_has_statistics_of_its_own(data: Path, start: Path, tmp_path: Path) -> None:
    config = TINY.updated(
        {"start": str(start), "epochs": 1, "average.start_weight": 0.5, "optim.freeze_norm": False, "data.workers": 0}
    )
    run = fit(data, config, tmp_path / "run")
    state = torch.load(tmp_path / "run/state.pt", weights_only=True)
    kept, given = load_checkpoint(run.last)[0].state_dict(), load_checkpoint(start)[0].state_dict()
    key = next(key for key in kept if key.endswith("running_var"))
    assert not torch.allclose(kept[key], (state["average"][key] + given[key]) / 2, rtol=1e-3)


def test_what_was_chosen_is_written_down_and_what_was_given_is_kept(data: Path, start: Path, tmp_path: Path) -> None:
    told: list[str] = []
    config = TINY.updated({"start": str(start), "epochs": 1, "data.crop": (32, 64), "data.workers": 0})
    fit(data, config, tmp_path / "run", tell=told.append)
    content = json.loads((tmp_path / "run/config.json").read_text())
    assert content["chosen"] == [
        "batch_size", "data.size", "augment.scale", "optim.learning_rate", "optim.warmup_fraction",
        "optim.freeze_norm", "average.ema_decay", "distill.features",
    ]  # fmt: skip
    assert (content["images"], content["steps"], content["settings"]["batch_size"]) == (12, 6, 2)
    assert content["settings"]["data"]["crop"] == [32, 64]
    assert content["settings"]["optim"]["freeze_norm"] is True
    assert content["settings"]["optim"]["learning_rate"] == 5e-6  # 3e-4 / 30, times the root of 2 / 8
    assert len(told) == 1
    assert told[0].startswith(
        "settings derived from 12 images: batch_size 2, data.size 0, augment.scale 0.667–2, optim.learning_rate 5e-06"
    )
    again = read_config(tmp_path / "run")
    assert fit(data, again, tmp_path / "again", tell=told.append).folder.exists()
    assert len(told) == 1  # nothing was left to choose
    assert json.loads((tmp_path / "again/config.json").read_text())["chosen"] == []


def test_the_size_that_the_start_works_at_is_the_runs(data: Path, start: Path, tmp_path: Path) -> None:
    network, manifest = load_checkpoint(start)
    larger = replace(manifest, preprocess=replace(manifest.preprocess, short_side=96))
    save_checkpoint(network, larger, tmp_path / "start.safetensors")
    config = TINY.updated({"start": str(tmp_path / "start.safetensors"), "epochs": 1, "data.workers": 0})
    run = fit(data, config, tmp_path / "run")
    assert read_config(tmp_path / "run").data.size == 96
    assert load_checkpoint(run.last)[1].preprocess.short_side == 96
    assert run.start_miou == pytest.approx(miou(tmp_path / "start.safetensors", data), abs=1e-6)
    fit(data, config.updated({"data.size": 0}), tmp_path / "own")
    assert load_checkpoint(tmp_path / "own/last.safetensors")[1].preprocess.short_side is None


def test_one_image_fewer_than_a_batch_and_a_class_that_validation_lacks(tmp_path: Path, start: Path) -> None:
    scenes(tmp_path / "data/train", 1, (40, 50))
    scenes(tmp_path / "data/val", 1, (40, 50), seed=1)
    mask = tmp_path / "data/val/masks/0000000.png"
    with Image.open(mask) as image:
        Image.fromarray(np.asarray(image).clip(0, 1)).save(mask)
    chosen = TINY.updated({"start": str(start), "epochs": 2, "data.workers": 0})
    for name, config in (("chosen", chosen), ("eight", chosen.updated({"batch_size": 8}))):
        run = fit(tmp_path / "data", config, tmp_path / name)
        assert np.isfinite([run.start_miou, run.miou, run.last_miou]).all()
    tiny = scenes(tmp_path / "tiny", 3, (24, 30))
    assert fit(
        tiny, TINY.updated({"start": str(start), "epochs": 1, "data.workers": 0}), tmp_path / "run"
    ).last.exists()


def test_averaged_checkpoints_get_statistics_over_images(
    data: Path, start: Path, tmp_path: Path, cli: Callable[..., Any]
) -> None:
    """Two networks that are the same but for the sign of some channels: their mean is neither."""
    network, manifest = load_checkpoint(start)
    for name, factor in (("one", 0.5), ("two", 1.5)):
        changed = EfficientViT(network.config)
        changed.load_state_dict(
            {k: v * factor if k.endswith("running_var") else v for k, v in network.state_dict().items()}
        )
        save_checkpoint(changed, manifest, tmp_path / f"{name}.safetensors")
    given = [tmp_path / "one.safetensors", tmp_path / "two.safetensors"]
    told = {}
    for name, options in (("plain", []), ("estimated", ["--data", str(data)])):
        done = cli("average", *given, "--out", tmp_path / f"{name}.safetensors", *options)
        assert done.status == 0, done.stderr
        told[name] = done.stdout
    assert "12 images" in told["estimated"]
    assert "--data" in told["plain"]
    states = {name: load_checkpoint(tmp_path / f"{name}.safetensors")[0].state_dict() for name in told}
    for key, tensor in states["plain"].items():
        same = torch.equal(tensor, states["estimated"][key])
        assert same != ("running_" in key or "num_batches" in key) or "num_batches" in key, key
    assert miou(tmp_path / "estimated.safetensors", data) > miou(start, data) - 0.03
