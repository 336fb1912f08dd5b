"""Write OpenVINO's own format, converted from the ONNX graph.

OpenVINO reads the ONNX file just as well. Its tools, and C++ programs without the ONNX reader, need this format.
"""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from evitseg.exporters.int8 import in_steps, steps
from evitseg.exporters.onnx import onnx_graph
from evitseg.manifest import METADATA_KEY, Manifest
from evitseg.model.fold import in_half
from evitseg.model.network import EfficientViT
from evitseg.runtime.model_file import first_line
from evitseg.runtime.openvino_core import openvino_core

if TYPE_CHECKING:
    import openvino


def write_openvino(model: EfficientViT, manifest: Manifest, path: Path) -> None:
    """Write NAME.xml, which contains the manifest, and NAME.bin. Raises: ExportError, MissingPackageError."""
    core = openvino_core()
    from openvino.passes import ConstantFolding, Manager

    proto = onnx_graph(model, manifest.preprocess)
    graph = core.read_model(proto.SerializeToString())
    passes = Manager()
    passes.register_pass(ConstantFolding())  # the reader turns every bias into a small graph
    passes.run_passes(graph)
    if manifest.weights != "float32":
        _store_smaller(graph, manifest.weights)
    _save(graph, manifest, path)


def _store_smaller(graph: openvino.Model, weights: str) -> None:
    """Store the convolutions' weights in int8 if that is wanted and they are whole steps, else in float16.

    The engine converts them back once, on loading.
    """
    from openvino import opset13 as ops

    for operator in graph.get_ops():
        if operator.get_type_name() not in ("Convolution", "GroupConvolution"):
            continue
        source = operator.input_value(1)
        weight = source.get_node().data
        flat = weight.reshape(-1, *weight.shape[-3:])  # in a grouped convolution, outputs have two axes
        whole = in_steps(flat) if weights == "int8" else None
        if whole is None:
            restored = ops.convert(ops.constant(in_half(weight)), "f32")
        else:
            step = steps(flat).astype(np.float32).reshape(*weight.shape[:-3], 1, 1, 1)
            restored = ops.multiply(ops.convert(ops.constant(whole.reshape(weight.shape)), "f32"), ops.constant(step))
        operator.input(1).replace_source_output(restored.output(0))
    graph.validate_nodes_and_infer_types()


def set_openvino_manifest(path: Path, manifest: Manifest) -> None:
    """Replace the manifest in a written file."""
    core = openvino_core()
    import openvino

    weights = np.frombuffer(path.with_suffix(".bin").read_bytes(), np.uint8)
    _save(core.read_model(path.read_bytes(), openvino.Tensor(weights)), manifest, path)


def _save(graph: openvino.Model, manifest: Manifest, path: Path) -> None:
    import openvino

    graph.set_rt_info(manifest.to_json(), ["framework", METADATA_KEY])
    # The graph has its weights in the number format that was asked for.
    try:
        openvino.save_model(graph, path, compress_to_fp16=False)
    except RuntimeError as error:  # its error does not mention a full disk
        is_full = shutil.disk_usage(path.parent).free < 2**20
        raise OSError(errno.EIO, os.strerror(errno.ENOSPC) if is_full else first_line(error)) from error
