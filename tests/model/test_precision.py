"""Half precision on the published weights and real images; `benchmarks/precision.py` does the whole set."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.optional import needs

needs("torch")

import torch

import evitseg
from evitseg.evaluation.metrics import confusion_matrix, mean_iou
from evitseg.labels import load_labels
from evitseg.model.checkpoints import load_checkpoint
from evitseg.model.engine import TorchEngine
from evitseg.preprocess import Preprocess
from evitseg.raster.files import read_image
from evitseg.raster.masks import read_truth
from evitseg.runtime.upsample import argmax_upsampled

# For CamVid's classes, in their order, the channels of Cityscapes' that correspond.
CAMVID_CLASSES = [[10], [2], [5], [0], [1], [8], [7], [4], [13], [11], [12, 18]]

# Measured on all 233 test images: 99.8 % and 98.4 % of pixels equal, mIoU 0.03 and 0.42 points lower.
MIN_EQUAL = {"float16": 0.995, "bfloat16": 0.97}
MAX_DROP = {"float16": 0.1, "bfloat16": 0.5}


@dataclass(frozen=True)
class Sample:
    """An image as the network takes it, its truth, and the logits in float32."""

    image: NDArray[np.uint8]
    truth: NDArray[np.integer]
    logits: NDArray[np.float32]


PREPROCESS = Preprocess(720)


@pytest.fixture(scope="module")
def samples(b0_checkpoint: Path, shared: Callable[[str], Path]) -> list[Sample]:
    """Every fourth image of CamVid's test set."""
    engine = TorchEngine(*load_checkpoint(b0_checkpoint, preprocess=PREPROCESS), "float32")
    labels = load_labels("camvid")
    found = []
    for path in sorted((shared("data/camvid") / "test").iterdir())[::4]:
        truth = read_truth(shared("data/camvid") / "testannot" / f"{path.stem}.png", labels)
        image = PREPROCESS.apply(read_image(path))
        found.append(Sample(image, truth, engine(image[None])[0]))
    return found


@pytest.mark.slow
@pytest.mark.parametrize("precision", MIN_EQUAL)
def test_half_precision_gives_finite_logits_and_nearly_the_same_masks(
    precision: str, b0_checkpoint: Path, samples: list[Sample]
) -> None:
    engine = TorchEngine(*load_checkpoint(b0_checkpoint, preprocess=PREPROCESS), precision)  # type: ignore[arg-type]
    ignored = load_labels("camvid").ignore_index
    confusions, equal = np.zeros((2, 11, 11), np.int64), []
    for sample in samples:
        masks = []
        for confusion, logits in zip(confusions, (sample.logits, engine(sample.image[None])[0]), strict=True):
            assert np.isfinite(logits).all()
            masks.append(argmax_upsampled(logits, (360, 480)))
            mask = argmax_upsampled(np.stack([logits[group].max(0) for group in CAMVID_CLASSES]), (360, 480))
            confusion += confusion_matrix(sample.truth, mask, 11, ignored)
        equal.append((masks[0] == masks[1]).mean())
    assert len(equal) == 59
    assert np.mean(equal) >= MIN_EQUAL[precision]
    assert 100 * (mean_iou(confusions[0]) - mean_iou(confusions[1])) <= MAX_DROP[precision]


@pytest.mark.parametrize("precision", MIN_EQUAL)
def test_half_precision_is_finite_at_full_cityscapes_size(
    precision: str, b0_checkpoint: Path, shared: Callable[[str], Path]
) -> None:
    model, manifest = load_checkpoint(b0_checkpoint)
    image = read_image(next((shared("data/camvid") / "test").iterdir()))
    large = image.repeat(3, 0).repeat(5, 1)[:1024, :2048]
    assert np.isfinite(TorchEngine(model, manifest, precision)(large[None])).all()  # type: ignore[arg-type]


def test_the_network_trains_under_bfloat16_autocast() -> None:
    model = evitseg.build("b0", 3)
    with torch.autocast("cpu", torch.bfloat16):
        loss = model(torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))).float().square().mean()
    loss.backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
