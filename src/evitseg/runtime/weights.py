"""The weights of a network as engines take them: a kernel and a bias for every convolution, batch norm folded in."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from evitseg.architecture import ModelConfig, placed_convs
from evitseg.errors import WeightsError


@dataclass(frozen=True)
class Weights:
    """A convolution's kernel (outputs, inputs / groups, side, side) and bias (outputs,) or None."""

    kernel: NDArray[np.float32]
    bias: NDArray[np.float32] | None


def strange_graph(model_file: Path) -> WeightsError:
    """The error for an exported model whose graph another program wrote or changed."""
    return WeightsError(f"{model_file}: its graph is not the one that evitseg export writes; export it again.")


def check_weights(weights: Sequence[Weights], config: ModelConfig, model_file: Path) -> None:
    """Refuse weights of an exported model that are not its network's, in the order of `placed_convs`, or not finite.

    Raises: WeightsError.
    """
    plan = [placed.conv for placed in placed_convs(config)]
    fits = len(weights) == len(plan) and all(
        own.kernel.shape == (conv.outputs, conv.inputs // conv.groups, conv.kernel, conv.kernel)
        and (own.bias.shape == (conv.outputs,) if own.bias is not None else not (conv.bias or conv.norm))
        for own, conv in zip(weights, plan, strict=True)
    )
    if not fits:
        raise strange_graph(model_file)
    check_finite((values for own in weights for values in (own.kernel, own.bias) if values is not None), model_file)


def check_finite(numbers: Iterable[NDArray[np.floating]], model_file: Path) -> None:
    """Refuse numbers of an exported model that are not finite. Raises: WeightsError."""
    for values in numbers:
        if not np.isfinite(values).all():
            raise WeightsError(
                f"{model_file}: its weights are not finite (NaN or infinite), so every mask would be wrong; export it "
                "again from a checkpoint that is whole."
            )
