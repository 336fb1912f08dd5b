"""Segmentation of images of any size in bounded memory, with the mask that the whole image would get.

Each segment of the network (see `graph_cut`) runs over all tiles before the next segment begins. Features wait on disk,
and one sum per attention layer is all that tiles know of each other. The work on a tile depends only on the plan, the
segment, the tile and its inputs. Sums are added separately, in the order of the tiles, so the result is the same bits
however the work was spread or interrupted.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
from collections.abc import Callable, Iterator
from dataclasses import astuple, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from evitseg.errors import FileError
from evitseg.image import Size
from evitseg.raster.window import Sink, Source
from evitseg.system.files import STATE, TEMPORARY, remove_folder, sweep_once
from evitseg.system.parallel import ordered_map
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
from evitseg.tiling.context import Context, sample_digests
from evitseg.tiling.job import Job, class_counts
from evitseg.tiling.network import Network
from evitseg.tiling.plan import Plan, make_plan
from evitseg.tiling.scratch import Scratch
from evitseg.tiling.windows import Damage, Window, tiles_of, whole_rows

_LOG = logging.getLogger(__name__)
_STRIP_PIXELS = 2**22
"""Pixels of the mask that are read from the scratch folder at once."""
_SCRATCH_FORMAT = 4
"""Version of the scratch folder's content."""


@dataclass(frozen=True)
class TileProgress:
    """Progress of an image in tiles: `tile` of `tiles` tiles of `segment` of `segments` segments of the network."""

    segment: int
    segments: int
    tile: int
    tiles: int


@dataclass(frozen=True)
class LargeImageResult:
    """The result of `segment_large`, apart from the mask.

    Attributes:
        plan: the tiles.
        context: the image's attention sums, from which `render_region` renders any region again.
        damages: parts of the image that could not be read. There, the mask is the labels' `ignore_index`.
        counts: number of pixels per class index; the last one is `ignore_index`.
        resumed: number of tiles that an earlier, interrupted call had done.
    """

    plan: Plan
    context: Context
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
    tile: int | None = None,
    scratch: str | os.PathLike[str] | None = None,
    watch: Callable[[TileProgress], None] | None = None,
) -> LargeImageResult:
    """Segment an image of any size in bounded memory. The mask is the one that the whole image would get.

        evitseg.segment_large("model.onnx", "mosaic.tif", "mask.tif", memory=1 << 30)

    Args:
        model: a name or path as in `evitseg.load`, or what `load` returned, whose precision and threads are used. A
            `Network` is compiled once for several images.
        source: an image file, an (H, W, 3) uint8 array, or a `Source`.
        mask: the file to write, .tif, .png or .zarr, with the image's georeference; or a `Sink`, or what opens one.
        size: as in `evitseg.load`; by default the image's own.
        memory: bytes the process may hold; None for a fraction of the free memory.
        context_window: side in pixels of the neighbourhood that attention is limited to, in three by three tiles. None
            for the whole image. The mask then differs from that of the whole image, but attention sees about as much
            as in training.
        tile: side of the tiles in pixels, a multiple of 32; None for the fastest that fit in memory.
        scratch: folder for a hidden folder with intermediate results; None for the mask's folder. The hidden folder is
            removed at the end and after an error. It remains after an interrupt, a kill or a failure to write the
            mask, and the same call then resumes. Only one process at a time can work in it.
        watch: called after every tile.

    Raises: ConfigError if the memory is not enough, FileError if the disk is not, EngineError, WeightsError,
        ImageError, MissingPackageError.
    """
    network, folder = tiled_network(model), scratch_folder(scratch, mask)
    with image_source(source, folder, memory, reading_of(model, network)) as (image, _):
        destination = mask_sink(mask, image, network)
        plan = make_plan(network, image.size, size, memory, context_window, tile, image.held)
        explicit = memory is not None or tile is not None
        identity = _identity(network, image, plan, context_window)
        with contextlib.suppress(OSError):
            sweep_once(folder)
            remove_orphans(folder)
        store = Scratch(folder / _folder_name(identity))
        with store.locked():
            try:
                is_local = context_window is not None
                job, resumed = _run_segments(image, network, store, plan, explicit, identity, is_local, watch)
            except Exception:  # after any error, the gigabytes go; after an interrupt they stay, to resume
                store.discard()
                raise
            finally:
                network.free()
                store.close()
            try:
                with destination as sink:
                    counts = deliver(job, sink)
            except FileError as error:
                raise FileError(
                    f"{error} The finished mask is kept in {store.folder}; the same call resumes from there."
                ) from error
            finally:
                store.close()
            sums = tuple(job.sums(i) for i in range(len(network.partition.attentions)))
            store.discard()
            remove_superseded(store.folder, identity)
        return LargeImageResult(job.plan, Context.of(sums, job), tuple(job.damages.values()), counts, resumed)


def _run_segments(
    source: Source, network: Network, store: Scratch, plan: Plan, explicit: bool, identity: dict[str, Any],
    is_local: bool, watch: Callable[[TileProgress], None] | None,
) -> tuple[Job, int]:  # fmt: skip
    """Compute the mask in the scratch folder. Returns: the job, and the number of tiles that were done before."""
    state = store.state()
    if state is None or state.get("identity") != identity or (explicit and state["sides"] != list(plan.sides)):
        store.clear()
        state = {"identity": identity, "sides": plan.sides, "segment": 0, "damages": []}
    plan = replace(plan, sides=tuple(state["sides"]))  # the free memory may have changed; the tiles must not
    job = Job(network, source, plan, store)
    job.damages = {Window(*window): Damage(Window(*window), reason) for window, reason in state["damages"]}
    store.allocate(job.live_ranges)
    store.check_room(job.bytes_needed)
    segments = network.partition.segments
    store.save(state)
    resumed = sum(map(plan.tiles, range(state["segment"]))) + store.tiles_done(state["segment"])
    if resumed:
        _LOG.info("resuming after %d tiles, from %s", resumed, store.folder)
    else:
        _LOG.info("intermediate results go to %s", store.folder)
    for segment in segments[state["segment"] :]:
        index = segment.index
        sums = None if is_local else job.sums_before(segment)
        begin, tiles = store.tiles_done(index), plan.tiles(index)
        with network.ready(segment, plan.window(segment, 0)) as run:
            work = partial(job.work, run, segment, sums=sums)
            for tile, damages in enumerate(ordered_map(range(begin, tiles), work, network.workers, 1), begin):
                if damages:
                    job.damages |= {damage.window: damage for damage in damages}
                    state["damages"] = [[astuple(d.window), d.reason] for d in job.damages.values()]
                    store.save(state)
                store.count_tile(index)
                if watch is not None:
                    watch(TileProgress(index, len(segments), tile + 1, tiles))
        state["segment"] = index + 1
        store.save(state)
    return job, resumed


def deliver(job: Job, sink: Sink) -> NDArray[np.int64]:
    """Write the finished mask to the sink, in order. Returns: number of pixels per class index."""
    height, width = job.plan.image
    ignore = job.network.labels.ignore_index
    counts = np.zeros(ignore + 1, np.int64)
    down, across = whole_rows(sink.tile, width, _STRIP_PIXELS)
    across_read = max(across, _STRIP_PIXELS // (down * across) * across)  # several of the sink's tiles per read

    def read(window: Window) -> tuple[Window, NDArray[np.integer], NDArray[np.int64]]:
        mask = job.scratch.read(job.mask, window)[..., 0]
        return window, mask, class_counts(mask, ignore + 1)

    windows = tiles_of((height, width), (down, across_read))
    for window, mask, found in ordered_map(windows, read, job.network.workers, 1):
        counts += found
        for left in range(0, window.width, across):
            sink.write(window.top, window.left + left, mask[:, left : left + across])
    return counts


def _identity(network: Network, source: Source, plan: Plan, context_window: int | None) -> dict[str, Any]:
    """Everything that must be unchanged to resume interrupted work."""
    return {
        "format": _SCRATCH_FORMAT,
        "image": list(plan.image),
        "working": list(plan.working),
        "source": source.identity,
        "samples": list(sample_digests(source)),
        "model": network.digest,
        "precision": network.info.precision,
        "context_window": context_window,
    }


def remove_orphans(folder: Path) -> None:
    """Remove interrupted work that cannot be resumed, because its image was changed or removed since."""
    for place, identity in _interrupted(folder):
        name, *about = str(identity.get("source", "")).rsplit(" ", 2)
        path = Path(name)
        if len(about) != 2 or not path.is_absolute() or not path.parent.is_dir():
            continue  # the image is no file, or is on a disk that is not mounted now
        with contextlib.suppress(OSError):
            now = path.stat() if path.exists() else None
            if now is None or [str(now.st_size), str(now.st_mtime_ns)] != about:
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
