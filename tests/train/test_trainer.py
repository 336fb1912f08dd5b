from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

import evitseg
from evitseg.dataset import Pair
from evitseg.errors import ConfigError, DatasetError, TrainError, WeightsError
from evitseg.labels import numbered
from evitseg.model.weights import load_checkpoint
from evitseg.train import Event, TrainConfig, fit
from evitseg.train import trainer as module
from evitseg.train.data import Crops, batches, jittered
from evitseg.train.trainer import class_weights, cross_entropy, learning_rate, starting_network


def scene(rng: np.random.Generator, size: tuple[int, int]) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Sky, ground, squares and discs, in noisy colours: a picture and its mask of four classes."""
    height, width = size
    y, x = np.mgrid[:height, :width]
    mask = (y > height * rng.uniform(0.4, 0.6)).astype(np.uint8)
    for index in (2, 3):
        for _ in range(2):
            cy, cx, radius = rng.uniform(10, height - 10), rng.uniform(10, width - 10), rng.uniform(0.1, 0.2) * height
            square = (np.abs(y - cy) < radius) & (np.abs(x - cx) < radius)
            mask[square if index == 2 else (y - cy) ** 2 + (x - cx) ** 2 < radius**2] = index
    colors = np.array([[120, 160, 220], [90, 90, 95], [200, 60, 50], [60, 150, 60]])
    return np.clip(colors[mask] + rng.normal(0, 25, (height, width, 3)), 0, 255).astype(np.uint8), mask


def scenes(folder: Path, count: int, size: tuple[int, int], seed: int = 0) -> Path:
    rng = np.random.default_rng(seed)
    for i in range(count):
        for kind, values in zip(("images", "masks"), scene(rng, size), strict=True):
            (folder / kind).mkdir(parents=True, exist_ok=True)
            Image.fromarray(values).save(folder / kind / f"{i:07}.png")
    return folder


SMALL = TrainConfig(epochs=2, batch=4, crop=(64, 64), scale=(0.8, 1.2), workers=0)


def test_eight_pictures_are_learnt(tmp_path: Path) -> None:
    for split in ("train", "val"):
        scenes(tmp_path / "data" / split, 8, (192, 256))
    config = TrainConfig(
        epochs=90, batch=8, crop=(192, 256), scale=(0.9, 1.2), learning_rate=3e-3, weight_decay=0.01, ema=0.95,
        jitter=0.1, workers=0, measure_every=45,
    )  # fmt: skip
    events: list[Event] = []
    run = fit(tmp_path / "data", config, tmp_path / "run", watch=events.append)
    assert run.miou > 0.95
    assert events[-1].step == events[-1].steps == 90
    assert len((tmp_path / "run/log.jsonl").read_text().splitlines()) == 2
    # The checkpoint is what was measured, and says how it was made.
    manifest = load_checkpoint(run.best)[1]
    assert manifest.accuracy[0].miou == round(100 * run.miou, 2)
    segment = evitseg.load(run.best)
    with Image.open(tmp_path / "data/val/masks/0000003.png") as image:
        truth = np.asarray(image)
    assert (segment(tmp_path / "data/val/images/0000003.png").mask == truth).mean() > 0.97


PROGRAM = """
import sys, torch
from evitseg.train import TrainConfig, fit
torch.set_num_threads(1)
config = TrainConfig(epochs=3, batch=4, crop=(64, 64), scale=(0.8, 1.2), workers=1, save_every=2, precision="float32")
fit(sys.argv[1], config, sys.argv[2], resume=sys.argv[3] == "resume")
"""


def test_a_killed_run_goes_on_to_the_same_weights_bit_for_bit(tmp_path: Path) -> None:
    data = scenes(tmp_path / "data", 15, (80, 96))  # 12 to train on: 3 steps an epoch, 9 in all

    def start(out: str, how: str) -> subprocess.Popen[bytes]:
        return subprocess.Popen([sys.executable, "-c", PROGRAM, str(data), str(tmp_path / out), how])

    assert start("whole", "new").wait() == 0
    attempts = 0
    for attempts in range(20):  # noqa: B007  # asked for below
        process = start("killed", "resume" if (tmp_path / "killed/state.pt").exists() else "new")
        while process.poll() is None:
            # Killed as soon as it has got a step further than the time before, wherever it then is.
            state = tmp_path / "killed/state.pt"
            if state.exists() and state.stat().st_mtime_ns != getattr(start, "seen", 0):
                start.seen = state.stat().st_mtime_ns  # type: ignore[attr-defined]
                process.send_signal(signal.SIGKILL)
            time.sleep(0.005)
        if process.returncode == 0:
            break
    assert process.returncode == 0
    assert attempts >= 2  # killed that often
    whole, killed = (torch.load(tmp_path / out / "state.pt", weights_only=True) for out in ("whole", "killed"))
    assert whole["step"] == killed["step"] == 9
    assert whole["best"] == killed["best"]
    for part in ("network", "average"):
        for key, tensor in whole[part].items():
            assert torch.equal(tensor, killed[part][key]), f"{part} {key}"


def test_a_run_is_not_begun_over_another_nor_gone_on_with_other_settings(tmp_path: Path) -> None:
    data = scenes(tmp_path / "data", 6, (64, 64))
    fit(data, SMALL, tmp_path / "run")
    with pytest.raises(TrainError, match="holds a run already; go on with it"):
        fit(data, SMALL, tmp_path / "run")
    with pytest.raises(TrainError, match="learning_rate was 0.001, is 0.5"):
        fit(data, replace(SMALL, learning_rate=0.5), tmp_path / "run", resume=True)
    with pytest.raises(TrainError, match="no run to go on with"):
        fit(data, SMALL, tmp_path / "other", resume=True)
    (data / "images/0000001.png").unlink()
    with pytest.raises(TrainError, match=r"the data changed: 5 pictures .* 4 now; .* --start .*last\.safetensors"):
        fit(data, SMALL, tmp_path / "run", resume=True)
    (tmp_path / "run/state.pt").write_bytes(b"damaged")
    with pytest.raises(TrainError, match="damaged"):
        fit(data, SMALL, tmp_path / "run", resume=True)


def test_a_loss_that_is_no_number_ends_with_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = scenes(tmp_path / "data", 6, (64, 64))
    monkeypatch.setattr(module, "cross_entropy", lambda logits, *_: logits.sum() * math.nan)
    with pytest.raises(TrainError, match="step 1: the loss is nan; try a lower --learning-rate .* in a new run\\.$"):
        fit(data, SMALL, tmp_path / "run")


def test_broken_files_are_left_out_and_named(tmp_path: Path) -> None:
    data = scenes(tmp_path / "data", 8, (64, 64))
    (data / "images/0000002.png").write_bytes(b"")
    (data / "masks/0000005.png").unlink()
    run = fit(data, SMALL, tmp_path / "run")
    assert len(run.left_out) == 2
    assert "0000002.png: an empty file" in run.left_out[0]
    for path in (data / "images").iterdir():
        path.write_bytes(b"")
    with pytest.raises(DatasetError, match="no usable pair to train on"):
        fit(data, SMALL, tmp_path / "again")


def test_an_id_without_a_class_stops_before_the_first_step(tmp_path: Path) -> None:
    data = scenes(tmp_path / "data", 6, (64, 64))
    with pytest.raises(DatasetError, match="id [23] is not in label space"):
        fit(data, SMALL, tmp_path / "run", labels=numbered(2))
    assert not (tmp_path / "run").exists()


def test_the_average_is_what_its_formula_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = scenes(tmp_path / "data", 6, (64, 64))
    seen: list[torch.Tensor] = []
    step = module._Training._step

    def watched(self: module._Training, images: torch.Tensor, truth: torch.Tensor) -> float:
        loss = step(self, images, truth)
        seen.append(self.network.state_dict()["backbone.stem.0.conv.conv.weight"].clone())
        return loss

    monkeypatch.setattr(module._Training, "_step", watched)
    average = starting_network(SMALL, 4).state_dict()["backbone.stem.0.conv.conv.weight"].clone()
    run = fit(data, replace(SMALL, ema=0.5), tmp_path / "run")
    for n, weight in enumerate(seen, start=1):
        decay = min(0.5, (1 + n) / (10 + n))
        average = decay * average + (1 - decay) * weight
    kept = load_checkpoint(run.last)[0].state_dict()["backbone.stem.0.conv.conv.weight"]
    torch.testing.assert_close(kept, average)


def test_a_frozen_backbone_stays_as_it_was(tmp_path: Path) -> None:
    data = scenes(tmp_path / "data", 6, (64, 64))
    before = starting_network(SMALL, 4).state_dict()
    run = fit(data, replace(SMALL, freeze_backbone=True, learning_rate=0.01), tmp_path / "run")
    for key, tensor in load_checkpoint(run.last)[0].state_dict().items():
        assert torch.equal(tensor, before[key]) == key.startswith("backbone."), key


def test_a_start_gives_all_but_the_last_layer(b0_checkpoint: Path) -> None:
    model = starting_network(replace(SMALL, start=str(b0_checkpoint)), 4).state_dict()
    given = load_checkpoint(b0_checkpoint)[0].state_dict()
    differ = [key for key in model if model[key].shape != given[key].shape or not torch.equal(model[key], given[key])]
    assert differ == ["head.outputs.classify.conv.weight", "head.outputs.classify.conv.bias"]
    with pytest.raises(WeightsError, match="its backbone is b0, the run's b1; train with --variant b0"):
        starting_network(replace(SMALL, variant="b1", start=str(b0_checkpoint)), 4)


def test_without_a_network_training_says_how_to_do_without(tmp_path: Path) -> None:
    scenes(tmp_path / "data", 4, (64, 64))
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "empty")}
    command = [sys.executable, "-m", "evitseg", "train", "data"]
    run = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False, env=environment)
    assert run.returncode == 1
    assert "could not be downloaded" in run.stderr
    assert "--start none" in run.stderr
    assert "Traceback" not in run.stderr


@pytest.mark.parametrize(("pictures", "batch"), [(1, 1), (10, 4), (12, 4), (3, 8), (7, 7)])
def test_every_epoch_sees_every_picture(pictures: int, batch: int) -> None:
    config = replace(SMALL, batch=batch)
    keys = batches(config, pictures, epoch=3)
    assert len(keys) == -(-pictures // batch)
    assert {len(group) for group in keys} == {batch}
    numbers = [number for group in keys for _, number in group]
    assert sorted(numbers[:pictures]) == list(range(pictures))
    assert keys == batches(config, pictures, epoch=3)
    if pictures > 4:
        assert keys != [[(3, n) for _, n in group] for group in batches(config, pictures, epoch=4)]


def test_picture_and_mask_stay_together(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    mask = rng.integers(0, 3, (9, 12)).repeat(8, 0).repeat(8, 1).astype(np.uint8)
    Image.fromarray(mask).save(tmp_path / "mask.png")
    Image.fromarray(np.stack([mask * 100] * 3, -1)).save(tmp_path / "picture.png")
    config = replace(SMALL, scale=(0.3, 2.5), crop=(96, 64))
    crops = Crops([Pair(tmp_path / "picture.png", tmp_path / "mask.png")], numbered(3), config)
    flips = set()
    for epoch in range(40):
        image, truth = crops[epoch, 0]
        assert image.shape == (3, 96, 64)
        assert truth.shape == (96, 64)
        counted = truth != 255
        assert counted.any()
        assert (image[:, ~counted] == 0).all()
        # Bilinear at the borders of classes, exact within.
        agree = ((image[0].float() / 100).round() == truth)[counted].float().mean()
        assert agree > 0.85
        flips.add(float(agree))
        again, _ = crops[epoch, 0]
        assert torch.equal(again, image)
    assert len(flips) > 20


def test_jitter_keeps_pixels_in_range_and_is_the_generators() -> None:
    images = torch.randint(0, 256, (4, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    one, two = (jittered(images, SMALL, torch.Generator().manual_seed(5)) for _ in "ab")
    assert torch.equal(one, two)
    assert 0 <= one.min() <= one.max() <= 1
    torch.testing.assert_close(jittered(images, replace(SMALL, jitter=0.0), torch.Generator()), images / 255)


def test_the_rate_rises_and_falls_to_nothing() -> None:
    config = replace(SMALL, learning_rate=0.1, warm_up=0.1)
    rates = [learning_rate(config, step, 100) for step in range(100)]
    assert rates[0] == pytest.approx(0.01)
    assert max(rates) == pytest.approx(0.1)
    assert rates.index(max(rates)) in (9, 10)
    assert rates[55] == pytest.approx(0.05)
    assert rates[-1] < 1e-4


def test_ignored_pixels_do_not_count_in_the_loss() -> None:
    logits = torch.tensor([[[[2.0]], [[0.0]]]])
    truth = torch.tensor([[[0, 255]]])
    loss = cross_entropy(logits, truth, torch.ones(2), 255, 0.0)
    assert loss.item() == pytest.approx(-math.log(math.exp(2) / (math.exp(2) + 1)), rel=1e-5)
    nothing = cross_entropy(logits.requires_grad_(), torch.full((1, 1, 2), 255), torch.ones(2), 255, 0.0)
    assert nothing.item() == 0
    torch.autograd.backward(nothing)


def test_rare_classes_weigh_more_and_the_mean_stays_one() -> None:
    frequencies = np.array([0.9, 0.09, 0.01, 0.0])
    weights = class_weights(frequencies, balance=1.0)
    assert (weights[:-1] < weights[1:]).all()
    ratio = math.log(1.10 + 0.9) / math.log(1.10 + 0.09)
    assert (weights[1] / weights[0]).item() == pytest.approx(ratio, rel=1e-5)
    assert (weights.numpy() * frequencies).sum() == pytest.approx(1, rel=1e-5)
    torch.testing.assert_close(class_weights(frequencies, balance=0.0), torch.ones(4))


@pytest.mark.parametrize(
    "change",
    [
        {"variant": "b9"},
        {"crop": (100, 64)},
        {"scale": (2.0, 1.0)},
        {"epochs": 0},
        {"precision": "int4"},
        {"size": 3},
        {"clip": 0.0},
    ],
)
def test_settings_that_cannot_work_are_refused(change: dict[str, object]) -> None:
    with pytest.raises(ConfigError):
        replace(SMALL, **change)  # type: ignore[arg-type]


def test_the_command_trains_measures_exports_and_predicts(tmp_path: Path) -> None:
    scenes(tmp_path / "data", 12, (64, 96))

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "evitseg", *arguments]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False, env=dict(os.environ))
        assert done.returncode == 0, done.stderr
        return done

    trained = run(
        "train", "data", "--out", "run", "--start", "none", "--epochs", "3", "--crop", "64x96", "--batch", "4"
    )
    assert "epoch 3/3: loss" in trained.stdout
    commands = [line.split() for line in trained.stdout.splitlines() if line.startswith("evitseg ")]
    assert [c[1] for c in commands] == ["eval", "export"]
    for command in commands:  # the very commands that it says
        run(*command[1:])
    report = json.loads(run("eval", "data", "--model", "run/best.onnx", "--json").stdout)
    assert report["images"] == 12
    run("predict", "data/images", "--model", "run/best.onnx", "--no-overlay", "--out", "masks")
    assert len(list((tmp_path / "masks").iterdir())) == 12
    again = subprocess.run(
        [sys.executable, "-m", "evitseg", "train", "data", "--out", "run", "--start", "none"],
        cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert again.returncode == 1
    assert "holds a run already" in again.stderr
    assert "epoch" not in run("train", "data", "--out", "run", "--resume").stdout
