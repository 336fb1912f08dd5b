"""What predict reports and writes about an image in bands: fractions, context and polygons."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from evitseg.cli.jobs import PredictJob
from evitseg.cli.names import check_free
from evitseg.cli.outcome import ImageEntry
from evitseg.cli.polygons_command import write_polygons
from evitseg.cli.request import Mode, Request
from evitseg.errors import ConfigError, MissingPackageError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from evitseg.cli.output import Output
    from evitseg.cli.progress import Advance
    from evitseg.labels import LabelSpace
    from evitseg.raster.window import Source
    from evitseg.tiling.network import Network
    from evitseg.tiling.progress import BandProgress, Beginning
    from evitseg.tiling.stream import LargeImageResult


def record_fractions(counts: NDArray[np.int64], labels: LabelSpace, entry: ImageEntry) -> None:
    """Record the fractions of a mask.

    Args:
        counts: number of pixels per class index, with those without data at `ignore_index`.
    """
    from evitseg.visualize import fractions_of

    total, with_class = int(counts.sum()), counts[: len(labels.classes)]
    entry.fractions = fractions_of(with_class, total, labels)
    entry.nodata = 1 - int(with_class.sum()) / total


def save_context(streamed: LargeImageResult, labels: LabelSpace, request: Request, entry: ImageEntry) -> None:
    """Record the mask's fractions, and save the context if --save-context asks for it."""
    record_fractions(streamed.counts, labels, entry)
    if request.save_context is not None:
        assert streamed.context is not None  # the options exclude each other
        streamed.context.save(request.save_context)
        entry.context = str(request.save_context)


class Followed:
    """Shows how far an image in bands is, on a terminal or as lines now and then.

    Attributes:
        scratch: the hidden folder with intermediate results; None while they are in memory.
    """

    def __init__(self, entry: ImageEntry, network: Network, output: Output, advance: Advance) -> None:
        self._entry, self._network, self._output, self._advance = entry, network, output, advance
        self.scratch: Path | None = None
        self._shown = 0

    def begin(self, beginning: Beginning) -> None:
        """Say what is about to be done."""
        from evitseg.tiling.memory_model import mib

        height, width = self._entry.size
        self.scratch = beginning.scratch
        bands = len(beginning.plan.windows(0))
        where = "memory" if self.scratch is None else f"{self.scratch.parent.resolve()}"
        resumed = f", resumed at {beginning.done:.0%}" if beginning.done else ""
        self._output.log(
            f"{Path(self._entry.image).name}: {width}×{height} pixels in {bands} {'band' if bands == 1 else 'bands'}, "
            f"{self._network.info.precision}, at most {mib(beginning.memory)} of memory, features in {where}{resumed}"
        )
        self._show(beginning.done)

    def progress(self, progress: BandProgress) -> None:
        """Show the progress."""
        self._show(progress.done)

    def _show(self, done: float) -> None:
        now = int(done * megapixels(self._entry))
        if now > self._shown:
            self._advance(now - self._shown)
            self._shown = now


def megapixels(entry: ImageEntry) -> int:
    """Size of an image in megapixels, at least 1."""
    height, width = entry.size
    return max(1, round(height * width / 1e6))


@contextlib.contextmanager
def followed(entry: ImageEntry, network: Network, output: Output) -> Iterator[Followed]:
    """What follows an image in bands while the block runs."""
    with output.progress("segmenting", megapixels(entry), unit="megapixels") as advance:
        yield Followed(entry, network, output, advance)


def interrupted(follower: Followed, place: Path) -> str:
    """What to say after an interrupt."""
    if follower.scratch is None:
        return f"interrupted; {place} was not written. The same command starts over."
    where = follower.scratch.parent.resolve()  # "." before a full stop would read like ".."
    return f"interrupted; the same command resumes, from hidden files in {where}; `evitseg clean` removes them."


def write_outlines(place: Path, request: Request, labels: LabelSpace, entry: ImageEntry, output: Output) -> None:
    """Write the polygons of a mask, if --polygons asks for them."""
    if request.polygons is not None:
        check_free([request.polygons], request, Path(entry.image))
        # A PNG cannot hold the names of its classes.
        named = labels if place.suffix.lower() == ".png" else None
        write_polygons(place, request.polygons, named, output, limits=request.limits)
        entry.polygons = str(request.polygons)


def overlay_place(job: PredictJob, request: Request) -> Path | None:
    """Path of the overlay of an image in bands: a pyramid for --overlay, else a reduced image. Raises: ConfigError."""
    if not request.draws:
        return None
    if request.overlay and request.legend:
        raise ConfigError(f"{job.source}: an overlay of all pixels has no legend; leave --legend or --overlay out.")
    return job.overlay(".tif" if request.overlay else ".jpg")


def check_overlay(source: Source, place: Path, request: Request, memory: int) -> None:
    """Raises: ConfigError if there is not enough memory for the overlay of an image, or of a region of it."""
    from evitseg.tiling.memory_model import mib, overlay_memory

    size = source.size if request.region is None else (request.region.height, request.region.width)
    needed = overlay_memory(size, place, source.held)
    if needed > memory:
        raise ConfigError(
            f"{mib(memory)} of memory is not enough: the overlay needs {mib(needed)}; give more, or --no-overlay."
        )


def draw_overlay(
    source: Source,
    place: Path,
    labels: LabelSpace,
    request: Request,
    entry: ImageEntry,
    output: Output,
    memory: int | None = None,
) -> None:
    """Write the overlay of an image in bands from its mask file, if there is enough memory for it."""
    from evitseg.raster.large_overlay import write_overlay

    try:
        if memory is not None:
            check_overlay(source, place, request, memory)
    except ConfigError as error:  # with --overlay, this was checked before the work began
        output.note(f"{entry.image}: no overlay. {error}")
        return
    try:
        with output.progress("drawing the overlay", 100, unit="percent") as advance:
            done = 0

            def progress(fraction: float) -> None:
                nonlocal done
                advance(int(100 * fraction) - done)
                done = int(100 * fraction)

            write_overlay(source, entry.mask, place, labels, request.legend is not False, progress)
    except MissingPackageError as error:
        if request.overlay:
            raise
        output.note(f"{entry.image}: no overlay. {error}")
        return
    entry.overlay = str(place)


def show_tiled(entry: ImageEntry, output: Output, labels: LabelSpace) -> None:
    """Print the results of an image in bands, for a person."""
    how = {Mode.sliding_window.value: "in sliding windows", Mode.region.value: "a region"}.get(entry.mode, "in bands")
    height, width = entry.size
    output.fractions(f"{Path(entry.image).name}, {width}×{height}, {how}", entry.fractions, labels, entry.nodata)
    output.result(f"wrote {entry.mask}")
    if entry.overlay is not None:
        output.result(f"wrote {entry.overlay}")
    if entry.verification is not None:
        output.result("bands compared with the whole image: identical")
