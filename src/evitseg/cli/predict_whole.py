"""predict for images that go through the network whole, several at a time, and what does not fit."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from evitseg.cli.console import note, progress_bar, sentence_of, tell_fractions
from evitseg.cli.jobs import Job, check_free
from evitseg.cli.outcome import DONE, Outcome
from evitseg.cli.request import Mode, Request
from evitseg.system.files import is_folder

if TYPE_CHECKING:
    from evitseg.labels import LabelSpace
    from evitseg.raster import Origin
    from evitseg.raster.masks import MaskFormat
    from evitseg.runtime.segmenter import Prediction, Segmenter

MAX_STREAMS = 4
"""Images that go through the network at the same time; each has features of its own in memory."""


@dataclass(frozen=True)
class Done:
    """An image whose results are written, or why they are not."""

    source: Path
    written: list[Path] = field(default_factory=list)
    size: tuple[int, int] = (0, 0)
    fractions: dict[str, float] = field(default_factory=dict)
    problem: str = ""
    too_large: str = ""


def fits(segment: Segmenter, size: tuple[int, int], memory: int | None, at_once: int = 1) -> bool:
    """Whether an image of this (height, width) can go through whole. Raises: ConfigError.

    Another engine than OpenVINO, or a network for one size, has no tiles: there every image is tried whole.

    Args:
        memory: bytes for one image; None to judge by what is free, which the images that are `at_once` in hand share.
    """
    from evitseg.tiling.memory import fits as fits_whole

    working = segment.manifest.preprocess.fit(size, segment.size)
    return not has_tiles(segment) or fits_whole(segment.manifest.model, size, working, memory, at_once)


def has_tiles(segment: Segmenter) -> bool:
    return segment.info.engine == "OpenVINO" and segment.manifest.preprocess.fixed is None


def predict_whole(images: list[Job], videos: list[Job], request: Request, outcome: Outcome) -> None:
    """Images and videos through one segmenter; images that do not fit go in tiles afterwards."""
    from evitseg.loading import load
    from evitseg.system.machine import physical_cores

    # A live source wants its newest frame soon, not many frames.
    is_live = any(isinstance(job.source, str) for job in videos)
    at_once = 1 if is_live else min(request.threads or physical_cores(), MAX_STREAMS)
    if not videos:
        # Counted with those that are done already: a resumed run cuts the threads into as many streams as one that was
        # never stopped, since the number of threads per stream changes the last bits of a logit.
        at_once = min(at_once, max(1, len(images) + outcome.skipped(DONE)))
    segment = load(
        request.model,
        engine=request.engine,
        threads=request.threads,
        precision=request.precision,  # type: ignore[arg-type]  # one of them
        size=request.size,
        streams=at_once,
        reading=request.reading,
    )
    outcome.about = {"model": segment.manifest.name, "runs": str(segment.info)}
    for option in ("--memory", "--scratch"):
        if option in request.given and images and not has_tiles(segment):
            raise typer.BadParameter(
                "is for tiles, which run in openvino and with a model for images of any size; leave it out",
                param_hint=option,
            )
    if not request.as_json:
        from rich.console import Console
        from rich.text import Text

        Console(highlight=False).print(Text(f"{segment.manifest.name}: {segment.info}", style="dim"))
    in_tiles: list[Job] = []
    try:
        if images:
            in_tiles = _predict_images(segment, images, request, outcome)
    except KeyboardInterrupt:
        how = "; the same command with --skip-existing goes on" * (len(images) > 1)
        raise KeyboardInterrupt(f"interrupted{how}.") from None
    if videos:
        from evitseg.cli.predict_video import predict_videos

        predict_videos(segment, videos, request, outcome)
    if in_tiles:
        from evitseg.cli.predict_tiles import predict_tiles

        predict_tiles(in_tiles, request, outcome, native=False)


def _predict_images(segment: Segmenter, jobs: list[Job], request: Request, outcome: Outcome) -> list[Job]:
    """Write every image's results, several at a time. Returns: the jobs of images that do not fit, for tiles."""
    from rich.console import Console
    from rich.text import Text

    from evitseg.system.parallel import overlapped

    console = Console(stderr=request.as_json, highlight=False)
    in_tiles: list[Job] = []
    count = 0
    # One more than the engine runs at a time: while it has the cores, another image is read or written.
    workers = segment.info.streams + 1 if len(jobs) > 1 else 1
    with progress_bar("segmenting", len(jobs), console, unit="images") as advance:
        finished = overlapped(jobs, lambda job: predict_one(segment, job, request, workers), workers)
        for job, done in zip(jobs, finished, strict=True):
            advance(1)
            if done.too_large and request.overlay:
                outcome.fail(
                    job.source, f"{done.too_large}, so it goes in tiles, without an overlay; add --no-overlay."
                )
            elif done.too_large and segment.info.engine != "OpenVINO":
                outcome.fail(
                    job.source,
                    f"{done.too_large}, so it goes in tiles, which run in openvino, not in {segment.info.engine}; "
                    "leave out --engine, or give another model.",
                )
            elif done.too_large:
                if request.draws:
                    note(f"{job.source}: {done.too_large}; it goes in tiles and gets no overlay.", request.as_json)
                in_tiles.append(replace(job, mode=Mode.exact))
            elif done.problem:
                outcome.fail(job.source, done.problem)
            else:
                count += 1
                outcome.image(_told(done, request))
                if not request.as_json:
                    _tell(console, done, segment.labels, in_full=len(jobs) == 1)
    if len(jobs) > 1 and count and not request.as_json:
        what = "masks and overlays" if request.draws else "masks"
        console.print(Text(f"wrote {what} of {count} images to {request.out}"))
    return in_tiles


def predict_one(segment: Segmenter, job: Job, request: Request, at_once: int | None = None) -> Done:
    """Write one image's results, the mask last: if it is there, all are. What does not fit stays as it is.

    Args:
        at_once: images in hand at the same time; None where every image is to go through whole.
    """
    import numpy as np

    from evitseg.raster.places import place_of

    assert isinstance(job.source, Path)
    try:
        if at_once is not None and (too_large := _too_large(segment, job.source, request.memory, at_once)):
            return Done(job.source, too_large=too_large)
        place = place_of(job.source, segment.reading)
        mask_path = job.mask(".tif" if place.origin.kind == "tiff" else ".png")
        extra = [request.polygons] if request.polygons is not None else []
        check_free([mask_path, *(job.overlays if request.draws else []), *extra], request, job.source)
        prediction = segment(job.source)
        if place.valid is not None:
            mask = np.where(place.valid, prediction.mask, prediction.mask.dtype.type(prediction.labels.ignore_index))
            prediction = replace(prediction, mask=mask)
        written = _write(prediction, job, mask_path, place.origin, request)
    except Exception as error:  # one image must never stop the others
        return Done(job.source, problem=sentence_of(error))
    return Done(job.source, written, prediction.mask.shape, prediction.fractions())


def _too_large(segment: Segmenter, path: Path, memory: int | None, at_once: int) -> str:
    """Why an image cannot go through whole, or "". Raises: ImageError, ConfigError."""
    from evitseg.image import TooManyPixelsError
    from evitseg.raster import SLIDE_ENDINGS
    from evitseg.raster.files import image_size

    if is_folder(path) or path.suffix.lower() in SLIDE_ENDINGS:
        return f"{'Zarr' if is_folder(path) else 'a slide'} is read window by window"
    try:
        size = image_size(path, segment.reading)
    except TooManyPixelsError:
        return "more pixels than are read at once"
    return "" if fits(segment, size, memory, at_once) else "does not fit in memory whole"


def _write(prediction: Prediction, job: Job, mask_path: Path, origin: Origin, request: Request) -> list[Path]:
    from evitseg.raster.files import MAX_JPEG_SIDE, save_image

    written = [mask_path]
    if request.draws:
        drawn = prediction.overlay(request.legend is not False)
        written.append(job.overlay(".jpg" if max(drawn.size) <= MAX_JPEG_SIDE else ".png"))
        save_image(drawn, written[-1])
    write_mask(prediction, mask_path, origin, request.mask_format)
    if request.polygons is not None:
        from evitseg.cli.polygons import write_polygons

        # A PNG has no place for the names of its classes.
        labels = prediction.labels if mask_path.suffix.lower() == ".png" else None
        write_polygons(mask_path, request.polygons, labels, quiet=request.as_json)
        written.append(request.polygons)
    return written


def write_mask(prediction: Prediction, path: Path, origin: Origin, mask_format: MaskFormat) -> None:
    """A mask in memory, in the format that its name's ending says."""
    from evitseg.raster import Part, open_sink
    from evitseg.tiling.windows import tiles_of

    if path.suffix.lower() == ".png" and origin.georeference is None:
        prediction.save(path, mask_format)
        return
    mask = prediction.mask
    size = (mask.shape[0], mask.shape[1])
    with open_sink(path, Part(size, origin), prediction.labels, mask_format) as sink:
        for window in tiles_of(size, sink.tile):
            sink.write(window.top, window.left, mask[window.top : window.bottom, window.left : window.right])


def _told(done: Done, request: Request) -> dict[str, Any]:
    mask, *others = done.written
    result: dict[str, Any] = {"image": str(done.source), "mask": str(mask), "size": done.size}
    result["fractions"] = done.fractions
    if request.draws:
        result["overlay"] = str(others[0])
    return result | ({"polygons": str(request.polygons)} if request.polygons else {})


def _tell(console: Any, done: Done, labels: LabelSpace, in_full: bool) -> None:
    from rich.text import Text

    if not in_full:
        shares = ", ".join(f"{name} {share:.0%}" for name, share in list(done.fractions.items())[:4])
        console.print(Text(f"{done.source}: {shares}"), soft_wrap=True)
        return
    height, width = done.size
    tell_fractions(console, f"{done.source.name}, {width}×{height}", done.fractions, labels)
    for path in done.written:
        console.print(Text(f"wrote {path}"), soft_wrap=True)
