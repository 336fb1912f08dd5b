"""From a request to jobs, one for each input, and from jobs to results; the same jobs on one machine and on Ray."""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import typer

from evitseg.cli.console import fail
from evitseg.cli.inputs import find_inputs
from evitseg.cli.outcome import DONE, Outcome
from evitseg.cli.request import DESCRIBED, MASK_ENDINGS, ONE_IMAGE, VIDEO_ENDINGS, Mode, Request, check_used
from evitseg.errors import ConfigError, FileError
from evitseg.system.files import is_file, is_there


@dataclass(frozen=True)
class Job:
    """One input and what becomes of it.

    Attributes:
        source: an image's or a video's file; a text is a camera's or a stream's name.
        stem: the beginning of its results' names, with their folder; two jobs never have the same.
        file: the name of its mask or its video, where the person gave one.
    """

    source: Path | str
    mode: Mode
    stem: Path
    file: Path | None = None

    def mask(self, ending: str) -> Path:
        """Where the mask goes."""
        return self.file or self.stem.with_name(f"{self.stem.name}_mask{ending}")

    def overlay(self, ending: str) -> Path:
        return self.stem.with_name(f"{self.stem.name}_overlay{ending}")

    @property
    def masks(self) -> list[Path]:
        """Names that the mask may have."""
        return [self.file] if self.file else [self.mask(ending) for ending in MASK_ENDINGS]

    @property
    def overlays(self) -> list[Path]:
        return [self.overlay(ending) for ending in (".jpg", ".png")]

    def videos(self, kind: str) -> list[Path]:
        """Names that a result of a video may have."""
        if self.file:
            return [self.file]
        endings = {"overlay": VIDEO_ENDINGS, "mask": (".mov",), "frames": ("",)}[kind]
        return [self.stem.with_name(f"{self.stem.name}_{kind}{ending}") for ending in endings]

    def results(self, request: Request) -> list[list[Path]]:
        """For each of its results the names that it may have."""
        if self.mode is Mode.video:
            return [self.videos(kind) for kind in request.kinds]
        return [self.masks, *([self.overlays] if self.mode is Mode.whole and request.draws else [])]

    def is_done(self, request: Request) -> bool:
        wanted = self.results(request)
        # Where a mask is of a kind that is written in tiles, there was no overlay.
        if request.overlay is None and self.mode is Mode.whole and not self.file:
            wanted = wanted[:1] if any(map(is_there, self.masks[1:])) else wanted
        return all(any(map(is_there, names)) for names in wanted)


def run(request: Request) -> None:
    """predict: jobs, then one function for each mode."""
    outcome = Outcome(request.as_json)
    jobs = plan(request, outcome)
    outcome.tell_skipped()
    by_mode = {mode: [job for job in jobs if job.mode is mode] for mode in Mode}
    if by_mode[Mode.whole] or by_mode[Mode.video]:
        from evitseg.cli.predict_whole import predict_whole

        predict_whole(by_mode[Mode.whole], by_mode[Mode.video], request, outcome)
    for mode in (Mode.exact, Mode.blend, Mode.region):
        if by_mode[mode]:
            from evitseg.cli.predict_tiles import predict_tiles

            predict_tiles(by_mode[mode], request, outcome)
    if by_mode[Mode.ray]:
        from evitseg.cli.predict_ray import predict_ray

        predict_ray(by_mode[Mode.ray], request, outcome)
    outcome.finish()


def plan(request: Request, outcome: Outcome) -> list[Job]:
    """The jobs that are to be done. Raises: BadParameter, Exit."""
    from evitseg.raster import SLIDE_ENDINGS
    from evitseg.raster.formats import EXTENSIONS
    from evitseg.video import check_address, is_stream, stream_name

    out, ending = request.out, request.out.suffix.lower()
    if not request.is_file:
        if ending in {*EXTENSIONS, *SLIDE_ENDINGS} - {*MASK_ENDINGS} and not is_there(out):
            fail(
                f"{out}: masks are not written as {ending}; end the name in .png, .tif, .ome.tif (a pyramid) or "
                ".zarr, or give a folder."
            )
        if is_file(out):
            fail(f"{out}: cannot be written to, it is a file; give a folder as --out.")
    found = find_inputs([given for given in request.inputs if not is_stream(given)], out, outcome)
    sources: list[tuple[Path | str, Path]] = []
    for each in found:
        if _is_video(each.path) and request.method is not Mode.whole:
            if each.is_named:
                raise typer.BadParameter(
                    f"{each.path} is a video; {DESCRIBED[request.method]} are not videos", param_hint="INPUT..."
                )
            outcome.skip(each.path, f"videos are not done with --{request.method.value}")
            continue
        sources.append((each.path, each.place))
    for given in request.inputs:
        if not is_stream(given):
            continue
        if request.method is not Mode.whole:
            raise typer.BadParameter(f"{given} is a live source, not an image", param_hint="INPUT...")
        try:
            check_address(given)
        except ConfigError as error:
            raise typer.BadParameter(str(error), param_hint="INPUT...") from None
        # .live, because what is behind a name's last dot is taken off.
        sources.append((given, Path(f"{stream_name(given)}.live")))
    jobs = [
        Job(
            source,
            Mode.video if isinstance(source, str) or _is_video(source) else request.method,
            _stem_of(out) if request.is_file else stem,
            out if request.is_file else None,
        )
        for source, stem in name_outputs(sources, out)
    ]
    _check(jobs, request)
    left = []
    for job in jobs:
        if request.skip_existing and job.is_done(request):
            outcome.skip(job.source, DONE)
        else:
            left.append(job)
    return left


def _is_video(path: Path) -> bool:
    from evitseg.video import is_video

    try:
        return is_video(path)
    except OSError:  # told by whoever reads it
        return False


def _stem_of(file: Path) -> Path:
    """What the names of results beside a mask's file begin with."""
    name = file.with_suffix("").name
    return file.with_name(name.removesuffix(".ome").removesuffix("_mask") or name)


def _check(jobs: list[Job], request: Request) -> None:
    """Raises: BadParameter for options that do not fit the jobs."""
    one = [option for option in ONE_IMAGE if option in request.given]
    if len(jobs) > 1 and (request.is_file or one):
        raise typer.BadParameter("give one image, or a folder as --out", param_hint="INPUT...")
    if jobs:
        check_used(request.given, frozenset(job.mode for job in jobs))
    if request.overlay is False and "overlay" in request.videos:
        raise typer.BadParameter("contradicts --video overlay; leave one of them out", param_hint="--no-overlay")
    only_videos = bool(jobs) and all(job.mode is Mode.video for job in jobs)
    if request.overlay and only_videos and "overlay" not in request.kinds:
        raise typer.BadParameter("needs --video overlay, too", param_hint="--overlay")
    for job in jobs:
        if job.file is None:
            continue
        ending = job.file.suffix.lower()
        if job.mode is not Mode.video and ending not in MASK_ENDINGS:
            raise typer.BadParameter(
                f"{job.source} is an image, whose mask is not written as {ending}; end the name in .png, .tif or .zarr",
                param_hint="--out",
            )
        if job.mode is Mode.video:
            _check_video_file(job, request, ending)


def _check_video_file(job: Job, request: Request, ending: str) -> None:
    if ending not in VIDEO_ENDINGS:
        raise typer.BadParameter(
            f"{job.source} is a video, which does not become a {ending} file; end the name in .mp4, .mov or .mkv, or "
            "give a folder",
            param_hint="--out",
        )
    if len(request.kinds) > 1 or "frames" in request.kinds:
        raise typer.BadParameter(
            f"--video {' and '.join(request.kinds)} are several files; give a folder", param_hint="--out"
        )
    if request.kinds == ("mask",) and ending != ".mov":
        raise typer.BadParameter("a video of masks is written as .mov; end the name so", param_hint="--out")


def name_outputs(found: list[tuple[Path | str, Path]], out: Path) -> list[tuple[Path | str, Path]]:
    """For every input the beginning of its results' names; two never get the same."""
    found = list(dict.fromkeys(found))
    # Compared without case, because some file systems do.
    stems = Counter(str(place.with_suffix("")).casefold() for _, place in found)
    taken: set[str] = set()
    counts: dict[Path, int] = {}
    outputs = []
    for source, place in found:
        stem = place.with_suffix("")
        if stems[str(stem).casefold()] > 1:  # street.jpg beside street.png
            stem = stem.with_name(place.name.replace(".", "_"))
        name, count = stem, counts.get(stem, 1)
        while str(name).casefold() in taken:  # the same name from two folders
            count += 1
            name = stem.with_name(f"{stem.name}_{count}")
        counts[stem] = count
        taken.add(str(name).casefold())
        outputs.append((source, out / name))
    return outputs


def check_free(paths: list[Path], request: Request, source: Path | str) -> None:
    """Whether results may be written there. Raises: FileError for what evitseg did not write, and for the input."""
    from evitseg.system.authorship import is_ours

    for path in paths:
        if not os.path.lexists(path):
            # A world file that waits for a mask would place it, or be replaced with the mask's own.
            beside = path.with_suffix(".pgw"), path.with_name(f"{path.name}.aux.xml")
            stray = [each for each in beside if path.suffix.lower() == ".png" and os.path.lexists(each)]
            if stray and not request.overwrite:
                raise FileError(
                    f"{stray[0]}: says where {path.name} lies, which evitseg has not written yet; choose another "
                    "--out, or add --overwrite."
                )
            continue
        if isinstance(source, Path) and is_there(source) and is_there(path) and path.samefile(source):
            raise FileError(f"{path}: is the input itself, which is never replaced; choose another name for --out.")
        if not request.overwrite and not is_ours(path):
            raise FileError(
                f"{path}: exists, and evitseg did not write it, so it is not replaced; choose another --out, or add "
                "--overwrite."
            )
