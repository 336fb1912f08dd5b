"""The loss of a training step: weighted terms over the pixels of a batch, with their weights in `LossConfig`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from evitseg.data.inspect import Finding
from evitseg.data.lists import Pair
from evitseg.train.config import DistillConfig, LossConfig
from evitseg.train.distill import TeacherAnswer, distillation, feature_difference

BOUNDARY_PX = 3
"""Distance from another class, in pixels, within which `boundary_weight` applies."""
EASY = 0.7
"""Probability of the true class from which a pixel is easy, so that OHEM leaves it out (arXiv:1604.03540)."""

MeanOverProcesses = Callable[[Tensor], Tensor]


def upsampled(logits: Tensor, size: tuple[int, int], stride: int = 1, offset: tuple[int, int] = (0, 0)) -> Tensor:
    """Every `stride`-th pixel, beginning at `offset`, of the logits bilinearly up-sampled to a size.

    Equal to `F.interpolate(logits, size, mode="bilinear")[..., offset[0]::stride, offset[1]::stride]`, but without
    computing the pixels in between.

    Args:
        logits: (batch, classes, h, w).
        size: (height, width) of the whole up-sampled image.
    """
    down, across = (
        _interpolation(given, wanted, logits.device)[start::stride]
        for given, wanted, start in zip(logits.shape[-2:], size, offset, strict=True)
    )
    return (down @ logits) @ across.T


@lru_cache(maxsize=32)
def _interpolation(given: int, wanted: int, device: torch.device) -> Tensor:
    """Linear interpolation along one axis as a (wanted, given) matrix."""
    with torch.inference_mode(False):
        eye = torch.eye(given, device=device)[None]
        return F.interpolate(eye, wanted, mode="linear", align_corners=False)[0].T.contiguous()


class Objective:
    """The loss of a batch.

    Args:
        loss, distill: the terms and their weights.
        class_weights: (classes,) of the cross-entropy.
        ignore_index: class index of the pixels that do not count.
        over_processes: the mean of a number over all processes; the identity for a single process. With it, two
            processes with half a batch each compute the cross-entropy and distillation of the whole batch. Lovász and
            Dice are computed from each process's own half.
    """

    def __init__(
        self,
        loss: LossConfig,
        distill: DistillConfig,
        class_weights: Tensor,
        ignore_index: int,
        over_processes: MeanOverProcesses = lambda value: value,
    ) -> None:
        self._loss, self._distill = loss, distill
        self._weights, self._ignore, self._over_processes = class_weights, ignore_index, over_processes

    def __call__(
        self,
        logits: Tensor,
        auxiliary: Sequence[Tensor],
        truth: Tensor,
        teachers: Sequence[TeacherAnswer],
        offset: tuple[int, int],
        progress: float,
        features: Sequence[Tensor] = (),
    ) -> Tensor:
        """
        Args:
            logits: (batch, classes, h, w).
            auxiliary: logits of the auxiliary heads, of any size.
            truth: (batch, H, W) class indices.
            teachers: what to distil from.
            offset: (down, across) of the first pixel that counts; both below the stride.
            progress: fraction of the run that is done.
            features: of the network's stages, for teachers that show theirs.

        Returns: a scalar; 0 if no pixel counts.
        """
        config, stride = self._loss, self._loss.stride
        full = upsampled(logits.float(), (truth.shape[-2], truth.shape[-1]), stride, offset)
        sampled = truth[:, offset[0] :: stride, offset[1] :: stride]
        loss = config.cross_entropy * self._cross_entropy(full, sampled, stride)
        if config.dice:
            loss = loss + config.dice * dice(full, sampled, self._ignore)
        if config.lovasz and progress >= config.lovasz_from:
            # Every second pixel: sorting all pixels of all classes would take longer than the network.
            loss = loss + config.lovasz * lovasz_softmax(full[..., ::2, ::2], sampled[:, ::2, ::2], self._ignore)
        for head in auxiliary:
            coarse_logits = upsampled(head.float(), (truth.shape[-2], truth.shape[-1]), 2 * stride, offset)
            coarse_truth = truth[:, offset[0] :: 2 * stride, offset[1] :: 2 * stride]
            loss = loss + config.auxiliary * self._cross_entropy(coarse_logits, coarse_truth, 2 * stride)
        if teachers:
            loss = loss + self._distill.weight * distillation(logits.float(), teachers, self._distill.temperature)
            if self._distill.features:
                loss = loss + self._distill.features * feature_difference(features, teachers)
        return loss

    def _cross_entropy(self, logits: Tensor, truth: Tensor, stride: int) -> Tensor:
        """Weighted mean over the counted pixels, with the weights of boundaries and hard pixels."""
        config = self._loss
        counted = truth != self._ignore
        each = F.cross_entropy(
            logits, truth, self._weights, ignore_index=self._ignore, reduction="none",
            label_smoothing=config.label_smoothing,
        )  # fmt: skip
        weights = self._weights[torch.where(counted, truth, 0)] * counted
        if config.boundary_weight:
            factor = 1 + config.boundary_weight * near_boundary(truth, self._ignore, BOUNDARY_PX / stride)
            each, weights = each * factor, weights * factor
        if config.ohem_fraction < 1:
            hard = hardest(logits.detach(), truth, counted, config.ohem_fraction)
            each, weights = each * hard, weights * hard
        return each.sum() / self._over_processes(weights.sum()).clamp(min=1e-6)


def hardest(logits: Tensor, truth: Tensor, counted: Tensor, fraction: float) -> Tensor:
    """Pixels whose true class has a probability below `EASY`, and at least the hardest `fraction` of all."""
    probs = logits.log_softmax(1).gather(1, torch.where(counted, truth, 0)[:, None])[:, 0].exp()
    values = probs[counted]
    if not len(values):
        return counted
    limit = values.kthvalue(max(1, round(fraction * len(values)))).values.clamp(min=EASY)
    return counted & (probs <= limit)


def near_boundary(truth: Tensor, ignore_index: int, distance: float) -> Tensor:
    """Pixels within `distance` pixels (at least one) of another class: (batch, H, W) bool.

    Ignored pixels do not form a boundary.
    """
    radius = max(1, round(distance))
    known = truth != ignore_index
    values = truth.float()
    largest = torch.where(known, values, -1.0)
    smallest = torch.where(known, -values, -float(ignore_index))
    for window in ((2 * radius + 1, 1), (1, 2 * radius + 1)):
        padding = (window[0] // 2, window[1] // 2)
        largest = F.max_pool2d(largest[:, None], window, 1, padding)[:, 0]
        smallest = F.max_pool2d(smallest[:, None], window, 1, padding)[:, 0]
    return (largest != -smallest) & known


def dice(logits: Tensor, truth: Tensor, ignore_index: int) -> Tensor:
    """Dice loss: 1 - the mean of 2 Σ p·t / (Σ p + Σ t) over the classes that occur, with p the probabilities.

    Source: arXiv:1606.04797.

    Args:
        logits: (batch, classes, H, W).
        truth: (batch, H, W).
    """
    probs, one_hot = _counted_pixels(logits, truth, ignore_index)
    both, support = (probs * one_hot).sum(0), one_hot.sum(0)
    return _mean_over(1 - (2 * both + 1) / (probs.sum(0) + support + 1), support > 0)


def lovasz_softmax(logits: Tensor, truth: Tensor, ignore_index: int) -> Tensor:
    """Lovász-softmax loss: the mean over the classes that occur of the Lovász extension of 1 - IoU.

    Source: arXiv:1705.08790.

    Args:
        logits: (batch, classes, H, W).
        truth: (batch, H, W).
    """
    probs, one_hot = _counted_pixels(logits, truth, ignore_index)
    errors, order = (one_hot - probs).abs().T.sort(dim=1, descending=True)
    one_hot = one_hot.T.gather(1, order)
    support = one_hot.sum(1, keepdim=True)
    # 1 - IoU if the pixels with the largest errors, up to and including each pixel, are wrong.
    jaccard = 1 - (support - one_hot.cumsum(1)) / (support + (1 - one_hot).cumsum(1)).clamp(min=1)
    steps = torch.cat([jaccard[:, :1], jaccard.diff(dim=1)], dim=1)
    return _mean_over((errors * steps).sum(1), support[:, 0] > 0)


def _counted_pixels(logits: Tensor, truth: Tensor, ignore_index: int) -> tuple[Tensor, Tensor]:
    """Probabilities and one-hot truth of the pixels that count, both (pixels, classes)."""
    counted = truth != ignore_index
    probs = logits.softmax(1).permute(0, 2, 3, 1)[counted]
    return probs, F.one_hot(truth[counted], logits.shape[1]).to(probs.dtype)


def _mean_over(values: Tensor, which: Tensor) -> Tensor:
    return (values * which).sum() / which.sum().clamp(min=1)


def class_frequencies(findings: Sequence[Finding], pairs: Sequence[Pair]) -> NDArray[np.float64]:
    """Fraction of the pixels of the given pairs that belong to each class."""
    chosen = set(pairs)
    counts = np.sum([f.counts for f in findings if f.pair in chosen], axis=0, dtype=np.float64)
    frequencies: NDArray[np.float64] = counts / max(counts.sum(), 1.0)
    return frequencies


def class_weights(frequencies: NDArray[np.float64], power: float) -> Tensor:
    """(1 / ln(1.10 + frequency)) ** power of every class, scaled to a mean of 1 over the pixels (arXiv:1606.02147)."""
    weights = (1 / np.log(1.10 + frequencies)) ** power
    return torch.from_numpy(weights / max((weights * frequencies).sum(), 1e-9)).float()
