"""The networks of a run: what it starts from, what it trains with, and what it learns from."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor, nn

from evitseg.architecture import Conv, model_config
from evitseg.errors import ConfigError, WeightsError
from evitseg.labels import LabelSpace
from evitseg.loading import CHECKPOINT_ENDINGS
from evitseg.model.attention import AttentionSequence
from evitseg.model.checkpoints import load_backbone, load_official
from evitseg.model.layers import ConvNormAct, ConvSequence
from evitseg.model.network import EfficientViT
from evitseg.model.published import published_labels, published_name
from evitseg.train.config import FRESH, TrainConfig

LAST_LAYER = ("head.outputs.classify.conv.weight", "head.outputs.classify.conv.bias")


@dataclass(frozen=True)
class Start:
    """What a run starts from.

    Attributes:
        network: before the first step.
        known: fraction of the data's classes whose rows of the last layer come from the start; 0 for a classifier's
            weights and random ones.
        short_side: that the start scales images to; None for none.
    """

    network: EfficientViT
    known: float
    short_side: int | None


def starting_network(config: TrainConfig, labels: LabelSpace) -> EfficientViT:
    """See `start_of`."""
    return start_of(config, labels).network


def start_of(config: TrainConfig, labels: LabelSpace) -> Start:
    """The network of a run before its first step.

    From a start, the backbone is taken whole; of the head, every part whose shape is the same. The last layer's row
    of a class is the mean of the rows of the start's classes that it is made of (`class_shares`); a class that is new
    keeps its random row.

    Raises: WeightsError where the start has another backbone.
    """
    torch.manual_seed(config.seed)
    model = EfficientViT(model_config(config.variant, len(labels.classes)))
    if config.start == FRESH:
        return Start(model, 0.0, None)
    source, source_labels = source_of(config.start)
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
    rows = 0
    if source_labels is not None and all(key in given and key in own for key in LAST_LAYER):
        shares = class_shares(labels, source_labels, config.classes_from)
        known = shares.sum(1) > 0
        for key in LAST_LAYER:
            if given[key].shape[1:] == own[key].shape[1:]:
                taken[key] = own[key].clone()
                means = shares[known] / shares[known].sum(1, keepdim=True) @ given[key].reshape(len(given[key]), -1)
                taken[key][known] = means.reshape(-1, *given[key].shape[1:])
                rows = int(known.sum())
    model.load_state_dict(taken)
    return Start(model, rows / len(labels.classes), _short_side(config.start))


def _short_side(start: str) -> int | None:
    """The short side that a start's manifest asks for; weights without a manifest of ours have none."""
    from evitseg.bundled import bundled_models
    from evitseg.loading import network_of

    if start in bundled_models() or Path(start).suffix in (".onnx", ".safetensors"):
        with contextlib.suppress(WeightsError):  # a classifier has no manifest
            return network_of(start, extra="train")[1].preprocess.short_side
    return None


def source_of(start: str) -> tuple[EfficientViT, LabelSpace | None]:
    """A start's network, and its classes where they are classes of pixels."""
    from evitseg.bundled import bundled_models

    if start in bundled_models() or Path(start).suffix == ".onnx":
        from evitseg.loading import network_of

        network, manifest = network_of(start, extra="train")
        return network, manifest.labels
    if Path(start).exists():
        return load_backbone(start)
    if Path(start).suffix in CHECKPOINT_ENDINGS:
        raise WeightsError(f"{start}: no such file.")
    name = published_name(start)
    try:
        source = load_official(name)
    except WeightsError as error:
        raise WeightsError(f"{error} Or train from random weights: --start none.") from error
    return source, published_labels(name, source)


def class_shares(labels: LabelSpace, source: LabelSpace, classes_from: Mapping[str, Sequence[str]]) -> Tensor:
    """(classes, source's classes): 1 where a class is made of one of the source's.

    That is the class of the same name; where there is none, those of its classes in `classes_from` that the source
    has; failing these, the class whose name differs in upper and lower case alone.

    Raises: ConfigError where `classes_from` names no class of the data.
    """
    if strangers := [name for name in classes_from if name not in labels.names]:
        raise ConfigError(f"classes_from: {strangers[0]!r} is no class of the data ({', '.join(labels.names)}).")
    theirs = {name: at for at, name in enumerate(source.names)}
    loosely = {name.casefold(): at for at, name in enumerate(source.names)}
    shares = torch.zeros(len(labels.names), len(source.names))
    for at, name in enumerate(labels.names):
        parts = [name] if name in theirs else [part for part in classes_from.get(name, ()) if part in theirs]
        columns = [theirs[part] for part in parts]
        if not columns and name.casefold() in loosely:
            columns = [loosely[name.casefold()]]
        shares[at, columns] = 1
    return shares


_FIRST_STAGE = 2  # counted from 0: stages 3 and 4 have further heads


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
            for stage in range(_FIRST_STAGE, len(backbone.stages)):
                width = backbone.stages[stage].width
                hidden = ConvNormAct(Conv(width, width, kernel=1, act=True), backbone.activation, backbone.norm_eps)
                self.auxiliary.append(nn.Sequential(hidden, nn.Conv2d(width, classes, 1)))

    def forward(self, pixels: Tensor) -> tuple[Tensor, list[Tensor]]:
        features = self.network.backbone(pixels)
        early = [head(features[stage]) for stage, head in enumerate(self.auxiliary, _FIRST_STAGE)]
        return self.network.head(features), early


def set_modes(trained: Trained, config: TrainConfig) -> None:
    """Training mode, but for what the run keeps as it was."""
    trained.train()
    if config.freeze_backbone:
        trained.network.backbone.eval()  # nor do its statistics change
    for module in trained.network.modules() if config.freeze_norm else ():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):  # SyncBatchNorm, too
            module.eval()


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


@dataclass(frozen=True)
class Answer:
    """What a teacher says about the pixels, in the data's classes.

    Attributes:
        known: class indices it has something to say about.
        shares: (batch, known, h, w) probabilities among these.
        mass: (batch, h, w) probability of all of these together; the rest it gives to classes that are none of ours.
    """

    known: Tensor
    shares: Tensor
    mass: Tensor


class Teachers:
    """Networks whose answers are to be matched.

    Args:
        names: checkpoints or published segmentation models.
        labels: the classes of the answer.
        classes_from: see `class_shares`.

    Raises: WeightsError for a classifier, ConfigError for one that knows fewer than two of the classes, or where
    `classes_from` names a class that no teacher has.
    """

    def __init__(
        self, names: Sequence[str], labels: LabelSpace, classes_from: Mapping[str, Sequence[str]], device: torch.device
    ) -> None:
        self._members = []
        for name in names:
            network, theirs = source_of(name)
            if theirs is None:
                raise WeightsError(f"{name}: a classifier cannot teach masks; give a segmentation network.")
            shares = class_shares(labels, theirs, classes_from)
            known = (shares.sum(1) > 0).nonzero()[:, 0]
            if len(known) < 2:
                raise ConfigError(
                    f"{name}: knows {len(known)} of the data's classes, and comparing needs two; "
                    "name what they are made of in classes_from."
                )
            network = channels_last(network.eval().requires_grad_(False), device)
            self._members.append((network, shares[known].to(device), known.to(device)))

    @torch.no_grad()
    def __call__(self, pixels: Tensor, temperature: float) -> list[Answer]:
        """Every teacher's answer at a temperature, for normalised pixels."""
        answers = []
        for network, shares, known in self._members:
            with torch.autocast(pixels.device.type, enabled=False):
                likely = (network(pixels).float() / temperature).softmax(1)
                ours = torch.einsum("ij,bjhw->bihw", shares, likely)
                mass = ours.sum(1)
                answers.append(Answer(known, ours / mass[:, None].clamp(min=1e-6), mass))
        return answers


def check_classes_from(config: TrainConfig) -> None:
    """Raises: ConfigError for a name in `classes_from` that neither the start nor a teacher has."""
    sources = [] if config.start == FRESH else [config.start]
    labels = [source_of(name)[1] for name in dict.fromkeys([*sources, *config.teachers])] if config.classes_from else []
    known = {name for space in labels if space is not None for name in space.names}
    for parts in config.classes_from.values():
        for part in parts:
            if known and part not in known:
                raise ConfigError(
                    f"classes_from: {part!r} is no class of the weights to start or learn from "
                    f"({', '.join(sorted(known))})."
                )
