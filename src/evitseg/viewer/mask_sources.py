"""Masks of an image for the viewer: exact ones through its context, and quick previews.

All that the viewer needs of tiling is in `ExactMask`.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from evitseg.engine import Precision
from evitseg.errors import ConfigError
from evitseg.image import ReadOptions, Size
from evitseg.labels import LabelSpace
from evitseg.raster.window import Sink, Source
from evitseg.viewer.image_tiles import ImageTiles
from evitseg.viewer.mask_tiles import MaskArray, halved
from evitseg.viewer.pyramid import TILE, Rectangle

if TYPE_CHECKING:
    from evitseg.raster.mask_bands import MaskBands
    from evitseg.runtime.segmenter import Segmenter
    from evitseg.tiling.context import Context
    from evitseg.tiling.network import Network

_PREVIEW_SIDE = 2048
"""Longest side of a level that is segmented whole for the preview; finer levels are segmented tile by tile."""
_PREVIEW_MARGIN = 256
"""Pixels around a tile that its preview sees."""


class Stopped(KeyboardInterrupt):
    """The view was closed; work in the background ends. A KeyboardInterrupt, so that tiling keeps what can resume."""


class Stoppable(Sink):
    """A sink that raises `Stopped` once the view is closed."""

    def __init__(self, sink: Sink, stop: threading.Event) -> None:
        self.tile, self.ordered = sink.tile, sink.ordered
        self._sink, self._stop = sink, stop

    def write(self, top: int, left: int, mask: MaskArray) -> None:
        if self._stop.is_set():
            raise Stopped
        self._sink.write(top, left, mask)


@dataclass(frozen=True)
class ModelSettings:
    """A model and the settings that its masks depend on.

    Attributes:
        name: as in `evitseg.load`.
        threads: maximum number of threads; None for one per physical core.
        memory: bytes that the process may hold while it computes a context; None for a fraction of the free memory.
    """

    name: str | None = None
    precision: Precision = "auto"
    threads: int | None = None
    memory: int | None = None

    def load(self, size: Size, reading: ReadOptions | None) -> Segmenter:
        """The model for whole images, at this working size. Raises: EvitsegError."""
        from evitseg.loading import load

        return load(self.name, precision=self.precision, threads=self.threads, size=size, reading=reading)

    def network(self) -> Network:
        """The model for images of any size. Raises: EngineError for one that does not run in bands, WeightsError."""
        from evitseg.loading import engine_file
        from evitseg.tiling.network import Network

        return Network(engine_file(self.name) or str(self.name), self.precision, self.threads)

    def digest(self) -> str:
        """A digest of the model's file. Raises: EvitsegError."""
        from evitseg.loading import engine_file
        from evitseg.system.files import file_sha256

        file = engine_file(self.name)
        if file is None or not file.is_file():
            return hashlib.sha256(str(self.name).encode()).hexdigest()
        weights = file.with_suffix(".bin")
        return file_sha256(file) + (file_sha256(weights) if file.suffix == ".xml" and weights.is_file() else "")


class ExactMask:
    """The mask that the whole image gets from a model, in tiles. One call at a time runs; others wait.

    Raises: EngineError for a model that does not run in bands, WeightsError, MissingPackageError.
    """

    def __init__(self, model: ModelSettings) -> None:
        self._network, self._memory = model.network(), model.memory
        self._context: Context | None = None
        self._checked = ""
        self._turn = threading.Condition()
        self._is_busy, self._urgent = False, 0

    @contextmanager
    def _one_at_a_time(self, is_urgent: bool) -> Iterator[None]:
        """Waits for a turn. Urgent work goes first: a page waits for it."""
        with self._turn:
            self._urgent += is_urgent
            self._turn.wait_for(lambda: not self._is_busy and (is_urgent or not self._urgent))
            self._urgent -= is_urgent
            self._is_busy = True
        try:
            yield
        finally:
            with self._turn:
                self._is_busy = False
                self._turn.notify_all()

    @property
    def has_context(self) -> bool:
        return self._context is not None

    def load_context(self, path: Path, source: Source) -> None:
        """Use the context in a file. Raises: FileError, WeightsError or ConfigError if it does not fit."""
        from evitseg.tiling.context import Context

        context = Context.load(path, self._network)
        context.check_image(source)
        self._context, self._checked = context, source.identity

    def compute(
        self, source: Source, mask: Sink, size: Size, scratch: Path, save: Path, watch: Callable[[float], None]
    ) -> None:
        """Compute the whole mask, and the context, which is saved in a file.

        Args:
            scratch: folder for intermediate results, from which an interrupted call resumes.
            watch: called with the finished fraction. KeyboardInterrupt that it raises stops the work.

        Raises: EvitsegError.
        """
        from evitseg.tiling.progress import Watcher
        from evitseg.tiling.stream import segment_large

        watcher = Watcher(begin=lambda now: watch(now.done), progress=lambda now: watch(now.done))
        with self._one_at_a_time(is_urgent=False):
            result = segment_large(
                self._network, source, mask, size=size, memory=self._memory, scratch=scratch, watch=watcher
            )
        assert result.context is not None  # as without a context window
        result.context.save(save)
        self._context, self._checked = result.context, source.identity

    def render(
        self, source: Source, part: Rectangle, is_needed: Callable[[], bool], is_urgent: bool
    ) -> MaskArray | None:
        """(height, width) class indices of a part of the mask, or None if it is no longer needed when its turn comes.

        Raises: EvitsegError.
        """
        from evitseg.tiling.region import render_window
        from evitseg.tiling.windows import Window

        assert self._context is not None
        with self._one_at_a_time(is_urgent):
            if not is_needed():
                return None
            if source.identity != self._checked:  # once for an image, because it reads sixteen parts of it
                self._context.check_image(source)
                self._checked = source.identity
            return render_window(source, self._network, self._context, Window(*part), self._memory).mask


class Previews:
    """Masks of reduced images, which take a fraction of a second. They differ from the exact mask.

    A level of at most 2048 pixels is segmented whole, and coarser levels follow from it. A tile of a finer level is
    segmented with its surroundings.
    """

    def __init__(self, segment: Segmenter, images: ImageTiles) -> None:
        self._segment, self._images = segment, images
        pyramid = images.pyramid
        self._level = next(n for n in range(pyramid.levels) if max(pyramid.size_of(n)) <= _PREVIEW_SIDE)
        self._whole: dict[int, MaskArray] = {}
        self._lock = threading.Lock()

    def tile(self, level: int, row: int, column: int) -> MaskArray:
        """(height, width) class indices. Raises: EvitsegError."""
        pyramid = self._images.pyramid
        part = pyramid.tile(level, row, column)
        if level >= self._level:
            return self.whole(level)[part.top : part.top + part.height, part.left : part.left + part.width]
        around = pyramid.tile(level, row, column, _PREVIEW_MARGIN)
        pixels = self._images.read(level, around)
        with self._lock:
            mask = self._segment.mask(np.ascontiguousarray(pixels))
        top, left = part.top - around.top, part.left - around.left
        return mask[top : top + part.height, left : left + part.width]

    def whole(self, level: int | None = None) -> MaskArray:
        """(height, width) class indices of a coarse level, by default of the finest that is segmented whole."""
        with self._lock:
            if not self._whole:
                self._whole[self._level] = self._segment.mask(self._images.whole(self._level))
            level = self._level if level is None else level
            for finer in range(self._level, level):
                if finer + 1 not in self._whole:
                    mask = self._whole[finer]
                    padded = np.pad(mask, [(0, side % 2) for side in mask.shape], "edge")
                    self._whole[finer + 1] = halved(padded)
            return self._whole[level]


@contextmanager
def open_mask_of(
    path: Path, labels: LabelSpace | None, size: tuple[int, int]
) -> Iterator[tuple[MaskBands, LabelSpace]]:
    """A mask file of an image of this size, to read class indices in bands of rows, and its classes.

    Raises: ImageError, ConfigError for a mask of another image or without classes.
    """
    from evitseg.raster.mask_bands import class_reader, open_mask

    with open_mask(path.absolute(), str(path)) as bands:
        if bands.size != size:
            raise ConfigError(
                f"{path}: has {bands.size[1]}×{bands.size[0]} pixels, but the image has {size[1]}×{size[0]}; give the "
                "mask of this image."
            )
        labels = labels or bands.labels
        if labels is None:
            raise ConfigError(f"{path}: does not list its classes; name them (--labels camvid for the bundled model).")
        yield replace(bands, read=class_reader(bands, labels)), labels


def block_of(size: tuple[int, int], row: int, column: int) -> tuple[Rectangle, tuple[int, int]]:
    """The part of the image that is rendered at once for a full-size tile, and its place among such parts.

    It has two by two tiles: the pixels around a part, which must be computed as well, cost more for single tiles.
    """
    side, place = 2 * TILE, (row // 2, column // 2)
    top, left = place[0] * side, place[1] * side
    return Rectangle(top, left, min(side, size[0] - top), min(side, size[1] - left)), place


def fractions_of(counts: NDArray[np.int64], names: tuple[str, ...]) -> dict[str, float]:
    """Fraction of the pixels per class, for classes that occur, the largest first."""
    total = max(1, int(counts.sum()))
    order = np.argsort(-counts[: len(names)], kind="stable")
    return {names[i]: float(counts[i] / total) for i in order if counts[i]}
