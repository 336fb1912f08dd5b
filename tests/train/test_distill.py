from __future__ import annotations

from tests.optional import needs

needs("torch", "accelerate")

from pathlib import Path

import pytest
import torch

from evitseg.errors import ConfigError
from evitseg.labels import load_labels, numbered
from evitseg.model.checkpoints import load_checkpoint
from evitseg.model.network import build
from evitseg.train.distill import TeacherAnswer, Teachers, feature_difference, widths_of


def test_teachers_give_probabilities_of_the_datas_classes(b0_checkpoint: Path) -> None:
    labels = load_labels("camvid")
    classes_from = {"pavement": ("sidewalk",), "bicyclist": ("rider", "bicycle")}
    teachers = Teachers([str(b0_checkpoint), str(b0_checkpoint)], labels, classes_from, torch.device("cpu"))
    pixels = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    first, second = teachers(pixels, 2.0)
    assert torch.equal(first.probs, second.probs)
    assert first.probs.shape == (1, len(first.classes), 8, 8)
    known = [labels.names[at] for at in first.classes]
    assert set(labels.names) - set(known) == {"tree", "sign", "pedestrian"}
    torch.testing.assert_close(first.probs.sum(1), torch.ones(1, 8, 8))
    theirs = (load_checkpoint(b0_checkpoint)[0](pixels) / 2).softmax(1)[0]
    names = load_labels("cityscapes").names
    ratio = (theirs[names.index("rider")] + theirs[names.index("bicycle")]) / theirs[names.index("sky")]
    ours = first.probs[0, known.index("bicyclist")] / first.probs[0, known.index("sky")]
    torch.testing.assert_close(ours, ratio, rtol=1e-3, atol=1e-4)
    assert (first.support[0] < 0.999).any()  # vegetation, signs and persons match no class of ours
    with pytest.raises(ConfigError, match="must know at least 2 classes of the data, it knows 0"):
        Teachers([str(b0_checkpoint)], numbered(4), {}, torch.device("cpu"))


def test_only_teachers_with_the_same_widths_show_their_features(b0_checkpoint: Path) -> None:
    labels, pixels = load_labels("cityscapes"), torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    network = load_checkpoint(b0_checkpoint)[0]
    for widths, alike in ((widths_of(network), True), (widths_of(build("b1", 2)), False)):
        teachers = Teachers([str(b0_checkpoint)], labels, {}, torch.device("cpu"), widths)
        assert teachers.have_features == alike
        (answer,) = teachers(pixels, 1.0)
        assert bool(answer.features) == alike
    features = network.backbone(pixels)
    (answer,) = Teachers([str(b0_checkpoint)], labels, {}, torch.device("cpu"), widths_of(network))(pixels, 1.0)
    assert feature_difference(features, [answer]) < 1e-6


def test_the_difference_of_features_is_relative_to_their_variance_and_a_sum_over_stages() -> None:
    generator = torch.Generator().manual_seed(0)
    theirs = [torch.randn(2, 8, 16, 16, generator=generator) * 10.0**stage for stage in range(3)]
    nobody = torch.zeros(0)
    teacher = TeacherAnswer(nobody, nobody, nobody, theirs)
    other = TeacherAnswer(nobody, nobody, nobody)
    own = [(1.5 * each).requires_grad_() for each in theirs]
    difference = feature_difference(own, [teacher, other])
    assert float(difference.detach()) == pytest.approx(3 * 0.25, rel=0.03)
    (gradient,) = torch.autograd.grad(difference, own[:1])
    assert (gradient * (own[0] - theirs[0]) >= 0).all()
    assert feature_difference(own, [other]) == 0
