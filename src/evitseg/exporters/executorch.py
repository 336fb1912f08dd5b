"""Write ExecuTorch: one .pte file for Android, iOS and Linux, for its XNNPACK backend."""

from __future__ import annotations

from pathlib import Path

import torch

from evitseg.errors import MissingPackageError
from evitseg.exporters.export_model import ExportModel
from evitseg.manifest import Manifest
from evitseg.model.network import EfficientViT
from evitseg.system.silence import silenced


def write_executorch(model: EfficientViT, manifest: Manifest, path: Path) -> None:
    """Write the file. Raises: MissingPackageError."""
    # Float planes, which the phones' helper functions produce; bytes would be converted outside of XNNPACK.
    form = ExportModel(model, manifest.preprocess, planes=True).eval()
    try:
        with silenced():
            from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
            from executorch.exir import to_edge_transform_and_lower
    except ImportError as error:
        raise MissingPackageError("export to ExecuTorch", "executorch") from error
    with silenced():
        program = torch.export.export(form, (form.example,))
        lowered = to_edge_transform_and_lower(program, partitioner=[XnnpackPartitioner()])
        path.write_bytes(lowered.to_executorch().buffer)
