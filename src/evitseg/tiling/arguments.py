"""Arguments of the public functions: models, images and places for masks, in every form that users pass."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from evitseg.errors import EngineError, ImageError
from evitseg.image import AS_STATED, ImageArray, ReadOptions, TooManyPixelsError
from evitseg.loading import engine_file
from evitseg.raster.png import MaskFormat
from evitseg.raster.window import ArraySource, HasSize, Sink, Source
from evitseg.runtime.native import NativeEngine
from evitseg.runtime.segmenter import Segmenter
from evitseg.tiling.memory_model import default_memory
from evitseg.tiling.network import Network

ModelLike: TypeAlias = Network | Segmenter | str | os.PathLike[str] | None
"""A model for images of any size: a name or path as in `evitseg.load`, what that returned, or a `Network`."""
ImageLike: TypeAlias = Source | NDArray[np.uint8] | str | os.PathLike[str]
"""An image: a file, an (H, W, 3) uint8 RGB array, or a `Source`."""
MaskPlace: TypeAlias = Sink | AbstractContextManager[Sink] | str | os.PathLike[str]
"""A place for a mask: a file, a `Sink`, or a context manager that opens one, such as `evitseg.open_mask_writer`."""


def banded_network(model: ModelLike) -> Network:
    """The network that runs a model in bands.

    A `Segmenter` passes on its engine. A `Network` is returned as it is.

    Raises: EngineError for a model that our own engine does not run, WeightsError.
    """
    if isinstance(model, Network):
        return model
    if not isinstance(model, Segmenter):
        return Network(engine_file(model) or str(model))
    if not isinstance(model.engine, NativeEngine):
        raise EngineError(
            f"images in bands run in evitseg's own engine, not in {model.info.engine}; load the model without engine=."
        )
    return Network(model.engine)


def reading_of(model: ModelLike, network: Network) -> ReadOptions:
    """How image files are read for a model."""
    return model.reading if isinstance(model, Segmenter) else network.manifest.reading


@contextlib.contextmanager
def image_source(
    image: ImageLike,
    scratch: str | os.PathLike[str] | None = None,
    memory: int | None = None,
    reading: ReadOptions = AS_STATED,
) -> Iterator[tuple[Source, bool]]:
    """An image as a source of windows, and whether it is a file from which each window is read when it is needed.

    Formats that can only be decoded from the start of the file are decoded in memory if they take at most a quarter of
    it, otherwise to a temporary file.

    Args:
        scratch: folder for that file.
        memory: bytes the process may hold; None as in `default_memory`.

    Raises: ImageError, FileError, MissingPackageError.
    """
    from evitseg.raster import open_raster
    from evitseg.raster.files import image_size, read_image
    from evitseg.raster.formats import format_of
    from evitseg.raster.places import place_of
    from evitseg.raster.window import identity_of

    if isinstance(image, np.ndarray):
        if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
            raise ImageError(f"an array must be (H, W, 3) uint8, not {image.shape} {image.dtype}.")
        yield ArraySource(image), False
        return
    if not isinstance(image, (str, os.PathLike)):
        yield image, False
        return
    path, kind = Path(image), None
    if path.is_file():
        with path.open("rb") as file:
            kind = format_of(file.read(64))
    if kind is not None and kind.gdal != "GTiff":
        memory = default_memory() if memory is None else memory
        pixels: ImageArray | None = None
        with contextlib.suppress(TooManyPixelsError):
            height, width = image_size(path, reading)
            if 8 * height * width <= memory // 4 or not kind.gdal:
                pixels = read_image(path, reading)
        if pixels is not None:
            yield ArraySource(pixels, None, identity_of(path.absolute()), place_of(path, reading).origin), False
            return
    with open_raster(path, scratch, reading) as source:
        yield source, True


def mask_sink(
    place: MaskPlace, like: HasSize, network: Network, mask_format: MaskFormat = "palette"
) -> AbstractContextManager[Sink]:
    """What opens the sink for a mask, with the size and georeference of `like`.

    Raises: ImageError, FileError or MissingPackageError for a file that cannot be written.
    """
    if isinstance(place, (str, os.PathLike)):
        from evitseg.raster import check_place, open_mask_writer

        check_place(place, like)
        return open_mask_writer(place, like, network.labels, mask_format)
    return place if isinstance(place, AbstractContextManager) else nullcontext(place)


def scratch_folder(scratch: str | os.PathLike[str] | None, place: MaskPlace) -> Path:
    """The folder for intermediate results: the one given, else that of the mask, else the system's temporary one."""
    if scratch is not None:
        return Path(scratch)
    return Path(place).absolute().parent if isinstance(place, (str, os.PathLike)) else Path(tempfile.gettempdir())
