"""What training adds to a network: auxiliary heads, drop path, frozen parts, and a memory layout."""

from __future__ import annotations

from typing import TypeVar

import torch
from torch import Tensor, nn

from evitseg.architecture import Conv
from evitseg.model.attention import AttentionSequence
from evitseg.model.layers import ConvNormAct, ConvSequence
from evitseg.model.network import EfficientViT
from evitseg.train.config import OptimConfig
from evitseg.train.quantised import QuantisedNetwork, plain_network

_FIRST_AUXILIARY = 2  # stages are counted from 0: stages 3 and 4


class TrainingWrapper(nn.Module):
    """A network with two auxiliary heads, on stages 3 and 4, if the loss uses them; a quantised network has none.

    Input: normalised pixels. Output: the logits, those of the auxiliary heads, at strides 16 and 32, and the features
    of the stages.
    """

    def __init__(self, network: EfficientViT | QuantisedNetwork, auxiliary: bool) -> None:
        super().__init__()
        self.network = network
        backbone, classes = network.config.backbone, network.config.num_classes
        self.auxiliary = nn.ModuleList()
        if auxiliary:
            for stage in range(_FIRST_AUXILIARY, len(backbone.stages)):
                width = backbone.stages[stage].width
                hidden = ConvNormAct(Conv(width, width, kernel=1, act=True), backbone.activation, backbone.norm_eps)
                self.auxiliary.append(nn.Sequential(hidden, nn.Conv2d(width, classes, 1)))

    def forward(self, pixels: Tensor) -> tuple[Tensor, list[Tensor], list[Tensor]]:
        if isinstance(self.network, QuantisedNetwork):
            logits, features = self.network.logits_and_features(pixels)
            return logits, [], features
        features = self.network.backbone(pixels)
        auxiliary = [head(features[stage]) for stage, head in enumerate(self.auxiliary, _FIRST_AUXILIARY)]
        return self.network.head(features), auxiliary, features


def set_training_mode(wrapper: TrainingWrapper, optim: OptimConfig) -> None:
    """Put the network in training mode, except for the parts that the run freezes."""
    wrapper.train()
    if optim.freeze_backbone:
        plain_network(wrapper.network).backbone.eval()  # batch norm's statistics stay, too
    for module in wrapper.network.modules() if optim.freeze_norm else ():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):  # the base of SyncBatchNorm, too
            module.eval()


Network = TypeVar("Network", bound=nn.Module)


def channels_last(network: Network, device: torch.device) -> Network:
    """The network on a device, in the layout that oneDNN and cuDNN compute in (benchmarks/training.py)."""
    return network.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]


def set_drop_path(network: EfficientViT, rate: float) -> None:
    """Set the drop path rate of the residual blocks: 0 for the first, rising linearly to `rate` for the last."""
    blocks = [
        module
        for module in network.backbone.modules()
        if isinstance(module, AttentionSequence) or (isinstance(module, ConvSequence) and module.residual)
    ]
    for at, block in enumerate(blocks):
        block.drop_path = rate * at / max(1, len(blocks) - 1)
