"""Training with the roundings of an all-8-bit file in place (quantisation-aware training).

The network is computed operation by operation from the graph that `evitseg export --w8a8` writes, so what is trained is
what the file computes. Weights are rounded to 8 bits per output channel, and every tensor to an 8-bit range of its own
that is learned with the weights.
"""

from __future__ import annotations

import copy
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from evitseg.architecture import ModelConfig
from evitseg.exporters.integer_calibration import calibrated, largest_quotient_step
from evitseg.exporters.integer_graph import MIDDLE_GREY, IntegerGraph, IntegerNode, integer_graph, of_part
from evitseg.exporters.integer_ranges import ranged_tensors, ranges_of, scales_from
from evitseg.exporters.integer_simulation import (
    IMAGE_SCALE,
    Scale,
    computed,
    convolved,
    interpolated,
    reshaped,
    rounded_kernel,
)
from evitseg.exporters.measured_channels import with_measured_channel_factors
from evitseg.exporters.measured_heads import with_measured_head_factors
from evitseg.image import ImageArray
from evitseg.model.layers import ConvNormAct
from evitseg.model.network import EfficientViT
from evitseg.preprocess import Preprocess

LOG_RATE = 10.0
"""How many times faster the logarithms of steps are learned than weights."""
_LOW, _HIGH = -128, 127


class QuantisedNetwork(nn.Module):
    """A network that rounds as its file with 8-bit integers will.

    Input and output are those of `EfficientViT`, for pixels of whole numbers before normalisation.

    Args:
        network: with folded batch norms, whose weights are trained.
        preprocess: its normalisation is part of the first convolution.
        ranges: of every tensor, as in a manifest.

    Raises: ConfigError for a network that has no integer graph, ExportError for ranges of another network.
    """

    def __init__(
        self, network: EfficientViT, preprocess: Preprocess, ranges: Mapping[str, tuple[float, float]]
    ) -> None:
        super().__init__()
        self.network, self._preprocess = network, preprocess
        self._graphs: dict[tuple[int, int], tuple[IntegerGraph, dict[str, Tensor]]] = {}
        for module in network.modules():
            if isinstance(module, ConvNormAct) and hasattr(module, "norm"):
                # The norm is folded: it multiplies by constants (see `_normalise`) and adds its bias.
                module.norm.weight.requires_grad_(False)
                if module.conv.bias is not None:
                    module.conv.bias.requires_grad_(False)
        graph, _ = self._graph(64, 64)
        scales = scales_from(ranges, graph)
        self._places = {name: at for at, name in enumerate(ranged_tensors(graph))}
        steps = [scales[name].step / graph.tokens.get(name, 1) for name in self._places]
        self.log_steps = nn.Parameter(torch.tensor(steps, dtype=torch.float64).log().float() / LOG_RATE)
        self.zeros = nn.Buffer(torch.tensor([scales[name].zero for name in self._places], dtype=torch.int32))

    @property
    def config(self) -> ModelConfig:
        """The network's configuration."""
        return self.network.config

    def ranges(self) -> dict[str, tuple[float, float]]:
        """The present ranges, for the manifest."""
        graph, _ = self._graph(64, 64)
        steps = self._steps(graph).tolist()
        scales = {name: Scale(steps[at], int(self.zeros[at]), 8) for name, at in self._places.items()}
        return ranges_of(scales, graph)

    def forward(self, pixels: Tensor) -> Tensor:
        return self.logits_and_features(pixels)[0]

    def logits_and_features(self, pixels: Tensor) -> tuple[Tensor, list[Tensor]]:
        """The logits, and the features of the stages, both rounded."""
        graph, matrices = self._graph(*pixels.shape[-2:])
        mean, std = (255 * pixels.new_tensor(values).view(1, 3, 1, 1) for values in self._normalisation)
        x = torch.round(pixels * std + (mean - MIDDLE_GREY)).permute(0, 2, 3, 1).contiguous()
        zeros = dict(zip(self._places, self.zeros.tolist(), strict=True))
        steps = dict(zip(self._places, self._steps(graph).unbind(), strict=True))
        steps["image"] = steps["logits"].new_tensor(IMAGE_SCALE.step)
        uses = Counter(name for node in graph.nodes for name in node.inputs)
        values, features = {"image": x}, []
        for node in graph.nodes:
            inputs = [values[name] for name in node.inputs]
            result = reshaped(node, inputs[0], graph.shapes[node.output])
            if result is None:
                given, name = (graph.scale_of.get(used, used) for used in (node.inputs[0], node.output))
                rectifies = zeros[name] == _LOW
                result = self._computed(node, inputs, matrices, (steps[given], steps[name]), rectifies=rectifies)
                result = round_to_integers(result.contiguous(), steps[name], zeros[name])
            values[node.output] = result
            if node.output in graph.stages:
                features.append(result.permute(0, 3, 1, 2))
            for name in node.inputs:
                uses[name] -= 1
                if not uses[name]:
                    del values[name]
        return values["logits"].permute(0, 3, 1, 2), features

    def _computed(
        self,
        node: IntegerNode,
        inputs: list[Tensor],
        matrices: Mapping[str, Tensor],
        steps: tuple[Tensor, Tensor],
        *,
        rectifies: bool,
    ) -> Tensor:
        """The result of an operation before it is rounded.

        Args:
            steps: of the first input and of the result.
            rectifies: whether the rounding makes negative numbers 0, so that ReLU needs no work of its own.
        """
        if node.kind == "conv":
            assert node.kernel is not None
            kernel = replace(node.kernel, relu=node.kernel.relu and not rectifies)
            return convolved(inputs[0], *self._weights(node, steps[0]), kernel)
        if node.kind == "relu" and rectifies:
            return inputs[0]
        if node.kind == "interpolate":
            assert node.kernel is not None
            return interpolated(inputs[0], matrices[node.output], node.kernel.axis)
        if node.kind == "floor":
            return torch.maximum(inputs[0], steps[1].detach())
        return computed(node, inputs, None, 0.0)

    def _weights(self, node: IntegerNode, input_step: Tensor) -> tuple[Tensor, Tensor | None]:
        """A convolution's weights and bias, rounded as in the file.

        Args:
            input_step: of its input; a bias is a multiple of this times the weights' step.
        """
        module = self.network.get_submodule(node.layer)
        assert isinstance(module, ConvNormAct)
        # In float64 as in the file, so that a number in the middle of two is rounded to the same one.
        weight, bias = module.conv.weight.double(), bias_of(module)
        norm = getattr(module, "norm", None)
        if norm is not None:
            weight = (
                weight * (norm.weight.double() / (norm.running_var.double() + norm.eps).sqrt())[:, None, None, None]
            )
        if node.part is not None:
            weight = of_part(weight, node.part, self.config.backbone.head_dim)
            bias = None if bias is None else of_part(bias, node.part, self.config.backbone.head_dim)
        if node.inputs == ("image",):
            mean, std = (255 * weight.new_tensor(values) for values in self._normalisation)
            weight = weight / std[:, None, None]
            shift = (weight * (MIDDLE_GREY - mean)[:, None, None]).sum((1, 2, 3))
            bias = shift if bias is None else shift + bias
        step = weight.detach().abs().amax((1, 2, 3), keepdim=True) / 127
        step = torch.where(step > 0, step, 1)
        weight = _rounded(weight, step)
        return weight.float(), None if bias is None else _rounded(bias.double(), step.flatten() * input_step).float()

    def _steps(self, graph: IntegerGraph) -> Tensor:
        """The step of every tensor with a range of its own, for an image of the graph's size."""
        tokens = torch.tensor([graph.tokens.get(name, 1) for name in self._places], device=self.log_steps.device)
        steps = list(((self.log_steps * LOG_RATE).exp() * tokens).unbind())
        for node in graph.nodes:
            if node.kind == "quotient":
                above, below = (steps[self._places[graph.scale_of.get(used, used)]] for used in node.inputs)
                at = self._places[node.output]
                steps[at] = torch.minimum(steps[at], largest_quotient_step(above, below))
        return torch.stack(steps)

    @property
    def _normalisation(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        return self._preprocess.mean, self._preprocess.std

    def _graph(self, height: int, width: int) -> tuple[IntegerGraph, dict[str, Tensor]]:
        """The graph for images of a size, and the matrices of its interpolations."""
        if (height, width) not in self._graphs:
            graph = integer_graph(self.network, replace(self._preprocess, fixed=(height, width)), ())
            device = next(self.network.parameters()).device
            matrices = {}
            for node in graph.nodes:
                if node.kind == "interpolate":
                    assert node.kernel is not None
                    weight = rounded_kernel(node.kernel).restored(node.kernel).weight
                    matrices[node.output] = torch.from_numpy(weight).float().to(device)
            self._graphs[height, width] = graph, matrices
        return self._graphs[height, width]

    def __deepcopy__(self, memo: dict[int, Any]) -> QuantisedNetwork:
        made = QuantisedNetwork(copy.deepcopy(self.network, memo), self._preprocess, self.ranges())
        made.load_state_dict(self.state_dict())
        return made


def quantised_start(network: EfficientViT, preprocess: Preprocess, images: Sequence[ImageArray]) -> QuantisedNetwork:
    """A network with the ranges and biases that `evitseg export --w8a8` would choose, to train on from there.

    Args:
        images: of the kind the network will see, of any sizes.

    Raises: ConfigError for a network that has no integer graph.
    """
    network = with_measured_head_factors(network, preprocess, images)
    network = with_measured_channel_factors(network, preprocess, images)
    size = preprocess.apply(images[0]).shape
    fixed = replace(preprocess, fixed=(size[0], size[1]))
    graph = integer_graph(network, fixed, ())
    integers = calibrated(graph, fixed, images)
    with torch.no_grad():
        for node in graph.nodes:
            if node.kind != "conv":
                continue
            module = network.get_submodule(node.layer)
            assert isinstance(module, ConvNormAct)
            assert node.kernel is not None
            bias = bias_of(module)
            if bias is not None and node.kernel.bias is not None:
                corrected = integers.kernels[node.output].bias
                assert corrected is not None
                assert node.part is None
                bias += torch.from_numpy(corrected - node.kernel.bias).to(bias)
        for module in network.modules():
            if isinstance(module, ConvNormAct) and hasattr(module, "norm"):
                _normalise(module)
    return QuantisedNetwork(network, preprocess, ranges_of(integers.scales, graph))


def _normalise(module: ConvNormAct) -> None:
    """Scale the weights of each output channel to about 1, by a power of two that goes to the batch norm.

    AdamW changes all weights by about the same amount, however large they are.
    """
    largest = module.conv.weight.abs().amax((1, 2, 3))
    factor = torch.exp2(torch.where(largest > 0, largest, 1).log2().round())
    module.conv.weight.div_(factor[:, None, None, None])
    module.norm.weight.mul_(factor)


def blank(network: EfficientViT | QuantisedNetwork) -> EfficientViT | QuantisedNetwork:
    """A network of the same kind with other weights."""
    return copy.deepcopy(network) if isinstance(network, QuantisedNetwork) else EfficientViT(network.config)


def bias_of(module: ConvNormAct) -> Tensor | None:
    """The bias of a convolution whose batch norm is folded into it, which the norm holds if there is one."""
    norm = getattr(module, "norm", None)
    bias: Tensor | None = module.conv.bias if norm is None else norm.bias
    return bias


def plain_network(network: EfficientViT | QuantisedNetwork) -> EfficientViT:
    """The network that a checkpoint holds."""
    return network.network if isinstance(network, QuantisedNetwork) else network


def round_to_integers(x: Tensor, step: Tensor, zero: int) -> Tensor:
    """The nearest numbers that 8-bit integers represent, with gradients for the numbers and the step."""
    rounded: Tensor = _Rounding.apply(x, step, zero)  # type: ignore[no-untyped-call]
    return rounded


def _rounded(x: Tensor, step: Tensor) -> Tensor:
    """Whole multiples of a step, with the gradient of the numbers themselves."""
    return x + (torch.round(x.detach() / step) * step - x).detach()


class _Rounding(torch.autograd.Function):
    """Gradients pass where the integers do not end. That of the step is LSQ's (arXiv:1902.08153)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, step: Tensor, zero: int) -> Tensor:
        rounded, inside = torch.ops.aten.fake_quantize_per_tensor_affine_cachemask(x, float(step), zero, _LOW, _HIGH)
        ctx.save_for_backward(x, rounded, inside, step)
        return rounded  # type: ignore[no-any-return]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None]:
        x, rounded, inside, step = ctx.saved_tensors
        kept = gradient * inside
        # Inside, the step changes the rounding error; outside, it moves the end of the range.
        change = torch.dot(gradient.reshape(-1), rounded.reshape(-1)) - torch.dot(kept.reshape(-1), x.reshape(-1))
        return kept, change / float(step) / math.sqrt(_HIGH * x.numel()), None
