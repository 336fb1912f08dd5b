"""Read and write checkpoints: our own, the authors' and timm's."""

from __future__ import annotations

import functools
import itertools
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from evitseg.architecture import (
    BACKBONES,
    MAX_CLASSES,
    SEGMENTATION_HEADS,
    ModelConfig,
    SegmentationHead,
    cost,
    placed_convs,
)
from evitseg.errors import ConfigError, WeightsError
from evitseg.labels import LabelSpace, load_labels, numbered
from evitseg.manifest import METADATA_KEY, Manifest, Training, parse_manifest
from evitseg.model.key_names import Naming
from evitseg.model.network import EfficientViT
from evitseg.model.published import PUBLISHED, download, is_classifier, published_name
from evitseg.model.state import COUNTER, State, check_numbers, read_state, state_in
from evitseg.preprocess import Preprocess
from evitseg.system.files import file_sha256, replacing


def _fitted(config: ModelConfig, state: State, naming: Naming, where: object) -> EfficientViT:
    """A network with these weights, made only if they fit and are finite.

    Raises: WeightsError that lists missing, unexpected, misshapen and infinite tensors.
    """
    convolutions = sum(1 for _ in placed_convs(config))
    if convolutions > len(state):  # checked first: a file must not make us build a network of any depth
        raise WeightsError(
            f"{where}: these weights do not fit {_describe(config)}; it has {convolutions} convolutions, "
            f"the file {len(state)} tensors."
        )
    problems = _misfits(config, state, naming)
    if problems:
        raise WeightsError(f"{where}: these weights do not fit {_describe(config)}; {_listed(problems)}.")
    check_numbers(state, where)
    model = EfficientViT(config)
    names = {key: naming.key(key, config) for key in model.state_dict()}
    counters = {key: torch.tensor(0) for key, name in names.items() if name not in state}
    model.load_state_dict({key: state[name] for key, name in names.items() if name in state} | counters)
    return model


Misfits = dict[str, list[str]]


def _misfits(config: ModelConfig, state: State, naming: Naming) -> Misfits:
    """Names that are missing or unexpected, and shapes that differ; batch norm's counters are optional."""
    own = {naming.key(key, config): shape for key, shape in _shapes(config).items()}
    found = {
        "missing": [key for key in own if key not in state and not key.endswith(COUNTER)],
        "unexpected": [key for key in state if key not in own and not key.endswith(COUNTER)],
        "of the wrong shape": [
            f"{key} has shape {tuple(state[key].shape)}, the network's has {tuple(shape)}"
            for key, shape in own.items()
            if key in state and state[key].shape != shape and not key.endswith(COUNTER)
        ],
    }
    return {what: names for what, names in found.items() if names}


def _listed(problems: Misfits) -> str:
    return "; ".join(
        f"{what}: {', '.join(found[:3])}{f' and {len(found) - 3} more' if len(found) > 3 else ''}"
        for what, found in problems.items()
    )


def _describe(config: ModelConfig) -> str:
    kind = "segmentation network" if isinstance(config.head, SegmentationHead) else "classifier"
    return f"the {config.variant} {kind} with {config.num_classes} classes"


def _last_layer(config: ModelConfig, naming: Naming) -> list[str]:
    """Names of the bias and the weight of the layer that scores the classes."""
    last = "head.outputs.classify.conv" if isinstance(config.head, SegmentationHead) else "head.classify"
    return [naming.key(f"{last}.{part}", config) for part in ("bias", "weight")]


def _with_classes_of(config: ModelConfig, state: State, naming: Naming) -> ModelConfig:
    """The configuration with as many classes as the file's last layer has."""
    last = next((state[name] for name in _last_layer(config, naming) if name in state), None)
    if last is None or not last.ndim or not 1 <= len(last) <= MAX_CLASSES:
        return config
    return replace(config, head=replace(config.head, num_classes=len(last)))


def load_official(name: str, source: str | os.PathLike[str] | Mapping[str, Tensor] | None = None) -> EfficientViT:
    """A published network with its weights, in eval mode.

    Args:
        name: a key of `PUBLISHED`, such as "efficientvit-seg-b0-cityscapes", or its short form "b0-cityscapes";
            "efficientvit_b1" is timm's classifier.
        source: a .pt or .safetensors file, or a state dict, whose last layer sets the number of classes. None
            downloads the published file on first use.

    Raises: ConfigError for an unknown name, WeightsError for weights that do not fit or cannot be downloaded.
    """
    name = published_name(name)
    if source is None:
        source = download(name)
    state = state_in(source, "the state dict") if isinstance(source, Mapping) else read_state(source)[0]
    published = PUBLISHED[name]
    config, naming = _with_classes_of(published.config, state, published.naming), published.naming
    return _fitted(config, state, naming, name if isinstance(source, Mapping) else source).eval()


def save_checkpoint(model: EfficientViT, manifest: Manifest, path: str | os.PathLike[str]) -> None:
    """Write the weights and the manifest as one safetensors file, whole or not at all."""
    from safetensors.torch import save

    state = {key: tensor.detach().cpu().contiguous() for key, tensor in model.state_dict().items()}
    with replacing(path, durable=True) as file:
        file.write(save(state, {METADATA_KEY: manifest.to_json()}))


def load_checkpoint(
    path: str | os.PathLike[str], labels: LabelSpace | None = None, preprocess: Preprocess | None = None
) -> tuple[EfficientViT, Manifest]:
    """A segmentation network in eval mode and its manifest, from a checkpoint of ours or of the authors.

    Our own checkpoints carry a manifest. A file without one is recognised by the names and shapes of its weights; its
    classes are those of Cityscapes (19) or ADE20K (150), or else numbered.

    Args:
        path: .safetensors, .pt or .pth.
        labels, preprocess: replace the manifest's.

    Raises: WeightsError, ConfigError.
    """
    state, metadata = read_state(path)
    sha256 = file_sha256(path)
    if METADATA_KEY in metadata:
        manifest = parse_manifest(metadata[METADATA_KEY], Path(path))
        model = _fitted(manifest.model, state, Naming.OURS, path)
        manifest = replace(manifest, checkpoint_sha256=sha256)
    else:
        config, naming = _recognise(state, path)
        model = _fitted(config, state, naming, path)
        manifest = replace(manifest_of(model, Path(path).stem), checkpoint_sha256=sha256)
    if labels is not None:
        manifest = replace(manifest, labels=labels)
    if preprocess is not None:
        manifest = replace(manifest, preprocess=preprocess)
    return model.eval(), manifest


def manifest_of(model: EfficientViT, name: str) -> Manifest:
    """The manifest of a network that has none; its number of classes decides between Cityscapes, ADE20K and numbers."""
    classes = model.config.num_classes
    data = {19: "cityscapes", 150: "ade20k"}.get(classes)
    return Manifest(
        name=name,
        model=model.config,
        labels=load_labels(data) if data else numbered(classes),
        preprocess=Preprocess(),
        training=Training(data="unknown", licence="unknown"),
    )


def average_weights(states: Sequence[Mapping[str, Tensor]], fractions: Sequence[float]) -> State:
    """The weighted mean of networks' weights and batch norm statistics; counters are those of the first.

    Args:
        fractions: of each state; they add up to 1.
    """
    return {
        key: sum((f * state[key] for f, state in zip(fractions[1:], states[1:], strict=True)), fractions[0] * value)
        if value.is_floating_point()
        else value
        for key, value in states[0].items()
    }


def average_checkpoints(
    paths: Sequence[str | os.PathLike[str]], weights: Sequence[float] | None = None
) -> tuple[EfficientViT, Manifest]:
    """A model soup: one network whose weights are the mean of several runs from the same start (arXiv:2203.05482).

    Args:
        paths: checkpoints of the same network with the same classes.
        weights: of each checkpoint in the mean, numbers above or equal to 0; None for equal ones.

    Raises: WeightsError for checkpoints that do not fit together, ConfigError for other weights.
    """
    if len(paths) < 2:
        raise WeightsError("an average needs at least two checkpoints.")
    weights = [1.0] * len(paths) if weights is None else list(weights)
    if len(weights) != len(paths) or not all(weight >= 0 for weight in weights) or not 0 < sum(weights) < math.inf:
        raise ConfigError(
            f"weights {', '.join(f'{weight:g}' for weight in weights)}: give one number for each of the {len(paths)} "
            "checkpoints, none below 0 and not all 0, such as 0.5,0.5."
        )
    loaded = [load_checkpoint(path) for path in paths]
    model, manifest = loaded[0]
    for path, (_, other) in zip(paths, loaded, strict=True):
        for what in ("model", "labels", "preprocess"):
            if getattr(other, what) != getattr(manifest, what):
                raise WeightsError(
                    f"{path}: its {what} differs from that of {paths[0]}; average runs of the same settings."
                )
    fractions = [weight / sum(weights) for weight in weights]
    model.load_state_dict(average_weights([network.state_dict() for network, _ in loaded], fractions))
    recipes = "; ".join(
        f"{fraction:.3g} of ({other.training.recipe or 'unknown'})"
        for fraction, (_, other) in zip(fractions, loaded, strict=True)
    )
    training = replace(manifest.training, recipe=f"mean of {len(paths)}: {recipes}")
    return model, replace(
        manifest, training=training, accuracy=(), checkpoint_sha256="", verification=None, self_check=None,
        activation_ranges={},
    )  # fmt: skip


def load_backbone(path: str | os.PathLike[str]) -> tuple[EfficientViT, LabelSpace | None]:
    """A network to take the backbone from, and its classes; None instead of the classes for a classifier.

    Args:
        path: a file for `load_checkpoint`, or a classifier's weights under the authors' or timm's names.

    Raises: WeightsError, ConfigError.
    """
    state, metadata = read_state(path)
    if METADATA_KEY not in metadata:
        for config, naming in _classifiers(state):
            if not _misfits(config, state, naming):
                return _fitted(config, state, naming, path).eval(), None
    network, manifest = load_checkpoint(path)
    return network, manifest.labels


@functools.lru_cache(maxsize=256)
def _shapes(config: ModelConfig) -> dict[str, torch.Size]:
    with torch.device("meta"):
        return {key: tensor.shape for key, tensor in EfficientViT(config).state_dict().items()}


def _recognise(state: State, where: object) -> tuple[ModelConfig, Naming]:
    """The segmentation network whose weights have these names and shapes, and the naming.

    Raises: WeightsError that describes the difference to the nearest network.
    """
    statistics = ("running_mean", "running_var", COUNTER)
    parameters = sum(tensor.numel() for key, tensor in state.items() if not key.endswith(statistics))
    heads = dict.fromkeys(replace(head, num_classes=1) for head in SEGMENTATION_HEADS.values())
    known = [
        (_with_classes_of(ModelConfig(backbone, head), state, naming), naming)
        for naming in (Naming.AUTHORS, Naming.OURS)
        for backbone, head in itertools.product(BACKBONES.values(), heads)
        if backbone.early_activation is None  # which weights do not show, and no published network has
    ]
    # Nearest in size first: the right network has exactly this number of parameters.
    away = sorted(
        ((abs(cost(config).parameters - parameters), config, naming) for config, naming in known + _classifiers(state)),
        key=lambda one: one[0],
    )
    nearest = []
    for _, config, naming in away[:_COMPARED]:
        problems = _misfits(config, state, naming)
        if not problems and is_classifier(config):
            raise WeightsError(
                f"{where}: looks like a classifier, which predicts no masks; give a segmentation network."
            )
        if not problems:
            return config, naming
        if not is_classifier(config):
            nearest.append((problems, config, naming))
    wrong = len(state)
    if nearest:
        problems, config, naming = min(nearest, key=lambda one: sum(map(len, one[0].values())))
        wrong = sum(map(len, problems.values()))
    if wrong > len(state) // 2:
        raise WeightsError(
            f"{where}: the weights' names and shapes match no network, not even nearly ({len(state)} tensors, first "
            f"{next(iter(state), 'none')!r}); give a checkpoint of evitseg, or one with the authors' names."
        )
    raise WeightsError(
        f"{where}: the weights' names and shapes match no network; the nearest is {_describe(config)}, by "
        f"{naming.value} names, and differs: {_listed(problems)}."
    )


_COMPARED = 24
"""Number of networks of about the right size whose names and shapes are compared."""


def _classifiers(state: State) -> list[tuple[ModelConfig, Naming]]:
    """Published classifiers with as many classes as these weights have, and their namings."""
    return [
        (_with_classes_of(published.config, state, published.naming), published.naming)
        for published in PUBLISHED.values()
        if is_classifier(published.config)
    ]
