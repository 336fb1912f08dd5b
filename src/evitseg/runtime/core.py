"""Call our own engine, the core (`core/`), through its C interface."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from queue import SimpleQueue
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from evitseg.architecture import LOGIT_STRIDE
from evitseg.errors import EngineError
from evitseg.system.core_library import LIBRARY, check, open_library
from evitseg.system.machine import processor_name

ISA_VARIABLE = "EVITSEG_ISA"
"""Environment variable that selects an instruction set, for tests and comparisons."""
CorePrecision = Literal["float32", "float16", "bfloat16"]
CORE_PRECISIONS: dict[CorePrecision, int] = {"float32": 0, "float16": 1, "bfloat16": 2}
"""The precisions of the core, with their numbers in evitseg.h."""
_BAD_PROGRAM, _NOT_FINITE = 1, 5


class DamagedProgramError(EngineError):
    """The core cannot read a program."""


class NotFiniteError(EngineError):
    """A network's numbers grow beyond what the precision can hold."""


class MaskSide(ctypes.Structure):
    """`evs_side`: one side of a mask, and where it lies in a larger image."""

    _fields_ = (
        ("logits", ctypes.c_int),
        ("pixels", ctypes.c_int),
        ("all_logits", ctypes.c_int),
        ("all_pixels", ctypes.c_int),
        ("first_logit", ctypes.c_int),
        ("first_pixel", ctypes.c_int),
    )


@cache
def library(path: Path = LIBRARY) -> ctypes.CDLL:
    """The core's functions, with their types. Raises: EngineError if it was not compiled or does not load."""
    core = open_library(path)
    pointer, size, number, side = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.POINTER(MaskSide)
    for name, result, arguments in (
        ("evs_instruction_sets", ctypes.c_char_p, [number]),
        ("evs_model_load", number, [ctypes.c_char_p, size, number, ctypes.c_char_p, ctypes.POINTER(pointer)]),
        ("evs_model_free", None, [pointer]),
        ("evs_model_classes", number, [pointer]),
        ("evs_model_is_classifier", number, [pointer]),
        ("evs_model_isa", ctypes.c_char_p, [pointer]),
        ("evs_model_manifest", ctypes.c_char_p, [pointer]),
        ("evs_runner_new", number, [pointer, number, ctypes.POINTER(pointer)]),
        ("evs_runner_free", None, [pointer]),
        ("evs_runner_memory", size, [pointer, number, number]),
        ("evs_runner_profile", number, [pointer, number]),
        ("evs_runner_times", number, [pointer, pointer, number]),
        ("evs_peak", ctypes.c_double, [pointer]),
        ("evs_run", number, [pointer, pointer, number, number, size, pointer]),
        ("evs_run_given", number, [pointer, pointer, number, number, size, pointer, pointer]),
        ("evs_model_segments", number, [pointer]),
        ("evs_model_segment", number, [pointer, number, pointer]),
        ("evs_model_values", number, [pointer]),
        ("evs_model_value", number, [pointer, number, pointer]),
        ("evs_segment_rows", number, [pointer, *[number] * 5, pointer, pointer]),
        ("evs_window_memory", size, [pointer, *[number] * 7]),
        ("evs_run_window", number, [pointer, number, pointer]),
        ("evs_add_sums", number, [pointer, size, size]),
        ("evs_mask", number, [pointer, pointer, number, side, side, pointer]),
    ):
        function = getattr(core, name)
        function.restype, function.argtypes = result, arguments
    return core


_WIDE_BLOCKS = "avx512fp16", "amxbf16", "neonfp16"
"""Instruction sets with kBlock = 32 in core/src/ops/vector.h."""


def instruction_sets(precision: CorePrecision = "float32", path: Path = LIBRARY) -> list[str]:
    """The instruction sets for a precision that are compiled in and that this processor supports, best first.

    Empty if there is none, as for float16 on most processors. Raises: EngineError.
    """
    names: bytes = library(path).evs_instruction_sets(CORE_PRECISIONS[precision])
    return names.decode().split()


class Core:
    """A program, ready to run; several threads may call it at the same time.

    Args:
        program: made by `evitseg.runtime.program.compile_program`.
        threads: number of threads per run, including the caller's.
        streams: number of runs at the same time; further callers wait.
        precision: of features and weights; logits are float32.
        isa: one of `instruction_sets(precision)`; None for the best.
        path: the core's library.

    Raises: EngineError for a damaged program, and for an instruction set that this processor does not support.
    """

    def __init__(
        self,
        program: bytes,
        threads: int = 1,
        streams: int = 1,
        isa: str | None = None,
        path: Path = LIBRARY,
        precision: CorePrecision = "float32",
    ) -> None:
        self._runners: list[ctypes.c_void_p] = []
        self.model = ctypes.c_void_p()
        self.library, self._path = library(path), path
        self.precision = precision
        known = instruction_sets(precision, path)
        if not known:
            raise EngineError(f"{processor_name()} does not compute in {precision}; use float32.")
        if isa is not None and isa not in known:
            raise EngineError(f"{ISA_VARIABLE}={isa}: this processor supports {', '.join(known)}.")
        name = isa.encode() if isa else None
        number = CORE_PRECISIONS[precision]
        code = self.library.evs_model_load(program, len(program), number, name, ctypes.byref(self.model))
        if code == _BAD_PROGRAM:
            raise DamagedProgramError("the program is damaged, or was made by another version of evitseg.")
        check(code, path)
        self._free: SimpleQueue[ctypes.c_void_p] = SimpleQueue()
        for _ in range(streams):
            runner = ctypes.c_void_p()
            check(self.library.evs_runner_new(self.model, threads, ctypes.byref(runner)), path)
            self._runners.append(runner)
            self._free.put(runner)
        self.classes = int(self.library.evs_model_classes(self.model))
        self.is_classifier = bool(self.library.evs_model_is_classifier(self.model))
        self.isa: str = self.library.evs_model_isa(self.model).decode()

    @contextmanager
    def runner(self) -> Iterator[ctypes.c_void_p]:
        """A runner that no other thread uses meanwhile; waits until there is one."""
        runner = self._free.get()
        try:
            yield runner
        finally:
            self._free.put(runner)

    def memory(self, height: int, width: int) -> int:
        """Bytes that a run at this size needs in addition to the weights, the image and the logits."""
        with self.runner() as runner:
            return int(self.library.evs_runner_memory(runner, height, width))

    @property
    def block(self) -> int:
        """Channels of stored features are padded to a multiple of this."""
        return 32 if self.isa in _WIDE_BLOCKS else 16

    def profile(self, wanted: bool) -> None:
        """Start or stop measuring the time of every operation; call it while nothing runs."""
        for runner in self._runners:
            check(self.library.evs_runner_profile(runner, int(wanted)), self._path)

    def times(self, operations: int) -> NDArray[np.int64]:
        """The time of each operation of the program since profiling began, in nanoseconds, of all threads together."""
        total = np.zeros(operations, np.int64)
        for runner in self._runners:
            times = np.empty(operations, np.int64)
            check(self.library.evs_runner_times(runner, times.ctypes.data, operations), self._path)
            total += times
        return total

    def peak(self) -> float:
        """Multiply-adds per second that the calling thread reaches on registers alone; measured in 40 ms."""
        return float(self.library.evs_peak(self.model))

    def __call__(self, image: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Logits (classes, h / 8, w / 8) of an image (h, w, 3), RGB; of a classifier (classes,), one score per class.

        Raises: EngineError unless h and w are multiples of 32, NotFiniteError.
        """
        image = np.ascontiguousarray(image)
        height, width, _ = image.shape
        places = () if self.is_classifier else (height // LOGIT_STRIDE, width // LOGIT_STRIDE)
        logits = np.empty((self.classes, *places), np.float32)
        with self.runner() as runner:
            code = self.library.evs_run(runner, image.ctypes.data, height, width, image.strides[0], logits.ctypes.data)
        self.check(code)
        return logits

    def check(self, code: int) -> None:
        """Raise an error for an error code of a run. Raises: EngineError, NotFiniteError."""
        if code == _NOT_FINITE:
            advice = "use float32" if self.precision != "float32" else "its weights are damaged; export it again"
            raise NotFiniteError(
                f"the native engine: numbers of this network grow beyond what {self.precision} can hold; {advice}."
            )
        check(code, self._path)

    def __del__(self) -> None:
        if self.model:  # otherwise nothing was loaded
            for runner in self._runners:
                self.library.evs_runner_free(runner)
            self.library.evs_model_free(self.model)
