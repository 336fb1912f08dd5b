"""Compare an exported model with its checkpoint on real images, and store what other machines can compare."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from evitseg.bundled import EXAMPLE_IMAGE
from evitseg.data.lists import Pair
from evitseg.engine import Engine
from evitseg.errors import ExportError
from evitseg.evaluation.evaluate import evaluate
from evitseg.image import ImageArray
from evitseg.labels import LabelSpace
from evitseg.manifest import Manifest, SelfCheck, Verification
from evitseg.model.engine import TorchEngine
from evitseg.model.layers import ConvNormAct
from evitseg.model.network import EfficientViT
from evitseg.raster.files import read_image
from evitseg.runtime import self_check
from evitseg.runtime.segmenter import Segmenter
from evitseg.runtime.upsample import argmax_upsampled

TOLERANCE = {
    "float32": (1e-3, 0.999),
    "float16": (2e-2, 0.995),
    "int8": (2e-2, 0.995),
    "w8a8": (0.75, 0.8),
    "float16 arithmetic": (5e-2, 0.99),
}
"""Limits by the number format of the stored weights: the largest difference of a logit relative to its image's largest
logit, and the smallest fraction of equal mask pixels. Rounded weights move boundaries slightly, by 0.2 % of the pixels
for the published B0 at a short side of 512; float16 arithmetic, which Core ML uses, adds to that. Engines round
sums of integers up or down as they like, which moves about 1 % of the pixels, as 8 bits themselves do, and up to 12 %
of small drawings; what the file is worth is its mIoU on the user's data."""
SHAKE, SMOOTH = 5e-7, 2.5e-7
"""Standard deviations, relative to the largest result of a convolution, of the errors that look for logits which jump,
and of those whose smooth changes count. Errors of float32 are about 5e-8."""
SLACK = 3
"""Factor between a difference that was measured at export and the limit of the self-check, because every device rounds
in its own way."""


def example_images() -> list[ImageArray]:
    """The bundled photograph in three shapes: whole, its upright middle, and small."""
    whole = read_image(EXAMPLE_IMAGE)
    height, width = whole.shape[:2]
    upright = whole[:, (width - height // 2) // 2 : (width + height // 2) // 2]
    return [whole, np.ascontiguousarray(upright), np.ascontiguousarray(whole[::4, ::4])]


def verify(
    model_file: str,
    engine: Engine,
    reference: Engine,
    manifest: Manifest,
    images: Sequence[ImageArray],
    model: EfficientViT | None = None,
) -> Verification:
    """Run both on every image, and compare logits and masks.

    Args:
        model_file: its name, for the message.
        engine: runs the exported model.
        reference: runs the expected network, whose weights are already rounded if the file stores 8 bits.
        model: that network. If `engine` computes in float16, its logits may also differ by as much as those of the
            network with weights and feature maps rounded to bfloat16. Where the largest number of a query is 0 but for
            rounding, its answer jumps (`_shaken` says why), in some networks and images further than `TOLERANCE`.

    Raises: ExportError with the numbers if they differ by more than `TOLERANCE`.
    """
    largest, equal, pixels = 0.0, 0, 0
    for image in images:
        batch = manifest.preprocess.apply(image)[None]
        actual, expected = engine(batch)[0], reference(batch)[0]
        if not np.isfinite(expected).all():
            raise ExportError("the checkpoint itself gives logits that are not finite; train it again.")
        largest = max(largest, _difference(actual, expected))
        masks = [argmax_upsampled(logits, image.shape[:2]) for logits in (actual, expected)]
        equal += int((masks[0] == masks[1]).sum())
        pixels += masks[0].size
    half = engine.info.precision == "float16"
    tolerance, min_equal = TOLERANCE["float16 arithmetic" if half else manifest.weights]
    if largest > tolerance and half and model is not None:
        rounded = TorchEngine(rounded_to_bfloat16(model), manifest)
        batches = [manifest.preprocess.apply(image)[None] for image in images]
        tolerance = max(tolerance, *(_difference(rounded(batch), reference(batch)) for batch in batches))
    if largest > tolerance or equal < min_equal * pixels:
        raise ExportError(
            f"{model_file} disagrees with its checkpoint and was discarded: the largest logit difference is "
            f"{largest:.2e} (at most {tolerance:.0e}), {equal / pixels:.3%} of mask pixels are equal "
            f"(at least {min_equal:.1%}), on {len(images)} images."
        )
    return Verification(len(images), largest, equal / pixels)


def _difference(actual: NDArray[np.float32], expected: NDArray[np.float32]) -> float:
    """The largest difference relative to the largest logit; infinite if a logit is not finite."""
    difference = np.abs(actual - expected).max() / max(np.abs(expected).max(), np.finfo(np.float32).tiny)
    return float(difference) if np.isfinite(difference) else np.inf


def self_check_of(engine: Engine, reference: Engine, model: EfficientViT, manifest: Manifest) -> SelfCheck | None:
    """The self-check of a model that has been verified; None if the only images that it takes are too large to draw.

    Its image is one where rounding changes the logits little, if there is one. Its limits are those of `TOLERANCE`, or
    `SLACK` times what was measured here, if that is more: in float32 the difference of `engine` and that of `_shaken`,
    otherwise that of the network with weights and feature maps rounded to bfloat16.

    Args:
        engine: runs the exported model.
        reference: gives the expected logits, as for `verify`.
        model: its network in float32.
    """
    size = manifest.preprocess.fixed or self_check.SIZE
    if size[0] * size[1] > self_check.MOST_PIXELS:
        return None
    least = TOLERANCE[manifest.weights][0]
    # Integers jump wherever they are rounded, so no image is better than another.
    amounts = () if manifest.weights == "w8a8" else (SHAKE, -SHAKE)
    shaken = [TorchEngine(_shaken(model, amount), manifest) for amount in amounts]
    chosen = min(_tried(reference, shaken, size, least / SLACK), key=lambda t: t.changed)
    exact, rounded = (
        self_check.compare_logits(chosen.check, chosen.expected, run(chosen.image)[0], "float32")
        for run in (engine, TorchEngine(rounded_to_bfloat16(model), manifest))
    )
    tolerance = max(least, SLACK * max(exact.largest_difference, chosen.changed))
    half = max(TOLERANCE["float16 arithmetic"][0], tolerance, SLACK * rounded.largest_difference)
    unequal = max(0.05, SLACK * max(1 - each.equal_fraction for each in (exact, rounded)))
    return replace(
        chosen.check,
        tolerance=min(self_check.MOST_DIFFERENCE, _two_digits(tolerance)),
        half_tolerance=min(self_check.MOST_DIFFERENCE, _two_digits(half)),
        min_equal=max(self_check.LEAST_EQUAL, round(1 - unequal, 2)),
    )


@dataclass(frozen=True)
class _Tried:
    """A self-check without limits, its image in a batch, its logits, and how much shaking changed these."""

    check: SelfCheck
    image: NDArray[np.uint8]
    expected: NDArray[np.float32]
    changed: float


def _tried(reference: Engine, shaken: Sequence[Engine], size: tuple[int, int], enough: float) -> Iterator[_Tried]:
    """Self-checks with one scene after the other, up to one that shaking changes by at most `enough`.

    Args:
        shaken: two networks with opposite errors, or none.
    """
    for number, name in enumerate(self_check.SCENES, 1):
        image = self_check.scene(*size, number)[None]
        logits = reference(image)[0]
        grid = self_check.grid_for(size, len(logits))
        expected = self_check.stored_places(logits, grid)
        check = SelfCheck(name, size, grid, self_check.encoded(expected), 0.0, 0.0, 0.0)
        changed = 0.0
        if shaken:
            one, other = (engine(image)[0] - logits for engine in shaken)
            # What errors change smoothly cancels in the sum. What jumps, jumps in one of the two.
            for change in (one + other, (one - other) * (SMOOTH / SHAKE / 2)):
                agreement = self_check.compare_logits(check, expected, logits + change, "float32")
                changed = max(changed, agreement.largest_difference)
        yield _Tried(check, image, expected, changed)
        if changed <= enough:
            return


def _two_digits(value: float) -> float:
    return float(f"{value:.1e}")


def rounded_to_bfloat16(model: EfficientViT) -> EfficientViT:
    """A copy whose convolutions have weights and results of bfloat16, and compute in float32 like most hardware."""
    model = copy.deepcopy(model)
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            module.weight.data = _in_bfloat16(module.weight.data)
        elif isinstance(module, ConvNormAct):
            module.register_forward_hook(lambda module, given, result: _in_bfloat16(result))
    return model


def _shaken(model: EfficientViT, amount: float) -> EfficientViT:
    """A copy whose convolutions have results with random errors of this standard deviation, relative to the largest.

    Attention gives a query that is zero everywhere 0, and any other a mean of values, however small the query is. Where
    the largest number of a query is 0 but for rounding, each engine may decide otherwise, and both are right: with the
    bundled weights, "scene-1" at 128x192 has such a query, which changes the logits by 4 % of the largest one.

    Copies with opposite amounts have opposite errors, so that one of the two moves a number across 0 if it is smaller
    than its error.
    """
    model = copy.deepcopy(model)
    generator = torch.Generator().manual_seed(0)

    def shake(module: nn.Module, given: object, result: Tensor) -> Tensor:
        return result + amount * result.abs().amax() * torch.randn(result.shape, generator=generator)

    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(shake)
    return model


def _in_bfloat16(values: Tensor) -> Tensor:
    return values.to(torch.bfloat16).to(values.dtype)


def miou(engine: Engine, pairs: Sequence[Pair], labels: LabelSpace) -> tuple[float, tuple[str, ...]]:
    """An engine's mIoU in percent on images with masks, and a sentence for each pair that was skipped.

    Args:
        labels: the classes of the masks, in the order of the engine's.

    Raises: DatasetError if no pair can be read.
    """
    report = evaluate(Segmenter(engine).mask, pairs, labels)
    return 100 * report.miou, report.skipped
