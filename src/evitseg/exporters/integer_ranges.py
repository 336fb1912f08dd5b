"""The ranges that `evitseg train --qat` learns, as a checkpoint's manifest has them, and the scales they give."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from evitseg.errors import ExportError
from evitseg.exporters.integer_calibration import largest_quotient_step, scale_between
from evitseg.exporters.integer_graph import IntegerGraph
from evitseg.exporters.integer_simulation import IMAGE_SCALE, IntegerNetwork, RoundedKernel, Scale, rounded_kernel

Ranges = Mapping[str, tuple[float, float]]
"""The smallest and the largest number by tensor; of sums over all tokens, divided by the number of tokens."""


def ranged_tensors(graph: IntegerGraph) -> tuple[str, ...]:
    """The tensors that have a range of their own, in the order of the graph, without the image."""
    names = (graph.scale_of.get(node.output, node.output) for node in graph.nodes)
    return tuple(dict.fromkeys(names))


def ranges_of(scales: Mapping[str, Scale], graph: IntegerGraph) -> dict[str, tuple[float, float]]:
    """The ranges of 8-bit scales."""
    ranges = {}
    for name in ranged_tensors(graph):
        scale = scales[name]
        step = scale.step / graph.tokens.get(name, 1)
        low, high = scale.limits
        ranges[name] = ((low - scale.zero) * step, (high - scale.zero) * step)
    return ranges


def scales_from(ranges: Ranges, graph: IntegerGraph) -> dict[str, Scale]:
    """The 8-bit scales of a graph's tensors. Raises: ExportError for ranges of another network."""
    names = ranged_tensors(graph)
    sound = all(np.isfinite(pair).all() and pair[0] <= 0 < pair[1] for pair in ranges.values())
    if not sound or set(names) != set(ranges):
        raise ExportError("the checkpoint's activation ranges are not those of its network; train it again with --qat.")
    scales = {"image": IMAGE_SCALE}
    for name in names:
        low, high = ranges[name]
        scale = scale_between(low, high)
        scales[name] = replace(scale, step=scale.step * graph.tokens.get(name, 1))
    for node in graph.nodes:
        if node.kind == "quotient":
            numerator, divisor = (scales[graph.scale_of.get(used, used)].step for used in node.inputs)
            own, limit = scales[node.output], largest_quotient_step(numerator, divisor)
            if own.step > limit * (1 + 1e-6):  # learned ranges obey it, but for rounding
                scales[node.output] = replace(own, step=limit)
    return scales


def with_ranges(graph: IntegerGraph, ranges: Ranges) -> IntegerNetwork:
    """A graph without tensors of 16 bits, with learned ranges. Raises: ExportError for ranges of another network."""
    kernels: dict[str, RoundedKernel] = {}
    network = IntegerNetwork(graph, scales_from(ranges, graph), kernels)
    for node in graph.nodes:
        if node.kernel is not None:
            own = rounded_kernel(node.kernel)
            if node.kind == "conv":
                bias = np.zeros(len(own.whole)) if own.bias is None else own.bias
                own = replace(own, bias=bias).with_whole_bias(network.scale(node.inputs[0]).step)
            kernels[node.output] = own
    return network
