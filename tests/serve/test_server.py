"""A service that listens: slow, broken and hostile clients, a full queue, clients that leave, and the end."""

from __future__ import annotations

import contextlib
import json
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.optional import needs

needs("starlette", "httpx2", "uvicorn", "prometheus_client", "python_multipart")

from starlette.types import Receive, Scope, Send

from evitseg.serve import server as server_module
from evitseg.serve.app import create_app
from evitseg.serve.server import MAX_HEADER_BYTES, listening
from evitseg.serve.service import Service, ServiceLimits
from tests.conftest import Finished
from tests.serve.serving import Live, everything, gated, live, photo, post, segmenter

PHOTO = photo()


@pytest.fixture(scope="module")
def service() -> Service:
    return Service(segmenter(), ServiceLimits(timeout_s=1.0))


@pytest.fixture(scope="module")
def running(service: Service) -> Iterator[Live]:
    with live(create_app(service), service) as running:
        yield running
    assert service.open_requests == 0
    assert service.uploads.held == 0


def status(answer: bytes) -> int:
    found = re.match(rb"HTTP/1.1 (\d+) ", answer)
    assert found, answer[:200]
    return int(found[1])


def eventually(holds: Callable[[], bool]) -> None:
    until = time.monotonic() + 20
    while not holds():
        assert time.monotonic() < until
        time.sleep(0.005)


def metric(service: Service, name: str, **labels: str) -> float:
    return service.instruments.registry.get_sample_value(name, labels) or 0.0


def works(running: Live) -> bool:
    with running.connect() as connection:
        connection.sendall(post(PHOTO))
        return status(everything(connection)) == 200


def test_several_requests_share_a_connection(running: Live) -> None:
    with running.connect() as connection:
        connection.sendall(post(PHOTO, close=False) + post(PHOTO))
        assert everything(connection).count(b"HTTP/1.1 200 OK") == 2


def test_a_large_header_is_refused(running: Live) -> None:
    with running.connect() as connection:
        connection.sendall(b"GET /healthz HTTP/1.1\r\nX: " + b"y" * MAX_HEADER_BYTES)  # and it goes on
        answer = everything(connection)
    assert status(answer) == 431
    assert json.loads(answer.partition(b"\r\n\r\n")[2])["type"] == "/docs#header-too-large"


@pytest.mark.parametrize(
    "head",
    [
        "nonsense\n",
        "GET / HTTP/9\nHost: x\n",
        "GET / HTTP/1.1\nHost: x\nBad Header: y\n",
        "POST /v1/segment HTTP/1.1\nHost: x\nContent-Length: -5\n",
        "POST /v1/segment HTTP/1.1\nHost: x\nContent-Length: 5\nContent-Length: 6\n",
        "POST /v1/segment HTTP/1.1\nHost: x\nTransfer-Encoding: gzip\n",
        "\x16\x03\x01\n",
    ],
)
def test_what_is_not_http_is_a_malformed_request(head: str, running: Live) -> None:
    answer = running.ask(head)
    assert status(answer) in (400, 501)
    assert json.loads(answer.partition(b"\r\n\r\n")[2])["status"] == 400


@pytest.mark.parametrize(
    "path", ["/../../etc/passwd", "/app.js/../../server.py", "/%2e%2e/x", "/..%2f..%2fetc/passwd", "/app.js%00", "//"]
)
def test_no_path_leads_out_of_the_table_of_routes(path: str, running: Live) -> None:
    answer = running.ask(f"GET {path} HTTP/1.1\nHost: x\nConnection: close\n")
    assert status(answer) in (400, 404)
    assert b"root:" not in answer


def test_a_length_that_is_too_large_waits_and_then_gives_up(running: Live) -> None:
    head = f"POST /v1/segment HTTP/1.1\nHost: x\nContent-Type: image/jpeg\nContent-Length: {len(PHOTO) + 1}\n"
    answer = running.ask(head, PHOTO)
    assert status(answer) == 408
    assert b"took longer than 1 s" in answer


def test_a_length_that_is_too_small_truncates_the_image_and_closes(running: Live) -> None:
    head = f"POST /v1/segment HTTP/1.1\nHost: x\nContent-Type: image/jpeg\nContent-Length: {len(PHOTO) // 2}\n"
    answers = running.ask(head, PHOTO + b"\r\n\r\n")
    assert answers.count(b"HTTP/1.1 400 ") == 2
    assert b"truncated" in answers
    assert answers.endswith(b'"request_id": ""}')  # the rest is no request


def test_a_client_that_hangs_up_in_its_body_disturbs_nobody(running: Live, service: Service) -> None:
    before = metric(service, "evitseg_requests_total", endpoint="/v1/segment", status="499")
    for sent in (0, 1, len(PHOTO) // 2):
        with running.connect() as connection:
            connection.sendall(post(PHOTO)[: -len(PHOTO) + sent])
    with running.connect() as connection:
        connection.sendall(post(PHOTO)[:-1])
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")  # a reset
    eventually(lambda: metric(service, "evitseg_requests_total", endpoint="/v1/segment", status="499") == before + 4)
    assert works(running)
    assert service.uploads.held == 0


def test_a_slow_header_is_not_waited_for(running: Live, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_module, "HEADER_TIMEOUT_S", 0.2)
    monkeypatch.setattr(server_module, "SWEEP_TICKS", 1)
    with running.connect() as silent, running.connect() as slow:
        slow.sendall(b"GET / HT")
        assert everything(silent) == everything(slow) == b""
    with running.connect() as second:  # also after a first answer
        second.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\nGET /hea")
        assert everything(second).count(b"HTTP/1.1") == 1


def test_a_client_that_does_not_take_its_answer_is_not_waited_for(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server_module, "WRITE_TIMEOUT_S", 0.2)
    monkeypatch.setattr(server_module, "SWEEP_TICKS", 1)
    ended = threading.Event()

    async def endless(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            for name in ("startup", "shutdown"):
                await receive()
                await send({"type": f"lifespan.{name}.complete"})
            return
        await send({"type": "http.response.start", "status": 200, "headers": []})
        while not ended.is_set():
            await send({"type": "http.response.body", "body": bytes(2**20), "more_body": True})

    with live(endless, service) as running, running.connect() as connection:
        connection.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        eventually(lambda: len(running.server.server_state.connections) == 1)
        eventually(lambda: not running.server.server_state.connections)
        ended.set()


def test_more_connections_than_allowed_are_refused(running: Live, monkeypatch: pytest.MonkeyPatch) -> None:
    eventually(lambda: not running.server.server_state.connections)
    monkeypatch.setattr(server_module, "MAX_CONNECTIONS", 2)
    with running.connect() as first, running.connect() as second:
        eventually(lambda: len(running.server.server_state.connections) == 2)
        with running.connect() as third:
            answer = everything(third)
        assert status(answer) == 503
        assert b"Retry-After: 2" in answer
        for each in (first, second):
            each.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            assert status(everything(each)) == 200


def test_a_full_queue_refuses_at_once_and_finishes_what_it_has() -> None:
    service, engine = gated(ServiceLimits(queue=2))
    engine.gate.set()
    with live(create_app(service), service) as running, contextlib.ExitStack() as stack:
        engine.gate.clear()
        connections = [stack.enter_context(running.connect()) for _ in range(service.queue.threads + 2)]
        for count, connection in enumerate(connections, 1):
            connection.sendall(post(PHOTO))
            eventually(lambda count=count: service.queue.waiting + service.queue.running == count)  # type: ignore[misc]
        for _ in range(3):
            answer = running.ask(
                f"POST /v1/segment HTTP/1.1\nHost: x\nContent-Length: {len(PHOTO)}\nConnection: close\n", PHOTO
            )
            assert status(answer) == 503
            assert re.search(rb"retry-after: \d+\r\n", answer)
        ready = running.ask("GET /readyz HTTP/1.1\nHost: x\nConnection: close\n")
        assert status(ready) == 200
        engine.gate.set()
        assert [status(everything(each)) for each in connections] == [200] * len(connections)
    assert metric(service, "evitseg_shed_total", reason="queue_full") == 3


def test_work_of_a_client_that_left_is_dropped_before_it_begins() -> None:
    service, engine = gated()
    engine.gate.set()
    with live(create_app(service), service) as running, contextlib.ExitStack() as stack:
        passed = engine.passed
        engine.gate.clear()
        staying = [stack.enter_context(running.connect()) for _ in range(service.queue.threads)]
        for connection in staying:
            connection.sendall(post(PHOTO))
        eventually(lambda: service.queue.running == service.queue.threads)
        leaving = [running.connect() for _ in range(5)]
        for connection in leaving:
            connection.sendall(post(PHOTO))
        eventually(lambda: service.queue.waiting == 5)
        for connection in leaving:
            connection.close()
        eventually(lambda: service.queue.waiting == 0)
        engine.gate.set()
        assert [status(everything(each)) for each in staying] == [200] * len(staying)
        assert engine.passed - passed == len(staying)
    assert metric(service, "evitseg_dropped_total") == 5


def test_work_that_takes_too_long_is_given_up() -> None:
    service, engine = gated(ServiceLimits(timeout_s=0.2))
    engine.gate.set()
    with live(create_app(service), service) as running:
        engine.gate.clear()
        with running.connect() as connection:
            connection.sendall(post(PHOTO))
            answer = everything(connection)
        engine.gate.set()
        assert status(answer) == 504
        assert works(running)


def test_draining_finishes_what_has_begun_refuses_the_rest_and_ends() -> None:
    service, engine = gated()
    engine.gate.set()
    with live(create_app(service), service) as running, running.connect() as connection:
        engine.gate.clear()
        connection.sendall(post(PHOTO))
        eventually(lambda: service.queue.running == 1)
        running.server.drain()
        ready = running.ask("GET /readyz HTTP/1.1\nHost: x\nConnection: close\n")
        assert status(ready) == 503
        assert b'"draining"' in ready
        refused = running.ask(f"POST /v1/segment HTTP/1.1\nHost: x\nContent-Length: {len(PHOTO)}\n", PHOTO)
        assert status(refused) == 503
        assert b"#draining" in refused
        assert status(running.ask("GET /healthz HTTP/1.1\nHost: x\nConnection: close\n")) == 200
        engine.gate.set()
        assert status(everything(connection)) == 200
        running.thread.join(20)
        assert not running.thread.is_alive()


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGTERM to send")
def test_the_command_ends_with_status_0_after_sigterm(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "evitseg", "serve", "--port", "0", "--size", "64"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=tmp_path) as process:
        with contextlib.ExitStack() as stack:
            stack.callback(process.kill)
            assert process.stdout is not None
            lines = [process.stdout.readline() for _ in range(2)]
            found = re.search(rb"http://127.0.0.1:(\d+)", lines[1])
            assert found, lines
            with socket.create_connection(("127.0.0.1", int(found[1])), 20) as connection:
                connection.sendall(post(PHOTO, close=False))
                assert connection.recv(12) == b"HTTP/1.1 200"
                process.send_signal(signal.SIGTERM)
                assert process.wait(20) == 0
        assert process.stderr is not None
        (line,) = process.stderr.read().splitlines()
    assert json.loads(line)["status"] == 200
    assert list(tmp_path.iterdir()) == []


def test_an_address_that_is_taken_is_a_sentence(cli: Callable[..., Finished]) -> None:
    with listening("127.0.0.1", 0) as sock:
        done = cli("serve", "--port", sock.getsockname()[1])
    assert done.status == 1
    assert "choose another --host or --port" in done.stderr
