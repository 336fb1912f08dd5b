"""Parallel maps with results in order: in threads with bounded memory, and in processes."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from types import FrameType
from typing import TypeVar

from evitseg.errors import EvitsegError
from evitseg.system.machine import share_cores

T = TypeVar("T")
R = TypeVar("R")

_MAX_PROCESSES = 61  # Windows cannot wait for more


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


@contextlib.contextmanager
def interrupts_blocked() -> Iterator[None]:
    """Hold Ctrl-C back while the block starts processes, which never receive it: they inherit the signal mask.

    Without it, an interrupt prints the traceback of every process that is still importing its modules. Windows has no
    signal masks.
    """
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextlib.contextmanager
def interrupts_deferred() -> Iterator[list[int]]:
    """Let the block finish before an interrupt that arrives in it takes effect. A second one takes effect at once.

    Other threads than the main one receive no signals, and defer nothing. Yields: the signals that wait.
    """
    waiting: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield waiting
        return
    numbers = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
    # A handler that is no function is the system's: the signal is ignored, or ends the process.
    handlers = {number: handler for number in numbers if callable(handler := signal.getsignal(number))}

    def defer(number: int, frame: FrameType | None) -> None:
        waiting.append(number)
        if len(waiting) > 1:
            handlers[number](number, frame)

    for number in handlers:
        signal.signal(number, defer)
    try:
        yield waiting
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    if waiting:
        handlers[waiting[0]](waiting[0], None)


def leave_interrupts_to_the_parent(*signals: str) -> None:
    """Ignore signals in a worker process: a terminal and service managers send them to the parent as well.

    Args:
        signals: their names; those that the system does not have are skipped.
    """
    for name in signals:
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)


def _begin(prepare: Callable[[], object] | None, processes: int) -> None:
    leave_interrupts_to_the_parent("SIGINT")
    share_cores(processes)
    if prepare is not None:
        prepare()


def process_map(
    items: Sequence[T],
    work: Callable[[T], R],
    workers: int,
    prepare: Callable[[], object] | None = None,
) -> Iterator[R]:
    """`map(work, items)` in several processes, with the results in order; they divide the cores (`share_cores`).

    Args:
        work: a function that a module defines by name, because it is pickled, like items and results.
        workers: number of processes.
        prepare: called once in every process; a `partial` may carry data that is expensive to send with every item.

    Raises: EvitsegError if a process is killed.
    """
    from concurrent.futures import ProcessPoolExecutor
    from concurrent.futures.process import BrokenProcessPool
    from multiprocessing import get_context

    count = max(1, min(workers, len(items), _MAX_PROCESSES))
    # Spawned, because a fork copies locks that other threads hold, and OpenVINO's threads do not survive it.
    with ProcessPoolExecutor(count, get_context("spawn"), _begin, (prepare, count)) as pool:
        try:
            with interrupts_blocked():
                results = pool.map(work, items, chunksize=4)
            yield from results
        except BrokenProcessPool as error:
            raise EvitsegError(
                "a worker process was killed, probably because memory ran out; try --workers 1."
            ) from error
