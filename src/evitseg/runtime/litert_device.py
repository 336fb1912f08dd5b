"""Run LiteRT files on a GPU or an NPU."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from evitseg.architecture import LOGIT_STRIDE
from evitseg.engine import EngineInfo, Precision
from evitseg.errors import EngineError, MissingPackageError
from evitseg.runtime.mobile_engines import LiteRtLogits, one_by_one
from evitseg.runtime.model_file import manifest_beside, read
from evitseg.system.silence import silenced


class LiteRtDevice:
    """A .tflite file in LiteRT with an accelerator.

    Args:
        device: "GPU" or "NPU".
        precision: "float32" keeps a GPU from computing in float16, which is its default.

    Attributes:
        runs_everything: whether the accelerator runs the whole network. If not, the CPU runs the rest, perhaps all of
            it: LiteRT 2.3 calls a network "fully accelerated" by an NPU that the machine does not have.

    Raises: EngineError if the machine has no such accelerator.
    """

    def __init__(self, model_file: Path, device: str, precision: Precision = "auto") -> None:
        try:
            with silenced():
                import ai_edge_litert
                from ai_edge_litert.environment import Environment
                from ai_edge_litert.hardware_accelerator import HardwareAccelerator
                from ai_edge_litert.interpreter import Interpreter
        except ImportError as error:
            raise MissingPackageError("the LiteRT engine", "litert") from error
        if precision not in ("auto", "float32"):
            raise EngineError(f"LiteRT has no {precision} to choose; leave out the precision.")
        content = read(model_file)
        self.manifest = manifest_beside(model_file, [content])
        accelerator = HardwareAccelerator[device]
        with silenced():
            (logits,) = Interpreter(model_content=content).get_output_details()
            self._form = LiteRtLogits(logits)
            self._environment = Environment.create(runtime_path=str(Path(ai_edge_litert.__file__).parent))
            alone = self._compiled(content, accelerator, precision)
            model = alone or self._compiled(content, accelerator | HardwareAccelerator.CPU, precision)
            self.runs_everything = alone is not None
            if model is None:
                self._environment.close()
                raise EngineError(
                    f"{model_file}: LiteRT finds no {device} on this machine that can run it; leave out the device."
                )
            self._model = model
            self._inputs, self._outputs = model.create_input_buffers(0), model.create_output_buffers(0)
        from importlib.metadata import version

        runs = "int8" if self._form.is_whole else precision if precision == "float32" else f"chosen by the {device}"
        self.info = EngineInfo("LiteRT", version("ai-edge-litert"), runs, 1, device)

    def _compiled(self, content: bytes, accelerators: Any, precision: Precision) -> Any:
        """The model for these accelerators; None if they cannot run it."""
        from ai_edge_litert.compiled_model import CompiledModel
        from ai_edge_litert.gpu_options import GpuOptions
        from ai_edge_litert.options import Options

        exact = GpuOptions(enforce_f32=precision == "float32")
        options = Options(hardware_accelerators=accelerators, gpu_options=exact)
        try:
            return CompiledModel.from_buffer(content, environment=self._environment, options=options)
        except RuntimeError:
            return None

    def __call__(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        return one_by_one(self._run, images)

    def _run(self, image: NDArray[np.uint8]) -> NDArray[np.float32]:
        _, height, width, _ = image.shape
        shape = (1, self.manifest.model.num_classes, height // LOGIT_STRIDE, width // LOGIT_STRIDE)
        with silenced():
            self._inputs[0].write(image)
            self._model.run_by_index(0, self._inputs, self._outputs)
            logits = np.array(self._outputs[0].read(int(np.prod(shape)), self._form.dtype))
        return self._form.restored(logits).reshape(shape)

    def close(self) -> None:
        """Release the accelerator, about which LiteRT would otherwise print lines later."""
        with silenced():
            del self._inputs, self._outputs, self._model
            self._environment.close()
