"""Check what a model computes on this machine: a drawn image, and the logits that its file says it must give.

The image is drawn by a formula of integers, so that no file has to store it and programs in any language can draw it.
docs/reference/models.md describes it for them.
"""

from __future__ import annotations

import base64
import binascii
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from evitseg.architecture import LOGIT_STRIDE
from evitseg.errors import WeightsError
from evitseg.image import ImageArray
from evitseg.manifest import Manifest, SelfCheck

SCENES = ("scene-1", "scene-2", "scene-3", "scene-4")
"""Names of the images that `scene` draws, by their numbers from 1 on."""
SIZE = (256, 384)
"""Height and width of the image for models of any size. Rounding changes the logits of smaller images more."""
MOST_LOGITS = 4096
"""Largest number of stored logits, 16 KiB, if there are not more classes than that."""
MOST_PIXELS = 4096 * 4096
"""Largest image that is drawn. A file can name any size, and a larger one would take gigabytes to run."""
MOST_DIFFERENCE, LEAST_EQUAL = 0.9, 0.5
"""Widest limits of a self-check: logits that are all zero differ by 1 from any others."""


@dataclass(frozen=True)
class LogitAgreement:
    """How far logits are from those that were expected.

    Attributes:
        largest_difference: largest difference of a logit, as a fraction of the largest expected one; infinite if a
            logit is not finite.
        equal_places, places: stored places whose class is the same, and all of them.
        tolerance, min_equal: limits on the difference and on the fraction of equal places.
    """

    largest_difference: float
    equal_places: int
    places: int
    tolerance: float
    min_equal: float

    @property
    def equal_fraction(self) -> float:
        return self.equal_places / self.places

    @property
    def agrees(self) -> bool:
        return self.largest_difference <= self.tolerance and self.equal_fraction >= self.min_equal


def scene(height: int, width: int, number: int = 1) -> ImageArray:
    """An image to check with, (height, width, 3): a street with a house, a tree and the sky, drawn in integers.

    Args:
        number: moves the texture, so that every pixel has other values.
    """
    y, x = np.arange(height)[:, None], np.arange(width)
    v, u = 256 * y // height, 256 * x // width
    colors = (
        ((v >= 170) & (np.abs(u - 128) < 4) & (v // 12 % 2 == 0), (225, 225, 220)),  # marking
        (v >= 170, (90, 88, 94)),  # road
        ((u < 84) & (v >= 28) & (u % 21 >= 11) & (v % 24 >= 12), (52, 60, 74)),  # window
        ((u < 84) & (v >= 28), (166, 118, 92)),  # house
        ((u - 190) ** 2 + (v - 104) ** 2 < 2500, (56, 104, 48)),  # tree
        (v >= 150, (176, 170, 160)),  # pavement
    )
    sky = (120 + v // 2, 160 + v // 3, 228)
    p, q = (x + number - 1) % 31, y % 31
    texture = (7 * p * p + 13 * q * q + 5 * p * q) % 31 - 15
    where = [condition for condition, _ in colors]
    channels = [np.select(where, [color[c] for _, color in colors], sky[c]) + texture for c in range(3)]
    return np.stack(channels, -1).astype(np.uint8)


def grid_for(size: tuple[int, int], classes: int) -> tuple[int, int]:
    """Rows and columns of the logits to store for an image of this (height, width)."""
    rows, columns = (side // LOGIT_STRIDE for side in size)
    scale = min(1.0, math.sqrt(MOST_LOGITS / classes / (rows * columns)))
    return max(1, int(rows * scale)), max(1, int(columns * scale))


def stored_places(logits: NDArray[np.float32], grid: tuple[int, int]) -> NDArray[np.float32]:
    """(classes, rows, columns): the logits of one image at the rows and columns that are stored."""
    down, across = (np.arange(count) * side // count for count, side in zip(grid, logits.shape[1:], strict=True))
    chosen: NDArray[np.float32] = logits[:, down][:, :, across]
    return chosen


def encoded(logits: NDArray[np.float32]) -> str:
    """Stored logits as text."""
    return base64.b64encode(np.ascontiguousarray(logits, "<f4").tobytes()).decode()


def expected_logits(check: SelfCheck, classes: int, where: str | Path) -> NDArray[np.float32]:
    """(classes, rows, columns): the stored logits. Raises: WeightsError if they are damaged."""
    try:
        content = base64.b64decode(check.logits, validate=True)
    except (binascii.Error, ValueError):
        content = b""
    shape = (classes, *check.grid)
    if len(content) != 4 * math.prod(shape) or not np.isfinite(logits := np.frombuffer(content, "<f4")).all():
        raise WeightsError(f"{where}: the logits of its self-check are damaged; export it again.")
    return logits.reshape(shape).astype(np.float32)


def input_of(manifest: Manifest, where: str | Path) -> tuple[SelfCheck, ImageArray]:
    """A model's self-check and its image.

    Raises: WeightsError if the model has none, one that this version cannot draw, or one that wrong logits would pass.
    """
    check = manifest.self_check
    if check is None:
        raise WeightsError(
            f"{where}: has no self-check; files that evitseg export writes have one, if they take images of up to "
            f"{MOST_PIXELS:,} pixels, so export this model."
        )
    if check.image not in SCENES:
        raise WeightsError(f"{where}: its self-check uses the image {check.image!r:.40}; update evitseg to draw it.")
    if manifest.preprocess.fixed not in (None, check.size):
        raise WeightsError(f"{where}: its self-check has another size than its images; export it again.")
    height, width = check.size
    if height * width > MOST_PIXELS:
        raise WeightsError(
            f"{where}: the image of its self-check has {height}x{width} pixels, and evitseg draws at most "
            f"{MOST_PIXELS:,}; export it again."
        )
    if max(check.tolerance, check.half_tolerance) > MOST_DIFFERENCE or check.min_equal < LEAST_EQUAL:
        raise WeightsError(
            f"{where}: its self-check would accept wrong logits, with a difference of up to "
            f"{max(check.tolerance, check.half_tolerance):g} (at most {MOST_DIFFERENCE:g}) and with "
            f"{check.min_equal:.0%} of equal classes (at least {LEAST_EQUAL:.0%}); export it again."
        )
    return check, scene(*check.size, SCENES.index(check.image) + 1)


def compare_logits(
    check: SelfCheck, expected: NDArray[np.float32], logits: NDArray[np.float32], precision: str
) -> LogitAgreement:
    """Compare a model's logits for the image with the stored ones.

    Args:
        expected: `expected_logits`.
        logits: (classes, h / 8, w / 8).
        precision: of the arithmetic; the limits for "float32" are tighter.
    """
    actual = stored_places(logits, check.grid)
    largest = max(float(np.abs(expected).max()), float(np.finfo(np.float32).tiny))
    difference = float(np.abs(actual - expected).max()) / largest if np.isfinite(logits).all() else math.inf
    equal = int((actual.argmax(0) == expected.argmax(0)).sum())
    tolerance = check.tolerance if precision == "float32" else check.half_tolerance
    return LogitAgreement(difference, equal, math.prod(check.grid), tolerance, check.min_equal)
