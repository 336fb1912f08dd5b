"""Measure the peak arithmetic and memory throughput of the machine."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from evitseg.errors import MissingPackageError

if TYPE_CHECKING:
    import openvino

    from evitseg.runtime.core import Core

PEAK_SIDE = 2048
"""Side of the square matrices whose product measures the peak arithmetic throughput."""


COPIED_BYTES = 256 * 2**20
"""Bytes that each thread copies, far more than any cache."""


@dataclass(frozen=True)
class MachinePeak:
    """The machine's peak throughput.

    Attributes:
        gflops: 10⁹ floating-point operations per second, two per multiply-add, in the same engine and precision, with
            as many threads: in a product of large matrices, or in the core on registers alone.
        gb_per_s: 10⁹ bytes per second, read and written, while as many threads copy memory.
    """

    gflops: float
    gb_per_s: float

    def ms(self, macs: float, moved_bytes: float) -> float:
        """The roofline's time for so much work if all data comes from memory; from a cache it can be shorter."""
        return max(2 * macs / self.gflops, moved_bytes / self.gb_per_s) / 1e6


def openvino_product(compiled: openvino.CompiledModel) -> Callable[[], object]:
    """A product of large matrices in OpenVINO, with the precision and the threads of a compiled model."""
    import openvino
    from openvino import opset13 as ops

    from evitseg.runtime.openvino_core import openvino_core

    same = ("INFERENCE_PRECISION_HINT", "INFERENCE_NUM_THREADS", "NUM_STREAMS", "ENABLE_CPU_PINNING")
    left = ops.parameter([PEAK_SIDE, PEAK_SIDE], np.float32)
    product = ops.matmul(left, ops.constant(_square()), False, False)
    model = openvino.Model([product], [left])
    settings = {name: compiled.get_property(name) for name in same}
    request = openvino_core().compile_model(model, "CPU", settings).create_infer_request()
    return partial(request.infer, [_square()], share_inputs=True, share_outputs=True)


def onnxruntime_product(threads: int) -> Callable[[], object]:
    """A product of large matrices in ONNX Runtime."""
    import onnxruntime

    try:
        from onnx import TensorProto, helper, numpy_helper
    except ImportError as error:
        raise MissingPackageError("the machine's peak in ONNX Runtime", "export") from error
    values = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, [PEAK_SIDE, PEAK_SIDE]) for name in ("left", "product")
    ]
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["left", "right"], ["product"])],
        "peak",
        values[:1],
        values[1:],
        [numpy_helper.from_array(_square(), "right")],
    )
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return partial(session.run, None, {"left": _square()})


def _square() -> NDArray[np.float32]:
    return np.random.default_rng(0).standard_normal((PEAK_SIDE, PEAK_SIDE), np.float32)


def peak_gflops(product: Callable[[], object]) -> float:
    """10⁹ floating-point operations per second of a product made here."""
    return 2 * PEAK_SIDE**3 / _fastest(product) / 1e9


def core_gflops(core: Core, threads: int, rounds: int = 9) -> float:
    """10⁹ floating-point operations per second of as many threads in the core, on registers alone."""
    with ThreadPoolExecutor(threads) as pool:  # the core releases the lock
        return max(2 * sum(pool.map(lambda _: core.peak(), range(threads))) / 1e9 for _ in range(rounds))


def copy_gb_per_s(threads: int) -> float:
    """10⁹ bytes per second, read and written, while threads copy memory."""
    pairs = [(np.ones(COPIED_BYTES, np.uint8), np.zeros(COPIED_BYTES, np.uint8)) for _ in range(threads)]
    with ThreadPoolExecutor(threads) as pool:  # numpy releases the lock while it copies
        seconds = _fastest(lambda: list(pool.map(lambda pair: np.copyto(pair[1], pair[0]), pairs)))
    return 2 * COPIED_BYTES * threads / seconds / 1e9


def _fastest(work: Callable[[], object], rounds: int = 9) -> float:
    """The seconds of the fastest round, because a peak is wanted."""
    best = float("inf")
    for _ in range(rounds):
        start = time.perf_counter()
        work()
        best = min(best, time.perf_counter() - start)
    return best
