"""One image of any size on many machines: the windows of `evitseg.segment_large` as Ray tasks.

The calling process keeps the features, in the same hidden folder as on one machine, sends each task the rows that it
needs, and stores what comes back. So interrupted work is resumed, here or on one machine. Machines share only the
image's file. Ray repeats a task whose worker died.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from evitseg.cluster.session import RETRIES, Model, cached, machine, require_ray, slots, translate_errors
from evitseg.engine import Precision
from evitseg.errors import ConfigError, EngineError, ImageError
from evitseg.image import ReadOptions, Size
from evitseg.raster.window import ArraySource, Source
from evitseg.runtime.core_windows import BLOCK_BYTES, IMAGE, OVERREAD, Stored, row_addresses
from evitseg.system.machine import free_memory
from evitseg.tiling.arguments import (
    ImageLike,
    MaskPlace,
    ModelLike,
    banded_network,
    image_source,
    mask_sink,
    reading_of,
    scratch_folder,
)
from evitseg.tiling.job import Job, finest_token_stride, place_of_window
from evitseg.tiling.memory_model import allowed_memory
from evitseg.tiling.network import Network, Sums
from evitseg.tiling.plan import BAND_STEP, LARGEST_BAND, Plan, make_plan, mask_of_window
from evitseg.tiling.progress import BandProgress, Watcher
from evitseg.tiling.scratch import aligned_bytes
from evitseg.tiling.stream import Done, LargeImageResult, segment_in_bands
from evitseg.tiling.windows import Damage, Resampled, Window

SUBMITTED = 2
"""Number of submitted windows per window that the cluster computes at the same time.

After an error, submitted tasks run to their end and their results are dropped. They are not cancelled, because Ray 2.60
aborts the calling process with a failed check of its own if a cancelled task answers late.
"""
_WINDOWS_PER_SLOT = 2
"""Windows of a segment per task that runs at the same time, so that no machine waits long for the last ones."""


@dataclass(frozen=True)
class _Settings:
    """What all tasks of an image have in common.

    Attributes:
        digest: sha256 of the model's program.
        precision, arithmetic: that every worker must run in.
        threads: number of threads per task.
        path: path of the image; None if its pixels are sent.
        identity, reading: of that file, and how it is read.
        pixels: references to the pixels and to where they are valid.
    """

    plan: Plan
    model: Model
    digest: str
    precision: Precision
    arithmetic: str
    threads: int
    path: str | None
    identity: str
    reading: ReadOptions
    pixels: tuple[Any, Any] | None


class _Rows(NamedTuple):
    """Rows of a feature map: (rows, blocks of channels, columns, bytes of a block), from a row and a column on."""

    feature: int
    row: int
    column: int
    content: NDArray[np.uint8]


class _Answer(NamedTuple):
    """What a task returns: as in `Done`, the rows that it wrote, and which tokens of its window have data."""

    out: NDArray[Any]
    damages: list[Damage]
    written: list[_Rows]
    valid: NDArray[np.bool_] | None


def segment_large_on_ray(
    model: ModelLike,
    source: ImageLike,
    mask: MaskPlace,
    *,
    path: str | os.PathLike[str] | None = None,
    threads: int = 1,
    size: Size = "native",
    memory: int | None = None,
    context_window: int | None = None,
    band: int | None = None,
    scratch: str | os.PathLike[str] | None = None,
    reading: ReadOptions | None = None,
    watch: Callable[[BandProgress], None] | Watcher | None = None,
) -> LargeImageResult:
    """`evitseg.segment_large` on the Ray cluster that the process is connected to (see `connected`).

        with evitseg.cluster.connected():
            evitseg.cluster.segment_large_on_ray("model.safetensors", "mosaic.tif", "mask.tif")

    The mask is that of one machine, bit for bit. When a worker dies, only its current windows are repeated. When the
    calling process dies, the same call resumes.

    Args:
        model, mask, size, context_window, band, watch: as in `evitseg.segment_large`. Every worker opens the model, in
            the precision that it has here.
        source: as in `evitseg.segment_large`. The workers open a file themselves if each window can be read when it is
            needed. It must then have the same path on all machines. Other images are sent to the workers.
        path: the file of a `Source` that `evitseg.raster.open_raster` opened, for the workers.
        threads: number of threads per task. A machine with n cores runs n / threads tasks at once.
        memory: bytes per worker, apart from Ray's object store; None for an equal part of a fraction of the free
            memory.
        scratch: folder for the hidden folder with intermediate results; None for the mask's folder.
        reading: how the image file is read; None for the model's settings.

    Raises: as `evitseg.segment_large`; ConfigError for impossible settings, EngineError if the cluster fails.
    """
    ray = require_ray()
    network, folder = banded_network(model), scratch_folder(scratch, mask)
    if network.path is None:
        raise ConfigError("a model that is only in memory cannot be sent to workers; give the path of its file.")
    reading = reading_of(model, network) if reading is None else reading
    watcher = watch if isinstance(watch, Watcher) else Watcher(progress=watch) if watch else Watcher()
    with image_source(source, folder, memory, reading) as (image, by_window):
        if isinstance(source, (str, os.PathLike)) and by_window:
            path = source
        if path is None and not isinstance(image, ArraySource):
            raise ConfigError("a source that is not in memory needs its file's path, so that the workers can open it.")
        at_once, everywhere = slots(threads), slots(threads, everywhere=True)
        explicit = memory is not None or band is not None
        memory = allowed_memory(free_memory()) // at_once if memory is None else memory
        shared = -(-image.size[0] // (_WINDOWS_PER_SLOT * everywhere * BAND_STEP)) * BAND_STEP
        plan = make_plan(network, image.size, size, memory, context_window, band, image.held, min(LARGEST_BAND, shared))
        settings = _Settings(
            plan=plan,
            model=Model.send(network.path),
            digest=network.digest,
            precision=network.info.precision,  # type: ignore[arg-type]  # one of them
            arithmetic=network.arithmetic,
            threads=threads,
            path=None if path is None else os.path.abspath(path),
            identity=image.identity,
            reading=reading,
            pixels=None if path is not None else _send_pixels(ray, image),
        )

        def run(job: Job, segment: int, begin: int) -> Iterator[Done]:
            # Work that is resumed may have other bands.
            reference = ray.put(settings if job.plan == plan else replace(settings, plan=job.plan))
            return _run(ray, reference, threads, job, segment, begin, SUBMITTED * everywhere)

        destination = mask_sink(mask, image, network)
        return segment_in_bands(image, network, plan, memory, explicit, destination, folder, watcher, run)


def _send_pixels(ray: Any, source: Source) -> tuple[Any, Any]:
    height, width = source.size
    pixels, valid = source.read(0, 0, height, width), source.valid(0, 0, height, width)
    return ray.put(pixels), None if valid is None else ray.put(valid)


def _run(ray: Any, settings: Any, threads: int, job: Job, segment: int, begin: int, most: int) -> Iterator[Done]:
    """Run the windows of a segment as tasks, and store what they return.

    Args:
        most: number of tasks that are submitted at the same time.
    """
    task = ray.remote(num_cpus=threads, max_retries=RETRIES)(_run_window)
    windows, plan = job.plan.windows(segment), job.plan
    sums = job.sums_for(segment, 0) if plan.tile is None else None
    shared = None if sums is None else ray.put(sums)
    submitted, number = deque[Any](), begin
    for done in range(begin, len(windows)):
        while number < min(len(windows), done + most):
            own = shared if plan.tile is None else job.sums_for(segment, number)
            window = windows[number]
            needed, valid = ray.put(_needed(job, segment, window)), job.valid_tokens(segment, window)
            submitted.append(task.remote(settings, segment, number, own, valid if segment else None, needed))
            number += 1
        with translate_errors():
            answer: _Answer = ray.get(submitted.popleft())
        for rows in answer.written:
            height, width = rows.content.shape[0], rows.content.shape[2]
            stored = job.stored_rows(rows.feature, range(rows.row, rows.row + height))
            stored[:, :, rows.column : rows.column + width] = rows.content
        if answer.valid is not None:
            job.store_valid(windows[done], answer.valid)
        yield Done(done, answer.out, answer.damages)
        job.scratch.release()


def _needed(job: Job, segment: int, window: Window) -> list[_Rows]:
    """The stored rows that a window reads."""
    place, (height, width) = job.place(segment, window), job.plan.working
    found = []
    for feature in job.features:
        rows, _ = job.core.rows(segment, feature, height, place.top, place.bottom)
        columns, _ = job.core.rows(segment, feature, width, place.left, place.right)
        if rows:
            content = job.stored_rows(feature, rows)[:, :, columns.start : columns.stop]
            found.append(_Rows(feature, rows.start, columns.start, content))
    return found


def _run_window(
    settings: _Settings,
    segment: int,
    number: int,
    sums: Sums | None,
    valid: NDArray[np.uint8] | None,
    given: list[_Rows],
) -> _Answer:
    """Task: run one window of one segment."""
    key = settings.digest, settings.precision, settings.threads
    network, plan = cached("network", key, lambda _: _opened(settings)), settings.plan
    core, window, (height, width) = network.core, plan.windows(segment)[number], plan.working
    place = place_of_window(network, plan, segment, window)
    stored, held = [Stored(0, 0)] * len(core.features), dict[int, tuple[range, NDArray[np.uint8]]]()

    def room(feature: int, rows: range) -> NDArray[np.uint8]:
        about = core.features[feature]
        shape = len(rows), about.pixel_bytes // BLOCK_BYTES, width // about.stride, BLOCK_BYTES
        content = aligned_bytes(int(np.prod(shape)) + OVERREAD)[:-OVERREAD].reshape(shape)
        stored[feature] = Stored(content.ctypes.data, rows.start)
        held[feature] = rows, content
        return content

    for rows in given:
        columns = slice(rows.column, rows.column + rows.content.shape[2])
        room(rows.feature, range(rows.row, rows.row + len(rows.content)))[:, :, columns] = rows.content
    written = []
    for feature in range(len(core.features)):
        wanted = core.rows(segment, feature, height, place.top, place.bottom)[1]
        if wanted and segment < len(core.segments) - 1:
            room(feature, wanted)
            written.append(feature)
    image, first_row, damages, has_data = None, 0, list[Damage](), None
    needed = core.rows(segment, IMAGE, height, place.top, place.bottom)[0]
    if needed:
        source = Resampled(_cached_source(settings), plan.working)
        pixels, damages = source.read(Window(needed.start, 0, len(needed), width))
        image, first_row = row_addresses(pixels), needed.start
        has_data = source.valid(window, damages, finest_token_stride(network))
    out: NDArray[Any] = core.run(
        segment, plan.working, (place.top, place.bottom, place.left, place.right), stored, image, first_row, valid, sums
    )
    if segment == len(core.segments) - 1:
        out = mask_of_window(out, plan, plan.mask_window(window), place, core.core)
    answers = []
    for feature in written:
        rows_of, content = held[feature]
        columns = core.rows(segment, feature, width, place.left, place.right)[1]
        answers.append(_Rows(feature, rows_of.start, columns.start, content[:, :, columns.start : columns.stop]))
    return _Answer(out, damages, answers, has_data)


def _cached_source(settings: _Settings) -> Source:
    key = settings.path, settings.identity, settings.reading, settings.pixels
    source: Source = cached("source", key, lambda stack: _source(settings, stack))
    return source


def _opened(settings: _Settings) -> Network:
    with settings.model.opened() as model:
        network = Network(model, settings.precision, settings.threads)
    if network.digest != settings.digest or network.arithmetic != settings.arithmetic:
        raise EngineError(
            f"{machine()} runs the model in {network.arithmetic}, this machine in {settings.arithmetic}; use a "
            "precision that all machines have, such as float32."
        )
    return network


def _source(settings: _Settings, stack: ExitStack) -> Source:
    if settings.path is None:
        ray = require_ray()
        assert settings.pixels is not None
        pixels, valid = settings.pixels
        return ArraySource(ray.get(pixels), None if valid is None else ray.get(valid))
    from evitseg.raster import open_raster

    try:
        source = stack.enter_context(open_raster(Path(settings.path), None, settings.reading))
    except ImageError as error:
        raise ImageError(f"{error} That was on {machine()}: every machine must have the image at this path.") from error
    if source.identity != settings.identity:
        raise ImageError(f"{settings.path}: not the same file on {machine()}; put one file where all machines see it.")
    return source
