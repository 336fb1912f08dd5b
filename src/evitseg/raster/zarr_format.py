"""Read and write Zarr, versions 2 and 3, and OME-Zarr."""

from __future__ import annotations

import contextlib
import copy
import json
import math
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from types import ModuleType
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from evitseg.errors import EvitsegWarning, FileError, ImageError, MissingPackageError
from evitseg.image import AS_STATED, ReadOptions
from evitseg.labels import LabelSpace
from evitseg.raster.bands import Band, choose_bands
from evitseg.raster.levels import cells, choose_levels
from evitseg.raster.window import (
    Origin,
    check_block,
    check_size,
    check_window,
    class_table,
    damaged,
    from_level,
    identity_of,
    rgb,
    writing,
)
from evitseg.system.files import temporary_folder

_CHUNK = 1024
_HELD = 32 * 2**20
"""Bytes of memory that zarr takes, with its libraries and the chunks being decoded."""
_MOST_BANDS = 65_536
_ORDERS = {2: ("y", "x"), 4: ("c", "z", "y", "x"), 5: ("t", "c", "z", "y", "x")}
"""The axes of an array without metadata. Three axes may be in either order."""
_COLORS = {"FF0000": "red", "00FF00": "green", "008000": "green", "0000FF": "blue"}
_BRIGHTEST = {2**bits - 1: bits for bits in range(9, 17)}
"""Significant bits by the largest value that they can store."""


def import_zarr() -> ModuleType:
    """The module `zarr`. Raises: MissingPackageError."""
    try:
        import zarr
    except ImportError as error:
        raise MissingPackageError("reading and writing Zarr", "zarr") from error
    return zarr


class ZarrSource:
    """Windows of an array (H, W), (H, W, bands) or (bands, H, W), or of the largest array of an OME-Zarr."""

    held = _HELD

    def __init__(self, name: str, root: Any, identity: str, options: ReadOptions = AS_STATED) -> None:
        from evitseg.raster.zarr_codecs import bounded

        self._name, self.identity = name, identity
        array, axes, multiscale, levels, omero = _choose(name, root)
        if not axes:
            axes = _axes_of(name, array.shape)
        lengths = dict(zip(axes, array.shape, strict=True))
        if not {"y", "x"} <= set(axes):
            raise ImageError(f"{name}: its axes are {', '.join(axes)}; an image has y and x.")
        self.size = (lengths["y"], lengths["x"])
        check_size(name, self.size)
        self._plane = _plane(name, lengths, options)
        self.tile = (array.chunks[axes.index("y")], array.chunks[axes.index("x")])
        check_block(name, array.chunks, math.prod(array.chunks) * array.dtype.itemsize)
        self._array, self._axes = bounded(name, array), axes
        if lengths.get("c", 1) > _MOST_BANDS:
            raise ImageError(f"{name}: claims {lengths['c']:,} bands; at most {_MOST_BANDS:,} are supported.")
        channels = _channels(omero, lengths.get("c", 1))
        self._bands = choose_bands(name, [channel.band for channel in channels], options)
        stated = [channels[band].bits for band in self._bands]
        bits = max((number for number in stated if number), default=None) if all(stated) else None
        self._levels = choose_levels(name, array.dtype, options, self._sample, bits)
        self.attributes: dict[str, Any] = {**root.attrs}
        self._smaller: list[ZarrSource] = []
        if multiscale is not None:
            _check_transformations(name, multiscale, len(axes))
            self._smaller = self._smaller_levels(root, multiscale)
        self.origin = Origin(
            kind="zarr", levels=levels, zarr_format=array.metadata.zarr_format,
            axes=axes if multiscale else (), multiscale=multiscale,
        )  # fmt: skip

    def _sample(self) -> Iterator[NDArray[Any]]:
        """Stored values, from which the range is found."""
        for window in cells(self.size):
            yield self._window(*window).ravel()

    def read(self, top: int, left: int, height: int, width: int) -> NDArray[np.uint8]:
        check_window(self.size, top, left, height, width)
        return rgb(self._levels(self._window(top, left, height, width)))

    def reduced(self, top: int, left: int, height: int, width: int, factor: int) -> NDArray[np.uint8]:
        check_window(self.size, top, left, height, width)
        fitting = [each for each in self._smaller if self.size[0] <= 1.01 * factor * each.size[0]]
        return from_level([self, *fitting][-1], self.size, top, left, height, width, factor)

    def _smaller_levels(self, root: Any, multiscale: dict[str, Any]) -> list[ZarrSource]:
        """The smaller arrays of an OME-Zarr that can be read, the largest first."""
        from evitseg.raster.zarr_codecs import bounded

        y, x = (self._axes.index(axis) for axis in "yx")
        found = []
        for dataset in multiscale["datasets"][1:]:
            with contextlib.suppress(ImageError, KeyError, TypeError, ValueError, AttributeError):
                path = str(dataset["path"])
                array = root[path]
                same = [n for i, n in enumerate(array.shape) if i not in (y, x)] == [
                    n for i, n in enumerate(self._array.shape) if i not in (y, x)
                ]
                outside = ".." in PurePosixPath(path).parts or PurePosixPath(path).is_absolute()
                if outside or not same or array.dtype != self._array.dtype or min(array.shape) < 1:
                    continue  # the image is then reduced from a larger one
                check_block(self._name, array.chunks, math.prod(array.chunks) * array.dtype.itemsize)
                level = copy.copy(self)
                level._array, level.size = bounded(self._name, array), (array.shape[y], array.shape[x])
                level.tile, level._smaller = (array.chunks[y], array.chunks[x]), []
                found.append(level)
        return found

    def _window(self, top: int, left: int, height: int, width: int) -> NDArray[Any]:
        """(height, width, bands) as stored, with the chosen bands in their order."""
        first, last = min(self._bands), max(self._bands)
        choice: dict[str, Any] = {
            "y": slice(top, top + height), "x": slice(left, left + width), "c": slice(first, last + 1),
        }  # fmt: skip
        values = self._stored(choice, top, left, height, width)
        kept = [axis for axis in self._axes if axis in choice]
        if "c" not in kept:
            kept, values = [*kept, "c"], values[..., None]
        values = values.transpose([kept.index(axis) for axis in "yxc"])
        return np.asarray(values[..., [band - first for band in self._bands]])

    def _stored(self, choice: dict[str, Any], top: int, left: int, height: int, width: int) -> NDArray[Any]:
        place = tuple(choice.get(axis, self._plane.get(axis, 0)) for axis in self._axes)
        try:
            return np.asarray(self._array[place])
        except Exception as error:  # codecs raise any type of error for a damaged chunk
            raise damaged(self._name, top, left, height, width, error) from error

    def indices(self, top: int, rows: int) -> NDArray[np.integer]:
        """(rows, W) of a mask, as stored. Raises: ImageError."""
        check_window(self.size, top, 0, rows, self.size[1])
        choice = {"y": slice(top, top + rows), "x": slice(None)}
        return self._stored(choice, top, 0, rows, self.size[1])

    def valid(self, top: int, left: int, height: int, width: int) -> NDArray[np.bool_] | None:
        check_window(self.size, top, left, height, width)
        return None


def _choose(name: str, root: Any) -> tuple[Any, tuple[str, ...], dict[str, Any] | None, int, object]:
    """The array to read, its axes if they are stated, OME's entry for it, the number of sizes, and OME's channels.

    Raises: ImageError.
    """
    zarr = import_zarr()
    if isinstance(root, zarr.Array):
        return root, (), None, 1, None
    try:
        if "bioformats2raw.layout" in root.attrs and "multiscales" not in root.attrs:
            root = root["0"]  # its first image
        attributes: Any = root.attrs.get("ome", root.attrs)
        entry = cast("dict[str, Any]", attributes["multiscales"][0])
        first = str(entry["datasets"][0]["path"])
        if ".." in PurePosixPath(first).parts or PurePosixPath(first).is_absolute():
            raise ImageError(f"{name}: refers to an array outside of itself ({first!r}).")
        axes = tuple(axis if isinstance(axis, str) else axis["name"] for axis in entry.get("axes", ()))
        array = root[first]
        if not isinstance(array, zarr.Array) or (axes and len(axes) != array.ndim) or len(set(axes)) != len(axes):
            raise ImageError(f"{name}: {first!r} is not an array with the axes {axes}.")
        return (
            array,
            axes,
            {"version": attributes.get("version", entry.get("version")), **entry},
            len(entry["datasets"]),
            attributes.get("omero"),
        )
    except (KeyError, IndexError, TypeError, AttributeError) as error:
        arrays = [key for key, _ in root.arrays()]
        if len(arrays) == 1:
            return root[arrays[0]], (), None, 1, None
        raise ImageError(
            f"{name}: a Zarr group without OME-Zarr metadata (multiscales); give the path of one array in it "
            f"({', '.join(arrays[:5]) or 'it has none at its top level'})."
        ) from error


def _plane(name: str, lengths: dict[str, int], options: ReadOptions) -> dict[str, int]:
    """The plane of a stack to read: its index along every axis other than those of the image. Raises: ImageError."""
    extra = {axis: length for axis, length in lengths.items() if axis not in "cyx"}
    count = math.prod(extra.values())
    if count > 1 and options.page is None:
        stack = ", ".join(f"{length} along {axis}" for axis, length in extra.items() if length > 1)
        raise ImageError(f"{name}: a stack ({stack}), not one image; choose a plane with --page 1 to {count}.")
    page = options.page or 1
    if page > count:
        raise ImageError(f"{name}: --page {page} does not exist; the file has {count}.")
    places = np.unravel_index(page - 1, tuple(extra.values())) if extra else ()
    return {axis: int(place) for axis, place in zip(extra, places, strict=True)}


@dataclass(frozen=True)
class _Channel:
    """OME-Zarr's metadata of a band: its colour, and its significant bits if they are stated."""

    band: Band = field(default_factory=Band)
    bits: int | None = None


def _channels(omero: object, count: int) -> list[_Channel]:
    """The metadata of each band; empty if the metadata are damaged or do not fit the image."""
    entries = omero.get("channels") if isinstance(omero, dict) else None
    if not isinstance(entries, list) or len(entries) != count:
        return [_Channel()] * count
    channels = []
    for entry in entries:
        about = entry if isinstance(entry, dict) else {}
        label, color, window = (about.get(key) for key in ("label", "color", "window"))
        shown = _COLORS.get(color.lstrip("#").upper(), "") if isinstance(color, str) else ""
        band = Band(shown, label if isinstance(label, str) else "")
        channels.append(_Channel(band, _significant_bits(window if isinstance(window, dict) else {})))
    return channels


def _significant_bits(window: dict[str, Any]) -> int | None:
    """N if the shown (start, end) or the possible (min, max) values range from 0 to 2^N - 1."""
    found = []
    for low, high in (("min", "max"), ("start", "end")):
        start, end = window.get(low, 0), window.get(high)
        if start == 0 and isinstance(end, (int, float)) and not isinstance(end, bool) and end in _BRIGHTEST:
            found.append(_BRIGHTEST[end])
    # Many writers state the type's whole range as possible values; then the shown ones are more telling.
    return found[-1] if found[:1] == [16] else found[0] if found else None


def _check_transformations(name: str, multiscale: dict[str, Any], axes: int) -> None:
    """Raises: ImageError for a scale or a translation that is not one number per axis."""
    transformations = multiscale["datasets"][0].get("coordinateTransformations", [])
    if not isinstance(transformations, list) or not all(isinstance(t, dict) for t in transformations):
        raise ImageError(f"{name}: its coordinateTransformations are not a list of objects; fix its OME metadata.")
    for entry in transformations:
        kind = entry.get("type")
        numbers = entry.get(kind) if kind in ("scale", "translation") else None
        if kind not in ("scale", "translation") or (numbers is None and "path" in entry):
            continue  # the numbers are in another file, or it is the identity
        if (
            not isinstance(numbers, list)
            or len(numbers) != axes
            or not all(isinstance(n, (int, float)) and math.isfinite(n) for n in numbers)
        ):
            found = json.dumps(numbers)
            raise ImageError(
                f"{name}: the {kind} of its OME metadata is {found if len(found) < 60 else found[:57] + '...'}, but it "
                f"needs {axes} numbers, one per axis."
            )


def _axes_of(name: str, shape: tuple[int, ...]) -> tuple[str, ...]:
    if len(shape) == 3:
        return ("y", "x", "c") if shape[2] <= 4 or shape[0] > 4 else ("c", "y", "x")
    if len(shape) not in _ORDERS:
        raise ImageError(f"{name}: an array of {len(shape)} axes is not an image; it is (H, W) or (H, W, 3).")
    return _ORDERS[len(shape)]


def _reason(error: Exception) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__


@contextmanager
def open_zarr(path: Path, name: str, options: ReadOptions = AS_STATED) -> Iterator[ZarrSource]:
    """A Zarr array or OME-Zarr, to read window by window. Raises: ImageError, MissingPackageError."""
    zarr = import_zarr()
    from evitseg.raster.zarr_codecs import store_class

    try:
        # An explicit store, because zarr may take a path for an address.
        root = zarr.open(store_class()(os.fspath(path), read_only=True), mode="r")
        source = ZarrSource(name, root, identity_of(path), options)
    except (ImageError, EvitsegWarning):
        raise
    except Exception as error:  # zarr raises any type of error for damaged metadata
        raise ImageError(f"{name}: not a readable Zarr ({_reason(error)}).") from error
    yield source


class ZarrWriter:
    """Writes chunks of a Zarr array in any order."""

    tile = (_CHUNK, _CHUNK)
    ordered = False

    def __init__(self, name: str, array: Any, axes: tuple[str, ...]) -> None:
        self._name, self._array, self._axes = name, array, axes

    def write(self, top: int, left: int, mask: NDArray[np.integer]) -> None:
        height, width = mask.shape
        choice = {"y": slice(top, top + height), "x": slice(left, left + width)}
        with writing(self._name):
            self._array[tuple(choice.get(axis, 0) for axis in self._axes)] = mask.astype(self._array.dtype, copy=False)


@contextmanager
def zarr_writer(
    path: Path, name: str, size: tuple[int, int], origin: Origin, labels: LabelSpace
) -> Iterator[ZarrWriter]:
    """A chunked, compressed array, or an OME-Zarr label image if the image is an OME-Zarr. Raises: FileError."""
    zarr = import_zarr()
    axes = origin.axes or ("y", "x")
    lengths = {"y": size[0], "x": size[1]}
    levels = max(1, min(origin.levels, max(size).bit_length())) if origin.multiscale is not None else 1
    about = {"evitseg": {"classes": class_table(labels), "ignore_index": labels.ignore_index}}
    with contextlib.ExitStack() as stack:
        with writing(name):
            temporary = stack.enter_context(temporary_folder(path.parent)) / "mask.zarr"
            stack.callback(_remove, temporary)
            store = zarr.storage.LocalStore(os.fspath(temporary))

            def array_of(place: str | None, step: int) -> Any:
                return zarr.create_array(
                    store, name=place, zarr_format=origin.zarr_format, dtype=labels.dtype,
                    shape=tuple(-(-lengths.get(axis, 1) // step) for axis in axes),
                    chunks=tuple(_CHUNK if axis in lengths else 1 for axis in axes),
                    fill_value=labels.ignore_index, attributes=about if place is None else None,
                    dimension_names=axes if origin.zarr_format == 3 else None,
                    chunk_key_encoding={"name": "v2", "separator": "/"} if origin.zarr_format == 2 else None,
                )  # fmt: skip

            if origin.multiscale is None:
                array = array_of(None, 1)
            else:
                attributes = about | _ome(origin.multiscale, levels, axes, labels)
                zarr.create_group(store, zarr_format=origin.zarr_format, attributes=attributes)
                array = array_of("0", 1)
        yield ZarrWriter(name, array, axes)
        with writing(name):
            for level in range(1, levels):
                _reduce(array, array_of(str(level), 2**level), axes, 2**level)
            try:
                temporary.rename(path)
            except OSError as error:
                if path.exists():
                    raise FileError(
                        f"{name} was created in the meantime, and folders are never replaced; choose another name."
                    ) from error
                raise


def _remove(folder: Path) -> None:
    """Remove a folder to which other threads may still write chunks after a failure."""
    for attempt in range(20):
        shutil.rmtree(folder, ignore_errors=True)
        if not folder.exists():
            return
        time.sleep(0.01 * attempt)


def _reduce(array: Any, smaller: Any, axes: tuple[str, ...], step: int) -> None:
    """Write every `step`-th row and column, because class indices have no mean."""
    shape = dict(zip(axes, smaller.shape, strict=True))
    for top in range(0, shape["y"], _CHUNK):
        for left in range(0, shape["x"], _CHUNK):
            height, width = min(_CHUNK, shape["y"] - top), min(_CHUNK, shape["x"] - left)
            part = np.empty((height, width), smaller.dtype)
            # Read at most one chunk of the full size at a time, however large the step.
            rows, columns = max(1, _CHUNK // step), max(1, _CHUNK // step)
            for y in range(0, height, rows):
                for x in range(0, width, columns):
                    y1, x1 = min(y + rows, height), min(x + columns, width)
                    source = {
                        "y": slice((top + y) * step, (top + y1 - 1) * step + 1),
                        "x": slice((left + x) * step, (left + x1 - 1) * step + 1),
                    }
                    whole = np.asarray(array[tuple(source.get(axis, 0) for axis in axes)])
                    part[y:y1, x:x1] = whole[::step, ::step]
            target = {"y": slice(top, top + height), "x": slice(left, left + width)}
            smaller[tuple(target.get(axis, 0) for axis in axes)] = part


def _ome(multiscale: dict[str, Any], levels: int, axes: tuple[str, ...], labels: LabelSpace) -> dict[str, Any]:
    """OME-Zarr's metadata of a label image: the image's axes and scales, and the classes' colours and names."""
    first = multiscale["datasets"][0].get("coordinateTransformations", [])
    scale = next((t["scale"] for t in first if t.get("type") == "scale" and "scale" in t), [1.0] * len(axes))
    others = [t for t in first if t.get("type") == "translation"]
    datasets = [
        {
            "path": str(level),
            "coordinateTransformations": [
                {
                    "type": "scale",
                    "scale": [s * 2**level if axis in "yx" else s for axis, s in zip(axes, scale, strict=True)],
                },
                *others,
            ],
        }
        for level in range(levels)
    ]
    version = multiscale["version"]
    entry = {"name": f"class index, {labels.name}", "axes": multiscale.get("axes", list(axes)), "datasets": datasets}
    about = {
        "colors": [{"label-value": i, "rgba": [*c.color, 255]} for i, c in enumerate(labels.classes)],
        "properties": [{"label-value": i, "class": c.name} for i, c in enumerate(labels.classes)],
    }
    if "ome" in multiscale or (isinstance(version, str) and version not in ("0.1", "0.2", "0.3", "0.4")):
        return {"ome": {"version": version, "multiscales": [entry], "image-label": about}}
    return {"multiscales": [{"version": version, **entry}], "image-label": {"version": version, **about}}
