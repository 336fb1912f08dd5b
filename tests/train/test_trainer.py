from __future__ import annotations

import atexit
import contextlib
import json
import math
import multiprocessing
import os
import resource
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from multiprocessing.context import ForkServerContext, ForkServerProcess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.optional import needs

needs("torch", "accelerate", "tensorboard")

import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator  # type: ignore[import-untyped]

import evitseg
from evitseg.architecture import model_config
from evitseg.errors import DatasetError, TrainError
from evitseg.evaluation.evaluate import Report
from evitseg.labels import LabelClass, LabelSpace, load_labels, numbered
from evitseg.manifest import Manifest, Training
from evitseg.model.checkpoints import load_checkpoint, save_checkpoint
from evitseg.model.network import EfficientViT
from evitseg.preprocess import Preprocess
from evitseg.train import Event, TrainConfig, fit, run_log
from evitseg.train import trainer as module
from evitseg.train.allocator import is_out_of_memory
from evitseg.train.config import AUTO_KEYS
from evitseg.train.initialize import initialize
from evitseg.train.losses import Objective
from evitseg.train.run_log import Run, read_log
from evitseg.train.settings import read_config
from evitseg.train.validation import Validation
from tests.networks import lively
from tests.train.scenes import SMALL, add_tiny_variant, scene, scenes

Cli = Callable[..., Any]


def test_eight_images_are_learnt(tmp_path: Path, drawn: None) -> None:
    for split in ("train", "val"):
        scenes(tmp_path / "data" / split, 8, (128, 160))
    config = TrainConfig(epochs=60, batch_size=8, eval_interval=30).updated(
        {
            "data.crop": (128, 160),
            "augment.scale": (0.9, 1.2),
            "optim.learning_rate": 5e-3,
            "optim.weight_decay": 0.01,
            "average.ema_decay": 0.9,
            "augment.color_jitter": 0.1,
            "data.workers": 0,
        }
    )
    events: list[Event] = []
    run = fit(tmp_path / "data", config, tmp_path / "run", watch=events.append)
    assert run.miou > 0.92  # a network that answers at stride 8 rounds the corners of small squares
    assert events[-1].step == events[-1].steps == 60
    log = read_log(tmp_path / "run")
    assert [line["epoch"] for line in log] == list(range(61))
    assert [line["epoch"] for line in log if "miou" in line] == [0, 30, 60]
    events_written = EventAccumulator(str(tmp_path / "run/tensorboard"), size_guidance={"images": 1}).Reload()
    assert [event.step for event in events_written.Scalars("mIoU")] == [0, 30, 60]
    assert events_written.Scalars("mIoU")[-1].value == pytest.approx(log[-1]["miou"], rel=1e-6)
    assert len(events_written.Scalars("loss")) == 6
    assert [event.step for event in events_written.Images("predictions")] == [60]
    # The checkpoint is what was measured, and says how it was made.
    manifest = load_checkpoint(run.best)[1]
    assert manifest.accuracy[0].miou == round(100 * run.miou, 2)
    segment = evitseg.load(run.best)
    with Image.open(tmp_path / "data/val/masks/0000003.png") as image:
        truth = np.asarray(image)
    assert (segment(tmp_path / "data/val/images/0000003.png").mask == truth).mean() > 0.97


def processes() -> ForkServerContext:
    """Starts processes that can be killed, or join a group; they import PyTorch and this module once, together."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["evitseg.train.run", __name__])
    return context


def alone() -> None:
    """What every such process does first; the fixtures of this process are not its own."""
    multiprocessing.set_start_method("fork", force=True)  # not through a server that outlives a kill
    torch.set_num_threads(1)
    pytest.MonkeyPatch().setattr(run_log, "draw_curves", lambda *arguments: None)
    pytest.MonkeyPatch().setattr(run_log, "draw_predictions", lambda *arguments: None)
    add_tiny_variant(pytest.MonkeyPatch())


def train_further(data: Path, out: Path) -> None:
    """The work of a process that may be killed."""
    alone()
    config = SMALL.updated({"epochs": 3, "save_interval": 2, "data.workers": 1})
    fit(data, config, out, resume=(out / "state.pt").exists())


def test_a_killed_run_goes_on_to_the_same_weights_bit_for_bit(tmp_path: Path) -> None:
    data = scenes(tmp_path / "data", 15, (80, 96))  # 12 to train on: 3 steps an epoch, 9 in all

    def start(out: str) -> ForkServerProcess:
        process = processes().Process(target=train_further, args=(data, tmp_path / out))
        process.start()
        return process

    whole_run = start("whole")
    whole_run.join()
    assert whole_run.exitcode == 0
    state, seen, kills = tmp_path / "killed/state.pt", 0, 0
    while True:
        process = start("killed")
        while process.is_alive():
            # Killed as soon as it has got a step further than the time before, wherever it then is.
            if state.exists() and state.stat().st_mtime_ns != seen:
                seen = state.stat().st_mtime_ns
                process.kill()
            time.sleep(0.002)
        if process.exitcode == 0:
            break
        assert process.exitcode == -signal.SIGKILL
        kills += 1
    assert kills >= 2
    whole, killed = (torch.load(tmp_path / out / "state.pt", weights_only=True) for out in ("whole", "killed"))
    assert whole["step"] == killed["step"] == 9
    assert whole["best"] == killed["best"]
    for part in ("trained", "average"):
        for key, tensor in whole[part].items():
            assert torch.equal(tensor, killed[part][key]), f"{part} {key}"


def train_together(data: Path, out: Path, config: TrainConfig, rank: int, port: int) -> None:
    """The work of one of two processes."""
    alone()
    place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in place.items()})
    at_exit: list[Callable[[], object]] = []  # this process ends without it
    pytest.MonkeyPatch().setattr(atexit, "register", lambda function, *_, **__: at_exit.append(function))
    losses: list[float] = []
    fit(data, config, out, watch=lambda event: losses.append(event.loss) if event.report is None else None)
    if not config.optim.freeze_norm:
        fit(data, config.updated({"epochs": 1}), out / "second")
    for function in at_exit:
        if function.__module__.startswith("evitseg"):
            function()
    threads = [path.read_text().strip() for path in Path("/proc/self/task").glob("*/comm")]
    gloo = [name for name in threads if "gloo" in name]
    content = {"losses": losses, "gloo": gloo}
    (out / f"losses-{rank}.json").write_text(json.dumps(content))


@pytest.mark.parametrize("freeze_norm", [True, False])
def test_two_processes_follow_the_losses_of_one(tmp_path: Path, freeze_norm: bool) -> None:
    data = scenes(tmp_path / "data", 15, (80, 96))
    config = SMALL.updated({"epochs": 4, "optim.freeze_norm": freeze_norm, "optim.learning_rate": 1e-4})
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = processes()
    ranks = [
        context.Process(target=train_together, args=(data, tmp_path / "two", config, rank, port)) for rank in (0, 1)
    ]
    for process in ranks:
        process.start()
    one: list[float] = []
    fit(data, config, tmp_path / "one", watch=lambda event: one.append(event.loss) if event.report is None else None)
    for process in ranks:
        process.join()
        assert process.exitcode == 0
    two, other = (json.loads((tmp_path / f"two/losses-{rank}.json").read_text()) for rank in (0, 1))
    assert two == other
    # A thread of the process group that outlives it can abort the process when the interpreter shuts down.
    assert two["gloo"] == []
    if not freeze_norm:  # a second run in the same two processes
        assert [line["epoch"] for line in read_log(tmp_path / "two/second")] == [0, 1]
    for folder in ("one", "two"):
        assert [line["epoch"] for line in read_log(tmp_path / folder)] == [0, 1, 2, 3, 4]
    assert len(one) == len(two["losses"]) == 12
    # With batch norm's statistics kept, two processes compute what one does. Otherwise each normalises its own half
    # of the batch, and the losses only stay near.
    np.testing.assert_allclose(two["losses"], one, rtol=2e-3 if freeze_norm else 0.15)


@contextlib.contextmanager
def small_disk() -> Iterator[None]:
    """No file may grow beyond 4 MB: the log fits, the checkpoints do not. A full disk gives nearly the same error."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4_000_000, before[1]))  # Python ignores the signal that comes with it
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_ends_with_a_sentence_and_the_run_goes_on_later(tmp_path: Path, cli: Cli) -> None:
    data = scenes(tmp_path / "data", 6, (64, 64))
    command = (
        "train", data, "--out", tmp_path / "run", "--start", "none", "--crop", "64x64", "--batch", "4", "--epochs", "2",
        "--workers", "0",
    )  # fmt: skip
    with small_disk():
        full = cli(*command)
    assert full.status == 1
    assert "cannot be written (File too large)" in full.stderr
    assert not list((tmp_path / "run").glob(".evitseg-*"))
    again = cli(*command)
    assert again.status == 0, again.stderr


def test_a_run_is_not_begun_over_another_nor_gone_on_with_other_settings(tmp_path: Path) -> None:
    data = scenes(tmp_path / "data", 6, (64, 64))
    fit(data, SMALL, tmp_path / "run")
    with pytest.raises(TrainError, match="already holds a run; continue it with --resume"):
        fit(data, SMALL, tmp_path / "run")
    with pytest.raises(TrainError, match=r"optim.learning_rate was \S+, is 0.5"):
        fit(data, SMALL.updated({"optim.learning_rate": 0.5}), tmp_path / "run", resume=True)
    with pytest.raises(TrainError, match="nothing to resume"):
        fit(data, SMALL, tmp_path / "other", resume=True)
    (data / "images/0000001.png").unlink()
    with pytest.raises(
        TrainError, match=r"the data changed: 5 training images then, 4 now; .* --start .*last\.safetensors"
    ):
        fit(data, SMALL, tmp_path / "run", resume=True)
    (tmp_path / "run/state.pt").write_bytes(b"damaged")
    with pytest.raises(TrainError, match="damaged"):
        fit(data, SMALL, tmp_path / "run", resume=True)


def test_a_loss_that_is_no_number_ends_with_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = scenes(tmp_path / "data", 6, (64, 64))
    monkeypatch.setattr(Objective, "__call__", lambda self, logits, *_: logits.sum() * math.nan)
    with pytest.raises(
        TrainError, match="step 1: the loss is nan; start a new run with a lower --learning-rate .*\\.$"
    ):
        fit(data, SMALL, tmp_path / "run")


def test_a_full_memory_is_known_and_ends_with_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**55)
    assert is_out_of_memory(caught.value)
    assert not is_out_of_memory(RuntimeError("another error"))
    data = scenes(tmp_path / "data", 6, (64, 64))
    monkeypatch.setattr(Objective, "__call__", lambda self, logits, *_: torch.empty(2**55))
    with pytest.raises(
        TrainError, match="out of memory with a batch of 4 crops of 64×64; .* half the --batch or --crop"
    ):
        fit(data, SMALL, tmp_path / "run")


def test_broken_files_are_skipped_and_reported(tmp_path: Path) -> None:
    data = scenes(tmp_path / "data", 8, (64, 64))
    (data / "images/0000002.png").write_bytes(b"")
    (data / "masks/0000005.png").unlink()
    run = fit(data, SMALL, tmp_path / "run")
    assert len(run.skipped) == 2
    assert "0000002.png: an empty file" in run.skipped[0]
    for path in (data / "images").iterdir():
        path.write_bytes(b"")
    with pytest.raises(DatasetError, match="no pair can be used"):
        fit(data, SMALL, tmp_path / "again")


def test_own_data_of_mixed_sizes_with_broken_files(tmp_path: Path, cli: Cli) -> None:
    """100 images of three classes, seven-digit names, three sizes; two of them broken."""
    rng = np.random.default_rng(0)
    for i in range(100):
        image, mask = scene(rng, ((96, 128), (128, 96), (70, 150))[i % 3])
        for kind, values in (("images", image), ("masks", np.minimum(mask, 2))):
            path = tmp_path / "data" / kind / f"{4017 + i:07}.{'jpg' if kind == 'images' else 'png'}"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(values).save(path)
    broken = tmp_path / "data/images/0004020.jpg"
    broken.write_bytes(broken.read_bytes()[:700])
    Image.new("L", (10, 10)).save(tmp_path / "data/masks/0004055.png")
    check = cli("check", tmp_path / "data")
    assert check.status == 0, check.stderr
    told = check.stdout + check.stderr
    assert "0004020.jpg" in told
    assert "0004055.png" in told
    assert told.count("00040") + told.count("00041") == 2  # no other
    run = fit(
        tmp_path / "data",
        SMALL.updated({"epochs": 6, "batch_size": 8, "optim.learning_rate": 3e-3, "eval_interval": 6}),
        tmp_path / "run",
    )
    assert len(run.skipped) == 2
    assert run.miou > 0.3  # it learns; how well is not what this is about
    assert [len(load_checkpoint(run.best)[1].labels.classes)] == [3]


def test_an_id_without_a_class_stops_before_the_first_step(tmp_path: Path) -> None:
    data = scenes(tmp_path / "data", 6, (64, 64))
    with pytest.raises(DatasetError, match="id [23] is not in label space"):
        fit(data, SMALL, tmp_path / "run", labels=numbered(2))
    assert not (tmp_path / "run").exists()


def test_the_average_is_what_its_formula_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = scenes(tmp_path / "data", 6, (64, 64))
    seen: list[torch.Tensor] = []
    step = module.Trainer.train_step

    def watched(self: module.Trainer, images: torch.Tensor, truth: torch.Tensor) -> None:
        step(self, images, truth)
        seen.append(self.unwrapped.network.state_dict()["backbone.stem.0.conv.conv.weight"].clone())

    monkeypatch.setattr(module.Trainer, "train_step", watched)
    average = initialize(SMALL, numbered(4)).network.state_dict()["backbone.stem.0.conv.conv.weight"].clone()
    run = fit(data, SMALL.updated({"average.ema_decay": 0.5}), tmp_path / "run")
    for n, weight in enumerate(seen, start=1):
        decay = min(0.5, (1 + n) / (10 + n))
        average = decay * average + (1 - decay) * weight
    kept = load_checkpoint(run.last)[0].state_dict()["backbone.stem.0.conv.conv.weight"]
    torch.testing.assert_close(kept, average)


def test_a_frozen_backbone_stays_as_it_was(tmp_path: Path) -> None:
    data = scenes(tmp_path / "data", 6, (64, 64))
    before = initialize(SMALL, numbered(4)).network.state_dict()
    run = fit(data, SMALL.updated({"optim.freeze_backbone": True, "optim.learning_rate": 0.01}), tmp_path / "run")
    for key, tensor in load_checkpoint(run.last)[0].state_dict().items():
        assert torch.equal(tensor, before[key]) == key.startswith("backbone."), key


def test_frozen_statistics_stay_as_they_were(tmp_path: Path) -> None:
    data = scenes(tmp_path / "data", 6, (64, 64))
    before = initialize(SMALL, numbered(4)).network.state_dict()
    run = fit(data, SMALL.updated({"optim.freeze_norm": True, "optim.learning_rate": 1e-4}), tmp_path / "run")
    for key, tensor in load_checkpoint(run.last)[0].state_dict().items():
        assert torch.equal(tensor, before[key]) == ("running_" in key or "num_batches" in key), key


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint with the classes of Cityscapes."""
    network = lively(EfficientViT(model_config("tiny", 19)))
    path = tmp_path_factory.mktemp("start") / "start.safetensors"
    about = Manifest("start", network.config, load_labels("cityscapes"), Preprocess(), Training("generated", "CC0"))
    save_checkpoint(network, about, path)
    return path


def test_the_start_is_mixed_into_the_saved_weights(tmp_path: Path, start: Path) -> None:
    data = scenes(tmp_path / "data", 6, (64, 64))
    config = SMALL.updated({"start": str(start)})
    plain = load_checkpoint(fit(data, config, tmp_path / "plain").last)[0].state_dict()
    run = fit(data, config.updated({"average.start_weight": 0.25}), tmp_path / "kept")
    kept = load_checkpoint(run.last)[0].state_dict()
    given = initialize(config, numbered(4)).network.state_dict()
    for key, value in kept.items():
        if value.is_floating_point() and "running_" not in key:  # the mixture has statistics of its own
            torch.testing.assert_close(value, 0.75 * plain[key] + 0.25 * given[key])


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_every_setting_at_once_learns_and_goes_on_bit_for_bit(
    tmp_path: Path, b0_checkpoint: Path, precision: str
) -> None:
    data = scenes(tmp_path / "data", 10, (96, 96))
    config = SMALL.updated(
        {
            "epochs": 4,
            "variant": "b0",
            "start": str(b0_checkpoint),
            "distill.teachers": (str(b0_checkpoint),),
            "augment.rotate": 15,
            "augment.blur_prob": 0.5,
            "augment.jpeg_prob": 0.5,
            "classes_from": {"class 0": ("sky",), "class 1": ("road",), "class 2": ("car", "truck")},
            "augment.classmix_prob": 0.5,
            "optim.drop_path": 0.1,
            "loss.lovasz": 0.5,
            "loss.dice": 0.3,
            "loss.boundary_weight": 1.0,
            "loss.ohem_fraction": 0.3,
            "loss.auxiliary": 0.4,
            "loss.label_smoothing": 0.1,
            "average.start_weight": 0.2,
            "precision": precision,
            "save_interval": 3,
            "optim.learning_rate": 1e-3,
        }
    )
    losses: list[float] = []
    whole = fit(data, config, tmp_path / "whole", watch=lambda event: losses.append(event.loss))
    assert losses[-1] < losses[1]  # the first is the start's, which has none
    written = read_config(tmp_path / "whole")
    assert written == config.updated({key: written.flat()[key] for key in AUTO_KEYS})

    def stopping(event: Event) -> None:
        if event.step == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit(data, config, tmp_path / "stopped", watch=stopping)
    gone_on = fit(data, config.updated({"data.workers": 1}), tmp_path / "stopped", resume=True)
    kept, same = (load_checkpoint(run.last)[0].state_dict() for run in (whole, gone_on))
    for key, tensor in kept.items():
        assert torch.equal(tensor, same[key]), key
    # The auxiliary heads are gone from what is kept.
    assert not [key for key in kept if "aux" in key]


def test_a_kill_while_the_last_epoch_is_measured_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = scenes(tmp_path / "data", 10, (64, 64))
    config = SMALL.updated({"epochs": 2, "save_interval": 2})  # 8 images: two steps an epoch
    evaluate = Validation.evaluate

    def killed(self: Validation, epoch: int) -> Report:
        if epoch == 2:
            raise KeyboardInterrupt
        return evaluate(self, epoch)

    monkeypatch.setattr(Validation, "evaluate", killed)
    with pytest.raises(KeyboardInterrupt):
        fit(data, config, tmp_path / "run")
    monkeypatch.undo()
    run = fit(data, config, tmp_path / "run", resume=True)
    assert [line["epoch"] for line in read_log(tmp_path / "run")] == [0, 1, 2]
    assert run.miou >= 0
    assert "step 4 of 4" in load_checkpoint(run.last)[1].training.recipe


def test_a_run_goes_on_with_its_classes_and_without_its_start(tmp_path: Path, start: Path) -> None:
    data = scenes(tmp_path / "data", 6, (64, 64))
    given = Path(shutil.copy(start, tmp_path))
    names = tuple(LabelClass(name, (at,), (at, 0, 0)) for at, name in enumerate(("sky", "ground", "box", "disc")))
    labels = LabelSpace("own", names)
    config = SMALL.updated({"start": str(given), "average.start_weight": 0.1})
    whole = load_checkpoint(fit(data, config, tmp_path / "whole", labels=labels).last)[0].state_dict()

    def stopping(event: Event) -> None:
        if event.step == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit(data, config, tmp_path / "run", labels=labels, watch=stopping)
    given.unlink()
    network, manifest = load_checkpoint(fit(data, config, tmp_path / "run", resume=True).last)
    assert manifest.labels == labels
    for key, tensor in whole.items():
        assert torch.equal(tensor, network.state_dict()[key]), key
    with pytest.raises(TrainError, match="other classes"):
        fit(data, config, tmp_path / "run", resume=True, labels=numbered(4))


def test_masks_that_changed_are_seen(tmp_path: Path) -> None:
    data = scenes(tmp_path / "data", 6, (64, 64))
    fit(data, SMALL, tmp_path / "run")
    for path in (data / "masks").iterdir():
        with Image.open(path) as image:
            turned = np.asarray(image)[::-1]
        Image.fromarray(turned).save(path)
    with pytest.raises(TrainError, match="with other content"):
        fit(data, SMALL, tmp_path / "run", resume=True)


def test_a_gradient_that_is_no_number_spoils_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = scenes(tmp_path / "data", 6, (64, 64))

    def spoilt(self: Objective, logits: torch.Tensor, *_: object) -> torch.Tensor:
        return (logits * 0).sum().sqrt()  # 0, and its gradient is 0 / 0

    monkeypatch.setattr(Objective, "__call__", spoilt)
    with pytest.raises(TrainError, match="step 1: the gradient is nan; .* lower --learning-rate"):
        fit(data, SMALL, tmp_path / "run")


def test_a_validation_image_that_breaks_during_the_run_ends_it(tmp_path: Path) -> None:
    data = scenes(tmp_path / "data/train", 4, (64, 64)).parent
    scenes(data / "val", 2, (64, 64))

    def breaking(event: Event) -> None:
        (data / "val/images/0000001.png").write_bytes(b"broken")

    with pytest.raises(TrainError, match=r"0000001\.png: .*restore it and continue with --resume"):
        fit(data, SMALL, tmp_path / "run", watch=breaking)


def test_class_weights_come_from_the_training_images_alone(tmp_path: Path) -> None:
    data = scenes(tmp_path / "data/train", 4, (64, 64)).parent
    scenes(data / "val", 2, (64, 64), seed=1)
    seen = []
    for name in ("before", "after"):
        fit(
            data,
            SMALL.updated({"epochs": 1, "loss.class_weight_power": 1.0}),
            tmp_path / name,
            watch=lambda event: seen.append(event.loss if event.step else 0),
        )
        for path in (data / "val/masks").iterdir():
            Image.fromarray(np.zeros((64, 64), np.uint8)).save(path)
    assert seen[: len(seen) // 2] == seen[len(seen) // 2 :]


def test_without_a_network_training_says_how_to_do_without(tmp_path: Path) -> None:
    scenes(tmp_path / "data", 4, (64, 64))
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "empty")}
    command = [sys.executable, "-m", "evitseg", "train", "data"]
    run = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False, env=environment)
    assert run.returncode == 1
    assert "is not in the cache" in run.stderr
    assert "--start none" in run.stderr
    assert "Traceback" not in run.stderr


@pytest.mark.parametrize(("best", "told"), [(0.5, True), (0.6, False)])
def test_the_command_says_when_training_gained_nothing(
    best: float, told: bool, tmp_path: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "run"
    run = Run(folder, folder / "best.safetensors", folder / "last.safetensors", best, 0.5, 0.4, (), ())
    monkeypatch.setattr("evitseg.train.fit", lambda *data, **settings: run)
    done = cli("train", tmp_path, "--start", "none")
    assert f"best {100 * best:.2f}, before training 50.00, last 40.00" in done.stdout
    assert ("No epoch was better than the initial weights" in done.stdout) == told


@pytest.mark.usefixtures("small_examples")
def test_the_command_trains_measures_exports_and_predicts(
    tmp_path: Path, cli: Cli, drawn: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    scenes(tmp_path / "data", 12, (64, 96))
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str) -> Any:
        done = cli(*arguments)
        assert done.status == 0, done.stderr
        return done

    trained = run(
        "train", "data", "--out", "run", "--start", "none", "--epochs", "3", "--crop", "64x96", "--batch", "4"
    )
    assert "epoch 3/3: loss" in trained.stdout
    assert "class 3" in trained.stdout  # every class by name
    folder = {path.name for path in (tmp_path / "run").iterdir()}
    assert {"curves.png", "predictions.png", "tensorboard", "log.jsonl", "config.json", "commands.txt"} <= folder
    commands = [line.split() for line in trained.stdout.splitlines() if line.startswith("evitseg ")]
    assert [c[1] for c in commands] == ["eval", "export"]
    for command in commands:  # the very commands that it says
        run(*command[1:])
    report = json.loads(run("eval", "data", "--model", "run/best.onnx", "--json").stdout)
    assert report["images"] == 12
    run("predict", "data/images", "--model", "run/best.onnx", "--no-overlay", "--out", "masks")
    assert len(list((tmp_path / "masks").iterdir())) == 12
    again = cli("train", "data", "--out", "run", "--start", "none")
    assert again.status == 1
    assert "already holds a run" in again.stderr
    assert "epoch" not in run("train", "data", "--out", "run", "--resume").stdout


def test_worker_processes_end_with_the_run(tmp_path: Path) -> None:
    data = scenes(tmp_path / "data", 6, (64, 64))
    alive: list[int] = []

    def watch(event: Event) -> None:
        alive.append(len(multiprocessing.active_children()))

    before = len(multiprocessing.active_children())
    run = fit(data, SMALL.updated({"epochs": 1, "data.workers": 2}), tmp_path / "run", watch=watch)
    assert run.last.exists()
    assert max(alive) == before + 2
    assert len(multiprocessing.active_children()) == before
