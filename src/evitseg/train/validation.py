"""Evaluation during training: the averaged network, and its accuracy on the validation images."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional as F

from evitseg.data.lists import Pair
from evitseg.errors import ImageError
from evitseg.evaluation.evaluate import Report, count_pair, pair_predictor, summarise
from evitseg.image import ImageArray, Mask
from evitseg.labels import LabelSpace
from evitseg.manifest import Accuracy
from evitseg.model.checkpoints import average_weights
from evitseg.model.network import EfficientViT
from evitseg.preprocess import Preprocess
from evitseg.train.batch_norm import estimate_over
from evitseg.train.config import TrainConfig
from evitseg.train.crops import unreadable
from evitseg.train.quantised import QuantisedNetwork, blank
from evitseg.train.wrapper import channels_last

if TYPE_CHECKING:
    from accelerate import Accelerator


class Validation:
    """The network that is evaluated and saved. Its weights are the moving average, mixed with the start if wanted.

    Args:
        start: the starting weights.
        train: pairs over which batch norm's statistics are estimated.
        val: pairs that the network is evaluated on.
    """

    def __init__(
        self,
        config: TrainConfig,
        labels: LabelSpace,
        network: EfficientViT | QuantisedNetwork,
        train: Sequence[Pair],
        val: Sequence[Pair],
        accelerator: Accelerator,
    ) -> None:
        self._config, self._labels, self._accelerator = config, labels, accelerator
        self._train, self.val = train, val
        self._device = accelerator.device
        self._start = {key: value.clone().to(self._device) for key, value in network.state_dict().items()}
        self.network = channels_last(blank(network).eval().requires_grad_(False), self._device)
        self.preprocess = Preprocess(short_side=config.data.size or None)
        self._mean, self._std = normalisation(self.preprocess, self._device)

    def load_start(self) -> None:
        self.network.load_state_dict(self._start)

    def load_average(self, average: Mapping[str, Tensor]) -> None:
        """Load the moving average, mixed with the start, and estimate batch norm's statistics for these weights."""
        config, fraction = self._config, self._config.average.start_weight
        self.network.load_state_dict(average_weights([average, self._start], [1 - fraction, fraction]))
        if config.optim.freeze_norm:
            return
        most_pixels = config.batch_size * config.data.crop[0] * config.data.crop[1]
        frozen = "backbone." if config.optim.freeze_backbone else None
        try:
            estimate_over(
                self.network, self._train, self.preprocess, most_pixels,
                lambda name: frozen is not None and name.startswith(frozen),
            )  # fmt: skip
        except ImageError as error:
            raise unreadable(str(error)) from error

    @torch.inference_mode()
    def mask(self, image: ImageArray) -> Mask:
        """The class indices of an image, at its own size."""
        values = torch.from_numpy(self.preprocess.apply(image).copy()).to(self._device)
        pixels = (values.permute(2, 0, 1)[None].float() - self._mean) / self._std
        logits = F.interpolate(self.network(pixels), image.shape[:2], mode="bilinear", align_corners=False)
        indices: Mask = logits[0].argmax(0).cpu().numpy().astype(self._labels.dtype)
        return indices

    def evaluate(self, epoch: int) -> Report:
        """Evaluate the loaded weights; every process evaluates a part of the images."""
        rank, processes = self._accelerator.process_index, self._accelerator.num_processes
        if processes > 1:
            from accelerate.utils import broadcast

            # Each process has estimated its own batch norm statistics.
            self.network.load_state_dict(broadcast(self.network.state_dict()))
        predict = pair_predictor(self.mask)
        outcomes = [(pair, count_pair(predict, pair, self._labels)) for pair in self.val[rank::processes]]
        if processes > 1:
            from accelerate.utils import gather_object

            outcomes = gather_object(outcomes)
        report = summarise(outcomes, self._labels, {"epoch": str(epoch)})
        if report.skipped:
            raise unreadable(report.skipped[0])
        return report

    def accuracy(self, report: Report) -> Accuracy:
        """The report as the manifest of a checkpoint has it."""
        ious = zip(self._labels.names, report.iou.tolist(), strict=True)
        kind = "also used for training" if set(self.val) & set(self._train) else "held out"
        return Accuracy(
            data=f"validation, {len(report.images)} images, {kind}",
            protocol="one confusion matrix over the split, whole images",
            miou=round(100 * report.miou, 2),
            iou={name: round(100 * value, 2) for name, value in ious if not math.isnan(value)},
            images=len(report.images),
            settings={"engine": "PyTorch", "precision": "float32"},
        )


def normalisation(preprocess: Preprocess, device: torch.device) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation for pixels of 0 to 255, both (1, 3, 1, 1)."""
    mean, std = (
        torch.tensor(values, device=device).view(1, 3, 1, 1) * 255 for values in (preprocess.mean, preprocess.std)
    )
    return mean, std
