"""The bundled model, exported, and exports that take less time."""

from __future__ import annotations

import atexit
import contextlib
import shutil
import tempfile
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from evitseg.image import ImageArray
from tests.optional import is_installed, needs


@cache
def bundled_onnx() -> Path:
    """The bundled model as an ONNX file, written once per process. Skips the test without PyTorch and onnx."""
    needs("torch", "onnx")
    from evitseg.exporters.onnx import write_onnx
    from evitseg.loading import network_of

    folder = Path(tempfile.mkdtemp(prefix="evitseg-tests-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    path = folder / "b0-camvid.onnx"
    write_onnx(*network_of("b0-camvid"), path)
    return path


@contextlib.contextmanager
def verified_on_small_images(part: int = 8) -> Iterator[None]:
    """Reduces the images that exports are verified on, which otherwise take most of their time, to a part."""
    if not is_installed("torch"):
        yield
        return
    from evitseg.exporters.verify import example_images
    from evitseg.preprocess import resampled

    def small() -> list[ImageArray]:
        return [resampled(image, (image.shape[0] // part, image.shape[1] // part)) for image in example_images()]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("evitseg.exporters.export.example_images", small)
        yield
