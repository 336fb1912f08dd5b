"""Attention sums of tiles, and their reproducible total."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice

import numpy as np
from numpy.typing import NDArray

from evitseg.tiling.graph_cut import EPS, KEY_SCALE, LARGEST, PARTIAL, SUMS, Attention
from evitseg.tiling.network import Arrays

SMALLEST = 2.0**-14
"""Where attention's divisors stop, as in the network."""


GROUP = 32
"""Parts of a sum that are added one after the other."""


@dataclass(frozen=True)
class Sums:
    """What one attention layer knows of an image, or of a part of it.

    Attributes:
        values: (heads, head_dim + 1, head_dim) float64, sums over tokens of value · key, and in the last row of keys.
        largest: (heads,) largest key, at least `SMALLEST`.
        tokens: how many were summed over.
    """

    values: NDArray[np.float64]
    largest: NDArray[np.float64]
    tokens: float

    def inputs(self, number: int, attention: Attention) -> Arrays:
        """The network's inputs for attention layer `number`: scaled as it scales the sums of a whole image."""
        key_scale = max(self.tokens, 1) ** -0.5 / self.largest[:, None, None]
        scaled = self.values * key_scale
        sum_scale = np.maximum(scaled[:, -1:, :].max(-1, keepdims=True), SMALLEST)
        inputs = {f"{SUMS}{number}": (scaled / sum_scale)[None].astype(np.float32)}
        if attention.eps_term is not None:
            inputs[f"{EPS}{number}"] = (attention.eps * key_scale / sum_scale)[None].astype(np.float32)
        return inputs


def record_length(attention: Attention) -> int:
    """Numbers that a tile adds to a sum, as they are kept: its sums, two scales a head, the number of tokens."""
    return attention.heads * ((attention.head_dim + 1) * attention.head_dim + 2) + 1


def record_of(outputs: Arrays, tokens: float) -> NDArray[np.float32]:
    """A tile's part of a sum from what its piece gave."""
    parts = [outputs[name].ravel() for name in (PARTIAL, KEY_SCALE, LARGEST)]
    return np.concatenate([*parts, np.array([tokens])]).astype(np.float32)


def summed(records: Iterable[NDArray[np.float32]], heads: int, head_dim: int) -> Sums:
    """The sum of tiles' parts: of every `GROUP` neighbours, then of every `GROUP` of those, and so on.

    The same bits for the same order, on whichever machine each group is added.
    """
    parts: Iterator[Sums] = (part_of(record, heads, head_dim) for record in records)
    while len(groups := list(added_groups(parts, heads, head_dim))) > 1:
        parts = iter(groups)
    return groups[0] if groups else added([], heads, head_dim)


def added_groups(parts: Iterator[Sums], heads: int, head_dim: int) -> Iterator[Sums]:
    while group := list(islice(parts, GROUP)):
        yield added(group, heads, head_dim)


def part_of(record: NDArray[np.float32], heads: int, head_dim: int) -> Sums:
    """What a tile's record adds."""
    size = heads * (head_dim + 1) * head_dim
    values, scales = record[:size].astype(np.float64), record[size:-1].reshape(2, heads).astype(np.float64)
    return Sums(values.reshape(heads, head_dim + 1, head_dim) / scales[0][:, None, None], scales[1], float(record[-1]))


def added(parts: Iterable[Sums], heads: int, head_dim: int) -> Sums:
    """One after the other, in float64."""
    total, largest, tokens = np.zeros((heads, head_dim + 1, head_dim)), np.full(heads, SMALLEST), 0.0
    for part in parts:
        total += part.values
        largest = np.maximum(largest, part.largest)
        tokens += part.tokens
    return Sums(total, largest, tokens)
