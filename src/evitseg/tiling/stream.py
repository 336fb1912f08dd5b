"""Images of any size, exactly, in bounded memory: piece by piece of the network, tile by tile of the image.

Every piece between two attention sums (`cutting`) runs over all tiles before the next begins; features wait on disk,
and one sum a layer is all that tiles know of each other. A tile's work is a function of the plan, the piece, the tile
and its inputs; sums are reduced apart from it, in the order of the tiles, so that they are the same bits however the
work was spread or interrupted.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
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
from evitseg.tiling.context import Context, looks_of
from evitseg.tiling.job import Job, class_counts
from evitseg.tiling.network import Network
from evitseg.tiling.plan import ContextMode, Plan, make_plan
from evitseg.tiling.scratch import Scratch
from evitseg.tiling.windows import Damage, Window, tiles_of, whole_rows

_LOG = logging.getLogger(__name__)
_STRIP_PIXELS = 2**22
"""Pixels of the mask that are handed to a sink at once, where it has no tiles."""


_SCRATCH_FORMAT = 3
"""Of what lies in the scratch folder."""


@dataclass(frozen=True)
class Progress:
    """How far the work has come: tiles of pieces."""

    piece: int
    pieces: int
    tile: int
    tiles: int


@dataclass(frozen=True)
class Streamed:
    """What `segment_huge` did.

    Attributes:
        plan: its tiles.
        context: the sums over the image.
        damages: what of the image could not be read; there the mask has the labels' `ignore_index`.
        counts: pixels of the mask by class index; the last is `ignore_index`'s.
        resumed: tiles that an earlier, interrupted call had done.
    """

    plan: Plan
    context: Context
    damages: tuple[Damage, ...]
    counts: NDArray[np.int64]
    resumed: int


def segment_huge(
    source: Source,
    sink: Sink | AbstractContextManager[Sink],
    network: Network,
    scratch: str | os.PathLike[str],
    *,
    size: Size = "native",
    memory: int | None = None,
    context: ContextMode = "global",
    tile: int | None = None,
    watch: Callable[[Progress], None] | None = None,
) -> Streamed:
    """The mask of an image of any size, the same as if it went through the network whole.

    Args:
        sink: where the mask goes, once it is complete; or what opens such a place then, as
            `evitseg.raster.open_mask_writer`.
        scratch: folder in which a hidden one holds what does not fit in memory. It is removed at the end, also after
            an error; after a kill or an interrupt, and where the sink fails, it stays, and the same call goes on from
            there. One process at a time works in it.
        size: as in `evitseg.load`.
        memory: bytes the process may hold; None for what is free, see `default_memory`.
        context: "global" for attention over the whole image; or pixels: over three by three tiles of a third of
            that, which is no longer the same as the whole, but closer to what training saw.
        tile: pixels of a tile's side, a multiple of 32; None for the largest that the memory allows.
        watch: called after every tile.

    Raises: ConfigError where the memory is too little, FileError where the disk is, EngineError.
    """
    plan = make_plan(network, source.size, size, memory, context, tile, source.held)
    explicit = memory is not None or tile is not None
    identity = _identity(network, source, plan, context)
    with contextlib.suppress(OSError):
        sweep_once(Path(scratch))
        remove_orphans(Path(scratch))
    store = Scratch(Path(scratch) / _folder_name(identity))
    with store.locked():
        try:
            job, resumed = _segment(source, network, store, plan, explicit, identity, context != "global", watch)
        except Exception:  # any failure, raised again: no gigabytes stay behind; an interrupt, no Exception, keeps them
            store.discard()
            raise
        finally:
            network.free()
            store.close()
        try:
            with sink if isinstance(sink, AbstractContextManager) else nullcontext(sink) as opened:
                counts = deliver(job, opened)
        except FileError as error:
            raise FileError(
                f"{error} The mask is done and kept in {store.folder}; the same call goes on there."
            ) from error
        finally:
            store.close()
        sums = tuple(job.sums(i) for i in range(len(network.cut.attentions)))
        store.discard()
        remove_superseded(store.folder, identity)
    return Streamed(job.plan, Context.of(sums, job), tuple(job.damages.values()), counts, resumed)


def _segment(
    source: Source, network: Network, store: Scratch, plan: Plan, explicit: bool, identity: dict[str, Any],
    near: bool, watch: Callable[[Progress], None] | None,
) -> tuple[Job, int]:  # fmt: skip
    """The mask in the scratch folder, and how many tiles were done before."""
    state = store.state()
    if state is None or state.get("identity") != identity or (explicit and state["sides"] != list(plan.sides)):
        store.clear()
        state = {"identity": identity, "sides": plan.sides, "piece": 0, "damages": []}
    plan = replace(plan, sides=tuple(state["sides"]))  # another moment's free memory must not make other tiles
    job = Job(network, source, plan, store)
    job.damages = {Window(*window): Damage(Window(*window), reason) for window, reason in state["damages"]}
    store.share(job.lives)
    store.check_room(job.bytes_needed)
    pieces = network.cut.pieces
    store.save(state)
    resumed = sum(map(plan.tiles, range(state["piece"]))) + store.marks(state["piece"])
    if resumed:
        _LOG.info("resuming after %d tiles, from %s", resumed, store.folder)
    else:
        _LOG.info("intermediate results go to %s", store.folder)
    for piece in pieces[state["piece"] :]:
        sums = job.sums(piece.number - 1) if piece.number and not near else None
        begin, tiles = store.marks(piece.number), plan.tiles(piece.number)
        with network.ready(piece, plan.window(piece, 0)) as run:
            work = partial(job.work, run, piece, sums=sums)
            for tile, damages in enumerate(ordered_map(range(begin, tiles), work, network.workers, 1), begin):
                if damages:
                    job.damages |= {damage.window: damage for damage in damages}
                    state["damages"] = [[astuple(d.window), d.reason] for d in job.damages.values()]
                    store.save(state)
                store.mark(piece.number)
                if watch is not None:
                    watch(Progress(piece.number, len(pieces), tile + 1, tiles))
        state["piece"] = piece.number + 1
        store.save(state)
    return job, resumed


def deliver(job: Job, sink: Sink) -> NDArray[np.int64]:
    """Hand the finished mask to the sink, in order; counts of its class indices."""
    height, width = job.plan.image
    ignore = job.network.labels.ignore_index
    counts = np.zeros(ignore + 1, np.int64)
    down, across = whole_rows(sink.tile, width, _STRIP_PIXELS)
    across_read = max(across, _STRIP_PIXELS // (down * across) * across)  # of the scratch file, several tiles at once

    def read(window: Window) -> tuple[Window, NDArray[np.integer], NDArray[np.int64]]:
        mask = job.scratch.read(job.mask, window)[..., 0]
        return window, mask, class_counts(mask, ignore + 1)

    windows = tiles_of((height, width), (down, across_read))
    for window, mask, found in ordered_map(windows, read, job.network.workers, 1):
        counts += found
        for left in range(0, window.width, across):
            sink.write(window.top, window.left + left, mask[:, left : left + across])
    return counts


def _identity(network: Network, source: Source, plan: Plan, context: ContextMode) -> dict[str, Any]:
    """What must be the same for interrupted work to go on."""
    return {
        "format": _SCRATCH_FORMAT,
        "image": list(plan.image),
        "working": list(plan.working),
        "source": source.identity,
        "looks": list(looks_of(source)),
        "model": network.digest,
        "precision": network.info.precision,
        "context": context,
    }


def remove_orphans(folder: Path) -> None:
    """Remove interrupted work that cannot be resumed, because its image was changed or removed since."""
    for place, identity in _interrupted(folder):
        name, *about = str(identity.get("source", "")).rsplit(" ", 2)
        path = Path(name)
        if len(about) != 2 or not path.is_absolute() or not path.parent.is_dir():
            continue  # not of a file, or of one on a disk that is not there now
        with contextlib.suppress(OSError):
            now = path.stat() if path.exists() else None
            if now is None or [str(now.st_size), str(now.st_mtime_ns)] != about:
                remove_folder(place)


def remove_superseded(done: Path, identity: dict[str, Any]) -> None:
    """Remove other interrupted work on the image whose mask is done, with other settings."""
    for place, other in _interrupted(done.parent):
        if place != done and identity["source"] and other.get("source") == identity["source"]:
            with contextlib.suppress(OSError):
                remove_folder(place)


def _interrupted(folder: Path) -> Iterator[tuple[Path, dict[str, Any]]]:
    """Folders of interrupted work, and what work it is."""
    with contextlib.suppress(OSError):
        for place in sorted(folder.glob(f"{TEMPORARY}*/{STATE}")):
            state = Scratch(place.parent).state()
            if state is not None and isinstance(state.get("identity"), dict):
                yield place.parent, state["identity"]


def _folder_name(identity: dict[str, Any]) -> str:
    return f"{TEMPORARY}{hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:16]}"
