"""The command line: one function a verb. Each imports what it needs, so that --help is quick."""

from __future__ import annotations

import contextlib
import glob
import io
import json
import os
import re
import sys
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from enum import Enum
from functools import wraps
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from evitseg.errors import EvitsegError

if TYPE_CHECKING:
    from evitseg.config import Cost
    from evitseg.dataset import Inspection
    from evitseg.image import Size
    from evitseg.labels import LabelSpace
    from evitseg.manifest import Manifest
    from evitseg.metrics import Report
    from evitseg.runtime.blending import Blended
    from evitseg.runtime.segmenter import Segmenter
    from evitseg.runtime.streaming import Network, Streamed
    from evitseg.runtime.windows import Source, Window
    from evitseg.train import Event

app = typer.Typer(
    name="evitseg",
    help="Semantic segmentation with EfficientViT, from a folder of photos to a small device.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

RESULT_ENDINGS = ("_mask.png", "_mask.tif", "_mask.tiff", "_mask.zarr", "_overlay.jpg", "_overlay.png")
MAX_STREAMS = 4
"""Pictures that go through the network at the same time; each has features of its own in memory."""
FAILED, INTERRUPTED = 1, 130
"""Exit statuses beside 0, done, and 2, a wrong command line."""


class EngineName(str, Enum):
    openvino = "openvino"
    onnxruntime = "onnxruntime"
    litert = "litert"
    executorch = "executorch"
    ncnn = "ncnn"
    torch = "torch"


class PrecisionName(str, Enum):
    auto = "auto"
    float32 = "float32"
    float16 = "float16"
    bfloat16 = "bfloat16"


class FormatName(str, Enum):
    onnx = "onnx"
    openvino = "openvino"
    litert = "litert"
    executorch = "executorch"
    ncnn = "ncnn"
    coreml = "coreml"
    best = "best"


class VideoName(str, Enum):
    overlay = "overlay"
    mask = "mask"
    frames = "frames"


class DeviceName(str, Enum):
    here = "here"


class WeightsName(str, Enum):
    float32 = "float32"
    float16 = "float16"
    int8 = "int8"


def _size(text: str, forms: str = "'native'") -> Size:
    from evitseg.errors import ConfigError
    from evitseg.image import check_size

    if text == "native":
        return "native"
    try:
        return check_size(int(text))
    except ValueError:
        raise typer.BadParameter(f"{text!r} is neither a number of pixels nor {forms}") from None
    except ConfigError as error:
        raise typer.BadParameter(str(error)) from None


def _export_size(text: str) -> Size | tuple[int, int]:
    """As `_size`, and HEIGHTxWIDTH."""
    from evitseg.errors import ConfigError
    from evitseg.image import check_sides

    sides = text.lower().replace("×", "x").split("x")
    if len(sides) != 2 or not all(side.strip().isdecimal() for side in sides):
        return _size(text, "'native' nor HEIGHTxWIDTH")
    try:
        return check_sides((int(sides[0]), int(sides[1])))
    except ConfigError as error:
        raise typer.BadParameter(str(error)) from None


Model = Annotated[
    str | None,
    typer.Option(
        "--model",
        "-m",
        metavar="MODEL",
        help="An artefact (.onnx, .xml, .tflite, .pte, .param), a checkpoint (.safetensors, .pt), or "
        "a bundled or published model's name; "
        "evitseg info lists the names. (default: the bundled model)",
        show_default=False,
    ),
]
WorkingSize = Annotated[
    str | None,
    typer.Option(
        "--size",
        metavar="PIXELS|native",
        help="Short side at which pictures go through the network, or 'native' for their own size. "
        "(default: the model's rule)",
        show_default=False,
    ),
]
Labels = Annotated[
    str | None,
    typer.Option(
        metavar="NAME|FILE",
        help="Classes, where data or checkpoint do not say: camvid, cityscapes, ade20k, or a .json file.",
        show_default=False,
    ),
]
Threads = Annotated[int | None, typer.Option(min=1, help="At most. (default: every physical core)", show_default=False)]
Engine = Annotated[
    EngineName | None,
    typer.Option(
        help="What runs the model, where several could: openvino or onnxruntime. (default: openvino)",
        show_default=False,
    ),
]
Precision = Annotated[
    PrecisionName, typer.Option(help="Of the arithmetic; auto takes bfloat16 where the processor has it.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")]


def _plain_errors(verb: Callable[..., None]) -> Callable[..., None]:
    """Our errors as one line and exit status 1; an interrupt as one line and 130."""

    @wraps(verb)
    def run(*args: Any, **kwargs: Any) -> None:
        try:
            verb(*args, **kwargs)
        except EvitsegError as error:
            _fail(error)
        except KeyboardInterrupt as interrupt:
            print(str(interrupt) or "interrupted.", file=sys.stderr)
            raise typer.Exit(INTERRUPTED) from None
        except BrokenPipeError:
            # Whoever read our output has enough, as head has; nothing is left to say, also not at exit.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise typer.Exit(FAILED) from None
        except OSError as error:  # ours are EvitsegErrors: what is left is a standard output on a full disk
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            _fail(f"the output cannot be written ({error.strerror or error}).")

    return run


def _complain(error: object) -> None:
    print(f"error: {error}", file=sys.stderr)


def _fail(error: object) -> NoReturn:
    _complain(error)
    raise typer.Exit(FAILED)


def _version(wanted: bool) -> None:
    if wanted:
        from evitseg import __version__

        print(f"evitseg {__version__}")
        raise typer.Exit


@app.callback()
def main(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a console without × or █ shows something else, and goes on
    warnings.simplefilter("ignore")  # libraries' remarks to programmers


@app.command()
@_plain_errors
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
    from evitseg.runtime.video import is_stream, is_video, stream_name

    if (not inputs and not example) or "" in (inputs or ()):
        raise typer.BadParameter("give pictures or folders, or --example", param_hint="INPUT...")
    from evitseg.bundled import EXAMPLE_PICTURE

    working_size = _size(size) if size is not None else None
    for_one = _ForOne(save_context, context, _region(region) if region is not None else None, polygons)
    tiles = _Tiles(
        model, engine, precision, threads, working_size, _bytes(memory) if memory is not None else None, scratch,
        context_window, blend, verify, for_one,
    )  # fmt: skip
    if blend is not None:
        _check_blend(blend, tiles, exact, ray)
    is_mask = out.suffix.lower() in (".png", ".tif", ".tiff", ".zarr") and not (out.is_dir() and out.suffix != ".zarr")
    ending = out.suffix.lower()
    if not is_mask and not out.exists() and ending in {*EXTENSIONS, *SLIDE_ENDINGS}:
        _fail(
            f"{out}: masks are not written as {ending}; end the name in .png, .tif, .ome.tif (a pyramid) or .zarr, or "
            "give a folder."
        )
    if ray is not None:
        given = [*(inputs or []), *([str(EXAMPLE_PICTURE)] if example else [])]
        _predict_on_ray(given, out, is_mask, tiles, ray, as_json)
        return
    if exact or is_mask or context_window is not None or blend is not None or verify or for_one != _ForOne():
        given = [*(inputs or []), *([str(EXAMPLE_PICTURE)] if example else [])]
        native = exact or blend is not None or not is_mask
        _predict_exactly(given, out, is_mask, skip_existing, tiles, native, as_json)
        return
    if out.is_file():
        _fail(f"{out}: cannot be written to, it is a file; give a folder as --out.")
    problems: list[str] = []
    files = [given for given in inputs or [] if not is_stream(given)]
    found = list(_pictures([*files, *([str(EXAMPLE_PICTURE)] if example else [])], out, problems))
    for problem in problems:
        _complain(problem)
    # .live, because what is behind a name's last dot is taken off.
    streams = [(given, Path(f"{stream_name(given)}.live")) for given in inputs or [] if is_stream(given)]
    outputs = _outputs([*found, *streams], out)
    if not outputs:
        raise typer.Exit(FAILED)
    videos = [(source, target) for source, target in outputs if isinstance(source, str) or is_video(source)]
    jobs = [(source, target) for source, target in outputs if isinstance(source, Path) and not is_video(source)]

    from evitseg.loading import load
    from evitseg.runtime.artefact import physical_cores

    left = [job for job in jobs if not (skip_existing and _is_done(job[1], overlay))]
    if len(left) < len(jobs):
        _note(f"{len(jobs) - len(left)} pictures have their results and are left out.", as_json)
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
        in_tiles = _in_tiles(
            [(source, _mask_place(source, target)) for source, target in huge], tiles, as_json, problems
        )
        results += in_tiles
        count += len(in_tiles)
    if as_json:
        content = {"model": segment.manifest.name, "runs": str(segment.info), "pictures": results}
        print(json.dumps(content | ({"videos": done} if videos else {}), indent=2))
    if problems:
        counts = f"pictures done: {count}" + (f", videos: {len(done)}" if videos else "")
        _complain(f"{len(problems)} of the inputs failed; {counts}.")
        raise typer.Exit(FAILED)


def _is_done(target: Path, overlay: bool) -> bool:
    if any(target.with_name(f"{target.name}_mask{ending}").exists() for ending in (".tif", ".tiff", ".zarr")):
        return True  # of a picture that went in tiles
    return all(any(path.is_file() for path in names) for names in _results(target, overlay))


def _note(sentence: str, as_json: bool) -> None:
    print(sentence, file=sys.stderr if as_json else sys.stdout)


@dataclass(frozen=True)
class _ForOne:
    """What predict can do with one picture alone; all of it in tiles."""

    save_context: Path | None = None
    context: Path | None = None
    region: Window | None = None
    polygons: Path | None = None


@dataclass(frozen=True)
class _Tiles:
    """How predict treats pictures that go in tiles."""

    model: str | None
    engine: EngineName | None
    precision: PrecisionName
    threads: int | None
    size: Size
    memory: int | None
    scratch: Path | None
    context_window: int | None
    blend: int | None
    verify: bool
    for_one: _ForOne

    def fit(self, segment: Segmenter, source: Path) -> bool:
        """Whether a picture can go through whole. Raises: PictureError, ConfigError."""
        from evitseg.image import TooManyPixelsError, picture_size
        from evitseg.raster import SLIDE_ENDINGS
        from evitseg.runtime.streaming import free_memory, whole_memory

        if source.is_dir() or source.suffix.lower() in SLIDE_ENDINGS:
            return False
        try:
            size = picture_size(source)
        except TooManyPixelsError:
            return False
        # Another engine has no tiles: there the picture is tried whole.
        if segment.info.engine != "OpenVINO" or segment.manifest.preprocess.fixed is not None:
            return True
        working = segment.manifest.preprocess.fit(size, self.size)
        return whole_memory(segment.manifest.model, size, working) <= (self.memory or free_memory() // 4)


def _check_blend(window: int, tiles: _Tiles, exact: bool, ray: str | None) -> None:
    """Raises: BadParameter for windows that do not fit the network, and beside what is not done with them."""
    from evitseg.errors import ConfigError
    from evitseg.runtime.blending import check_window

    for_one = tiles.for_one
    others = {
        "--exact": exact,
        "--context-window": tiles.context_window is not None,
        "--save-context": for_one.save_context is not None,
        "--context": for_one.context is not None,
        "--region": for_one.region is not None,
        "--verify": tiles.verify,
        "--ray": ray is not None,
    }
    for name, is_given in others.items():
        if is_given:
            raise typer.BadParameter(
                f"windows that are blended do without {name}; leave one of them out", param_hint="--blend"
            )
    try:
        check_window(window)
    except ConfigError as error:
        raise typer.BadParameter(str(error), param_hint="--blend") from None


def _mask_place(source: Path, target: Path) -> Path:
    """Where the mask of a picture that goes in tiles is written: of the picture's kind."""
    from evitseg.raster import mask_ending

    return target.with_name(f"{target.name}_mask{mask_ending(source)}")


def _predict_exactly(
    inputs: list[str], out: Path, is_mask: bool, skip_existing: bool, tiles: _Tiles, native: bool, as_json: bool
) -> None:
    """predict where all pictures go in tiles.

    Args:
        is_mask: `out` is one mask's file, not a folder.
        native: at their own size, where no other is given; else by the model's rule.
    """
    for_one = tiles.for_one
    if tiles.engine not in (None, EngineName.openvino):
        raise typer.BadParameter("pictures in tiles run in openvino", param_hint="--engine")
    if (for_one.context is None) != (for_one.region is None):
        raise typer.BadParameter("--context and --region go together", param_hint="--region")
    problems: list[str] = []
    found = list(_pictures(inputs, out, problems))
    for problem in problems:
        _complain(problem)
    if len(found) > 1 and (is_mask or for_one != _ForOne()):
        raise typer.BadParameter("give one picture, or a folder as --out", param_hint="INPUT...")
    if not is_mask and out.is_file():
        _fail(f"{out}: cannot be written to, it is a file; give a folder as --out.")
    jobs = [(Path(source), target) for source, target in _outputs([*found], out)]
    jobs = [(source, out if is_mask else _mask_place(source, target)) for source, target in jobs]
    left = [job for job in jobs if not (skip_existing and job[1].exists())]
    if len(left) < len(jobs):
        _note(f"{len(jobs) - len(left)} pictures have their results and are left out.", as_json)
    results = _in_tiles(left, tiles, as_json, problems, native)
    if as_json:
        print(json.dumps({"pictures": results}, indent=2))
    if problems:
        raise typer.Exit(FAILED)


def _in_tiles(
    jobs: list[tuple[Path, Path]], tiles: _Tiles, as_json: bool, problems: list[str], native: bool = False
) -> list[dict[str, Any]]:
    """Write the masks of pictures in tiles and bounded memory; failures are told as they come, and added to `problems`.

    Args:
        jobs: pictures, and where their masks go.

    Returns: what --json tells of each.
    """
    from rich.console import Console
    from rich.text import Text

    from evitseg.bundled import DEFAULT_MODEL, bundled_models
    from evitseg.runtime.streaming import Network

    results: list[dict[str, Any]] = []
    if not jobs:
        return results
    artefact = bundled_models().get(tiles.model or DEFAULT_MODEL, Path(tiles.model or ""))
    console = Console(stderr=as_json, highlight=False)

    def fails(source: Path, problem: str) -> None:
        problems.append(problem if str(source) in problem else f"{source}: {problem}")
        _complain(problems[-1])

    try:
        network = Network(artefact, tiles.precision.value, tiles.threads)
    except EvitsegError as error:
        for source, _ in jobs:
            fails(source, f"does not go through whole, and not in tiles: {error}" if not native else str(error))
        return results
    for source, place in jobs:
        try:
            result, damages = _segment_in_tiles(source, place, network, tiles, native, as_json)
        except EvitsegError as error:
            fails(source, str(error))
            continue
        for damage in damages:
            fails(source, damage)
        results.append(result)
        if as_json:
            continue
        height, width = result["size"]
        if "fractions" in result:
            how = "in tiles" if tiles.blend is None else "in blended windows"
            _tell_fractions(console, f"{source.name}, {width}×{height}, {how}", result["fractions"], network.labels)
        console.print(Text(f"wrote {place}"), soft_wrap=True)
        if "verified" in result:
            print(
                f"tiles and whole: logits differ by {result['verified']['logit difference']:.1e} of the largest, "
                f"{result['verified']['pixels that differ']} pixels of the mask differ"
            )
    return results


@contextlib.contextmanager
def _windows_of(path: Path, scratch: Path, memory: int) -> Iterator[Source]:
    """A picture file for work in tiles."""
    from evitseg.image import EXTENSIONS, TooManyPixelsError, picture_size, read_picture
    from evitseg.raster import open_source
    from evitseg.runtime.windows import ArraySource

    ending = path.suffix.lower()
    if ending in EXTENSIONS - {".tif", ".tiff"} and not path.is_dir():
        # What is decoded from its beginning anyway needs no copy on disk where there is room for it.
        with contextlib.suppress(TooManyPixelsError):
            height, width = picture_size(path)
            if 8 * height * width <= memory // 4 or ending == ".webp":
                yield ArraySource(read_picture(path))
                return
    with open_source(path, scratch) as source:
        yield source


def _segment_in_tiles(
    path: Path, place: Path, network: Network, tiles: _Tiles, native: bool, as_json: bool
) -> tuple[dict[str, Any], list[str]]:
    """One mask, or a region of it. Returns: what --json tells, and what of the picture could not be read."""
    from rich.console import Console

    from evitseg.image import MAX_PIXELS
    from evitseg.loading import load
    from evitseg.raster import check_place, open_sink, part_of
    from evitseg.runtime.streaming import Context, Progress, free_memory, render, segment_huge
    from evitseg.runtime.streaming import verify as compare
    from evitseg.runtime.windows import tiles_of

    for_one, scratch = tiles.for_one, tiles.scratch or place.parent
    for folder in (scratch, place.parent):
        with contextlib.suppress(OSError):  # told where it is used
            folder.mkdir(parents=True, exist_ok=True)
    damages: list[str] = []
    with _windows_of(path, scratch, tiles.memory or free_memory() // 4) as source:
        result: dict[str, Any] = {"picture": str(path), "mask": str(place), "size": source.size}
        region = for_one.region
        if for_one.context is not None and region is not None:
            context = Context.load(for_one.context, network)
            mask, unread = render(source, network, context, region, tiles.memory)
            damages = [damage.reason for damage in unread]
            part = part_of(source, region.top, region.left, region.height, region.width)
            with open_sink(place, part, network.labels) as sink:
                for window in tiles_of(mask.shape, sink.tile):
                    sink.write(window.top, window.left, mask[window.top : window.bottom, window.left : window.right])
            result["size"] = part.size
        elif tiles.blend is not None:
            blended = _blend_windows(source, place, network, tiles, tiles.blend)
            result["fractions"] = _fractions_of(blended, network.labels)
            damages = [damage.reason for damage in blended.damages]
        else:
            check_place(place, source)
            own_size = native or source.size[0] * source.size[1] > MAX_PIXELS
            with _progress("segmenting", None, Console(stderr=True, highlight=False)) as advance:

                def watch(progress: Progress) -> None:
                    advance(1)  # called before the next picture

                try:
                    streamed = segment_huge(
                        source,
                        open_sink(place, source, network.labels),
                        network,
                        scratch,
                        size=tiles.size or ("native" if own_size else None),
                        memory=tiles.memory,
                        context=tiles.context_window or "global",
                        watch=watch,
                    )
                except KeyboardInterrupt:
                    where = Path(scratch).resolve()  # "." and a full stop would read like the parent
                    _complain(f"stopped before the end; the same command goes on, from hidden files in {where}.")
                    raise
            result["fractions"] = _fractions_of(streamed, network.labels)
            if streamed.resumed:
                result["tiles done before"] = streamed.resumed
            if for_one.save_context is not None:
                streamed.context.save(for_one.save_context)
                result["context"] = str(for_one.save_context)
            damages = [damage.reason for damage in streamed.damages]
        if tiles.verify:
            whole = load(tiles.model, engine="openvino", threads=tiles.threads, precision=tiles.precision.value)
            found = compare(source, network, whole, scratch)
            result["verified"] = {"logit difference": found.difference, "pixels that differ": found.pixels}
    if for_one.polygons is not None:
        # A PNG has no place for the names of its classes.
        labels = network.labels if place.suffix.lower() == ".png" else None
        _write_polygons(place, for_one.polygons, labels, quiet=as_json)
        result["polygons"] = str(for_one.polygons)
    return result, damages


def _blend_windows(source: Source, place: Path, network: Network, tiles: _Tiles, window: int) -> Blended:
    """Write the mask of windows that are blended."""
    from rich.console import Console

    from evitseg.raster import open_sink
    from evitseg.runtime.blending import blend
    from evitseg.runtime.streaming import Progress

    with _progress("segmenting", None, Console(stderr=True, highlight=False)) as advance:

        def watch(progress: Progress) -> None:
            advance(1)

        try:
            with open_sink(place, source, network.labels) as sink:
                return blend(
                    source,
                    sink,
                    network,
                    window,
                    size=tiles.size or "native",
                    memory=tiles.memory,
                    watch=watch,
                )
        except KeyboardInterrupt:
            raise KeyboardInterrupt(
                f"interrupted; nothing of {place} is kept, and the same command begins it again."
            ) from None


def _is_huge(path: Path) -> bool:
    """Whether a picture is too large to be read whole. Raises: PictureError."""
    from evitseg.image import TooManyPixelsError, picture_size

    try:
        picture_size(path)
    except TooManyPixelsError:
        return True
    return False


def _predict_on_ray(inputs: list[str], out: Path, is_mask: bool, tiles: _Tiles, address: str, as_json: bool) -> None:
    """predict in tiles on a cluster: one mask a picture."""
    from contextlib import ExitStack

    from rich.console import Console

    from evitseg import cluster
    from evitseg.bundled import DEFAULT_MODEL, bundled_models
    from evitseg.image import read_picture
    from evitseg.raster import kind_of, open_sink, open_source
    from evitseg.runtime.streaming import Network, Progress
    from evitseg.runtime.windows import ArraySource

    if tiles.engine not in (None, EngineName.openvino):
        raise typer.BadParameter("pictures in tiles run in openvino", param_hint="--engine")
    for_one = tiles.for_one
    if for_one.context is not None or for_one.region is not None or tiles.verify:
        raise typer.BadParameter("renders whole pictures, without --context, --region, --verify", param_hint="--ray")
    if len(inputs) > 1 and (for_one != _ForOne() or is_mask):
        raise typer.BadParameter("give one picture, or a folder as --out", param_hint="INPUT...")
    network = Network(
        bundled_models().get(tiles.model or DEFAULT_MODEL, Path(tiles.model or "")), tiles.precision.value
    )
    console = Console(stderr=True, highlight=False)
    damages: list[str] = []
    results: list[dict[str, Any]] = []
    with cluster.connected(address, scratch=tiles.scratch):
        for given in inputs:
            kind = kind_of(Path(given), given)
            in_windows = kind in ("tiff", "zarr") or _is_huge(Path(given))
            ending = {"tiff": ".tif", "zarr": ".zarr"}.get(kind, ".png")
            place = out if is_mask else out / f"{Path(given).stem}_mask{ending}"
            with ExitStack() as stack:
                source: Source = (
                    stack.enter_context(open_source(given)) if in_windows else ArraySource(read_picture(given))
                )
                sink = stack.enter_context(open_sink(place, source, network.labels))
                advance = stack.enter_context(_progress("segmenting", None, console))

                def watch(progress: Progress, advance: Callable[[int], None] = advance) -> None:
                    advance(1)

                streamed = cluster.segment_huge(
                    source,
                    sink,
                    network,
                    path=given if in_windows else None,
                    threads=tiles.threads or 1,
                    size=tiles.size or "native",
                    memory=tiles.memory,
                    context=tiles.context_window or "global",
                    watch=watch,
                )
            result: dict[str, Any] = {"picture": given, "mask": str(place)}
            result["fractions"] = _fractions_of(streamed, network.labels)
            if for_one.save_context is not None:
                streamed.context.save(for_one.save_context)
                result["context"] = str(for_one.save_context)
            if for_one.polygons is not None:
                labels = network.labels if place.suffix.lower() == ".png" else None
                _write_polygons(place, for_one.polygons, labels, quiet=as_json)
                result["polygons"] = str(for_one.polygons)
            damages += [f"{given}: {damage.reason}" for damage in streamed.damages]
            results.append(result)
    if as_json:
        print(json.dumps({"model": network.manifest.name, "runs": str(network.info), "pictures": results}, indent=2))
    else:
        for result in results:
            print(f"wrote {result['mask']}")
    for damage in damages:
        _complain(damage)
    if damages:
        raise typer.Exit(FAILED)


def _fractions_of(streamed: Streamed | Blended, labels: LabelSpace) -> dict[str, float]:
    """Share of the pixels of every class that occurs; those without data count among the pixels."""
    counts = streamed.counts[: len(labels.names)].tolist()
    total = int(streamed.counts.sum())
    return {name: count / total for name, count in zip(labels.names, counts, strict=True) if count}


def _bytes(text: str) -> int:
    """A number of bytes, as 800MiB or 1.5GB."""
    units = {"": 1, "k": 10**3, "ki": 2**10, "m": 10**6, "mi": 2**20, "g": 10**9, "gi": 2**30, "t": 10**12, "ti": 2**40}
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([kmgt]i?)?b?", text.strip().lower())
    if found is None:
        raise typer.BadParameter(f"{text!r} is not a size in bytes, such as 1GiB", param_hint="--memory")
    return int(float(found[1]) * units[found[2] or ""])


def _region(text: str) -> Window:
    from evitseg.runtime.windows import Window

    numbers = text.split(",")
    if len(numbers) != 4 or not all(number.strip().isdecimal() for number in numbers):
        raise typer.BadParameter(f"{text!r} is not X,Y,WIDTH,HEIGHT in pixels", param_hint="--region")
    x, y, width, height = map(int, numbers)
    return Window(y, x, height, width)


def _pictures(inputs: list[str], out: Path, problems: list[str]) -> Iterator[tuple[Path, Path]]:
    """Every picture with its place below the input it was found in; what cannot be found goes to `problems`."""
    from evitseg.raster import is_zarr

    for given in inputs:
        path = Path(given)
        try:
            if path.is_dir() and not is_zarr(path):
                files = _pictures_in(path, out)
                if not files:
                    from evitseg.image import EXTENSIONS
                    from evitseg.runtime.video import EXTENSIONS as VIDEOS

                    endings = ", ".join([*sorted(EXTENSIONS), *sorted(VIDEOS)])
                    problems.append(f"{given}: a folder without pictures or videos ({endings}).")
                yield from ((p, p.relative_to(path)) for p in files)
            elif not path.exists() and glob.has_magic(given):
                matches = [Path(match) for match in sorted(glob.glob(given, recursive=True)) if Path(match).is_file()]
                if not matches:
                    problems.append(f"{given}: no file matches this pattern.")
                yield from ((match, Path(match.name)) for match in matches)
            else:
                yield path, Path(path.name)
        except OSError as error:
            problems.append(f"{given[:200]}: cannot be looked at ({error.strerror or error}).")


def _pictures_in(folder: Path, out: Path) -> list[Path]:
    """Pictures and videos below a folder, but for hidden files and for our own results."""
    from evitseg.image import EXTENSIONS as PICTURES
    from evitseg.raster import SLIDE_ENDINGS, is_zarr
    from evitseg.runtime.video import EXTENSIONS as VIDEOS
    from evitseg.runtime.video import is_result

    inside = Path(os.path.abspath(out))
    below = Path(os.path.abspath(folder)) in inside.parents
    found = []
    for path in sorted(folder.rglob("*")):
        endings = PICTURES | VIDEOS | {*SLIDE_ENDINGS, ".zarr"}
        if path.name.startswith(".") or path.suffix.lower() not in endings or (path.is_dir() and not is_zarr(path)):
            continue
        ours = (
            inside in Path(os.path.abspath(path)).parents
            if below
            else path.name.endswith(RESULT_ENDINGS) or is_result(path)
        )
        if not ours:
            found.append(path)
    return found


def _outputs(found: list[tuple[Path | str, Path]], out: Path) -> list[tuple[Path | str, Path]]:
    """For every picture or video the beginning of its results' names; two never get the same."""
    found = list(dict.fromkeys(found))
    # Compared without case, because some file systems do.
    stems = Counter(str(place.with_suffix("")).casefold() for _, place in found)
    taken: set[str] = set()
    outputs = []
    for source, place in found:
        stem = place.with_suffix("")
        if stems[str(stem).casefold()] > 1:  # street.jpg beside street.png
            stem = stem.with_name(place.name.replace(".", "_"))
        name, count = stem, 1
        while str(name).casefold() in taken:  # the same name from two folders
            count += 1
            name = stem.with_name(f"{stem.name}_{count}")
        taken.add(str(name).casefold())
        outputs.append((source, out / name))
    return outputs


@dataclass(frozen=True)
class _Done:
    """A picture whose results are written, or why they are not."""

    source: Path
    written: list[Path] = field(default_factory=list)
    size: tuple[int, int] = (0, 0)
    fractions: dict[str, float] = field(default_factory=dict)
    problem: str = ""
    is_huge: bool = False


def _results(target: Path, overlay: bool) -> list[list[Path]]:
    """Where a picture's results may lie: for each of them the names it may have."""
    mask = [target.with_name(f"{target.name}_mask.png")]
    drawn = [target.with_name(f"{target.name}_overlay.{ending}") for ending in ("jpg", "png")]
    return [mask, drawn] if overlay else [mask]


def _predict_one(segment: Segmenter, source: Path, target: Path, overlay: bool, tiles: _Tiles | None = None) -> _Done:
    """Write one picture's results, the mask last: where it is, all is. A picture that does not fit is left as it is."""
    from evitseg.image import MAX_JPEG_SIDE, save_picture

    try:
        if tiles is not None and not tiles.fit(segment, source):
            return _Done(source, is_huge=True)
        prediction = segment(source)
        (mask_path,), *more = _results(target, overlay)
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
    tiles: _Tiles, huge: list[tuple[Path, Path]],
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
    with _progress("segmenting", len(jobs), console, unit="pictures") as advance:
        finished = overlapped(jobs, lambda job: _predict_one(segment, *job, overlay, tiles), workers)
        for job, done in zip(jobs, finished, strict=True):
            advance(1)
            if done.is_huge:
                huge.append(job)
                continue
            if done.problem:
                problems.append(done.problem)
                _complain(done.problem)
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

    from evitseg.runtime.video import write_video

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
            _complain(error)
            continue
        if result.damage is not None:
            problems.append(result.damage)
            _complain(result.damage)
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
        _tell_fractions(console, f"{target.name}, {width}×{height}: {done}", result.fractions, segment.labels)
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
    _tell_fractions(console, f"{done.source.name}, {width}×{height}", done.fractions, labels)
    for path in done.written:
        console.print(Text(f"wrote {path}"), soft_wrap=True)


def _tell_fractions(console: Any, title: str, fractions: dict[str, float], labels: LabelSpace) -> None:
    from rich.table import Table
    from rich.text import Text

    colors = {c.name: c.color for c in labels.classes}
    console.print(Text(title, style="italic"), soft_wrap=True)
    table = Table(box=None, padding=(0, 1))
    for name, kind in (("class", "left"), ("share", "right"), ("", "left")):
        table.add_column(name, justify=kind)  # type: ignore[arg-type]  # rich's Literal, widened by the loop
    for name, share in fractions.items():
        bar = Text("█" * max(1, round(40 * share)), style=f"rgb({','.join(map(str, colors[name]))})")
        table.add_row(Text(name), f"{share:.1%}", bar)
    console.print(table)


@app.command()
@_plain_errors
def export(
    checkpoint: Annotated[
        str,
        typer.Argument(
            metavar="CHECKPOINT", help="A checkpoint (.safetensors, .pt, or our .onnx), a bundled or published model."
        ),
    ],
    to: Annotated[
        FormatName,
        typer.Option("--to", help="The kind of artefact; best: the fastest of them, tried out on this machine."),
    ] = FormatName.onnx,
    device: Annotated[DeviceName, typer.Option(help="Where --to best tries them.")] = DeviceName.here,
    threads: Threads = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            "-o",
            metavar="FILE",
            help="The file to write. (default: beside the checkpoint)",
            show_default=False,
        ),
    ] = None,
    weights: Annotated[
        WeightsName,
        typer.Option(help="Number format the weights are stored in; float16 halves the file, int8 makes it a third."),
    ] = WeightsName.float32,
    fp16: Annotated[bool, typer.Option("--fp16", help="The same as --weights float16.")] = False,
    int8: Annotated[
        str | None,
        typer.Option("--int8", metavar="DATA", help="The same as --weights int8 --data DATA.", show_default=False),
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(
            metavar="DATA",
            help="Pictures with masks, arranged as evitseg check knows it: score checkpoint and artefact on them.",
            show_default=False,
        ),
    ] = None,
    max_drop: Annotated[
        float, typer.Option(min=0, help="Points of mIoU that the artefact may score less than the checkpoint on DATA.")
    ] = 0.5,
    labels: Labels = None,
    size: Annotated[
        str | None,
        typer.Option(
            metavar="HEIGHTxWIDTH|PIXELS|native",
            help="HEIGHTxWIDTH: the only size it takes; litert, executorch, ncnn and coreml need one. PIXELS or "
            "'native': the short side at which pictures go through it, where the checkpoint does not say.",
            show_default=False,
        ),
    ] = None,
    pictures: Annotated[
        list[str] | None,
        typer.Option(
            "--pictures", metavar="FILE", help="Verify on these. (default: the shipped photograph)", show_default=False
        ),
    ] = None,
) -> None:
    """Convert a checkpoint for a device, and keep the file only if it agrees with the checkpoint on real pictures."""
    from dataclasses import replace

    if int8 is not None and (fp16 or weights is WeightsName.float16):
        raise typer.BadParameter("--int8 excludes --fp16 and --weights float16")
    stored = "int8" if int8 is not None else "float16" if fp16 else weights.value
    wanted = _export_size(size) if size is not None else None
    from evitseg.labels import load_labels
    from evitseg.loading import network_of

    label_space = load_labels(labels) if labels else None
    extras = {"litert": "litert-export", "executorch": "executorch", "ncnn": "ncnn-export", "coreml": "coreml"}
    network, manifest = network_of(checkpoint, extra=extras.get(to.value, "export"))
    from evitseg.exporters import FORMATS
    from evitseg.exporters import export as write

    preprocess = None
    if wanted is not None and not isinstance(wanted, tuple):
        preprocess = replace(manifest.preprocess, short_side=None if wanted == "native" else wanted)

    def tell(sentence: str) -> None:
        print(f"{sentence} ...", file=sys.stderr)

    if to is FormatName.best:
        _export_best(
            network,
            replace(manifest, preprocess=preprocess or manifest.preprocess, labels=label_space or manifest.labels),
            out or Path(checkpoint),
            size=wanted if isinstance(wanted, tuple) else None,
            pictures=pictures or (),
            data=int8 or data,
            max_drop=max_drop,
            threads=threads,
            tell=tell,
        )
        return
    form = FORMATS[to.value]
    place = out or form.name(Path(checkpoint).with_suffix("") if Path(checkpoint).exists() else checkpoint)
    path, manifest = write(
        (network, manifest),
        to.value,
        place,
        weights=stored,
        size=wanted if isinstance(wanted, tuple) else None,
        pictures=pictures or (),
        labels=label_space,
        preprocess=preprocess,
        data=int8 or data,
        max_drop=max_drop,
        tell=tell,
    )
    verification = manifest.verification
    assert verification is not None  # export verifies or raises
    files = form.files(path)
    print(f"wrote {path} ({form.size_bytes(path) / 1e6:.1f} MB, weights {manifest.weights})")
    if files[:-1]:
        print(f"keep beside it: {', '.join(file.name for file in files[:-1])}")
    print(
        f"verified on {verification.pictures} pictures{' against the rounded network' * (stored == 'int8')}: "
        "largest logit difference "
        f"{verification.largest_difference:.1e}, {verification.equal_pixels:.3%} of mask pixels equal"
    )
    if verification.measured_on:
        print(
            f"scored on {verification.measured_on} pictures: {verification.artefact_miou:.2f} % mIoU, "
            f"the checkpoint {verification.checkpoint_miou:.2f} %"
        )
    for layer, cost in manifest.kept.items():
        print(f"left in float16: {layer} (rounded alone it changes the logits by {cost:.1e} of their variance)")


def _export_best(network: Any, manifest: Manifest, place: Path, **options: Any) -> None:
    from rich.console import Console
    from rich.table import Table

    from evitseg.exporters import FORMATS
    from evitseg.exporters.best import export_best

    endings = [form.ending for form in FORMATS.values() if place.name.endswith(form.ending)]
    stem = place.with_name(place.name.removesuffix(endings[0])) if endings else place
    if stem.suffix in (".pt", ".pth", ".safetensors"):
        stem = stem.with_suffix("")
    path, best, tried = export_best(network, manifest, stem, **options)
    table = Table(box=None, padding=(0, 1))
    for column in ("format", "weights", "engine", "precision", "ms", "MB", "mIoU %", ""):
        table.add_column(column, justify="right" if column in ("ms", "MB", "mIoU %") else "left")
    for one in sorted(tried, key=lambda candidate: candidate.median_ms):
        table.add_row(
            one.to,
            one.weights,
            one.engine,
            one.precision,
            *(["", ""] if one.problem else [f"{one.median_ms:.1f}", f"{one.size_bytes / 1e6:.2f}"]),
            "" if one.miou is None else f"{one.miou:.2f}",
            "kept" if one is best else "not run" if one.problem else "",
        )
    Console(highlight=False).print(table)
    for problem, those in groupby(sorted((one.problem, one.to) for one in tried if one.problem), lambda pair: pair[0]):
        print(f"not run: {', '.join(dict.fromkeys(to for _, to in those))}: {problem}")
    print(f"wrote {path} ({best.size_bytes / 1e6:.1f} MB, weights {best.weights}), the smallest of those within 3 %")
    if beside := FORMATS[best.to].files(path)[:-1]:
        print(f"keep beside it: {', '.join(file.name for file in beside)}")
    print(f"run it with: evitseg predict --model {path} --engine {best.engine} --precision {best.precision} PICTURES")


Data = Annotated[
    str,
    typer.Argument(metavar="DATA", help="A folder of pictures and masks, a list of pairs (.txt), or a .yaml file."),
]
Workers = Annotated[int | None, typer.Option(min=1, help="Processes. (default: one a core)", show_default=False)]


@app.command()
@_plain_errors
def check(
    data: Data,
    labels: Labels = None,
    sheet: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Draw pictures with their masks on one sheet (.png).", show_default=False),
    ] = None,
    workers: Workers = None,
    as_json: AsJson = False,
) -> None:
    """Read all pictures and masks, and say what is wrong and how to mend it.

    Exit status 1 if training would fail. Pairs that cannot be used are named; training leaves them out.
    """
    from rich.console import Console
    from rich.text import Text

    from evitseg.dataset import contact_sheet, find_dataset, inspect
    from evitseg.image import EXTENSIONS, save_picture
    from evitseg.labels import load_labels

    if sheet is not None and sheet.suffix.lower() not in EXTENSIONS:
        raise typer.BadParameter(f"{sheet} must end in .png", param_hint="--sheet")
    dataset = find_dataset(data, load_labels(labels) if labels else None)
    console = Console(stderr=as_json, highlight=False)
    with _progress("reading", len(dataset.pairs()), console) as advance:
        inspection = inspect(dataset, workers or os.cpu_count() or 1, advance)
    if as_json:
        print(json.dumps(_inspection_numbers(inspection), indent=2))
    else:
        _tell_inspection(console, inspection)
    if sheet is not None:
        save_picture(contact_sheet(inspection), sheet)
        console.print(Text(f"wrote {sheet}"), soft_wrap=True)
    if not inspection.trains:
        raise typer.Exit(FAILED)


@contextlib.contextmanager
def _progress(what: str, total: int | None, console: Any, unit: str | None = None) -> Iterator[Callable[[int], None]]:
    """A bar that is gone when the work is done; what it gives counts on.

    Args:
        unit: of what is counted, to tell how many a second.
    """
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn(what),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[rate]}"),
    )
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task(what, total=total, rate="")

        def advance(done: int) -> None:
            progress.advance(task, done)
            speed = progress.tasks[task].speed
            if unit and speed:
                progress.update(task, rate=f"{speed:.1f} {unit}/s")

        yield advance


def _inspection_numbers(inspection: Inspection) -> dict[str, Any]:
    splits = {
        split: {
            "pairs": len(pairs),
            "usable": sum(f.split == split for f in inspection.usable),
            "frequencies": dict(
                zip(inspection.labels.names, inspection.frequencies(split).round(6).tolist(), strict=True)
            ),
        }
        for split, pairs in inspection.dataset.splits.items()
    }
    return {
        "layout": inspection.dataset.layout,
        "trains": inspection.trains,
        "labels": inspection.labels.name,
        "splits": splits,
        "problems": inspection.problems,
        "duplicates": [[str(f.pair.picture) for f in leak] for leak in inspection.leaks],
    }


def _tell_inspection(console: Any, inspection: Inspection) -> None:
    from rich.table import Table
    from rich.text import Text

    from evitseg.dataset import ALL

    dataset, labels = inspection.dataset, inspection.labels
    console.print(Text(f"{dataset.root}: {dataset.layout}, {len(labels.classes)} classes ({labels.name})"))
    table = Table(box=None, padding=(0, 1))
    table.add_column("class")
    for split in dataset.splits:
        table.add_column(f"{split} %", justify="right")
    shares = [inspection.frequencies(split) for split in dataset.splits]
    for i, name in enumerate(labels.names):
        table.add_row(Text(name), *(f"{100 * share[i]:.2f}" for share in shares))
    table.add_row()
    for what, chosen in (("pairs", inspection.findings), ("usable", inspection.usable)):
        table.add_row(what, *(str(sum(f.split == split for f in chosen)) for split in dataset.splits))
    sizes = sorted({f.size for f in inspection.usable}, key=lambda size: size[0] * size[1])
    console.print(table)
    if sizes:
        smallest, largest = sizes[0], sizes[-1]
        span = f"{smallest[1]}×{smallest[0]}" + (f" to {largest[1]}×{largest[0]}" if len(sizes) > 1 else "")
        console.print(f"picture sizes: {span}")
    absent = [name for name, share in zip(labels.names, inspection.frequencies(), strict=True) if share == 0]
    if absent:
        console.print(Text(f"classes that no mask has: {', '.join(absent)}"))
    if list(dataset.splits) == [ALL]:
        console.print("no split: training holds out a fifth, the same one for the same --seed")
    for first, second in inspection.leaks:
        _complain(f"{second.pair.picture}: the same picture as {first.pair.picture}, which is in {first.split}.")
    for problem in inspection.problems:
        _complain(problem)
    if inspection.trains:
        left_out = len(inspection.findings) - len(inspection.usable)
        console.print("ready to train" + (f"; {left_out} pairs will be left out" if left_out else ""))
    else:
        _complain(
            "training would fail: "
            + (
                "masks have ids without a class; add them with --labels, or mend the masks."
                if any(f.stranger for f in inspection.findings)
                else "there is no usable pair to train on."
            )
        )


@app.command(name="convert-coco")
@_plain_errors
def convert_coco(
    annotations: Annotated[Path, typer.Argument(metavar="JSON", help="COCO annotations: polygons or run lengths.")],
    images: Annotated[Path, typer.Option(metavar="DIR", help="The folder that the file names in it start from.")],
    out: Annotated[Path, typer.Option("--out", "-o", metavar="DIR", help="Where masks, pairs.txt and labels.json go.")],
    ignore_background: Annotated[
        bool, typer.Option("--ignore-background", help="Pixels of no object do not count, instead of being a class.")
    ] = False,
) -> None:
    """Make masks from COCO annotations; check, eval and training take the pairs.txt it writes."""
    from rich.console import Console
    from rich.text import Text

    from evitseg import coco

    console = Console(highlight=False)
    # How many there are is known once the file is read; the bar then shows no end.
    with _progress("drawing", None, console) as advance:
        pairs = coco.convert_coco(annotations, images, out, ignore_background=ignore_background, progress=advance)
    console.print(Text(f"wrote {pairs}; look at it with: evitseg check {pairs} --sheet sheet.png"), soft_wrap=True)


@app.command(name="eval")
@_plain_errors
def evaluate(
    data: Data,
    model: Model = None,
    masks: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Measure these predicted masks instead of a model.", show_default=False),
    ] = None,
    split: Annotated[
        str | None,
        typer.Option(help="Which split. (default: val, else test, else all there is)", show_default=False),
    ] = None,
    labels: Labels = None,
    size: WorkingSize = None,
    tta: Annotated[bool, typer.Option("--tta", help="Look at three scales and the mirrored picture.")] = False,
    report: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Also write an HTML page with the worst pictures.", show_default=False),
    ] = None,
    engine: Engine = None,
    precision: Precision = PrecisionName.auto,
    threads: Threads = None,
    workers: Annotated[int, typer.Option(min=1, help="Processes.")] = 1,
    as_json: AsJson = False,
) -> None:
    """Measure a model, or masks that were predicted before, on pictures with masks."""
    if masks is not None and (model is not None or tta):
        raise typer.BadParameter("predicted masks need neither a model nor --tta", param_hint="--masks")
    working_size = _size(size) if size is not None else None
    from functools import partial

    from rich.console import Console
    from rich.text import Text

    from evitseg.dataset import find_dataset, infer_labels
    from evitseg.labels import aligned, load_labels
    from evitseg.metrics import evaluate as measure
    from evitseg.metrics import evaluate_in_processes

    dataset = find_dataset(data, load_labels(labels) if labels else None)
    split = split or next((name for name in ("val", "test") if name in dataset.splits), None)
    pairs = dataset.pairs(split)
    settings = {"data": str(dataset.root), "split": split or "all"}
    make: Callable[[], tuple[Callable[[Any], Any], bool]]
    if masks is not None:
        space = dataset.labels or infer_labels(pairs)
        make = partial(_masks_to_measure, masks, space)
        settings["masks"] = str(masks)
    else:
        choice = (model, engine.value if engine else None, threads, precision.value, working_size, tta)
        segment = _segmenter(*choice[:-1])
        space = aligned(dataset.labels, segment.labels) if dataset.labels else segment.labels
        make = partial(_model_to_measure, *choice)
        if dataset.labels is None:
            settings["classes"] = "the model's, by number: the data names none"
        settings |= {
            "model": segment.manifest.name,
            "runs": str(segment.info),
            "size": str(working_size or "the model's rule"),
            "tta": "three scales and mirrored" if tta else "no",
        }

    console = Console(stderr=as_json, highlight=False)
    with _progress("measuring", len(pairs), console) as advance:
        if workers > 1:
            result = evaluate_in_processes(make, pairs, space, workers, settings=settings, progress=advance)
        else:
            mask_of, by_pair = make()
            result = measure(mask_of, pairs, space, settings=settings, by_pair=by_pair, progress=advance)
    if as_json:
        print(result.to_json())
    else:
        _tell_report(console, result)
    if report is not None:
        from evitseg.image import read_picture
        from evitseg.report import write_html

        mask_of, by_pair = make()
        of_pair = mask_of if by_pair else (lambda pair: mask_of(read_picture(pair.picture)))
        title = f"{settings.get('model', masks)} on {dataset.root.resolve().name}"
        write_html(result, report, of_pair, title)
        console.print(Text(f"wrote {report}"), soft_wrap=True)
    for sentence in result.skipped:
        _complain(sentence)
    if result.skipped:
        _fail(f"{len(result.skipped)} of {len(pairs)} pairs could not be measured; the numbers are without them.")


def _segmenter(model: str | None, engine: str | None, threads: int | None, precision: Any, size: Size) -> Segmenter:
    from evitseg.loading import load

    return load(model, engine=engine, threads=threads, precision=precision, size=size)


def _model_to_measure(
    model: str | None, engine: str | None, threads: int | None, precision: str, size: Size, tta: bool
) -> tuple[Callable[[Any], Any], bool]:
    segment = _segmenter(model, engine, threads, precision, size)
    if tta:
        return segment.mask_tta, False
    return (lambda pair: segment(pair.picture).mask), True  # from the file, as predict does it


def _masks_to_measure(folder: Path, labels: LabelSpace) -> tuple[Callable[[Any], Any], bool]:
    from evitseg.metrics import PredictedMasks

    return PredictedMasks(folder, labels), True


def _tell_report(console: Any, result: Report) -> None:
    from rich.table import Table
    from rich.text import Text

    def percent(value: float) -> str:
        return "–" if value != value else f"{100 * value:.2f}"

    console.print(
        Text(", ".join(f"{key}: {value}" for key, value in result.settings.items()), style="dim"), soft_wrap=True
    )
    table = Table(box=None, padding=(0, 1))
    for column in ("class", "IoU %", "found %", "boundary IoU %"):
        table.add_column(column, justify="left" if column == "class" else "right")
    rows = zip(result.labels.names, result.iou, result.accuracy, result.boundary_iou, strict=True)
    for name, *values in rows:
        table.add_row(Text(name), *map(percent, values))
    table.add_row("mean", percent(result.miou), "", percent(result.mean_boundary_iou), style="bold")
    console.print(table)
    console.print(
        f"{len(result.pictures)} pictures, pixel accuracy {percent(result.pixel_accuracy)} %, "
        f"frequency-weighted IoU {percent(result.frequency_weighted_iou)} %"
    )


@app.command()
@_plain_errors
def train(
    data: Data,
    out: Annotated[Path, typer.Option("--out", "-o", metavar="RUN", help="The run's folder.")] = Path("runs/train"),
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run in --out, with its settings.")] = False,
    recipe: Annotated[
        str, typer.Option(metavar="NAME|FILE", help="Settings to begin with; the options here go before them.")
    ] = "",
    variant: Annotated[str | None, typer.Option(help="b0 to b3, l0 to l3. (default: b0)", show_default=False)] = None,
    start: Annotated[
        str | None,
        typer.Option(
            metavar="MODEL|none",
            help="Weights to start from: a checkpoint, a published model's name, or none for random ones. "
            "(default: the variant's published Cityscapes weights)",
            show_default=False,
        ),
    ] = None,
    epochs: Annotated[int | None, typer.Option(min=1, help="Passes over the pictures. (default: 100)")] = None,
    batch: Annotated[
        str | None,
        typer.Option(metavar="N|auto", help="Pictures a step; auto measures which number is fastest. (default: 8)"),
    ] = None,
    crop: Annotated[
        str | None, typer.Option(metavar="HxW", help="Pieces that are trained on, in pixels. (default: 512x512)")
    ] = None,
    size: WorkingSize = None,
    learning_rate: Annotated[
        float | None, typer.Option("--learning-rate", "--lr", help="At its highest. (default: 0.001)")
    ] = None,
    labels: Labels = None,
    freeze_backbone: Annotated[bool, typer.Option("--freeze-backbone", help="Train the head alone.")] = False,
    precision: Annotated[
        str | None, typer.Option(help="float32, or bfloat16 or float16 for mixed precision. (default: float32)")
    ] = None,
    workers: Annotated[int | None, typer.Option(min=0, help="Processes that read pictures. (default: 1)")] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Of everything that is random. (default: 0)")] = None,
    changes: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="NAME=VALUE", help="Any other setting, such as rotate=10; docs/training.md."),
    ] = None,
) -> None:
    """Train on your own masks. A run that was stopped, however, goes on with --resume."""
    options: dict[str, Any] = {
        "variant": variant, "start": start, "epochs": epochs, "learning_rate": learning_rate, "precision": precision,
        "workers": workers, "seed": seed, "freeze_backbone": freeze_backbone or None,
    }  # fmt: skip
    if crop is not None:
        height, _, width = crop.partition("x")
        if not (height.isdigit() and width.isdigit()):
            raise typer.BadParameter(f"{crop!r} is not HEIGHTxWIDTH, such as 352x480", param_hint="--crop")
        options["crop"] = [int(height), int(width)]
    if batch is not None and batch != "auto":
        if not batch.isdigit():
            raise typer.BadParameter(f"{batch!r} is neither a number of pictures nor auto", param_hint="--batch")
        options["batch"] = int(batch)
    if size is not None:
        working_size = _size(size)
        options["size"] = working_size if isinstance(working_size, int) else "native"
    try:
        from evitseg.train import fit
        from evitseg.train.tune import tuned
    except ImportError as error:
        from evitseg.errors import MissingPackageError

        raise MissingPackageError("training", "train") from error
    from dataclasses import replace

    from evitseg.config import PUBLISHED_SEGMENTATION
    from evitseg.dataset import find_dataset
    from evitseg.labels import load_labels
    from evitseg.train.config import FRESH, read_config, read_recipe, structured

    if resume:
        config = read_config(out)
        given = [name for name, value in options.items() if value is not None and name != "workers"]
        if given or batch or recipe or changes:
            what = f"--{given[0].replace('_', '-')}" if given else "--batch, --recipe and --set"
            raise EvitsegError(f"--resume goes on with the run's own settings; leave out {what}, or begin a new run.")
        if workers is not None:
            config = replace(config, workers=workers)
    else:
        settings = read_recipe(recipe) | {name: value for name, value in options.items() if value is not None}
        settings |= read_recipe("", changes or ())
        settings = {name: value for name, value in settings.items() if (name, value) != ("size", "native")}
        published = f"{settings.get('variant', 'b0')}-cityscapes"
        settings.setdefault("start", published if published in PUBLISHED_SEGMENTATION else FRESH)
        config = structured(settings, recipe or "settings")
        if batch == "auto":
            dataset = find_dataset(data)
            pictures = sum(len(pairs) for split, pairs in dataset.splits.items() if split not in ("val", "test"))
            config, tried = tuned(config, pictures, scale_rate="learning_rate" not in settings)
            for number, speed in tried.items():
                print(f"batch {number:>4}: {speed:7.1f} pictures/s", file=sys.stderr)
            print(f"taken: batch {config.batch}, learning rate {config.learning_rate:.2g}", file=sys.stderr)
    quiet = os.environ.get("RANK", "0") != "0"  # one of torchrun's processes speaks for all
    with _training_progress(quiet) as watch:
        run = fit(
            data,
            config,
            out,
            resume=resume,
            labels=load_labels(labels) if labels else None,
            check_workers=os.cpu_count() or 1,
            watch=watch,
        )
    if quiet:
        return
    for sentence in run.left_out:
        _complain(sentence)
    print(f"best mIoU on the validation pictures {100 * run.miou:.2f}; curves and pictures are in {run.folder}")
    for command in run.commands:
        print(command)


@contextlib.contextmanager
def _training_progress(quiet: bool) -> Iterator[Callable[[Event], None]]:
    """A bar with loss, rate and time left; after an epoch the classes' IoU."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
    from rich.text import Text

    console = Console(highlight=False, quiet=quiet)
    columns = (
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(),
        TextColumn(
            "loss {task.fields[loss]:.3f}, rate {task.fields[rate]:.1e}, "
            "{task.fields[speed]:.1f} pictures/s{task.fields[miou]}"
        ),
    )  # fmt: skip
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        task = progress.add_task("training", total=None, loss=float("nan"), rate=0.0, speed=0.0, miou="")

        def watch(event: Event) -> None:
            description = f"epoch {event.epoch}/{event.epochs}"
            progress.update(
                task, total=event.steps, completed=event.step, description=description, loss=event.loss,
                rate=event.learning_rate, speed=event.pictures_per_s,
            )  # fmt: skip
            if event.report is not None:
                progress.update(task, miou=f", mIoU {100 * event.report.miou:.2f}")
                line = f"{description}: loss {event.loss:.3f}, mIoU {100 * event.report.miou:.2f}"
                console.print(Text(line), soft_wrap=True)
                for row in _class_rows(event.report, console.width):
                    console.print(Text(row), soft_wrap=True)

        yield watch


def _class_rows(report: Report, width: int) -> list[str]:
    """The IoU of every class in percent, in columns that fill a terminal."""
    shares = report.to_dict()["iou"]
    longest = max(len(name) for name in shares)
    cells = [f"  {name:<{longest}} {'–' if v is None else f'{100 * v:.1f}':>5}" for name, v in shares.items()]
    columns = max(1, width // len(cells[0]))
    return ["".join(cells[at : at + columns]) for at in range(0, len(cells), columns)]


@app.command()
@_plain_errors
def bench(
    model: Annotated[
        str | None,
        typer.Argument(metavar="MODEL", help="As predict's --model. (default: the bundled model)", show_default=False),
    ] = None,
    size: Annotated[
        list[str] | None,
        typer.Option(
            metavar="HEIGHTxWIDTH",
            help="Of the picture and the network's input; may be given several times. (default: 256x256 to 4096x4096; "
            "1024x2048 where one size is looked at)",
            show_default=False,
        ),
    ] = None,
    picture: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Stretched to every size. (default: the shipped photograph)", show_default=False
        ),
    ] = None,
    turns: Annotated[int, typer.Option(min=1, help="How often each is measured.")] = 15,
    threads: Threads = None,
    engine: Engine = None,
    precision: Precision = PrecisionName.auto,
    profile: Annotated[
        bool, typer.Option("--profile", help="Of one size: the time of every layer, beside what the machine can do.")
    ] = False,
    roofline: Annotated[
        Path | None,
        typer.Option(metavar="FILE.png", help="Draw the profile as a roofline picture.", show_default=False),
    ] = None,
    compare: Annotated[
        bool, typer.Option("--compare", help="Of one size: every engine that runs the model, at every precision.")
    ] = False,
    markdown: Annotated[bool, typer.Option("--markdown", help="Print tables to paste.")] = False,
    as_json: AsJson = False,
) -> None:
    """Measure how fast a model is here: the network alone, and from a JPEG file to a mask file.

    Every size and engine is measured in a process of its own, warm.
    """
    sizes = [_export_size(text) for text in size or []]
    if not all(isinstance(sides, tuple) for sides in sizes):
        raise typer.BadParameter("give sizes as HEIGHTxWIDTH, such as 512x1024", param_hint="--size")
    profile = profile or roofline is not None
    if (profile or compare) and len(sizes) > 1:
        raise typer.BadParameter("--profile, --roofline and --compare look at one size; give one", param_hint="--size")
    if compare and (engine is not None or precision is not PrecisionName.auto):
        raise typer.BadParameter("it tries every engine at every precision; leave both out", param_hint="--compare")
    import shlex

    from evitseg import bench as measure
    from evitseg.bundled import EXAMPLE_PICTURE

    if roofline is not None:
        from evitseg.profile import check_drawing

        check_drawing(roofline)
    subject = measure.Subject(model, engine.value if engine else None, precision.value, threads)
    command, place = shlex.join(["evitseg", *sys.argv[1:]]), measure.machine()
    content: dict[str, Any] = {
        "command": command,
        "machine": place.to_dict(),
        "model": subject.segmenter.manifest.name,
        "runs": str(subject.segmenter.info),
    }

    def show(*lines: str) -> None:
        if not as_json:
            print(*lines, sep="\n", flush=True)

    one = profile or compare
    chosen = subject.sizes(sizes, [measure.ONE_SIZE] if one else measure.SIZES)  # type: ignore[arg-type]
    shown = picture or EXAMPLE_PICTURE
    timings = []
    for timing in measure.bench(subject, shown, chosen, turns):
        timings.append(timing)
        print(f"measured {timing.height}x{timing.width} ({len(timings)} of {len(chosen)})", file=sys.stderr, flush=True)
    show(
        *(["```", f"$ {command}", "```", ""] if markdown else []), str(place), f"{content['model']}: {content['runs']}"
    )
    table = measure.Table(measure.Timing.HEADER, markdown)
    show("", *table.lines(timing.cells(timings) for timing in timings))
    content["sizes"] = [timing.to_dict(timings) for timing in timings]
    content["noise"] = max(timing.noise for timing in timings)
    show("", measure.said_of_noise(content["noise"]))
    sides = timings[-1].height, timings[-1].width
    if profile:
        from evitseg.profile import draw
        from evitseg.profile import profile as take_apart

        found = take_apart(subject, shown, sides, turns)
        content["profile"] = found.to_dict()
        show("", *found.tables(markdown))
        if roofline is not None:
            draw(found, f"{content['model']} at {sides[0]}x{sides[1]}", roofline)
            show("", f"wrote {roofline}")
    if compare:
        engines = measure.compare(subject, shown, sides, turns)
        content["engines"] = [row.to_dict() for row in engines]
        show("", *measure.compared_table(engines, markdown))
    if as_json:
        print(json.dumps(content, indent=2))


@app.command()
@_plain_errors
def average(
    checkpoints: Annotated[list[str], typer.Argument(metavar="CHECKPOINT...", help="Two or more, of the same start.")],
    out: Annotated[Path, typer.Option("--out", "-o", metavar="FILE", help="The checkpoint to write (.safetensors).")],
    shares: Annotated[
        str | None, typer.Option(metavar="A,B,...", help="Of each. (default: equal ones)", show_default=False)
    ] = None,
) -> None:
    """Make one checkpoint of several runs that began as the same weights: as fast as one, often better than each."""
    from evitseg.errors import MissingPackageError

    try:
        from evitseg.model.weights import average_checkpoints, save_checkpoint
    except ImportError as error:
        raise MissingPackageError("averaging checkpoints", "torch") from error
    if out.suffix != ".safetensors":
        raise typer.BadParameter(f"{out} does not end in .safetensors", param_hint="--out")
    try:
        parts = [float(part) for part in shares.split(",")] if shares else None
    except ValueError as error:
        raise typer.BadParameter(f"{shares!r} is not numbers with commas between", param_hint="--shares") from error
    network, manifest = average_checkpoints(checkpoints, parts)
    save_checkpoint(network, manifest, out)
    print(f"wrote {out}, the mean of {len(checkpoints)} checkpoints; measure it before you use it:")
    print(f"evitseg eval DATA --model {out}")


@app.command()
@_plain_errors
def polygons(
    mask: Annotated[Path, typer.Argument(metavar="MASK", help="A mask of class indices: .tif, .png or .zarr.")],
    out: Annotated[Path, typer.Option("--out", "-o", metavar="FILE", help="Ends in .geojson or .gpkg.")],
    classes: Annotated[
        list[str] | None,
        typer.Option("--class", metavar="NAME", help="Write this class; may be given several times. (default: all)"),
    ] = None,
    minimum_pixels: Annotated[int, typer.Option(min=1, help="Leave out smaller regions.")] = 1,
    labels: Labels = None,
) -> None:
    """Outline the regions of a mask, as polygons in its place on earth, or in pixels where it has none."""
    from evitseg.labels import load_labels

    _write_polygons(mask, out, load_labels(labels) if labels else None, classes, minimum_pixels)


def _write_polygons(
    mask: Path, out: Path, labels: LabelSpace | None, classes: list[str] | None = None, minimum_pixels: int = 1,
    quiet: bool = False,
) -> None:  # fmt: skip
    """Outline the regions of a mask file, with a bar, and say what was written."""
    from rich.console import Console
    from rich.progress import Progress

    from evitseg.raster.outlines import polygons as outline

    console = Console(stderr=True, highlight=False)
    with Progress(console=console, disable=not console.is_terminal, transient=True) as bar:
        task = bar.add_task("outlining", total=1.0)
        written = outline(mask, out, labels, classes, minimum_pixels, lambda share: bar.update(task, completed=share))
    counts = ", ".join(f"{name} {count}" for name, count in written.polygons.items() if count)
    where = "pixels, because the mask has no place on earth" if written.in_pixels else "coordinates on earth"
    if quiet:
        return
    print(f"wrote {out}: polygons of {counts or 'nothing'}; in {where}.")


@app.command()
@_plain_errors
def info(
    model: Annotated[
        str | None,
        typer.Argument(metavar="MODEL", help="An artefact, a checkpoint, or a model's name.", show_default=False),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Say what a model is; without one, what is installed and which models there are."""
    from rich.console import Console

    content = _about_model(model) if model else _about_package()
    if as_json:
        print(json.dumps(content, indent=2))
    else:
        _show(Console(highlight=False), content)


def _about_package() -> dict[str, Any]:
    from importlib.util import find_spec

    from evitseg import __version__
    from evitseg.bundled import DEFAULT_MODEL, bundled_models
    from evitseg.config import BACKBONES, PUBLISHED_SEGMENTATION, cost, model_config

    modules = {"litert": "ai_edge_litert"}
    return {
        "version": __version__,
        "engines": {name.value: find_spec(modules.get(name.value, name.value)) is not None for name in EngineName},
        "bundled models": {name: "the default" * (name == DEFAULT_MODEL) for name in bundled_models()},
        "published models": {name: _cost(cost(config)) for name, config in PUBLISHED_SEGMENTATION.items()},
        "variants": {name: _cost(cost(model_config(name, 19))) for name in BACKBONES},
    }


def _about_model(model: str) -> dict[str, Any]:
    from dataclasses import asdict

    from evitseg.bundled import bundled_models
    from evitseg.config import PUBLISHED_SEGMENTATION, cost, short_name
    from evitseg.loading import ARTEFACT_ENDINGS, network_of

    short = short_name(model)
    if short in PUBLISHED_SEGMENTATION:  # known without its weights: nothing is downloaded
        config = PUBLISHED_SEGMENTATION[short]
        return {"name": short, "variant": config.variant, "classes": config.num_classes} | _cost(cost(config))
    path = bundled_models().get(model, Path(model))
    manifest: Manifest
    if path.suffix in ARTEFACT_ENDINGS:
        from evitseg.runtime.engines import read_manifest

        manifest = read_manifest(path)
    else:
        manifest = network_of(model)[1]
    return {
        "name": manifest.name,
        "file": str(path),
        "variant": manifest.model.variant,
        "classes": list(manifest.labels.names),
        **_cost(manifest.cost),
        "weights": manifest.weights,
        "preprocess": asdict(manifest.preprocess),
        "training": asdict(manifest.training),
        "accuracy": [asdict(accuracy) for accuracy in manifest.accuracy],
        "verification": asdict(manifest.verification) if manifest.verification else None,
        "checkpoint sha256": manifest.checkpoint_sha256,
        "written by": f"evitseg {manifest.evitseg_version}",
    }


def _cost(of: Cost) -> dict[str, Any]:
    return {
        "parameters": of.parameters,
        "MACs at 512×512": round(of.macs(512, 512)),
        "MACs at 1024×2048": round(of.macs(1024, 2048)),
    }


def _show(console: Any, content: dict[str, Any]) -> None:
    from rich.table import Table
    from rich.text import Text

    for key, value in content.items():
        if isinstance(value, dict) and value and all(isinstance(row, dict) for row in value.values()):
            table = Table(title=Text(key), title_justify="left", box=None, padding=(0, 1), title_style="bold")
            table.add_column("")
            for column in next(iter(value.values())):
                table.add_column(column, justify="right")
            for name, row in value.items():
                table.add_row(Text(name), *(Text(_short(cell)) for cell in row.values()))
            console.print()
            console.print(table)
        elif isinstance(value, dict):
            console.print(Text(key, style="bold"))
            for name, entry in value.items():
                console.print(Text(f"  {name}: {_short(entry)}" if entry != "" else f"  {name}"))
        elif isinstance(value, list) and value and isinstance(value[0], dict):
            for row in value:
                _show(console, {key: row})
        else:
            console.print(Text.assemble((key, "bold"), f" {_short(value)}"))


def _short(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "not installed"
    if isinstance(value, int) and value >= 10**9:
        return f"{value / 1e9:.1f} G"
    if isinstance(value, int) and value >= 10**4:
        return f"{value / 1e6:.1f} M"
    if isinstance(value, (list, tuple)):
        return ", ".join(map(_short, value))
    if isinstance(value, dict):
        return ", ".join(f"{key} {_short(entry)}" for key, entry in value.items())
    return "none" if value is None else str(value)
