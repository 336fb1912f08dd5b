"""A parallel map with results in order and bounded memory, for folders of images, tiles and video frames."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")


def ordered_map(items: Iterable[T], work: Callable[[T], R], workers: int = 2, waiting: int = 2) -> Iterator[R]:
    """`map(work, items)` in several threads, with the results in order.

    The items are drawn in the caller's thread. At most `workers + waiting` items and results are in memory. Exceptions
    of `work` and of the items are raised at their place in the order. A caller that stops early waits only for work
    that has started.

    Args:
        workers: number of threads.
        waiting: number of items drawn before a thread is free for them, or of results waiting for the caller.
    """
    pool = ThreadPoolExecutor(workers, thread_name_prefix="evitseg")
    pending: deque[Future[R]] = deque()
    try:
        for item in items:
            pending.append(pool.submit(work, item))
            if len(pending) >= workers + waiting:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
