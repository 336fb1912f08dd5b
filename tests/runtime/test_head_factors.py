from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from evitseg.architecture import ModelConfig, model_config, placed_convs
from evitseg.preprocess import Preprocess
from evitseg.runtime import program
from evitseg.runtime.core import Core, CorePrecision
from evitseg.runtime.head_factors import (
    HeadFactors,
    attention_layers,
    factors_of_weights,
    with_head_factors,
)
from evitseg.runtime.weights import Weights
from tests.runtime.programs import CONFIGS

CONFIG = model_config("b0", 5)


def without_eps(config: ModelConfig) -> ModelConfig:
    return replace(config, backbone=replace(config.backbone, attention_eps=0.0))


def random_weights(config: ModelConfig) -> list[Weights]:
    rng, weights = np.random.default_rng(0), []
    for conv in (placed.conv for placed in placed_convs(config)):
        fan_in = conv.inputs // conv.groups * conv.kernel**2
        kernel = rng.normal(0, (1.6 / fan_in) ** 0.5, (conv.outputs, conv.inputs // conv.groups, *[conv.kernel] * 2))
        bias = rng.normal(0, 0.1, conv.outputs).astype(np.float32) if conv.bias or conv.norm else None
        weights.append(Weights(kernel.astype(np.float32), bias))
    return weights


def random_factors(config: ModelConfig) -> HeadFactors:
    rng = np.random.default_rng(1)
    return {
        name: np.exp2(rng.integers(-6, 7, (1 + len(block.kernels), block.heads_per_scale, 2)).astype(float))
        for name, block in attention_layers(config)
    }


def logits(
    config: ModelConfig, weights: Sequence[Weights], precision: CorePrecision = "float32"
) -> NDArray[np.float32]:
    image = np.random.default_rng(2).integers(0, 256, (64, 96, 3), dtype=np.uint8)
    return Core(program.compile_program(config, Preprocess(), weights), precision=precision)(image)


@pytest.mark.parametrize("name", ["b0", "fused", "depthwise"])
def test_factors_of_heads_change_no_bit_of_the_logits(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    config = without_eps(CONFIGS.get(name, CONFIG))
    weights, factors = random_weights(config), random_factors(config)
    balanced = logits(config, weights)
    monkeypatch.setattr(program, "factors_of_weights", lambda *rest: random_factors(config))
    scaled = logits(config, weights)
    monkeypatch.setattr(program, "with_head_factors", lambda config, weights, factors: list(weights))
    plain = logits(config, weights)
    assert plain.std() > 0.01
    assert balanced.tobytes() == scaled.tobytes() == plain.tobytes()
    changed = with_head_factors(config, weights, factors)
    assert sum(not np.array_equal(a.kernel, b.kernel) for a, b in zip(weights, changed, strict=True)) > 2


@pytest.mark.parametrize("size", [1e-41, 1e-30, 1e30])
def test_a_head_of_nearly_no_weights_does_not_leave_the_range_of_float32(size: float) -> None:
    weights = random_weights(CONFIG)
    at = [(placed.block, placed.name) for placed in placed_convs(CONFIG)].index(("stage3.block1.attention", "qkv"))
    kernel = weights[at].kernel.copy()
    kernel[:16] = (kernel[:16] * size).astype(np.float32)  # the first head's queries
    weights[at] = Weights(kernel, weights[at].bias)
    for own in with_head_factors(CONFIG, weights, factors_of_weights(CONFIG, weights)):
        assert np.isfinite(own.kernel).all()


def test_heads_of_very_different_size_become_alike() -> None:
    weights = with_head_factors(CONFIG, random_weights(CONFIG), random_factors(CONFIG))
    once = with_head_factors(CONFIG, weights, factors_of_weights(CONFIG, weights))
    for name, again in factors_of_weights(CONFIG, once).items():
        assert (again == 1).all(), name
    spread = [factors.max() / factors.min() for factors in factors_of_weights(CONFIG, weights).values()]
    assert min(spread) > 100


def test_the_size_of_an_aggregated_head_is_that_of_its_composed_kernel() -> None:
    weights = random_weights(CONFIG)
    by_name = {(p.block, p.name): w.kernel for p, w in zip(placed_convs(CONFIG), weights, strict=True)}
    name, block = next(attention_layers(CONFIG))
    qkv, depthwise, pointwise = (
        by_name[name, part] for part in ("qkv", "aggregate.0.depthwise", "aggregate.0.pointwise")
    )
    head, dim = 2, block.head_dim
    rows = slice((3 * head + 1) * dim, (3 * head + 2) * dim)  # its keys
    kernel = np.einsum("oi,iyx,ic->ocyx", pointwise[rows, :, 0, 0], depthwise[rows, 0], qkv[rows, :, 0, 0])
    size = np.sqrt(np.square(kernel).sum() / dim)
    assert factors_of_weights(CONFIG, weights)[name][1, head, 1] == 2.0 ** -round(np.log2(size))


def test_an_epsilon_in_the_divisor_keeps_the_weights() -> None:
    config = replace(CONFIG, backbone=replace(CONFIG.backbone, attention_eps=1e-5))
    weights = random_weights(config)
    assert with_head_factors(config, weights, random_factors(config)) == weights
