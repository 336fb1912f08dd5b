"""predict for images in bands, in sliding windows, and for regions from a context file."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING

from evitseg.cli.failures import Interrupted
from evitseg.cli.jobs import PredictJob
from evitseg.cli.names import check_free
from evitseg.cli.outcome import ImageEntry, Outcome
from evitseg.cli.request import Mode, Request
from evitseg.cli.tiled_results import (
    check_overlay,
    draw_overlay,
    followed,
    interrupted,
    overlay_place,
    record_fractions,
    save_context,
    show_tiled,
    write_outlines,
)
from evitseg.errors import ConfigError, EngineError, EvitsegError

if TYPE_CHECKING:
    from evitseg.cli.output import Output
    from evitseg.image import Size
    from evitseg.raster.window import Source
    from evitseg.tiling.network import Network
    from evitseg.tiling.windows import Window


def predict_bands(jobs: list[PredictJob], request: Request, outcome: Outcome, native: bool = True) -> None:
    """Write the masks of images in bands, in bounded memory.

    Args:
        native: at the image's own size, unless --size says otherwise; False follows the model's rule.
    """
    try:
        network = open_network(request, request.threads)
    except EvitsegError as error:
        for job in jobs:
            outcome.fail(job.source, error if native else f"needs bands, which are not possible here: {error}")
        return
    outcome.runs_on(network.manifest, network.info)
    for job in jobs:
        assert isinstance(job.source, Path)
        with outcome.attempt(job.source):
            entry, damages = _segment(job, mask_place(job), network, request, native, outcome.output)
            for damage in damages:
                outcome.fail(job.source, damage)
            outcome.image(entry)
            show_tiled(entry, outcome.output, network.labels)


def open_network(request: Request, threads: int | None) -> Network:
    """The model, prepared for bands. Raises: EvitsegError."""
    from evitseg.loading import engine_file
    from evitseg.tiling.network import Network

    return Network(engine_file(request.model) or str(request.model), request.precision, threads)


def mask_place(job: PredictJob) -> Path:
    """Path of the mask of an image in bands; without --out FILE, its format is that of the image."""
    from evitseg.raster import mask_ending

    assert isinstance(job.source, Path)
    return job.mask(mask_ending(job.source))


def _segment(
    job: PredictJob, place: Path, network: Network, request: Request, native: bool, output: Output
) -> tuple[ImageEntry, list[str]]:
    """Write one mask, or a region of it. Returns: its entry, and why parts of the image could not be read."""
    from evitseg.tiling.arguments import image_source
    from evitseg.tiling.memory_model import default_memory

    assert isinstance(job.source, Path)
    extra = [file for file in (request.polygons, request.save_context) if file is not None]
    overlay = overlay_place(job, request)
    check_free([place, *extra, *([overlay] if overlay else [])], request, job.source)
    scratch = request.scratch or place.parent
    for folder in (scratch, place.parent):
        with contextlib.suppress(OSError):  # reported where the folder is used
            folder.mkdir(parents=True, exist_ok=True)
    reading = request.reading or network.manifest.reading
    memory = default_memory() if request.memory is None else request.memory
    with image_source(job.source, scratch, memory, reading) as (source, _):
        entry = ImageEntry(str(job.source), job.mode.value, str(place), source.size)
        if overlay is not None and request.overlay:
            check_overlay(source, overlay, request, memory)
        if job.mode is Mode.region:
            damages = _region(source, place, network, request, entry)
        elif job.mode is Mode.sliding_window:
            damages = _sliding_window(source, place, network, request, entry, output)
        else:
            damages = _exactly(source, place, network, request, native, entry, output)
        if request.verify or overlay is not None:
            network.used_bytes = None  # they need memory, too
        if request.verify:
            _verify(source, network, scratch, entry)
        if overlay is not None:
            drawn = source if request.region is None else _cropped(source, request.region)
            draw_overlay(drawn, overlay, network.labels, request, entry, output, memory)
    write_outlines(place, request, network.labels, entry, output)
    return entry, damages


def _region(source: Source, place: Path, network: Network, request: Request, entry: ImageEntry) -> list[str]:
    from evitseg.raster import open_mask_writer, part_of
    from evitseg.tiling.context import Context
    from evitseg.tiling.plan import working_size
    from evitseg.tiling.region import render_region
    from evitseg.tiling.windows import tiles_of
    from evitseg.visualize import class_counts

    region = request.region
    assert request.context is not None
    assert region is not None
    context = Context.load(request.context, network)
    if request.size is not None and working_size(source.size, network.manifest, request.size) != context.working:
        height, width = context.working
        raise ConfigError(
            f"{request.context}: was made at {width}×{height} pixels, not with --size {request.size}; leave --size out."
        )
    mask, unread = render_region(network, source, context, region, memory=request.memory)
    part = part_of(source, region.top, region.left, region.height, region.width)
    with open_mask_writer(place, part, network.labels, request.mask_format) as sink:
        for window in tiles_of((mask.shape[0], mask.shape[1]), sink.tile):
            sink.write(window.top, window.left, mask[window.top : window.bottom, window.left : window.right])
    entry.size = part.size
    record_fractions(class_counts(mask, network.labels.ignore_index + 1), network.labels, entry)
    return [damage.reason for damage in unread]


def _cropped(source: Source, region: Window) -> Source:
    from evitseg.raster import part_of
    from evitseg.raster.window import Cropped

    part = part_of(source, region.top, region.left, region.height, region.width)
    return Cropped(source, region.top, region.left, part.size, part.origin)


def _sliding_window(
    source: Source, place: Path, network: Network, request: Request, entry: ImageEntry, output: Output
) -> list[str]:
    from evitseg.raster import open_mask_writer
    from evitseg.tiling.sliding_window import sliding_window

    assert request.sliding_window is not None
    size = request.size or "native"
    with output.progress("segmenting", None, unit="windows") as advance:
        try:
            with open_mask_writer(place, source, network.labels, request.mask_format) as sink:
                blended = sliding_window(
                    network,
                    source,
                    sink,
                    request.sliding_window,
                    size=size,
                    memory=request.memory,
                    watch=lambda progress: advance(1),
                )
        except KeyboardInterrupt:
            raise Interrupted(f"interrupted; {place} was not written. The same command starts over.") from None
    record_fractions(blended.counts, network.labels, entry)
    return [damage.reason for damage in blended.damages]


def _exactly(
    source: Source,
    place: Path,
    network: Network,
    request: Request,
    native: bool,
    entry: ImageEntry,
    output: Output,
) -> list[str]:
    from evitseg.image import MAX_PIXELS
    from evitseg.tiling.progress import Watcher
    from evitseg.tiling.stream import segment_large

    native = native or source.size[0] * source.size[1] > MAX_PIXELS
    size: Size = request.size or ("native" if native else None)
    with followed(entry, network, output) as follower:
        try:
            streamed = segment_large(
                network,
                source,
                place,  # not a writer: features that do not fit in memory go next to the mask
                scratch=request.scratch,
                size=size,
                memory=request.memory,
                context_window=request.context_window,
                watch=Watcher(follower.begin, follower.progress),
                mask_format=request.mask_format,
            )
        except KeyboardInterrupt:
            raise Interrupted(interrupted(follower, place)) from None
    save_context(streamed, network.labels, request, entry)
    entry.resumed_bands = streamed.resumed
    return [damage.reason for damage in streamed.damages]


def _verify(source: Source, network: Network, scratch: Path, entry: ImageEntry) -> None:
    from evitseg.tiling.verify import verify_bands

    found = verify_bands(network, source, scratch=scratch)
    entry.verification = {"identical": found.identical, "different_pixels": found.different_pixels}
    if not found.identical:
        raise EngineError(
            f"bands and the whole image disagree in {found.different_logits:,} logits and {found.different_pixels:,} "
            "pixels; please report this as a bug, with the output of evitseg info."
        )
