"""What a run reports: events for the caller, and in its folder a log, curves, predictions and TensorBoard files."""

from __future__ import annotations

import importlib.util
import json
import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from evitseg.data.lists import Pair
from evitseg.errors import EvitsegError, MissingPackageError, TrainError
from evitseg.evaluation.evaluate import Report
from evitseg.image import ImageArray, Mask
from evitseg.labels import LabelSpace
from evitseg.raster.files import read_image, save_image
from evitseg.raster.masks import read_truth
from evitseg.system.files import replacing
from evitseg.visualize import tile_sheet, tinted

if TYPE_CHECKING:
    from accelerate import Accelerator

LOG_FILE, CURVES_FILE, PREDICTIONS_FILE = "log.jsonl", "curves.png", "predictions.png"
SHOWN = 4
"""Number of validation images whose predictions are drawn after every evaluation."""
TRACK_INTERVAL = 10
"""Steps between the points of a tracker's curve."""
_WIDTH = 320


def trackers() -> list[str]:
    """TensorBoard, and Weights & Biases if it is installed and its environment variables configure it."""
    asked = os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_MODE")
    return ["tensorboard", *(["wandb"] if asked and importlib.util.find_spec("wandb") else [])]


@dataclass(frozen=True)
class Event:
    """What `fit` reports after the evaluation of the start, every step and every epoch.

    Attributes:
        step, steps: steps done, and steps of the run; 0 for the start.
        epoch, epochs: the current epoch, counted from 1, and the epochs of the run.
        loss: of the step, or the mean of the epoch; nan for the start.
        learning_rate: of the step.
        images_per_s: mean since training started or was resumed.
        report: accuracy on the validation images, for the start and after an epoch that was evaluated.
        epoch_done: whether the event follows an epoch.
    """

    step: int
    steps: int
    epoch: int
    epochs: int
    loss: float
    learning_rate: float
    images_per_s: float
    report: Report | None = None
    epoch_done: bool = False


@dataclass(frozen=True)
class Run:
    """A finished run.

    Attributes:
        folder: contains config.json, log.jsonl and the checkpoints.
        best: checkpoint with the highest validation mIoU, the start included.
        last: checkpoint at the end of the run.
        miou, start_miou, last_miou: validation mIoU of the best, the start and the last, 0 to 1.
        skipped: a message for every pair that could not be used.
        commands: command lines that evaluate and export the best checkpoint.
    """

    folder: Path
    best: Path
    last: Path
    miou: float
    start_miou: float
    last_miou: float
    skipped: tuple[str, ...]
    commands: tuple[str, ...]


class RunLog:
    """The log, curves and sample predictions of a run, and its trackers. Only the main process writes.

    Args:
        val: the validation pairs; a few, always the same, are drawn.
    """

    def __init__(self, folder: Path, accelerator: Accelerator, val: Sequence[Pair], labels: LabelSpace) -> None:
        self.folder, self._accelerator, self._labels = folder, accelerator, labels
        places = {round(at) for at in np.linspace(0, len(val) - 1, min(SHOWN, len(val)))}
        self._shown = [val[at] for at in sorted(places)]

    def begin(self, step: int, new: bool) -> None:
        """Start the log: empty for a new run, else without what was written after the step that is resumed from."""
        if self._accelerator.is_main_process:
            lines = [] if new else [line for line in read_log(self.folder) if line["step"] <= step]
            self.folder.mkdir(parents=True, exist_ok=True)
            with replacing(self.folder / LOG_FILE) as file:
                file.write("".join(json.dumps(line) + "\n" for line in lines).encode())
        settings = {"tensorboard": {"purge_step": step + 1}, "wandb": {"dir": str(self.folder)}}
        self._accelerator.init_trackers("tensorboard", init_kwargs=settings)

    def log_step(self, step: int, loss: float, rate: float, speed: float) -> None:
        if step % TRACK_INTERVAL == 0:
            self._accelerator.log({"loss": loss, "learning rate": rate, "images per second": speed}, step=step)

    def log_epoch(self, line: dict[str, Any], mask_of: Callable[[ImageArray], Mask] | None) -> None:
        """Write an epoch's line and, if it was evaluated, the curves and sample predictions.

        Args:
            line: "epoch", "step", "loss", ...; also "miou" and "iou" (class to number) if it was evaluated. The start
                is epoch 0 and has no loss.
            mask_of: the evaluated network; None if it was not evaluated.
        """
        if not self._accelerator.is_main_process:
            return
        with open(self.folder / LOG_FILE, "a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        if mask_of is None:
            return
        values = {"mIoU": line["miou"]} | {f"IoU/{name}": v for name, v in line["iou"].items() if v is not None}
        self._accelerator.log(values, step=line["step"])
        draw_curves(read_log(self.folder), self.folder / CURVES_FILE)
        sheet = draw_predictions(self._shown, mask_of, self._labels)
        if sheet is not None:
            save_image(sheet, self.folder / PREDICTIONS_FILE)
            images = np.asarray(sheet)[None]
            self._accelerator.get_tracker("tensorboard").log_images(
                {"predictions": images}, step=line["step"], dataformats="NHWC"
            )


def read_log(folder: Path) -> list[dict[str, Any]]:
    """The lines of a run's log, without a last line that was cut off when the run was killed.

    Raises: TrainError for a line that no run wrote.
    """
    path = folder / LOG_FILE
    try:
        content = path.read_bytes() if path.exists() else b""
    except OSError as error:
        raise TrainError(f"{path}: cannot be read ({error.strerror or error}).") from error
    texts = content.splitlines(keepends=True)
    lines = []
    for number, text in enumerate(texts, start=1):
        try:
            lines.append(_log_line(json.loads(text)))
        except (ValueError, RecursionError) as error:
            if number == len(texts) and not text.endswith(b"\n"):
                break
            raise TrainError(
                f"{path}, line {number}: not a line of a run's log; delete the line and resume."
            ) from error
    return lines


def _log_line(line: Any) -> dict[str, Any]:
    """The line, if the fields that are used have their types. Raises: ValueError."""

    def number(value: object) -> bool:
        return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e300

    sound = isinstance(line, dict) and all(
        isinstance(line.get(name), int) and not isinstance(line[name], bool) and 0 <= line[name] < 2**53
        for name in ("step", "epoch")
    )
    sound = sound and all(number(line[name]) for name in ("loss", "learning_rate", "miou") if name in line)
    if sound and "miou" in line:
        ious = line.get("iou")
        sound = isinstance(ious, dict) and all(value is None or number(value) for value in ious.values())
    if not sound:
        raise ValueError
    checked: dict[str, Any] = line
    return checked


def draw_curves(log: Sequence[dict[str, Any]], path: Path) -> None:
    """Write a PNG of the loss, the mIoU and the IoU of every class over the epochs."""
    try:
        from matplotlib import color_sequences
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingPackageError("drawing a run's curves", "train") from error

    evaluated = [line for line in log if "miou" in line]
    figure = Figure(figsize=(11, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    trained = [line for line in log if "loss" in line]  # the start has none
    left.plot([line["epoch"] for line in trained], [line["loss"] for line in trained], color="#1f77b4")
    left.set(title="loss", xlabel="epoch")
    names = list(evaluated[0]["iou"]) if evaluated else []
    epochs = [line["epoch"] for line in evaluated]
    colors = color_sequences["tab20"]
    for at, name in enumerate(names):
        values = [math.nan if line["iou"].get(name) is None else 100 * line["iou"][name] for line in evaluated]
        label = name if len(names) <= 20 else None
        right.plot(epochs, values, linewidth=1, color=colors[at % len(colors)], label=label)
    right.plot(epochs, [100 * line["miou"] for line in evaluated], color="black", linewidth=2, label="mIoU")
    right.set(title="IoU on the validation images, %", xlabel="epoch", ylim=(0, 100))
    right.legend(fontsize="x-small", loc="center left", bbox_to_anchor=(1, 0.5))
    for axes in (left, right):
        axes.grid(alpha=0.3)
    with replacing(path) as file:
        figure.savefig(file, format="png", dpi=100)


def draw_predictions(
    pairs: Sequence[Pair], mask_of: Callable[[ImageArray], Mask], labels: LabelSpace
) -> Image.Image | None:
    """A sheet with a row per pair: image, true mask, predicted mask; None if no pair can be read."""
    rows = []
    for pair in pairs:
        try:
            image, truth = read_image(pair.image, pair.reading), read_truth(pair.mask, labels)
        except EvitsegError:
            continue
        step = max(1, image.shape[1] // _WIDTH)
        thin = [array[::step, ::step].copy() for array in (image, truth, mask_of(image))]
        tiles = [Image.fromarray(thin[0]), *(tinted(thin[0], mask, labels) for mask in thin[1:])]
        height = max(1, round(_WIDTH * truth.shape[0] / truth.shape[1]))
        rows.append([tile.resize((_WIDTH, height)) for tile in tiles])
    if not rows:
        return None
    return tile_sheet(rows)
