"""Write LiteRT (formerly TensorFlow Lite): one .tflite file for Android, Linux boards and microprocessors."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from evitseg.errors import MissingPackageError
from evitseg.exporters.export_model import ExportModel
from evitseg.exporters.int8 import in_steps
from evitseg.manifest import Manifest
from evitseg.model.network import EfficientViT
from evitseg.system.silence import silenced


def write_litert(model: EfficientViT, manifest: Manifest, path: Path) -> None:
    """Write a file whose every operator runs in the XNNPACK delegate. Raises: MissingPackageError."""
    form = ExportModel(model, manifest.preprocess).eval()
    try:
        with silenced():
            import litert_torch
    except ImportError as error:
        raise MissingPackageError("export to LiteRT", "litert-export") from error
    with silenced():
        litert_torch.convert(form, (form.example,)).export(str(path))
        _take_bytes_as_numbers(path)
    if manifest.weights != "float32":
        _store_smaller(path, in_steps if manifest.weights == "int8" else lambda weight, axis: None)


def _take_bytes_as_numbers(path: Path) -> None:
    """Make XNNPACK convert the image to float.

    XNNPACK cannot cast bytes, but it can dequantize them, with scale 1.
    """
    from ai_edge_litert import schema_py_generated as schema
    from ai_edge_litert.tools import flatbuffer_utils

    model = flatbuffer_utils.read_model(str(path))
    (graph,) = model.subgraphs
    (image,) = graph.inputs
    (cast,) = (operator for operator in graph.operators if image in operator.inputs)
    code = schema.OperatorCodeT()
    code.builtinCode = code.deprecatedBuiltinCode = schema.BuiltinOperator.DEQUANTIZE
    code.version = 2  # the first version for uint8
    model.operatorCodes.append(code)
    cast.opcodeIndex = len(model.operatorCodes) - 1
    cast.builtinOptionsType, cast.builtinOptions = schema.BuiltinOptions.DequantizeOptions, schema.DequantizeOptionsT()
    numbers = schema.QuantizationParametersT()
    numbers.scale, numbers.zeroPoint = [1.0], [0]
    graph.tensors[image].quantization = numbers
    flatbuffer_utils.write_model(model, str(path))


def _store_smaller(path: Path, whole: Callable[[NDArray[np.float32], int], NDArray[np.int8] | None]) -> None:
    """Store the convolutions' weights in int8 if they are `whole` steps, else in float16.

    The delegate converts them back once, on loading.
    """
    from ai_edge_litert import schema_py_generated as schema
    from ai_edge_litert.tools import flatbuffer_utils
    from ai_edge_quantizer import algorithm_manager, qtyping, quantizer
    from ai_edge_quantizer.utils import tfl_flatbuffer_utils

    half = qtyping.OpQuantizationConfig(
        weight_tensor_config=qtyping.TensorQuantizationConfig(num_bits=16, dtype=qtyping.TensorDataType.FLOAT),
        compute_precision=qtyping.ComputePrecision.FLOAT,
        explicit_dequantize=True,
    )
    kinds = {  # with the axis of their outputs
        schema.BuiltinOperator.CONV_2D: (qtyping.TFLOperationName.CONV_2D, 0),
        schema.BuiltinOperator.DEPTHWISE_CONV_2D: (qtyping.TFLOperationName.DEPTHWISE_CONV_2D, 3),
    }
    model = flatbuffer_utils.read_model(str(path))
    (graph,) = model.subgraphs
    with silenced():
        work = quantizer.Quantizer(str(path))
        for operator in graph.operators:
            kind, axis = kinds.get(model.operatorCodes[operator.opcodeIndex].builtinCode, (None, 0))
            if kind is None:
                continue
            tensor = graph.tensors[operator.inputs[1]]
            weight = np.frombuffer(bytes(model.buffers[tensor.buffer].data), np.float32).reshape(tensor.shape)
            where = f"^{re.escape(tfl_flatbuffer_utils.get_op_scope(operator, graph.tensors))}$"
            if whole(weight, axis) is None:
                work.update_quantization_recipe(where, kind, half, algorithm_manager.AlgorithmName.FLOAT_CASTING)
            else:
                work.add_weight_only_config(where, kind, 8)
        content = work.quantize().quantized_model
    path.write_bytes(content)
