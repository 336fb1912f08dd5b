from __future__ import annotations

from tests.optional import needs

needs("torch", "accelerate")

from pathlib import Path

import pytest
import torch

from evitseg.errors import ConfigError
from evitseg.labels import load_labels, numbered
from evitseg.model.checkpoints import load_checkpoint
from evitseg.train.distill import Teachers


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
