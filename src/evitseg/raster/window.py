"""Windows of images and masks: the protocols for reading and writing them, and the limits that guard them."""

from __future__ import annotations

import os
import shutil
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from evitseg.errors import FileError, ImageError
from evitseg.labels import LabelSpace
from evitseg.raster.orientation import upright_array

MAX_PIXELS = 100_000_000_000
"""Pixels of the largest image that is read window by window; a header that claims more is taken for an attack."""
MAX_BLOCK_BYTES = 256 * 2**20
"""Largest decoded block (a tile, strip or chunk) that may be needed for a single pixel."""
CACHE_BYTES = 64 * 2**20
"""Decoded bytes that a reader may cache."""
TILE = 512
"""Side in pixels of the tiles that masks are written in."""
_LEVEL_SIDE = 2048
"""Side in pixels of the windows in which a smaller level is read."""


class HasSize(Protocol):
    """Anything with a `size`, (height, width) in pixels."""

    @property
    def size(self) -> tuple[int, int]: ...


@dataclass(frozen=True)
class Georeference:
    """An image's position on earth, in rasterio's objects. A value that the file does not state is None.

    Attributes:
        crs, transform: a coordinate reference system and the affine map to it.
        gcps: (points, their crs).
        rpcs: rational polynomial coefficients.
        area_or_point: GeoTIFF's AREA_OR_POINT, the part of a pixel that coordinates refer to.
    """

    crs: Any = None
    transform: Any = None
    gcps: Any = None
    rpcs: Any = None
    area_or_point: str | None = None


@dataclass(frozen=True)
class Origin:
    """The properties that a mask inherits from its image.

    Attributes:
        overviews: reduction factors of the overviews in a GeoTIFF.
        levels: number of sizes in a pyramid, including the full one.
        pixel_size_um: (height, width) of a pixel in micrometres.
        zarr_format: 2 or 3.
        axes: of a Zarr array, a letter of "tczyx" for each; () if the metadata do not name them.
        multiscale: OME-Zarr's own entry for the array, with its version.
    """

    kind: Literal["tiff", "slide", "zarr", "other"] = "other"
    georeference: Georeference | None = None
    overviews: tuple[int, ...] = ()
    is_cog: bool = False
    levels: int = 1
    pixel_size_um: tuple[float, float] | None = None
    zarr_format: Literal[2, 3] = 3
    axes: tuple[str, ...] = ()
    multiscale: dict[str, Any] | None = None


class Source(Protocol):
    """An RGB image, the right way up, that is read window by window.

    A class that inherits from it only has to set `size` and define `read` and `valid`.

    Attributes:
        size: (height, width) in pixels.
        tile: (height, width) of the blocks the image is stored in. A damaged pixel costs its whole block.
        identity: changes whenever the file changes; "" for an image without a file. Interrupted work is resumed only
            for the same identity.
        held: largest number of bytes of memory that the source and its library hold.
        origin: properties that a mask of the image inherits.
    """

    size: tuple[int, int]
    tile: tuple[int, int] = (TILE, TILE)
    identity: str = ""
    held: int = 0
    origin: Origin = Origin()

    def read(self, top: int, left: int, height: int, width: int) -> NDArray[np.uint8]:
        """(height, width, 3) pixels of a window inside the image. Several threads may call it at once.

        Raises: ImageError, with the file and the window, for pixels that cannot be decoded; others can still be read.
        """
        ...

    def valid(self, top: int, left: int, height: int, width: int) -> NDArray[np.bool_] | None:
        """(height, width), False for pixels without data or that cannot be read; None if all are valid."""
        ...

    def reduced(self, top: int, left: int, height: int, width: int, factor: int) -> NDArray[np.uint8]:
        """(height / factor, width / factor, 3), rounded up: a small copy of a window, for display.

        It comes from a smaller level of the file if there is one, else it has about every `factor`-th pixel.

        Raises: as `read`.
        """
        rows = max(1, 2**22 // (width * factor)) * factor
        parts = [
            self.read(start, left, min(rows, top + height - start), width)[::factor, ::factor]
            for start in range(top, top + height, rows)
        ]
        return np.concatenate(parts)


class Sink(Protocol):
    """A mask that is written window by window, each pixel once.

    Attributes:
        tile: (height, width) that corners and sizes of windows are multiples of, except at the mask's right and
            lower border.
        ordered: whether windows must arrive row by row, from left to right.
    """

    tile: tuple[int, int] = (TILE, TILE)
    ordered: bool = True

    def write(self, top: int, left: int, mask: NDArray[np.integer]) -> None:
        """Write (height, width) class indices. Several threads may call it at once. Raises: FileError."""
        ...


class ArraySource(Source):
    """An image in memory, as a source of windows.

    Args:
        image: (H, W, 3) uint8.
        valid: (H, W), False for pixels without data; None if all are valid.
        identity, origin: of the file that the image was read from.
    """

    tile = (TILE, 2**30)  # whole rows, which are read without a copy

    def __init__(
        self,
        image: NDArray[np.uint8],
        valid: NDArray[np.bool_] | None = None,
        identity: str = "",
        origin: Origin | None = None,
    ) -> None:
        self.identity, self.origin = identity, origin or Origin()
        self.size = (image.shape[0], image.shape[1])
        self.held = image.nbytes + (0 if valid is None else valid.nbytes)
        self._image, self._valid = image, valid

    def read(self, top: int, left: int, height: int, width: int) -> NDArray[np.uint8]:
        check_window(self.size, top, left, height, width)
        return self._image[top : top + height, left : left + width]

    def valid(self, top: int, left: int, height: int, width: int) -> NDArray[np.bool_] | None:
        check_window(self.size, top, left, height, width)
        return None if self._valid is None else self._valid[top : top + height, left : left + width]

    def reduced(self, top: int, left: int, height: int, width: int, factor: int) -> NDArray[np.uint8]:
        return self.read(top, left, height, width)[::factor, ::factor]


class ArraySink(Sink):
    """A mask in memory: `mask`, (H, W). It takes whole rows."""

    def __init__(self, size: tuple[int, int], dtype: type[np.integer] | np.dtype[np.integer] = np.uint8) -> None:
        self.tile = (1, size[1])
        self.mask: NDArray[np.integer] = np.zeros(size, dtype)

    def write(self, top: int, left: int, mask: NDArray[np.integer]) -> None:
        self.mask[top : top + mask.shape[0], left : left + mask.shape[1]] = mask


@runtime_checkable
class _HasOrigin(Protocol):
    origin: Origin


def origin_of(source: object) -> Origin:
    origin = source.origin if isinstance(source, _HasOrigin) else None
    return origin if isinstance(origin, Origin) else Origin()


def check_size(name: str, size: tuple[int, int]) -> None:
    """Raises: ImageError for an empty image or one that is too large."""
    height, width = size
    if height < 1 or width < 1:
        raise ImageError(f"{name}: its header claims {width}×{height} pixels, so there is nothing to read.")
    if height * width > MAX_PIXELS:
        raise ImageError(
            f"{name}: its header claims {width}×{height} pixels, more than the limit of {MAX_PIXELS:,} that guards "
            "against hostile files; split it into parts."
        )


def check_block(name: str, shape: tuple[int, ...], size_bytes: int) -> None:
    """Raises: ImageError for a block that would take too much memory to decode."""
    if size_bytes > MAX_BLOCK_BYTES:
        raise ImageError(
            f"{name}: stored in blocks of {'×'.join(map(str, shape))} that take {size_bytes:,} bytes each to decode, "
            f"more than the limit of {MAX_BLOCK_BYTES:,}; store it in tiles of 512×512 first."
        )


def check_window(size: tuple[int, int], top: int, left: int, height: int, width: int) -> None:
    """Raises: ValueError for a window that is not inside the image, which is a bug of the caller."""
    if top < 0 or left < 0 or height < 1 or width < 1 or top + height > size[0] or left + width > size[1]:
        raise ValueError(f"window {(top, left, height, width)} is not inside an image of {size}")


def from_level(
    level: Source, size: tuple[int, int], top: int, left: int, height: int, width: int, factor: int
) -> NDArray[np.uint8]:
    """A reduced window of an image of this size, as in `Source.reduced`, read from a smaller level of its file."""
    rows, columns = (
        ((first + (np.arange(-(-length // factor)) + 0.5) * factor) * small / large).astype(np.intp).clip(0, small - 1)
        for first, length, small, large in zip((top, left), (height, width), level.size, size, strict=True)
    )
    reduced = np.empty((len(rows), len(columns), 3), np.uint8)
    step = max(1, int(_LEVEL_SIDE * size[0] / (level.size[0] * factor)))
    for y in range(0, len(rows), step):
        for x in range(0, len(columns), step):
            down, across = rows[y : y + step], columns[x : x + step]
            first, last = (int(down[0]), int(across[0])), (int(down[-1]), int(across[-1]))
            part = level.read(*first, last[0] - first[0] + 1, last[1] - first[1] + 1)
            reduced[y : y + step, x : x + step] = part[np.ix_(down - first[0], across - first[1])]
    return reduced


def damaged(name: str, top: int, left: int, height: int, width: int, why: object) -> ImageError:
    return ImageError(
        f"{name}: the window of {width}×{height} pixels at x {left}, y {top} cannot be read: truncated or damaged "
        f"({str(why) or type(why).__name__})."
    )


def identity_of(path: Path) -> str:
    """A text that changes with a file: its name, length and time of change. Raises: ImageError."""
    try:
        about = path.stat()
    except OSError as error:
        raise ImageError(f"{path}: cannot be read ({error.strerror or error}).") from error
    return f"{path} {about.st_size} {about.st_mtime_ns}"


def rgb(levels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """(H, W, 3) pixels from (H, W, 1 or 3)."""
    return np.ascontiguousarray(levels) if levels.shape[2] == 3 else np.repeat(levels, 3, axis=2)


def class_table(labels: LabelSpace) -> list[dict[str, Any]]:
    """Index, name and colour of every class, for the metadata of a file."""
    return [{"value": i, "name": c.name, "color": list(c.color)} for i, c in enumerate(labels.classes)]


class RawFile:
    """An array (height, width, channels) in a temporary file. Several threads may read and write windows of it.

    It is not a memory map, whose pages would count as memory of the process.
    """

    def __init__(
        self, name: str, shape: tuple[int, int, int], dtype: Any, folder: str | os.PathLike[str] | None
    ) -> None:
        """Reserve the space. `name` is the image or mask in messages. Raises: FileError."""
        self.name, self.shape, self.dtype = name, shape, np.dtype(dtype)
        place = Path(folder if folder is not None else tempfile.gettempdir())
        needed = self.dtype.itemsize * shape[0] * shape[1] * shape[2]
        try:
            free = shutil.disk_usage(place).free
            if needed > free:
                raise FileError(
                    f"{name}: needs {needed / 2**30:.1f} GiB of temporary space in {place}, which has "
                    f"{free / 2**30:.1f} GiB free; make room or choose another folder."
                )
            self._file: Any = tempfile.TemporaryFile(dir=place, buffering=0)  # noqa: SIM115
            self._file.truncate(needed)
        except OSError as error:
            raise FileError(f"{name}: cannot write into {place} ({error.strerror or error}).") from error
        self._lock = threading.Lock()

    def close(self) -> None:
        self._file.close()

    def _place(self, row: int, column: int) -> int:
        return int((row * self.shape[1] + column) * self.shape[2] * self.dtype.itemsize)

    def read(self, top: int, left: int, height: int, width: int, step: int = 1) -> NDArray[Any]:
        """(height, width, channels) of a window, or only every `step`-th row and column of it."""
        rows = range(top, top + height, step)
        content = np.empty((len(rows), width, self.shape[2]), self.dtype)
        whole = width == self.shape[1] and step == 1
        try:
            if whole:
                self._into(self._place(top, 0), content)
            else:
                for at, row in enumerate(rows):
                    self._into(self._place(row, left), content[at])
        except OSError as error:
            raise FileError(f"{self.name}: its temporary copy cannot be read ({error.strerror or error}).") from error
        return content[:, ::step]

    def _into(self, place: int, content: NDArray[Any]) -> None:
        view = content.reshape(-1).view(np.uint8).data
        with self._lock:
            self._file.seek(place)
            while len(view):
                count = self._file.readinto(view)
                if not count:
                    raise OSError("it is too short")
                view = view[count:]

    def write(self, top: int, left: int, content: NDArray[Any]) -> None:
        """Write a window, (height, width, channels)."""
        content = np.ascontiguousarray(content, self.dtype)
        runs = [content] if content.shape[1] == self.shape[1] else list(content)
        try:
            for at, run in enumerate(runs):
                view = run.reshape(-1).view(np.uint8).data
                with self._lock:
                    self._file.seek(self._place(top + at, left))
                    while len(view):
                        view = view[self._file.write(view) :]
        except OSError as error:
            raise FileError(
                f"{self.name}: its temporary copy cannot be written ({error.strerror or error})."
            ) from error


class Cropped(Source):
    """A rectangle of a source, with this origin."""

    def __init__(self, source: Source, top: int, left: int, size: tuple[int, int], origin: Origin) -> None:
        check_window(source.size, top, left, *size)
        self._source, self._top, self._left = source, top, left
        self.size, self.tile, self.held, self.origin = size, source.tile, source.held, origin

    def read(self, top: int, left: int, height: int, width: int) -> NDArray[np.uint8]:
        check_window(self.size, top, left, height, width)
        return self._source.read(self._top + top, self._left + left, height, width)

    def valid(self, top: int, left: int, height: int, width: int) -> NDArray[np.bool_] | None:
        check_window(self.size, top, left, height, width)
        return self._source.valid(self._top + top, self._left + left, height, width)


class Upright:
    """A source the right way up, for images stored with an EXIF orientation of 2 to 8."""

    def __init__(self, source: Any, orientation: int) -> None:
        self._source, self._orientation, self.origin = source, orientation, source.origin
        # The stored image is flipped first; then its rows and columns are exchanged.
        self._flip_x, self._flip_y = orientation in (2, 3, 7, 8), orientation in (3, 4, 6, 7)
        self._transposed = orientation in (5, 6, 7, 8)
        (height, width), (rows, columns) = source.size, source.tile
        self.size = (width, height) if self._transposed else (height, width)
        self.tile = (columns, rows) if self._transposed else (rows, columns)
        self.identity: str = source.identity
        self.held: int = source.held

    def _stored(self, top: int, left: int, height: int, width: int) -> tuple[int, int, int, int]:
        if self._transposed:
            top, left, height, width = left, top, width, height
        if self._flip_y:
            top = self._source.size[0] - top - height
        if self._flip_x:
            left = self._source.size[1] - left - width
        return top, left, height, width

    def read(self, top: int, left: int, height: int, width: int) -> NDArray[np.uint8]:
        check_window(self.size, top, left, height, width)
        return upright_array(self._source.read(*self._stored(top, left, height, width)), self._orientation)

    def valid(self, top: int, left: int, height: int, width: int) -> NDArray[np.bool_] | None:
        valid = self._source.valid(*self._stored(top, left, height, width))
        return None if valid is None else upright_array(valid, self._orientation)

    def reduced(self, top: int, left: int, height: int, width: int, factor: int) -> NDArray[np.uint8]:
        check_window(self.size, top, left, height, width)
        return upright_array(self._source.reduced(*self._stored(top, left, height, width), factor), self._orientation)


@contextmanager
def writing(name: str) -> Iterator[None]:
    """Turn the system's errors while writing into a FileError."""
    try:
        yield
    except OSError as error:
        raise FileError(f"{name}: cannot be written ({error.strerror or error}).") from error
