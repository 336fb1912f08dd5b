"""Serve the application until a signal arrives: uvicorn, with limits for slow clients and a drain at the end."""

from __future__ import annotations

import asyncio
import ctypes
import json
import logging
import signal
import socket
import threading
import time
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol

from evitseg.errors import ConfigError
from evitseg.serve.exchange import JsonHandler, RequestLog
from evitseg.serve.problems import ProblemError
from evitseg.serve.service import Service

MAX_CONNECTIONS = 512
MAX_HEADER_BYTES = 16 * 1024
HEADER_TIMEOUT_S = 10.0
"""Longest time without a complete request header, for a new connection and after an answer, in seconds."""
WRITE_TIMEOUT_S = 30.0
"""Longest time for which a client may not take its answer, in seconds."""
KEEP_ALIVE_S = 5
"""Time for which a silent connection stays open after an answer, in seconds."""
SWEEP_TICKS = 10
"""Every so many ticks of uvicorn's loop, a tenth of a second each, slow clients are looked for."""
_SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGBREAK") if hasattr(signal, name)]


def return_freed_memory() -> None:
    """Make the C library return large freed blocks to the system, whichever thread allocated them.

    By default, glibc has a heap per thread and after a while takes buffers of up to 32 MB from there, so that a service
    keeps twice the memory that it needs (benchmarks/service.py). To be called before threads are started. Only glibc
    supports this; elsewhere the function does nothing.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError, TypeError):
        return
    trim_threshold, mmap_threshold, arena_max = -1, -3, -8  # malloc.h
    mallopt(arena_max, 2)
    # Below it are the buffers of small images, whose pages would be fetched anew for every image.
    mallopt(mmap_threshold, 4 * 2**20)
    mallopt(trim_threshold, 4 * 2**20)


def _raw(problem: ProblemError) -> bytes:
    """A whole answer as bytes, for a connection that has no request."""
    body = json.dumps(problem.content("")).encode()
    lines = [
        f"HTTP/1.1 {problem.kind.status} {problem.kind.title}",
        "Content-Type: application/problem+json",
        f"Content-Length: {len(body)}",
        "Connection: close",
        *(f"{name}: {value}" for name, value in problem.headers.items()),
    ]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


class LimitedProtocol(H11Protocol):
    """A connection that knows since when it has been waiting for its client.

    Attributes:
        service: set by `serve`; all connections of a process belong to one service.
    """

    service: Service

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        self._since = self.loop.time()
        self._stalled_since: float | None = None
        self._answered: object = None
        if len(self.connections) >= MAX_CONNECTIONS:
            self.service.instruments.shed.labels("connections").inc()
            transport.write(_raw(ProblemError("busy", "too many connections are open.", headers={"Retry-After": "2"})))
            transport.close()
            # uvicorn must not count it.
            self.transport = transport
            self.connections = set()
        super().connection_made(transport)

    def pause_writing(self) -> None:
        self._stalled_since = self.loop.time()
        super().pause_writing()

    def resume_writing(self) -> None:
        self._stalled_since = None
        super().resume_writing()

    def check(self, now: float) -> None:
        """Close the connection if its client is too slow with a header, or does not take its answer."""
        if self._stalled_since is not None and now - self._stalled_since > WRITE_TIMEOUT_S:
            self.transport.abort()
        elif self.cycle is not None and not self.cycle.response_complete:
            self._answered = None  # the application has its own limits
        elif self.cycle is not self._answered:
            self._answered, self._since = self.cycle, now
        elif now - self._since > HEADER_TIMEOUT_S:
            self.transport.abort()

    def send_400_response(self, msg: str) -> None:
        is_long = len(self.conn.trailing_data[0]) > MAX_HEADER_BYTES
        name = "header-too-large" if is_long else "malformed-request"
        detail = f"the header has more than {MAX_HEADER_BYTES:,} bytes." if is_long else "this is not HTTP/1.1."
        self.transport.write(_raw(ProblemError(name, detail)))
        self.transport.close()


class DrainingServer(uvicorn.Server):
    """A server that finishes its requests before it ends.

    After the first signal, /readyz answers 503 and new images are refused until no request is open; then the server
    ends. A second signal ends it at once.
    """

    def __init__(self, config: uvicorn.Config, service: Service) -> None:
        super().__init__(config)
        self._service = service
        self._drain_until = 0.0

    @contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.signal(number, self.handle_exit) for number in _SIGNALS}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if self._service.draining:
            self.should_exit = self.force_exit = True
        self.drain()

    def drain(self) -> None:
        """Refuse new work, and end as soon as no request is open."""
        self._service.draining = True
        self._drain_until = time.monotonic() + 2 * self._service.limits.timeout_s

    async def on_tick(self, counter: int) -> bool:
        if counter % SWEEP_TICKS == 0:
            now = asyncio.get_running_loop().time()
            for connection in list(self.server_state.connections):
                if isinstance(connection, LimitedProtocol):
                    connection.check(now)
        if self._service.draining and (not self._service.open_requests or time.monotonic() > self._drain_until):
            return True
        return await super().on_tick(counter)


def listening(host: str, port: int) -> socket.socket:
    """A socket that listens. Raises: ConfigError if the address cannot be used."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, kind, protocol, _, address = found[0]
        sock = socket.socket(family, kind, protocol)
    except (OSError, UnicodeError) as error:
        raise ConfigError(f"--host {host}: is not an address of this machine ({error}).") from error
    try:
        if hasattr(signal, "SIGHUP"):  # on Windows, the option would let two programs have the same port
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(address)
        sock.listen(1024)
    except OSError as error:
        sock.close()
        raise ConfigError(
            f"{host}, port {port}: cannot listen there ({error.strerror}); choose another --host or --port."
        ) from error
    sock.set_inheritable(False)
    return sock


@contextmanager
def _logged(log: RequestLog) -> Iterator[None]:
    """Write warnings and errors of uvicorn and asyncio into the log of requests."""
    handler = JsonHandler(log)
    loggers = [logging.getLogger(name) for name in ("uvicorn.error", "asyncio")]
    before = [each.propagate for each in loggers]
    for each in loggers:
        each.addHandler(handler)
        each.propagate = False
    try:
        yield
    finally:
        for each, propagated in zip(loggers, before, strict=True):
            each.removeHandler(handler)
            each.propagate = propagated


def server_for(app: ASGIApp, service: Service) -> DrainingServer:
    """A server, ready to run on a socket."""
    protocol = type("ServiceProtocol", (LimitedProtocol,), {"service": service})
    settings: dict[str, Any] = {
        "http": protocol,
        "ws": "none",
        "loop": "asyncio",
        "lifespan": "on",
        "log_config": None,
        "access_log": False,
        "server_header": False,
        "h11_max_incomplete_event_size": MAX_HEADER_BYTES,
        "timeout_keep_alive": KEEP_ALIVE_S,
        "timeout_graceful_shutdown": 10,
    }
    return DrainingServer(uvicorn.Config(app, **settings), service)


def serve(app: ASGIApp, service: Service, sock: socket.socket, log: RequestLog) -> None:
    """Serve until a signal arrives, then drain."""
    with _logged(log):
        server_for(app, service).run(sockets=[sock])
