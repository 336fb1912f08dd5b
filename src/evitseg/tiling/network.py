"""A model in the core, prepared to run segment by segment."""

from __future__ import annotations

import hashlib
import os
from functools import cached_property
from pathlib import Path
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from evitseg.architecture import LOGIT_STRIDE, STRIDE
from evitseg.engine import EngineInfo, Precision
from evitseg.errors import EngineError
from evitseg.labels import LabelSpace
from evitseg.runtime.core import NotFiniteError
from evitseg.runtime.core_windows import IMAGE, SegmentedCore
from evitseg.runtime.native import NativeEngine, open_native

Sums: TypeAlias = NDArray[np.float32]
"""The attention sums that one segment ends with."""

_ENDINGS = (".safetensors", ".onnx", ".evit")
_FAR = 2**15
"""Pixels of an image in whose middle no border is near."""


class Network:
    """A model that runs in bands. It can be used for any number of images, one after the other.

    Args:
        model: path of a checkpoint (.safetensors) or an exported model (.onnx, .evit), or an engine with one.
        precision: as in `evitseg.load`.
        threads: maximum number of threads; None for one per physical core.

    Attributes:
        path: the model's file; None for an engine.
        used_bytes: memory of the last image's features, for the next image; None if there is none.

    Raises: EngineError, WeightsError.
    """

    used_bytes: NDArray[np.uint8] | None = None

    def __init__(
        self, model: str | os.PathLike[str] | NativeEngine, precision: Precision = "auto", threads: int | None = None
    ) -> None:
        self.path: Path | None = None
        if isinstance(model, NativeEngine):
            self.engine, name = model, model.manifest.name
        else:
            path = Path(model)
            if path.suffix not in _ENDINGS:
                raise EngineError(
                    f"{path}: images in bands run in evitseg's own engine, which reads {', '.join(_ENDINGS)}; "
                    "give one of these, such as the checkpoint that it was exported from."
                )
            self.engine, self.path, name = open_native(path, precision, threads), path, str(path)
        self.manifest = self.engine.manifest
        if self.manifest.preprocess.fixed is not None:
            height, width = self.manifest.preprocess.fixed
            raise EngineError(
                f"{name}: exported for images of {height}x{width} only, so it cannot run in bands; export it again "
                "without --size."
            )
        self.digest = hashlib.sha256(self.engine.program).hexdigest()
        self.threads = self.engine.info.threads
        self._segmented: SegmentedCore | None = None

    @property
    def core(self) -> SegmentedCore:
        """The network's segments, in the precision in which it runs now."""
        if self._segmented is None or self._segmented.core is not self.engine.core:
            self._segmented = SegmentedCore(self.engine.core)
        return self._segmented

    @property
    def info(self) -> EngineInfo:
        return self.engine.info

    @property
    def labels(self) -> LabelSpace:
        return self.manifest.labels

    @property
    def arithmetic(self) -> str:
        """What the bits of all results depend on: the precision, in half precision also the instruction set."""
        core = self.core.core
        same_everywhere = core.precision == "float32" and core.isa != "sse4"
        return core.precision if same_everywhere else f"{core.precision} ({core.isa})"

    def fall_back(self, error: NotFiniteError) -> None:
        """Go on in float32, or raise the error; see `NativeEngine.fall_back`."""
        self.engine.fall_back(self.core.core, error)

    @cached_property
    def halo(self) -> int:
        """Pixels to each side of a block of 32 that its logits depend on, apart from the attention sums.

        A multiple of 32.
        """
        first = _FAR // 2 // LOGIT_STRIDE
        needed = {-2: range(first, first + STRIDE // LOGIT_STRIDE)}  # -2: the logits, which the last segment ends with
        core = self.core
        for i in reversed(range(len(core.segments))):
            stride = core.segments[i].stride
            ends = [needed[-2]] if i == len(core.segments) - 1 else []
            for feature, rows in needed.items():
                if feature < 0 or not core.rows(i, feature, _FAR, 0, 1)[1]:
                    continue
                times = stride // core.features[feature].stride
                ends.append(range(rows.start // times, -(-rows.stop // times)))
            if not ends:
                continue
            begin, end = min(rows.start for rows in ends), max(rows.stop for rows in ends)
            for feature in range(IMAGE, len(core.features)):
                read, _ = core.rows(i, feature, _FAR, begin, end)
                if read:
                    known = needed.get(feature, read)
                    needed[feature] = range(min(read.start, known.start), max(read.stop, known.stop))
        image = needed[IMAGE]
        reach = max(_FAR // 2 - image.start, image.stop - _FAR // 2 - STRIDE)
        return -(-reach // STRIDE) * STRIDE
