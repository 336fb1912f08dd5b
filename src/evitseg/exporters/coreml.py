"""Write Core ML: an .mlpackage, which is a folder, for iPhones, iPads and Macs. Any machine can write it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from evitseg.engine import EngineInfo
from evitseg.errors import EngineError, MissingPackageError
from evitseg.exporters.export_model import ExportModel
from evitseg.exporters.int8 import in_steps
from evitseg.manifest import Manifest
from evitseg.model.network import EfficientViT
from evitseg.runtime.model_file import manifest_beside
from evitseg.system.machine import processor_name
from evitseg.system.silence import silenced

WEIGHTS = "Data/com.apple.CoreML/weights"
"""Where a package has its weights."""


def write_coreml(model: EfficientViT, manifest: Manifest, path: Path) -> None:
    """Write the package, whose input is an RGB image of Apple's image type. Raises: MissingPackageError."""
    half = manifest.weights != "float32"
    form = ExportModel(model, manifest.preprocess, half=True, planes=True).eval()
    try:
        with silenced():
            import coremltools as ct
    except ImportError as error:
        raise MissingPackageError("export to Core ML", "coreml") from error
    with silenced(), torch.inference_mode():
        package = ct.convert(
            torch.jit.trace(form, form.example),  # type: ignore[no-untyped-call]  # its input; no TorchScript is kept
            inputs=[ct.ImageType("image", shape=form.example.shape, color_layout=ct.colorlayout.RGB)],
            outputs=[ct.TensorType("logits", dtype=np.float32)],
            compute_precision=ct.precision.FLOAT16 if half else ct.precision.FLOAT32,
            minimum_deployment_target=ct.target.iOS16,
        )
        if manifest.weights == "int8":
            package = _in_8_bits(package)
        package.short_description = f"{manifest.name}, semantic segmentation with EfficientViT"
        package.license = manifest.training.licence
        package.user_defined_metadata["classes"] = ", ".join(manifest.labels.names)
        package.save(str(path))


def _in_8_bits(package: Any) -> Any:
    """Store weights that are whole steps in int8; the others stay unchanged."""
    from coremltools.optimize import coreml

    weights = coreml.get_weights_metadata(package, weight_threshold=0)
    arrays = {name: weight.val.astype(np.float32) for name, weight in weights.items()}
    kept = {name: None for name, array in arrays.items() if array.ndim != 4 or in_steps(array) is None}
    every = coreml.OpLinearQuantizerConfig(mode="linear_symmetric", dtype="int8", weight_threshold=0)
    return coreml.linear_quantize_weights(package, coreml.OptimizationConfig(every, op_name_configs=kept))


class CoreMlReader:
    """A package's program computed operation by operation in PyTorch, to compare it with the network.

    It verifies the file on any machine, but cannot show how Apple's runtime rounds. Called with (N, height, width, 3)
    uint8 RGB, it returns float32 logits.

    Raises: EngineError for a package that cannot be read or has an unknown operation.
    """

    def __init__(self, package: Path) -> None:
        with silenced():
            import coremltools as ct
            from coremltools.converters.mil.frontend.milproto import load
        self.manifest = manifest_beside(package)
        try:
            with silenced():
                spec = ct.utils.load_spec(str(package))
                program = load.load(spec, spec.specificationVersion, str(package / WEIGHTS))
        except Exception as error:  # it raises its parsers' errors
            raise EngineError(f"{package}: coremltools cannot read it; export it again.") from error
        self._main = program.functions["main"]
        unknown = {operation.op_type for operation in self._main.operations} - OPERATIONS.keys() - {"const"}
        if unknown:
            raise EngineError(f"{package}: has operations that cannot be checked here ({', '.join(sorted(unknown))}).")
        half = self.manifest.weights != "float32"
        self.info = EngineInfo(
            "Core ML program in PyTorch", version("coremltools"), "float16" if half else "float32", 1, processor_name()
        )

    def __call__(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        return np.concatenate([self._run(image) for image in images])

    @torch.inference_mode()
    def _run(self, image: NDArray[np.uint8]) -> NDArray[np.float32]:
        (given,), (logits,) = self._main.inputs, self._main.outputs
        known = {given: torch.from_numpy(image.transpose(2, 0, 1)[None].astype(np.float32))}

        def value(argument: Any) -> Any:
            if isinstance(argument, (list, tuple)):
                return [value(one) for one in argument]
            if argument.name in known:
                return known[argument.name]
            constant = argument.val
            return (
                torch.from_numpy(constant)
                if getattr(constant, "dtype", np.dtype(object)).kind == "f" and constant.ndim
                else constant
            )

        for operation in self._main.operations:
            if operation.op_type == "const":
                continue
            given_to_it = {key: value(argument) for key, argument in operation.inputs.items()}
            results = OPERATIONS[operation.op_type](given_to_it)
            for output, result in zip(
                operation.outputs, [results] if isinstance(results, Tensor) else results, strict=True
            ):
                known[output.name] = result
        answer: NDArray[np.float32] = known[logits.name].float().numpy()
        return answer


def _conv(given: Mapping[str, Any]) -> Tensor:
    top, bottom, left, right = given["pad"].tolist()
    assert (top, left) == (bottom, right)
    return F.conv2d(
        given["x"],
        given["weight"],
        given.get("bias"),
        given["strides"].tolist(),
        (top, left),
        groups=int(given["groups"]),
    )


def _restored(given: Mapping[str, Any]) -> Tensor:
    """A weight that is stored in 8 bits."""
    values, scale = (torch.as_tensor(given[key]) for key in ("quantized_data", "scale"))
    shape = [-1 if axis == given["axis"] else 1 for axis in range(values.ndim)] if scale.ndim else []
    zero = torch.as_tensor(given["zero_point"]).to(scale.dtype)
    return (values.to(scale.dtype) - (zero.reshape(shape) if zero.ndim else zero)) * scale.reshape(shape)


def _slice(given: Mapping[str, Any]) -> Tensor:
    x: Tensor = given["x"]
    to_the_end = given.get("end_mask", [False] * x.ndim)
    for axis, (begin, end, open_end) in enumerate(zip(given["begin"], given["end"], to_the_end, strict=True)):
        x = (
            x.narrow(axis, int(begin) % x.shape[axis], x.shape[axis] - int(begin) % x.shape[axis])
            if open_end
            else x[(slice(None),) * axis + (slice(int(begin), int(end)),)]
        )
    return x


def _expand_dims(given: Mapping[str, Any]) -> Tensor:
    x: Tensor = given["x"]
    rank = x.ndim + len(given["axes"])
    for axis in sorted(int(axis) % rank for axis in given["axes"]):
        x = x.unsqueeze(axis)
    return x


def _matmul(given: Mapping[str, Any]) -> Tensor:
    x, y = (given[key].transpose(-1, -2) if given.get(f"transpose_{key}", False) else given[key] for key in ("x", "y"))
    product: Tensor = x @ y
    return product


OPERATIONS: dict[str, Callable[[Mapping[str, Any]], Any]] = {
    "add": lambda given: given["x"] + given["y"],
    "cast": lambda given: given["x"].to({"fp16": torch.float16, "fp32": torch.float32}[str(given["dtype"])]),
    "clip": lambda given: given["x"].clamp(float(given["alpha"]), float(given["beta"])),
    "concat": lambda given: torch.cat(given["values"], int(given["axis"])),
    "constexpr_affine_dequantize": _restored,
    "conv": _conv,
    "expand_dims": _expand_dims,
    "linear": lambda given: F.linear(given["x"], given["weight"], given.get("bias")),
    "matmul": _matmul,
    "mul": lambda given: given["x"] * given["y"],
    "real_div": lambda given: given["x"] / given["y"],
    "reduce_max": lambda given: given["x"].amax(given["axes"].tolist(), bool(given["keep_dims"])),
    "reduce_sum": lambda given: given["x"].sum(given["axes"].tolist(), bool(given["keep_dims"])),
    "relu": lambda given: given["x"].relu(),
    "reshape": lambda given: given["x"].reshape(given["shape"].tolist()),
    "sigmoid_hard": lambda given: (given["x"] * float(given["alpha"]) + float(given["beta"])).clamp(0, 1),
    "slice_by_index": _slice,
    "split": lambda given: given["x"].split(given["split_sizes"].tolist(), int(given["axis"])),
    "transpose": lambda given: given["x"].permute(given["perm"].tolist()),
    "thresholded_relu": lambda given: torch.where(given["x"] > float(given["alpha"]), given["x"], 0),
}
"""Operations by their names in Core ML's intermediate language; each takes its inputs by name."""
