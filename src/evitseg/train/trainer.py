"""The training loop: steps, moving average, measuring, and checkpoints that lose nothing."""

from __future__ import annotations

import hashlib
import io
import json
import math
import shlex
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from evitseg._version import __version__
from evitseg.data.inspect import Inspection
from evitseg.data.lists import Pair
from evitseg.errors import ImageError, MissingPackageError, TrainError
from evitseg.evaluation.evaluate import Report, count_pair, pair_predictor, summarise
from evitseg.image import ImageArray
from evitseg.manifest import Accuracy, Manifest, Training
from evitseg.model.checkpoints import average_weights, save_checkpoint
from evitseg.model.network import EfficientViT
from evitseg.model.published import file_sha256
from evitseg.preprocess import Preprocess
from evitseg.system.files import replacing, sweep
from evitseg.train.config import CONFIG_FILE, TrainConfig
from evitseg.train.data import Batches, Crops, batches
from evitseg.train.losses import Objective, class_weights, frequencies
from evitseg.train.memory import keep_freed_memory
from evitseg.train.network import (
    Teachers,
    Trained,
    channels_last,
    set_drop_path,
    set_modes,
)
from evitseg.train.norm import estimate_over
from evitseg.train.optimizer import learning_rate, parameter_groups
from evitseg.train.record import Event, Record, Run, trackers
from evitseg.train.state import BEST, LAST, START, STATE, damaged

COMMANDS = "commands.txt"


class Trainer:
    """What a run remembers between steps."""

    def __init__(
        self,
        folder: Path,
        config: TrainConfig,
        inspection: Inspection,
        train: Sequence[Pair],
        val: Sequence[Pair],
        watch: Callable[[Event], None],
        start: EfficientViT,
        chosen: Sequence[str],
    ) -> None:
        try:
            from accelerate import Accelerator
            from accelerate.state import AcceleratorState

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
        network, self.chosen = start, chosen
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
        optimizer = torch.optim.AdamW(parameter_groups(trained, config.weight_decay), lr=config.learning_rate)
        self.trained, self.optimizer = self.accelerator.prepare(trained, optimizer)
        self.teachers = Teachers(config.teachers, self.labels, config.classes_from, self.device)
        weights = class_weights(frequencies(inspection.usable, train), config.balance).to(self.device)
        self.objective = Objective(config, weights, self.labels.ignore_index, self._mean_over_processes)
        self.crops = Crops(train, self.labels, config)
        self.batches = Batches(self.crops, config, pinned=self.device.type == "cuda")
        self.steps_per_epoch = len(batches(config, len(train), 0))
        self.step, self.best, self.seen, self.began = 0, -1.0, 0, time.perf_counter()
        self.start_miou = self.last_miou = math.nan
        self.saved: int | None = None  # the step of the state on the disk
        self.losses = [0.0, 0]  # of this epoch: their sum, and how many
        self.preprocess = Preprocess(short_side=config.size or None)
        self.mean, self.std = (
            torch.tensor(values, device=self.device).view(1, 3, 1, 1) * 255
            for values in (self.preprocess.mean, self.preprocess.std)
        )
        self.record = Record(folder, self.accelerator, val, self.labels)

    def write_settings(self, data: Path, new: bool) -> None:
        """What a run that goes on needs to know, before the first step.

        Args:
            new: the run's start belongs to these settings; one that another run left is replaced.
        """
        if not self.accelerator.is_main_process:
            return
        sweep(self.folder)  # what a run that was killed while it wrote left
        if new:
            self.measured.load_state_dict(self.start)
            save_checkpoint(self.measured, self._manifest(None), self.folder / START)
        about = {
            "data": str(data), "evitseg": __version__, "images": len(self.crops), "steps": self.steps,
            "chosen": list(self.chosen), "settings": asdict(self.config),
        }  # fmt: skip
        with replacing(self.folder / CONFIG_FILE, durable=True) as file:
            file.write((json.dumps(about, indent=2) + "\n").encode())

    def what_is_left(self) -> str:
        """A sentence for a run that is interrupted."""
        if self.saved is None:
            return f"interrupted before the first checkpoint of {self.folder}: start the run again without --resume."
        epoch = self.saved // self.steps_per_epoch
        return (
            f"interrupted at step {self.step} of {self.steps}. {self.folder} holds the state after step {self.saved} "
            f"(epoch {epoch} of {self.config.epochs}); --resume continues from there."
        )

    @property
    def steps(self) -> int:
        return self.steps_per_epoch * self.config.epochs

    @property
    def unwrapped(self) -> Trained:
        return self.accelerator.unwrap_model(self.trained)  # type: ignore[no-any-return]

    def run(self) -> Run:
        self.record.begin(self.step, new=self.saved is None)
        if self.saved is None:
            self._keep_start()
        for epoch in range(self.step // self.steps_per_epoch, self.config.epochs):
            for images, truth in self._rest_of(epoch):
                self._step(images, truth)
                # At an epoch's end it is measured first: a state from before would skip that.
                if self.step % self.config.save_every == 0 and self.step % self.steps_per_epoch:
                    self.save_state()
            at_end = epoch + 1 == self.config.epochs
            self._keep(epoch, due=at_end or (epoch + 1) % self.config.measure_every == 0)
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
        problems = tuple(self.inspection.problems)
        return Run(self.folder, best, last, self.best, self.start_miou, self.last_miou, problems, commands)

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
        self.record.step(self.step, value, rate, event.images_per_s)
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

    def _event(self, loss: float, rate: float, report: Report | None = None, epoch_done: bool = False) -> Event:
        speed = self.seen / max(time.perf_counter() - self.began, 1e-9)
        epoch = min((self.step - 1) // self.steps_per_epoch + 1, self.config.epochs)
        return Event(self.step, self.steps, epoch, self.config.epochs, loss, rate, speed, report, epoch_done)

    @torch.inference_mode()
    def _mask(self, pixels: ImageArray) -> np.ndarray[Any, np.dtype[np.integer]]:
        image = torch.from_numpy(self.preprocess.apply(pixels).copy()).to(self.device)
        batch = (image.permute(2, 0, 1)[None].float() - self.mean) / self.std
        full = F.interpolate(self.measured(batch), pixels.shape[:2], mode="bilinear", align_corners=False)
        return full[0].argmax(0).cpu().numpy().astype(self.labels.dtype)

    def _load_kept(self) -> None:
        """Into `measured`: the weights that are kept, with batch norm's statistics of their own."""
        share = self.config.keep_start
        self.measured.load_state_dict(average_weights([self.average.state_dict(), self.start], [1 - share, share]))
        if self.config.freeze_norm:
            return
        most_pixels = self.config.batch * self.config.crop[0] * self.config.crop[1]
        frozen = "backbone." if self.config.freeze_backbone else None
        try:
            estimate_over(
                self.measured, self.crops.pairs, self.preprocess, most_pixels,
                lambda name: frozen is not None and name.startswith(frozen),
            )  # fmt: skip
        except ImageError as error:
            raise self._unreadable(str(error)) from error

    def _measure(self, epoch: int) -> Report:
        """The weights in `measured` on the validation images, every process doing its part."""
        rank, processes = self.accelerator.process_index, self.accelerator.num_processes
        if processes > 1:
            from accelerate.utils import broadcast

            # Without it batch norm's statistics would be every process's own.
            self.measured.load_state_dict(broadcast(self.measured.state_dict()))
        predict = pair_predictor(self._mask)
        outcomes = [(pair, count_pair(predict, pair, self.labels)) for pair in self.val[rank::processes]]
        if processes > 1:
            from accelerate.utils import gather_object

            outcomes = gather_object(outcomes)
        report = summarise(outcomes, self.labels, {"epoch": str(epoch)})
        if report.skipped:
            raise self._unreadable(report.skipped[0])
        return report

    def _unreadable(self, sentence: str) -> TrainError:
        return TrainError(f"{sentence} It was readable when the run began; mend it, and go on with --resume.")

    def _keep_start(self) -> None:
        """Before the first step: the start, measured as it is, is the best so far."""
        self.measured.load_state_dict(self.start)
        report = self._measure(0)
        self.best = self.start_miou = self.last_miou = report.miou
        line = {"epoch": 0, "step": 0, "miou": report.miou, "iou": report.to_dict()["iou"]}
        if self.accelerator.is_main_process:
            save_checkpoint(self.measured, self._manifest(report), self.folder / BEST)
            self.record.epoch(line, self._mask)
        self.save_state()
        self.watch(self._event(math.nan, 0.0, report))

    def _keep(self, epoch: int, due: bool) -> None:
        """After an epoch: the log, the checkpoints, the state to go on from.

        Args:
            due: for a measurement.
        """
        report = None
        if due:
            self._load_kept()
            report = self._measure(epoch + 1)
        rate = learning_rate(self.config, self.step, self.steps)
        total, count = self.losses
        loss = total / max(1, count)
        self.losses = [0.0, 0]
        event = self._event(loss, rate, report, epoch_done=True)
        line: dict[str, object] = {
            "epoch": epoch + 1, "step": self.step, "loss": loss, "learning_rate": rate,
            "images_per_s": round(event.images_per_s, 2),
        }  # fmt: skip
        if report is not None:
            line |= {"miou": report.miou, "iou": report.to_dict()["iou"]}
            self.last_miou = report.miou
        better = report is not None and report.miou > self.best
        if report is not None and better:
            self.best = report.miou
        if self.accelerator.is_main_process:
            for name, wanted in ((LAST, True), (BEST, better)):
                if report is not None and wanted:
                    save_checkpoint(self.measured, self._manifest(report), self.folder / name)
            self.record.epoch(line, None if report is None else self._mask)
        self.save_state()
        self.watch(event)

    def _manifest(self, report: Report | None) -> Manifest:
        accuracy: tuple[Accuracy, ...] = ()
        if report is not None:
            ious = zip(self.labels.names, report.iou.tolist(), strict=True)
            seen = "images that were also trained on" if set(self.val) & set(self.crops.pairs) else "held out"
            measured_on = Accuracy(
                data=f"validation, {len(report.images)} images, {seen}",
                protocol="one confusion matrix over the split, whole images",
                miou=round(100 * report.miou, 2),
                iou={name: round(100 * value, 2) for name, value in ious if not math.isnan(value)},
                images=len(report.images),
                settings={"engine": "PyTorch", "precision": "float32"},
            )
            accuracy = (measured_on,)
        return Manifest(
            name=f"{self.config.variant}-{_readable(self.inspection.dataset.root.name)}",
            model=self.average.config,
            labels=self.labels,
            preprocess=self.preprocess,
            training=Training(
                data=f"{_readable(self.inspection.dataset.root.name)}: {len(self.crops)} images",
                licence="yours to say",
                recipe=f"evitseg {__version__}, step {self.step} of {self.steps}, start {self.config.start}",
            ),
            accuracy=accuracy,
            evitseg_version=__version__,
            reading=self.config.reading,
        )

    def save_state(self) -> None:
        """Everything the next step depends on, in one file that is whole or the one before."""
        self.saved = self.step
        if not self.accelerator.is_main_process:
            return
        content = io.BytesIO()
        scaler = self.accelerator.scaler
        torch.save(
            {
                "step": self.step,
                "data": self._data(),
                "best": self.best,
                "start": self.start_miou,
                "last": self.last_miou,
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
        """What images and teachers are known by: how many, and a digest of pixels, masks and files."""
        chosen = {*self.crops.pairs, *self.val}
        contents = [[f.pair.image.name, f.digest, f.mask_digest] for f in self.inspection.usable if f.pair in chosen]
        contents.append([file_sha256(name) for name in self.config.teachers if Path(name).is_file()])
        return {"images": len(self.crops), "digest": hashlib.sha256(json.dumps(contents).encode()).hexdigest()}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from what `save_state` wrote. Raises: TrainError where it is another network's, or the data changed."""
        then, now = state.get("data"), self._data()
        if then != now:
            images = then.get("images") if isinstance(then, dict) else "other"
            raise TrainError(
                f"{self.folder}: cannot go on, the data changed: {images} images to train on then, "
                f"{now['images']} now{', with other content' if images == now['images'] else ''}; "
                f"put them back, or begin a new run{self.how_to_start()}."
            )
        try:
            self.unwrapped.load_state_dict(state["trained"])
            self.average.load_state_dict(state["average"])
            self.optimizer.load_state_dict(state["optimizer"])
            if self.accelerator.scaler is not None and state["scaler"] is not None:
                self.accelerator.scaler.load_state_dict(state["scaler"])
            self.step, self.best = state["step"], state["best"]
            self.start_miou, self.last_miou, self.losses = state["start"], state["last"], list(state["losses"])
        except (KeyError, RuntimeError, ValueError, TypeError, AttributeError, IndexError) as error:
            raise damaged(self.folder) from error
        if self.step > self.steps or not self._fits(self.optimizer.state_dict()):
            raise damaged(self.folder)
        self.saved = self.step

    def _fits(self, state: dict[str, Any]) -> bool:
        """Whether an optimizer's moments have the shapes of the parameters: it does not look itself."""
        shapes = [p.shape for group in self.optimizer.param_groups for p in group["params"]]
        return all(
            at < len(shapes) and all(m.ndim == 0 or m.shape == shapes[at] for m in moments.values())
            for at, moments in state["state"].items()
        )


def _readable(name: str) -> str:
    """A file's name for files that are UTF-8, which names need not be."""
    return name.encode("utf-8", "replace").decode()
