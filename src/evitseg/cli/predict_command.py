"""predict: its options. `jobs` makes jobs of them, and each mode has a file of its own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from evitseg.cli.command import option, verb
from evitseg.cli.options import (
    AT_LEAST_1,
    BANDS,
    DEVICE,
    ENGINE,
    FILE,
    MASK_FORMAT,
    MODEL,
    PAGE,
    PRECISION,
    SIZE,
    THREADS,
    VALUE_RANGE,
    annotation_formats,
    given_options,
    read_options,
    video_kinds,
)
from evitseg.cli.output import Output
from evitseg.cli.request import Request, method_of
from evitseg.cli.values import Names, Number, Parsed, parse_bytes, parse_region

STDIN = "-"


@verb(
    "predict",
    ("evitseg predict photo.jpg", "A mask and an overlay of one image, in predictions/."),
    ("evitseg predict photos/ --out masks --no-overlay --skip-existing", "Only masks, of a folder; resumes."),
    ("evitseg predict - < photo.jpg > mask.png", "An image from standard input, its mask to standard output."),
    ("evitseg predict mosaic.tif --exact --memory 1GiB --out mask.tif", "An image larger than memory."),
    (
        "evitseg predict mosaic.tif --sliding-window 1024 --polygons regions.gpkg",
        "A mosaic of many scenes, and polygons.",
    ),
    ("evitseg predict drive.mp4 --video overlay --video mask", "A video: coloured, and as class indices."),
    ("evitseg predict camera:0 --duration 60", "One minute of a camera."),
)
@click.argument(
    "inputs",
    nargs=-1,
    metavar="INPUT...",
    help="Images of any size, videos, folders of them, quoted patterns, camera:0, an address (rtsp://, udp://, "
    "http://), or - for an image on standard input.",
)
@option("--example", is_flag=True, panel="Input", help="Segment the photograph that ships with evitseg.")
@BANDS
@VALUE_RANGE
@PAGE
@option(
    "--out",
    "-o",
    type=FILE,
    default=Path("predictions"),
    metavar="DIR|FILE|-",
    panel="Output",
    help="Folder for the results; or the file of one mask (.png, .tif, .zarr) or one video (.mp4, .mov, .mkv); or - to "
    "write one mask to standard output. Default: predictions.",
)
@option(
    "--overlay/--no-overlay",
    default=None,
    panel="Output",
    help="Write the image with its classes in colour, too. For an image in bands, --overlay writes a GeoTIFF of all "
    "pixels with overviews; the default is a reduced JPEG. Default: yes.",
)
@option(
    "--legend/--no-legend",
    default=None,
    panel="Output",
    help="Add a legend of the classes to overlays: below an image, or in a corner of a video, where it covers pixels. "
    "Default: only for images.",
)
@MASK_FORMAT
@option(
    "--polygons",
    type=FILE,
    metavar="FILE",
    panel="Output",
    help="Also write the mask's regions as polygons (.geojson, .gpkg, .parquet), like `evitseg polygons`.",
)
@option(
    "--as",
    "annotations",
    type=Names("format", annotation_formats),
    panel="Output",
    help="Also write the regions as annotations to correct in a tool: a JSON file per image (Labelme), or one file for "
    "all images (CVAT, COCO).",
)
@option(
    "--simplify",
    type=Number(min=0),
    default=0.0,
    metavar="PIXELS",
    panel="Output",
    help="With --polygons or --as: remove corners that span less area than a square of this side. Default: 0, exact "
    "outlines.",
)
@option(
    "--minimum-pixels",
    type=AT_LEAST_1,
    default=1,
    metavar="N",
    panel="Output",
    help="With --polygons or --as: skip regions with fewer pixels. Default: 1.",
)
@option(
    "--skip-existing",
    is_flag=True,
    panel="Output",
    help="Skip inputs that already have results. Use it to resume an interrupted run.",
)
@option("--overwrite", is_flag=True, panel="Output", help="Replace existing files even if evitseg did not write them.")
@MODEL
@SIZE
@ENGINE
@DEVICE
@PRECISION
@THREADS
@option(
    "--exact",
    is_flag=True,
    panel="Large images",
    help="Segment in bands, in bounded memory, with the same result as for the whole image at its own size. Images "
    "that do not fit in memory are segmented in bands automatically.",
)
@option(
    "--sliding-window",
    type=int,
    metavar="PIXELS",
    panel="Large images",
    was={"--blend": "0.3"},
    help="Segment overlapping windows of this size, at the image's own resolution, and average them. Each window "
    "is segmented on its own. Use it for mosaics of many scenes.",
)
@option(
    "--memory",
    type=Parsed("bytes", parse_bytes),
    metavar="SIZE",
    panel="Large images",
    help="Memory limit per image, such as 1GiB. Default: a quarter of the free memory, more on small devices.",
)
@option(
    "--scratch",
    type=FILE,
    metavar="DIR",
    panel="Large images",
    help="Folder for temporary files. Default: next to the mask.",
)
@option(
    "--context-window",
    type=int,
    metavar="PIXELS",
    panel="Large images",
    help="Limit attention to a neighbourhood of this many pixels instead of the whole image; implies --exact.",
)
@option(
    "--save-context",
    type=FILE,
    metavar="FILE",
    panel="Large images",
    help="Save what --region needs to know about the whole image; implies --exact.",
)
@option(
    "--context",
    type=FILE,
    metavar="FILE",
    panel="Large images",
    help="File that --save-context wrote, to segment a --region without the rest of the image.",
)
@option(
    "--region",
    type=Parsed("region", parse_region),
    metavar="X,Y,WIDTH,HEIGHT",
    panel="Large images",
    help="Segment only these pixels; requires --context.",
)
@option(
    "--verify",
    is_flag=True,
    panel="Large images",
    help="Also segment a part of the image without bands, and report whether the results are equal; implies --exact.",
)
@option(
    "--video",
    "videos",
    type=Names("kind of video", video_kinds),
    multiple=True,
    panel="Video",
    help="What to write for a video: a coloured video, a lossless video of class indices, or a PNG mask per frame; may "
    "be repeated. Default: overlay; with --no-overlay: mask.",
)
@option(
    "--duration",
    type=Number(),
    metavar="SECONDS",
    panel="Video",
    help="Stop each video or stream after this many seconds.",
)
@option(
    "--ray",
    metavar="ADDRESS",
    panel="Cluster",
    help="Segment in bands, like --exact, on a Ray cluster: HOST:PORT, or 'auto' to find or start one here.",
)
def predict_command(
    output: Output,
    inputs: tuple[str, ...],
    example: bool,
    bands: str | None,
    value_range: str | None,
    page: int | None,
    exact: bool,
    **options: Any,
) -> None:
    """Segment images, videos and live streams.

    Each image gets a mask of class indices and a coloured overlay. Unreadable files are reported, the others are still
    segmented, and the exit status is 1. Files that evitseg did not write are never replaced without --overwrite. A live
    stream is segmented at its newest frame, dropping older ones, until Ctrl-C.
    """
    if (not inputs and not example) or "" in inputs:
        raise click.BadParameter("give images, videos or folders, or --example", param_hint="INPUT")
    from evitseg.bundled import EXAMPLE_IMAGE
    from evitseg.cli.jobs import run

    given = given_options(click.get_current_context())
    request = Request(
        inputs=(*inputs, *((str(EXAMPLE_IMAGE),) if example else ())),
        method=method_of(exact, given),
        given=given,
        reading=read_options(bands, value_range, page),
        **options,
    )
    if STDIN in inputs or str(request.out) == STDIN:
        from evitseg.cli.standard_streams import run_on_streams

        run_on_streams(request, output)
    else:
        run(request, output)
