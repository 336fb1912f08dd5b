"""From a request to jobs, one per input, and from jobs to results; one machine and Ray run the same jobs."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import click

from evitseg.cli.inputs import find_inputs
from evitseg.cli.names import check_places, name_of_part, name_outputs
from evitseg.cli.options import pinned_model
from evitseg.cli.outcome import HAS_RESULTS, Outcome
from evitseg.cli.output import Output
from evitseg.cli.request import CHOSEN_BY, MASK_ENDINGS, ONE_IMAGE, VIDEO_ENDINGS, Mode, Request, check_used
from evitseg.errors import ConfigError, FileError
from evitseg.system.files import is_file, is_there


@dataclass(frozen=True)
class PredictJob:
    """One input and where its results go.

    Attributes:
        source: the file of an image or a video; a string names a camera or a stream.
        stem: folder and beginning of the names of its results; no two jobs share it.
        file: the name of its mask or its video, if --out gave one.
        place: path of the source relative to the folder it was found in.
    """

    source: Path | str
    mode: Mode
    stem: Path
    file: Path | None = None
    place: Path = Path()

    def mask(self, ending: str) -> Path:
        """Path of the mask."""
        return self.file or self.stem.with_name(f"{self.stem.name}_mask{ending}")

    def overlay(self, ending: str) -> Path:
        return self.stem.with_name(f"{self.stem.name}_overlay{ending}")

    @property
    def masks(self) -> list[Path]:
        """Paths that the mask may have."""
        return [self.file] if self.file else [self.mask(ending) for ending in MASK_ENDINGS]

    @property
    def overlays(self) -> list[Path]:
        return [self.overlay(ending) for ending in (".jpg", ".png", ".tif")]

    def videos(self, kind: str) -> list[Path]:
        """Paths that a result of a video may have."""
        if self.file:
            return [self.file]
        endings = {"overlay": VIDEO_ENDINGS, "mask": (".mov",), "frames": ("",)}[kind]
        return [self.stem.with_name(f"{self.stem.name}_{kind}{ending}") for ending in endings]

    def results(self, request: Request) -> list[list[Path]]:
        """For each of its results, the paths that it may have."""
        if self.mode is Mode.video:
            return [self.videos(kind) for kind in request.kinds]
        is_pyramid = request.overlay and self.mode is not Mode.whole
        overlays = [self.overlay(".tif")] if is_pyramid else self.overlays
        further = [[path] for path in (request.polygons, request.save_context) if path is not None]
        return [self.masks, *([overlays] if request.draws else []), *further]

    def is_done(self, request: Request) -> bool:
        return all(any(map(is_there, names)) for names in self.results(request))


def run(request: Request, output: Output, names: dict[str, str] | None = None) -> None:
    """Segment what a request names: make the jobs, then call one function per mode.

    Args:
        names: how messages name inputs that are temporary files.
    """
    if request.polygons is not None:  # before the work
        from evitseg.raster.vector_files import writer_for

        writer_for(request.polygons)
    outcome = Outcome(output, names)
    everything = plan(request, outcome)
    check_places(everything, request)
    jobs = _left(everything, request, outcome)
    outcome.report_skipped()
    if request.annotations is not None:
        from evitseg.cli.predict_annotations import check_annotations

        check_annotations(everything, request)
    if jobs:
        request = replace(request, model=pinned_model(request.model, output))
        outcome.comes_from(request.model)
    by_mode = {mode: [job for job in jobs if job.mode is mode] for mode in Mode}
    if by_mode[Mode.whole] or by_mode[Mode.video]:
        from evitseg.cli.predict_whole import predict_whole

        predict_whole(by_mode[Mode.whole], by_mode[Mode.video], request, outcome)
    for mode in (Mode.bands, Mode.sliding_window, Mode.region):
        if by_mode[mode]:
            from evitseg.cli.predict_bands import predict_bands

            predict_bands(by_mode[mode], request, outcome)
    if by_mode[Mode.ray]:
        from evitseg.cli.predict_ray import predict_ray

        predict_ray(by_mode[Mode.ray], request, outcome)
    if request.annotations is not None:
        from evitseg.cli.predict_annotations import write_annotations

        write_annotations(everything, request, outcome)
    outcome.finish()


def plan(request: Request, outcome: Outcome) -> list[PredictJob]:
    """The jobs of all inputs. Raises: BadParameter, FileError."""
    from evitseg.raster import SLIDE_ENDINGS
    from evitseg.raster.formats import EXTENSIONS
    from evitseg.video import check_address, is_stream, stream_name

    out, ending = request.out, request.out.suffix.lower()
    if not request.is_file:
        if ending in {*EXTENSIONS, *SLIDE_ENDINGS} - {*MASK_ENDINGS} and not is_there(out):
            raise FileError(
                f"{out}: masks cannot be written as {ending}; use .png, .tif, .ome.tif (a pyramid) or .zarr, or a "
                "folder."
            )
        if is_file(out):
            raise FileError(f"{out}: is a file, not a folder; choose another --out.")
    found = find_inputs([given for given in request.inputs if not is_stream(given)], out, outcome)
    sources: list[tuple[Path | str, Path]] = []
    for each in found:
        if _is_video(each.path) and request.method is not Mode.whole:
            if each.is_named:
                raise click.BadParameter(
                    f"{each.path} is a video, which {CHOSEN_BY[request.method]} does not support", param_hint="INPUT"
                )
            outcome.skip(each.path, f"{CHOSEN_BY[request.method]} does not support videos")
            continue
        sources.append((each.path, each.place))
    for given in request.inputs:
        if not is_stream(given):
            continue
        if request.method is not Mode.whole:
            raise click.BadParameter(f"{given} is a live source, not an image", param_hint="INPUT")
        try:
            check_address(given)
        except ConfigError as error:
            raise click.BadParameter(str(error), param_hint="INPUT") from None
        # .live, because name_outputs removes the suffix.
        sources.append((given, Path(f"{stream_name(given)}.live")))
    places = dict(sources)
    jobs = [
        PredictJob(
            source,
            Mode.video if isinstance(source, str) or _is_video(source) else request.method,
            _stem_of(out) if request.is_file else name_of_part(stem, request),
            out if request.is_file else None,
            places[source],
        )
        for source, stem in name_outputs(sources, out)
    ]
    _check(jobs, request)
    return jobs


def _left(jobs: list[PredictJob], request: Request, outcome: Outcome) -> list[PredictJob]:
    """The jobs that remain to be done."""
    left = []
    for job in jobs:
        if request.skip_existing and job.is_done(request):
            outcome.skip(job.source, HAS_RESULTS)
        else:
            left.append(job)
    return left


def _is_video(path: Path) -> bool:
    from evitseg.video import is_video

    try:
        return is_video(path)
    except OSError:  # reported when it is read
        return False


def _stem_of(file: Path) -> Path:
    """Beginning of the names of results next to the file of a mask."""
    name = file.with_suffix("").name
    return file.with_name(name.removesuffix(".ome").removesuffix("_mask") or name)


def _check(jobs: list[PredictJob], request: Request) -> None:
    """Raises: BadParameter for options that do not fit the jobs."""
    one = [option for option in ONE_IMAGE if option in request.given]
    if len(jobs) > 1 and (request.is_file or one):
        raise click.BadParameter("give one image, or a folder as --out", param_hint="INPUT")
    if jobs:
        check_used(request.given, frozenset(job.mode for job in jobs))
    if request.overlay is False and "overlay" in request.videos:
        raise click.BadParameter(
            "cannot be combined with --video overlay; leave one of them out", param_hint="--no-overlay"
        )
    only_videos = bool(jobs) and all(job.mode is Mode.video for job in jobs)
    if request.overlay and only_videos and "overlay" not in request.kinds:
        raise click.BadParameter("requires --video overlay", param_hint="--overlay")
    for job in jobs:
        if job.file is None:
            continue
        ending = job.file.suffix.lower()
        if job.mode is not Mode.video and ending not in MASK_ENDINGS:
            raise click.BadParameter(
                f"{job.source} is an image, whose mask cannot be written as {ending}; use .png, .tif or .zarr",
                param_hint="--out",
            )
        if job.mode is Mode.video:
            _check_video_file(job, request, ending)


def _check_video_file(job: PredictJob, request: Request, ending: str) -> None:
    if ending not in VIDEO_ENDINGS:
        raise click.BadParameter(
            f"{job.source} is a video, which cannot be written as {ending}; use .mp4, .mov or .mkv, or a folder",
            param_hint="--out",
        )
    if len(request.kinds) > 1 or "frames" in request.kinds:
        raise click.BadParameter(
            f"--video {' and '.join(request.kinds)} writes several files; give a folder", param_hint="--out"
        )
    if request.kinds == ("mask",) and ending != ".mov":
        raise click.BadParameter("a video of masks must end in .mov", param_hint="--out")
