"""Write a static web page that runs a model in the browser."""

from __future__ import annotations

from pathlib import Path

from evitseg.engine import Engine
from evitseg.errors import ConfigError
from evitseg.exporters.evit import network_program
from evitseg.manifest import Manifest
from evitseg.model.network import EfficientViT, SegmentationNetworkHead
from evitseg.runtime.engines import open_engine
from evitseg.web.page_files import MODEL, set_page_manifest, write_page


def write_web(model: EfficientViT, manifest: Manifest, folder: Path) -> None:
    """Write the page without verifying the model.

    Raises: ConfigError for a classifier, and for a network that the core does not support.
    """
    if not isinstance(model.head, SegmentationNetworkHead):
        raise ConfigError("only segmentation networks can be exported to a web page.")
    write_page(folder, manifest, network_program(model, manifest.preprocess))


def set_web_manifest(folder: Path, manifest: Manifest) -> None:
    """Give a written page another manifest. Raises: WeightsError, ConfigError."""
    set_page_manifest(folder, manifest)


def open_web(folder: Path) -> Engine:
    """The model of a written page in the native engine, which is the same core."""
    return open_engine(folder / MODEL, "native", "float32")
