"""evitseg serve."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from evitseg.cli.command import option, verb
from evitseg.cli.options import (
    AT_LEAST_1,
    DEVICE,
    ENGINE,
    FILE,
    MODEL,
    PRECISION,
    SIZE,
    THREADS,
    given_options,
    pinned_model,
)
from evitseg.cli.output import Output
from evitseg.cli.serve_access import api_keys, is_loopback
from evitseg.cli.values import Number, Parsed, parse_bytes

if TYPE_CHECKING:
    from evitseg.engine import Precision
    from evitseg.image import Size

_LOOPBACK_NAMES = ("localhost", "127.0.0.1", "::1")
_MAX_STREAMS = 4


@verb(
    "serve",
    ("evitseg serve", "The bundled model at http://127.0.0.1:8000, for this machine only."),
    ("evitseg serve --model runs/mine/best.safetensors --port 9000", "Your own model."),
    ("evitseg serve --host 0.0.0.0 --api-key-file keys.txt", "For other machines, which need a key."),
    ("evitseg serve --root mosaics/", "With tiles of the large images in a folder."),
)
@MODEL
@SIZE
@ENGINE
@DEVICE
@PRECISION
@THREADS
@option(
    "--streams",
    type=AT_LEAST_1,
    metavar="N",
    panel="Engine",
    help="Number of images that the network works on at the same time; they share the threads. Default: one per "
    f"thread, at most {_MAX_STREAMS}.",
)
@option(
    "--host",
    default="127.0.0.1",
    metavar="ADDRESS",
    panel="Network",
    help="Address to listen on; 0.0.0.0 for every address of the machine. Default: 127.0.0.1, which only this machine "
    "reaches.",
)
@option(
    "--port",
    type=click.IntRange(0, 65535),
    default=8000,
    metavar="N",
    panel="Network",
    help="Port to listen on; 0 for a free one. Default: 8000.",
)
@option(
    "--api-key-file",
    type=FILE,
    metavar="FILE",
    panel="Network",
    help="File with API keys, one per line. Requests then need one of them: 'Authorization: Bearer KEY'.",
)
@option(
    "--no-auth",
    is_flag=True,
    panel="Network",
    help="Listen on an address that other machines reach although no key is needed.",
)
@option(
    "--allowed-host",
    "allowed_hosts",
    multiple=True,
    metavar="NAME",
    panel="Network",
    help="Also answer requests for this host name, for instance behind a proxy; may be repeated. Applies to loopback "
    "addresses without keys, which otherwise answer only for localhost.",
)
@option(
    "--cors",
    "origins",
    multiple=True,
    metavar="ORIGIN",
    panel="Network",
    help="Let web pages of this origin, such as https://example.org, use the service; may be repeated.",
)
@option(
    "--root",
    type=FILE,
    metavar="DIR",
    panel="Large images",
    help="Serve tiles of the images in this folder and of their masks and overlays, for web pages and maps. Masks need "
    "the context that predict --save-context wrote next to the image: mosaic.npz for mosaic.tif.",
)
@option(
    "--cache",
    type=FILE,
    metavar="DIR",
    panel="Large images",
    help="Folder for tiles that were rendered. Default: the user's cache folder.",
)
@option(
    "--queue",
    type=click.IntRange(min=0),
    default=32,
    metavar="N",
    panel="Limits",
    help="Maximum number of images that wait; further requests are answered with status 503. Default: 32.",
)
@option(
    "--max-bytes",
    type=Parsed("bytes", parse_bytes),
    default="32MiB",
    metavar="SIZE",
    panel="Limits",
    help="Maximum size of an image file. Default: 32MiB.",
)
@option(
    "--max-pixels",
    type=AT_LEAST_1,
    metavar="N",
    panel="Limits",
    help="Maximum number of pixels of an image. Default: 50000000, or fewer if the free memory requires it.",
)
@option(
    "--timeout",
    type=Number(min=0, min_open=True, max=86_400),
    default=30.0,
    metavar="SECONDS",
    panel="Limits",
    help="Maximum time for a request's body to arrive, and then for its image to wait and be segmented. Default: 30.",
)
def serve_command(
    output: Output,
    model: str | None,
    size: Size,
    engine: str | None,
    device: str | None,
    precision: Precision,
    threads: int | None,
    streams: int | None,
    host: str,
    port: int,
    api_key_file: Path | None,
    no_auth: bool,
    allowed_hosts: tuple[str, ...],
    origins: tuple[str, ...],
    root: Path | None,
    cache: Path | None,
    queue: int,
    max_bytes: int,
    max_pixels: int | None,
    timeout: float,
) -> None:
    """Segment images over HTTP.

    POST an image to /v1/segment; the answer is its mask, or what the header Accept asks for. The address / has a page
    to try it, /docs describes every endpoint. A line of JSON per request goes to standard error. SIGTERM and Ctrl-C
    finish the open requests and end the service with exit status 0.
    """
    given = given_options(click.get_current_context())
    keys = api_keys(api_key_file)
    is_local = is_loopback(host)
    if not is_local and not keys and not no_auth:
        raise click.BadParameter(
            f"other machines reach {host}; give --api-key-file, or --no-auth to let anybody use the service",
            param_hint="--host",
        )
    if keys and no_auth:
        raise click.BadParameter("contradicts --api-key-file; leave one of them out", param_hint="--no-auth")
    if allowed_hosts and (keys or not is_local):
        raise click.BadParameter(
            "applies to a loopback address without keys; leave it out", param_hint="--allowed-host"
        )
    if cache is not None and root is None:
        raise click.UsageError("--cache needs --root", click.get_current_context())
    from evitseg.errors import MissingPackageError

    try:
        import prometheus_client  # noqa: F401
        import python_multipart  # noqa: F401
        import uvicorn  # noqa: F401
        from starlette.applications import Starlette  # noqa: F401
    except ImportError as error:
        raise MissingPackageError("evitseg serve", "serve") from error
    from evitseg.loading import load, model_file
    from evitseg.serve.app import create_app
    from evitseg.serve.exchange import AccessRules, RequestLog
    from evitseg.serve.image_shelf import ImageShelf
    from evitseg.serve.server import listening, return_freed_memory, serve
    from evitseg.serve.service import MAX_PIXELS, Service, ServiceLimits, limits_for
    from evitseg.system.files import file_sha256
    from evitseg.system.machine import physical_cores

    return_freed_memory()
    model = pinned_model(model, output)
    with listening(host, port) as sock:
        segment = load(
            model,
            engine=engine,
            device=device,
            threads=threads,
            precision=precision,
            size=size,
            streams=streams or min(threads or physical_cores(), _MAX_STREAMS),
        )
        limits = ServiceLimits(queue, max_bytes, max_pixels or MAX_PIXELS, max_pixels or MAX_PIXELS, timeout)
        file = model_file(model)
        service = Service(
            segment,
            limits_for(segment, limits, pixels_are_given="--max-pixels" in given),
            file_sha256(file) if file is not None and file.is_file() else "",
            ImageShelf(root, segment, cache) if root is not None else None,
        )
        names = (*_LOOPBACK_NAMES, host.lower(), *map(str.lower, allowed_hosts)) if is_local and not keys else ()
        log = RequestLog(None if output.quiet else sys.stderr, sys.stderr)
        app = create_app(service, AccessRules(keys, names), origins, log)
        address = sock.getsockname()
        url = f"http://{f'[{address[0]}]' if ':' in address[0] else address[0]}:{address[1]}"
        output.content = {"model": segment.manifest.name, "engine": str(segment.info), "address": url}
        output.result(f"{segment.manifest.name}: {segment.info}", style="dim")
        output.result(f"serving on {url} ({url}/docs describes it; Ctrl-C ends it)")
        serve(app, service, sock, log)
