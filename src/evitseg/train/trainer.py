"""The training loop: steps, epochs, evaluations and checkpoints."""

from __future__ import annotations

import hashlib
import json
import math
import shlex
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from evitseg._version import __version__
from evitseg.data.inspect import Inspection
from evitseg.data.lists import Pair
from evitseg.errors import ConfigError, TrainError
from evitseg.evaluation.evaluate import Report
from evitseg.manifest import Manifest, Training
from evitseg.model.checkpoints import save_checkpoint
from evitseg.model.network import EfficientViT
from evitseg.system.files import file_sha256, replacing, sweep
from evitseg.system.parallel import interrupts_deferred
from evitseg.train.allocator import keep_freed_memory
from evitseg.train.augment import rare_classes
from evitseg.train.config import TrainConfig
from evitseg.train.crops import Batches, Crops, batch_keys
from evitseg.train.distill import Teachers, widths_of
from evitseg.train.losses import Objective, class_frequencies, class_weights
from evitseg.train.optimizer import learning_rate, moving_average, parameter_groups
from evitseg.train.processes import end_run, start_processes
from evitseg.train.quantised import QuantisedNetwork, blank, plain_network
from evitseg.train.resume import (
    BEST,
    LAST,
    START,
    RunProgress,
    TrainingParts,
    check_same_data,
    restore_state,
    save_state,
)
from evitseg.train.run_log import Event, Run, RunLog
from evitseg.train.settings import CONFIG_FILE
from evitseg.train.validation import Validation, normalisation
from evitseg.train.wrapper import TrainingWrapper, channels_last, set_drop_path, set_training_mode

COMMANDS = "commands.txt"


class Trainer:
    """A run between two steps.

    Args:
        config: without settings left to be derived.
        train, val: pairs to train on and to evaluate on.
        watch: called with every event.
        network: the start.
        chosen: keys of the settings that were derived from the data, for the run's folder.
    """

    def __init__(
        self,
        folder: Path,
        config: TrainConfig,
        inspection: Inspection,
        train: Sequence[Pair],
        val: Sequence[Pair],
        watch: Callable[[Event], None],
        network: EfficientViT | QuantisedNetwork,
        chosen: Sequence[str],
    ) -> None:
        self.folder, self.config, self.inspection, self.watch, self.chosen = folder, config, inspection, watch, chosen
        self.labels = labels = inspection.labels
        self.accelerator = start_processes(folder, config.precision)
        self.device = self.accelerator.device
        processes = self.accelerator.num_processes
        if config.batch_size % processes:
            raise TrainError(f"a batch of {config.batch_size} cannot be divided among {processes} processes.")
        if config.precision == "float16" and self.device.type == "cpu":
            raise TrainError("float16 trains only on a GPU; use --precision bfloat16 or float32.")
        if self.device.type == "cpu":
            keep_freed_memory()

        self.validation = Validation(config, labels, network, train, val, self.accelerator)
        # Built, not only copied: the random weights of the auxiliary heads follow from the number of networks built.
        copy = blank(network)
        copy.load_state_dict(network.state_dict())
        self.average = channels_last(moving_average(copy, config.average.ema_decay), self.device)
        set_drop_path(plain_network(network), config.optim.drop_path)
        if config.optim.freeze_backbone:
            plain_network(network).backbone.requires_grad_(False)
        wrapper = channels_last(TrainingWrapper(network, config.loss.auxiliary > 0), self.device)
        if self.device.type == "cuda" and processes > 1:
            wrapper = nn.SyncBatchNorm.convert_sync_batchnorm(wrapper)  # type: ignore[no-untyped-call]
        groups = parameter_groups(wrapper, config.optim.weight_decay)
        optimizer = torch.optim.AdamW(groups, lr=config.optim.learning_rate)
        self.wrapper, self.optimizer = self.accelerator.prepare(wrapper, optimizer)

        widths = widths_of(plain_network(network))
        self.teachers = Teachers(config.distill.teachers, labels, config.classes_from, self.device, widths)
        if config.distill.features and not self.teachers.have_features:
            raise ConfigError(
                f"distill.features is {config.distill.features}, but the stages of no teacher have the widths of "
                f"{config.variant}; add such a teacher, or set it to 0."
            )
        frequencies = class_frequencies(inspection.usable, train)
        weights = class_weights(frequencies, config.loss.class_weight_power).to(self.device)
        self.objective = Objective(config.loss, config.distill, weights, labels.ignore_index, self._mean_over_processes)
        self.crops = Crops(train, labels, config, rare_classes(frequencies, config.augment))
        self.batches = Batches(self.crops, config.data.workers, pinned=self.device.type == "cuda")
        self.steps_per_epoch = len(self._keys(0))
        self.progress = RunProgress()
        self.saved: int | None = None  # the step of the state on disk
        self.images_seen, self.began = 0, time.perf_counter()  # by this process, for its speed
        self.mean, self.std = normalisation(self.validation.preprocess, self.device)
        self.log = RunLog(folder, self.accelerator, val, labels)

    @property
    def steps(self) -> int:
        return self.steps_per_epoch * self.config.epochs

    @property
    def unwrapped(self) -> TrainingWrapper:
        """The network without what the accelerator put around it."""
        return self.accelerator.unwrap_model(self.wrapper)  # type: ignore[no-any-return]

    def write_settings(self, data: Path, new: bool) -> None:
        """Write what a resumed run needs, before the first step.

        Args:
            new: write the start, too, over the start of a run that left no state.
        """
        if not self.accelerator.is_main_process:
            return
        sweep(self.folder)  # temporary files of a run that was killed
        if new:
            self.validation.load_start()
            self._save_checkpoint(None, START)
        about = {
            "data": str(data), "evitseg": __version__, "images": len(self.crops), "steps": self.steps,
            "chosen": list(self.chosen), "settings": self.config.to_dict(),
        }  # fmt: skip
        with replacing(self.folder / CONFIG_FILE, durable=True) as file:
            file.write((json.dumps(about, indent=2) + "\n").encode())

    def restore(self, state: Mapping[str, Any]) -> None:
        """Continue from a state. Raises: TrainError if it is of another network, or the data changed."""
        check_same_data(self.folder, state, self._data(), self.how_to_start())
        self.progress = restore_state(self.folder, state, self._parts(), self.steps)
        self.saved = self.progress.step

    def run(self) -> Run:
        """Train to the end of the run."""
        self.log.begin(self.progress.step, new=self.saved is None)
        if self.saved is None:
            self._evaluate_start()
        # Where losses are left after the last step of an epoch, its evaluation is still to come.
        steps_of_ended_epochs = self.progress.step - bool(self.progress.loss_count)
        for epoch in range(steps_of_ended_epochs // self.steps_per_epoch, self.config.epochs):
            for images, truth in self._remaining_batches(epoch):
                with interrupts_deferred() as interrupts:
                    self.train_step(images, truth)
                    if self.progress.step % self.config.save_interval == 0 or interrupts:
                        self.save()
            at_end = epoch + 1 == self.config.epochs
            self._end_epoch(epoch, evaluate=at_end or (epoch + 1) % self.config.eval_interval == 0)
        del self.batches, self.wrapper  # ends the worker processes, and lets the process group end
        end_run(self.accelerator)
        best, last = self.folder / BEST, self.folder / LAST
        commands = (
            shlex.join(["evitseg", "eval", str(self.inspection.dataset.root), "--model", str(best)]),
            shlex.join(["evitseg", "export", str(best), "--to", "onnx"]),
        )
        if self.accelerator.is_main_process:
            with replacing(self.folder / COMMANDS) as file:
                # File names are bytes: a name that is not UTF-8 is written as its bytes.
                file.write("".join(f"{command}\n" for command in commands).encode("utf-8", "surrogateescape"))
        progress, problems = self.progress, tuple(self.inspection.problems)
        return Run(
            self.folder, best, last, progress.best_miou, progress.start_miou, progress.last_miou, problems, commands
        )

    def train_step(self, images: Tensor, truth: Tensor) -> None:
        """Update the weights once.

        Args:
            images: (batch, 3, h, w) uint8.
            truth: (batch, h, w) class indices.
        """
        config, step = self.config, self.progress.step
        rate = learning_rate(config.optim, step, self.steps)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        # The random numbers of a step depend only on its number, so a resumed run draws the same.
        torch.manual_seed(config.seed * 1_000_003 + step)
        first = int(torch.randint(config.loss.stride**2, ()))
        offset = (first // config.loss.stride, first % config.loss.stride)
        pixels = (images.to(memory_format=torch.channels_last).float() - self.mean) / self.std
        set_training_mode(self.unwrapped, config.optim)
        with self.accelerator.autocast():
            teachers = self.teachers(pixels, config.distill.temperature)
            logits, auxiliary, features = self.wrapper(pixels)
        loss = self.objective(logits, auxiliary, truth.long(), teachers, offset, step / self.steps, features)
        value = float(self._mean_over_processes(loss.detach()))
        if not math.isfinite(value):
            raise self._not_finite("loss", value, rate)
        self.optimizer.zero_grad(set_to_none=True)
        self.accelerator.backward(loss)
        norm = self.accelerator.clip_grad_norm_(self.wrapper.parameters(), config.optim.grad_clip_norm)
        if self.accelerator.scaler is None and not torch.isfinite(torch.as_tensor(norm)):  # a scaler skips such steps
            raise self._not_finite("gradient", float(norm), rate)
        self.optimizer.step()
        self.average.update_parameters(self.unwrapped.network)
        self.progress.step += 1
        self.progress.loss_sum += value
        self.progress.loss_count += 1
        self.images_seen += config.batch_size
        event = self._event(value, rate)
        self.log.log_step(event.step, value, rate, event.images_per_s)
        self.watch(event)

    def save(self) -> None:
        """Save the state to resume from."""
        self.saved = self.progress.step
        if self.accelerator.is_main_process:
            save_state(self.folder, self._parts(), self.progress, self._data())

    def what_is_left(self) -> str:
        """The message for an interrupted run: what its folder holds and how to go on."""
        if self.saved is None:
            return f"interrupted before the first checkpoint of {self.folder}; start the run again without --resume."
        epoch = self.saved // self.steps_per_epoch
        return (
            f"interrupted at step {self.progress.step} of {self.steps}. {self.folder} holds the state after step "
            f"{self.saved} (epoch {epoch} of {self.config.epochs}); --resume continues from there."
        )

    def how_to_start(self) -> str:
        """The end of a message that advises a new run: from this run's last checkpoint, if there is one."""
        return f" from this run's weights: --start {self.folder / LAST}" if (self.folder / LAST).exists() else ""

    def _keys(self, epoch: int) -> list[list[tuple[int, int]]]:
        return batch_keys(len(self.crops), self.config.batch_size, self.config.seed, epoch)

    def _remaining_batches(self, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        """This process's part of the batches of the epoch that are not done yet."""
        rank, part = self.accelerator.process_index, self.config.batch_size // self.accelerator.num_processes
        keys = self._keys(epoch)[self.progress.step - epoch * self.steps_per_epoch :]
        for images, truth in self.batches.read([k[rank * part : (rank + 1) * part] for k in keys]):
            yield images.to(self.device, non_blocking=True), truth.to(self.device, non_blocking=True)

    def _not_finite(self, what: str, value: float, rate: float) -> TrainError:
        return TrainError(
            f"step {self.progress.step + 1}: the {what} is {value}; start a new run{self.how_to_start()} with a lower "
            f"--learning-rate (it was {rate:.1e})."
        )

    def _mean_over_processes(self, value: Tensor) -> Tensor:
        if self.accelerator.num_processes == 1:
            return value
        mean: Tensor = self.accelerator.reduce(value, "mean")
        return mean

    def _event(self, loss: float, rate: float, report: Report | None = None, epoch_done: bool = False) -> Event:
        step, config = self.progress.step, self.config
        speed = self.images_seen / max(time.perf_counter() - self.began, 1e-9)
        epoch = min((step - 1) // self.steps_per_epoch + 1, config.epochs)
        return Event(step, self.steps, epoch, config.epochs, loss, rate, speed, report, epoch_done)

    def _evaluate_start(self) -> None:
        """Before the first step: the start is the first candidate for the best checkpoint."""
        self.validation.load_start()
        report = self.validation.evaluate(0)
        self.progress.best_miou = self.progress.start_miou = self.progress.last_miou = report.miou
        line = {"epoch": 0, "step": 0, "miou": report.miou, "iou": report.to_dict()["iou"]}
        if self.accelerator.is_main_process:
            self._save_checkpoint(report, BEST)
            self.log.log_epoch(line, self.validation.mask)
        self.save()
        self.watch(self._event(math.nan, 0.0, report))

    def _end_epoch(self, epoch: int, evaluate: bool) -> None:
        """Evaluate if it is due, then record what the epoch gave."""
        report = None
        if evaluate:
            self.validation.load_average(self.average.module.state_dict())
            try:
                report = self.validation.evaluate(epoch + 1)
            except KeyboardInterrupt:
                self.save()  # a resumed run begins with this evaluation
                raise
        with interrupts_deferred():
            self._record_epoch(epoch, report)

    def _record_epoch(self, epoch: int, report: Report | None) -> None:
        """Write the log, the checkpoints and the state."""
        progress = self.progress
        rate = learning_rate(self.config.optim, progress.step, self.steps)
        loss = progress.loss_sum / max(1, progress.loss_count)
        progress.loss_sum, progress.loss_count = 0.0, 0
        event = self._event(loss, rate, report, epoch_done=True)
        line: dict[str, Any] = {
            "epoch": epoch + 1, "step": progress.step, "loss": loss, "learning_rate": rate,
            "images_per_s": round(event.images_per_s, 2),
        }  # fmt: skip
        names: list[str] = []
        if report is not None:
            line |= {"miou": report.miou, "iou": report.to_dict()["iou"]}
            names = [LAST, BEST] if report.miou > progress.best_miou else [LAST]
            progress.last_miou, progress.best_miou = report.miou, max(progress.best_miou, report.miou)
        if self.accelerator.is_main_process:
            for name in names:
                self._save_checkpoint(report, name)
            self.log.log_epoch(line, None if report is None else self.validation.mask)
        self.save()
        self.watch(event)

    def _save_checkpoint(self, report: Report | None, name: str) -> None:
        save_checkpoint(plain_network(self.validation.network), self._manifest(report), self.folder / name)

    def _manifest(self, report: Report | None) -> Manifest:
        name, network = _utf8(self.inspection.dataset.root.name), self.validation.network
        return Manifest(
            name=f"{self.config.variant}-{name}",
            model=network.config,
            labels=self.labels,
            preprocess=self.validation.preprocess,
            training=Training(
                data=f"{name}: {len(self.crops)} images",
                licence="set by whoever owns the data",
                recipe=f"evitseg {__version__}, step {self.progress.step} of {self.steps}, start {self.config.start}",
            ),
            accuracy=() if report is None else (self.validation.accuracy(report),),
            evitseg_version=__version__,
            reading=self.config.data.reading,
            activation_ranges=network.ranges() if isinstance(network, QuantisedNetwork) else {},
        )

    def _parts(self) -> TrainingParts:
        return TrainingParts(self.unwrapped, self.average, self.optimizer, self.accelerator.scaler)

    def _data(self) -> dict[str, Any]:
        """Identifies the data and the teachers: a count, and a digest of images, masks and teacher files."""
        chosen = {*self.crops.pairs, *self.validation.val}
        contents = [[f.pair.image.name, f.digest, f.mask_digest] for f in self.inspection.usable if f.pair in chosen]
        contents.append([file_sha256(name) for name in self.config.distill.teachers if Path(name).is_file()])
        return {"images": len(self.crops), "digest": hashlib.sha256(json.dumps(contents).encode()).hexdigest()}


def _utf8(name: str) -> str:
    """A file name for UTF-8 text, with a replacement for bytes that are not UTF-8."""
    return name.encode("utf-8", "replace").decode()
