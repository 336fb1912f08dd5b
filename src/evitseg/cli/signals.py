"""Ctrl-C and the signals of `kill`, `timeout` and service managers, raised as KeyboardInterrupt."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Iterator
from types import FrameType

_PAUSE_S = 0.5
"""Two signals within this time count as one: a terminal and a parent process may both deliver it."""
_first: tuple[int, float] | None = None


def received() -> int:
    """The signal that came first; SIGINT if none did."""
    return _first[0] if _first else int(signal.SIGINT)


def forget() -> None:
    """Start over: an interrupt is the normal end of a live source, and the next one is a first one again."""
    global _first
    _first = None


@contextlib.contextmanager
def as_interrupts() -> Iterator[None]:
    """SIGINT, SIGTERM and SIGHUP raise KeyboardInterrupt for as long as the block lasts; a second one ends at once."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    owner = os.getpid()

    def interrupt(number: int, frame: FrameType | None) -> None:
        global _first
        if os.getpid() != owner:  # a forked worker process: its parent decides
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
            return
        now = time.monotonic()
        if _first is None:
            _first = number, now
            raise KeyboardInterrupt
        if now - _first[1] > _PAUSE_S:
            os.write(2, b"interrupted again; hidden files that may be left are removed by the next run.\n")
            os._exit(128 + _first[0])

    forget()
    numbers = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
    before = {number: signal.getsignal(number) for number in numbers}
    ours = [number for number in numbers if before[number] not in (signal.SIG_IGN, None)]
    for number in ours:
        signal.signal(number, interrupt)
    try:
        yield
    finally:
        for number in ours:
            signal.signal(number, before[number])
