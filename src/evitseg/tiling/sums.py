"""Attention sums: a tile's contribution, and the reproducible total of all tiles."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice

import numpy as np
from numpy.typing import NDArray

from evitseg.tiling.graph_cut import EPS, KEY_SCALE, LARGEST, PARTIAL, SUMS, AttentionNodes
from evitseg.tiling.network import Arrays

SMALLEST = 2.0**-14
"""Lower bound of attention's divisors, the same as in the network."""
GROUP = 32
"""Number of neighbouring sums that are added one after the other."""


@dataclass(frozen=True)
class Sums:
    """The sums of one attention layer over an image, or over a part of it.

    Attributes:
        values: (heads, head_dim + 1, head_dim) float64, sums of value · key over tokens; the last row sums the keys.
        largest: (heads,) largest key, at least `SMALLEST`.
        tokens: number of tokens in the sums.
    """

    values: NDArray[np.float64]
    largest: NDArray[np.float64]
    tokens: float

    def inputs(self, number: int, attention: AttentionNodes) -> Arrays:
        """Inputs of a segment for attention layer `number`, scaled as the network scales the sums of a whole image."""
        key_scale = max(self.tokens, 1) ** -0.5 / self.largest[:, None, None]
        scaled = self.values * key_scale
        sum_scale = np.maximum(scaled[:, -1:, :].max(-1, keepdims=True), SMALLEST)
        inputs = {f"{SUMS}{number}": (scaled / sum_scale)[None].astype(np.float32)}
        if attention.eps_term is not None:
            inputs[f"{EPS}{number}"] = (attention.eps * key_scale / sum_scale)[None].astype(np.float32)
        return inputs


def record_length(attention: AttentionNodes) -> int:
    """Length of a tile's record: its sums, two scales per head, the number of tokens."""
    return attention.heads * ((attention.head_dim + 1) * attention.head_dim + 2) + 1


def tile_record(outputs: Arrays, tokens: float) -> NDArray[np.float32]:
    """A tile's contribution to the sums, as it is stored, from the outputs of its segment."""
    parts = [outputs[name].ravel() for name in (PARTIAL, KEY_SCALE, LARGEST)]
    return np.concatenate([*parts, np.array([tokens])]).astype(np.float32)


def sum_records(records: Iterable[NDArray[np.float32]], heads: int, head_dim: int) -> Sums:
    """The sum of the tiles' records: of every `GROUP` neighbours, then of every `GROUP` of those sums, and so on.

    The order of additions is fixed, so the result is the same bits wherever each group is added.
    """
    parts: Iterator[Sums] = (sums_of_record(record, heads, head_dim) for record in records)
    while len(groups := list(_sum_groups(parts, heads, head_dim))) > 1:
        parts = iter(groups)
    return groups[0] if groups else sum_in_order([], heads, head_dim)


def _sum_groups(parts: Iterator[Sums], heads: int, head_dim: int) -> Iterator[Sums]:
    while group := list(islice(parts, GROUP)):
        yield sum_in_order(group, heads, head_dim)


def sums_of_record(record: NDArray[np.float32], heads: int, head_dim: int) -> Sums:
    """A tile's sums, without the scales that it computed them with."""
    size = heads * (head_dim + 1) * head_dim
    values, scales = record[:size].astype(np.float64), record[size:-1].reshape(2, heads).astype(np.float64)
    return Sums(values.reshape(heads, head_dim + 1, head_dim) / scales[0][:, None, None], scales[1], float(record[-1]))


def sum_in_order(parts: Iterable[Sums], heads: int, head_dim: int) -> Sums:
    """The sum of the parts, added one after the other in float64."""
    total, largest, tokens = np.zeros((heads, head_dim + 1, head_dim)), np.full(heads, SMALLEST), 0.0
    for part in parts:
        total += part.values
        largest = np.maximum(largest, part.largest)
        tokens += part.tokens
    return Sums(total, largest, tokens)
