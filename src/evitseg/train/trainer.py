"""The training loop: steps, moving average, measuring, and checkpoints that lose nothing."""

from __future__ import annotations

import ctypes
import hashlib
import io
import json
import math
import os
import shlex
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from evitseg import __version__
from evitseg.dataset import ALL, Dataset, Inspection, Pair, find_dataset, inspect, split_pairs
from evitseg.errors import DatasetError, MissingPackageError, TrainError, unknown
from evitseg.files import replacing, sweep
from evitseg.image import Picture, Preprocess
from evitseg.labels import LabelSpace
from evitseg.manifest import Accuracy, Manifest, Training
from evitseg.metrics import Report, measured, summarise
from evitseg.model.network import EfficientViT
from evitseg.model.weights import file_sha256, load_checkpoint, mixed, save_checkpoint
from evitseg.train.config import CONFIG_FILE, TrainConfig
from evitseg.train.data import Batches, Crops, batches
from evitseg.train.losses import Objective
from evitseg.train.network import (
    Teachers,
    Trained,
    channels_last,
    check_classes_from,
    set_drop_path,
    set_modes,
    starting_network,
)

START, BEST, LAST, STATE = "start.safetensors", "best.safetensors", "last.safetensors", "state.pt"
COMMANDS = "commands.txt"


@dataclass(frozen=True)
class Event:
    """What `fit` tells while it works.

    Attributes:
        step, steps: done, and of how many.
        epoch, epochs: likewise.
        loss: of this step.
        learning_rate: of this step.
        pictures_per_s: since training began or went on.
        report: after an epoch, the moving average measured on the validation pictures.
    """

    step: int
    steps: int
    epoch: int
    epochs: int
    loss: float
    learning_rate: float
    pictures_per_s: float
    report: Report | None = None


@dataclass(frozen=True)
class Run:
    """A finished run.

    Attributes:
        folder: with config.json, log.jsonl and the checkpoints.
        best: the checkpoint with the highest validation mIoU.
        last: the one at the end.
        miou: of the best, 0 to 1.
        left_out: sentences about pairs that could not be used.
        commands: to evaluate and export the best; also in the folder.
    """

    folder: Path
    best: Path
    last: Path
    miou: float
    left_out: tuple[str, ...]
    commands: tuple[str, ...]


def fit(
    data: str | os.PathLike[str] | Dataset,
    config: TrainConfig | None = None,
    out: str | os.PathLike[str] = "runs/train",
    *,
    resume: bool = False,
    labels: LabelSpace | None = None,
    check_workers: int = 0,
    watch: Callable[[Event], None] = lambda event: None,
) -> Run:
    """Train a segmentation network.

    All data are read once before the first step; pairs that cannot be used are left out and named. Without a
    validation split a fifth of the pictures is held out, the same for the same seed.

    Args:
        data: what `find_dataset` takes, or what it gives.
        out: the run's folder; it must be new, unless the run goes on.
        resume: go on with the run in `out` from its last checkpoint. On one CPU process the weights come out as if it
            had never stopped, bit for bit.
        labels: the classes, where they are known better than the data says.
        check_workers: processes that read the data before the first step; see `evitseg.dataset.inspect`.
        watch: called after every step and every epoch.

    Raises: DatasetError for data that cannot be trained on, WeightsError for a start that does not fit, TrainError
    where the loss is no number or memory runs out, FileError where the folder cannot be written.
    """
    config = config or TrainConfig()
    folder = Path(out)
    if not resume and (folder / STATE).exists():
        raise TrainError(f"{folder}: holds a run already; go on with it (--resume), or choose another --out.")
    state, start = None, None
    if resume:
        state, start = _resumable(folder, config)
        if labels is not None and labels != start[1].labels:
            raise TrainError(f"{folder}: cannot go on with other classes; leave out --labels, the run has its own.")
        labels = start[1].labels
    dataset = data if isinstance(data, Dataset) and not resume else find_dataset(_root(data), labels, config.reading)
    inspection = inspect(dataset, check_workers)
    if any(finding.stranger for finding in inspection.findings):
        raise DatasetError(f"{next(f.problem for f in inspection.findings if f.stranger)} Nothing was trained.")
    if inspection.usable and inspection.sameness:
        raise DatasetError(f"{dataset.root}: {inspection.sameness}")
    train, val = _splits(inspection, config)
    training = _Training(folder, config, inspection, train, val, watch, start[0] if start else None)
    if state is not None:
        training.restore(state)
    training.write_settings(dataset.root)
    try:
        return training.run()
    except RuntimeError as error:
        if not out_of_memory(error):
            raise
        raise TrainError(
            f"the memory does not hold a batch of {config.batch} at {config.crop[0]}×{config.crop[1]}; "
            f"halve --batch or --crop in a new run{training.how_to_start()}."
        ) from error


def out_of_memory(error: RuntimeError) -> bool:
    """Whether PyTorch says that a GPU's memory, or the machine's own, is full."""
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)


def _readable(name: str) -> str:
    """A file's name for files that are UTF-8, which names need not be."""
    return name.encode("utf-8", "replace").decode()


def _root(data: str | os.PathLike[str] | Dataset) -> str | os.PathLike[str]:
    return data.root if isinstance(data, Dataset) else data


def _resumable(folder: Path, config: TrainConfig) -> tuple[dict[str, Any], tuple[EfficientViT, Manifest]]:
    """The state to go on from, and what the run started from."""
    path = folder / STATE
    if not path.is_file():
        raise TrainError(f"{folder}: no run to go on with ({STATE} is not there); start it without --resume.")
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        before = json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8"))["settings"]
        start = load_checkpoint(folder / START)
    except Exception as error:  # a damaged file makes torch's unpickler raise whatever it stumbles over
        raise TrainError(f"{path}: damaged, or not a training state; start again in another folder.") from error
    now = json.loads(json.dumps(asdict(config)))
    changed = [key for key, value in now.items() if key not in ("workers", "save_every") and before.get(key) != value]
    if changed:
        differences = ", ".join(f"{key} was {before.get(key)}, is {now[key]}" for key in changed)
        raise TrainError(f"{folder}: cannot go on with other settings ({differences}); use the run's own.")
    return state, start


def _splits(inspection: Inspection, config: TrainConfig) -> tuple[tuple[Pair, ...], tuple[Pair, ...]]:
    usable: dict[str, tuple[Pair, ...]] = {
        split: tuple(f.pair for f in inspection.usable if f.split == split) for split in inspection.dataset.splits
    }
    root = inspection.dataset.root
    if config.train_on:
        if strangers := [split for split in config.train_on if split not in usable]:
            raise unknown("split", strangers[0], usable)
        chosen = tuple(pair for split in config.train_on for pair in usable[split])
        if not chosen:
            raise DatasetError(f"{root}: no usable pair to train on in {', '.join(config.train_on)}.")
        return chosen, usable.get("val") or chosen
    if usable.get("train") and usable.get("val"):
        return usable["train"], usable["val"]
    pairs = usable.get("train") or usable.get(ALL) or ()
    if not pairs:
        reason = inspection.problems[0] if inspection.problems else "there are none"
        raise DatasetError(f"{root}: no usable pair to train on ({reason})")
    parts = split_pairs(pairs, seed=config.seed)
    return parts["train"], parts["val"]


class _Training:
    """What a run remembers between steps."""

    def __init__(
        self,
        folder: Path,
        config: TrainConfig,
        inspection: Inspection,
        train: Sequence[Pair],
        val: Sequence[Pair],
        watch: Callable[[Event], None],
        start: EfficientViT | None,
    ) -> None:
        try:
            from accelerate import Accelerator
            from accelerate.state import AcceleratorState

            from evitseg.train.record import Record, trackers
        except ImportError as error:
            raise MissingPackageError("training", "train") from error
        self.folder, self.config, self.watch, self.val = folder, config, watch, val
        self.labels, self.inspection = inspection.labels, inspection
        mixed_precision = {"float32": "no", "bfloat16": "bf16", "float16": "fp16"}[config.precision]
        AcceleratorState._reset_state()  # another run in this process may have had another precision
        alone = not torch.accelerator.is_available()  # accelerate lets processes on CPUs work together only if told
        self.accelerator = Accelerator(
            cpu=alone, mixed_precision=mixed_precision, log_with=trackers(), project_dir=folder
        )
        processes = self.accelerator.num_processes
        if config.batch % processes:
            raise TrainError(f"a batch of {config.batch} cannot be shared by {processes} processes.")
        self.device = self.accelerator.device
        if config.precision == "float16" and self.device.type == "cpu":
            raise TrainError("float16 trains on a GPU only; take --precision bfloat16, or float32.")
        if self.device.type == "cpu":
            keep_freed_memory()
        if start is None:
            check_classes_from(config)
        network = start or starting_network(config, self.labels)
        self.start = {key: value.clone().to(self.device) for key, value in network.state_dict().items()}
        self.average, self.measured = (
            channels_last(EfficientViT(network.config).eval().requires_grad_(False), self.device) for _ in "ab"
        )
        self.average.load_state_dict(self.start)
        set_drop_path(network, config.drop_path)
        if config.freeze_backbone:
            network.backbone.requires_grad_(False)
        trained = channels_last(Trained(network, config.auxiliary > 0), self.device)
        if self.device.type == "cuda" and processes > 1:
            trained = nn.SyncBatchNorm.convert_sync_batchnorm(trained)  # type: ignore[no-untyped-call]
        optimizer = torch.optim.AdamW(_groups(trained, config.weight_decay), lr=config.learning_rate)
        self.trained, self.optimizer = self.accelerator.prepare(trained, optimizer)
        self.teachers = Teachers(config.teachers, self.labels, config.classes_from, self.device)
        weights = class_weights(_frequencies(inspection, train), config.balance).to(self.device)
        self.objective = Objective(config, weights, self.labels.ignore_index, self._mean_over_processes)
        self.crops = Crops(train, self.labels, config)
        self.batches = Batches(self.crops, config, pinned=self.device.type == "cuda")
        self.steps_per_epoch = len(batches(config, len(train), 0))
        self.step, self.best, self.seen, self.began = 0, -1.0, 0, time.perf_counter()
        self.losses = [0.0, 0]  # of this epoch: their sum, and how many
        self.preprocess = Preprocess(short_side=config.size)
        self.mean, self.std = (
            torch.tensor(values, device=self.device).view(1, 3, 1, 1) * 255
            for values in (self.preprocess.mean, self.preprocess.std)
        )
        self.record = Record(folder, self.accelerator, val, self.labels)

    def write_settings(self, data: Path) -> None:
        """What a run that goes on needs to know, before the first step."""
        if not self.accelerator.is_main_process:
            return
        sweep(self.folder)  # what a run that was killed while it wrote left
        if not (self.folder / START).exists():
            self.measured.load_state_dict(self.start)
            save_checkpoint(self.measured, self._manifest(None), self.folder / START)
        about = {"data": str(data), "evitseg": __version__, "settings": asdict(self.config)}
        with replacing(self.folder / CONFIG_FILE, durable=True) as file:
            file.write((json.dumps(about, indent=2) + "\n").encode())

    @property
    def steps(self) -> int:
        return self.steps_per_epoch * self.config.epochs

    @property
    def unwrapped(self) -> Trained:
        return self.accelerator.unwrap_model(self.trained)  # type: ignore[no-any-return]

    def run(self) -> Run:
        self.record.begin(self.step)
        for epoch in range(self.step // self.steps_per_epoch, self.config.epochs):
            for images, truth in self._rest_of(epoch):
                self._step(images, truth)
                # At an epoch's end it is measured first: a state from before would skip that.
                if self.step % self.config.save_every == 0 and self.step % self.steps_per_epoch:
                    self.save_state()
            at_end = epoch + 1 == self.config.epochs
            self._keep(epoch, self._measure(epoch) if at_end or (epoch + 1) % self.config.measure_every == 0 else None)
        self.record.end()
        best, last = self.folder / BEST, self.folder / LAST
        data = str(self.inspection.dataset.root)
        commands = (
            shlex.join(["evitseg", "eval", data, "--model", str(best)]),
            shlex.join(["evitseg", "export", str(best), "--to", "onnx"]),
        )
        if self.accelerator.is_main_process:
            with replacing(self.folder / COMMANDS) as file:
                # File systems hold bytes: a name that is not UTF-8 is written as the bytes it has.
                file.write("".join(f"{command}\n" for command in commands).encode("utf-8", "surrogateescape"))
        return Run(self.folder, best, last, self.best, tuple(self.inspection.problems), commands)

    def _rest_of(self, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        """This process's part of the epoch's batches that are still to do."""
        rank, processes = self.accelerator.process_index, self.accelerator.num_processes
        keys = batches(self.config, len(self.crops), epoch)[self.step - epoch * self.steps_per_epoch :]
        share = self.config.batch // processes
        for images, truth in self.batches.read([k[rank * share : (rank + 1) * share] for k in keys]):
            yield images.to(self.device, non_blocking=True), truth.to(self.device, non_blocking=True)

    def _step(self, images: Tensor, truth: Tensor) -> None:
        config = self.config
        rate = learning_rate(config, self.step, self.steps)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        # Everything random in a step follows from its number, so that a run goes on as if it had never stopped.
        torch.manual_seed(config.seed * 1_000_003 + self.step)
        first = int(torch.randint(config.loss_stride**2, ()))
        offset = (first // config.loss_stride, first % config.loss_stride)
        pixels = (images.to(memory_format=torch.channels_last).float() - self.mean) / self.std
        set_modes(self.unwrapped, config)
        with self.accelerator.autocast():
            answers = self.teachers(pixels, config.temperature)
            logits, auxiliary = self.trained(pixels)
        loss = self.objective(logits, auxiliary, truth.long(), answers, offset, self.step / self.steps)
        value = float(self._mean_over_processes(loss.detach()))
        if not math.isfinite(value):
            raise self._no_number("loss", value, rate)
        self.optimizer.zero_grad(set_to_none=True)
        self.accelerator.backward(loss)
        norm = self.accelerator.clip_grad_norm_(self.trained.parameters(), config.clip)
        if self.accelerator.scaler is None and not torch.isfinite(torch.as_tensor(norm)):  # a scaler skips such steps
            raise self._no_number("gradient", float(norm), rate)
        self.optimizer.step()
        self.step += 1
        self._average()
        self.seen += config.batch
        self.losses = [self.losses[0] + value, self.losses[1] + 1]
        event = self._event(value, rate)
        self.record.step(self.step, value, rate, event.pictures_per_s)
        self.watch(event)

    def _no_number(self, what: str, value: float, rate: float) -> TrainError:
        return TrainError(
            f"step {self.step + 1}: the {what} is {value}; try a lower --learning-rate (it was {rate:.1e}) "
            f"in a new run{self.how_to_start()}."
        )

    def _mean_over_processes(self, value: Tensor) -> Tensor:
        if self.accelerator.num_processes == 1:
            return value
        mean: Tensor = self.accelerator.reduce(value, "mean")
        return mean

    def how_to_start(self) -> str:
        """The end of a sentence that advises a new run: from this one's weights, if there are any yet."""
        return f", from this one's weights: --start {self.folder / LAST}" if (self.folder / LAST).exists() else ""

    def _average(self) -> None:
        # Early on the average would be mostly the random beginning: its memory grows with the steps.
        decay = min(self.config.ema, (1 + self.step) / (10 + self.step))
        current = self.unwrapped.network.state_dict()
        moving, towards = [], []
        for key, value in self.average.state_dict().items():
            if value.is_floating_point():
                moving.append(value)
                towards.append(current[key])
            else:
                value.copy_(current[key])
        torch._foreach_lerp_(moving, towards, 1 - decay)

    def _event(self, loss: float, rate: float, report: Report | None = None) -> Event:
        speed = self.seen / max(time.perf_counter() - self.began, 1e-9)
        epoch = min((self.step - 1) // self.steps_per_epoch + 1, self.config.epochs)
        return Event(self.step, self.steps, epoch, self.config.epochs, loss, rate, speed, report)

    @torch.inference_mode()
    def _mask(self, picture: Picture) -> np.ndarray[Any, np.dtype[np.integer]]:
        image = torch.from_numpy(self.preprocess.apply(picture).copy()).to(self.device)
        pixels = (image.permute(2, 0, 1)[None].float() - self.mean) / self.std
        full = F.interpolate(self.measured(pixels), picture.shape[:2], mode="bilinear", align_corners=False)
        return full[0].argmax(0).cpu().numpy().astype(self.labels.dtype)

    def _measure(self, epoch: int) -> Report:
        """The kept weights on the validation pictures, every process doing its part."""
        share = self.config.keep_start
        self.measured.load_state_dict(mixed([self.average.state_dict(), self.start], [1 - share, share]))
        rank, processes = self.accelerator.process_index, self.accelerator.num_processes
        if processes > 1:
            from accelerate.utils import broadcast

            # Without it batch norm's statistics would be every process's own.
            self.measured.load_state_dict(broadcast(self.measured.state_dict()))
        outcomes = [measured(self._mask, pair, self.labels) for pair in self.val[rank::processes]]
        if processes > 1:
            from accelerate.utils import gather_object

            outcomes = gather_object(outcomes)
        report = summarise(outcomes, self.labels, {"epoch": str(epoch + 1)})
        if report.skipped:
            raise TrainError(
                f"{report.skipped[0]} It was readable when the run began; mend it, and go on with --resume."
            )
        return report

    def _keep(self, epoch: int, report: Report | None) -> None:
        """After an epoch: the log, the checkpoints, the state to go on from."""
        rate = learning_rate(self.config, self.step, self.steps)
        total, count = self.losses
        loss = total / max(1, count)
        self.losses = [0.0, 0]
        event = self._event(loss, rate, report)
        line = {
            "epoch": epoch + 1, "step": self.step, "loss": loss, "learning_rate": rate,
            "pictures_per_s": round(event.pictures_per_s, 2),
        }  # fmt: skip
        if report is not None:
            line |= {"miou": report.miou, "iou": report.to_dict()["iou"]}
        better = report is not None and report.miou > self.best
        if report is not None and better:
            self.best = report.miou
        if self.accelerator.is_main_process:
            for name, due in ((LAST, True), (BEST, better)):
                if report is not None and due:
                    save_checkpoint(self.measured, self._manifest(report), self.folder / name)
            self.record.epoch(line, None if report is None else self._mask)
            self.save_state()
        self.watch(event)

    def _manifest(self, report: Report | None) -> Manifest:
        accuracy: tuple[Accuracy, ...] = ()
        if report is not None:
            ious = zip(self.labels.names, report.iou.tolist(), strict=True)
            seen = "pictures that were also trained on" if set(self.val) & set(self.crops.pairs) else "held out"
            measured_on = Accuracy(
                data=f"validation, {len(report.pictures)} pictures, {seen}",
                protocol="one confusion matrix over the split, whole pictures",
                miou=round(100 * report.miou, 2),
                iou={name: round(100 * value, 2) for name, value in ious if not math.isnan(value)},
                pictures=len(report.pictures),
                settings={"engine": "PyTorch", "precision": "float32"},
            )
            accuracy = (measured_on,)
        return Manifest(
            name=f"{self.config.variant}-{_readable(self.inspection.dataset.root.name)}",
            model=self.average.config,
            labels=self.labels,
            preprocess=self.preprocess,
            training=Training(
                data=f"{_readable(self.inspection.dataset.root.name)}: {len(self.crops)} pictures",
                licence="yours to say",
                recipe=f"evitseg {__version__}, step {self.step} of {self.steps}, start {self.config.start}",
            ),
            accuracy=accuracy,
            evitseg_version=__version__,
            reading=self.config.reading,
        )

    def save_state(self) -> None:
        """Everything the next step depends on, in one file that is whole or the one before."""
        if not self.accelerator.is_main_process:
            return
        content = io.BytesIO()
        scaler = self.accelerator.scaler
        torch.save(
            {
                "step": self.step,
                "data": self._data(),
                "best": self.best,
                "losses": self.losses,
                "trained": self.unwrapped.state_dict(),
                "average": self.average.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "scaler": None if scaler is None else scaler.state_dict(),
            },
            content,
        )
        with replacing(self.folder / STATE, durable=True) as file:
            file.write(content.getbuffer())

    def _data(self) -> dict[str, Any]:
        """What pictures and teachers are known by: how many, and a digest of pixels, masks and files."""
        chosen = {*self.crops.pairs, *self.val}
        contents = [[f.pair.picture.name, f.digest, f.mask_digest] for f in self.inspection.usable if f.pair in chosen]
        contents.append([file_sha256(name) for name in self.config.teachers if Path(name).is_file()])
        return {"pictures": len(self.crops), "digest": hashlib.sha256(json.dumps(contents).encode()).hexdigest()}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from what `save_state` wrote. Raises: TrainError where it is another network's, or the data changed."""
        then, now = state.get("data"), self._data()
        if then != now:
            pictures = then.get("pictures") if isinstance(then, dict) else "other"
            raise TrainError(
                f"{self.folder}: cannot go on, the data changed: {pictures} pictures to train on then, "
                f"{now['pictures']} now{', with other content' if pictures == now['pictures'] else ''}; "
                f"put them back, or begin a new run{self.how_to_start()}."
            )
        try:
            self.unwrapped.load_state_dict(state["trained"])
            self.average.load_state_dict(state["average"])
            self.optimizer.load_state_dict(state["optimizer"])
            if self.accelerator.scaler is not None and state["scaler"] is not None:
                self.accelerator.scaler.load_state_dict(state["scaler"])
            self.step, self.best = int(state["step"]), float(state["best"])
            self.losses = [float(state["losses"][0]), int(state["losses"][1])]
        except (KeyError, RuntimeError, ValueError) as error:
            raise TrainError(
                f"{self.folder / STATE}: not the state of this run; start again in another folder."
            ) from error


def keep_freed_memory() -> None:
    """Ask the C library to keep large freed blocks for this process instead of giving them back to the system.

    A step frees and asks again for the same hundreds of megabytes; fetching their pages anew took a quarter of its
    time on a CPU (benchmarks/training.py). Only glibc has the switch; elsewhere nothing happens.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError, TypeError):
        return
    trim_threshold, mmap_max = -1, -4  # malloc.h
    mallopt(mmap_max, 0)
    mallopt(trim_threshold, -1)


def _frequencies(inspection: Inspection, train: Sequence[Pair]) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Share of every class in the pictures that are trained on, and in no other."""
    chosen = set(train)
    counts = np.sum([f.counts for f in inspection.usable if f.pair in chosen], axis=0, dtype=np.float64)
    shares: np.ndarray[Any, np.dtype[np.float64]] = counts / max(counts.sum(), 1.0)
    return shares


def learning_rate(config: TrainConfig, step: int, steps: int) -> float:
    """Of the step that comes next: rises linearly, then falls to zero as a cosine does."""
    rising = max(1, round(config.warm_up * steps))
    if step < rising:
        return config.learning_rate * (step + 1) / rising
    share = (step - rising) / max(1, steps - rising)
    return config.learning_rate * 0.5 * (1 + math.cos(math.pi * share))


def class_weights(frequencies: np.ndarray[Any, np.dtype[np.float64]], balance: float) -> Tensor:
    """(1 / ln(1.10 + share)) ** balance for every class, with a mean of 1 over the pixels (arXiv:1606.02147)."""
    weights = (1 / np.log(1.10 + frequencies)) ** balance
    return torch.from_numpy(weights / max((weights * frequencies).sum(), 1e-9)).float()


def _groups(network: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Parameters with weight decay, and those without: biases and normalisation."""
    trained = [p for p in network.parameters() if p.requires_grad]
    return [
        {"params": [p for p in trained if p.ndim > 1], "weight_decay": weight_decay},
        {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
    ]
