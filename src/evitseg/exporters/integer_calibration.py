"""Find the scales of an integer graph and correct its biases, on real images.

One pass through the graph, one operation after the other on all images: once in floating point, once rounded as far as
the pass has come. Each convolution's bias compensates for the mean difference of the two, and each tensor with 8 bits
gets the range with the least squared error, in front of a hard-swish that of its result.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from evitseg.exporters.integer_graph import IntegerGraph, IntegerNode
from evitseg.exporters.integer_simulation import (
    IMAGE_SCALE,
    SMALLEST,
    IntegerNetwork,
    RoundedKernel,
    Scale,
    computed,
    graph_input,
    reshaped,
    rounded_kernel,
)
from evitseg.image import ImageArray
from evitseg.preprocess import Preprocess

MAX_IMAGES = 32
MEMORY = 2**30
"""Bytes for activations; fewer images are used if theirs need more."""
BINS = 4096
HEADROOM = 1.25
"""Ranges of tensors with 16 bits, relative to the largest number seen: they have levels to spare."""
FRACTIONS = np.geomspace(0.03, 1, 32)
"""Ranges that are tried, relative to the largest number seen."""
Number = TypeVar("Number", float, Tensor)
DIVISION_FACTOR = 64.001
"""LiteRT's division shifts by up to 31 bits. For a numerator of -1 and a divisor of eight bits it needs 32, and returns
the smallest integer, unless the numerator's step is at least 64 times the divisor's times the quotient's."""


def calibrated(graph: IntegerGraph, preprocess: Preprocess, images: Sequence[ImageArray]) -> IntegerNetwork:
    """Scales and corrected kernels of a graph.

    Args:
        images: of any sizes, from the kind of scene that the network will see; at most `MAX_IMAGES` are used.
    """
    largest = max(int(np.prod(shape)) for shape in graph.shapes.values())
    count = min(MAX_IMAGES, len(images), max(4, MEMORY // (4 * 4 * largest)))  # two tensors, each with its rounded form
    chosen = [images[i * len(images) // count] for i in range(count)]
    return _Calibration(graph, [graph_input(preprocess.apply(image)) for image in chosen]).run()


class _Calibration:
    def __init__(self, graph: IntegerGraph, inputs: list[Tensor]) -> None:
        self._graph = graph
        self._scales = {"image": IMAGE_SCALE}
        self._kernels: dict[str, RoundedKernel] = {}
        self._uses = Counter(name for node in graph.nodes for name in node.inputs)
        activated = {node.inputs[0] for node in graph.nodes if node.kind == "hardswish"}
        self._activated = {name for name in activated if self._uses[name] == 1}
        # Tensors that are put together have one scale, which the last operation chooses.
        self._late = {name for node in graph.nodes if node.kind == "concat" for name in node.inputs}
        self._exact, self._rounded = {"image": inputs}, {"image": inputs}

    @torch.inference_mode()
    def run(self) -> IntegerNetwork:
        for node in self._graph.nodes:
            name, shape = node.output, self._graph.shapes[node.output]
            before, after = ([values[used] for used in node.inputs] for values in (self._exact, self._rounded))
            if reshaped(node, before[0][0], shape) is not None:
                exact, rounded = ([_moved(node, x, shape) for x in values[0]] for values in (before, after))
            else:
                exact, rounded = self._results(node, before, after)
            self._exact[name], self._rounded[name] = exact, rounded
            for used in node.inputs:
                self._uses[used] -= 1
                if not self._uses[used]:
                    del self._exact[used], self._rounded[used]
        return IntegerNetwork(self._graph, self._scales, self._kernels)

    def _results(
        self, node: IntegerNode, before: Sequence[list[Tensor]], after: Sequence[list[Tensor]]
    ) -> tuple[list[Tensor], list[Tensor]]:
        exact = [computed(node, inputs, node.kernel, SMALLEST) for inputs in zip(*before, strict=True)]
        kernel = node.kernel
        if kernel is not None:
            own = rounded_kernel(kernel)
            if node.kind == "conv":
                own = self._corrected(node, own, before[0], after[0])
                own = own.with_whole_bias(self._scale(node.inputs[0]).step)
            self._kernels[node.output] = own
            kernel = own.restored(kernel)
        step = self._scale(node.inputs[0]).step if node.kind == "floor" else 0.0
        results = [computed(node, inputs, kernel, step) for inputs in zip(*after, strict=True)]
        if node.output in self._late:
            return exact, results
        name = self._graph.scale_of.get(node.output, node.output)
        if name not in self._scales:
            self._scales[name] = self._chosen(node, exact)
        return exact, [self._scales[name].rounded(x) for x in results]

    def _scale(self, tensor: str) -> Scale:
        return self._scales[self._graph.scale_of.get(tensor, tensor)]

    def _corrected(
        self, node: IntegerNode, own: RoundedKernel, before: Sequence[Tensor], after: Sequence[Tensor]
    ) -> RoundedKernel:
        """The kernel with a bias that compensates for the mean change of each channel."""
        kernel = node.kernel
        assert kernel is not None
        exact = replace(kernel, relu=False)
        rounded = own.restored(exact)
        changes = [
            (computed(node, [x], exact, 0) - computed(node, [y], rounded, 0)).mean((0, 1, 2))
            for x, y in zip(before, after, strict=True)
        ]
        bias = np.zeros(len(kernel.weight)) if own.bias is None else own.bias
        return replace(own, bias=bias + torch.stack(changes).mean(0).double().numpy())

    def _chosen(self, node: IntegerNode, values: Sequence[Tensor]) -> Scale:
        low, high = (min(float(x.min()) for x in values), max(float(x.max()) for x in values))
        if node.output not in self._graph.sixteen:
            seen = _hard_swish if node.output in self._activated else _itself
            scale = least_squares(values, min(low, 0.0), max(high, 0.0), seen)
            if node.kind == "quotient":
                numerator, divisor = (self._scale(used).step for used in node.inputs)
                scale = replace(scale, step=min(scale.step, largest_quotient_step(numerator, divisor)))
            return scale
        if node.kind == "requantize":  # from 8 bits, without a loss
            return Scale(self._scale(node.inputs[0]).step / 128, 0, 16)
        return Scale(max(-low, high, 1e-6) * HEADROOM / 32767, 0, 16)


def _moved(node: IntegerNode, x: Tensor, shape: tuple[int, ...]) -> Tensor:
    moved = reshaped(node, x, shape)
    assert moved is not None
    return moved


def largest_quotient_step(numerator: Number, divisor: Number) -> Number:
    """The largest step of a quotient that LiteRT's division allows, from the steps of numerator and divisor."""
    return numerator / divisor / DIVISION_FACTOR


def _itself(points: NDArray[np.float64]) -> NDArray[np.float64]:
    return points


def _hard_swish(points: NDArray[np.float64]) -> NDArray[np.float64]:
    return points * np.clip(points / 6 + 0.5, 0, 1)


def least_squares(
    values: Sequence[Tensor],
    low: float,
    high: float,
    seen: Callable[[NDArray[np.float64]], NDArray[np.float64]] = _itself,
) -> Scale:
    """The 8-bit scale with the least squared error.

    Args:
        low, high: the range of the values, which includes 0.
        seen: the function of the values whose error counts.
    """
    if high - low < 1e-12:
        return Scale(1.0, 0, 8)
    counts = torch.zeros(BINS, dtype=torch.float64)
    for x in values:
        counts += torch.histc(x, BINS, low, high)
    centers = low + (np.arange(BINS) + 0.5) * (high - low) / BINS
    occupied = counts.numpy() > 0
    points, weights = centers[occupied], counts.numpy()[occupied]
    wanted = seen(points)

    def error(pair: tuple[float, float]) -> float:
        scale = scale_between(*pair)
        rounded = ((np.rint(points / scale.step) + scale.zero).clip(*scale.limits) - scale.zero) * scale.step
        return float((weights * np.square(wanted - seen(rounded))).sum())

    best = (low, high)
    for _ in range(2):
        for end in (1, 0):
            tried = [(best[0], high * f) if end else (low * f, best[1]) for f in FRACTIONS]
            best = min((pair for pair in tried if pair[1] > pair[0]), key=error)
    return scale_between(*best)


def scale_between(low: float, high: float) -> Scale:
    """The 8-bit scale of a range that includes 0, which has an integer of its own."""
    step = (high - low) / 255
    return Scale(step, int(np.clip(np.rint(-128 - low / step), -128, 127)), 8)
