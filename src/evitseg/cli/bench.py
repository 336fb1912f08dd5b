"""evitseg bench."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from evitseg.cli.app import plain_errors
from evitseg.cli.options import AsJson, Engine, Precision, PrecisionName, Threads, parse_export_size


@plain_errors
def bench(
    model: Annotated[
        str | None,
        typer.Argument(metavar="MODEL", help="As predict's --model. (default: the bundled model)", show_default=False),
    ] = None,
    size: Annotated[
        list[str] | None,
        typer.Option(
            metavar="HEIGHTxWIDTH",
            help="Of the image and the network's input; may be given several times. (default: 256x256 to 4096x4096; "
            "1024x2048 where one size is looked at)",
            show_default=False,
        ),
    ] = None,
    image: Annotated[
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
        typer.Option(metavar="FILE.png", help="Draw the profile as a roofline image.", show_default=False),
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
    sizes = [parse_export_size(text) for text in size or []]
    if not all(isinstance(sides, tuple) for sides in sizes):
        raise typer.BadParameter("give sizes as HEIGHTxWIDTH, such as 512x1024", param_hint="--size")
    profile = profile or roofline is not None
    if (profile or compare) and len(sizes) > 1:
        raise typer.BadParameter("--profile, --roofline and --compare look at one size; give one", param_hint="--size")
    if compare and (engine is not None or precision is not PrecisionName.auto):
        raise typer.BadParameter("it tries every engine at every precision; leave both out", param_hint="--compare")
    import shlex

    from evitseg.bundled import EXAMPLE_IMAGE
    from evitseg.profiling import bench as measure
    from evitseg.profiling.worker import Table
    from evitseg.system.machine import machine

    if roofline is not None:
        from evitseg.profiling.roofline import check_drawing

        check_drawing(roofline)
    subject = measure.Subject(model, engine.value if engine else None, precision.value, threads)
    command, place = shlex.join(["evitseg", *sys.argv[1:]]), machine()
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
    shown = image or EXAMPLE_IMAGE
    timings = []
    for timing in measure.bench(subject, shown, chosen, turns):
        timings.append(timing)
        print(f"measured {timing.height}x{timing.width} ({len(timings)} of {len(chosen)})", file=sys.stderr, flush=True)
    show(
        *(["```", f"$ {command}", "```", ""] if markdown else []), str(place), f"{content['model']}: {content['runs']}"
    )
    table = Table(measure.Timing.HEADER, markdown)
    show("", *table.lines(timing.cells(timings) for timing in timings))
    content["sizes"] = [timing.to_dict(timings) for timing in timings]
    content["noise"] = max(timing.noise for timing in timings)
    show("", measure.said_of_noise(content["noise"]))
    sides = timings[-1].height, timings[-1].width
    if profile:
        from evitseg.profiling.profile import profile as take_apart
        from evitseg.profiling.roofline import draw

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
