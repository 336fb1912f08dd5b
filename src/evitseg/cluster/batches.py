"""Many images on many machines, through Ray Data: folders, object stores, Parquet in; PNG files or Parquet out."""

from __future__ import annotations

import os
import posixpath
import re
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from evitseg.cluster.session import Model, kept, require_ray, slots
from evitseg.engine import Precision
from evitseg.errors import ConfigError, DatasetError, EvitsegError, FileError, ImageError, MissingPackageError
from evitseg.image import Size
from evitseg.raster.formats import EXTENSIONS
from evitseg.raster.masks import mask_png
from evitseg.system.files import replacing

if TYPE_CHECKING:
    import pyarrow as pa
    import ray.data
    from pyarrow.fs import FileSystem

BATCH = 16
"""Images of a task's batch: so many encoded ones, and masks, are in memory at once."""
MAX_FILE_BYTES = 2**30
"""Of an encoded image."""
PATH, NAME, MASK, ERROR = "path", "name", "mask", "error"
"""Columns that results have: where the image lies, its name below the folder it was found in, the mask as PNG, and
what was wrong with the image, None where nothing was."""

_columns: WeakKeyDictionary[Any, list[str]] = WeakKeyDictionary()
"""Of what `predict_dataset` gave: asked for them, Ray would predict the first images, and then once more."""


def predict_dataset(
    images: str | os.PathLike[str] | Iterable[str | os.PathLike[str]] | ray.data.Dataset,
    model: str | os.PathLike[str] | None = None,
    *,
    column: str = "bytes",
    precision: Precision = "auto",
    threads: int = 1,
    size: Size = None,
) -> ray.data.Dataset:
    """Masks of any number of images, on the cluster that the process is connected to (`connected`).

    An image that cannot be read has a sentence in the column `ERROR` and no mask; the others go on. Nothing runs
    before the result is asked for: by `write_masks`, by its own `write_parquet`, or row by row.

    Args:
        images: images' paths, folders and URIs (s3://, gs://, hdfs://: whatever pyarrow opens), folders looked
            through with all below them; or a dataset, such as `ray.data.read_parquet` gives.
        model: as in `evitseg.load`. An artefact is sent to the workers; a checkpoint must lie in the same place on all.
        column: of the encoded images in a dataset; its other columns stay.
        threads: of a task; a machine of n cores runs n / threads at once.

    Returns: a row an image: `PATH` and `NAME`, or the dataset's own columns without `column`; `MASK`; `ERROR`.

    Raises: ConfigError, WeightsError, ImageError for a place where nothing is, MissingPackageError.
    """
    ray = require_ray()
    try:
        import ray.data as data
    except ImportError as error:
        raise MissingPackageError("prediction of many images", "ray") from error
    slots(threads)
    if isinstance(images, data.Dataset):
        dataset, found = images, column
        names = list(dataset.columns() or [])
        if column not in names:
            raise DatasetError(
                f"the dataset has no column {column!r}, only {', '.join(map(repr, names))}; name another."
            )
        taken = [name for name in (MASK, ERROR) if name in names]
        if taken:
            raise DatasetError(f"the dataset has a column {taken[0]!r} already; rename it.")
    else:
        given = [images] if isinstance(images, (str, os.PathLike)) else list(images)
        dataset, found, names = data.from_arrow(_tables(list(_found(given)), ray)), PATH, [PATH, NAME]
    results: data.Dataset = dataset.map_batches(
        partial(_predicted, model=Model.sent(model), column=found, settings=(threads, precision, size)),
        batch_size=BATCH,
        batch_format="pyarrow",
        num_cpus=threads,
    )
    _columns[results] = [*(name for name in names if name != found or found == PATH), MASK, ERROR]
    return results


def write_masks(results: ray.data.Dataset, folder: str | os.PathLike[str]) -> ray.data.Dataset:
    """Write the masks of `predict_dataset` as PNG files, whose names are the images' with .png behind.

    The whole name is kept, so that a.jpg and a.png do not meet. A dataset's rows are named by its column `NAME`, or by
    `PATH`; what would lie outside of the folder is refused in the row.

    Args:
        folder: a path that all machines share, or a URI.

    Returns: the results without masks, once all are written; `ERROR` says also what could not be written.

    Raises: DatasetError for results without names, ConfigError for a place that is none.
    """
    names = _columns.get(results) or results.columns() or []
    column = NAME if NAME in names else PATH
    if column not in names or MASK not in names:
        raise DatasetError(f"the results have no column {MASK!r}, or neither {NAME!r} nor {PATH!r} to name files by.")
    _filesystem(folder)  # says now whether it is one
    written: ray.data.Dataset = results.map_batches(
        partial(_written, folder=os.fspath(folder), column=column),
        batch_size=BATCH,
        batch_format="pyarrow",
    ).materialize()
    return written


def _filesystem(place: str | os.PathLike[str]) -> tuple[FileSystem, str]:
    """Raises: ConfigError."""
    try:
        import pyarrow
        from pyarrow.fs import FileSystem, LocalFileSystem
    except ImportError as error:
        raise MissingPackageError("prediction of many images", "ray") from error
    text = os.fspath(place)
    if not re.match(r"[A-Za-z][A-Za-z0-9+.-]+://", text):
        return LocalFileSystem(), os.path.abspath(text).replace(os.sep, "/")
    try:
        filesystem, path = FileSystem.from_uri(text)
    except (pyarrow.ArrowInvalid, pyarrow.ArrowNotImplementedError, OSError) as error:
        raise ConfigError(f"{text}: cannot be opened ({error}).") from error
    return filesystem, path


def _found(given: list[str | os.PathLike[str]]) -> Iterator[tuple[str, str]]:
    """Paths or URIs of all images, and their names below what they have in common. Raises: ImageError."""
    import pyarrow.fs as fs

    places: list[tuple[str, str, str, list[str]]] = []  # as given, what names are below, as given there, files
    for place in given:
        text, (filesystem, root) = os.fspath(place), _filesystem(place)
        try:
            about = filesystem.get_file_info(root)
            if about.type == fs.FileType.NotFound:
                raise ImageError(f"{text}: no such file or folder.")
            if about.type == fs.FileType.File:
                places.append((text, posixpath.dirname(root), root, [root]))
                continue
            infos = filesystem.get_file_info(fs.FileSelector(root, recursive=True))
        except OSError as error:
            raise ImageError(f"{text}: cannot be read ({error}).") from error
        files = sorted(info.path for info in infos if info.type == fs.FileType.File and _is_image(info.path))
        if not files:
            raise ImageError(f"{text}: no images in this folder.")
        places.append((text, root, root, files))
    if not places:
        raise ImageError("no images were given; give paths, folders or URIs.")
    common = posixpath.commonpath([top.strip("/") for _, top, _, _ in places])
    for text, _, root, files in places:
        for file in files:
            name = posixpath.relpath(file.lstrip("/"), common or ".")
            yield (_uri(text, root, file) if "://" in text else file), name


def _uri(given: str, root: str, file: str) -> str:
    """Of a file below a root that was given as a URI, whose options stay at the end."""
    place, mark, options = given.partition("?")
    return place.rstrip("/") + file[len(root.rstrip("/")) :] + mark + options


def _is_image(path: str) -> bool:
    name = PurePosixPath(path)
    return name.suffix.lower() in EXTENSIONS and not name.name.startswith(".")


def _tables(rows: list[tuple[str, str]], ray: Any) -> list[pa.Table]:
    """Of paths and names; one a task: enough of them that all workers have some."""
    import pyarrow as pa

    cores = int(ray.cluster_resources().get("CPU", 1))
    length = min(16 * BATCH, max(BATCH, len(rows) // (4 * cores)))
    return [
        pa.table({PATH: [path for path, _ in part], NAME: [name for _, name in part]})
        for part in (rows[i : i + length] for i in range(0, len(rows), length))
    ]


def _predicted(table: pa.Table, model: Model, column: str, settings: tuple[int, Precision, Size]) -> pa.Table:
    """On a worker: a batch with masks and errors."""
    import pyarrow as pa

    from evitseg.loading import load

    threads, precision, size = settings
    key = (model, settings)

    def make(_: Any) -> Any:
        with model.opened() as name:
            return load(name, threads=threads, precision=precision, size=size)

    segment = kept("segmenter", key, make)
    masks: list[bytes | None] = []
    errors: list[str | None] = []
    for value in table.column(column).to_pylist():
        try:
            name = value if column == PATH else "the image"
            source = _content(value) if column == PATH else value
            if not isinstance(source, (str, bytes)):
                raise ImageError(f"{name}: the row has no bytes of an encoded image, but {type(value).__name__}.")
            mask, _ = segment.mask_of_file(source, name)
            masks.append(mask_png(mask, segment.labels))
            errors.append(None)
        except EvitsegError as error:
            masks.append(None)
            errors.append(str(error))
    if column != PATH:
        table = table.drop_columns([column])
    return table.append_column(MASK, pa.array(masks, pa.large_binary())).append_column(
        ERROR, pa.array(errors, pa.string())
    )


def _content(place: str) -> str | bytes:
    """A local file's path, or what another place holds. Raises: ImageError."""
    filesystem, path = _filesystem(place)
    if filesystem.type_name == "local":
        return path
    try:
        about = filesystem.get_file_info(path)
        if about.size is not None and about.size > MAX_FILE_BYTES:
            raise ImageError(f"{place}: {about.size:,} bytes, more than {MAX_FILE_BYTES:,}; cut or shrink the image.")
        with filesystem.open_input_stream(path) as stream:
            content: bytes = stream.read()
            return content
    except OSError as error:
        raise ImageError(f"{place}: cannot be read ({error}).") from error


def _written(table: pa.Table, folder: str, column: str) -> pa.Table:
    """On a worker: the masks of a batch as files, and the batch without them."""
    import pyarrow as pa

    filesystem, root = _filesystem(folder)
    errors = []
    for name, mask, error in zip(*(table.column(c).to_pylist() for c in (column, MASK, ERROR)), strict=True):
        try:
            if mask is not None:
                _write(filesystem, root, _inside(name), mask)
        except EvitsegError as problem:
            error = str(problem)
        errors.append(error)
    return table.drop_columns([MASK, ERROR]).append_column(ERROR, pa.array(errors, pa.string()))


def _inside(name: Any) -> str:
    """An image's name or path as that of a file below a folder. Raises: FileError for one that leads out of it."""
    parts = re.sub(r"^[A-Za-z][A-Za-z0-9+.-]*:/*", "", str(name)).replace("\\", "/").lstrip("/").split("/")
    if name is None or any(part in ("", ".", "..") or "\0" in part or ":" in part for part in parts):
        raise FileError(f"{name!r:.200}: cannot be the name of a mask's file.")
    return "/".join(parts) + ".png"


def _write(filesystem: FileSystem, root: str, name: str, content: bytes) -> None:
    place = posixpath.join(root, name)
    if filesystem.type_name == "local":
        with replacing(place) as file:
            file.write(content)
        return
    try:
        filesystem.create_dir(posixpath.dirname(place), recursive=True)
        # Object stores show a file when it is complete, and rename by copying.
        with filesystem.open_output_stream(place) as stream:
            stream.write(content)
    except OSError as error:
        raise FileError(f"{place}: cannot be written ({error}).") from error
