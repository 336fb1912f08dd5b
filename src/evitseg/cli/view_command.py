"""evitseg view."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from evitseg.cli.command import option, verb
from evitseg.cli.options import (
    BANDS,
    FILE,
    LABELS,
    MODEL,
    PAGE,
    PRECISION,
    THREADS,
    VALUE_RANGE,
    given_options,
    pinned_model,
    read_options,
)
from evitseg.cli.output import Output
from evitseg.cli.values import Parsed, parse_bytes, parse_size

if TYPE_CHECKING:
    from evitseg.engine import Precision
    from evitseg.image import Size
    from evitseg.viewer.view import View

_MODEL_OPTIONS = ("--model", "--size", "--precision", "--threads", "--memory", "--context")
"""Options that say how a mask is made."""
_POLL_S = 0.5


@verb(
    "view",
    ("evitseg view mosaic.tif", "Look at an image of any size with its mask."),
    ("evitseg view mosaic.tif --context mosaic.npz", "With the context that predict --save-context wrote."),
    ("evitseg view mosaic.tif --mask mask.tif", "With a mask that exists."),
    ("evitseg view slide.svs --no-browser --port 8000", "On a remote machine, for ssh -L 8000:localhost:8000."),
)
@click.argument("image", type=FILE, metavar="IMAGE", help="An image file, slide or Zarr.")
@MODEL
@option(
    "--size",
    metavar="PIXELS|native",
    type=Parsed("size", parse_size),
    panel="Model",
    help="Resize the image so that its short side has this many pixels before the network sees it; 'native' keeps its "
    "own size. Default: native for TIFF, slides, Zarr and very large images, otherwise the model's rule.",
)
@BANDS
@VALUE_RANGE
@PAGE
@PRECISION
@THREADS
@option(
    "--memory",
    type=Parsed("bytes", parse_bytes),
    metavar="SIZE",
    panel="Engine",
    help="Memory limit for the computation of the mask, such as 1GiB. Default: a quarter of the free memory, more on "
    "small devices.",
)
@option(
    "--context",
    type=FILE,
    metavar="FILE",
    panel="Mask",
    help="Context of the image, which predict --save-context wrote. Default: compute it in the background.",
)
@option("--mask", type=FILE, metavar="FILE", panel="Mask", help="Show this mask of the image, and run no model.")
@LABELS
@option(
    "--port",
    type=click.IntRange(1, 65_535),
    metavar="N",
    panel="Server",
    help="Port of the page on this machine. Default: any free port.",
)
@option("--no-browser", is_flag=True, panel="Server", help="Only print the page's address.")
@option(
    "--cache",
    type=FILE,
    metavar="DIR",
    panel="Server",
    help="Folder for contexts and mask tiles, for the next time. Default: the user's cache folder.",
)
@option(
    "--cache-size",
    type=Parsed("bytes", parse_bytes),
    default="2GiB",
    metavar="SIZE",
    panel="Server",
    help="Largest size of the cache folder; the least recently used files are removed first. Default: 2GiB.",
)
@click.pass_context
def view_command(
    ctx: click.Context,
    output: Output,
    image: Path,
    model: str | None,
    size: Size,
    bands: str | None,
    value_range: str | None,
    page: int | None,
    precision: Precision,
    threads: int | None,
    memory: int | None,
    context: Path | None,
    mask: Path | None,
    labels: str | None,
    port: int | None,
    no_browser: bool,
    cache: Path | None,
    cache_size: int,
) -> None:
    """Open a page in the browser on which an image and its mask can be panned and zoomed, down to single pixels.

    A preview of the mask appears first; the exact mask is computed in the background and replaces it. It is the mask
    that predict writes: for TIFF, slides and Zarr the one of predict --exact. Nothing leaves this machine, and the page
    needs no network. Ctrl-C ends the viewer.
    """
    from evitseg.errors import FileError
    from evitseg.labels import load_labels
    from evitseg.system.files import is_there
    from evitseg.viewer.local_server import LocalServer
    from evitseg.viewer.mask_sources import ModelSettings
    from evitseg.viewer.view import View
    from evitseg.viewer.view_request import ViewRequest

    unused = [name for name in _MODEL_OPTIONS if name in given_options(ctx)] if mask is not None else []
    if unused:
        raise click.UsageError(f"{unused[0]} has no effect with --mask; leave one of them out", ctx)
    if labels is not None and mask is None:
        raise click.UsageError("--labels needs --mask; a model knows its classes", ctx)
    for path in (image, context, mask):
        if path is not None and not is_there(path):
            raise FileError(f"{path}: no such file.")
    request = ViewRequest(
        image,
        ModelSettings(pinned_model(model, output), precision, threads, memory),
        size,
        read_options(bands, value_range, page),
        context,
        mask,
        load_labels(labels) if labels is not None else None,
        cache,
        cache_size,
    )
    view = View(request)
    with LocalServer(view, port or 0) as server, view:
        output.content = {"url": server.url}
        output.note(f"{server.url}  (Ctrl-C ends the viewer)")
        if not no_browser:
            import webbrowser

            if not webbrowser.open(server.url):
                output.note("no browser could be started; open the address above.")
        try:
            _watch(view, output)
        except KeyboardInterrupt:
            output.log("ending; the next viewer of this image continues from here.")  # the usual end


def _watch(view: View, output: Output) -> None:
    """Wait for the end. Raises: the error that keeps the image from being opened; KeyboardInterrupt."""
    reported = ""
    while not view.wait(_POLL_S):
        if view.problem != reported:
            reported = view.problem
            output.error(f"{reported} The page shows a preview only.")
    if view.error is not None:
        raise view.error
