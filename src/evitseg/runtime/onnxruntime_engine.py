"""Run exported models in ONNX Runtime."""

from __future__ import annotations

import json
from collections import Counter
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

CPU = "CPUExecutionProvider"


def providers() -> list[str]:
    """The execution providers of the installed ONNX Runtime. Raises: MissingPackageError."""
    try:
        import onnxruntime
    except ImportError as error:
        raise MissingPackageError("the ONNX Runtime engine", "onnxruntime") from error
    return list(onnxruntime.get_available_providers())


class OnnxRuntimeEngine:
    """An ONNX exported model in ONNX Runtime.

    Args:
        provider: the execution provider. The CPU's runs the operators that it does not take.
        trace: start of the name of a file that `placement` reads; None if it is not called.

    Raises: EngineError also for a provider that does not start.
    """

    def __init__(
        self,
        model_file: Path,
        precision: Precision = "auto",
        threads: int | None = None,
        provider: str = CPU,
        trace: Path | None = None,
    ) -> None:
        try:
            import onnxruntime
        except ImportError as error:
            raise MissingPackageError("the ONNX Runtime engine", "onnxruntime") from error
        if precision not in ("auto", "float32"):
            raise EngineError(f"ONNX Runtime computes in float32 on a CPU, not in {precision}; use --engine openvino.")
        providers = list(dict.fromkeys((provider, CPU)))
        options = onnxruntime.SessionOptions()
        # 8-bit weights are converted to float once, when the file is loaded, not for every image.
        options.add_session_config_entry("session.disable_quant_qdq", "1")
        options.log_severity_level = 3  # errors are raised as exceptions; its warnings concern its own graph
        # Set explicitly, so that the reported number is the real one.
        options.intra_op_num_threads = threads or physical_cores()
        if trace is not None:
            options.enable_profiling, options.profile_file_prefix = True, str(trace)
        content = read(model_file)
        check_onnx(content, model_file)
        try:
            self._session = onnxruntime.InferenceSession(content, options, providers=providers)
        except (RuntimeError, ValueError) as error:
            raise EngineError(f"{model_file}: ONNX Runtime cannot run it ({first_line(error)}).") from error
        except Exception as error:  # its exceptions have no other base class
            if type(error).__module__.startswith("onnxruntime"):
                raise EngineError(f"{model_file}: ONNX Runtime cannot run it ({first_line(error)}).") from error
            raise
        if self._session.get_providers()[0] != provider:  # it prints a warning and goes on with the CPU
            raise EngineError(f"{model_file}: ONNX Runtime could not start {provider}; check its driver and libraries.")
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
            precision="float32" if provider == CPU else f"chosen by {provider}",
            threads=options.intra_op_num_threads,
            device=processor_name() if provider == CPU else provider,
        )

    def __call__(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        return one_by_one(self._run, images) if self.manifest.preprocess.fixed else self._run(images)

    def _run(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        return cast(NDArray[np.float32], self._session.run(None, {self._input: images})[0])

    def placement(self) -> dict[str, Counter[str]]:
        """Kinds and numbers of the operators that each provider ran since the engine was made; needs `trace`."""
        trace = Path(self._session.end_profiling())
        ran: dict[str, Counter[str]] = {}
        for event in json.loads(trace.read_text(encoding="utf-8")):
            if event["cat"] == "Node" and event["name"].endswith("_kernel_time"):
                ran.setdefault(event["args"]["provider"], Counter())[event["args"]["op_name"]] += 1
        return ran
