"""The HTTP server of the viewer: one page, its files and tiles, on the loopback address only."""

from __future__ import annotations

import io
import json
import re
import secrets
import sys
import threading
import zlib
from collections.abc import Callable
from functools import cache
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.resources import files
from typing import Any, NamedTuple
from urllib.parse import parse_qs, urlsplit

import numpy as np
from PIL import Image

from evitseg.errors import EvitsegError, FileError
from evitseg.viewer.pyramid import Rectangle
from evitseg.viewer.view import View

LOOPBACK = "127.0.0.1"
PAGE = {
    "": ("index.html", "text/html; charset=utf-8"),
    "style.css": ("style.css", "text/css; charset=utf-8"),
    "app.js": ("app.js", "text/javascript; charset=utf-8"),
    "mask_layer.js": ("mask_layer.js", "text/javascript; charset=utf-8"),
    "panel.js": ("panel.js", "text/javascript; charset=utf-8"),
    "save.js": ("save.js", "text/javascript; charset=utf-8"),
    "openseadragon.min.js": ("openseadragon.min.js", "text/javascript; charset=utf-8"),
    "openseadragon.LICENSE.txt": ("openseadragon.LICENSE.txt", "text/plain; charset=utf-8"),
}
"""The files of the page, by the last part of their address, each with its name in the package and its type."""
_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' blob: data:; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}
_MAX_SAVED_PIXELS = 2**26
_QUALITY = 90
_IDLE_S = 60
"""Seconds after which a connection without requests is closed."""


class Content(NamedTuple):
    """The body of a response and its headers."""

    body: bytes
    headers: dict[str, str]


class NotFoundError(Exception):
    """The address has no content."""


def answer(view: View, path: str, query: dict[str, str]) -> Content:
    """The content of an address of the viewer, relative to its page.

    Raises: NotFoundError, ValueError for a bad query, EvitsegError.
    """
    if path in PAGE:
        return Content(_file(PAGE[path][0]), {"Content-Type": PAGE[path][1], "Cache-Control": "no-cache"})
    if path == "about.json":
        return _json(view.about())
    if path == "status.json":
        return _json(view.status())
    if path == "place.json":
        return _json(view.place(float(query["x"]), float(query["y"])))
    if path == "mask.png":
        return _saved(view, *(int(query[name]) for name in ("level", "top", "left", "height", "width")))
    found = re.fullmatch(r"(image|mask)/([0-9]{1,2})/([0-9]{1,7})/([0-9]{1,7})", path)
    if found is None:
        raise NotFoundError
    place = int(found[2]), int(found[3]), int(found[4])
    if not view.has(*place):
        raise NotFoundError
    return _image_tile(view, *place) if found[1] == "image" else _mask_tile(view, *place, "exact" not in query)


@cache
def _file(name: str) -> bytes:
    return (files("evitseg.viewer") / "page" / name).read_bytes()


def _json(content: dict[str, Any]) -> Content:
    return Content(json.dumps(content).encode(), {"Content-Type": "application/json", "Cache-Control": "no-store"})


def _image_tile(view: View, level: int, row: int, column: int) -> Content:
    """Pixels at full size are stored without loss, because they may be looked at one by one."""
    image = Image.fromarray(view.image_tile(level, row, column))
    stream = io.BytesIO()
    if level == 0:
        image.save(stream, "PNG", compress_level=1)
    else:
        image.save(stream, "JPEG", quality=_QUALITY, subsampling=0)
    kind = "image/png" if level == 0 else "image/jpeg"
    return Content(stream.getvalue(), {"Content-Type": kind, "Cache-Control": "private, max-age=3600"})


def _mask_tile(view: View, level: int, row: int, column: int, with_preview: bool) -> Content:
    """Class indices, one or two bytes each, in the order of pixels; no bytes if there are none yet."""
    mask, is_exact = view.mask_tile(level, row, column, with_preview)
    content = b"" if mask is None else np.ascontiguousarray(mask, mask.dtype.newbyteorder("<")).tobytes()
    headers = {
        "Content-Type": "application/octet-stream",
        "Content-Encoding": "deflate",
        "Cache-Control": "no-store",
        "X-Mask": "exact" if is_exact else "none" if mask is None else "preview",
    }
    return Content(zlib.compress(content, 1), headers)


def _saved(view: View, level: int, top: int, left: int, height: int, width: int) -> Content:
    """A part of the mask as a PNG with the classes' colours as a palette."""
    from evitseg.raster.png import mask_png

    rows, columns = view.size_of(level)
    if min(top, left) < 0 or min(height, width) < 1 or top + height > rows or left + width > columns:
        raise ValueError("the part is not inside the image")
    if height * width > _MAX_SAVED_PIXELS:
        raise ValueError(f"the part has more than {_MAX_SAVED_PIXELS:,} pixels")
    mask, is_exact = view.mask_part(level, Rectangle(top, left, height, width))
    name = f"{view.request.image.stem}_x{left}_y{top}_{1 << level}to1{'' if is_exact else '_preview'}_mask.png"
    safe = re.sub(r"[^A-Za-z0-9._-]", "_", name)
    headers = {
        "Content-Type": "image/png",
        "Content-Disposition": f'attachment; filename="{safe}"',
        "Cache-Control": "no-store",
    }
    return Content(mask_png(mask, view.labels), headers)


class LocalServer:
    """Serves a view on the loopback address, from `start` to `close`.

    Every address begins with a secret, so that other users of the machine cannot look at the image.

    Attributes:
        url: address of the page.

    Raises: FileError if the port is in use.
    """

    def __init__(self, view: View, port: int = 0) -> None:
        secret = secrets.token_urlsafe(16)
        try:
            self._http = _HttpServer((LOOPBACK, port), _Handler)
        except (OSError, OverflowError) as error:
            reason = getattr(error, "strerror", None) or error
            raise FileError(f"port {port} cannot be used ({reason}); choose another with --port.") from error
        self.port = self._http.server_address[1]
        self._http.view, self._http.prefix = view, f"/{secret}/"
        self._http.hosts = frozenset(f"{name}:{self.port}" for name in (LOOPBACK, "localhost", "[::1]"))
        self.url = f"http://{LOOPBACK}:{self.port}/{secret}/"
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.1,), name="evitseg-http", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        """Stop answering."""
        if self._thread.ident is not None:
            self._http.shutdown()
            self._thread.join()
        self._http.server_close()

    def __enter__(self) -> LocalServer:
        self.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


class _HttpServer(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    view: View
    prefix: str
    hosts: frozenset[str]
    errors: Callable[[str], None] | None = None

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that closes its connection early is no error; others are bugs and must be seen."""
        if not isinstance(sys.exc_info()[1], (ConnectionError, TimeoutError)):
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    server: _HttpServer
    protocol_version = "HTTP/1.1"
    server_version, sys_version = "evitseg", ""
    timeout = _IDLE_S
    disable_nagle_algorithm = True

    def do_GET(self) -> None:
        self._respond(with_body=True)

    def do_HEAD(self) -> None:
        self._respond(with_body=False)

    def _respond(self, with_body: bool) -> None:
        status, found = self._found()
        self.send_response(status)
        for name, value in (_HEADERS | found.headers).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(found.body)))
        self.end_headers()
        if with_body:
            self.wfile.write(found.body)

    def _found(self) -> tuple[HTTPStatus, Content]:
        # A page of another site can point a name of its own at this machine (DNS rebinding); the browser then sends
        # that name. The other header says that another site's page asks, such as for an image.
        if self.headers.get("Host", "") not in self.server.hosts:
            return HTTPStatus.FORBIDDEN, _sentence("this address belongs to a viewer on this machine only.")
        address = urlsplit(self.path)
        asked_by = self.headers.get("Sec-Fetch-Site", "none")
        is_page = self.headers.get("Sec-Fetch-Mode", "navigate") == "navigate"
        if asked_by not in ("none", "same-origin") and not is_page:
            return HTTPStatus.FORBIDDEN, _sentence("pages of other sites may not ask.")
        if not secrets.compare_digest(address.path[: len(self.server.prefix)].encode(), self.server.prefix.encode()):
            return HTTPStatus.NOT_FOUND, _sentence("no such page; use the address that evitseg view printed.")
        path = address.path[len(self.server.prefix) :]
        query = {name: values[0] for name, values in parse_qs(address.query).items()}
        try:
            return HTTPStatus.OK, answer(self.server.view, path, query)
        except NotFoundError:
            return HTTPStatus.NOT_FOUND, _sentence("no such page.")
        except (ValueError, KeyError) as error:
            return HTTPStatus.BAD_REQUEST, _sentence(f"bad request: {error}.")
        except EvitsegError as error:
            return HTTPStatus.INTERNAL_SERVER_ERROR, _sentence(str(error))

    def log_message(self, format: str, *arguments: object) -> None:  # noqa: A002  # the standard library's name
        """Write nothing: a line per tile would hide what matters."""


def _sentence(text: str) -> Content:
    return Content(text.encode(), {"Content-Type": "text/plain; charset=utf-8", "Cache-Control": "no-store"})
