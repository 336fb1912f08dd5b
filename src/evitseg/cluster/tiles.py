"""One image of any size on many machines: the tiles of `evitseg.segment_large` as Ray tasks.

A task reads what its tile needs of other tiles as objects in Ray's store, and its outputs become objects, too, so
machines share only the image's file. Ray repeats a task whose worker died, and recomputes objects that were lost with a
machine. Sums are added in a tree of tasks with the shape that `sum_records` has.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from evitseg.cluster.session import RETRIES, Model, cached, machine, require_ray, slots, translate_errors
from evitseg.engine import Precision
from evitseg.errors import ConfigError, EngineError, ImageError
from evitseg.image import ReadOptions, Size
from evitseg.raster.window import ArraySource, Sink, Source
from evitseg.system.machine import free_memory
from evitseg.tiling.arguments import (
    ImageLike,
    MaskPlace,
    ModelLike,
    image_source,
    mask_sink,
    reading_of,
    scratch_folder,
    tiled_network,
)
from evitseg.tiling.context import Context
from evitseg.tiling.graph_cut import Segment
from evitseg.tiling.job import Job
from evitseg.tiling.memory_model import allowed_memory
from evitseg.tiling.network import Network
from evitseg.tiling.plan import Plan, make_plan
from evitseg.tiling.scratch import Layout
from evitseg.tiling.stream import LargeImageResult, TileProgress, deliver
from evitseg.tiling.sums import GROUP, Sums, sum_in_order, sum_records
from evitseg.tiling.windows import Damage, Window

Values = NDArray[Any]

SUBMITTED = 4
"""Number of submitted tiles per tile that the cluster computes at the same time.

After an error, submitted tasks run to their end and their results are dropped. They are not cancelled, because Ray 2.60
aborts the calling process with a failed check of its own if a cancelled task answers late.
"""


@dataclass(frozen=True)
class _Settings:
    """What all tasks of an image have in common.

    Attributes:
        digest: sha256 of the model.
        precision: precision that every worker must run in.
        threads: number of threads per task.
        path: path of the image; None if its pixels are sent.
        identity, reading: of that file, and how it is read.
        pixels: references to the pixels and to where they are valid.
    """

    plan: Plan
    model: Model
    digest: str
    precision: Precision
    threads: int
    path: str | None
    identity: str
    reading: ReadOptions
    pixels: tuple[Any, Any] | None


class _TaskStore:
    """The store of one task: the values it was given, and those it leaves."""

    def __init__(self, given: list[tuple[str, Window, Values]]) -> None:
        self._given = given
        self.left: dict[str, Values] = {}

    def read(self, layout: Layout, window: Window) -> Values:
        return _put_together(
            layout, window, [(place, values) for name, place, values in self._given if name == layout.name]
        )

    def write(self, layout: Layout, window: Window, values: Values) -> None:
        assert layout.name not in self.left
        self.left[layout.name] = np.ascontiguousarray(values, layout.dtype)
        self._given.append((layout.name, window, values))


def _put_together(layout: Layout, window: Window, parts: list[tuple[Window, Values]]) -> Values:
    """(height, width, channels) of a window, from parts that cover it without overlapping."""
    out, covered = np.empty((window.height, window.width, layout.channels), layout.dtype), 0
    for place, values in parts:
        part = place.common(window)
        if part is not None:
            out[part.inside(window)] = values[part.inside(place)]
            covered += part.pixels
    assert covered == window.pixels, f"{layout.name}: {covered} of {window.pixels} values of {window} are there"
    return out


class _ObjectStore:
    """The store of the calling process: references to Ray's objects, by layout and tile."""

    def __init__(self) -> None:
        self.job: Job
        self.made: dict[str, list[Any]] = {}

    def needed(self, segment: Segment, tile: int, is_local: bool) -> list[tuple[str, Window, Any]]:
        """The inputs of a tile: names of layouts, windows of them, references."""
        job, number = self.job, segment.attention_before
        core, window = job.plan.core(segment.index, tile), job.plan.window(segment, tile)
        found = [
            self._part(f.name, f.made_by, other, f.stride)
            for f in segment.inputs
            for other in job.plan.touching(f.made_by, window)
        ]
        if number is not None and job.network.partition.attention_after(segment) is not None:
            name = job.valid.name
            stride = job.plan.working[0] // job.valid.height
            found += [self._part(name, 0, other, stride) for other in job.plan.touching(0, core)]
        if is_local and number is not None:
            name = job.records[number].name
            found += [
                (name, Window(other, 0, 1, 1), self.made[name][other]) for other in job.plan.neighbours(number, tile)
            ]
        return found

    def _part(self, name: str, made_by: int, tile: int, stride: int) -> tuple[str, Window, Any]:
        return name, self.job.plan.core(made_by, tile).over(stride), self.made[name][tile]

    def read(self, layout: Layout, window: Window) -> Values:
        """A window of the mask."""
        job, last = self.job, self.job.network.partition.segments[-1].index
        (top, bottom), (left, right) = (
            # One more pixel on either side, because the edges of the tiles' parts of the mask are rounded.
            (max(0, (begin - 1) * new // own), min(new, -(-(end + 1) * new // own)))
            for begin, end, own, new in zip(
                (window.top, window.left),
                (window.bottom, window.right),
                job.plan.image,
                job.plan.working,
                strict=True,
            )
        )
        tiles = job.plan.touching(last, Window(top, left, bottom - top, right - left))
        places = {tile: job.plan.mask_window(job.plan.core(last, tile)) for tile in tiles}
        tiles = [tile for tile, place in places.items() if place.common(window) is not None]
        with translate_errors():
            parts = require_ray().get([self.made[layout.name][tile] for tile in tiles])
        return _put_together(
            layout, window, [(places[tile], values) for tile, values in zip(tiles, parts, strict=True)]
        )

    def write(self, layout: Layout, window: Window, values: Values) -> None:
        raise AssertionError("only tasks write")


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
    tile: int | None = None,
    scratch: str | os.PathLike[str] | None = None,
    reading: ReadOptions | None = None,
    watch: Callable[[TileProgress], None] | None = None,
) -> LargeImageResult:
    """`evitseg.segment_large` on the Ray cluster that the process is connected to (see `connected`).

        with evitseg.cluster.connected():
            evitseg.cluster.segment_large_on_ray("model.onnx", "mosaic.tif", "mask.tif")

    In float32, with the same tiles and on processors of the same kind, the mask is the same to the last pixel. When a
    worker dies, only its current tiles are repeated. When the calling process dies, the work is lost.

    Args:
        model, mask, size, context_window, tile, watch: as in `evitseg.segment_large`. Every worker opens the model, in
            the precision that it has here.
        source: as in `evitseg.segment_large`. The workers open a file themselves if each window can be read when it is
            needed. It must then have the same path on all machines. Other images are sent to the workers.
        path: the file of a `Source` that `evitseg.raster.open_raster` opened, for the workers.
        threads: number of threads per task. A machine with n cores runs n / threads tasks at once.
        memory: bytes per worker, apart from Ray's object store; None for an equal part of a fraction of the free
            memory.
        scratch: folder for the decoded copy of an image file that needs one; None for the mask's folder.
        reading: how the image file is read; None for the model's settings.

    Raises: as `evitseg.segment_large`; ConfigError for impossible settings, EngineError if the cluster fails.
    """
    ray = require_ray()
    at_once = slots(threads)
    network = tiled_network(model)
    reading = reading_of(model, network) if reading is None else reading
    with image_source(source, scratch_folder(scratch, mask), memory, reading) as (image, by_window):
        if isinstance(source, (str, os.PathLike)) and by_window:
            path = source
        if path is None and not isinstance(image, ArraySource):
            raise ConfigError("a source that is not in memory needs its file's path, so that the workers can open it.")
        destination = mask_sink(mask, image, network)
        try:
            memory = allowed_memory(free_memory()) // at_once if memory is None else memory
            plan = make_plan(network, image.size, size, memory, context_window, tile, image.held)
            settings = _Settings(
                plan=plan,
                model=Model.send(network.path),
                digest=network.digest,
                precision=network.info.precision,  # type: ignore[arg-type]  # one of them
                threads=threads,
                path=None if path is None else os.path.abspath(path),
                identity=image.identity,
                reading=reading,
                pixels=None if path is not None else _send_pixels(ray, image),
            )
            job = Job(network, image, plan, _ObjectStore())
            with destination as sink:
                return _run_segments(ray, settings, job, sink, context_window is not None, watch)
        finally:
            network.free()


def _send_pixels(ray: Any, source: Source) -> tuple[Any, Any]:
    height, width = source.size
    pixels, valid = source.read(0, 0, height, width), source.valid(0, 0, height, width)
    return ray.put(pixels), None if valid is None else ray.put(valid)


def _run_segments(
    ray: Any, settings: _Settings, job: Job, sink: Sink, is_local: bool, watch: Callable[[TileProgress], None] | None
) -> LargeImageResult:
    store, plan, partition = job.scratch, job.plan, job.network.partition
    assert isinstance(store, _ObjectStore)
    store.job = job
    shared = ray.put(settings)
    sums: list[Any] = []
    for segment in partition.segments:
        before = sums[-1] if segment.index and not is_local else None
        damages = list(job.damages.values())
        names = _names_left(job, segment)
        run = ray.remote(num_cpus=settings.threads, max_retries=RETRIES, num_returns=1 + len(names))(_run_tile)
        submitted: deque[Any] = deque()
        for name in names:
            store.made[name] = []
        tiles, most, tile = plan.tiles(segment.index), SUBMITTED * slots(settings.threads, everywhere=True), 0
        for done in range(tiles):
            while tile < min(tiles, done + most):
                needed = store.needed(segment, tile, is_local)
                places = [(name, place) for name, place, _ in needed]
                found, *left = run.remote(
                    shared, segment.index, tile, damages, places, before, *(reference for _, _, reference in needed)
                )
                submitted.append(found)
                for name, reference in zip(names, left, strict=True):
                    store.made[name].append(reference)
                tile += 1
            with translate_errors():
                job.damages |= {damage.window: damage for damage in ray.get(submitted.popleft())}
            if watch is not None:
                watch(TileProgress(segment.index, len(partition.segments), done + 1, tiles))
        attention = partition.attention_after(segment)
        if attention is not None:
            records = store.made[job.records[segment.index].name]
            sums.append(_sum_tree(ray, records, attention.heads, attention.head_dim))
        for f in partition.features:
            if f.used_by == segment.index:
                del store.made[f.name]  # the last reference: Ray frees the objects
    counts = deliver(job, sink)
    with translate_errors():
        found = tuple(ray.get(sums))
    return LargeImageResult(plan, Context.of(found, job), tuple(job.damages.values()), counts, 0)


def _names_left(job: Job, segment: Segment) -> list[str]:
    """Names of the layouts that a segment's tiles write."""
    names = [job.features[f.name].name for f in segment.outputs]
    if segment.takes_image:
        names.append(job.valid.name)
    is_last = job.network.partition.attention_after(segment) is None
    return [*names, job.mask.name if is_last else job.records[segment.index].name]


def _sum_tree(ray: Any, records: list[Any], heads: int, head_dim: int) -> Any:
    """A reference to `sum_records` of the records, with one task per group of `GROUP`."""
    add = ray.remote(num_cpus=0, max_retries=RETRIES)(_add)
    parts = records
    while True:
        groups = [parts[i : i + GROUP] for i in range(0, len(parts), GROUP)]
        parts = [add.remote(heads, head_dim, *group) for group in groups]
        if len(parts) == 1:
            return parts[0]


def _add(heads: int, head_dim: int, *parts: Values | Sums) -> Sums:
    """Task: add one group of tiles' records, or of sums."""
    sums = [part for part in parts if isinstance(part, Sums)]
    if sums:
        return sum_in_order(sums, heads, head_dim)
    return sum_records((part.ravel() for part in parts if isinstance(part, np.ndarray)), heads, head_dim)


def _run_tile(
    settings: _Settings, index: int, tile: int, damages: list[Damage], places: list[tuple[str, Window]],
    sums: Sums | None, *values: Values,
) -> tuple[Any, ...]:  # fmt: skip
    """Task: run one tile of one segment. Returns: its damages, and its outputs in the order of `_names_left`."""
    network = cached("network", (settings.digest, settings.precision, settings.threads), lambda _: _opened(settings))
    source = cached(
        "source",
        (settings.path, settings.identity, settings.reading, settings.pixels),
        lambda stack: _source(settings, stack),
    )
    store = _TaskStore([(name, place, part) for (name, place), part in zip(places, values, strict=True)])
    job = Job(network, source, settings.plan, store)
    job.damages = {damage.window: damage for damage in damages}
    segment = network.partition.segments[index]
    with network.ready(segment, settings.plan.window(segment, 0)) as run:
        found = job.work(run, segment, tile, sums)
    return found, *(store.left[name] for name in _names_left(job, segment))


def _opened(settings: _Settings) -> Network:
    with settings.model.opened() as model:
        network = Network(model, settings.precision, settings.threads)
    if network.digest != settings.digest or network.info.precision != settings.precision:
        raise EngineError(
            f"{machine()} runs the model in {network.info.precision}, this machine in {settings.precision}; use a "
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
