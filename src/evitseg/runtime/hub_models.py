"""Models on the Hugging Face Hub: which file of a repository is the model, and whether evitseg wrote it."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

from evitseg.errors import ConfigError, WeightsError
from evitseg.runtime.engines import read_manifest
from evitseg.system.hub import (
    HubName,
    NoSuchHubFileError,
    cached_files,
    fetch,
    is_known_to_lack,
    is_offline,
    list_files,
    pinned,
)

_LOG = logging.getLogger(__name__)
HUB_ENDINGS = (".safetensors", ".onnx", ".evit")
"""Endings of the files that are loaded from the hub: formats that hold their manifest, and cannot run code."""
HUB_FILE = "model.safetensors"
"""The file that `evitseg push` writes, and that a name without a file means."""


@dataclass(frozen=True)
class HubModel:
    """A model from the hub.

    Attributes:
        file: its file in the cache.
        name: its name with the commit and the file; it means the same weights for ever.
    """

    file: Path
    name: HubName


def find_hub_model(name: HubName) -> HubModel:
    """Download a model, unless it is in the cache and current, and check that evitseg wrote it.

    Args:
        name: without a file, it means model.safetensors, or else the only file of the repository that may be a model.

    Raises: ConfigError for a file that is never loaded from the hub, WeightsError, MissingPackageError.
    """
    if name.file is not None and PurePosixPath(name.file).suffix not in HUB_ENDINGS:
        raise ConfigError(f"{name}: only {', '.join(HUB_ENDINGS)} files are loaded from the hub.")
    path, found = _fetched(name)
    where = pinned(found, path)
    try:
        manifest = read_manifest(path)
    except (WeightsError, ConfigError) as error:
        raise WeightsError(
            f"{name}: its file {found.file} is not a model of evitseg, or damaged; evitseg loads what `evitseg push` "
            f"uploaded ({str(error).removeprefix(f'{path}: ').rstrip('.')})."
        ) from error
    _LOG.info("%s is %s: %s", name, where, manifest.name)
    return HubModel(path, where)


def _fetched(name: HubName) -> tuple[Path, HubName]:
    if name.file is not None:
        return fetch(name), name
    usual = replace(name, file=HUB_FILE)
    if is_offline() and is_known_to_lack(usual):
        usual = replace(name, file=_only(name, cached_files(name)))
    try:
        return fetch(usual, str(name)), usual
    except NoSuchHubFileError:
        other = replace(name, file=_only(name, list_files(name)))
        return fetch(other, str(name)), other


def _only(name: HubName, files: Sequence[str]) -> str:
    """The only file that may be a model. Raises: WeightsError."""
    able = [file for file in files if PurePosixPath(file).suffix in HUB_ENDINGS]
    if len(able) == 1:
        return able[0]
    if able:
        listed = ", ".join(str(replace(name, file=file)) for file in able[:8])
        raise WeightsError(f"{name}: has {len(able)} files that may be models; name one of them, such as {listed}.")
    raise WeightsError(
        f"{name}: has no model of evitseg ({', '.join(HUB_ENDINGS)}); `evitseg push` uploads one to a repository."
    )
