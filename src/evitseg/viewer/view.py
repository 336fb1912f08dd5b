"""An open image with its mask, as tiles that get sharper while the mask is computed in the background."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from evitseg._version import __version__
from evitseg.errors import ConfigError, EvitsegError
from evitseg.image import AS_STATED, MAX_PIXELS, Size
from evitseg.labels import LabelSpace
from evitseg.raster.window import Source
from evitseg.viewer.geography import Coordinates
from evitseg.viewer.image_tiles import ImageTiles
from evitseg.viewer.mask_sources import (
    ExactMask,
    Previews,
    Stoppable,
    Stopped,
    block_of,
    fractions_of,
    open_mask_of,
)
from evitseg.viewer.mask_tiles import MaskArray, MaskTiles, cache_folder, open_entry
from evitseg.viewer.pyramid import TILE, Pyramid, Rectangle
from evitseg.viewer.view_request import ViewRequest

if TYPE_CHECKING:
    from evitseg.raster.mask_bands import MaskBands
    from evitseg.runtime.segmenter import Segmenter

_WHOLE_PIXELS = 2**22
"""Largest network input for which the mask is computed at once, in memory."""
_WHOLE_IMAGE_PIXELS = 2**25
"""Largest image for that."""
_RENDERED_LEVELS = 2
"""Levels whose tiles are rendered when they are asked for, if the context is known; coarser ones take too long."""
_PREVIEW_CACHE = 64
_BUSY_S = 0.02
"""Seconds after which work in the background looks whether it may go on."""


class View:
    """An image and its mask. `start` opens them in a thread; `close` stops all work.

    Args:
        is_busy: whether the machine has more urgent work, for which work in the background waits.

    Attributes:
        error: the error that ended the view, such as one that kept the image from being opened; None without one.
        problem: why the exact mask cannot be computed; "" while there is no reason.
    """

    def __init__(self, request: ViewRequest, is_busy: Callable[[], bool] = lambda: False) -> None:
        self.request, self._is_busy = request, is_busy
        self.error: Exception | None = None
        self.problem = ""
        self._opened, self._ended, self._stop = threading.Event(), threading.Event(), threading.Event()
        self._prepared = threading.Event()
        self._thread = threading.Thread(target=self._run, name="evitseg-view", daemon=True)
        self._phase, self._fraction, self._since = "opening", 0.0, time.monotonic()
        self._began = 0.0
        self._focus = (0, 0)
        self._images: ImageTiles | None = None
        self._labels: LabelSpace | None = None
        self._segment: Segmenter
        self._bands: MaskBands
        self._folder: Path
        self._size: Size
        self._tiles: MaskTiles | None = None
        self._previews: Previews | None = None
        self._exact: ExactMask | None = None
        self._source: Source | None = None
        self._coordinates = Coordinates(None)
        self._preview_counts: NDArray[np.int64] | None = None
        self._shown: dict[tuple[int, int, int], MaskArray] = {}
        self._model_name = ""
        self._lock = threading.Lock()

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        """Stop the work in the background and wait for its end."""
        self._stop.set()
        if self._thread.ident is not None:
            self._thread.join()

    def __enter__(self) -> View:
        self.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def wait(self, timeout_s: float) -> bool:
        """Wait for the end of a view that cannot be opened. Returns: whether it has ended."""
        return self._ended.wait(timeout_s)

    def wait_until_open(self) -> None:
        """Raises: the error that kept the image from being opened."""
        self._opened.wait()
        if self.error is not None:
            raise self.error
        if self._images is None:
            raise ConfigError(f"{self.request.image}: the view was closed.")

    def wait_until_prepared(self) -> None:
        """Wait until coarse levels and previews can be shown. Raises: as `wait_until_open`."""
        self._prepared.wait()
        self.wait_until_open()

    # What pages ask for.

    def about(self) -> dict[str, Any]:
        """The image, its pyramid, classes and place, for JSON. Raises: EvitsegError."""
        self.wait_until_open()
        assert self._images is not None
        assert self._labels is not None
        height, width = self._images.pyramid.size
        micrometers = None if self._source is None else self._source.origin.pixel_size_um
        meters = self._coordinates.meters_per_pixel
        if meters is None and micrometers is not None:
            meters = micrometers[1] * 1e-6
        return {
            "name": self.request.image.name,
            "width": width,
            "height": height,
            "tile": TILE,
            "levels": self._images.pyramid.levels,
            "classes": [{"name": c.name, "color": list(c.color)} for c in self._labels.classes],
            "ignore_index": self._labels.ignore_index,
            "bytes_per_index": np.dtype(self._labels.dtype).itemsize,
            "crs": self._coordinates.name if self._coordinates.is_known else None,
            "meters_per_pixel": meters,
            "model": self._model_name,
            "mask": None if self.request.mask is None else self.request.mask.name,
            "version": __version__,
        }

    def status(self) -> dict[str, Any]:
        """The progress of the mask, for JSON."""
        tiles, counts, is_preview = self._tiles, None, False
        if tiles is not None and self._labels is not None:
            counts = tiles.counts()
            is_preview = counts is None
            counts = self._preview_counts if counts is None else counts
        elapsed = time.monotonic() - self._since
        done = self._fraction - self._began
        left = None
        if self._phase in ("reading", "cutting", "segmenting", "rendering") and done > 0.01 and elapsed > 1:
            left = elapsed * (1 - self._fraction) / done
        names = self._labels.names if self._labels is not None else ()
        return {
            "phase": "failed" if self.problem or self.error else self._phase,
            "problem": self.problem or (str(self.error) if self.error else ""),
            "fraction": round(self._fraction, 4),
            "seconds_left": None if left is None else round(left),
            "exact": 0.0 if tiles is None else round(tiles.fraction, 4),
            "changes": 0 if tiles is None else tiles.changes,
            "has_context": self._exact is not None and self._exact.has_context,
            "fractions": None if counts is None else fractions_of(counts, names),
            "fractions_are_preview": is_preview,
        }

    def has(self, level: int, row: int, column: int) -> bool:
        """Whether a tile exists. Raises: EvitsegError."""
        return self.pyramid.has(level, row, column)

    def image_tile(self, level: int, row: int, column: int) -> NDArray[np.uint8]:
        """(height, width, 3) of a tile of the image. Raises: EvitsegError."""
        self.wait_until_open()
        assert self._images is not None
        return self._images.tile(level, row, column)

    def image_part(self, level: int, part: Rectangle) -> NDArray[np.uint8]:
        """(height, width, 3) of a part of a level. Raises: EvitsegError."""
        self.wait_until_open()
        assert self._images is not None
        return self._images.read(level, part)

    def mask_tile(self, level: int, row: int, column: int, with_preview: bool = True) -> tuple[MaskArray | None, bool]:
        """(height, width) class indices of a tile, and whether they are exact; None if there are none yet.

        Raises: EvitsegError.
        """
        self.wait_until_open()
        assert self._tiles is not None
        assert self._images is not None
        side = TILE << level
        self._focus = (row * side + side // 2, column * side + side // 2)
        found = self._tiles.read(level, row, column)
        if found is None and level < _RENDERED_LEVELS and self._exact is not None and self._exact.has_context:
            step = 2**level
            for y in range(row * step, min((row + 1) * step, self._images.pyramid.grid(0)[0])):
                for x in range(column * step, min((column + 1) * step, self._images.pyramid.grid(0)[1])):
                    if self._tiles.read(0, y, x) is None:
                        self._render(y, x, is_urgent=True)
            found = self._tiles.read(level, row, column)
        if found is not None:
            return found, True
        if self._previews is None or not with_preview:
            return None, False
        return self._preview(level, row, column), False

    def place(self, x: float, y: float) -> dict[str, float]:
        """Coordinates on earth of a pixel; empty if the image has none."""
        self.wait_until_open()
        return self._coordinates.of(x, y)

    def mask_part(self, level: int, part: Rectangle, with_preview: bool = True) -> tuple[MaskArray, bool]:
        """(height, width) class indices of a part of a level, and whether all of them are exact.

        Raises: EvitsegError.
        """
        self.wait_until_open()
        assert self._labels is not None
        whole = np.full((part.height, part.width), self._labels.ignore_index, self._labels.dtype)
        is_exact = True
        for row in range(part.top // TILE, -(-(part.top + part.height) // TILE)):
            for column in range(part.left // TILE, -(-(part.left + part.width) // TILE)):
                tile, exact = self.mask_tile(level, row, column, with_preview)
                is_exact &= exact
                if tile is None:
                    continue
                top, left = row * TILE - part.top, column * TILE - part.left
                skipped = max(0, -top), max(0, -left)
                piece = tile[skipped[0] : part.height - top, skipped[1] : part.width - left]
                top, left = top + skipped[0], left + skipped[1]
                whole[top : top + piece.shape[0], left : left + piece.shape[1]] = piece
        return whole, is_exact

    @property
    def pyramid(self) -> Pyramid:
        """The levels of the image. Raises: EvitsegError."""
        self.wait_until_open()
        assert self._images is not None
        return self._images.pyramid

    @property
    def coordinates(self) -> Coordinates:
        """The image's place on earth. Raises: EvitsegError."""
        self.wait_until_open()
        return self._coordinates

    @property
    def labels(self) -> LabelSpace:
        """The classes. Raises: EvitsegError."""
        self.wait_until_open()
        assert self._labels is not None
        return self._labels

    def size_of(self, level: int) -> tuple[int, int]:
        """(height, width) of a level; (0, 0) if it does not exist. Raises: EvitsegError."""
        pyramid = self.pyramid
        return pyramid.size_of(level) if 0 <= level < pyramid.levels else (0, 0)

    # What happens in the background.

    def _preview(self, level: int, row: int, column: int) -> MaskArray:
        key = (level, row, column)
        with self._lock:
            known = self._shown.get(key)
        if known is not None:
            return known
        assert self._previews is not None
        mask = self._previews.tile(*key)
        with self._lock:
            self._shown[key] = mask
            while len(self._shown) > _PREVIEW_CACHE:
                self._shown.pop(next(iter(self._shown)))
        return mask

    def _render(self, row: int, column: int, is_urgent: bool) -> None:
        """Render a full-size tile and its neighbours, unless another thread has done so."""
        tiles = self._tiles
        assert tiles is not None
        assert self._exact is not None
        assert self._source is not None
        part, _ = block_of(tiles.pyramid.size, row, column)
        mask = self._exact.render(self._source, part, lambda: tiles.read(0, row, column) is None, is_urgent)
        if mask is not None:
            tiles.write(part.top, part.left, mask)

    def _enter(self, phase: str) -> None:
        self._phase, self._fraction, self._since, self._began = phase, 0.0, time.monotonic(), 0.0

    def _watch(self, fraction: float) -> None:
        while self._is_busy() and not self._stop.wait(_BUSY_S):
            pass
        if self._stop.is_set():
            raise Stopped
        if self._fraction == 0.0:
            self._began, self._since = fraction, time.monotonic()  # resumed work counts from where it resumes
        self._fraction = fraction

    def _run(self) -> None:
        try:
            with contextlib.ExitStack() as stack:
                self._open(stack)
                try:
                    self._make()
                except EvitsegError as error:
                    self.problem = str(error)
                self._stop.wait()
        except Stopped:
            pass
        except Exception as error:  # whoever waits for the view raises it
            self.error = error
        finally:
            self._ended.set()
            self._prepared.set()
            self._opened.set()

    def _open(self, stack: contextlib.ExitStack) -> None:
        from evitseg.tiling.arguments import image_source

        request, segment = self.request, None
        reading = request.reading or AS_STATED
        if request.mask is None:
            segment = request.model.load(request.size, request.reading)
            self._labels, self._model_name, reading = segment.labels, segment.manifest.name, segment.reading
        cache = request.cache or cache_folder()
        cache.mkdir(parents=True, exist_ok=True)
        source, _ = stack.enter_context(image_source(request.image, cache, None, reading))
        if request.mask is not None:
            self._bands, self._labels = stack.enter_context(open_mask_of(request.mask, request.labels, source.size))
        assert self._labels is not None
        is_mosaic = source.origin.kind != "other" or source.size[0] * source.size[1] > MAX_PIXELS
        size: Size = "native" if request.size is None and is_mosaic else request.size
        folder = stack.enter_context(open_entry(cache, request.key(source, size, reading), request.cache_bytes))
        self._source, self._size, self._folder = source, size, folder
        self._coordinates = Coordinates(source.origin.georeference)
        self._tiles = MaskTiles(folder, Pyramid(source.size), self._labels, request.cache_bytes)
        self._images = images = ImageTiles(source)
        if request.context is not None:
            try:
                self._exact = ExactMask(request.model)
                self._exact.load_context(request.context, source)
            except EvitsegError as error:
                # Pages show it, and where the file lies is nobody's business.
                self.problem = str(error).replace(str(request.context), request.context.name)
        self._enter("reading")
        self._opened.set()
        images.prepare(self._watch)
        if segment is not None and request.with_mask:
            is_fixed = segment.manifest.preprocess.fixed is not None
            self._segment = segment if size == request.size else request.model.load(size, reading)
            self._previews = Previews(request.model.load(None if is_fixed else "native", reading), images)
        self._prepared.set()

    def _make(self) -> None:
        """Make the exact mask, as far as it is not there yet."""
        tiles, source = self._tiles, self._source
        assert tiles is not None
        assert source is not None
        if not self.request.with_mask:
            pass
        elif self.request.mask is not None:
            if not tiles.is_complete:
                self._cut()
        elif self._is_whole(source):
            if not tiles.is_complete:
                self._segment_whole(source)
        else:
            assert self._previews is not None
            length = tiles.labels.ignore_index + 1
            self._preview_counts = np.bincount(self._previews.whole().ravel(), minlength=length)[:length]
            self._segment_large(source)
        tiles.counts()
        self._enter("ready")
        self._fraction = 1.0

    def _is_whole(self, source: Source) -> bool:
        """Whether the network sees the image whole, in memory."""
        if self.request.context is not None or source.size[0] * source.size[1] > _WHOLE_IMAGE_PIXELS:
            return False
        height, width = self._segment.manifest.preprocess.fit(source.size, self._size, None)
        return height * width <= _WHOLE_PIXELS

    def _cut(self) -> None:
        """Read the mask file."""
        assert self._tiles is not None
        self._enter("cutting")
        height = self._bands.size[0]
        for top in range(0, height, TILE):
            self._watch(top / height)
            self._tiles.write(top, 0, self._bands.read(top, min(TILE, height - top)))

    def _segment_whole(self, source: Source) -> None:
        assert self._tiles is not None
        self._enter("segmenting")
        if source.origin.kind == "other":
            mask = self._segment.mask_of_file(self.request.image)[0]  # exactly what predict does
        else:
            mask = self._segment.mask(np.ascontiguousarray(source.read(0, 0, *source.size)))
        valid = source.valid(0, 0, *source.size)
        if valid is not None:
            mask = np.where(valid, mask, mask.dtype.type(self._tiles.labels.ignore_index))
        self._tiles.write(0, 0, mask)

    def _segment_large(self, source: Source) -> None:
        assert self._tiles is not None
        if self.request.context is not None and self.problem:
            return  # the context is of no use; only previews are shown
        self._enter("segmenting")
        saved = self._folder / "context.npz"
        exact = self._exact or ExactMask(self.request.model)
        if not exact.has_context and saved.is_file():
            exact.load_context(saved, source)
        self._exact = exact
        if not exact.has_context:
            sink = Stoppable(self._tiles, self._stop)
            exact.compute(source, sink, self._size, self._folder, saved, self._watch)
        if not self._tiles.is_complete:
            self._render_missing()

    def _render_missing(self) -> None:
        """Render the tiles that are not there yet, beginning near the place that was looked at last."""
        tiles = self._tiles
        assert tiles is not None
        self._enter("rendering")
        missing = {block_of(tiles.pyramid.size, *tile)[1] for tile in tiles.missing()}
        total = len(missing)
        while missing:
            self._watch(1 - len(missing) / total)
            y, x = self._focus
            side = 2 * TILE
            block = min(missing, key=lambda at: abs(at[0] * side + TILE - y) + abs(at[1] * side + TILE - x))
            missing.remove(block)
            self._render(2 * block[0], 2 * block[1], is_urgent=False)
