"""What other libraries print while they work, kept from people who did not ask."""

from __future__ import annotations

import contextlib
import ctypes
import logging
import os
import signal
import sys
import tempfile
import threading
import warnings
from collections.abc import Iterator
from types import FrameType

_lock = threading.Lock()
_inside = 0
_redirected = contextlib.ExitStack()


@contextlib.contextmanager
def silenced() -> Iterator[None]:
    """Nothing that is printed or warned inside reaches the terminal, from Python or from native code.

    The process's standard streams point elsewhere meanwhile, from the first thread that comes in to the last that
    leaves: keep it short where other threads print. An interrupt waits for the end, a second one does not: converters
    swallow it, or crash if it meets them while they are imported.
    """
    global _inside, _redirected
    with _interrupts_wait():
        with _lock:
            if not _inside:
                _redirected = _redirect()
            _inside += 1
        try:
            yield
        finally:
            with _lock:
                _inside -= 1
                if not _inside:
                    _redirected.close()


def _redirect() -> contextlib.ExitStack:
    """Standard streams, warnings and log messages go nowhere until what is returned is closed."""
    disabled = logging.root.manager.disable
    with contextlib.ExitStack() as stack:
        for stream in (sys.stdout, sys.stderr):
            if stream is not None:
                stream.flush()
        elsewhere = stack.enter_context(tempfile.TemporaryFile("w+"))
        for number in (1, 2):
            with contextlib.suppress(OSError):  # a service may have none
                stack.callback(_restore, os.dup(number), number)
                os.dup2(elsewhere.fileno(), number)
        stack.enter_context(contextlib.redirect_stdout(elsewhere))
        stack.enter_context(contextlib.redirect_stderr(elsewhere))
        stack.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore")
        logging.disable(logging.CRITICAL)
        stack.callback(logging.disable, disabled)
        return stack.pop_all()


@contextlib.contextmanager
def _interrupts_wait() -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():  # which has no say in signals
        yield
        return
    before = signal.getsignal(signal.SIGINT)
    if not callable(before):
        yield
        return
    waiting: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        if waiting:
            before(number, frame)
        waiting.append(number)

    signal.signal(signal.SIGINT, note)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
        if waiting:
            before(signal.SIGINT, None)


def _restore(saved: int, number: int) -> None:
    if os.name == "posix":
        ctypes.CDLL(None).fflush(None)  # what native code printed may still wait in its buffers
    os.dup2(saved, number)
    os.close(saved)
