"""A bounded queue of work, and the threads that do it."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, TypeVar

T = TypeVar("T")


class QueueFullError(Exception):
    """As much work waits as may wait."""


class WorkQueue:
    """Work that waits, first in, first out, for one of a few threads.

    Cancelling the future of work that has not begun takes it out of the queue and releases what it holds.

    Args:
        threads: number of threads.
        limit: most pieces of work that wait for a thread.
    """

    def __init__(self, threads: int, limit: int) -> None:
        self.limit = limit
        self.running = 0
        self._changed = threading.Condition()
        self._waiting: deque[tuple[Future[Any], Callable[[], Any]]] = deque()
        self._is_closed = False
        self._threads = [
            threading.Thread(target=self._work, name=f"evitseg-serve-{i}", daemon=True) for i in range(threads)
        ]

    @property
    def waiting(self) -> int:
        """Pieces of work that wait for a thread."""
        return len(self._waiting)

    @property
    def threads(self) -> int:
        """Number of threads."""
        return len(self._threads)

    @property
    def is_full(self) -> bool:
        """Whether `submit` would refuse work."""
        return self.waiting + self.running >= self.limit + self.threads

    def start(self) -> None:
        """Start the threads."""
        for thread in self._threads:
            thread.start()

    def close(self) -> None:
        """End the threads after the work that has begun; work that waits is cancelled."""
        with self._changed:
            self._is_closed = True
            left, self._waiting = self._waiting, deque()
            self._changed.notify_all()
        for future, _ in left:
            future.cancel()
        for thread in self._threads:
            thread.join()

    def submit(self, work: Callable[[], T], beyond_limit: bool = False) -> Future[T]:
        """The future result of a piece of work. Raises: QueueFullError."""
        future: Future[T] = Future()
        with self._changed:
            if (self.is_full and not beyond_limit) or self._is_closed:
                raise QueueFullError
            self._waiting.append((future, work))
            self._changed.notify()
        future.add_done_callback(self._forget)
        return future

    def _forget(self, future: Future[Any]) -> None:
        if not future.cancelled():
            return
        with self._changed:
            kept = [entry for entry in self._waiting if entry[0] is not future]
            self._waiting.clear()
            self._waiting.extend(kept)

    def _work(self) -> None:
        while (taken := self._next()) is not None:
            self._do(*taken)
            del taken  # a thread that waits holds nothing of the last request

    def _next(self) -> tuple[Future[Any], Callable[[], Any]] | None:
        """The next work to do; None if the queue was closed."""
        with self._changed:
            while not self._is_closed:
                if not self._waiting:
                    self._changed.wait()
                    continue
                future, work = self._waiting.popleft()
                if future.set_running_or_notify_cancel():
                    self.running += 1
                    return future, work
                del future, work
            return None

    def _do(self, future: Future[Any], work: Callable[[], Any]) -> None:
        try:
            result = work()
        except BaseException as error:
            self._done()
            future.set_exception(error)
        else:
            self._done()
            future.set_result(result)

    def _done(self) -> None:
        with self._changed:
            self.running -= 1
