"""evitseg bench."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from evitseg.cli.command import option, verb
from evitseg.cli.options import AT_LEAST_1, DEVICE, ENGINE, FILE, PRECISION, THREADS, pinned_model
from evitseg.cli.output import Output
from evitseg.cli.values import Parsed, parse_sides

if TYPE_CHECKING:
    from evitseg.engine import Precision


@verb(
    "bench",
    ("evitseg bench", "The bundled model at sizes from 256x256 to 4096x4096."),
    ("evitseg bench model.onnx --size 512x1024 --compare", "Every engine and precision at one size."),
    ("evitseg bench b0-camvid --size 1024x2048 --roofline roofline.png", "Where the time goes, drawn as a roofline."),
)
@click.argument(
    "model",
    required=False,
    metavar="[MODEL]",
    help="A model's name, a checkpoint, an exported model, or hf://owner/name. Default: the bundled model.",
)
@option(
    "--size",
    "sizes",
    type=Parsed("size", parse_sides),
    multiple=True,
    metavar="HEIGHTxWIDTH",
    panel="Input",
    help="Size of the image and of the network's input; may be repeated. Default: 256x256 to 4096x4096, or 1024x2048 "
    "with --profile, --roofline or --compare.",
)
@option(
    "--image",
    type=FILE,
    metavar="FILE",
    panel="Input",
    was={"--picture": "0.3"},
    help="Image to stretch to every size. Default: the photograph that ships with evitseg.",
)
@ENGINE
@DEVICE
@PRECISION
@THREADS
@option(
    "--rounds",
    type=AT_LEAST_1,
    default=15,
    metavar="N",
    panel="Measurement",
    was={"--turns": "0.3"},
    help="Number of measurements of each configuration. Default: 15.",
)
@option(
    "--profile",
    is_flag=True,
    panel="Measurement",
    help="Also measure every layer at one size, and compare it with the machine's peak.",
)
@option(
    "--compare",
    is_flag=True,
    panel="Measurement",
    help="Also measure every engine that can run the model, at every precision, at one size.",
)
@option(
    "--roofline",
    type=FILE,
    metavar="FILE.png",
    panel="Output",
    help="Draw the profile as a roofline plot; implies --profile.",
)
@option("--markdown", is_flag=True, panel="Output", help="Print tables in Markdown.")
def bench_command(
    output: Output,
    model: str | None,
    sizes: tuple[tuple[int, int], ...],
    image: Path | None,
    engine: str | None,
    device: str | None,
    precision: Precision,
    threads: int | None,
    rounds: int,
    profile: bool,
    compare: bool,
    roofline: Path | None,
    markdown: bool,
) -> None:
    """Measure how fast a model runs on this machine.

    Reports the time of the network, and of everything from a JPEG file to a mask file. Every size and engine is
    measured in its own process, after warm-up.
    """
    profile = profile or roofline is not None
    if (profile or compare) and len(sizes) > 1:
        raise click.BadParameter("--profile, --roofline and --compare measure one size; give one", param_hint="--size")
    if compare and (engine is not None or precision != "auto"):
        raise click.BadParameter(
            "measures every engine and precision; leave --engine and --precision out", param_hint="--compare"
        )
    from evitseg.bundled import EXAMPLE_IMAGE
    from evitseg.profiling import bench as bench_module
    from evitseg.profiling.worker import Table
    from evitseg.system.machine import machine as machine_here

    if roofline is not None:
        from evitseg.profiling.roofline import check_drawing

        check_drawing(roofline)
    subject = bench_module.Subject(pinned_model(model, output), engine, precision, threads, device)
    command, machine = shlex.join(["evitseg", *sys.argv[1:]]), machine_here()
    content: dict[str, Any] = {
        "command": command,
        "machine": machine.to_dict(),
        "model": subject.segmenter.manifest.name,
        "engine": str(subject.segmenter.info),
    }
    output.content = content

    def show(*lines: str) -> None:
        for line in lines:
            output.result(line)

    chosen = subject.sizes(sizes, [bench_module.ONE_SIZE] if profile or compare else bench_module.SIZES)
    shown = image or EXAMPLE_IMAGE
    timings = []
    for timing in bench_module.bench(subject, shown, chosen, rounds):
        timings.append(timing)
        output.log(f"measured {timing.height}x{timing.width} ({len(timings)} of {len(chosen)})")
    show(*(["```", f"$ {command}", "```", ""] if markdown else []), str(machine))
    show(f"{content['model']}: {content['engine']}")
    table = Table(bench_module.Timing.HEADER, markdown)
    show("", *table.lines(timing.cells(timings) for timing in timings))
    content["sizes"] = [timing.to_dict(timings) for timing in timings]
    content["noise"] = max(timing.noise for timing in timings)
    show("", bench_module.noise_message(content["noise"]))
    sides = timings[-1].height, timings[-1].width
    if profile:
        from evitseg.profiling.profile import profile as measure_layers
        from evitseg.profiling.roofline import draw

        layers = measure_layers(subject, shown, sides, rounds)
        content["profile"] = layers.to_dict()
        show("", *layers.tables(markdown))
        if roofline is not None:
            draw(layers, f"{content['model']} at {sides[0]}x{sides[1]}", roofline)
            show("", f"wrote {roofline}")
    if compare:
        engines = bench_module.compare(subject, shown, sides, rounds)
        content["engines"] = [row.to_dict() for row in engines]
        show("", *bench_module.compared_table(engines, markdown))
