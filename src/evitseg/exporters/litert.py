"""LiteRT, once TensorFlow Lite: one .tflite file for Android, Linux boards and microprocessors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from evitseg.errors import MissingPackageError
from evitseg.exporters.deploy import DeploymentForm
from evitseg.manifest import Manifest
from evitseg.model.network import EfficientViT
from evitseg.noise import silenced


def write_litert(model: EfficientViT, manifest: Manifest, path: Path) -> None:
    """Write the file, every operator of which the XNNPACK delegate runs. Raises: MissingPackageError."""
    form = DeploymentForm(model, manifest.preprocess).eval()
    try:
        with silenced():
            import litert_torch
    except ImportError as error:
        raise MissingPackageError("export to LiteRT", "litert-export") from error
    with silenced():
        litert_torch.convert(form, (form.example,)).export(str(path))
        _take_bytes_as_numbers(path)
    if manifest.weights == "float16":
        _store_half(path)


def _take_bytes_as_numbers(path: Path) -> None:
    """Have the picture converted to float inside XNNPACK.

    It has no operator that casts bytes; it has one that takes them as numbers of scale 1.
    """
    from ai_edge_litert import schema_py_generated as schema
    from ai_edge_litert.tools import flatbuffer_utils

    model = flatbuffer_utils.read_model(str(path))
    (graph,) = model.subgraphs
    (picture,) = graph.inputs
    (cast,) = (operator for operator in graph.operators if picture in operator.inputs)
    code = schema.OperatorCodeT()
    code.builtinCode = code.deprecatedBuiltinCode = schema.BuiltinOperator.DEQUANTIZE
    code.version = 2  # the first that knows uint8
    model.operatorCodes.append(code)
    cast.opcodeIndex = len(model.operatorCodes) - 1
    cast.builtinOptionsType, cast.builtinOptions = schema.BuiltinOptions.DequantizeOptions, schema.DequantizeOptionsT()
    numbers = schema.QuantizationParametersT()
    numbers.scale, numbers.zeroPoint = [1.0], [0]
    graph.tensors[picture].quantization = numbers
    flatbuffer_utils.write_model(model, str(path))


def _store_half(path: Path) -> None:
    """The convolutions' weights in float16; the delegate converts them back once, when it loads the file."""
    from ai_edge_quantizer import algorithm_manager, qtyping, quantizer

    with silenced():
        work = quantizer.Quantizer(str(path))
        weights = qtyping.TensorQuantizationConfig(num_bits=16, dtype=qtyping.TensorDataType.FLOAT)
        for operator in (qtyping.TFLOperationName.CONV_2D, qtyping.TFLOperationName.DEPTHWISE_CONV_2D):
            work.update_quantization_recipe(
                regex=".*",
                operation_name=operator,
                op_config=qtyping.OpQuantizationConfig(
                    weight_tensor_config=weights,
                    compute_precision=qtyping.ComputePrecision.FLOAT,
                    explicit_dequantize=True,
                ),
                algorithm_key=algorithm_manager.AlgorithmName.FLOAT_CASTING,
            )
        content = work.quantize().quantized_model
    path.write_bytes(content)


def undelegated(path: Path) -> list[str]:
    """Names of the operators of a file that the XNNPACK delegate leaves to others when it is loaded."""
    from ai_edge_litert.interpreter import Interpreter

    with silenced():
        interpreter = Interpreter(model_path=str(path))
        interpreter.allocate_tensors()
    makers: dict[int, Any] = {}
    for operator in interpreter._get_ops_details():  # in the order of the file; delegates come last, and take over
        makers |= {int(tensor): operator for tensor in operator["outputs"]}
    wanted, outside = [int(output["index"]) for output in interpreter.get_output_details()], []
    for tensor in wanted:  # grows while it is walked: from the logits back to the picture
        operator = makers.pop(tensor, None)
        if operator is not None:
            wanted += [int(given) for given in operator["inputs"]]
            if operator["op_name"] != "DELEGATE":
                outside.append(str(operator["op_name"]))
    return outside
