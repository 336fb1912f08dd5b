"""Run exported models in ONNX Runtime."""

from __future__ import annotations

from pathlib import Path
from typing import cast

import numpy as np
from numpy.typing import NDArray

from evitseg.engine import EngineInfo, Precision
from evitseg.errors import EngineError, MissingPackageError, WeightsError
from evitseg.manifest import METADATA_KEY
from evitseg.runtime.mobile_engines import one_by_one
from evitseg.runtime.model_file import check_graph, first_line, manifest_inside, read
from evitseg.runtime.onnx_file import check_onnx
from evitseg.system.machine import physical_cores, processor_name


class OnnxRuntimeEngine:
    """An ONNX exported model in ONNX Runtime, on the CPU."""

    def __init__(self, model_file: Path, precision: Precision = "auto", threads: int | None = None) -> None:
        try:
            import onnxruntime
        except ImportError as error:
            raise MissingPackageError("the ONNX Runtime engine", "onnxruntime") from error
        if precision not in ("auto", "float32"):
            raise EngineError(f"ONNX Runtime computes in float32 on a CPU, not in {precision}; use --engine openvino.")
        options = onnxruntime.SessionOptions()
        # 8-bit weights are converted to float once, when the file is loaded, not for every image.
        options.add_session_config_entry("session.disable_quant_qdq", "1")
        options.log_severity_level = 3  # errors are raised as exceptions; its warnings concern its own graph
        # Set explicitly, so that the reported number is the real one.
        options.intra_op_num_threads = threads or physical_cores()
        content = read(model_file)
        check_onnx(content, model_file)
        try:
            self._session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
        except (RuntimeError, ValueError) as error:
            raise EngineError(f"{model_file}: ONNX Runtime cannot run it ({first_line(error)}).") from error
        except Exception as error:  # its exceptions have no other base class
            if type(error).__module__.startswith("onnxruntime"):
                raise EngineError(f"{model_file}: ONNX Runtime cannot run it ({first_line(error)}).") from error
            raise
        self.manifest = manifest_inside(self._session.get_modelmeta().custom_metadata_map.get(METADATA_KEY), model_file)
        inputs, outputs = self._session.get_inputs(), self._session.get_outputs()
        if len(inputs) != 1 or len(outputs) != 1:
            raise WeightsError(
                f"{model_file}: has {len(inputs)} inputs and {len(outputs)} outputs, not one of each, so evitseg did "
                "not write it; give a file that evitseg export wrote."
            )
        (given,), (logits,) = inputs, outputs
        into, out = ([side if isinstance(side, int) else None for side in value.shape] for value in (given, logits))
        kind = {"tensor(uint8)": "u8"}.get(given.type, given.type)
        check_graph(kind, into, out, self.manifest, model_file)
        self._input = given.name
        self.info = EngineInfo(
            engine="ONNX Runtime",
            version=onnxruntime.__version__,
            precision="float32",
            threads=options.intra_op_num_threads,
            device=processor_name(),
        )

    def __call__(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        return one_by_one(self._run, images) if self.manifest.preprocess.fixed else self._run(images)

    def _run(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        return cast(NDArray[np.float32], self._session.run(None, {self._input: images})[0])
