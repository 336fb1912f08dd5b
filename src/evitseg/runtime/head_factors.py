"""Scale the queries and keys of each attention head by a factor, which cancels in attention's quotient.

The heads of one layer share a number format, and in 8 bits a scale, but their queries and keys may differ by orders of
magnitude. The factors are powers of two and are folded into weights, so in float32 every result keeps its bits.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from evitseg.architecture import AttentionBlock, ModelConfig, placed_convs, stage_plans
from evitseg.runtime.weights import Weights

LARGEST_POWER = 60
"""Limit on the exponent of a factor: the quotient of two factors must be a float32 number, too."""
HeadFactors = Mapping[str, NDArray[np.float64]]
"""By attention layer, such as "stage3.block1.attention": (scales, heads per scale, 2) factors of queries and keys."""


def attention_layers(config: ModelConfig) -> Iterator[tuple[str, AttentionBlock]]:
    """The attention layers by name."""
    for number, blocks in enumerate(stage_plans(config.backbone), 1):
        for i, block in enumerate(blocks):
            if isinstance(block, AttentionBlock):
                yield f"stage{number}.block{i}.attention", block


def powers_of_two(sizes: NDArray[np.floating]) -> NDArray[np.float64]:
    """The powers of two that bring sizes closest to 1; 1 for a size of 0, never beyond `LARGEST_POWER`."""
    powers = -np.rint(np.log2(np.where(sizes > 0, sizes, 1)))
    factors: NDArray[np.float64] = np.exp2(np.clip(powers, -LARGEST_POWER, LARGEST_POWER))
    return factors


def factors_of_weights(config: ModelConfig, weights: Sequence[Weights]) -> HeadFactors:
    """Factors that give the queries and keys of every head weights of about the same size.

    Args:
        weights: of every convolution, in the order of `placed_convs`.
    """
    by_name = _by_name(config, weights)
    return {name: powers_of_two(_sizes(by_name, name, block)) for name, block in attention_layers(config)}


def _sizes(by_name: dict[tuple[str, str], Weights], name: str, block: AttentionBlock) -> NDArray[np.float64]:
    """(scales, heads, 2): the standard deviation of queries and keys for input of independent numbers with variance
    1."""
    heads = block.heads_per_scale
    tokens = by_name[name, "qkv"].kernel[:, :, 0, 0].astype(np.float64).reshape(heads, 3, block.head_dim, -1)
    sizes = [np.sqrt(np.square(tokens).sum((2, 3)) / block.head_dim)]
    for i in range(len(block.kernels)):
        taps = by_name[name, f"aggregate.{i}.depthwise"].kernel.astype(np.float64)
        taps = taps.reshape(heads, 3, block.head_dim, -1)
        mix = by_name[name, f"aggregate.{i}.pointwise"].kernel.astype(np.float64)
        mix = mix.reshape(heads, 3, block.head_dim, block.head_dim)
        # The sum over taps and inputs of (mix · diag(tap) · tokens)², without the products.
        likeness = (tokens @ tokens.swapaxes(2, 3)) * (taps @ taps.swapaxes(2, 3))
        sizes.append(np.sqrt(np.maximum(((mix @ likeness) * mix).sum((2, 3)), 0) / block.head_dim))
    return np.stack(sizes)[..., :2]


def with_head_factors(config: ModelConfig, weights: Sequence[Weights], factors: HeadFactors) -> list[Weights]:
    """Weights that compute the same function, with scaled queries and keys.

    A network whose attention adds an epsilon to its divisor, which would not be scaled, stays as it is.

    Args:
        weights: of every convolution, in the order of `placed_convs`.
    """
    if config.backbone.attention_eps:
        return list(weights)
    by_name = _by_name(config, weights)
    for name, block in attention_layers(config):
        own = np.concatenate([factors[name], np.ones_like(factors[name][..., :1])], axis=-1)  # values keep their size
        by_name[name, "qkv"] = _scaled(by_name[name, "qkv"], own[0])
        for i in range(len(block.kernels)):
            conv = f"aggregate.{i}.pointwise"
            by_name[name, conv] = _scaled(by_name[name, conv], own[i + 1] / own[0])
    return list(by_name.values())


def _by_name(config: ModelConfig, weights: Sequence[Weights]) -> dict[tuple[str, str], Weights]:
    return dict(zip(((placed.block, placed.name) for placed in placed_convs(config)), weights, strict=True))


def _scaled(weights: Weights, factors: NDArray[np.float64]) -> Weights:
    """Outputs (heads, 3, head_dim) multiplied by (heads, 3) factors."""
    each = np.repeat(factors.reshape(-1), len(weights.kernel) // factors.size).astype(np.float32)
    bias = None if weights.bias is None else weights.bias * each
    return Weights(weights.kernel * each[:, None, None, None], bias)
