"""Runs that were interrupted, and folders that somebody changed."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.optional import needs

needs("torch", "accelerate")

import torch

from evitseg.errors import EvitsegDeprecationWarning, TrainError
from evitseg.labels import numbered
from evitseg.model.checkpoints import load_checkpoint
from evitseg.train import Event, fit
from evitseg.train import run as run_module
from evitseg.train import trainer as module
from evitseg.train.initialize import initialize
from evitseg.train.old_names import OLD_NAMES
from evitseg.train.run_log import read_log
from evitseg.train.settings import read_config
from evitseg.train.validation import Validation
from tests.train.scenes import SMALL, scenes


def interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def interrupt_at(step: int) -> Callable[[Event], None]:
    return lambda event: interrupt() if event.step == step else None


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return scenes(tmp_path_factory.mktemp("data"), 10, (64, 64))  # 8 to train on: two steps an epoch


@pytest.fixture(scope="module")
def stopped(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was interrupted after its first epoch."""
    folder = tmp_path_factory.mktemp("stopped") / "run"
    with pytest.raises(KeyboardInterrupt):
        fit(data, SMALL, folder, watch=interrupt_at(3))
    return folder


@pytest.fixture
def run(stopped: Path, tmp_path: Path) -> Path:
    """A copy to spoil."""
    folder = tmp_path / "run"
    folder.mkdir()
    for path in stopped.iterdir():
        if path.is_file():
            (folder / path.name).write_bytes(path.read_bytes())
    return folder


def test_a_new_run_never_starts_from_what_another_left(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first was interrupted before its first checkpoint; the second has another seed, so another start."""
    folder = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(module.Trainer, "run", interrupt)
        with pytest.raises(KeyboardInterrupt):
            fit(data, SMALL, folder)
    second = SMALL.updated({"seed": 1})
    with pytest.raises(KeyboardInterrupt):
        fit(data, second, folder, watch=interrupt_at(3))
    fit(data, second, folder, resume=True)
    begun = load_checkpoint(folder / "start.safetensors")[0].state_dict()
    for key, tensor in initialize(second, numbered(4)).network.state_dict().items():
        assert torch.equal(begun[key], tensor), key
    assert read_config(folder).seed == 1


def test_an_interrupted_run_says_what_is_left(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(
        KeyboardInterrupt, match=r"step 3 of 4\. .*run holds the state after step 2 \(epoch 1 of 2\); --r"
    ):
        fit(data, SMALL, tmp_path / "run", watch=interrupt_at(3))
    with pytest.raises(KeyboardInterrupt, match=r"step 1 of 4\. .* after step 0 \(epoch 0 of 2\)"):
        fit(data, SMALL, tmp_path / "early", watch=interrupt_at(1))
    assert fit(data, SMALL, tmp_path / "early", resume=True).last.exists()
    assert [line["epoch"] for line in read_log(tmp_path / "early")] == [0, 1, 2]
    monkeypatch.setattr(Validation, "evaluate", interrupt)
    with pytest.raises(KeyboardInterrupt, match=r"before the first checkpoint .* without --resume"):
        fit(data, SMALL, tmp_path / "none")
    with pytest.raises(TrainError, match="nothing to resume .*interrupted before its first checkpoint.* without --res"):
        fit(data, SMALL, tmp_path / "none", resume=True)
    monkeypatch.setattr(run_module, "inspect", interrupt)
    with pytest.raises(KeyboardInterrupt, match="before the first step; nothing was trained"):
        fit(data, SMALL, tmp_path / "nothing")
    assert not (tmp_path / "nothing").exists()


def test_an_interrupt_during_a_step_waits_for_its_end_and_loses_nothing(data: Path, tmp_path: Path) -> None:
    def signal_at_1(event: Event) -> None:
        if event.step == 1:
            signal.raise_signal(signal.SIGINT)

    folder = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt, match=r"step 1 of 4\. .*run holds the state after step 1 \(epoch 0 of 2\)"):
        fit(data, SMALL, folder, watch=signal_at_1)
    fit(data, SMALL, folder, resume=True)
    fit(data, SMALL, tmp_path / "whole")
    assert (folder / "last.safetensors").read_bytes() == (tmp_path / "whole/last.safetensors").read_bytes()


def test_an_interrupt_at_the_end_of_an_epoch_loses_no_step_and_no_evaluation(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In its last step, and then in the evaluation after it."""

    def signal_at_2(event: Event) -> None:
        if event.step == 2:
            signal.raise_signal(signal.SIGINT)

    folder, after_step_2 = tmp_path / "run", r"step 2 of 4\. .*run holds the state after step 2 \(epoch 1 of 2\)"
    with pytest.raises(KeyboardInterrupt, match=after_step_2):
        fit(data, SMALL, folder, watch=signal_at_2)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt, match=after_step_2):
        patch.setattr(Validation, "evaluate", interrupt)
        fit(data, SMALL, folder, resume=True)
    fit(data, SMALL, folder, resume=True)
    whole = fit(data, SMALL, tmp_path / "whole")
    assert (folder / "last.safetensors").read_bytes() == whole.last.read_bytes()
    lines = [
        [(line["epoch"], line["step"], line.get("miou")) for line in read_log(run)] for run in (folder, whole.folder)
    ]
    assert lines[0] == lines[1]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_to_the_whole_group_of_processes_ends_a_run_with_what_is_left(
    number: signal.Signals, tmp_path: Path, data: Path
) -> None:
    """A terminal sends Ctrl-C to the workers too, and so does a service manager with SIGTERM."""
    command = [
        sys.executable, "-m", "evitseg", "train", str(data), "--out", "run", "--start", "none", "--crop", "64x64",
        "--batch", "4", "--epochs", "500", "--workers", "1", "--set", "eval_interval=500",
    ]  # fmt: skip
    process = subprocess.Popen(
        command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell's background jobs ignore it
    )  # fmt: skip
    while process.poll() is None and not (tmp_path / "run/log.jsonl").exists():
        time.sleep(0.05)
    while process.poll() is None and '"epoch": 2' not in (tmp_path / "run/log.jsonl").read_text():
        time.sleep(0.05)
    os.killpg(process.pid, number)
    told, error = process.communicate(timeout=60)
    assert process.returncode == 128 + number
    assert "Traceback" not in error
    assert "unexpected" not in error
    assert re.search(r"interrupted at step \d+ of 1000\. run holds .* --resume continues from there\.", error)
    assert (
        "settings derived from 8 images: data.size 0, augment.scale 1–2, optim.learning_rate 0.00071, "
        "optim.warmup_fraction 0.05, optim.freeze_norm False, average.ema_decay 0.99;" in error
    )
    assert re.search(r"^before training: mIoU", told, re.MULTILINE)
    assert re.search(r"^epoch 1/500, step 2/1000: loss [\d.]+, .* left$", told, re.MULTILINE)


def test_results_of_another_run_are_not_replaced(data: Path, run: Path) -> None:
    (run / "state.pt").unlink()  # it is large, and only needed to resume
    (run / "last.safetensors").write_bytes(b"dear")
    with pytest.raises(TrainError, match="already holds a run's results"):
        fit(data, SMALL, run)
    assert (run / "last.safetensors").read_bytes() == b"dear"
    (run / "last.safetensors").unlink()
    (run / "best.safetensors").write_bytes(b"dear")
    with pytest.raises(TrainError, match=r"already holds a run's results \(best\.safetensors\)"):
        fit(data, SMALL, run)
    assert (run / "best.safetensors").read_bytes() == b"dear"


def test_hidden_folders_and_files_of_others_stay(data: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    (folder / ".evitseg-0123456789ab").mkdir(parents=True)
    (folder / ".evitseg-0123456789ab/state.json").write_text("{}")
    (folder / ".evitseg-notes.txt").write_text("mine")
    fit(data, SMALL.updated({"epochs": 1}), folder)
    assert (folder / ".evitseg-0123456789ab/state.json").exists()
    assert (folder / ".evitseg-notes.txt").read_text() == "mine"


def change(**parts: Any) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        state = torch.load(folder / "state.pt", weights_only=True)
        torch.save(state | parts, folder / "state.pt")

    return apply


def spoil_moments(folder: Path) -> None:
    state = torch.load(folder / "state.pt", weights_only=True)
    state["optimizer"]["state"][0]["exp_avg"] = torch.zeros(3)
    torch.save(state, folder / "state.pt")


def spoil_weights(folder: Path) -> None:
    state = torch.load(folder / "state.pt", weights_only=True)
    next(iter(state["trained"].values())).fill_(torch.nan)
    torch.save(state, folder / "state.pt")


def configured(change: Callable[[Any], Any]) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        content = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(change(content)))

    return apply


def written(name: str, content: bytes) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        (folder / name).write_bytes(content)

    return apply


LINE = b'{"epoch": 0, "step": 0, "miou": 0.5, "iou": {}}\n'


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (change(step=10**9), "state.pt: not the state of this run"),
        (change(step=-1), "state.pt: damaged"),
        (change(step=2.5), "state.pt: damaged"),
        (change(step="two"), "state.pt: damaged"),
        (change(best=7.0), "state.pt: damaged"),
        (change(losses=[1.0]), "state.pt: damaged"),
        (change(losses=["a", "b"]), "state.pt: damaged"),
        (change(trained=[1]), "state.pt: damaged"),
        (change(trained={}), "state.pt: not the state of this run"),
        (change(optimizer={"state": {}, "param_groups": []}), "state.pt: not the state of this run"),
        (change(data=None), "the data changed"),
        (spoil_moments, "state.pt: not the state of this run"),
        (spoil_weights, "state.pt: damaged"),
        (written("state.pt", b"damaged"), "state.pt: damaged"),
        (written("start.safetensors", b"damaged"), "start.safetensors"),
        (written("config.json", b"[" * 100_000), "config.json: damaged"),
        (written("config.json", b"\xff"), "config.json: damaged"),
        (written("config.json", b"[]"), "config.json: damaged"),
        (configured(lambda content: content | {"settings": 3}), "config.json: settings are a JSON object"),
        (configured(lambda content: content | {"settings": {"epochs": 10**30}}), "epochs is"),
        (configured(lambda content: content | {"settings": {"epoch": 1}}), "unknown setting 'epoch'"),
        (written("log.jsonl", b"[" * 100_000 + b"\n" + LINE), "log.jsonl, line 1: not a line of a run's log"),
        (written("log.jsonl", LINE + b'{"epoch": 1, "step": 2, "loss": "low"}\n'), "log.jsonl, line 2"),
        (written("log.jsonl", LINE + b'{"epoch": 1, "step": 2, "loss": 1, "miou": 0.1}\n'), "log.jsonl, line 2"),
        (written("log.jsonl", LINE + b'{"epoch": 1, "step": 1e400, "loss": 1}\n'), "log.jsonl, line 2"),
        (written("log.jsonl", b"\xff\xfe\n"), "log.jsonl, line 1"),
    ],
)
def test_a_tampered_run_is_refused_in_a_sentence(
    data: Path, run: Path, spoil: Callable[[Path], None], message: str
) -> None:
    spoil(run)
    with pytest.raises(TrainError) as caught:
        fit(data, read_config(run), run, resume=True)
    assert message in str(caught.value)
    assert str(caught.value).endswith(".")


def test_a_line_that_was_being_written_is_left_out(data: Path, run: Path) -> None:
    with open(run / "log.jsonl", "ab") as file:
        file.write(b'{"epoch": 2, "st')
    assert fit(data, SMALL, run, resume=True).last.exists()
    assert [line["epoch"] for line in read_log(run)] == [0, 1, 2]


def test_a_folder_that_may_not_be_written_is_a_sentence(data: Path, tmp_path: Path, cli: Callable[..., Any]) -> None:
    if os.geteuid() == 0:
        (tmp_path / "file").write_text("")
        out = tmp_path / "file/run"  # root may write anywhere but into a file
    else:
        out = tmp_path / "closed/run"
        out.parent.mkdir(mode=0o500)
    done = cli("train", data, "--out", out, "--start", "none")
    assert done.status == 1
    assert str(out) in done.stderr


def test_a_run_of_an_older_version_is_resumed(data: Path, run: Path, tmp_path: Path) -> None:
    """Its config.json is flat, and its state and log have other words."""
    content = json.loads((run / "config.json").read_text())
    flat = {name: read_config(run).flat()[key] for name, key in OLD_NAMES.items()}
    top = {name: value for name, value in content["settings"].items() if not isinstance(value, dict)}
    old = {name: value for name, value in top.items() if name not in OLD_NAMES.values()} | flat
    old_names = {key: name for name, key in OLD_NAMES.items()}
    content |= {
        "settings": old | {"classes_from": {}},
        "chosen": [old_names[key] for key in content["chosen"] if key in old_names],
    }
    (run / "config.json").write_text(json.dumps(content))
    state = torch.load(run / "state.pt", weights_only=True)
    state["data"] = {"pict" + "ures": state["data"]["images"], "digest": state["data"]["digest"]}
    torch.save(state, run / "state.pt")
    log = (run / "log.jsonl").read_text().replace("images_per_s", "pict" + "ures_per_s")
    (run / "log.jsonl").write_text(log)
    with pytest.warns(EvitsegDeprecationWarning, match=r"config\.json: .*save_every is now save_interval"):
        resumed = fit(data, None, run, resume=True)
    whole = fit(data, SMALL, tmp_path / "whole")
    expected, actual = (load_checkpoint(each.last)[0].state_dict() for each in (whole, resumed))
    for key, tensor in expected.items():
        assert torch.equal(actual[key], tensor), key
    assert read_config(run) == read_config(tmp_path / "whole")  # nested now, without a warning
    chosen = [json.loads((folder / "config.json").read_text())["chosen"] for folder in (run, tmp_path / "whole")]
    assert chosen[0] == [key for key in chosen[1] if key in old_names]  # the others are younger
    assert "data.size" in chosen[0]


def test_options_given_with_resume_are_all_named(run: Path, data: Path, cli: Callable[..., Any]) -> None:
    done = cli("train", data, "--out", run, "--resume", "--start", "none", "--crop", "64x64", "--learning-rate", "1")
    assert done.status == 1
    assert "leave out --start, --crop, --learning-rate, or start a new run" in done.stderr
