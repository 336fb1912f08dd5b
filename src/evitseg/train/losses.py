"""What a step minimises: terms over the pixels of a batch, each with its weight in `TrainConfig`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from evitseg.data.inspect import Finding
from evitseg.data.lists import Pair
from evitseg.train.config import TrainConfig
from evitseg.train.network import Answer

BOUNDARY_PX = 3
"""Pixels this near to another class count more in the boundary-aware loss."""
SURE = 0.7
"""Pixels whose class has at least this probability are easy, and left out by OHEM (arXiv:1604.03540)."""

Total = Callable[[Tensor], Tensor]


def upsampled(logits: Tensor, size: tuple[int, int], stride: int = 1, offset: tuple[int, int] = (0, 0)) -> Tensor:
    """Every `stride`-th pixel, from `offset` on, of the logits bilinearly up-sampled to a size.

    Equal to `F.interpolate(logits, size, mode="bilinear")[..., offset[0]::stride, offset[1]::stride]`, without making
    the pixels in between.

    Args:
        logits: (batch, classes, h, w).
        size: (height, width), of which the pixels are taken.
    """
    down, across = (
        _rows(given, wanted, logits.device)[start::stride]
        for given, wanted, start in zip(logits.shape[-2:], size, offset, strict=True)
    )
    return (down @ logits) @ across.T


@lru_cache(maxsize=32)
def _rows(given: int, wanted: int, device: torch.device) -> Tensor:
    """(wanted, given): linear interpolation of one axis as a matrix."""
    with torch.inference_mode(False):
        eye = torch.eye(given, device=device)[None]
        return F.interpolate(eye, wanted, mode="linear", align_corners=False)[0].T.contiguous()


class Objective:
    """The loss of a batch.

    Args:
        config: the terms and their weights.
        class_weights: (classes,), of the cross-entropy.
        ignore_index: of pixels that do not count.
        total: sums a number over all processes and divides by how many they are; the identity where there is one. By
            it two processes with half a batch each have the loss of one with the whole, in all that are means over
            pixels; Lovász and Dice are of each process's own part.
    """

    def __init__(
        self, config: TrainConfig, class_weights: Tensor, ignore_index: int, total: Total = lambda value: value
    ) -> None:
        self._config, self._weights, self._ignore, self._total = config, class_weights, ignore_index, total

    def __call__(
        self,
        logits: Tensor,
        auxiliary: Sequence[Tensor],
        truth: Tensor,
        teachers: Sequence[Answer],
        offset: tuple[int, int],
        progress: float,
    ) -> Tensor:
        """
        Args:
            logits: (batch, classes, h, w); auxiliary: the same of earlier layers, any size.
            truth: (batch, H, W) class indices.
            teachers: answers to come near to.
            offset: (down, across), of the pixels that count; both below `loss_stride`.
            progress: of the run, 0 to 1.

        Returns: a number; 0 where no pixel counts.
        """
        config = self._config
        full = upsampled(logits.float(), (truth.shape[-2], truth.shape[-1]), config.loss_stride, offset)
        sampled = truth[:, offset[0] :: config.loss_stride, offset[1] :: config.loss_stride]
        loss = config.cross_entropy * self._cross_entropy(full, sampled, config.loss_stride)
        if config.dice:
            loss = loss + config.dice * dice(full, sampled, self._ignore)
        if config.lovasz and progress >= config.lovasz_from:
            # Sorting all pixels of all classes would cost more than the network; every second is plenty.
            loss = loss + config.lovasz * lovasz_softmax(full[..., ::2, ::2], sampled[:, ::2, ::2], self._ignore)
        for early in auxiliary:
            scores = upsampled(early.float(), (truth.shape[-2], truth.shape[-1]), 2 * config.loss_stride, offset)
            coarse = truth[:, offset[0] :: 2 * config.loss_stride, offset[1] :: 2 * config.loss_stride]
            loss = loss + config.auxiliary * self._cross_entropy(scores, coarse, 2 * config.loss_stride)
        if teachers:
            loss = loss + config.distill * distillation(logits.float(), teachers, config.temperature)
        return loss

    def _cross_entropy(self, logits: Tensor, truth: Tensor, stride: int) -> Tensor:
        """Weighted mean over the counted pixels; those at class borders, or the hardest, as the config says."""
        config = self._config
        counted = truth != self._ignore
        smoothing = config.label_smoothing
        each = F.cross_entropy(
            logits, truth, self._weights, ignore_index=self._ignore, reduction="none", label_smoothing=smoothing
        )
        weights = self._weights[torch.where(counted, truth, 0)] * counted
        if config.boundary:
            factor = 1 + config.boundary * near_borders(truth, self._ignore, BOUNDARY_PX / stride)
            each, weights = each * factor, weights * factor
        if config.ohem < 1:
            hard = hardest(logits.detach(), truth, counted, config.ohem)
            each, weights = each * hard, weights * hard
        return each.sum() / self._total(weights.sum()).clamp(min=1e-6)


def hardest(logits: Tensor, truth: Tensor, counted: Tensor, share: float) -> Tensor:
    """Where a pixel is hard: its class has less probability than `SURE`, or it is among the worst `share`."""
    likely = logits.log_softmax(1).gather(1, torch.where(counted, truth, 0)[:, None])[:, 0].exp()
    values = likely[counted]
    if not len(values):
        return counted
    limit = values.kthvalue(max(1, round(share * len(values)))).values.clamp(min=SURE)
    return counted & (likely <= limit)


def near_borders(truth: Tensor, ignore_index: int, distance: float) -> Tensor:
    """Where another class is at most `distance` pixels away (at least one): (batch, H, W) bool.

    Pixels that do not count are no class of their own: they make no border.
    """
    reach = max(1, round(distance))
    known = truth != ignore_index
    values = truth.float()
    largest = torch.where(known, values, -1.0)
    smallest = torch.where(known, -values, -float(ignore_index))
    for window in ((2 * reach + 1, 1), (1, 2 * reach + 1)):
        padding = (window[0] // 2, window[1] // 2)
        largest = F.max_pool2d(largest[:, None], window, 1, padding)[:, 0]
        smallest = F.max_pool2d(smallest[:, None], window, 1, padding)[:, 0]
    return (largest != -smallest) & known


def dice(logits: Tensor, truth: Tensor, ignore_index: int) -> Tensor:
    """1 - the mean over the classes that occur of 2 Σ p·t / (Σ p + Σ t), p the probabilities (arXiv:1606.04797).

    Args:
        logits: (batch, classes, H, W); truth: (batch, H, W).
    """
    shares, hits = _flat(logits, truth, ignore_index)
    both, sizes = (shares * hits).sum(0), hits.sum(0)
    return _mean_over(1 - (2 * both + 1) / (shares.sum(0) + sizes + 1), sizes > 0)


def lovasz_softmax(logits: Tensor, truth: Tensor, ignore_index: int) -> Tensor:
    """The Lovász extension of 1 - IoU of every class that occurs, their mean (arXiv:1705.08790).

    Args:
        logits: (batch, classes, H, W); truth: (batch, H, W).
    """
    shares, hits = _flat(logits, truth, ignore_index)
    errors, order = (hits - shares).abs().T.sort(dim=1, descending=True)
    hits = hits.T.gather(1, order)
    sizes = hits.sum(1, keepdim=True)
    # IoU's loss when the pixels with the largest errors, up to each, are wrong.
    jaccard = 1 - (sizes - hits.cumsum(1)) / (sizes + (1 - hits).cumsum(1)).clamp(min=1)
    steps = torch.cat([jaccard[:, :1], jaccard.diff(dim=1)], dim=1)
    return _mean_over((errors * steps).sum(1), sizes[:, 0] > 0)


def distillation(logits: Tensor, teachers: Sequence[Answer], temperature: float) -> Tensor:
    """Kullback-Leibler divergence from the teachers' probabilities, times T² (arXiv:1503.02531); their mean.

    A teacher is compared with on the classes that it knows alone, and counts at a pixel as far as it thinks that one of
    them is there: it says nothing about the others.

    Args:
        logits: (batch, classes, h, w).
        teachers: their answers at this temperature.
    """
    terms = []
    for answer in teachers:
        likely = (logits[:, answer.known] / temperature).log_softmax(1)
        terms.append((F.kl_div(likely, answer.shares, reduction="none").sum(1) * answer.mass).mean())
    return torch.stack(terms).mean() * temperature**2


def _flat(logits: Tensor, truth: Tensor, ignore_index: int) -> tuple[Tensor, Tensor]:
    """Of the counted pixels: probabilities and one-hot truth, both (pixels, classes)."""
    counted = truth != ignore_index
    shares = logits.softmax(1).permute(0, 2, 3, 1)[counted]
    return shares, F.one_hot(truth[counted], logits.shape[1]).to(shares.dtype)


def _mean_over(values: Tensor, which: Tensor) -> Tensor:
    return (values * which).sum() / which.sum().clamp(min=1)


def frequencies(findings: Sequence[Finding], pairs: Sequence[Pair]) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Share of every class in the images that are trained on, and in no other."""
    chosen = set(pairs)
    counts = np.sum([f.counts for f in findings if f.pair in chosen], axis=0, dtype=np.float64)
    shares: np.ndarray[Any, np.dtype[np.float64]] = counts / max(counts.sum(), 1.0)
    return shares


def class_weights(frequencies: np.ndarray[Any, np.dtype[np.float64]], balance: float) -> Tensor:
    """(1 / ln(1.10 + share)) ** balance for every class, with a mean of 1 over the pixels (arXiv:1606.02147)."""
    weights = (1 / np.log(1.10 + frequencies)) ** balance
    return torch.from_numpy(weights / max((weights * frequencies).sum(), 1e-9)).float()
