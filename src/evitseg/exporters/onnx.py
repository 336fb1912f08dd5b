"""The portable artefact: one ONNX file, weights and manifest inside, any height and width."""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from evitseg.config import LOGIT_STRIDE
from evitseg.errors import ExportError, MissingPackageError
from evitseg.image import Preprocess, replacing
from evitseg.manifest import METADATA_KEY, Manifest
from evitseg.model.network import Deployed, EfficientViT

if TYPE_CHECKING:
    import onnx

OPSET = 18
"""Of ONNX: the oldest that PyTorch's exporter writes, for the widest choice of runtimes."""


def write_onnx(model: EfficientViT, manifest: Manifest, path: Path) -> None:
    """Write the artefact, unverified. Raises: ExportError, MissingPackageError."""
    proto = _converted(model, manifest.preprocess)
    if manifest.weights == "float16":
        _store_weights_as_float16(proto)
    _write(proto, manifest, path)


def set_onnx_manifest(path: Path, manifest: Manifest) -> None:
    """Give an artefact another manifest."""
    import onnx

    _write(onnx.load(path, load_external_data=False), manifest, path)


def _write(proto: onnx.ModelProto, manifest: Manifest, path: Path) -> None:
    del proto.metadata_props[:]
    proto.metadata_props.add(key=METADATA_KEY, value=manifest.to_json())
    with replacing(path) as file:
        file.write(proto.SerializeToString())


def _converted(model: EfficientViT, preprocess: Preprocess) -> onnx.ModelProto:
    try:
        import onnx
        import onnxscript  # noqa: F401  # torch's exporter imports it late and fails without a clear word
    except ImportError as error:
        raise MissingPackageError("export to ONNX", "export") from error
    dynamic = torch.export.Dim.DYNAMIC
    deployed = Deployed(model, preprocess).eval()
    # Odd multiples of 32, all different, and two pictures: what is the same in an example becomes a constant.
    example = torch.zeros(2, 96, 160, 3, dtype=torch.uint8)
    with _quiet():
        try:
            program = torch.onnx.export(
                deployed,
                (example,),
                dynamo=True,
                dynamic_shapes=({0: dynamic, 1: dynamic, 2: dynamic},),
                input_names=["image"],
                output_names=["logits"],
                opset_version=OPSET,
                verbose=False,
            )
        except torch.onnx.OnnxExporterError as error:
            raise ExportError(f"PyTorch {torch.__version__} cannot convert the network ({error}).") from error
    assert program is not None  # only without dynamo
    proto = program.model_proto
    _strip(proto)
    onnx.checker.check_model(proto)
    return proto


def _strip(proto: onnx.ModelProto) -> None:
    """Drop what the exporter notes for debugging, paths of this machine among it, and name the free sizes."""
    graph = proto.graph
    for part in (proto, graph, *graph.node, *graph.initializer, *graph.input, *graph.output):
        part.doc_string = ""
        if hasattr(part, "metadata_props"):
            del part.metadata_props[:]
    del graph.value_info[:]
    graph.name = "evitseg"
    sizes = {
        "image": ("batch", "height", "width", None),
        "logits": ("batch", None, f"height/{LOGIT_STRIDE}", f"width/{LOGIT_STRIDE}"),
    }
    for value in (*graph.input, *graph.output):
        for dim, size in zip(value.type.tensor_type.shape.dim, sizes[value.name], strict=True):
            if size is not None:
                dim.dim_param = size


def _store_weights_as_float16(proto: onnx.ModelProto) -> None:
    """Store the convolutions' weights as float16, and convert them back where they are used.

    Engines do the conversion once, when they load the file.
    """
    from onnx import TensorProto, helper, numpy_helper

    graph = proto.graph
    kernels = {node.input[1] for node in graph.node if node.op_type == "Conv"}
    casts = []
    for initializer in graph.initializer:
        if initializer.name not in kernels:
            continue
        values = numpy_helper.to_array(initializer).astype(np.float16)
        if not np.isfinite(values).all():
            raise ExportError("a weight is larger than float16 holds (65504); export with --weights float32.")
        name = initializer.name
        initializer.CopyFrom(numpy_helper.from_array(values, f"{name}.float16"))
        casts.append(helper.make_node("Cast", [f"{name}.float16"], [name], to=TensorProto.FLOAT))
    nodes = [*casts, *graph.node]
    del graph.node[:]
    graph.node.extend(nodes)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the exporter's notes about itself, which say nothing about the user's model."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
