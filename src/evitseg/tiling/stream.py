"""Segmentation of images of any size in bounded memory, with the mask that the whole image would get, bit for bit.

Each segment of the network runs over the whole image, band by band, before the next segment begins. Features wait on
disk, and the sums of each attention layer are all that bands know of each other. They are added in one fixed tree, so
the result is the same bits however high the bands are, and however the work was interrupted.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import astuple, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from evitseg.errors import ConfigError, FileError
from evitseg.image import Size
from evitseg.raster.png import MaskFormat
from evitseg.raster.window import Sink, Source
from evitseg.runtime.core import NotFiniteError
from evitseg.system.files import STATE, TEMPORARY, remove_folder, sweep_once
from evitseg.system.leftovers import is_outdated
from evitseg.system.machine import boot_identity
from evitseg.system.parallel import ordered_map
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
from evitseg.tiling.context import Context, sample_digests
from evitseg.tiling.job import ImageRows, Job, places_of
from evitseg.tiling.mask_rows import MaskRows
from evitseg.tiling.memory_model import default_memory
from evitseg.tiling.network import Network
from evitseg.tiling.plan import LARGEST_BAND, Plan, make_plan, mask_of_window, working_size
from evitseg.tiling.progress import BandProgress, Beginning, Progress, Watcher
from evitseg.tiling.scratch import MemoryStore, Scratch
from evitseg.tiling.windows import Damage, Window

_LOG = logging.getLogger(__name__)
_USEFUL_BAND = 512
"""Height of bands in pixels, below which features leave memory to make room for higher ones."""
_MOST_KEPT = 128 * 1024**2
"""Most bytes of features that are kept for the next image."""
_SCRATCH_FORMAT = 5
"""Version of the scratch folder's content."""


@dataclass(frozen=True)
class LargeImageResult:
    """The result of `segment_large`, apart from the mask.

    Attributes:
        plan: the bands.
        context: the image's attention sums, from which `render_region` renders any region again; None with a context
            window, because then there are sums for every tile.
        damages: parts of the image that could not be read. There, the mask is the labels' `ignore_index`.
        counts: number of pixels per class index; the last one is `ignore_index`.
        resumed: number of bands that an earlier, interrupted call had done.
    """

    plan: Plan
    context: Context | None
    damages: tuple[Damage, ...]
    counts: NDArray[np.int64]
    resumed: int


def segment_large(
    model: ModelLike,
    source: ImageLike,
    mask: MaskPlace,
    *,
    size: Size = "native",
    memory: int | None = None,
    context_window: int | None = None,
    band: int | None = None,
    scratch: str | os.PathLike[str] | None = None,
    watch: Callable[[BandProgress], None] | Watcher | None = None,
    mask_format: MaskFormat = "palette",
) -> LargeImageResult:
    """Segment an image of any size in bounded memory. The mask is the one that the whole image would get.

        evitseg.segment_large("model.safetensors", "mosaic.tif", "mask.tif", memory=1 << 30)

    In float32 the mask is the same bit for bit on every processor with fused multiply-add; in half precision it is that
    of the whole image on processors with the same instruction set.

    Args:
        model: a name or path as in `evitseg.load`, or what `load` returned. A `Network` is opened once for several
            images.
        source: an image file, an (H, W, 3) uint8 array, or a `Source`.
        mask: the file to write, .tif, .png or .zarr, with the image's georeference; or a `Sink`, or what opens one.
        size: as in `evitseg.load`; by default the image's own.
        memory: bytes the process may hold; None for a fraction of the free memory.
        context_window: side in pixels of the neighbourhood that attention is limited to, in three by three tiles. None
            for the whole image. The mask then differs from that of the whole image, but attention sees about as much
            as in training.
        band: height of the bands in pixels, a multiple of 128; None for the highest that fit in memory.
        scratch: folder for a hidden folder with intermediate results. None keeps them in memory if they fit, else in
            the mask's folder. The hidden folder is removed at the end and after an error. It remains after an
            interrupt, a kill or a failure to write the mask, and the same call then resumes, unless the machine was
            restarted. Only one process at a time can work in it.
        watch: called after every band, or a `Watcher`.
        mask_format: how a mask file stores class indices, as in `open_mask_writer`.

    Raises: ConfigError if the memory is not enough, FileError if the disk is not, EngineError, WeightsError,
        ImageError, MissingPackageError.
    """
    network, folder = banded_network(model), scratch_folder(scratch, mask)
    watcher = watch if isinstance(watch, Watcher) else Watcher(progress=watch) if watch else Watcher()
    with image_source(source, folder, memory, reading_of(model, network)) as (image, _):
        with contextlib.suppress(OSError):
            sweep_once(folder)
            remove_orphans(folder)

        def segment() -> LargeImageResult:
            limit = default_memory(image.held) if memory is None else memory
            plan, explicit = None, memory is not None or band is not None
            if scratch is None:  # features in memory, if they fit there beside bands of a useful height
                plan = _plan_in_memory(network, image, size, limit, context_window, band)
            place = folder if plan is None else None
            if plan is None:
                plan = make_plan(network, image.size, size, limit, context_window, band, image.held)
            destination = mask_sink(mask, image, network, mask_format)
            return segment_in_bands(image, network, plan, limit, explicit, destination, place, watcher)

        try:
            return segment()
        except NotFiniteError as error:
            network.fall_back(error)
        return segment()


def _plan_in_memory(
    network: Network, source: Source, size: Size, limit: int, context_window: int | None, band: int | None
) -> Plan | None:
    """A plan that keeps all features in memory; None if they do not fit beside bands of a useful height."""
    working = working_size(source.size, network.manifest, size)
    _, stored = places_of(network, Plan(source.size, working, (LARGEST_BAND,) * len(network.core.segments)))
    try:
        plan = make_plan(network, source.size, size, limit, context_window, band, source.held + stored)
    except ConfigError:
        return None
    return plan if band or min(plan.bands) >= min(_USEFUL_BAND, working[0]) or plan.tile else None


def segment_in_bands(
    source: Source, network: Network, plan: Plan, memory: int, explicit: bool,
    destination: AbstractContextManager[Sink], folder: Path | None, watcher: Watcher, run: Run | None = None,
) -> LargeImageResult:  # fmt: skip
    """Segment an image by its plan.

    Args:
        memory: bytes the process may hold, for the watcher.
        explicit: whether the bands were chosen, so that work with other bands is not resumed.
        folder: where a hidden folder keeps the features; None keeps them in memory.
        run: runs the windows of a segment; None for this process.
    """
    run = run or run_here
    used, network.used_bytes = network.used_bytes, None
    if folder is None:
        store_here = MemoryStore(used)
        del used
        job = Job(network, source, plan, store_here)
        store_here.open(job.bytes_needed)
        watcher.begin(Beginning(plan, memory, None, 0.0))
        progress = Progress(job, watcher)
        _run_segments(job, {"segment": 0}, progress, run)
        with destination as sink:
            counts = _deliver(job, sink, progress, run)
        result = _result(job, counts, 0)
        if job.bytes_needed <= _MOST_KEPT:
            network.used_bytes = store_here.close()
        return result
    del used
    identity = _identity(network, source, plan)
    store = Scratch(folder / _folder_name(identity))
    computed = False
    with store.locked():
        try:
            try:
                job, state, resumed = _begin(source, network, store, plan, explicit, identity)
                progress = Progress(job, watcher)
                done = progress.fraction(state["segment"], store.windows_done(state["segment"]))
                watcher.begin(Beginning(job.plan, memory, store.folder, done))
                _run_segments(job, state, progress, run)
                computed = True
                with destination as sink:
                    counts = _deliver(job, sink, progress, run)
                result = _result(job, counts, resumed)
            finally:
                store.close()
        except FileError as error:
            if not computed:
                store.discard()
                raise
            raise FileError(
                f"{error} What was computed is kept in {store.folder}; the same call resumes from there."
            ) from error
        except Exception:  # after any other error, the gigabytes go; after an interrupt they stay, to resume
            store.discard()
            raise
        store.discard()
        remove_superseded(store.folder, identity)
    return result


def _result(job: Job, counts: NDArray[np.int64], resumed: int) -> LargeImageResult:
    context = Context.of(job.all_sums(), job) if job.plan.tile is None else None
    return LargeImageResult(job.plan, context, tuple(job.damages.values()), counts, resumed)


def _begin(
    source: Source, network: Network, store: Scratch, plan: Plan, explicit: bool, identity: dict[str, Any]
) -> tuple[Job, dict[str, Any], int]:
    """Begin, or resume. Returns: the job, its state, and the number of bands that were done before."""
    state = store.state()
    if state is None or state.get("identity") != identity or (explicit and state["bands"] != list(plan.bands)):
        store.clear()
        state = {"identity": identity, "bands": plan.bands, "segment": 0, "damages": []}
    plan = replace(plan, bands=tuple(state["bands"]))  # the free memory may have changed; the bands must not
    job = Job(network, source, plan, store)
    job.damages = {Window(*window): Damage(Window(*window), reason) for window, reason in state["damages"]}
    store.open(job.bytes_needed)
    store.save(state)
    resumed = sum(len(plan.windows(i)) for i in range(state["segment"])) + store.windows_done(state["segment"])
    if resumed:
        _LOG.info("resuming after %d bands, from %s", resumed, store.folder)
    else:
        _LOG.info("intermediate results go to %s", store.folder)
    return job, state, resumed


class Done(NamedTuple):
    """A window of a segment that has run.

    Attributes:
        number: of the window, within its segment.
        out: the sums that it gave; of the last segment the window's part of the mask.
        damages: parts of the image that could not be read.
    """

    number: int
    out: NDArray[Any]
    damages: list[Damage]


Run: TypeAlias = Callable[[Job, int, int], Iterator[Done]]
"""Runs the windows of a segment, given by its number, from a window on, and gives them in order."""


def run_here(job: Job, segment: int, begin: int) -> Iterator[Done]:
    """Run the windows of a segment in this process; reading the image goes on beside it."""
    windows, plan = job.plan.windows(segment), job.plan
    sums = job.sums_for(segment, 0) if plan.tile is None else None
    rows = None
    if segment == 0 and begin < len(windows):
        first = job.image_rows(0, windows[begin]).start
        rows = ImageRows(job.source, first, windows[0].height, job.network.threads)
    try:
        for number in range(begin, len(windows)):
            window = windows[number]
            image, first_row, found = None, 0, list[Damage]()
            if rows is not None:
                image, first_row, strips = rows.upto(job.image_rows(0, window))
                for strip, damages in strips:
                    job.note_valid(strip, damages)
                    found += damages
            own = sums if plan.tile is None else job.sums_for(segment, number)
            out: NDArray[Any] = job.run(segment, window, own, image, first_row)
            if segment == job.last:
                out = mask_of_window(
                    out, plan, plan.mask_window(window), job.place(segment, window), job.network.core.core
                )
            yield Done(number, out, found)
            job.scratch.release()
    finally:
        if rows is not None:
            rows.close()


def _run_segments(job: Job, state: dict[str, Any], progress: Progress, run: Run) -> None:
    """Run all segments but the last, from where the state says."""
    for segment in range(state["segment"], job.last):
        windows = job.plan.windows(segment)
        for done in run(job, segment, job.scratch.windows_done(segment)):
            _note_damages(job, state, done.damages)
            job.finish(segment, done.number, windows[done.number], done.out)
            progress.count(segment, done.number + 1)
        job.scratch.wait()
        state["segment"] = segment + 1
        job.scratch.save(state)


def _note_damages(job: Job, state: dict[str, Any], damages: list[Damage]) -> None:
    if damages:
        job.damages |= {damage.window: damage for damage in damages}
        state["damages"] = [[astuple(d.window), d.reason] for d in job.damages.values()]
        job.scratch.save(state)


def _deliver(job: Job, sink: Sink, progress: Progress, run: Run) -> NDArray[np.int64]:
    """Run the last segment, and write the mask to the sink in order. Returns: number of pixels per class index."""
    windows = job.plan.windows(job.last)
    rows = MaskRows(sink, job.source.source, job.damages, job.network.labels.ignore_index)

    def add(done: Done) -> None:
        job.damages |= {damage.window: damage for damage in done.damages}  # of a network with only one segment
        rows.add(job.plan.mask_window(windows[done.number]), done.out)

    for number, _ in enumerate(ordered_map(run(job, job.last, 0), add, 1, 1), 1):
        progress.count(job.last, number)
    return rows.counts


def _identity(network: Network, source: Source, plan: Plan) -> dict[str, Any]:
    """Everything that must be unchanged to resume interrupted work."""
    return {
        "format": _SCRATCH_FORMAT,
        "image": list(plan.image),
        "working": list(plan.working),
        "source": source.identity,
        "samples": list(sample_digests(source)),
        "model": network.digest,
        "arithmetic": network.info.precision + " " + network.core.core.isa,
        "tile": plan.tile,
        "boot": boot_identity(),  # what was on its way to the disk may be lost after a restart
    }


def remove_orphans(folder: Path) -> None:
    """Remove interrupted work that cannot be resumed, because its image was changed or removed since."""
    for place, identity in _interrupted(folder):
        if is_outdated(str(identity.get("source", ""))):
            with contextlib.suppress(OSError):
                remove_folder(place)


def remove_superseded(done: Path, identity: dict[str, Any]) -> None:
    """Remove interrupted work on the same image with other settings, now that its mask is done."""
    for place, other in _interrupted(done.parent):
        if place != done and identity["source"] and other.get("source") == identity["source"]:
            with contextlib.suppress(OSError):
                remove_folder(place)


def _interrupted(folder: Path) -> Iterator[tuple[Path, dict[str, Any]]]:
    """Folders of interrupted work, each with its identity."""
    with contextlib.suppress(OSError):
        for place in sorted(folder.glob(f"{TEMPORARY}*/{STATE}")):
            state = Scratch(place.parent).state()
            if state is not None and isinstance(state.get("identity"), dict):
                yield place.parent, state["identity"]


def _folder_name(identity: dict[str, Any]) -> str:
    return f"{TEMPORARY}{hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:16]}"
