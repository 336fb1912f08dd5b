"""The published networks: names, files of weights and checksums."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from evitseg.architecture import (
    BACKBONES,
    CLASSIFICATION_HEADS,
    PUBLISHED_SEGMENTATION,
    SEGMENTATION_HEADS,
    ClassificationHead,
    ModelConfig,
    short_name,
)
from evitseg.errors import WeightsError, unknown
from evitseg.labels import LabelSpace, load_labels, numbered
from evitseg.manifest import Manifest, Training
from evitseg.model.key_names import Naming
from evitseg.preprocess import Preprocess
from evitseg.system.files import file_sha256
from evitseg.system.hub import HubName, cached_snapshot, fetch

if TYPE_CHECKING:
    from evitseg.model.network import EfficientViT


@dataclass(frozen=True)
class Published:
    """A published checkpoint.

    Attributes:
        config: its network.
        naming: whose names the weights in its file have.
        repository, file: its place on the Hugging Face Hub.
        sha256: of the file, if it is known; otherwise only names, shapes and numbers are checked.
    """

    config: ModelConfig
    naming: Naming
    repository: str
    file: str
    sha256: str | None = None


_SHA256 = {
    "efficientvit-seg-b0-cityscapes": "923d6fdd5e93640cc0c2f3f213764f34e80b477cd98a6b294d870ea6df5acc50",
}


def _published(
    name: str, config: ModelConfig, repository: str, file: str, naming: Naming = Naming.AUTHORS
) -> tuple[str, Published]:
    return name, Published(config, naming, repository, file, _SHA256.get(name))


# timm trained its classifiers with an epsilon in attention's divisor that is large enough to matter.
TIMM_ATTENTION_EPS = 1e-5


PUBLISHED: dict[str, Published] = dict(
    [
        _published(
            f"efficientvit-seg-{name}",
            config,
            "han-cai/efficientvit-seg",
            f"efficientvit_seg_{name.replace('-', '_')}.pt",
        )
        for name, config in PUBLISHED_SEGMENTATION.items()
    ]
    # The authors publish classifiers at several resolutions; 224 exists for every variant, and is timm's default.
    + [
        _published(
            f"efficientvit-{variant}",
            ModelConfig(BACKBONES[variant], head),
            "han-cai/efficientvit-cls",
            f"efficientvit_{variant}_r224.pt",
        )
        for variant, head in CLASSIFICATION_HEADS.items()
        if variant != "l0"
    ]
    + [
        _published(
            f"efficientvit_{variant}",
            ModelConfig(replace(BACKBONES[variant], attention_eps=TIMM_ATTENTION_EPS), head),
            f"timm/efficientvit_{variant}.r224_in1k",
            "model.safetensors",
            Naming.TIMM,
        )
        for variant, head in CLASSIFICATION_HEADS.items()
        if variant != "l0"
    ]
)
"""Every published network: the authors' segmentation models and classifiers, and timm's, which have underscores."""


PUBLISHED_TRAINING = {
    "cityscapes": Training(
        data="Cityscapes train (ImageNet-1k before)",
        licence="Apache-2.0 (weights as published); Cityscapes asks for non-commercial use",
        recipe="published by the network's authors",
    ),
    "ade20k": Training(
        data="ADE20K train (ImageNet-1k before)",
        licence="Apache-2.0 (weights as published); ADE20K's images are for non-commercial research",
        recipe="published by the network's authors",
    ),
}


def published_name(name: str) -> str:
    """The full name of a published network from its full or short name ("b0-cityscapes"). Raises: ConfigError."""
    full = name if name in PUBLISHED else f"efficientvit-seg-{name}"
    if full not in PUBLISHED:
        raise unknown("published model", name, [*SEGMENTATION_HEADS, *PUBLISHED])
    return full


def published_labels(name: str, model: EfficientViT) -> LabelSpace | None:
    """The classes of a published segmentation network; None for a classifier."""
    if is_classifier(model.config):
        return None
    labels = load_labels(name.rsplit("-", 1)[-1])
    return labels if len(labels.classes) == model.config.num_classes else numbered(model.config.num_classes)


def published_manifest(name: str, model: EfficientViT, sha256: str = "") -> Manifest:
    """The manifest of a published segmentation network."""
    data = name.rsplit("-", 1)[-1]
    return Manifest(
        name=short_name(name),
        model=model.config,
        labels=published_labels(name, model) or numbered(model.config.num_classes),
        # Cityscapes images go in at their own size; the authors evaluate ADE20K at a short side of 512.
        preprocess=Preprocess(short_side={"cityscapes": 1024, "ade20k": 512}[data]),
        training=PUBLISHED_TRAINING[data],
        checkpoint_sha256=sha256,
    )


def is_classifier(config: ModelConfig) -> bool:
    """Whether the network scores whole images instead of pixels."""
    return isinstance(config.head, ClassificationHead)


def converted_file(download: Path) -> Path:
    """Where the network of a downloaded file is stored as a checkpoint of ours: next to it."""
    return download.with_name(f"{download.stem}.evitseg.safetensors")


def cached_conversion(name: str) -> Path | None:
    """The stored checkpoint of a published network, found without any optional package; None before its first use."""
    published = PUBLISHED[published_name(name)]
    snapshot = cached_snapshot(HubName(published.repository))
    path = None if snapshot is None else converted_file(snapshot / published.file)
    return path if path is not None and path.is_file() else None


def published_in(repository: str) -> dict[str, str]:
    """The short names of the published segmentation networks in a repository of the hub, by file."""
    return {
        published.file: short_name(name)
        for name, published in PUBLISHED.items()
        if published.repository == repository and not is_classifier(published.config)
    }


def download(name: str, endpoint: str | None = None, cache: str | os.PathLike[str] | None = None) -> Path:
    """The published file of a network, from the cache, or else from the Hugging Face Hub.

    The file must have its sha256 if that is known. The others come from the repository's current revision, and loading
    checks that names, shapes and numbers are those of the network.

    Args:
        name: as for `load_official`.
        endpoint: address of the hub; None for the value of HF_ENDPOINT, or the public hub.
        cache: folder; None for the folder that all programs using the hub share (HF_HOME).

    Raises: WeightsError if the download fails, or gives another file than the published one.
    """
    name = published_name(name)
    published = PUBLISHED[name]
    # A cached file needs no network, and no wait for a connection to fail.
    place = HubName(published.repository, file=published.file)
    path = fetch(place, short_name(name), prefer_cache=True, hub=endpoint, cache=cache, extra="torch")
    if published.sha256 and (found := file_sha256(path)) != published.sha256:
        raise WeightsError(
            f"{path}: its sha256 is {found[:12]}…, but the published file has {published.sha256[:12]}…; delete it and "
            "try again."
        )
    return path
