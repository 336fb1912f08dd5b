"""predict for images that the network sees whole, several at a time; images that do not fit in memory go in bands."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from evitseg.cli.failures import Interrupted, sentence_of
from evitseg.cli.jobs import PredictJob
from evitseg.cli.names import check_free
from evitseg.cli.outcome import HAS_RESULTS, ImageEntry, Outcome
from evitseg.cli.output import Output
from evitseg.cli.polygons_command import write_polygons
from evitseg.cli.request import Mode, Request
from evitseg.cli.whole_images import WholeImages, engine_of_bands, read_ahead, workers_of

if TYPE_CHECKING:
    from evitseg.labels import LabelSpace
    from evitseg.raster import Origin
    from evitseg.raster.png import MaskFormat
    from evitseg.runtime.segmenter import Prediction, Segmenter

MAX_STREAMS = 4
"""Images that the network segments at the same time; each needs memory for its own features."""


@dataclass(frozen=True)
class WrittenImage:
    """An image whose results are written, or the reason why they are not.

    Attributes:
        problem: the error; empty if there was none.
        too_large: why the image must go in bands; empty if it need not.
    """

    source: Path
    written: dict[str, Path] = field(default_factory=dict)
    size: tuple[int, int] = (0, 0)
    fractions: dict[str, float] = field(default_factory=dict)
    nodata: float = 0.0
    problem: str = ""
    too_large: str = ""


def predict_whole(images: list[PredictJob], videos: list[PredictJob], request: Request, outcome: Outcome) -> None:
    """Segment images and videos with one segmenter; images that do not fit go in bands afterwards."""
    from evitseg.loading import load
    from evitseg.system.machine import physical_cores

    # A live source needs its newest frame soon, not many frames.
    is_live = any(isinstance(job.source, str) for job in videos)
    at_once = 1 if is_live else min(request.threads or physical_cores(), MAX_STREAMS)
    if not videos:
        # Finished inputs count, so that a resumed run uses as many streams as an uninterrupted one: the number of
        # threads per stream changes the last bits of the logits.
        at_once = min(at_once, max(1, len(images) + outcome.skipped(HAS_RESULTS)))
    segment = load(
        request.model,
        engine=request.engine,
        device=request.device,
        threads=request.threads,
        precision=request.precision,
        size=request.size,
        streams=at_once,
        reading=request.reading,
    )
    outcome.runs_on(segment.manifest, segment.info)
    for option in ("--memory", "--scratch"):
        if option in request.given and images and engine_of_bands(segment) is None:
            raise click.BadParameter(
                "applies to bands, which need the native engine and a model for images of any size; leave it out",
                param_hint=option,
            )
    outcome.output.result(f"{segment.manifest.name}: {segment.info}", style="dim")
    in_bands: list[PredictJob] = []
    try:
        if images:
            in_bands = _predict_images(segment, images, request, outcome)
    except KeyboardInterrupt:
        how = "; to resume, run the same command with --skip-existing" * (len(images) > 1)
        raise Interrupted(f"interrupted{how}.") from None
    if videos:
        from evitseg.cli.predict_video import predict_videos

        predict_videos(segment, videos, request, outcome)
    if in_bands:
        from evitseg.cli.predict_bands import predict_bands

        predict_bands(in_bands, request, outcome, native=False)


def _predict_images(segment: Segmenter, jobs: list[PredictJob], request: Request, outcome: Outcome) -> list[PredictJob]:
    """Write the results of every image, several at a time. Returns: the jobs of images that must go in bands."""
    from evitseg.system.parallel import ordered_map

    output = outcome.output
    in_bands: list[PredictJob] = []
    count = 0
    workers = workers_of(segment) if len(jobs) > 1 else 1
    whole = WholeImages(segment, request.memory, workers)
    with output.progress("segmenting", len(jobs), unit="images") as advance:
        finished = ordered_map(read_ahead(jobs), lambda job: predict_one(segment, job, request, whole), workers)
        for job, done in zip(jobs, finished, strict=True):
            advance(1)
            if done.too_large and engine_of_bands(segment) is None:
                outcome.fail(
                    job.source,
                    f"{done.too_large}, and bands need the native engine and a model for images of any size; leave "
                    "--engine out, or use another model.",
                )
            elif done.too_large:
                output.note(f"{outcome.name(job.source)}: {done.too_large}; using bands.")
                in_bands.append(replace(job, mode=Mode.bands))
            elif done.problem:
                outcome.fail(job.source, done.problem)
            else:
                count += 1
                outcome.image(_entry(done))
                _show(done, outcome, segment.labels, in_full=len(jobs) == 1)
    if len(jobs) > 1 and count:
        what = "masks and overlays" if request.draws else "masks"
        output.result(f"wrote {what} of {count} image{'s' * (count != 1)} to {request.out}")
    return in_bands


def predict_one(segment: Segmenter, job: PredictJob, request: Request, whole: WholeImages) -> WrittenImage:
    """Write the results of one image, the mask last, so that a mask means that all results exist."""
    import numpy as np

    from evitseg.raster.places import place_of
    from evitseg.visualize import class_counts, fractions_of

    assert isinstance(job.source, Path)
    try:
        if too_large := whole.too_large(job.source):
            return WrittenImage(job.source, too_large=too_large)
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
        return WrittenImage(job.source, problem=sentence_of(error))
    mask, labels = prediction.mask, prediction.labels
    counts = class_counts(mask, len(labels.classes))
    nodata = 1 - int(counts.sum()) / mask.size
    return WrittenImage(job.source, written, mask.shape, fractions_of(counts, mask.size, labels), nodata)


def _write(
    prediction: Prediction, job: PredictJob, mask_path: Path, origin: Origin, request: Request
) -> dict[str, Path]:
    """Write an image's results. Returns: their paths, by kind."""
    from evitseg.raster.files import MAX_JPEG_SIDE, save_image

    written = {"mask": mask_path}
    if request.draws:
        drawn = prediction.overlay(request.legend is not False)
        written["overlay"] = job.overlay(".jpg" if max(drawn.size) <= MAX_JPEG_SIDE else ".png")
        save_image(drawn, written["overlay"])
    write_mask(prediction, mask_path, origin, request.mask_format)
    if request.polygons is not None:
        # A PNG cannot hold the names of its classes.
        labels = prediction.labels if mask_path.suffix.lower() == ".png" else None
        write_polygons(mask_path, request.polygons, labels, Output(quiet=True), limits=request.limits)
        written["polygons"] = request.polygons
    return written


def write_mask(prediction: Prediction, path: Path, origin: Origin, mask_format: MaskFormat) -> None:
    """Write a mask that is in memory, in the format of the path's ending."""
    from evitseg.raster import Part, open_mask_writer
    from evitseg.raster.places import companions_of_png
    from evitseg.tiling.windows import tiles_of

    if path.suffix.lower() == ".png" and origin.georeference is None:
        for stale in companions_of_png(path):  # of a georeferenced mask that this one replaces
            stale.unlink(missing_ok=True)
        prediction.save(path, mask_format)
        return
    mask = prediction.mask
    size = (mask.shape[0], mask.shape[1])
    with open_mask_writer(path, Part(size, origin), prediction.labels, mask_format) as sink:
        for window in tiles_of(size, sink.tile):
            sink.write(window.top, window.left, mask[window.top : window.bottom, window.left : window.right])


def _entry(done: WrittenImage) -> ImageEntry:
    paths = {kind: str(path) for kind, path in done.written.items()}
    entry = ImageEntry(str(done.source), Mode.whole.value, paths["mask"], done.size, done.fractions, done.nodata)
    entry.overlay, entry.polygons = paths.get("overlay"), paths.get("polygons")
    return entry


def _show(done: WrittenImage, outcome: Outcome, labels: LabelSpace, in_full: bool) -> None:
    output, name = outcome.output, outcome.name(done.source)
    if not in_full:
        fractions = ", ".join(f"{label} {fraction:.0%}" for label, fraction in list(done.fractions.items())[:4])
        output.result(f"{name}: {fractions}")
        return
    height, width = done.size
    output.fractions(f"{Path(name).name}, {width}×{height}", done.fractions, labels, done.nodata)
    for path in done.written.values():
        output.result(f"wrote {outcome.name(path)}")
