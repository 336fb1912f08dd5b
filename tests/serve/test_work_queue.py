"""The bounded queue: order, limit, cancelling and closing."""

from __future__ import annotations

import gc
import threading
import weakref
from concurrent.futures import CancelledError

import pytest

from tests.optional import needs

needs("starlette", "httpx2", "uvicorn", "prometheus_client", "python_multipart")

from evitseg.serve.work_queue import QueueFullError, WorkQueue


def begin(started: threading.Event, gate: threading.Event) -> bool:
    started.set()
    return gate.wait(10)


class Load:
    """Something that work holds."""


def test_work_is_done_in_order_and_the_limit_counts_what_waits() -> None:
    queue, gate, done = WorkQueue(1, 2), threading.Event(), list[int]()
    queue.start()
    first = queue.submit(lambda: gate.wait(10))
    others = [queue.submit(lambda i=i: done.append(i)) for i in range(2)]  # type: ignore[misc]
    with pytest.raises(QueueFullError):
        queue.submit(lambda: done.append(9))
    beyond = queue.submit(lambda: done.append(2), beyond_limit=True)
    gate.set()
    assert first.result(10)
    for future in (*others, beyond):
        future.result(10)
    assert done == [0, 1, 2]
    queue.close()


def test_cancelled_work_leaves_the_queue_at_once_with_what_it_holds() -> None:
    queue, gate, done = WorkQueue(1, 1), threading.Event(), list[int]()
    queue.start()
    started = threading.Event()
    first = queue.submit(lambda: begin(started, gate))
    assert started.wait(10)
    load = Load()
    seen = weakref.ref(load)
    waiting = queue.submit(lambda held=load: done.append(1))  # type: ignore[misc]
    del load
    assert queue.is_full
    assert waiting.cancel()
    gc.collect()
    assert seen() is None
    assert not queue.is_full
    gate.set()
    first.result(10)
    queue.close()
    assert done == []


def test_a_thread_that_waits_holds_nothing_of_its_last_work() -> None:
    queue, load = WorkQueue(1, 1), Load()
    seen = weakref.ref(load)
    queue.start()
    queue.submit(lambda held=load: None).result(10)  # type: ignore[misc]
    del load
    queue.submit(lambda: None).result(10)
    gc.collect()
    assert seen() is None
    queue.close()


def test_an_error_is_the_result_and_the_thread_goes_on() -> None:
    queue = WorkQueue(1, 2)
    queue.start()
    with pytest.raises(ZeroDivisionError):
        queue.submit(lambda: 1 / 0).result(10)
    assert queue.submit(lambda: 3).result(10) == 3
    assert queue.running == 0
    queue.close()


def test_closing_ends_what_has_begun_and_cancels_what_waits() -> None:
    queue, gate, started = WorkQueue(1, 1), threading.Event(), threading.Event()
    queue.start()
    first = queue.submit(lambda: begin(started, gate))
    assert started.wait(10)
    second = queue.submit(lambda: 1)
    closing = threading.Thread(target=queue.close)
    closing.start()
    with pytest.raises(CancelledError):
        second.result(10)
    gate.set()
    closing.join(10)
    assert not closing.is_alive()
    assert first.result(10)
    with pytest.raises(QueueFullError):
        queue.submit(lambda: 2)
