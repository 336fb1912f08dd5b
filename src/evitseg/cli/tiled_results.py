"""What predict reports and writes about an image in tiles: fractions, context and polygons."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from evitseg.cli.jobs import PredictJob
from evitseg.cli.names import check_free
from evitseg.cli.outcome import ImageEntry
from evitseg.cli.polygons_command import write_polygons
from evitseg.cli.request import Mode, Request
from evitseg.errors import ConfigError, MissingPackageError

if TYPE_CHECKING:
    from evitseg.cli.output import Output
    from evitseg.labels import LabelSpace
    from evitseg.raster.window import Source
    from evitseg.tiling.sliding_window import SlidingWindowResult
    from evitseg.tiling.stream import LargeImageResult


def fractions_of(counted: LargeImageResult | SlidingWindowResult, labels: LabelSpace) -> dict[str, float]:
    """Fraction of the pixels per class that occurs, largest first; pixels without data count in the total."""
    counts = counted.counts[: len(labels.names)].tolist()
    total = int(counted.counts.sum())
    largest_first = sorted(zip(labels.names, counts, strict=True), key=lambda item: -item[1])
    return {name: count / total for name, count in largest_first if count}


def save_context(streamed: LargeImageResult, labels: LabelSpace, request: Request, entry: ImageEntry) -> None:
    """Record the mask's fractions, and save the context if --save-context asks for it."""
    entry.fractions = fractions_of(streamed, labels)
    if request.save_context is not None:
        streamed.context.save(request.save_context)
        entry.context = str(request.save_context)


def write_outlines(place: Path, request: Request, labels: LabelSpace, entry: ImageEntry, output: Output) -> None:
    """Write the polygons of a mask, if --polygons asks for them."""
    if request.polygons is not None:
        check_free([request.polygons], request, Path(entry.image))
        # A PNG cannot hold the names of its classes.
        write_polygons(place, request.polygons, labels if place.suffix.lower() == ".png" else None, output)
        entry.polygons = str(request.polygons)


def overlay_place(job: PredictJob, request: Request) -> Path | None:
    """Path of the overlay of an image in tiles: a pyramid for --overlay, else a reduced image. Raises: ConfigError."""
    if not request.draws:
        return None
    if request.overlay and request.legend:
        raise ConfigError(
            f"{job.source}: an overlay of all pixels in tiles has no legend; leave --legend or --overlay out."
        )
    return job.overlay(".tif" if request.overlay else ".jpg")


def draw_overlay(
    source: Source, place: Path, labels: LabelSpace, request: Request, entry: ImageEntry, output: Output
) -> None:
    """Write the overlay of an image in tiles from its mask file."""
    from evitseg.raster.large_overlay import write_overlay

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
    """Print the results of an image in tiles, for a person."""
    if entry.fractions is not None:
        how = "in sliding windows" if entry.mode == Mode.sliding_window.value else "in tiles"
        height, width = entry.size
        output.fractions(f"{Path(entry.image).name}, {width}×{height}, {how}", entry.fractions, labels)
    output.result(f"wrote {entry.mask}")
    if entry.overlay is not None:
        output.result(f"wrote {entry.overlay}")
    if entry.verification is not None:
        output.result(
            f"tiles compared with the whole image: logits differ by {entry.verification['max_logit_difference']:.1e} "
            f"of the largest, {entry.verification['different_pixels']} pixels of the mask differ"
        )
