"""predict for images in tiles or sliding windows, on one machine or on a Ray cluster."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from evitseg.cli.console import FAILED, complain, fail, note, progress_bar, tell_fractions
from evitseg.cli.inputs import find_inputs, is_huge, mask_place, name_outputs
from evitseg.cli.options import EngineName, PrecisionName
from evitseg.cli.polygons import write_polygons
from evitseg.errors import EvitsegError

if TYPE_CHECKING:
    from evitseg.image import Size
    from evitseg.labels import LabelSpace
    from evitseg.runtime.blending import Blended
    from evitseg.runtime.segmenter import Segmenter
    from evitseg.runtime.streaming import Network, Streamed
    from evitseg.runtime.windows import Source, Window


@dataclass(frozen=True)
class ForOne:
    """What predict can do with one picture alone; all of it in tiles."""

    save_context: Path | None = None
    context: Path | None = None
    region: Window | None = None
    polygons: Path | None = None


@dataclass(frozen=True)
class Tiles:
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
    for_one: ForOne

    def fit(self, segment: Segmenter, source: Path, at_once: int = 1) -> bool:
        """Whether a picture can go through whole, `at_once` of them in hand. Raises: PictureError, ConfigError."""
        from evitseg.image import TooManyPixelsError, picture_size
        from evitseg.raster import SLIDE_ENDINGS
        from evitseg.runtime.memory import fits

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
        return fits(segment.manifest.model, size, working, self.memory, at_once)


def check_blend(window: int, tiles: Tiles, exact: bool, ray: str | None) -> None:
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


def predict_exactly(
    inputs: list[str], out: Path, is_mask: bool, skip_existing: bool, tiles: Tiles, native: bool, as_json: bool
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
    found = list(find_inputs(inputs, out, problems))
    for problem in problems:
        complain(problem)
    if len(found) > 1 and (is_mask or for_one != ForOne()):
        raise typer.BadParameter("give one picture, or a folder as --out", param_hint="INPUT...")
    if not is_mask and out.is_file():
        fail(f"{out}: cannot be written to, it is a file; give a folder as --out.")
    jobs = [(Path(source), target) for source, target in name_outputs([*found], out)]
    jobs = [(source, out if is_mask else mask_place(source, target)) for source, target in jobs]
    left = [job for job in jobs if not (skip_existing and job[1].exists())]
    if len(left) < len(jobs):
        note(f"{len(jobs) - len(left)} pictures have their results and are left out.", as_json)
    results = predict_in_tiles(left, tiles, as_json, problems, native)
    if as_json:
        print(json.dumps({"pictures": results}, indent=2))
    if problems:
        raise typer.Exit(FAILED)


def predict_in_tiles(
    jobs: list[tuple[Path, Path]], tiles: Tiles, as_json: bool, problems: list[str], native: bool = False
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
        complain(problems[-1])

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
            tell_fractions(console, f"{source.name}, {width}×{height}, {how}", result["fractions"], network.labels)
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
    path: Path, place: Path, network: Network, tiles: Tiles, native: bool, as_json: bool
) -> tuple[dict[str, Any], list[str]]:
    """One mask, or a region of it. Returns: what --json tells, and what of the picture could not be read."""
    from rich.console import Console

    from evitseg.image import MAX_PIXELS
    from evitseg.loading import load
    from evitseg.raster import check_place, open_sink, part_of
    from evitseg.runtime.memory import default_memory
    from evitseg.runtime.streaming import Context, Progress, render, segment_huge
    from evitseg.runtime.streaming import verify as compare
    from evitseg.runtime.windows import tiles_of

    for_one, scratch = tiles.for_one, tiles.scratch or place.parent
    for folder in (scratch, place.parent):
        with contextlib.suppress(OSError):  # told where it is used
            folder.mkdir(parents=True, exist_ok=True)
    damages: list[str] = []
    memory = default_memory() if tiles.memory is None else tiles.memory
    with _windows_of(path, scratch, memory) as source:
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
            with progress_bar("segmenting", None, Console(stderr=True, highlight=False)) as advance:

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
                    complain(f"stopped before the end; the same command goes on, from hidden files in {where}.")
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
        write_polygons(place, for_one.polygons, labels, quiet=as_json)
        result["polygons"] = str(for_one.polygons)
    return result, damages


def _blend_windows(source: Source, place: Path, network: Network, tiles: Tiles, window: int) -> Blended:
    """Write the mask of windows that are blended."""
    from rich.console import Console

    from evitseg.raster import open_sink
    from evitseg.runtime.blending import blend
    from evitseg.runtime.streaming import Progress

    with progress_bar("segmenting", None, Console(stderr=True, highlight=False)) as advance:

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


def predict_on_ray(inputs: list[str], out: Path, is_mask: bool, tiles: Tiles, address: str, as_json: bool) -> None:
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
    if len(inputs) > 1 and (for_one != ForOne() or is_mask):
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
            in_windows = kind in ("tiff", "zarr") or is_huge(Path(given))
            ending = {"tiff": ".tif", "zarr": ".zarr"}.get(kind, ".png")
            place = out if is_mask else out / f"{Path(given).stem}_mask{ending}"
            with ExitStack() as stack:
                source: Source = (
                    stack.enter_context(open_source(given)) if in_windows else ArraySource(read_picture(given))
                )
                sink = stack.enter_context(open_sink(place, source, network.labels))
                advance = stack.enter_context(progress_bar("segmenting", None, console))

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
                write_polygons(place, for_one.polygons, labels, quiet=as_json)
                result["polygons"] = str(for_one.polygons)
            damages += [f"{given}: {damage.reason}" for damage in streamed.damages]
            results.append(result)
    if as_json:
        print(json.dumps({"model": network.manifest.name, "runs": str(network.info), "pictures": results}, indent=2))
    else:
        for result in results:
            print(f"wrote {result['mask']}")
    for damage in damages:
        complain(damage)
    if damages:
        raise typer.Exit(FAILED)


def _fractions_of(streamed: Streamed | Blended, labels: LabelSpace) -> dict[str, float]:
    """Share of the pixels of every class that occurs; those without data count among the pixels."""
    counts = streamed.counts[: len(labels.names)].tolist()
    total = int(streamed.counts.sum())
    return {name: count / total for name, count in zip(labels.names, counts, strict=True) if count}
