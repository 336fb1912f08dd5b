"""Distillation: teachers whose class probabilities and features a network learns to match."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from evitseg.errors import ConfigError, WeightsError
from evitseg.labels import LabelSpace
from evitseg.model.network import EfficientViT
from evitseg.train.initialize import class_matrix, load_source
from evitseg.train.wrapper import channels_last

FEATURE_FLOOR = 0.01
"""Channels that vary less than this fraction of their stage's mean variance count less in `feature_difference`."""


@dataclass(frozen=True)
class TeacherAnswer:
    """What a teacher says of a batch, in the data's classes.

    Attributes:
        classes: indices of the classes that the teacher knows.
        probs: (batch, classes, h, w) probabilities among these classes; they sum to 1.
        support: (batch, h, w) probability that the teacher gives to all of these classes together. The rest belongs to
            classes of the teacher that match none of the data's.
        features: of its stages; none if their widths are not those of the network that learns.
    """

    classes: Tensor
    probs: Tensor
    support: Tensor
    features: Sequence[Tensor] = ()


class Teachers:
    """Segmentation networks to distil from.

    Args:
        names: checkpoints or published models.
        labels: the data's classes.
        classes_from: see `class_matrix`.
        widths: of the stages of the network that learns.

    Raises: WeightsError for a classifier, ConfigError for a teacher that knows fewer than two of the classes.
    """

    def __init__(
        self,
        names: Sequence[str],
        labels: LabelSpace,
        classes_from: Mapping[str, Sequence[str]],
        device: torch.device,
        widths: Sequence[int] = (),
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
            self._members.append((network, matrix[known].to(device), known.to(device), widths_of(network) == [*widths]))

    @property
    def have_features(self) -> bool:
        """Whether a teacher's stages have the widths of the network that learns."""
        return any(same_widths for *_, same_widths in self._members)

    @torch.no_grad()
    def __call__(self, pixels: Tensor, temperature: float) -> list[TeacherAnswer]:
        """Every teacher's probabilities at a temperature, and its features, for normalised pixels."""
        answers = []
        for network, matrix, known, same_widths in self._members:
            with torch.autocast(pixels.device.type, enabled=False):
                features = network.backbone(pixels)
                theirs = (network.head(features).float() / temperature).softmax(1)
                ours = torch.einsum("ij,bjhw->bihw", matrix, theirs)
                support = ours.sum(1)
                probs = ours / support[:, None].clamp(min=1e-6)
                answers.append(TeacherAnswer(known, probs, support, features if same_widths else ()))
        return answers


def widths_of(network: EfficientViT) -> list[int]:
    """The channels of the stages' features."""
    return [stage.width for stage in network.config.backbone.stages]


def distillation(logits: Tensor, teachers: Sequence[TeacherAnswer], temperature: float) -> Tensor:
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


def feature_difference(features: Sequence[Tensor], teachers: Sequence[TeacherAnswer]) -> Tensor:
    """Sum over the stages of the mean squared difference from a teacher's features, divided by their variance.

    The mean is over the teachers that have features of the same widths, 0 without any. Every channel counts the same,
    however large its numbers are (compare arXiv:1412.6550).

    Args:
        features: (batch, channels, h, w) of every stage.
    """
    seen = [teacher for teacher in teachers if teacher.features]
    terms = [
        _stage_difference(own.float(), theirs.float())
        for teacher in seen
        for own, theirs in zip(features, teacher.features, strict=True)
    ]
    return torch.stack(terms).sum() / len(seen) if terms else features[0].new_zeros(())


def _stage_difference(own: Tensor, theirs: Tensor) -> Tensor:
    variance = theirs.var((0, 2, 3), correction=0)
    difference = (own - theirs).square().mean((0, 2, 3))
    return (difference / (variance + FEATURE_FLOOR * variance.mean()).clamp(min=1e-12)).mean()
