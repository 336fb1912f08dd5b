"""The network a run starts from: backbone and head of other weights, and rows of the last layer matched by class."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor

from evitseg.architecture import PUBLISHED_SEGMENTATION, model_config, short_name
from evitseg.errors import ConfigError, WeightsError, unknown
from evitseg.labels import LabelSpace
from evitseg.loading import CHECKPOINT_ENDINGS, located
from evitseg.manifest import Manifest
from evitseg.model.checkpoints import load_backbone, load_official
from evitseg.model.network import EfficientViT
from evitseg.model.published import PUBLISHED, published_labels, published_name
from evitseg.train.config import FRESH, TrainConfig

LAST_LAYER = ("head.outputs.classify.conv.weight", "head.outputs.classify.conv.bias")


@dataclass(frozen=True)
class Start:
    """The network of a run before its first step.

    Attributes:
        network: with the data's classes.
        known: fraction of the classes whose rows of the last layer come from other weights; 0 for random weights and
            those of a classifier.
        short_side: working size of the weights that the run starts from; None if they have none.
        needs_relu_fit: whether the weights were trained with hard-swish where the network has ReLU.
        activation_ranges: those that the weights were trained with, if they are the whole network's; see `Manifest`.
    """

    network: EfficientViT
    known: float
    short_side: int | None
    needs_relu_fit: bool = False
    activation_ranges: Mapping[str, tuple[float, float]] = field(default_factory=dict)


def initialize(config: TrainConfig, labels: LabelSpace) -> Start:
    """Build the network of a run and load the weights it starts from.

    The whole backbone is loaded, and every part of the head whose shape is the same. The last layer's row of a class
    becomes the mean of the rows of the matching classes (`class_matrix`); a class without a match keeps its random row.

    Raises: WeightsError if the weights are of another variant.
    """
    torch.manual_seed(config.seed)
    model = EfficientViT(model_config(config.variant, len(labels.classes)))
    if config.start == FRESH:
        return Start(model, 0.0, None)
    source, source_labels = load_source(config.start)
    if source.config.backbone.attention_eps:  # timm's weights were trained with it
        backbone = replace(model.config.backbone, attention_eps=source.config.backbone.attention_eps)
        model = EfficientViT(replace(model.config, backbone=backbone))
    own, given = model.state_dict(), source.state_dict()
    fits = {key for key in own if key in given and given[key].shape == own[key].shape}
    missing = [key for key in own if key.startswith("backbone.") and key not in fits]
    early = source.config.backbone.early_activation
    if missing or (early and early != model.config.backbone.early_activation):
        raise WeightsError(
            f"{config.start}: its backbone is {source.config.variant}, the run's is {config.variant}; "
            f"train with --variant {source.config.variant}, or start from other weights."
        )
    loaded = {key: given[key] if key in fits else own[key] for key in own}
    rows = 0
    if source_labels is not None and all(key in given and key in own for key in LAST_LAYER):
        matrix = class_matrix(labels, source_labels, config.classes_from)
        known = matrix.sum(1) > 0
        for key in LAST_LAYER:
            if given[key].shape[1:] == own[key].shape[1:]:
                loaded[key] = own[key].clone()
                means = matrix[known] / matrix[known].sum(1, keepdim=True) @ given[key].reshape(len(given[key]), -1)
                loaded[key][known] = means.reshape(-1, *given[key].shape[1:])
                rows = int(known.sum())
    model.load_state_dict(loaded)
    fit = model.config.backbone.early_activation != early
    manifest = _manifest(config.start)
    short_side = None if manifest is None else manifest.preprocess.short_side
    is_same = not fit and fits == own.keys() and source_labels is not None and source_labels.names == labels.names
    ranges = manifest.activation_ranges if manifest is not None and is_same else {}
    return Start(model, rows / len(labels.classes), short_side, fit, ranges)


def with_pinned_start(config: TrainConfig) -> TrainConfig:
    """The settings with the commit of a start on the hub, so that the run records the weights it started from."""
    _, source = located(config.start)
    if source is None:
        return config
    teachers = tuple(source if name == config.start else name for name in config.distill.teachers)
    return replace(config, start=source, distill=replace(config.distill, teachers=teachers))


def with_start_as_teacher(config: TrainConfig) -> TrainConfig:
    """The settings with the start as the teacher of a run with `qat` that has no other."""
    if not config.qat or config.distill.teachers:
        return config
    return config.updated({"distill.teachers": (config.start,)})


def _manifest(start: str) -> Manifest | None:
    """The manifest of the weights; None for weights without one of ours."""
    from evitseg.bundled import bundled_models
    from evitseg.loading import network_of

    start, _ = located(start)
    if start in bundled_models() or Path(start).suffix in (".onnx", ".safetensors"):
        with contextlib.suppress(WeightsError):  # a classifier has no manifest
            return network_of(start, extra="train")[1]
    return None


def load_source(name: str) -> tuple[EfficientViT, LabelSpace | None]:
    """The network that `start` or `distill.teachers` names, and its classes; None for those of a classifier."""
    from evitseg.bundled import bundled_models

    name, _ = located(name)
    if name in bundled_models() or Path(name).suffix == ".onnx":
        from evitseg.loading import network_of

        network, manifest = network_of(name, extra="train")
        return network, manifest.labels
    if Path(name).exists():
        return load_backbone(name)
    if Path(name).suffix in CHECKPOINT_ENDINGS:
        raise WeightsError(f"{name}: no such file.")
    if short_name(name) not in PUBLISHED_SEGMENTATION and name not in PUBLISHED:
        classifiers = [each for each in PUBLISHED if short_name(each) not in PUBLISHED_SEGMENTATION]
        raise unknown("model", name, [*bundled_models(), *PUBLISHED_SEGMENTATION, *classifiers])
    published = published_name(name)
    try:
        source = load_official(published)
    except WeightsError as error:
        raise WeightsError(f"{error} To train from random weights instead: --start none.") from error
    return source, published_labels(published, source)


def class_matrix(labels: LabelSpace, source: LabelSpace, classes_from: Mapping[str, Sequence[str]]) -> Tensor:
    """(classes, source's classes): 1 where a class of the data matches one of the source.

    A class matches the source's class of the same name. Without one, it matches its entries in `classes_from` that the
    source has. Without these, it matches the class whose name differs only in case.

    Raises: ConfigError if `classes_from` has a class that the data does not have.
    """
    if unknown := [name for name in classes_from if name not in labels.names]:
        raise ConfigError(f"classes_from: {unknown[0]!r} is not a class of the data ({', '.join(labels.names)}).")
    columns = {name: at for at, name in enumerate(source.names)}
    any_case = {name.casefold(): at for at, name in enumerate(source.names)}
    matrix = torch.zeros(len(labels.names), len(source.names))
    for row, name in enumerate(labels.names):
        parts = [name] if name in columns else [part for part in classes_from.get(name, ()) if part in columns]
        matches = [columns[part] for part in parts]
        if not matches and name.casefold() in any_case:
            matches = [any_case[name.casefold()]]
        matrix[row, matches] = 1
    return matrix


def check_classes_from(config: TrainConfig) -> None:
    """Check the names in `classes_from`.

    Raises: ConfigError for a name that is a class of neither the start nor a teacher.
    """
    if not config.classes_from:
        return
    sources = [] if config.start == FRESH else [config.start]
    spaces = [load_source(name)[1] for name in dict.fromkeys([*sources, *config.distill.teachers])]
    known = {name for space in spaces if space is not None for name in space.names}
    for parts in config.classes_from.values():
        for part in parts:
            if known and part not in known:
                raise ConfigError(
                    f"classes_from: {part!r} is not a class of the start or of a teacher ({', '.join(sorted(known))})."
                )
