"""Compute in floating point what a full-integer file computes in integers.

Weights, biases and tensors have the file's numbers. An operator's result in a file is at most one step away: ONNX
Runtime adds in another order, and LiteRT rounds products before it rounds their sum's multiple, and computes hard-swish
in 16 bits.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from evitseg.engine import EngineInfo
from evitseg.exporters.int8 import steps
from evitseg.exporters.integer_graph import MIDDLE_GREY, Array, IntegerGraph, IntegerNode, Kernel
from evitseg.manifest import Manifest
from evitseg.system.machine import processor_name

SMALLEST = 2.0**-100
"""The lower limit of divisors in floating point."""
LARGEST_BIAS = 2**31 - 1


@dataclass(frozen=True)
class Scale:
    """A number is `step` times (its integer minus `zero`)."""

    step: float
    zero: int
    bits: int

    @property
    def limits(self) -> tuple[int, int]:
        """The smallest and the largest integer."""
        return (-128, 127) if self.bits == 8 else (-32768, 32767)

    def rounded(self, x: Tensor) -> Tensor:
        """The nearest numbers that integers represent."""
        return torch.fake_quantize_per_tensor_affine(x, self.step, self.zero, *self.limits)


IMAGE_SCALE = Scale(1.0, MIDDLE_GREY - 128, 8)


@dataclass(frozen=True)
class RoundedKernel:
    """A kernel in 8 bits.

    Attributes:
        whole: integers in the shape of the weight.
        step: of each output channel of a convolution; one number of an interpolation.
        bias: with its correction; see `with_whole_bias`.
    """

    whole: NDArray[np.int8]
    step: Array
    bias: Array | None

    def whole_bias(self, input_step: float) -> NDArray[np.int64]:
        """The bias in steps of the products that it is added to, in the range of 32-bit integers."""
        assert self.bias is not None
        whole = np.rint(self.bias / (self.step * input_step)).clip(-LARGEST_BIAS, LARGEST_BIAS)
        return whole.astype(np.int64)

    def with_whole_bias(self, input_step: float) -> RoundedKernel:
        """The kernel with the bias that files store."""
        return replace(self, bias=self.whole_bias(input_step) * (self.step * input_step))

    def restored(self, kernel: Kernel) -> Kernel:
        """A kernel with the numbers that the integers represent."""
        step = self.step.reshape(-1, *[1] * (kernel.weight.ndim - 1))
        return Kernel(self.whole * step, self.bias, kernel.stride, kernel.groups, kernel.axis, kernel.relu)


@dataclass(frozen=True)
class IntegerNetwork:
    """A graph with scales of all tensors, and rounded kernels by the names of their operations."""

    graph: IntegerGraph
    scales: Mapping[str, Scale]
    kernels: Mapping[str, RoundedKernel]

    def scale(self, tensor: str) -> Scale:
        return self.scales[self.graph.scale_of.get(tensor, tensor)]


def rounded_kernel(kernel: Kernel) -> RoundedKernel:
    """A kernel's weights in 8 bits."""
    if kernel.axis:
        # Every row of an interpolation must still add up to 1.
        whole_sum = int(127 / np.abs(kernel.weight).max())
        whole = np.rint(kernel.weight * whole_sum)
        rows = np.arange(len(whole))
        whole[rows, whole.argmax(1)] += whole_sum - whole.sum(1)
        return RoundedKernel(whole.astype(np.int8), np.array([1 / whole_sum]), None)
    step = steps(kernel.weight)
    whole = np.rint(kernel.weight / step).clip(-127, 127)
    return RoundedKernel(whole.astype(np.int8), step.ravel().astype(np.float64), kernel.bias)


def convolved(x: Tensor, weight: Tensor, bias: Tensor | None, kernel: Kernel) -> Tensor:
    """A feature map (n, height, width, channels) convolved with other weights than those of the kernel."""
    planes = F.conv2d(x.permute(0, 3, 1, 2), weight, bias, kernel.stride, weight.shape[-1] // 2, 1, kernel.groups)
    return (planes.relu() if kernel.relu else planes).permute(0, 2, 3, 1).contiguous()


def interpolated(x: Tensor, matrix: Tensor, axis: int) -> Tensor:
    """A feature map (n, height, width, channels) with one axis multiplied by a matrix (outputs, inputs)."""
    return torch.einsum("oi,nihc->nohc" if axis == 1 else "oi,nhic->nhoc", matrix, x).contiguous()


def computed(node: IntegerNode, inputs: Sequence[Tensor], kernel: Kernel | None, smallest: float) -> Tensor:
    """The result of an operation in floating point, where all tensors are (n, ...), for n images.

    Args:
        smallest: the lower limit of divisors.
    """
    x = inputs[0]
    match node.kind:
        case "conv":
            assert kernel is not None
            weight = torch.from_numpy(kernel.weight).float()
            bias = None if kernel.bias is None else torch.from_numpy(kernel.bias).float()
            return convolved(x, weight, bias, kernel)
        case "interpolate":
            assert kernel is not None
            return interpolated(x, torch.from_numpy(kernel.weight).float(), kernel.axis)
        case "hardswish":
            return F.hardswish(x)
        case "relu":
            return x.relu()
        case "requantize":
            return x
        case "add":
            return x + inputs[1]
        case "concat":
            return torch.cat(list(inputs), -1)
        case "product":
            return x @ inputs[1]
        case "total":
            return x.sum(-1, keepdim=True)
        case "floor":
            return x.clamp(min=smallest)
        case "quotient":
            return x / inputs[1]
        case _:
            raise AssertionError(node.kind)


def reshaped(node: IntegerNode, x: Tensor, shape: tuple[int, ...]) -> Tensor | None:
    """The result, for n images, of an operation that only moves numbers; None for others.

    Args:
        shape: of the result for one image, as in the graph.
    """
    match node.kind:
        case "split_heads":
            return x.reshape(-1, shape[2], shape[1], shape[3]).transpose(1, 2)
        case "split_heads_transposed":
            return x.reshape(-1, shape[3], shape[1], shape[2]).permute(0, 2, 3, 1)
        case "merge_heads":
            return x.transpose(1, 2).reshape(-1, *shape[1:])
    return None


def graph_input(image: NDArray[np.uint8]) -> Tensor:
    """An image (height, width, 3) as the graph's input."""
    return torch.from_numpy(image.astype(np.float32))[None] - MIDDLE_GREY


@torch.inference_mode()
def simulated(network: IntegerNetwork, image: Tensor, only: Collection[str] | None = None) -> Tensor:
    """The logits (1, height / 8, width / 8, classes) of an image.

    Args:
        image: see `graph_input`.
        only: the layers whose tensors and weights are rounded; None for all.
    """
    graph = network.graph
    uses = Counter(name for node in graph.nodes for name in node.inputs)
    values = {"image": image}
    for node in graph.nodes:
        rounds = only is None or node.layer in only
        inputs, kernel, smallest = [values[name] for name in node.inputs], node.kernel, SMALLEST
        moved = reshaped(node, inputs[0], graph.shapes[node.output])
        if moved is not None:
            values[node.output] = moved
        else:
            if rounds and kernel is not None:
                own = network.kernels[node.output]
                kernel = (own if only is None else replace(own, bias=kernel.bias)).restored(kernel)
            if rounds and node.kind == "floor":
                smallest = network.scale(node.output).step
            result = computed(node, inputs, kernel, smallest)
            values[node.output] = network.scale(node.output).rounded(result) if rounds else result
        for name in node.inputs:
            uses[name] -= 1
            if not uses[name]:
                del values[name]
    return values["logits"]


class IntegerSimulation:
    """An `Engine` that computes what the files compute."""

    def __init__(self, network: IntegerNetwork, manifest: Manifest) -> None:
        self.network, self.manifest = network, manifest
        self.info = EngineInfo("PyTorch", torch.__version__, "int8", torch.get_num_threads(), processor_name())

    def __call__(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        logits = torch.cat([simulated(self.network, graph_input(image)) for image in images])
        return np.ascontiguousarray(logits.permute(0, 3, 1, 2).numpy())


def layer_costs(network: IntegerNetwork, images: Sequence[NDArray[np.uint8]]) -> dict[str, float]:
    """For each layer, the mean squared change of the logits if it alone is rounded, divided by their variance."""
    inputs = [graph_input(image) for image in images]
    before = torch.cat([simulated(network, x, only=()).flatten() for x in inputs])
    layers = dict.fromkeys(node.layer for node in network.graph.nodes)

    def cost(layer: str) -> float:
        after = torch.cat([simulated(network, x, only=(layer,)).flatten() for x in inputs])
        return float((after - before).square().mean() / before.var())

    return {layer: cost(layer) for layer in layers}
