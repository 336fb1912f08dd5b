"""A small HTTP server for one page and its files, on this machine or on the local network."""

from __future__ import annotations

import errno
import secrets
import ssl
import sys
import threading
from collections.abc import Callable, Mapping
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple, TypeAlias, TypeVar
from urllib.parse import parse_qs, urlsplit

from evitseg.errors import EvitsegError, FileError

LOOPBACK = "127.0.0.1"
HEADERS = {
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}
"""Headers of every response."""
_IDLE_S = 60
"""Seconds after which a connection without requests is closed."""
_MAX_CONNECTIONS = 128


class Content(NamedTuple):
    """The body of a response and its headers."""

    body: bytes
    headers: dict[str, str]


class NotFoundError(Exception):
    """The address has no content."""


Server = TypeVar("Server", bound="PageServer")
Answer: TypeAlias = Callable[[str, dict[str, str]], Content]
"""Makes the content of a path, relative to the page, and a query. It may raise NotFoundError, EvitsegError, and
ValueError and KeyError for a bad query."""


class PageServer:
    """Serves a page from `start` to `close`.

    Every address begins with a secret, because other users of the machine, and of the network, can connect, too.

    Args:
        answer: makes the responses.
        port: port to listen on; 0 for any free port.
        headers: further headers of every response.
        address: address of this machine to listen on.
        certificate: makes it https.

    Attributes:
        url: address of the page.

    Raises: FileError if the port is in use, or the address is another machine's.
    """

    def __init__(
        self,
        answer: Answer,
        port: int = 0,
        headers: Mapping[str, str] | None = None,
        address: str = LOOPBACK,
        certificate: ssl.SSLContext | None = None,
    ) -> None:
        secret = secrets.token_urlsafe(16)
        try:
            self._http = _HttpServer((address, port), _Handler)
        except (OSError, OverflowError) as error:
            if getattr(error, "errno", None) == errno.EADDRNOTAVAIL:
                raise FileError(f"{address} is no address of this machine; choose another with --address.") from error
            reason = getattr(error, "strerror", None) or error
            raise FileError(f"port {port} cannot be used ({reason}); choose another with --port.") from error
        self.port = self._http.server_address[1]
        self._http.answer, self._http.prefix = answer, f"/{secret}/"
        self._http.headers = HEADERS | dict(headers or {})
        self._http.certificate = certificate
        names = (LOOPBACK, "localhost", "[::1]") if address == LOOPBACK else (address,)
        is_usual = self.port == (443 if certificate else 80)  # browsers leave that out
        ports = (f":{self.port}", "") if is_usual else (f":{self.port}",)
        self._http.hosts = frozenset(name + port for name in names for port in ports)
        self.url = f"{'https' if certificate else 'http'}://{address}:{self.port}/{secret}/"
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.1,), name="evitseg-http", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        """Stop answering."""
        if self._thread.ident is not None:
            self._http.shutdown()
            self._thread.join()
        self._http.server_close()

    def __enter__(self: Server) -> Server:
        self.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


class _HttpServer(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    answer: Answer
    prefix: str
    hosts: frozenset[str]
    headers: dict[str, str]
    certificate: ssl.SSLContext | None

    def __init__(self, *arguments: Any) -> None:
        self._places = threading.BoundedSemaphore(_MAX_CONNECTIONS)
        super().__init__(*arguments)

    def get_request(self) -> tuple[Any, Any]:
        connection, client = super().get_request()
        if self.certificate is not None:
            # The handshake follows in the connection's own thread, where a silent client keeps nobody waiting.
            connection = self.certificate.wrap_socket(connection, server_side=True, do_handshake_on_connect=False)
        return connection, client

    def process_request(self, request: Any, client_address: Any) -> None:
        if self._places.acquire(blocking=False):
            super().process_request(request, client_address)
        else:
            self.shutdown_request(request)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._places.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that closes its connection early, or distrusts the certificate, is no error; others are bugs."""
        if not isinstance(sys.exc_info()[1], (ConnectionError, TimeoutError, ssl.SSLError)):
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
        for name, value in (self.server.headers | found.headers).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(found.body)))
        self.end_headers()
        if with_body:
            self.wfile.write(found.body)

    def _found(self) -> tuple[HTTPStatus, Content]:
        # A page of another site can point a name of its own at this machine (DNS rebinding); the browser then sends
        # that name. The other header says that another site's page asks, such as for an image.
        if self.headers.get("Host", "") not in self.server.hosts:
            return HTTPStatus.FORBIDDEN, _sentence("this server answers only at the address that evitseg printed.")
        try:
            address = urlsplit(self.path)
        except ValueError as error:
            return HTTPStatus.BAD_REQUEST, _sentence(f"bad request: {error}.")
        asked_by = self.headers.get("Sec-Fetch-Site", "none")
        is_page = self.headers.get("Sec-Fetch-Mode", "navigate") == "navigate"
        if asked_by not in ("none", "same-origin") and not is_page:
            return HTTPStatus.FORBIDDEN, _sentence("pages of other sites may not ask.")
        if not secrets.compare_digest(address.path[: len(self.server.prefix)].encode(), self.server.prefix.encode()):
            return HTTPStatus.NOT_FOUND, _sentence("no such page; use the address that evitseg printed.")
        path = address.path[len(self.server.prefix) :]
        query = {name: values[0] for name, values in parse_qs(address.query).items()}
        try:
            return HTTPStatus.OK, self.server.answer(path, query)
        except NotFoundError:
            return HTTPStatus.NOT_FOUND, _sentence("no such page.")
        except (ValueError, KeyError) as error:
            return HTTPStatus.BAD_REQUEST, _sentence(f"bad request: {error}.")
        except EvitsegError as error:
            return HTTPStatus.INTERNAL_SERVER_ERROR, _sentence(str(error))

    def log_message(self, format: str, *arguments: object) -> None:  # noqa: A002  # the standard library's name
        """Write nothing: a line per request would hide what matters."""


def _sentence(text: str) -> Content:
    return Content(text.encode(), {"Content-Type": "text/plain; charset=utf-8", "Cache-Control": "no-store"})
