"""predict: its arguments. `jobs` makes jobs of them, and each mode has a file of its own."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from evitseg.cli.app import plain_errors
from evitseg.cli.options import (
    AsJson,
    Bands,
    Engine,
    MaskFormat,
    MaskFormatName,
    Model,
    Page,
    Precision,
    PrecisionName,
    Threads,
    ValueRange,
    VideoName,
    WorkingSize,
    given_options,
    parse_bytes,
    parse_region,
    parse_size,
    read_options,
)


@plain_errors
def predict(
    context_: typer.Context,
    inputs: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="INPUT...",
            help="Images of any size, videos, folders of them, or quoted patterns; camera:0; an address (rtsp://, "
            "udp://, http://).",
            show_default=False,
        ),
    ] = None,
    example: Annotated[bool, typer.Option("--example", help="Take the photograph that ships with evitseg.")] = False,
    model: Model = None,
    out: Annotated[
        Path,
        typer.Option(
            "--out",
            "-o",
            metavar="DIR|FILE",
            help="Folder for the results; or the file of one mask (.png, .tif, .zarr) or video (.mp4, .mov, .mkv).",
        ),
    ] = Path("predictions"),
    size: WorkingSize = None,
    overlay: Annotated[
        bool | None,
        typer.Option(
            "--overlay/--no-overlay",
            help="Also write the image in the classes' colours. (default: yes, unless it goes in tiles)",
            show_default=False,
        ),
    ] = None,
    legend: Annotated[
        bool | None,
        typer.Option(
            "--legend/--no-legend",
            help="Name the classes' colours in overlays: below an image, in a corner of a video's frames. (default: "
            "only for images; in a video it covers pixels)",
            show_default=False,
        ),
    ] = None,
    skip_existing: Annotated[
        bool,
        typer.Option("--skip-existing", help="Skip inputs that already have results. Use it to resume a stopped run."),
    ] = False,
    overwrite: Annotated[
        bool,
        typer.Option("--overwrite", help="Replace files at the results' places even if evitseg did not write them."),
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
            help="The mask alone, in tiles and bounded memory, as if the image went through whole at its own size; "
            "chosen by itself for images that do not fit.",
        ),
    ] = False,
    memory: Annotated[
        str | None,
        typer.Option(
            metavar="SIZE",
            help="For one image, as 1GiB; tiles keep to it. (default: a quarter of the free memory, more on small "
            "devices)",
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
        Path | None, typer.Option(metavar="FILE", help="Keep what regions need to know of the rest; implies --exact.")
    ] = None,
    context: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Render a --region from such a file, without the rest.")
    ] = None,
    region: Annotated[
        str | None, typer.Option(metavar="X,Y,WIDTH,HEIGHT", help="Of the image, in pixels; with --context.")
    ] = None,
    context_window: Annotated[
        int | None,
        typer.Option(metavar="PIXELS", help="Attend to so many pixels around, not to the whole; implies --exact."),
    ] = None,
    blend: Annotated[
        int | None,
        typer.Option(
            metavar="PIXELS",
            help="The mask alone, at the image's own size, from overlapping windows of so many pixels, averaged; "
            "each knows nothing of the rest: for mosaics of many scenes.",
        ),
    ] = None,
    verify: Annotated[
        bool,
        typer.Option("--verify", help="Also compute a part both ways, and say the difference; implies --exact."),
    ] = False,
    ray: Annotated[
        str | None,
        typer.Option(
            metavar="ADDRESS",
            help="As --exact, on a Ray cluster: HOST:PORT, or auto for the one here or one that is started.",
            show_default=False,
        ),
    ] = None,
    bands: Bands = None,
    value_range: ValueRange = None,
    page: Page = None,
    mask_format: MaskFormat = MaskFormatName.palette,
    as_json: AsJson = False,
) -> None:
    """Segment images: a mask of class indices and a coloured overlay for each; and videos, live ones too.

    A file that cannot be read is reported, the others are still done, and the exit status is 1. Files that evitseg did
    not write are never replaced without --overwrite. To resume a stopped run, use --skip-existing. Of a live source
    every frame is the newest, older ones are dropped; an interrupt (Ctrl-C) ends it, and what was done is kept.
    """
    if (not inputs and not example) or "" in (inputs or ()):
        raise typer.BadParameter("give images or folders, or --example", param_hint="INPUT...")
    from evitseg.bundled import EXAMPLE_IMAGE
    from evitseg.cli.jobs import run
    from evitseg.cli.request import Request, method_of

    given = given_options(context_)
    request = Request(
        inputs=(*(inputs or ()), *((str(EXAMPLE_IMAGE),) if example else ())),
        out=out,
        method=method_of(exact, given),
        given=given,
        reading=read_options(bands, value_range, page),
        model=model,
        size=parse_size(size) if size is not None else None,
        overlay=overlay,
        legend=legend,
        skip_existing=skip_existing,
        overwrite=overwrite,
        videos=tuple(kind.value for kind in video or ()),
        duration=duration,
        engine=engine.value if engine else None,
        precision=precision.value,
        threads=threads,
        memory=parse_bytes(memory) if memory is not None else None,
        scratch=scratch,
        polygons=polygons,
        save_context=save_context,
        context=context,
        region=parse_region(region) if region is not None else None,
        context_window=context_window,
        blend=blend,
        verify=verify,
        ray=ray,
        mask_format=mask_format.value,
        as_json=as_json,
    )
    run(request)
