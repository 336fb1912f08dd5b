from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from tests.optional import needs

needs("torch", "accelerate")

import torch
from torch.nn import functional as F

from evitseg.train import TrainConfig
from evitseg.train.distill import TeacherAnswer, distillation, feature_difference
from evitseg.train.losses import Objective, class_weights, dice, hardest, lovasz_softmax, near_boundary, upsampled

PLAIN = TrainConfig().updated({"loss.stride": 1})


def objective_of(config: TrainConfig, *arguments: Any) -> Objective:
    return Objective(config.loss, config.distill, *arguments)


def value(
    config: TrainConfig, logits: torch.Tensor, truth: torch.Tensor, weights: torch.Tensor | None = None
) -> torch.Tensor:
    weights = torch.ones(logits.shape[1]) if weights is None else weights
    return objective_of(config, weights, 255)(logits, [], truth, [], (0, 0), progress=1.0)


def random_batch(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    truth = torch.randint(0, 5, (2, 32, 48), generator=generator)
    truth[truth == 4] = 255
    return torch.randn(2, 4, 4, 6, generator=generator), truth


@pytest.mark.parametrize("stride", [1, 2, 3])
def test_up_sampling_gives_the_same_pixels(stride: int) -> None:
    logits = torch.randn(2, 3, 5, 7, generator=torch.Generator().manual_seed(0))
    whole = F.interpolate(logits, (41, 50), mode="bilinear", align_corners=False)
    offset = (stride - 1, 0)
    torch.testing.assert_close(
        upsampled(logits, (41, 50), stride, offset), whole[..., offset[0] :: stride, offset[1] :: stride]
    )


def test_cross_entropy_is_pytorchs() -> None:
    logits, truth = random_batch()
    weights = torch.tensor([0.5, 1.0, 2.0, 3.0])
    full = F.interpolate(logits, truth.shape[-2:], mode="bilinear", align_corners=False)
    expected = F.cross_entropy(full, truth, weights, ignore_index=255)
    torch.testing.assert_close(value(PLAIN, logits, truth, weights), expected)


def test_the_strided_loss_is_the_whole_one_on_average() -> None:
    logits, truth = random_batch()
    truth = truth.where(truth != 255, torch.zeros((), dtype=truth.dtype))  # each part then has as many pixels
    config = PLAIN.updated({"loss.stride": 2})
    objective = objective_of(config, torch.ones(4), 255)
    parts = [objective(logits, [], truth, [], (y, x), 1.0) for y in (0, 1) for x in (0, 1)]
    torch.testing.assert_close(torch.stack(parts).mean(), value(PLAIN, logits, truth))


def test_ignored_pixels_do_not_count() -> None:
    logits = torch.tensor([[[[2.0]], [[0.0]]]])
    loss = value(PLAIN, logits, torch.tensor([[[0, 255]]]))
    assert loss.item() == pytest.approx(-math.log(math.exp(2) / (math.exp(2) + 1)), rel=1e-5)


@pytest.mark.parametrize(
    "terms",
    [
        {},
        {"loss.dice": 1.0},
        {"loss.lovasz": 1.0, "loss.lovasz_from": 0.0},
        {"loss.boundary_weight": 2.0},
        {"loss.ohem_fraction": 0.2},
        {"loss.label_smoothing": 0.1},
    ],
)
def test_every_term_falls_as_the_logits_improve_and_is_zero_without_pixels(terms: dict[str, float]) -> None:
    logits, truth = random_batch()
    config = PLAIN.updated(terms)
    scores = logits.clone().requires_grad_()
    values = []
    for _ in range(8):
        loss = value(config, scores, truth)
        values.append(loss.item())
        (gradient,) = torch.autograd.grad(loss, scores)
        scores = (scores - 20 * gradient / gradient.norm().clamp(min=1)).detach().requires_grad_()
    assert all(b < a for a, b in pairwise(values))
    nothing = value(config, scores, torch.full_like(truth, 255))
    assert nothing.item() == 0
    torch.autograd.backward(nothing)
    assert torch.isfinite(scores.grad).all()  # type: ignore[arg-type]


def test_lovasz_is_one_minus_iou_for_certain_answers() -> None:
    # At certain answers the extension is the function itself (arXiv:1705.08790).
    truth = torch.tensor([[[0, 0, 1, 1, 1, 255]]])
    answer = torch.tensor([[[0, 1, 1, 1, 0, 1]]])
    logits = 200.0 * F.one_hot(answer, 3).permute(0, 3, 1, 2)
    expected = ((1 - 1 / 3) + (1 - 2 / 4)) / 2  # the third class does not occur
    assert lovasz_softmax(logits, truth, 255).item() == pytest.approx(expected, abs=1e-5)


def test_dice_of_certain_answers() -> None:
    truth = torch.tensor([[[0, 0, 1, 1, 1, 255]]])
    answer = torch.tensor([[[0, 1, 1, 1, 0, 1]]])
    logits = 200.0 * F.one_hot(answer, 3).permute(0, 3, 1, 2)
    first, second = (2 * 1 + 1) / (2 + 2 + 1), (2 * 2 + 1) / (3 + 3 + 1)
    assert dice(logits, truth, 255).item() == pytest.approx(1 - (first + second) / 2, abs=1e-5)


def test_boundaries_equal_those_counted_by_hand() -> None:
    truth = torch.zeros(1, 9, 9, dtype=torch.long)
    truth[:, :, 5:] = 1
    truth[:, 0] = 255
    near = near_boundary(truth, 255, 2)
    assert near[0, 4].tolist() == [False, False, False, True, True, True, True, False, False]
    assert not near[0, 0].any()
    # Ignored pixels form no boundary.
    assert not near_boundary(torch.where(truth == 1, 0, truth), 255, 2).any()


def test_hard_pixels_are_the_unsure_ones_and_at_least_a_fraction() -> None:
    sure, unsure = math.log(9), math.log(1.5)  # 0.9 and 0.6 of two classes
    logits = torch.tensor([sure, unsure, sure, -sure]).view(1, 1, 1, 4)
    logits = torch.cat([logits, torch.zeros_like(logits)], dim=1)
    truth = torch.zeros(1, 1, 4, dtype=torch.long)
    counted = torch.ones_like(truth, dtype=torch.bool)
    assert hardest(logits, truth, counted, 0.25)[0, 0].tolist() == [False, True, False, True]
    assert hardest(logits, truth, counted, 1.0).all()


def teacher_probs(logits: torch.Tensor, temperature: float = 1.0, support: float = 1.0) -> TeacherAnswer:
    probs = (logits / temperature).softmax(1)
    return TeacherAnswer(torch.arange(logits.shape[1]), probs, torch.full_like(probs[:, 0], support))


def test_a_student_that_agrees_with_its_teacher_has_no_distillation_loss() -> None:
    logits = torch.randn(2, 4, 3, 3, generator=torch.Generator().manual_seed(0))
    other = logits + torch.randn(2, 4, 3, 3, generator=torch.Generator().manual_seed(1))
    for temperature in (1.0, 3.0):
        teacher = teacher_probs(logits, temperature)
        assert distillation(logits, [teacher], temperature).item() == pytest.approx(0, abs=1e-6)
        full = distillation(other, [teacher], temperature)
        assert full.item() > 0.05
        # Two teachers count half each; one that supports none of our classes does not count.
        torch.testing.assert_close(
            distillation(other, [teacher, teacher_probs(other, temperature)], temperature), full / 2
        )
        assert distillation(other, [teacher_probs(logits, temperature, support=0.0)], temperature).item() == 0


def test_a_teacher_has_no_influence_on_classes_it_does_not_know() -> None:
    logits = torch.randn(1, 4, 3, 3, generator=torch.Generator().manual_seed(0))
    sure_of_unknown = logits.clone()
    sure_of_unknown[:, 3] += 10
    known = TeacherAnswer(torch.tensor([0, 1, 2]), logits[:, :3].softmax(1), torch.ones(1, 3, 3))
    for student in (logits, sure_of_unknown):
        assert distillation(student, [known], 1.0).item() == pytest.approx(0, abs=1e-6)


def test_two_unequal_halves_have_the_loss_and_gradient_of_the_whole() -> None:
    """The mean over processes, without processes."""
    logits, truth = random_batch()
    logits = (5 * logits).requires_grad_()
    truth[0, :28] = 255  # most of one half does not count
    weights = torch.tensor([0.2, 1.0, 2.0, 5.0])
    config = PLAIN.updated({"loss.boundary_weight": 1.5})
    whole = value(config, logits, truth, weights)
    (expected,) = torch.autograd.grad(whole, logits)
    sums: list[torch.Tensor] = []
    halves = [(logits[:1], truth[:1]), (logits[1:], truth[1:])]
    for part in halves:
        objective_of(config, weights, 255, lambda total: sums.append(total) or total)(  # type: ignore[func-returns-value]
            part[0], [], part[1], [], (0, 0), 1.0
        )
    mean = (sums[0] + sums[1]) / 2
    losses = [objective_of(config, weights, 255, lambda _: mean)(a, [], b, [], (0, 0), 1.0) for a, b in halves]
    together = (losses[0] + losses[1]) / 2  # as processes average gradients
    torch.testing.assert_close(together, whole)
    torch.testing.assert_close(torch.autograd.grad(together, logits)[0], expected)
    naive = (value(config, *halves[0], weights) + value(config, *halves[1], weights)) / 2
    assert abs((naive - whole).item()) > 0.05  # what it would be without


def test_auxiliary_heads_and_teachers_add_their_terms() -> None:
    logits, truth = random_batch()
    config = PLAIN.updated({"loss.auxiliary": 0.4, "distill.weight": 2.0})
    objective = objective_of(config, torch.ones(4), 255)
    plain = objective(logits, [], truth, [], (0, 0), 0.0)
    early = torch.randn(2, 4, 2, 3)
    more = objective(logits, [early], truth, [], (0, 0), 0.0)
    coarse = F.interpolate(early, truth.shape[-2:], mode="bilinear", align_corners=False)[..., ::2, ::2]
    torch.testing.assert_close(more - plain, 0.4 * F.cross_entropy(coarse, truth[:, ::2, ::2], ignore_index=255))
    teachers = [teacher_probs(torch.zeros_like(logits))]
    distilled = objective(logits, [], truth, teachers, (0, 0), 0.0)
    torch.testing.assert_close(distilled - plain, 2 * distillation(logits, teachers, 1.0))
    features = [torch.randn(2, 8, 4, 4)]
    seeing = [replace(teachers[0], features=[torch.randn(2, 8, 4, 4)])]
    both = objective_of(config.updated({"distill.features": 0.5}), torch.ones(4), 255)
    more = both(logits, [], truth, seeing, (0, 0), 0.0, features)
    torch.testing.assert_close(more - distilled, 0.5 * feature_difference(features, seeing))


def test_lovasz_begins_at_its_fraction_of_the_run() -> None:
    logits, truth = random_batch()
    objective = objective_of(PLAIN.updated({"loss.lovasz": 1.0, "loss.lovasz_from": 0.5}), torch.ones(4), 255)
    before, after = (objective(logits, [], truth, [], (0, 0), progress) for progress in (0.49, 0.5))
    assert after > before + 0.1


def test_rare_classes_weigh_more_and_the_mean_stays_one() -> None:
    frequencies = np.array([0.9, 0.09, 0.01, 0.0])
    weights = class_weights(frequencies, power=1.0)
    assert (weights[:-1] < weights[1:]).all()
    ratio = math.log(1.10 + 0.9) / math.log(1.10 + 0.09)
    assert (weights[1] / weights[0]).item() == pytest.approx(ratio, rel=1e-5)
    assert (weights.numpy() * frequencies).sum() == pytest.approx(1, rel=1e-5)
    torch.testing.assert_close(class_weights(frequencies, power=0.0), torch.ones(4))
