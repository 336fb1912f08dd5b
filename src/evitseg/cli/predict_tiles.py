"""predict for images in tiles, in sliding windows, and for regions from a context."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evitseg.cli.console import complain, progress_bar, tell_fractions
from evitseg.cli.jobs import Job, check_free
from evitseg.cli.outcome import Outcome
from evitseg.cli.polygons import write_polygons
from evitseg.cli.request import Mode, Request
from evitseg.errors import ConfigError, EvitsegError

if TYPE_CHECKING:
    from evitseg.image import ReadOptions, Size
    from evitseg.labels import LabelSpace
    from evitseg.tiling.network import Network
    from evitseg.tiling.sliding_window import Blended
    from evitseg.tiling.stream import Streamed
    from evitseg.tiling.windows import Source


def predict_tiles(jobs: list[Job], request: Request, outcome: Outcome, native: bool = True) -> None:
    """Write the masks of images in tiles and bounded memory.

    Args:
        native: at the image's own size, if no other is given; else by the model's rule.
    """
    from rich.console import Console
    from rich.text import Text

    console = Console(stderr=request.as_json, highlight=False)
    try:
        network = open_network(request, request.threads)
    except EvitsegError as error:
        for job in jobs:
            outcome.fail(job.source, error if native else f"goes through in tiles only, and cannot: {error}")
        return
    outcome.about = {"model": network.manifest.name, "runs": str(network.info)} | outcome.about
    for job in jobs:
        assert isinstance(job.source, Path)
        with outcome.attempt(job.source):
            place = mask_place(job)
            result, damages = _segment(job.source, place, network, request, native, job.mode)
            for damage in damages:
                outcome.fail(job.source, damage)
            outcome.image(result)
            if request.as_json:
                continue
            height, width = result["size"]
            if "fractions" in result:
                how = "in tiles" if job.mode is Mode.exact else "in blended windows"
                tell_fractions(
                    console, f"{job.source.name}, {width}×{height}, {how}", result["fractions"], network.labels
                )
            console.print(Text(f"wrote {place}"), soft_wrap=True)
            if "verified" in result:
                print(
                    f"tiles and whole: logits differ by {result['verified']['logit difference']:.1e} of the largest, "
                    f"{result['verified']['pixels that differ']} pixels of the mask differ"
                )


def open_network(request: Request, threads: int | None) -> Network:
    """The model, ready for tiles. Raises: EvitsegError."""
    from evitseg.bundled import DEFAULT_MODEL, bundled_models
    from evitseg.tiling.network import Network

    name = request.model or DEFAULT_MODEL
    return Network(bundled_models().get(name, Path(name)), request.precision, threads)  # type: ignore[arg-type]


def mask_place(job: Job) -> Path:
    """Where the mask of an image that goes in tiles is written: of the image's kind, if no name is given."""
    from evitseg.raster import mask_ending

    assert isinstance(job.source, Path)
    return job.mask(mask_ending(job.source))


def fractions_of(counted: Streamed | Blended, labels: LabelSpace) -> dict[str, float]:
    """Share of the pixels of every class that occurs; those without data count among the pixels."""
    counts = counted.counts[: len(labels.names)].tolist()
    total = int(counted.counts.sum())
    return {name: count / total for name, count in zip(labels.names, counts, strict=True) if count}


@contextlib.contextmanager
def windows_of(path: Path, scratch: Path | None, memory: int, reading: ReadOptions) -> Iterator[tuple[Source, bool]]:
    """An image file for work in tiles, and whether it is read from the file, window by window."""
    from evitseg.image import TooManyPixelsError
    from evitseg.raster import open_source
    from evitseg.raster.files import image_size, read_image
    from evitseg.raster.formats import format_of
    from evitseg.raster.places import place_of
    from evitseg.raster.window import identity_of
    from evitseg.tiling.windows import ArraySource

    kind = None
    if path.is_file():
        with path.open("rb") as file:
            kind = format_of(file.read(64))
    if kind is not None and kind.gdal != "GTiff":
        # What is decoded from its beginning anyway needs no copy on disk where there is room for it.
        with contextlib.suppress(TooManyPixelsError):
            height, width = image_size(path, reading)
            if 8 * height * width <= memory // 4 or not kind.gdal:
                image = read_image(path, reading)
                yield ArraySource(image, None, identity_of(path.absolute()), place_of(path, reading).origin), False
                return
    with open_source(path, scratch, reading) as source:
        yield source, True


def outline(place: Path, request: Request, labels: LabelSpace, result: dict[str, Any], source: Path) -> None:
    """Polygons of a mask that is written, if they were asked for."""
    if request.polygons is not None:
        check_free([request.polygons], request, source)
        # A PNG has no place for the names of its classes.
        write_polygons(
            place, request.polygons, labels if place.suffix.lower() == ".png" else None, quiet=request.as_json
        )
        result["polygons"] = str(request.polygons)


def _segment(
    path: Path, place: Path, network: Network, request: Request, native: bool, mode: Mode
) -> tuple[dict[str, Any], list[str]]:
    """One mask, or a region of it. Returns: what --json tells, and what of the image could not be read."""
    from evitseg.tiling.memory import default_memory

    extra = [file for file in (request.polygons, request.save_context) if file is not None]
    check_free([place, *extra], request, path)
    scratch = request.scratch or place.parent
    for folder in (scratch, place.parent):
        with contextlib.suppress(OSError):  # told where it is used
            folder.mkdir(parents=True, exist_ok=True)
    reading = request.reading or network.manifest.reading
    memory = default_memory() if request.memory is None else request.memory
    with windows_of(path, scratch, memory, reading) as (source, _):
        result: dict[str, Any] = {"image": str(path), "mask": str(place), "size": source.size}
        if mode is Mode.region:
            damages = _region(source, place, network, request, result)
        elif mode is Mode.blend:
            damages = _blend(source, place, network, request, result)
        else:
            damages = _exactly(source, place, network, request, native, result)
        if request.verify:
            _verify(source, network, request, scratch, result)
    outline(place, request, network.labels, result, path)
    return result, damages


def _region(source: Source, place: Path, network: Network, request: Request, result: dict[str, Any]) -> list[str]:
    from evitseg.raster import open_sink, part_of
    from evitseg.tiling.context import Context
    from evitseg.tiling.plan import working_size
    from evitseg.tiling.region import render
    from evitseg.tiling.windows import tiles_of

    region = request.region
    assert request.context is not None
    assert region is not None
    context = Context.load(request.context, network)
    if request.size is not None and working_size(source.size, network.manifest, request.size) != context.working:
        height, width = context.working
        raise ConfigError(
            f"{request.context}: was made with {width}×{height} pixels for the network, not with --size "
            f"{request.size}; leave --size out."
        )
    mask, unread = render(source, network, context, region, request.memory)
    part = part_of(source, region.top, region.left, region.height, region.width)
    with open_sink(place, part, network.labels, request.mask_format) as sink:
        for window in tiles_of((mask.shape[0], mask.shape[1]), sink.tile):
            sink.write(window.top, window.left, mask[window.top : window.bottom, window.left : window.right])
    result["size"] = part.size
    return [damage.reason for damage in unread]


def _blend(source: Source, place: Path, network: Network, request: Request, result: dict[str, Any]) -> list[str]:
    from rich.console import Console

    from evitseg.raster import open_sink
    from evitseg.tiling.sliding_window import blend
    from evitseg.tiling.stream import Progress

    assert request.blend is not None
    with progress_bar("segmenting", None, Console(stderr=True, highlight=False), unit="windows") as advance:

        def watch(progress: Progress) -> None:
            advance(1)

        try:
            with open_sink(place, source, network.labels, request.mask_format) as sink:
                blended = blend(
                    source,
                    sink,
                    network,
                    request.blend,
                    size=request.size or "native",
                    memory=request.memory,
                    watch=watch,
                )
        except KeyboardInterrupt:
            raise KeyboardInterrupt(
                f"interrupted; nothing of {place} is kept, and the same command begins it again."
            ) from None
    result["fractions"] = fractions_of(blended, network.labels)
    return [damage.reason for damage in blended.damages]


def _exactly(
    source: Source, place: Path, network: Network, request: Request, native: bool, result: dict[str, Any]
) -> list[str]:
    from rich.console import Console

    from evitseg.image import MAX_PIXELS
    from evitseg.raster import check_place, open_sink
    from evitseg.tiling.stream import Progress, segment_huge

    check_place(place, source)
    scratch = request.scratch or place.parent
    native = native or source.size[0] * source.size[1] > MAX_PIXELS
    size: Size = request.size or ("native" if native else None)
    with progress_bar("segmenting", None, Console(stderr=True, highlight=False), unit="tiles") as advance:

        def watch(progress: Progress) -> None:
            advance(1)  # called before the next image

        try:
            streamed = segment_huge(
                source,
                open_sink(place, source, network.labels, request.mask_format),
                network,
                scratch,
                size=size,
                memory=request.memory,
                context=request.context_window or "global",
                watch=watch,
            )
        except KeyboardInterrupt:
            where = Path(scratch).resolve()  # "." and a full stop would read like the parent
            complain(f"stopped before the end; the same command goes on, from hidden files in {where}.")
            raise
    keep(streamed, network.labels, request, result)
    if streamed.resumed:
        result["tiles done before"] = streamed.resumed
    return [damage.reason for damage in streamed.damages]


def keep(streamed: Streamed, labels: LabelSpace, request: Request, result: dict[str, Any]) -> None:
    """The mask's fractions, and the context, if it was asked for."""
    result["fractions"] = fractions_of(streamed, labels)
    if request.save_context is not None:
        streamed.context.save(request.save_context)
        result["context"] = str(request.save_context)


def _verify(source: Source, network: Network, request: Request, scratch: Path, result: dict[str, Any]) -> None:
    from evitseg.loading import load
    from evitseg.tiling.verify import verify

    whole = load(request.model, engine="openvino", threads=request.threads, precision=request.precision)  # type: ignore[arg-type]
    found = verify(source, network, whole, scratch)
    result["verified"] = {"logit difference": found.difference, "pixels that differ": found.pixels}
