"""Distillation: teachers whose class probabilities a network learns to match."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from evitseg.errors import ConfigError, WeightsError
from evitseg.labels import LabelSpace
from evitseg.train.initialize import class_matrix, load_source
from evitseg.train.wrapper import channels_last


@dataclass(frozen=True)
class TeacherProbs:
    """A teacher's probabilities for a batch, in the data's classes.

    Attributes:
        classes: indices of the classes that the teacher knows.
        probs: (batch, classes, h, w) probabilities among these classes; they sum to 1.
        support: (batch, h, w) probability that the teacher gives to all of these classes together. The rest belongs to
            classes of the teacher that match none of the data's.
    """

    classes: Tensor
    probs: Tensor
    support: Tensor


class Teachers:
    """Segmentation networks to distil from.

    Args:
        names: checkpoints or published models.
        labels: the data's classes.
        classes_from: see `class_matrix`.

    Raises: WeightsError for a classifier, ConfigError for a teacher that knows fewer than two of the classes.
    """

    def __init__(
        self, names: Sequence[str], labels: LabelSpace, classes_from: Mapping[str, Sequence[str]], device: torch.device
    ) -> None:
        self._members = []
        for name in names:
            network, source_labels = load_source(name)
            if source_labels is None:
                raise WeightsError(f"{name}: a classifier cannot teach masks; use a segmentation model.")
            matrix = class_matrix(labels, source_labels, classes_from)
            known = (matrix.sum(1) > 0).nonzero()[:, 0]
            if len(known) < 2:
                raise ConfigError(
                    f"{name}: a teacher must know at least 2 classes of the data, it knows {len(known)}; "
                    "add their names to classes_from."
                )
            network = channels_last(network.eval().requires_grad_(False), device)
            self._members.append((network, matrix[known].to(device), known.to(device)))

    @torch.no_grad()
    def __call__(self, pixels: Tensor, temperature: float) -> list[TeacherProbs]:
        """Every teacher's probabilities at a temperature, for normalised pixels."""
        answers = []
        for network, matrix, known in self._members:
            with torch.autocast(pixels.device.type, enabled=False):
                theirs = (network(pixels).float() / temperature).softmax(1)
                ours = torch.einsum("ij,bjhw->bihw", matrix, theirs)
                support = ours.sum(1)
                answers.append(TeacherProbs(known, ours / support[:, None].clamp(min=1e-6), support))
        return answers


def distillation(logits: Tensor, teachers: Sequence[TeacherProbs], temperature: float) -> Tensor:
    """Mean over the teachers of the Kullback-Leibler divergence from their probabilities, times T² (arXiv:1503.02531).

    Only the classes that a teacher knows are compared, and a pixel counts by the teacher's support for these classes.

    Args:
        logits: (batch, classes, h, w).
        teachers: their probabilities at this temperature.
    """
    terms = []
    for teacher in teachers:
        log_probs = (logits[:, teacher.classes] / temperature).log_softmax(1)
        divergence = F.kl_div(log_probs, teacher.probs, reduction="none").sum(1)
        terms.append((divergence * teacher.support).mean())
    return torch.stack(terms).mean() * temperature**2
