"""A dataset: pairs of images and masks, their splits and their classes."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from evitseg.data.folders import Skipped
from evitseg.data.lists import Pair
from evitseg.data.truth import settled_for
from evitseg.errors import DatasetError
from evitseg.labels import LabelSpace

ALL = "all"
"""Name of the only split of a dataset that is not divided."""
SPLITS = ("train", "val", "test", ALL)
"""Names of splits, in the order in which they are listed."""
SPLIT_SYNONYMS = {
    "train": "train", "training": "train",
    "val": "val", "valid": "val", "validation": "val",
    "test": "test", "testing": "test",
}  # fmt: skip
"""Names that people and tools give to splits, in lower case."""


@dataclass(frozen=True)
class Dataset:
    """Pairs of images and masks found on disk. Only folders and lists have been read so far, no image.

    Attributes:
        root: the folder or file it was found in.
        layout: the recognised arrangement, in words.
        splits: pairs per split, in the order of `SPLITS`.
        labels: the classes, if the data names them.
        unpaired: images without a mask and masks without an image.
        problems: sentences about annotations that are wrong and were skipped.
        notes: sentences about other things worth knowing.
        skipped: files that look like images or masks and are not read.
    """

    root: Path
    layout: str
    splits: Mapping[str, tuple[Pair, ...]]
    labels: LabelSpace | None
    unpaired: tuple[Path, ...]
    problems: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    skipped: tuple[Skipped, ...] = ()

    @property
    def left_out(self) -> str:
        """A sentence about the files without a partner, which are no pairs; empty if there are none."""
        files = self.unpaired
        if not files:
            return ""
        some = ", ".join(map(str, files[:3])) + ", ..." * (len(files) > 3)
        what = "1 file has" if len(files) == 1 else f"{len(files)} files have"
        return f"left out: {what} no matching mask or image of the same name ({some})."

    def pairs(self, split: str | None = None) -> tuple[Pair, ...]:
        """The pairs of one split, or all pairs. Raises: DatasetError for a split that does not exist."""
        if split is None:
            return tuple(pair for pairs in self.splits.values() for pair in pairs)
        if split not in self.splits:
            raise DatasetError(f"{self.root}: there is no split {split!r}; there are {', '.join(self.splits)}.")
        return self.splits[split]


def infer_labels(pairs: Sequence[Pair]) -> LabelSpace:
    """Numbered classes for masks without class names; see `evitseg.data.truth`. Raises: DatasetError."""
    return settled_for([pair.mask for pair in pairs], None)


def split_pairs(pairs: Sequence[Pair], fraction: float = 0.2, seed: int = 0) -> dict[str, tuple[Pair, ...]]:
    """Divide pairs at random into "train" and "val", in the same way for the same seed.

    Args:
        fraction: size of "val" as a fraction of all pairs; both splits get at least one pair.

    Raises: DatasetError for fewer than two pairs.
    """
    if len(pairs) < 2:
        raise DatasetError(
            f"{len(pairs)} pair cannot be divided into training and validation; at least two are needed."
        )
    order = list(range(len(pairs)))
    random.Random(seed).shuffle(order)
    validation = set(order[: min(max(1, round(fraction * len(pairs))), len(pairs) - 1)])
    return {
        "train": tuple(pair for i, pair in enumerate(pairs) if i not in validation),
        "val": tuple(pair for i, pair in enumerate(pairs) if i in validation),
    }
