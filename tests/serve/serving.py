"""Services for tests: a small fast one, and one whose network waits."""

from __future__ import annotations

import contextlib
import functools
import io
import socket
import threading
from collections.abc import Iterator
from dataclasses import dataclass, replace

from tests.optional import needs

needs("starlette", "uvicorn", "prometheus_client", "python_multipart", "httpx2")

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from starlette.testclient import TestClient
from starlette.types import ASGIApp

import evitseg
from evitseg.bundled import EXAMPLE_IMAGE
from evitseg.engine import Engine
from evitseg.runtime.segmenter import Segmenter
from evitseg.serve.app import create_app
from evitseg.serve.exchange import AccessRules, RequestLog
from evitseg.serve.server import DrainingServer, listening, server_for
from evitseg.serve.service import Service, ServiceLimits

SIZE = 64
"""Working size of the model, small so that tests are fast."""


class GatedEngine:
    """An engine that waits at a gate, and counts the images that passed."""

    def __init__(self, engine: Engine) -> None:
        self.engine, self.manifest = engine, engine.manifest
        self.info = replace(engine.info, streams=1)
        self.gate = threading.Event()
        self.arrived = threading.Semaphore(0)
        self.passed = 0

    def __call__(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        self.arrived.release()
        assert self.gate.wait(20)
        self.passed += 1
        return self.engine(images)


def segmenter() -> Segmenter:
    return evitseg.load(size=SIZE, streams=2)


def gated(limits: ServiceLimits | None = None) -> tuple[Service, GatedEngine]:
    """A service with two threads, whose network waits until the gate is set."""
    engine = GatedEngine(segmenter().engine)
    return Service(Segmenter(engine, SIZE), limits or ServiceLimits()), engine


@functools.cache
def photo(size: tuple[int, int] = (96, 64), format_name: str = "JPEG") -> bytes:
    """An image file of (width, height): a street."""
    content = io.BytesIO()
    with Image.open(EXAMPLE_IMAGE) as image:
        image.convert("RGB").resize(size, reducing_gap=2).save(content, format_name)
    return content.getvalue()


@contextlib.contextmanager
def client_of(
    service: Service, rules: AccessRules | None = None, log: RequestLog | None = None
) -> Iterator[TestClient]:
    """A client of a service in this process."""
    with TestClient(create_app(service, rules, log=log), "http://127.0.0.1") as client:
        yield client


@dataclass
class Live:
    """A service that listens."""

    server: DrainingServer
    port: int
    thread: threading.Thread

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), 20)

    def ask(self, head: str, body: bytes = b"") -> bytes:
        """Everything that the service sends after this request; the head's lines end in \\n."""
        with self.connect() as connection:
            connection.sendall(head.replace("\n", "\r\n").encode() + b"\r\n" + body)
            return everything(connection)


def everything(connection: socket.socket) -> bytes:
    """All bytes until the other side closes or resets the connection."""
    found = b""
    with contextlib.suppress(ConnectionResetError):
        while part := connection.recv(65536):
            found += part
    return found


def post(image: bytes, path: str = "/v1/segment", close: bool = True) -> bytes:
    """A request for the mask of an image."""
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: image/jpeg\r\nContent-Length: {len(image)}\r\n"
    return head.encode() + b"Connection: close\r\n" * close + b"\r\n" + image


@contextlib.contextmanager
def live(app: ASGIApp, service: Service) -> Iterator[Live]:
    """Serve an application on a free port until the block ends."""
    with listening("127.0.0.1", 0) as sock:
        server = server_for(app, service)
        thread = threading.Thread(target=server.run, args=([sock],))
        thread.start()
        try:
            while not server.started and thread.is_alive():
                thread.join(0.01)
            yield Live(server, sock.getsockname()[1], thread)
        finally:
            server.should_exit = True
            thread.join(20)
            assert not thread.is_alive()
