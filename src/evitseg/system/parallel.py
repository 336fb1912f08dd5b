"""Several things under way at once, results in order, memory bounded: for folders of images and frames of a video."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")


def overlapped(items: Iterable[T], work: Callable[[T], R], workers: int = 2, waiting: int = 2) -> Iterator[R]:
    """`map(work, items)` with several threads: the results in order, the items drawn in the caller's thread.

    Never are more than `workers + waiting` items and results held, however many there are. What the work or the items
    raise is raised at its place in the order. A caller who stops early waits for the work that has begun, no more.

    Args:
        workers: threads.
        waiting: items drawn before a thread is free for them, and results kept for a caller who is busy.
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
