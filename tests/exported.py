"""The bundled model, exported."""

from __future__ import annotations

import atexit
import shutil
import tempfile
from functools import cache
from pathlib import Path

from tests.optional import needs


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
