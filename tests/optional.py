"""Which of the packages that are not in the base install are there, and the tests that need them."""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Iterable, Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType

import pytest

EXTRAS = {
    "accelerate": "train",
    "ai_edge_litert": "litert",
    "ai_edge_quantizer": "litert-export",
    "av": "video",
    "axe_playwright_python": "dev",
    "coremltools": "coreml",
    "cryptography": "web",
    "executorch": "executorch",
    "httpx2": "dev",
    "huggingface_hub": "hub",
    "imagecodecs": "slides",
    "litert_torch": "litert-export",
    "matplotlib": "bench",
    "ncnn": "ncnn",
    "numcodecs": "zarr",
    "onnx": "export",
    "onnxruntime": "onnxruntime",
    "openvino": "openvino",
    "playwright": "dev",
    "pnnx": "ncnn-export",
    "prometheus_client": "serve",
    "psutil": "dev",
    "pyarrow": "parquet",
    "pycocotools": "dev",
    "pyogrio": "geo",
    "python_multipart": "serve",
    "rasterio": "geo",
    "ray": "ray",
    "segno": "web",
    "shapely": "geo",
    "sphinx": "docs",
    "starlette": "serve",
    "tensorboard": "train",
    "tifffile": "geo",
    "torch": "torch",
    "torchmetrics": "dev",
    "uvicorn": "serve",
    "zarr": "zarr",
}
"""The extra that installs each optional package."""

WITHOUT = "EVITSEG_TESTS_WITHOUT"
"""A variable whose value is a list of packages, separated by commas: the tests run as if they were not installed."""


class _Missing:
    """Finds no package of a list, wherever it is installed."""

    def __init__(self, packages: Iterable[str]) -> None:
        self.packages = frozenset(packages)

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if name.partition(".")[0] in self.packages:
            raise ModuleNotFoundError(f"No module named {name!r} ({WITHOUT} lists it)", name=name)
        return None


def hide_packages() -> None:
    """Makes the packages that the environment lists impossible to import in this process."""
    if packages := os.environ.get(WITHOUT):
        sys.meta_path.insert(0, _Missing(packages.split(",")))


def is_installed(package: str) -> bool:
    try:
        return importlib.util.find_spec(package) is not None
    except ModuleNotFoundError:
        return False


def needs(*packages: str) -> None:
    """Skips the test that calls it, or the whole module if called at its top, unless all packages are installed."""
    for package in packages:
        if not is_installed(package):
            pytest.skip(f"needs {package}, which pip install '.[{EXTRAS[package]}]' installs", allow_module_level=True)
