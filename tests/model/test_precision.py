"""Half precision on the published weights and real images; `benchmarks/precision.py` does the whole set."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

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


@pytest.mark.parametrize("precision", MIN_EQUAL)
def test_half_precision_gives_finite_logits_and_nearly_the_same_masks(
    precision: str, b0_checkpoint: Path, shared: Callable[[str], Path]
) -> None:
    preprocess = Preprocess(720)
    model, manifest = load_checkpoint(b0_checkpoint, preprocess=preprocess)
    engines = [TorchEngine(model, manifest, kind) for kind in ("float32", precision)]  # type: ignore[arg-type]
    labels = load_labels("camvid")
    confusions, equal = np.zeros((2, 11, 11), np.int64), []
    for path in sorted((shared("data/camvid") / "test").iterdir())[::4]:
        truth = read_truth(shared("data/camvid") / "testannot" / f"{path.stem}.png", labels)
        image = preprocess.apply(read_image(path))
        masks = []
        for confusion, engine in zip(confusions, engines, strict=True):
            logits = engine(image[None])[0]
            assert np.isfinite(logits).all()
            masks.append(argmax_upsampled(logits, (360, 480)))
            mask = argmax_upsampled(np.stack([logits[group].max(0) for group in CAMVID_CLASSES]), (360, 480))
            confusion += confusion_matrix(truth, mask, 11, labels.ignore_index)
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
