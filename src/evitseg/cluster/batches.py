"""Many images on many machines, with Ray Data: from folders, object stores and Parquet to PNG files or Parquet."""

from __future__ import annotations

import os
import posixpath
import re
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from evitseg.cluster.session import Model, cached, require_ray, slots
from evitseg.engine import Precision
from evitseg.errors import ConfigError, DatasetError, EvitsegError, FileError, ImageError, MissingPackageError
from evitseg.image import Size
from evitseg.raster.formats import EXTENSIONS
from evitseg.raster.png import mask_png
from evitseg.system.files import replacing

if TYPE_CHECKING:
    import pyarrow as pa
    import ray.data
    from pyarrow.fs import FileSystem

BATCH = 16
"""Images per batch. A task holds this many encoded images and masks in memory."""
MAX_FILE_BYTES = 2**30
"""Largest encoded image."""
PATH, NAME, MASK, ERROR = "path", "name", "mask", "error"
"""Columns of results: the image's path, its name below the folder in which it was found, the mask as PNG, and the error
message, None without an error."""

_columns: WeakKeyDictionary[Any, list[str]] = WeakKeyDictionary()
"""Columns of `predict_dataset`'s results. If asked, Ray would predict the first images, and then once more."""


def predict_dataset(
    images: str | os.PathLike[str] | Iterable[str | os.PathLike[str]] | ray.data.Dataset,
    model: str | os.PathLike[str] | None = None,
    *,
    column: str = "bytes",
    precision: Precision = "auto",
    threads: int = 1,
    size: Size = None,
) -> ray.data.Dataset:
    """Segment any number of images on the cluster that the process is connected to (see `connected`).

        results = evitseg.cluster.predict_dataset("s3://bucket/photos", "model.onnx")
        evitseg.cluster.write_masks(results, "s3://bucket/masks")

    An image that cannot be read has a message in the column `ERROR` and no mask; the other images are unaffected.
    Nothing runs before the results are used: by `write_masks`, by their own `write_parquet`, or row by row.

    Args:
        images: paths, folders and URIs (s3://, gs://, hdfs:// and others that pyarrow opens), searched with all
            subfolders; or a dataset, for example from `ray.data.read_parquet`.
        model, precision, size: as in `evitseg.load`. An exported model is sent to the workers; a checkpoint must have
            the same path on all machines.
        column: the column of encoded images in a dataset. The other columns are kept.
        threads: number of threads per task. A machine with n cores runs n / threads tasks at once.

    Returns: one row per image, with `PATH` and `NAME`, or the dataset's own columns without `column`, and with `MASK`
        and `ERROR`.

    Raises: ConfigError, WeightsError, DatasetError, ImageError if there are no images, MissingPackageError.
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
                f"the dataset has no column {column!r}, only {', '.join(map(repr, names))}; choose one of these."
            )
        taken = [name for name in (MASK, ERROR) if name in names]
        if taken:
            raise DatasetError(f"the dataset has a column {taken[0]!r} already; rename it.")
    else:
        given = [images] if isinstance(images, (str, os.PathLike)) else list(images)
        dataset, found, names = data.from_arrow(_tables(list(_found(given)), ray)), PATH, [PATH, NAME]
    results: data.Dataset = dataset.map_batches(
        partial(_predicted, model=Model.send(model), column=found, settings=(threads, precision, size)),
        batch_size=BATCH,
        batch_format="pyarrow",
        num_cpus=threads,
    )
    _columns[results] = [*(name for name in names if name != found or found == PATH), MASK, ERROR]
    return results


def write_masks(results: ray.data.Dataset, folder: str | os.PathLike[str]) -> ray.data.Dataset:
    """Write the masks of `predict_dataset` as PNG files. A mask's name is the image's full name with .png appended.

    The full name keeps the masks of a.jpg and a.png apart. The column `NAME` of a dataset, or else
    `PATH`, gives the names. A name that leads outside the folder is an error of its row.

    Args:
        folder: a path that all machines share, or a URI.

    Returns: the results without masks, after all are written; `ERROR` also reports masks that could not be written.

    Raises: DatasetError for results without names, ConfigError for a folder that cannot be opened.
    """
    names = _columns.get(results) or results.columns() or []
    column = NAME if NAME in names else PATH
    if column not in names or MASK not in names:
        raise DatasetError(f"the results need a column {MASK!r}, and {NAME!r} or {PATH!r} to name the files.")
    _filesystem(folder)  # raises now, not in the tasks
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
    """Paths or URIs of all images, and their names below their common folder. Raises: ImageError."""
    import pyarrow.fs as fs

    places: list[
        tuple[str, str, str, list[str]]
    ] = []  # as given, folder that names are relative to, root on its file system, files
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
            raise ImageError(f"{text}: this folder contains no images.")
        places.append((text, root, root, files))
    if not places:
        raise ImageError("no images given; give paths, folders or URIs.")
    common = posixpath.commonpath([top.strip("/") for _, top, _, _ in places])
    for text, _, root, files in places:
        for file in files:
            name = posixpath.relpath(file.lstrip("/"), common or ".")
            yield (_uri(text, root, file) if "://" in text else file), name


def _uri(given: str, root: str, file: str) -> str:
    """The URI of a file below a root that was given as a URI; its options stay at the end."""
    place, question, options = given.partition("?")
    return place.rstrip("/") + file[len(root.rstrip("/")) :] + question + options


def _is_image(path: str) -> bool:
    name = PurePosixPath(path)
    return name.suffix.lower() in EXTENSIONS and not name.name.startswith(".")


def _tables(rows: list[tuple[str, str]], ray: Any) -> list[pa.Table]:
    """Tables of paths and names, one per task, enough to occupy all workers."""
    import pyarrow as pa

    cores = int(ray.cluster_resources().get("CPU", 1))
    length = min(16 * BATCH, max(BATCH, len(rows) // (4 * cores)))
    return [
        pa.table({PATH: [path for path, _ in part], NAME: [name for _, name in part]})
        for part in (rows[i : i + length] for i in range(0, len(rows), length))
    ]


def _predicted(table: pa.Table, model: Model, column: str, settings: tuple[int, Precision, Size]) -> pa.Table:
    """Task: a batch with masks and errors."""
    import pyarrow as pa

    from evitseg.loading import load

    threads, precision, size = settings
    key = (model, settings)

    def make(_: Any) -> Any:
        with model.opened() as name:
            return load(name, threads=threads, precision=precision, size=size)

    segment = cached("segmenter", key, make)
    masks: list[bytes | None] = []
    errors: list[str | None] = []
    for value in table.column(column).to_pylist():
        try:
            name = value if column == PATH else "the image"
            source = _content(value) if column == PATH else value
            if not isinstance(source, (str, bytes)):
                raise ImageError(f"{name}: expected the bytes of an encoded image, not {type(value).__name__}.")
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
    """The path of a local file, or the content of a remote one. Raises: ImageError."""
    filesystem, path = _filesystem(place)
    if filesystem.type_name == "local":
        return path
    try:
        about = filesystem.get_file_info(path)
        if about.size is not None and about.size > MAX_FILE_BYTES:
            raise ImageError(f"{place}: {about.size:,} bytes, more than {MAX_FILE_BYTES:,}; split or shrink the image.")
        with filesystem.open_input_stream(path) as stream:
            content: bytes = stream.read()
            return content
    except OSError as error:
        raise ImageError(f"{place}: cannot be read ({error}).") from error


def _written(table: pa.Table, folder: str, column: str) -> pa.Table:
    """Task: write the masks of a batch. Returns: the batch without them."""
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
    """The mask's path below the folder, from an image's name or path. Raises: FileError if it leads outside."""
    parts = re.sub(r"^[A-Za-z][A-Za-z0-9+.-]*:/*", "", str(name)).replace("\\", "/").lstrip("/").split("/")
    if name is None or any(part in ("", ".", "..") or "\0" in part or ":" in part for part in parts):
        raise FileError(f"{name!r:.200}: cannot be used as a file name for a mask.")
    return "/".join(parts) + ".png"


def _write(filesystem: FileSystem, root: str, name: str, content: bytes) -> None:
    place = posixpath.join(root, name)
    if filesystem.type_name == "local":
        with replacing(place) as file:
            file.write(content)
        return
    try:
        filesystem.create_dir(posixpath.dirname(place), recursive=True)
        # Object stores show only complete files, and rename by copying, so no temporary name is needed.
        with filesystem.open_output_stream(place) as stream:
            stream.write(content)
    except OSError as error:
        raise FileError(f"{place}: cannot be written ({error}).") from error
