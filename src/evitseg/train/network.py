"""The networks of a run: what it starts from, what it trains with, and what it learns from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor, nn

from evitseg.config import Conv, model_config
from evitseg.errors import ConfigError, WeightsError
from evitseg.labels import LabelSpace
from evitseg.model.attention import AttentionSequence
from evitseg.model.layers import ConvNormAct, ConvSequence
from evitseg.model.network import EfficientViT
from evitseg.model.weights import (
    load_backbone,
    load_official,
    published_labels,
    published_name,
)
from evitseg.train.config import FRESH, TrainConfig

LAST_LAYER = ("head.outputs.classify.conv.weight", "head.outputs.classify.conv.bias")


def starting_network(config: TrainConfig, labels: LabelSpace) -> EfficientViT:
    """The network of a run before its first step.

    From a start, the backbone is taken whole; of the head, every part whose shape is the same. The last layer's row
    of a class is the mean of the rows of the start's classes that it is made of (`class_shares`); a class that is new
    keeps its random row.

    Raises: WeightsError where the start has another backbone.
    """
    torch.manual_seed(config.seed)
    model = EfficientViT(model_config(config.variant, len(labels.classes)))
    if config.start == FRESH:
        return model
    source, source_labels = _source(config.start)
    if source.config.backbone.attention_eps:  # timm's weights were trained with it
        backbone = replace(model.config.backbone, attention_eps=source.config.backbone.attention_eps)
        model = EfficientViT(replace(model.config, backbone=backbone))
    own, given = model.state_dict(), source.state_dict()
    fits = {key for key in own if key in given and given[key].shape == own[key].shape}
    lacking = [key for key in own if key.startswith("backbone.") and key not in fits]
    if lacking:
        raise WeightsError(
            f"{config.start}: its backbone is {source.config.variant}, the run's {config.variant}; "
            f"train with --variant {source.config.variant}, or start from other weights."
        )
    taken = {key: given[key] if key in fits else own[key] for key in own}
    if source_labels is not None and all(key in given and key in own for key in LAST_LAYER):
        shares = class_shares(labels, source_labels, config.classes_from)
        known = shares.sum(1) > 0
        for key in LAST_LAYER:
            if given[key].shape[1:] == own[key].shape[1:]:
                taken[key] = own[key].clone()
                means = shares[known] / shares[known].sum(1, keepdim=True) @ given[key].reshape(len(given[key]), -1)
                taken[key][known] = means.reshape(-1, *given[key].shape[1:])
    model.load_state_dict(taken)
    return model


def _source(start: str) -> tuple[EfficientViT, LabelSpace | None]:
    """A start's network, and its classes where they are classes of pixels."""
    if Path(start).exists():
        return load_backbone(start)
    name = published_name(start)
    try:
        source = load_official(name)
    except WeightsError as error:
        raise WeightsError(f"{error} Or train from random weights: --start none.") from error
    return source, published_labels(name, source)


def class_shares(labels: LabelSpace, source: LabelSpace, classes_from: Mapping[str, Sequence[str]]) -> Tensor:
    """(classes, source's classes): 1 where a class is made of one of the source's.

    By `classes_from` where it names the class, else by the same name, upper and lower case alike.

    Raises: ConfigError for a name that is in neither.
    """
    own = {name.casefold(): at for at, name in enumerate(labels.names)}
    theirs = {name.casefold(): at for at, name in enumerate(source.names)}
    named = {name.casefold(): parts for name, parts in classes_from.items()}
    if strangers := [name for name in classes_from if name.casefold() not in own]:
        raise ConfigError(f"classes_from: {strangers[0]!r} is no class of the data ({', '.join(labels.names)}).")
    shares = torch.zeros(len(own), len(theirs))
    for name, at in own.items():
        for part in named.get(name, [name] if name in theirs else []):
            if part.casefold() not in theirs:
                raise ConfigError(
                    f"classes_from: {part!r} is no class of the weights to start or learn from "
                    f"({', '.join(source.names)})."
                )
            shares[at, theirs[part.casefold()]] = 1
    return shares


class Trained(nn.Module):
    """A network with what only training needs: two more heads, on stages 3 and 4.

    Input: normalised pixels. Output: logits, and those of the further heads, at strides 16 and 32.
    """

    def __init__(self, network: EfficientViT, auxiliary: bool) -> None:
        super().__init__()
        self.network = network
        backbone, classes = network.config.backbone, network.config.num_classes
        self.auxiliary = nn.ModuleList()
        if auxiliary:
            for stage in (2, 3):
                width = backbone.stages[stage].width
                hidden = ConvNormAct(Conv(width, width, kernel=1, act=True), backbone.activation, backbone.norm_eps)
                self.auxiliary.append(nn.Sequential(hidden, nn.Conv2d(width, classes, 1)))

    def forward(self, pixels: Tensor) -> tuple[Tensor, list[Tensor]]:
        features = self.network.backbone(pixels)
        early = [head(stage) for head, stage in zip(self.auxiliary, features[-2:], strict=False)]
        return self.network.head(features), early


Network = TypeVar("Network", bound=nn.Module)


def channels_last(network: Network, device: torch.device) -> Network:
    """The network on a device, in the layout that oneDNN and cuDNN need not reorder (benchmarks/training.py)."""
    return network.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]


def set_drop_path(network: EfficientViT, rate: float) -> None:
    """Residual blocks are skipped in training: the first never, the last for `rate` of the samples."""
    blocks = [
        module
        for module in network.backbone.modules()
        if isinstance(module, AttentionSequence) or (isinstance(module, ConvSequence) and module.residual)
    ]
    for at, block in enumerate(blocks):
        block.drop_path = rate * at / max(1, len(blocks) - 1)


class Teachers:
    """Networks whose mean answer is to be matched.

    Args:
        names: checkpoints or published segmentation models.
        labels: the classes of the answer.
        classes_from: see `class_shares`.
    """

    def __init__(
        self, names: Sequence[str], labels: LabelSpace, classes_from: Mapping[str, Sequence[str]], device: torch.device
    ) -> None:
        self._members = []
        for name in names:
            network, theirs = _source(name)
            if theirs is None:
                raise WeightsError(f"{name}: a classifier cannot teach masks; give a segmentation network.")
            shares = class_shares(labels, theirs, classes_from if theirs.names != labels.names else {})
            if not shares.any():
                raise ConfigError(f"{name}: none of its classes is one of the data's; name them in classes_from.")
            network = channels_last(network.eval().requires_grad_(False), device)
            self._members.append((network, shares.to(device)))

    @torch.no_grad()
    def __call__(self, pixels: Tensor, temperature: float) -> Tensor:
        """(batch, classes, h, w) probabilities at a temperature, for normalised pixels."""
        answers = []
        for network, shares in self._members:
            likely = (network(pixels).float() / temperature).softmax(1)
            ours = torch.einsum("ij,bjhw->bihw", shares, likely)
            # What the teacher gives to classes that are none of ours says nothing about ours.
            answers.append(ours / ours.sum(1, keepdim=True).clamp(min=1e-6))
        return torch.stack(answers).mean(0)


def mixed(states: Sequence[Mapping[str, Tensor]], shares: Sequence[float]) -> dict[str, Tensor]:
    """The weighted mean of weights and of batch norm's statistics; counters are the first's."""
    return {
        key: sum((s * state[key] for s, state in zip(shares[1:], states[1:], strict=True)), shares[0] * value)
        if value.is_floating_point()
        else value
        for key, value in states[0].items()
    }
