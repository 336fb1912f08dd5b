"""predict: images, folders and videos."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from evitseg.cli.app import plain_errors
from evitseg.cli.console import FAILED, complain, fail, note, progress_bar, tell_fractions
from evitseg.cli.inputs import find_inputs, is_done, mask_place, name_outputs, result_paths
from evitseg.cli.options import (
    AsJson,
    Engine,
    Model,
    Precision,
    PrecisionName,
    Threads,
    VideoName,
    WorkingSize,
    parse_bytes,
    parse_region,
    parse_size,
)
from evitseg.cli.predict_large import ForOne, Tiles, check_blend, predict_exactly, predict_in_tiles, predict_on_ray
from evitseg.errors import EvitsegError

if TYPE_CHECKING:
    from evitseg.labels import LabelSpace
    from evitseg.runtime.segmenter import Segmenter


MAX_STREAMS = 4
"""Pictures that go through the network at the same time; each has features of its own in memory."""


@plain_errors
def predict(
    inputs: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="INPUT...",
            help="Pictures of any size, videos, folders of them, or quoted patterns; camera:0; an address (rtsp://, "
            "udp://, http://).",
            show_default=False,
        ),
    ] = None,
    example: Annotated[bool, typer.Option("--example", help="Take the photograph that ships with evitseg.")] = False,
    model: Model = None,
    out: Annotated[
        Path,
        typer.Option(
            "--out", "-o", metavar="DIR|FILE", help="Where the masks go; or one mask's file: .png, .tif or .zarr."
        ),
    ] = Path("predictions"),
    size: WorkingSize = None,
    overlay: Annotated[bool, typer.Option(help="Also write the picture in the classes' colours.")] = True,
    skip_existing: Annotated[
        bool, typer.Option("--skip-existing", help="Leave out pictures whose results are there: goes on after a stop.")
    ] = False,
    video: Annotated[
        list[VideoName] | None,
        typer.Option(
            help="What a video becomes: a coloured video, a video of class indices without loss, or such a PNG a "
            "frame; may be given several times. (default: overlay; with --no-overlay, mask)",
            show_default=False,
        ),
    ] = None,
    duration: Annotated[
        float | None,
        typer.Option(metavar="SECONDS", help="End every video or live source there.", show_default=False),
    ] = None,
    engine: Engine = None,
    precision: Precision = PrecisionName.auto,
    threads: Threads = None,
    exact: Annotated[
        bool,
        typer.Option(
            "--exact",
            help="The mask alone, in tiles and bounded memory, as if the picture went through whole at its own size; "
            "chosen by itself for pictures that do not fit.",
        ),
    ] = False,
    memory: Annotated[
        str | None,
        typer.Option(
            metavar="SIZE", help="For one picture, as 1GiB; tiles keep to it. (default: a quarter of what is free)"
        ),
    ] = None,
    scratch: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="For what does not fit in memory. (default: beside the mask)"),
    ] = None,
    polygons: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Also outline the mask's regions, as evitseg polygons does.")
    ] = None,
    save_context: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Keep what regions need to know of the rest; with --exact.")
    ] = None,
    context: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Render a --region from such a file, without the rest.")
    ] = None,
    region: Annotated[
        str | None, typer.Option(metavar="X,Y,WIDTH,HEIGHT", help="Of the picture, in pixels; with --context.")
    ] = None,
    context_window: Annotated[
        int | None,
        typer.Option(metavar="PIXELS", help="Attend to so many pixels around, not to the whole; with --exact."),
    ] = None,
    blend: Annotated[
        int | None,
        typer.Option(
            metavar="PIXELS",
            help="The mask alone, at the picture's own size, from overlapping windows of so many pixels, averaged; "
            "each knows nothing of the rest: for mosaics of many scenes.",
        ),
    ] = None,
    verify: Annotated[
        bool, typer.Option("--verify", help="Also compute a part both ways, and say the difference; with --exact.")
    ] = False,
    ray: Annotated[
        str | None,
        typer.Option(
            metavar="ADDRESS",
            help="As --exact, on a Ray cluster: HOST:PORT, or auto for the one here or one that is started.",
            show_default=False,
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Segment pictures: a mask PNG of class indices and a coloured overlay for each; and videos, live ones too.

    A file that cannot be read is named, the others are still done, and the exit status is 1. A run over pictures that
    was stopped goes on with --skip-existing. Of a live source every frame is the newest, older ones are dropped; an
    interrupt (Ctrl-C) ends it, and what was done is kept.
    """
    from evitseg.image import EXTENSIONS
    from evitseg.raster import SLIDE_ENDINGS
    from evitseg.video import is_stream, is_video, stream_name

    if (not inputs and not example) or "" in (inputs or ()):
        raise typer.BadParameter("give pictures or folders, or --example", param_hint="INPUT...")
    from evitseg.bundled import EXAMPLE_PICTURE

    working_size = parse_size(size) if size is not None else None
    for_one = ForOne(save_context, context, parse_region(region) if region is not None else None, polygons)
    tiles = Tiles(
        model, engine, precision, threads, working_size, parse_bytes(memory) if memory is not None else None, scratch,
        context_window, blend, verify, for_one,
    )  # fmt: skip
    if blend is not None:
        check_blend(blend, tiles, exact, ray)
    is_mask = out.suffix.lower() in (".png", ".tif", ".tiff", ".zarr") and not (out.is_dir() and out.suffix != ".zarr")
    ending = out.suffix.lower()
    if not is_mask and not out.exists() and ending in {*EXTENSIONS, *SLIDE_ENDINGS}:
        fail(
            f"{out}: masks are not written as {ending}; end the name in .png, .tif, .ome.tif (a pyramid) or .zarr, or "
            "give a folder."
        )
    if ray is not None:
        given = [*(inputs or []), *([str(EXAMPLE_PICTURE)] if example else [])]
        predict_on_ray(given, out, is_mask, tiles, ray, as_json)
        return
    if exact or is_mask or context_window is not None or blend is not None or verify or for_one != ForOne():
        given = [*(inputs or []), *([str(EXAMPLE_PICTURE)] if example else [])]
        native = exact or blend is not None or not is_mask
        predict_exactly(given, out, is_mask, skip_existing, tiles, native, as_json)
        return
    if out.is_file():
        fail(f"{out}: cannot be written to, it is a file; give a folder as --out.")
    problems: list[str] = []
    files = [given for given in inputs or [] if not is_stream(given)]
    found = list(find_inputs([*files, *([str(EXAMPLE_PICTURE)] if example else [])], out, problems))
    for problem in problems:
        complain(problem)
    # .live, because what is behind a name's last dot is taken off.
    streams = [(given, Path(f"{stream_name(given)}.live")) for given in inputs or [] if is_stream(given)]
    outputs = name_outputs([*found, *streams], out)
    if not outputs:
        raise typer.Exit(FAILED)
    videos = [(source, target) for source, target in outputs if isinstance(source, str) or is_video(source)]
    jobs = [(source, target) for source, target in outputs if isinstance(source, Path) and not is_video(source)]

    from evitseg.loading import load
    from evitseg.system.machine import physical_cores

    left = [job for job in jobs if not (skip_existing and is_done(job[1], overlay))]
    if len(left) < len(jobs):
        note(f"{len(jobs) - len(left)} pictures have their results and are left out.", as_json)
    # A live source wants its newest frame soon, not many frames.
    at_once = 1 if streams else min(threads or physical_cores(), MAX_STREAMS)
    if not videos:
        at_once = min(at_once, max(1, len(left)))
    segment = load(
        model,
        engine=engine.value if engine else None,
        threads=threads,
        precision=precision.value,
        size=working_size,
        streams=at_once,
    )
    count = 0
    results: list[dict[str, Any]] = []
    huge: list[tuple[Path, Path]] = []
    try:
        if left:
            count, results = _predict_all(segment, left, out, overlay, as_json, problems, tiles, huge)
    except KeyboardInterrupt:
        how = "; the same command with --skip-existing goes on" * (len(left) > 1)
        raise KeyboardInterrupt(f"interrupted{how}.") from None
    kinds = [name.value for name in video or []] or ["overlay" if overlay else "mask"]
    done = _predict_videos(segment, videos, kinds, duration, as_json, problems)
    if huge:
        in_parts = predict_in_tiles(
            [(source, mask_place(source, target)) for source, target in huge], tiles, as_json, problems
        )
        results += in_parts
        count += len(in_parts)
    if as_json:
        content = {"model": segment.manifest.name, "runs": str(segment.info), "pictures": results}
        print(json.dumps(content | ({"videos": done} if videos else {}), indent=2))
    if problems:
        counts = f"pictures done: {count}" + (f", videos: {len(done)}" if videos else "")
        complain(f"{len(problems)} of the inputs failed; {counts}.")
        raise typer.Exit(FAILED)


@dataclass(frozen=True)
class _Done:
    """A picture whose results are written, or why they are not."""

    source: Path
    written: list[Path] = field(default_factory=list)
    size: tuple[int, int] = (0, 0)
    fractions: dict[str, float] = field(default_factory=dict)
    problem: str = ""
    is_huge: bool = False


def predict_one(
    segment: Segmenter, source: Path, target: Path, overlay: bool, tiles: Tiles | None = None, at_once: int = 1
) -> _Done:
    """Write one picture's results, the mask last: where it is, all is. A picture that does not fit is left as it is."""
    from evitseg.image import MAX_JPEG_SIDE, save_picture

    try:
        if tiles is not None and not tiles.fit(segment, source, at_once):
            return _Done(source, is_huge=True)
        prediction = segment(source)
        (mask_path,), *more = result_paths(target, overlay)
        written = [mask_path]
        for small, large in more:
            drawn = prediction.overlay()
            written.append(small if max(drawn.size) <= MAX_JPEG_SIDE else large)
            save_picture(drawn, written[-1])
        prediction.save(mask_path)
    except EvitsegError as error:
        return _Done(source, problem=str(error) if str(source) in str(error) else f"{source}: {error}")
    height, width = prediction.mask.shape
    return _Done(source, written, (height, width), prediction.fractions())


def _predict_all(
    segment: Segmenter, jobs: list[tuple[Path, Path]], out: Path, overlay: bool, quiet: bool, problems: list[str],
    tiles: Tiles, huge: list[tuple[Path, Path]],
) -> tuple[int, list[dict[str, Any]]]:  # fmt: skip
    """Write every picture's results, several at a time; failures are told as they come, and added to `problems`, and
    pictures that do not fit to `huge`.

    Returns: how many were done, and what --json tells of each; without it nothing is kept, so that a folder may have
    any number of pictures.
    """
    from rich.console import Console
    from rich.text import Text

    from evitseg.runtime.overlap import overlapped

    console = Console(stderr=quiet, highlight=False)
    results: list[dict[str, Any]] = []
    count = 0
    if not quiet:
        console.print(Text(f"{segment.manifest.name}: {segment.info}", style="dim"))
    # One more than the engine runs at a time: while it has the cores, another picture is read or written.
    workers = segment.info.streams + 1 if len(jobs) > 1 else 1
    with progress_bar("segmenting", len(jobs), console, unit="pictures") as advance:
        finished = overlapped(jobs, lambda job: predict_one(segment, *job, overlay, tiles, workers), workers)
        for job, done in zip(jobs, finished, strict=True):
            advance(1)
            if done.is_huge:
                huge.append(job)
                continue
            if done.problem:
                problems.append(done.problem)
                complain(done.problem)
                continue
            count += 1
            if not quiet:
                _tell(console, done, segment.labels, in_full=len(jobs) == 1)
                continue
            result = {"picture": str(done.source), "mask": str(done.written[0]), "fractions": done.fractions}
            results.append(result | ({"overlay": str(done.written[1])} if overlay else {}))
    if len(jobs) > 1 and count and not quiet:
        console.print(Text(f"wrote {'masks and overlays' if overlay else 'masks'} of {count} pictures to {out}"))
    return count, results


def _predict_videos(
    segment: Segmenter,
    jobs: list[tuple[Path | str, Path]],
    kinds: list[Any],
    duration: float | None,
    quiet: bool,
    problems: list[str],
) -> list[dict[str, Any]]:
    """Write every video's results; failures are told as they come, and added to `problems`."""
    from rich.console import Console
    from rich.text import Text

    from evitseg.video import write_video

    console = Console(stderr=quiet, highlight=False)
    results: list[dict[str, Any]] = []
    if jobs and not quiet:
        console.print(Text(f"{segment.manifest.name}: {segment.info}", style="dim"))
    for source, target in jobs:
        try:
            with _video_progress(target.name, console) as watch:
                result = write_video(
                    source, target, segment, kinds, duration_s=duration, workers=segment.info.streams, watch=watch
                )
        except EvitsegError as error:
            problems.append(str(error))
            complain(error)
            continue
        if result.damage is not None:
            problems.append(result.damage)
            complain(result.damage)
        results.append(result.to_dict())
        if quiet:
            continue
        done = f"{result.frames} frames, {result.duration_s:.1f} s, {result.fps:.1f} frames a second"
        if result.live:
            done += (
                f"; {result.dropped} dropped; from capture to written {result.latency_ms:.0f} ms, "
                f"90th percentile {result.p90_latency_ms:.0f} ms"
            )
        height, width = result.size
        tell_fractions(console, f"{target.name}, {width}×{height}: {done}", result.fractions, segment.labels)
        for path in result.written.values():
            console.print(Text(f"wrote {path}"), soft_wrap=True)
    return results


@contextlib.contextmanager
def _video_progress(name: str, console: Any) -> Iterator[Callable[[Any], None]]:
    """A bar that is gone when the work is done; what it gives takes a video's progress."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[speed]}"))
    with Progress(
        *columns, TimeRemainingColumn(), console=console, transient=True, disable=not console.is_terminal
    ) as progress:
        task = progress.add_task(name, total=None, speed="")

        def watch(now: Any) -> None:
            speed = f"{progress.tasks[0].speed or 0:.1f} frames/s"
            if now.latency_ms is not None:
                speed += f", {now.latency_ms:.0f} ms late, {now.dropped} dropped"
            progress.update(task, completed=now.frames, total=now.total, speed=speed)

        yield watch


def _tell(console: Any, done: _Done, labels: LabelSpace, in_full: bool) -> None:
    from rich.text import Text

    if not in_full:
        shares = ", ".join(f"{name} {share:.0%}" for name, share in list(done.fractions.items())[:4])
        console.print(Text(f"{done.source}: {shares}"), soft_wrap=True)
        return
    height, width = done.size
    tell_fractions(console, f"{done.source.name}, {width}×{height}", done.fractions, labels)
    for path in done.written:
        console.print(Text(f"wrote {path}"), soft_wrap=True)
