"""One image of any size on many machines: `runtime/streaming.py`'s tiles as Ray's tasks.

A task is given what its tile needs of others as objects in Ray's store and leaves what it makes there, so machines
share nothing but the image's file. Ray runs a task again whose worker died, and makes objects again that were lost
with a machine. Sums are added in a tree of tasks whose shape `summed` fixes.
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

from evitseg.cluster.session import RETRIES, Model, kept, machine, require_ray, slots, told
from evitseg.engine import Precision
from evitseg.errors import ConfigError, EngineError, ImageError
from evitseg.image import AS_STATED, ReadOptions, Size
from evitseg.raster.window import ArraySource, Sink, Source
from evitseg.system.machine import free_memory
from evitseg.tiling.context import Context
from evitseg.tiling.graph_cut import Piece
from evitseg.tiling.job import Job
from evitseg.tiling.memory import share_of
from evitseg.tiling.network import Network
from evitseg.tiling.plan import ContextMode, Plan, make_plan
from evitseg.tiling.scratch import Layout
from evitseg.tiling.stream import Progress, Streamed, deliver
from evitseg.tiling.sums import GROUP, Sums, added, summed
from evitseg.tiling.windows import Damage, Window

Values = NDArray[Any]

UNDER_WAY = 4
"""Tiles that are asked for, for each that the cluster does at once.

After an error these few are let finish and forgotten, not cancelled: Ray 2.60 ends the process that asks, with a failed
check of its own, where a cancelled task answers late.
"""


@dataclass(frozen=True)
class _Order:
    """What all tiles of an image have in common.

    Attributes:
        digest: of the artefact.
        precision: that the network must run in.
        threads: of a task.
        path: of the image; None where its pixels are sent.
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


class _Held:
    """A store for one tile: what it was given, and what it leaves."""

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
    """(height, width, channels) of a window from parts that cover it without overlapping."""
    out, covered = np.empty((window.height, window.width, layout.channels), layout.dtype), 0
    for place, values in parts:
        part = place.common(window)
        if part is not None:
            out[part.inside(window)] = values[part.inside(place)]
            covered += part.pixels
    assert covered == window.pixels, f"{layout.name}: {covered} of {window.pixels} values of {window} are there"
    return out


class _Cluster:
    """A store on the machine that gives the orders: references by layout and tile."""

    def __init__(self) -> None:
        self.job: Job
        self.made: dict[str, list[Any]] = {}

    def needed(self, piece: Piece, tile: int, near: bool) -> list[tuple[str, Window, Any]]:
        """What a tile must be given: names of layouts, places in them, references."""
        job, number = self.job, piece.number
        core, window = job.plan.core(number, tile), job.plan.window(piece, tile)
        found = [
            self._part(f.name, f.made_by, other, f.stride)
            for f in piece.inputs
            for other in job.plan.touching(f.made_by, window)
        ]
        if number > 0 and job.network.cut.attention_behind(piece) is not None:
            name = job.valid.name
            stride = job.plan.working[0] // job.valid.height
            found += [self._part(name, 0, other, stride) for other in job.plan.touching(0, core)]
        if near and number > 0:
            name = job.records[number - 1].name
            found += [
                (name, Window(other, 0, 1, 1), self.made[name][other])
                for other in job.plan.neighbours(number - 1, tile)
            ]
        return found

    def _part(self, name: str, made_by: int, tile: int, stride: int) -> tuple[str, Window, Any]:
        return name, self.job.plan.core(made_by, tile).over(stride), self.made[name][tile]

    def read(self, layout: Layout, window: Window) -> Values:
        """Of the mask."""
        job, last = self.job, self.job.network.cut.pieces[-1].number
        (top, bottom), (left, right) = (
            # A pixel more to either side: where a tile's part of the mask ends is rounded.
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
        with told():
            parts = require_ray().get([self.made[layout.name][tile] for tile in tiles])
        return _put_together(
            layout, window, [(places[tile], values) for tile, values in zip(tiles, parts, strict=True)]
        )

    def write(self, layout: Layout, window: Window, values: Values) -> None:
        raise AssertionError("tasks make what is stored")


def segment_huge(
    source: Source,
    sink: Sink,
    network: Network,
    *,
    path: str | os.PathLike[str] | None = None,
    threads: int = 1,
    size: Size = "native",
    memory: int | None = None,
    context: ContextMode = "global",
    tile: int | None = None,
    watch: Callable[[Progress], None] | None = None,
    reading: ReadOptions = AS_STATED,
) -> Streamed:
    """`evitseg.tiling.stream.segment_huge` on the cluster that the process is connected to (`connected`).

    In float32, with the same tiles and on processors of the same kind, the mask is the same to the last pixel.
    A worker that dies costs the time of the tile it had; the death of the process that calls this ends the work.

    Args:
        source: the image, in memory (`ArraySource`) or one that `evitseg.raster.open_raster` opened.
        network: of this machine; the workers open their own, in the same precision.
        path: of the latter kind of image, in a place that all machines share.
        threads: of a task; a machine of n cores does n / threads tiles at once.
        reading: how the workers read the file at `path`.
        memory: bytes that a worker may hold, beside Ray's own store of objects; None for its share of a quarter of
            what is free here.

    Raises: as that, and ConfigError for an impossible setting, EngineError where the cluster fails.
    """
    ray = require_ray()
    many = slots(threads)
    if path is None and not isinstance(source, ArraySource):
        raise ConfigError("an image that is not in memory needs its path, for the workers to open it.")
    try:
        memory = share_of(free_memory()) // many if memory is None else memory
        plan = make_plan(network, source.size, size, memory, context, tile, source.held)
        order = _Order(
            plan=plan,
            model=Model.sent(network.path),
            digest=network.digest,
            precision=network.info.precision,  # type: ignore[arg-type]  # one of them
            threads=threads,
            path=None if path is None else os.path.abspath(path),
            identity=source.identity,
            reading=reading,
            pixels=None if path is not None else _sent(ray, source),
        )
        return _segment(ray, order, Job(network, source, plan, _Cluster()), sink, context != "global", watch)
    finally:
        network.free()


def _sent(ray: Any, source: Source) -> tuple[Any, Any]:
    height, width = source.size
    pixels, valid = source.read(0, 0, height, width), source.valid(0, 0, height, width)
    return ray.put(pixels), None if valid is None else ray.put(valid)


def _segment(
    ray: Any, order: _Order, job: Job, sink: Sink, near: bool, watch: Callable[[Progress], None] | None
) -> Streamed:
    store, plan, cut = job.scratch, job.plan, job.network.cut
    assert isinstance(store, _Cluster)
    store.job = job
    ordered = ray.put(order)
    sums: list[Any] = []
    for piece in cut.pieces:
        before = sums[-1] if piece.number and not near else None
        damages = list(job.damages.values())
        names = _names_left(job, piece)
        work = ray.remote(num_cpus=order.threads, max_retries=RETRIES, num_returns=1 + len(names))(_work)
        told_of: deque[Any] = deque()
        for name in names:
            store.made[name] = []
        tiles, most, tile = plan.tiles(piece.number), UNDER_WAY * slots(order.threads, everywhere=True), 0
        for done in range(tiles):
            while tile < min(tiles, done + most):
                needed = store.needed(piece, tile, near)
                places = [(name, place) for name, place, _ in needed]
                found, *left = work.remote(
                    ordered, piece.number, tile, damages, places, before, *(reference for _, _, reference in needed)
                )
                told_of.append(found)
                for name, reference in zip(names, left, strict=True):
                    store.made[name].append(reference)
                tile += 1
            with told():
                job.damages |= {damage.window: damage for damage in ray.get(told_of.popleft())}
            if watch is not None:
                watch(Progress(piece.number, len(cut.pieces), done + 1, tiles))
        attention = cut.attention_behind(piece)
        if attention is not None:
            sums.append(_tree(ray, store.made[job.records[piece.number].name], attention.heads, attention.head_dim))
        for f in cut.features:
            if f.used_by == piece.number:
                del store.made[f.name]  # the last reference: Ray lets go of them
    counts = deliver(job, sink)
    with told():
        found = tuple(ray.get(sums))
    return Streamed(plan, Context.of(found, job), tuple(job.damages.values()), counts, 0)


def _names_left(job: Job, piece: Piece) -> list[str]:
    """Names of the layouts in which a piece's tiles leave something."""
    names = [job.features[f.name].name for f in piece.outputs]
    if piece.number == 0:
        names.append(job.valid.name)
    last = job.network.cut.attention_behind(piece) is None
    return [*names, job.mask.name if last else job.records[piece.number].name]


def _tree(ray: Any, records: list[Any], heads: int, head_dim: int) -> Any:
    """A reference to `summed` of the records, every group of `GROUP` added by a task of its own."""
    add = ray.remote(num_cpus=0, max_retries=RETRIES)(_add)
    parts = records
    while True:
        groups = [parts[i : i + GROUP] for i in range(0, len(parts), GROUP)]
        parts = [add.remote(heads, head_dim, *group) for group in groups]
        if len(parts) == 1:
            return parts[0]


def _add(heads: int, head_dim: int, *parts: Values | Sums) -> Sums:
    """On a worker: one group of tiles' records, or of sums."""
    sums = [part for part in parts if isinstance(part, Sums)]
    if sums:
        return added(sums, heads, head_dim)
    return summed((part.ravel() for part in parts if isinstance(part, np.ndarray)), heads, head_dim)


def _work(
    order: _Order, number: int, tile: int, damages: list[Damage], places: list[tuple[str, Window]], sums: Sums | None,
    *values: Values,
) -> tuple[Any, ...]:  # fmt: skip
    """On a worker: one tile of one piece. What it found damaged, and what it leaves, in `_names_left`'s order."""
    network = kept("network", (order.digest, order.precision, order.threads), lambda _: _opened(order))
    source = kept(
        "source", (order.path, order.identity, order.reading, order.pixels), lambda stack: _source(order, stack)
    )
    held = _Held([(name, place, part) for (name, place), part in zip(places, values, strict=True)])
    job = Job(network, source, order.plan, held)
    job.damages = {damage.window: damage for damage in damages}
    piece = network.cut.pieces[number]
    with network.ready(piece, order.plan.window(piece, 0)) as run:
        found = job.work(run, piece, tile, sums)
    return found, *(held.left[name] for name in _names_left(job, piece))


def _opened(order: _Order) -> Network:
    with order.model.opened() as artefact:
        network = Network(artefact, order.precision, order.threads)
    if network.digest != order.digest or network.info.precision != order.precision:
        raise EngineError(
            f"{machine()} runs the model in {network.info.precision}, this one in {order.precision}; give a precision "
            "that all have, such as float32."
        )
    return network


def _source(order: _Order, stack: ExitStack) -> Source:
    if order.path is None:
        ray = require_ray()
        assert order.pixels is not None
        pixels, valid = order.pixels
        return ArraySource(ray.get(pixels), None if valid is None else ray.get(valid))
    from evitseg.raster import open_raster

    try:
        source = stack.enter_context(open_raster(Path(order.path), None, order.reading))
    except ImageError as error:
        raise ImageError(f"{error} That was on {machine()}: the image must lie where all machines find it.") from error
    if source.identity != order.identity:
        raise ImageError(f"{order.path}: not the same file on {machine()}; put it where all machines find one.")
    return source
