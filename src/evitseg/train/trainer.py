"""The training loop: steps, moving average, measuring, and checkpoints that lose nothing."""

from __future__ import annotations

import io
import json
import math
import os
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
from evitseg.config import model_config
from evitseg.dataset import ALL, Dataset, Inspection, Pair, find_dataset, inspect, split_pairs
from evitseg.errors import DatasetError, MissingPackageError, TrainError, WeightsError
from evitseg.files import replacing
from evitseg.image import Picture, Preprocess
from evitseg.labels import LabelSpace
from evitseg.manifest import Accuracy, Manifest, Training
from evitseg.metrics import Report, evaluate
from evitseg.model.network import EfficientViT
from evitseg.model.weights import load_checkpoint, load_official, published_name, save_checkpoint
from evitseg.train.config import CONFIG_FILE, FRESH, TrainConfig
from evitseg.train.data import Crops, batches, jittered, loader

BEST, LAST, STATE = "best.safetensors", "last.safetensors", "state.pt"


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
    """

    folder: Path
    best: Path
    last: Path
    miou: float
    left_out: tuple[str, ...]


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
    state = _resumable(folder, config) if resume else None
    dataset = data if isinstance(data, Dataset) else find_dataset(data, labels)
    inspection = inspect(dataset, check_workers)
    if any(finding.stranger for finding in inspection.findings):
        raise DatasetError(f"{next(f.problem for f in inspection.findings if f.stranger)} Nothing was trained.")
    train, val = _splits(inspection, config)
    _write_json(folder / CONFIG_FILE, asdict(config) | {"data": str(dataset.root), "evitseg": __version__})
    training = _Training(folder, config, inspection, train, val, watch)
    if state is not None:
        training.restore(state)
    try:
        return training.run()
    except torch.OutOfMemoryError as error:
        raise TrainError(
            f"the GPU's memory does not hold a batch of {config.batch} at {config.crop[0]}×{config.crop[1]}; "
            f"halve --batch or --crop in a new run{training.how_to_start()}."
        ) from error


def _resumable(folder: Path, config: TrainConfig) -> dict[str, Any]:
    path = folder / STATE
    if not path.is_file():
        raise TrainError(f"{folder}: no run to go on with ({STATE} is not there); start it without --resume.")
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        before = json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8"))
    except Exception as error:  # a damaged file makes torch's unpickler raise whatever it stumbles over
        raise TrainError(f"{path}: damaged, or not a training state; start again in another folder.") from error
    now = json.loads(json.dumps(asdict(config)))
    changed = [key for key, value in now.items() if key not in ("workers", "save_every") and before.get(key) != value]
    if changed:
        differences = ", ".join(f"{key} was {before.get(key)}, is {now[key]}" for key in changed)
        raise TrainError(f"{folder}: cannot go on with other settings ({differences}); use the run's own.")
    return state


def _splits(inspection: Inspection, config: TrainConfig) -> tuple[tuple[Pair, ...], tuple[Pair, ...]]:
    usable: dict[str, tuple[Pair, ...]] = {
        split: tuple(f.pair for f in inspection.usable if f.split == split) for split in inspection.dataset.splits
    }
    root = inspection.dataset.root
    if usable.get("train") and usable.get("val"):
        return usable["train"], usable["val"]
    pairs = usable.get("train") or usable.get(ALL) or ()
    if not pairs:
        reason = inspection.problems[0] if inspection.problems else "there are none"
        raise DatasetError(f"{root}: no usable pair to train on ({reason})")
    parts = split_pairs(pairs, seed=config.seed)
    return parts["train"], parts["val"]


def _write_json(path: Path, content: Any) -> None:
    with replacing(path) as file:
        file.write((json.dumps(content, indent=2) + "\n").encode())


def starting_network(config: TrainConfig, num_classes: int) -> EfficientViT:
    """The network of a run before its first step.

    From a start, the backbone is taken whole; of the head, every part whose shape is the same. Where the number of
    classes differs that is all but the last layer.

    Raises: WeightsError where the start has another backbone.
    """
    torch.manual_seed(config.seed)
    model = EfficientViT(model_config(config.variant, num_classes))
    if config.start == FRESH:
        return model
    if Path(config.start).exists():
        source, _ = load_checkpoint(config.start)
    else:
        try:
            source = load_official(published_name(config.start))
        except WeightsError as error:
            raise WeightsError(f"{error} Or train from random weights: --start none.") from error
    own, given = model.state_dict(), source.state_dict()
    fits = {key for key in own if key in given and given[key].shape == own[key].shape}
    lacking = [key for key in own if key.startswith("backbone.") and key not in fits]
    if lacking:
        raise WeightsError(
            f"{config.start}: its backbone is {source.config.variant}, the run's {config.variant}; "
            f"train with --variant {source.config.variant}, or start from other weights."
        )
    model.load_state_dict({key: given[key] if key in fits else own[key] for key in own})
    return model


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
    ) -> None:
        try:
            from accelerate import Accelerator
        except ImportError as error:
            raise MissingPackageError("training", "train") from error
        self.folder, self.config, self.watch, self.val = folder, config, watch, val
        self.labels, self.inspection = inspection.labels, inspection
        mixed = {"float32": "no", "bfloat16": "bf16", "float16": "fp16"}[config.precision]
        self.accelerator = Accelerator(mixed_precision=mixed)
        if self.accelerator.num_processes > 1 and config.batch % self.accelerator.num_processes:
            raise TrainError(
                f"a batch of {config.batch} cannot be shared by {self.accelerator.num_processes} processes."
            )
        network = starting_network(config, len(self.labels.classes))
        if config.freeze_backbone:
            network.backbone.requires_grad_(False)
        self.average = starting_network(config, len(self.labels.classes)).eval().requires_grad_(False)
        self.average.to(self.accelerator.device)
        optimizer = torch.optim.AdamW(_groups(network, config.weight_decay), lr=config.learning_rate)
        self.network, self.optimizer = self.accelerator.prepare(network, optimizer)
        self.crops = Crops(train, self.labels, config)
        self.steps_per_epoch = len(batches(config, len(train), 0))
        self.weights = class_weights(inspection.frequencies(), config.balance).to(self.accelerator.device)
        self.step, self.best, self.seen, self.began = 0, -1.0, 0, time.perf_counter()
        preprocess = Preprocess(short_side=config.size)
        self.mean, self.std = (
            torch.tensor(values, device=self.accelerator.device).view(1, 3, 1, 1)
            for values in (preprocess.mean, preprocess.std)
        )
        self.preprocess = preprocess

    @property
    def steps(self) -> int:
        return self.steps_per_epoch * self.config.epochs

    def run(self) -> Run:
        for epoch in range(self.step // self.steps_per_epoch, self.config.epochs):
            loss = math.nan
            for images, truth in self._rest_of(epoch):
                loss = self._step(images, truth)
                if self.step % self.config.save_every == 0:
                    self.save_state()
            if (epoch + 1) % self.config.measure_every == 0 or epoch + 1 == self.config.epochs:
                self._keep(epoch, loss, self._measure(epoch))
        return Run(self.folder, self.folder / BEST, self.folder / LAST, self.best, tuple(self.inspection.problems))

    def _rest_of(self, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        """This process's part of the epoch's batches that are still to do."""
        rank, processes = self.accelerator.process_index, self.accelerator.num_processes
        keys = batches(self.config, len(self.crops), epoch)[self.step - epoch * self.steps_per_epoch :]
        share = self.config.batch // processes
        for images, truth in loader(self.crops, [k[rank * share : (rank + 1) * share] for k in keys], self.config):
            yield images.to(self.accelerator.device), truth.to(self.accelerator.device)

    def _step(self, images: Tensor, truth: Tensor) -> float:
        rate = learning_rate(self.config, self.step, self.steps)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        generator = torch.Generator().manual_seed(self.config.seed * 1_000_003 + self.step)
        pixels = (jittered(images, self.config, generator) - self.mean) / self.std
        self.network.train()
        if self.config.freeze_backbone:
            self.accelerator.unwrap_model(self.network).backbone.eval()  # nor do its statistics change
        with self.accelerator.autocast():
            logits = self.network(pixels)
        loss = cross_entropy(logits.float(), truth, self.weights, self.labels.ignore_index, self.config.label_smoothing)
        if not torch.isfinite(loss):
            raise TrainError(
                f"step {self.step + 1}: the loss is {loss.item()}; try a lower --learning-rate (it was {rate:.1e}) "
                f"in a new run{self.how_to_start()}."
            )
        self.optimizer.zero_grad(set_to_none=True)
        self.accelerator.backward(loss)
        self.accelerator.clip_grad_norm_(self.network.parameters(), self.config.clip)
        self.optimizer.step()
        self.step += 1
        self._average()
        self.seen += len(images) * self.accelerator.num_processes
        value = float(loss.detach())
        self.watch(self._event(value, rate))
        return value

    def how_to_start(self) -> str:
        """The end of a sentence that advises a new run: from this one's weights, if there are any yet."""
        return f", from this one's weights: --start {self.folder / LAST}" if (self.folder / LAST).exists() else ""

    def _average(self) -> None:
        # Early on the average would be mostly the random beginning: its memory grows with the steps.
        decay = min(self.config.ema, (1 + self.step) / (10 + self.step))
        current = self.accelerator.unwrap_model(self.network).state_dict()
        for key, value in self.average.state_dict().items():
            if value.is_floating_point():
                value.lerp_(current[key], 1 - decay)
            else:
                value.copy_(current[key])

    def _event(self, loss: float, rate: float, report: Report | None = None) -> Event:
        speed = self.seen / max(time.perf_counter() - self.began, 1e-9)
        epoch = min((self.step - 1) // self.steps_per_epoch + 1, self.config.epochs)
        return Event(self.step, self.steps, epoch, self.config.epochs, loss, rate, speed, report)

    @torch.inference_mode()
    def _mask(self, picture: Picture) -> np.ndarray[Any, np.dtype[np.integer]]:
        image = torch.from_numpy(self.preprocess.apply(picture).copy()).to(self.accelerator.device)
        pixels = (image.permute(2, 0, 1)[None].float() / 255 - self.mean) / self.std
        full = F.interpolate(self.average(pixels), picture.shape[:2], mode="bilinear", align_corners=False)
        return full[0].argmax(0).cpu().numpy().astype(self.labels.dtype)

    def _measure(self, epoch: int) -> Report:
        return evaluate(self._mask, self.val, self.labels, settings={"epoch": str(epoch + 1)})

    def _keep(self, epoch: int, loss: float, report: Report) -> None:
        """After an epoch: the log, the checkpoints, the state to go on from."""
        if self.accelerator.is_main_process:
            manifest = self._manifest(report)
            save_checkpoint(self.average, manifest, self.folder / LAST)
            if report.miou > self.best:
                self.best = report.miou
                save_checkpoint(self.average, manifest, self.folder / BEST)
            self.save_state()
            line = {
                "epoch": epoch + 1,
                "step": self.step,
                "loss": loss,
                "miou": report.miou,
                "iou": report.to_dict()["iou"],
            }
            with open(self.folder / "log.jsonl", "a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
        self.watch(self._event(loss, learning_rate(self.config, self.step, self.steps), report))

    def _manifest(self, report: Report) -> Manifest:
        ious = zip(self.labels.names, report.iou.tolist(), strict=True)
        return Manifest(
            name=f"{self.config.variant}-{self.inspection.dataset.root.name}",
            model=self.average.config,
            labels=self.labels,
            preprocess=self.preprocess,
            training=Training(
                data=f"{self.inspection.dataset.root.name}: {len(self.crops)} pictures",
                licence="yours to say",
                recipe=f"evitseg {__version__}, step {self.step} of {self.steps}, start {self.config.start}",
            ),
            accuracy=(
                Accuracy(
                    data=f"validation, {len(report.pictures)} pictures",
                    protocol="one confusion matrix over the split, whole pictures",
                    miou=round(100 * report.miou, 2),
                    iou={name: round(100 * value, 2) for name, value in ious if not math.isnan(value)},
                    pictures=len(report.pictures),
                    settings={"engine": "PyTorch", "precision": "float32"},
                ),
            ),
            evitseg_version=__version__,
        )

    def save_state(self) -> None:
        """Everything the next step depends on, in one file that is whole or the one before."""
        if not self.accelerator.is_main_process:
            return
        content = io.BytesIO()
        torch.save(
            {
                "step": self.step,
                "pictures": len(self.crops),
                "best": self.best,
                "network": self.accelerator.unwrap_model(self.network).state_dict(),
                "average": self.average.state_dict(),
                "optimizer": self.optimizer.state_dict(),
            },
            content,
        )
        with replacing(self.folder / STATE) as file:
            file.write(content.getbuffer())

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from what `save_state` wrote. Raises: TrainError where it is another network's, or the data changed."""
        if state.get("pictures") != len(self.crops):
            raise TrainError(
                f"{self.folder}: cannot go on, the data changed: {state.get('pictures')} pictures to train on then, "
                f"{len(self.crops)} now; put them back, or begin a new run{self.how_to_start()}."
            )
        try:
            self.accelerator.unwrap_model(self.network).load_state_dict(state["network"])
            self.average.load_state_dict(state["average"])
            self.optimizer.load_state_dict(state["optimizer"])
            self.step, self.best = int(state["step"]), float(state["best"])
        except (KeyError, RuntimeError, ValueError) as error:
            raise TrainError(
                f"{self.folder / STATE}: not the state of this run; start again in another folder."
            ) from error


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


def cross_entropy(logits: Tensor, truth: Tensor, weights: Tensor, ignore_index: int, smoothing: float) -> Tensor:
    """Mean over the counted pixels, of logits up-sampled to the truth's size.

    Args:
        logits: (batch, classes, h, w); truth: (batch, H, W) class indices; weights: (classes,).

    Returns: a number; 0 where no pixel counts.
    """
    full = F.interpolate(logits, truth.shape[-2:], mode="bilinear", align_corners=False)
    counted = truth != ignore_index
    if not counted.any():
        return full.sum() * 0
    return F.cross_entropy(full, truth, weights, ignore_index=ignore_index, label_smoothing=smoothing)


def _groups(network: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Parameters with weight decay, and those without: biases and normalisation."""
    trained = [p for p in network.parameters() if p.requires_grad]
    return [
        {"params": [p for p in trained if p.ndim > 1], "weight_decay": weight_decay},
        {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
    ]
