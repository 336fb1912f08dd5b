"""Labelled images: pairs, splits and the classes of a data set."""

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
"""The name of the only split, where the data has none."""


@dataclass(frozen=True)
class Dataset:
    """Images with masks, found on disk; nothing is read yet but the folders.

    Attributes:
        root: the folder or file it was found by.
        layout: which of the known arrangements it is.
        splits: pairs by the split's name, "train", "val" and "test" or only "all"; in the order of their names.
        labels: the classes, where the data says them.
        unpaired: images without a mask, and masks without an image.
        problems: sentences about annotations that are wrong and were left out.
        notes: sentences about what is not wrong but worth knowing.
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

    def pairs(self, split: str | None = None) -> tuple[Pair, ...]:
        """One split's pairs, or all. Raises: DatasetError for a split that there is not."""
        if split is None:
            return tuple(pair for pairs in self.splits.values() for pair in pairs)
        if split not in self.splits:
            raise DatasetError(f"{self.root}: there is no split {split!r}; there are {', '.join(self.splits)}.")
        return self.splits[split]


def infer_labels(pairs: Sequence[Pair]) -> LabelSpace:
    """Numbered classes for masks that nobody named; see `evitseg.data.truth`. Raises: DatasetError."""
    return settled_for([pair.mask for pair in pairs], None)


def split_pairs(pairs: Sequence[Pair], share: float = 0.2, seed: int = 0) -> dict[str, tuple[Pair, ...]]:
    """Pairs divided at random into "train" and "val", the same for the same seed.

    Args:
        share: of the validation split; both splits get at least one pair.
    """
    if len(pairs) < 2:
        raise DatasetError(f"{len(pairs)} pair cannot be divided into training and validation; two are the least.")
    order = list(range(len(pairs)))
    random.Random(seed).shuffle(order)
    held = set(order[: min(max(1, round(share * len(pairs))), len(pairs) - 1)])
    return {
        "train": tuple(pair for i, pair in enumerate(pairs) if i not in held),
        "val": tuple(pair for i, pair in enumerate(pairs) if i in held),
    }
