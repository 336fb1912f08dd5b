"""evitseg web."""

from __future__ import annotations

import io
import ipaddress
import sys
import tempfile
import threading
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import click

from evitseg.cli.command import option, verb
from evitseg.cli.options import given_options, pinned_model
from evitseg.cli.output import Output

if TYPE_CHECKING:
    from evitseg.web.local_network import Certificate

_EXPOSED = (
    "Anybody on this network who has this address can open the page and download the model; images stay on the "
    "device that opens them."
)


@verb(
    "web",
    ("evitseg web", "Segment images, the camera and videos in the browser, with the bundled model."),
    ("evitseg web runs/mine/best.safetensors", "Your own model."),
    ("evitseg web --lan", "On a phone nearby: scan the code that appears."),
)
@click.argument(
    "model",
    required=False,
    metavar="[MODEL]",
    help="A model's name, a checkpoint, an .onnx or .evit file, or a folder that export --to web wrote. Default: the "
    "bundled model.",
)
@option(
    "--lan",
    is_flag=True,
    panel="Server",
    help="Serve the page to devices on the local network, over https, and show its address as a QR code.",
)
@option(
    "--address",
    metavar="ADDRESS",
    panel="Server",
    help="With --lan, this machine's IP address to listen on. Default: that of the network with the default route.",
)
@option(
    "--port",
    type=click.IntRange(1, 65_535),
    metavar="N",
    panel="Server",
    help="Port of the page. Default: any free port.",
)
@option("--no-browser", is_flag=True, panel="Server", help="Only print the page's address.")
@click.pass_context
def web_command(
    ctx: click.Context,
    output: Output,
    model: str | None,
    lan: bool,
    address: str | None,
    port: int | None,
    no_browser: bool,
) -> None:
    """Open a page in the browser on which a model segments images, the camera and videos.

    The model runs in the browser itself, in WebAssembly. This command only serves the page's files; no image leaves the
    browser. Ctrl-C ends it.
    """
    if address is not None and "--lan" not in given_options(ctx):
        raise click.UsageError("--address needs --lan", ctx)
    if address is not None and not _is_address(address):
        raise click.BadParameter(f"{address} is not the IPv4 address of a machine", param_hint="--address")
    from evitseg.system.page_server import LOOPBACK
    from evitseg.web.local_network import make_certificate, own_address
    from evitseg.web.site_server import SiteServer

    host, certificate = LOOPBACK, None
    if lan:
        host = address or own_address()
        certificate = make_certificate(host)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="evitseg-web-")))
        site = _site(model, folder, output)
        context = certificate.context if certificate else None
        server = stack.enter_context(SiteServer(site, port or 0, host, context))
        try:
            _announce(server.url, certificate, output, opens_browser=not no_browser)
            threading.Event().wait()
        except KeyboardInterrupt:
            output.log("ending.")  # the usual end


def _announce(url: str, certificate: Certificate | None, output: Output, opens_browser: bool) -> None:
    """Say where the page is, and what that exposes; open it on this machine unless it is meant for another."""
    output.content = {"url": url}
    if certificate is not None:
        output.content["certificate_sha256"] = certificate.fingerprint
        show_code(url, output)
    output.note(f"{url}  (Ctrl-C ends it)")
    if certificate is not None:
        output.note(_EXPOSED)
        output.note(
            "The browser warns, because nobody has signed the certificate of this run. Its SHA-256 fingerprint is "
            f"{certificate.fingerprint}."
        )
    elif opens_browser:
        import webbrowser

        if not webbrowser.open(url):
            output.note("no browser could be started; open the address above.")


def _is_address(text: str) -> bool:
    try:
        address = ipaddress.IPv4Address(text)
    except ValueError:
        return False
    # 0.0.0.0 means all networks; the page answers only at the address in the code.
    return not (address.is_unspecified or address.is_multicast or address.is_reserved)


def _site(model: str | None, folder: Path, output: Output) -> Path:
    """The folder of a page: the one that was given, or one that is written now."""
    if model is not None and Path(model, "index.html").is_file():
        return Path(model)
    from evitseg.loading import load
    from evitseg.runtime.native import NativeEngine
    from evitseg.web.page_files import write_page

    engine = load(pinned_model(model, output), engine="native", precision="float32").engine
    assert isinstance(engine, NativeEngine)
    site = folder / "site"
    write_page(site, engine.manifest, engine.program)
    return site


def show_code(url: str, output: Output) -> None:
    """The address as a QR code, where a person sees it."""
    from evitseg.errors import MissingPackageError

    try:
        import segno
    except ImportError as error:
        raise MissingPackageError("--lan", "web") from error
    if output.quiet or output.as_json or not sys.stdout.isatty():
        return
    drawn = io.StringIO()
    segno.make(url, error="l", micro=False).terminal(drawn, border=2, compact=True)
    # White on black, whatever the terminal's colours are: many cameras do not read inverted codes.
    lines = (f"\033[38;5;231;48;5;16m{line}\033[0m" for line in drawn.getvalue().splitlines())
    output.note("\n".join(lines))
