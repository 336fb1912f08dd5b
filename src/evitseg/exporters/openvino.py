"""OpenVINO's own format: the portable graph, read once and written as OpenVINO keeps it.

OpenVINO reads the ONNX file just as well; its tools, and programs that load models by its C++ interface without the
ONNX reader, want this one.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from evitseg.exporters.onnx import write_onnx
from evitseg.manifest import METADATA_KEY, Manifest
from evitseg.model.network import EfficientViT

if TYPE_CHECKING:
    import openvino


def write_openvino(model: EfficientViT, manifest: Manifest, path: Path) -> None:
    """Write NAME.xml and NAME.bin; the manifest is in the .xml.

    Raises: what `write_onnx` does.
    """
    import openvino

    with tempfile.TemporaryDirectory() as folder:
        onnx_file = Path(folder) / "model.onnx"
        write_onnx(model, manifest, onnx_file)
        graph = openvino.Core().read_model(onnx_file.read_bytes())
    _save(graph, manifest, path)


def set_openvino_manifest(path: Path, manifest: Manifest) -> None:
    """Give a written file another manifest."""
    import openvino

    weights = np.frombuffer(path.with_suffix(".bin").read_bytes(), np.uint8)
    _save(openvino.Core().read_model(path.read_bytes(), openvino.Tensor(weights)), manifest, path)


def _save(graph: openvino.Model, manifest: Manifest, path: Path) -> None:
    import openvino

    graph.set_rt_info(manifest.to_json(), ["framework", METADATA_KEY])
    # The graph has its weights in the number format that was asked for.
    openvino.save_model(graph, path, compress_to_fp16=False)
