"""Round weights to 8 bits; sums and activations stay in the engine's float.

Weight-only rounding suits these networks on CPUs: it loses almost no accuracy once the biases compensate for the mean
error, leaves a third of the size, and runs as fast as float in every engine. Activations in 8 bits cost points of mIoU
and were faster in one engine only; docs/results/deploy.md has the numbers.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Iterable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from evitseg.errors import ExportError
from evitseg.model.fold import convolutions, folded, set_folded, with_folded_norms
from evitseg.model.network import EfficientViT, NormalizedModel
from evitseg.preprocess import Preprocess

LEVELS = 256
"""Number of values that 8 bits represent."""
RANKED_ON = 8
"""Number of images on which single layers are compared; each costs one run per layer."""

Array = NDArray[np.float32]
Rounding = Callable[[Array], Array]
"""Rounds weights (outputs, inputs / groups, h, w) to the nearest values that a format's 8 bits represent."""


def per_channel(weight: Array) -> Array:
    """Weights as multiples, -127 to 127, of one step per output channel, which is int8 in most formats."""
    step = steps(weight)
    whole: Array = np.rint(weight / step) * step
    return whole


def steps(weight: NDArray[np.floating], axis: int = 0) -> NDArray[np.floating]:
    """The step of each channel along an axis, in a shape that divides the weight."""
    others = tuple(i for i in range(weight.ndim) if i != axis)
    step: NDArray[np.floating] = np.abs(weight).max(axis=others, keepdims=True) / 127
    return np.where(step > 0, step, 1)


def in_steps(weight: NDArray[np.floating], axis: int = 0) -> NDArray[np.int8] | None:
    """The multiples of `steps`, if the weight was rounded to them; else None."""
    exact = weight / steps(weight, axis)
    whole = np.rint(exact)
    return whole.astype(np.int8) if np.abs(exact - whole).max() < 0.1 else None  # float16 may have rounded them


def by_table(weight: Array) -> Array:
    """Weights as 256 values per layer with the least squared error (Lloyd's algorithm), which is int8 in ncnn."""
    flat = np.sort(weight.ravel().astype(np.float64))
    if len(flat) <= 4 * LEVELS:  # a table would be larger than the weights in float16
        return weight.astype(np.float16).astype(np.float32)
    if len(np.unique(flat)) <= LEVELS:
        return weight
    sums = np.concatenate([[0.0], np.cumsum(flat)])
    # Start with values as dense as the cube root of the weights' density, which is close to the optimum.
    density, edges = np.histogram(flat, 1024)
    ranks = np.concatenate([[0.0], np.cumsum((density + 1e-3) ** (1 / 3))])
    levels = np.interp((np.arange(LEVELS) + 0.5) / LEVELS * ranks[-1], ranks, edges)
    for _ in range(20):
        ends = np.concatenate([[0], np.searchsorted(flat, (levels[1:] + levels[:-1]) / 2), [len(flat)]])
        counts = np.diff(ends)
        levels = np.where(counts > 0, np.diff(sums[ends]) / np.maximum(counts, 1), levels)
    levels = levels.astype(np.float32)
    rounded: Array = levels[np.searchsorted((levels[1:] + levels[:-1]) / 2, weight)]
    return rounded


def rounded(
    model: EfficientViT, inputs: Iterable[Tensor], rounding: Rounding, keep: Collection[str] = (), only: str = ""
) -> EfficientViT:
    """A copy with rounded weights, and with biases that compensate for the mean change of each channel.

    Args:
        model: with folded batch norms.
        inputs: (1, 3, h, w) normalised pixels, to measure the mean change on.
        keep: names of convolutions that stay unchanged.
        only: the name of the only convolution to round; None for all.
    """
    new, old = copy.deepcopy(model), convolutions(model)
    chosen = {only} if only else old.keys() - set(keep)
    changed = {name: module for name, module in convolutions(new).items() if name in chosen}
    changes: dict[str, list[Tensor]] = {name: [] for name in changed}
    for module in changed.values():
        weight, bias = folded(module)
        set_folded(module, rounding(weight.astype(np.float32)).astype(np.float64), bias)

    def watch(name: str) -> Callable[..., None]:
        def compare(_: object, given: tuple[Tensor], answer: Tensor) -> None:
            changes[name].append((answer - changed[name].conv(given[0])).mean((0, 2, 3)))

        return compare

    hooks = [old[name].conv.register_forward_hook(watch(name)) for name in changed]
    with torch.inference_mode():
        for given in inputs:
            model(given)
    for hook in hooks:
        hook.remove()
    for name, module in changed.items():
        weight, bias = folded(module)
        if bias is not None:
            set_folded(module, weight, bias + torch.stack(changes[name]).mean(0).double().numpy())
    return new


def eight_bit(
    model: EfficientViT,
    preprocess: Preprocess,
    images: Sequence[NDArray[np.uint8]],
    drop_of: Callable[[EfficientViT], float],
    max_drop: float,
    rounding: Rounding = per_channel,
) -> tuple[EfficientViT, dict[str, float]]:
    """The network with as many layers rounded as `max_drop` allows.

    First all layers are rounded. If that costs too much, each layer is rounded on its own to measure its error, and the
    worst 1, 2, 4, ... stay in float16.

    Args:
        images: to calibrate on, of any sizes.
        drop_of: measures a network's loss, in points of mIoU.

    Returns: the network, and for each layer in float16 the error of rounding only that layer: the mean squared change
    of the logits divided by their variance.

    Raises: ExportError if no choice of layers stays within `max_drop`.
    """
    model = with_folded_norms(model)
    ready = NormalizedModel(model, preprocess)
    fitting = (preprocess.apply(image).transpose(2, 0, 1)[None].astype(np.float32) for image in images)
    inputs = [(torch.from_numpy(pixels) + ready.shift) * ready.scale for pixels in fitting]
    new = rounded(model, inputs, rounding)
    if drop_of(new) <= max_drop:
        return new, {}
    some = inputs[:: max(1, len(inputs) // RANKED_ON)][:RANKED_ON]
    costs = {name: _cost(model, rounded(model, some, rounding, only=name), some) for name in convolutions(model)}
    worst = sorted(costs, key=lambda name: -costs[name])
    count = 1
    while count < len(worst):
        new = rounded(model, inputs, rounding, keep=worst[:count])
        if drop_of(new) <= max_drop:
            return new, {name: costs[name] for name in worst[:count]}
        count *= 2
    raise ExportError(
        f"with weights in 8 bits the network loses more than {max_drop} points of mIoU on this data, whichever layers "
        "stay in float16; allow more (--max-drop) or export with --weights float16."
    )


@torch.inference_mode()
def _cost(model: EfficientViT, other: EfficientViT, inputs: Sequence[Tensor]) -> float:
    before, after = (torch.cat([network(given).flatten() for given in inputs]) for network in (model, other))
    return float((before - after).square().mean() / before.var())
