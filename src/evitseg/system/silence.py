"""Suppress the output of third-party libraries: converters and their engines print progress and warnings.

They run in this process, not in a child, because their engines do, too, and because a child would import PyTorch and
load the model a second time.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import logging
import os
import signal
import sys
import threading
import warnings
from collections.abc import Iterator
from functools import cache
from types import FrameType
from typing import TextIO

_lock = threading.Lock()
_depth = 0
"""Number of blocks, in all threads, that are silenced now."""
_redirection = contextlib.ExitStack()


@contextlib.contextmanager
def silenced() -> Iterator[None]:
    """Suppress all output, warnings and log messages in the block, from Python and from native code.

    Output is a property of the process, so other threads are silent, too, from the first block that any thread enters
    to the last one that it leaves. An interrupt is delivered at the end of the block, because converters swallow it or
    crash if it arrives while they are imported; a second interrupt is delivered at once.
    """
    global _depth, _redirection
    with _delayed_interrupt():
        with _lock:
            if not _depth:
                _redirection = _redirect()
            _depth += 1
        try:
            yield
        finally:
            with _lock:
                _depth -= 1
                if not _depth:
                    _redirection.close()


def _redirect() -> contextlib.ExitStack:
    """Discard output, warnings and log messages until the result is closed."""
    with contextlib.ExitStack() as stack:
        nowhere = _nowhere()
        stack.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore")
        stack.callback(logging.disable, logging.root.manager.disable)
        logging.disable(logging.CRITICAL)
        for number, stream in ((1, sys.stdout), (2, sys.stderr)):
            if stream is not None:
                stream.flush()
            with contextlib.suppress(OSError):  # a service may have no such descriptor
                stack.callback(_restore, os.dup(number), number)
                os.dup2(nowhere.fileno(), number)
            if stream is None:
                continue
            if _is_descriptor(stream, number):
                # The object stays, because a log handler made in the block keeps it.
                stack.callback(stream.flush)
            elif number == 1:
                stack.enter_context(contextlib.redirect_stdout(nowhere))
            else:
                stack.enter_context(contextlib.redirect_stderr(nowhere))
        return stack.pop_all()


@cache
def _nowhere() -> TextIO:
    """A stream that stays open, because a log handler made in a block may keep it."""
    stream = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
    atexit.register(stream.close)
    return stream


def _is_descriptor(stream: TextIO, number: int) -> bool:
    """Whether a stream writes to this file descriptor; a notebook's does not."""
    try:
        return stream.fileno() == number
    except (OSError, ValueError, AttributeError):
        return False


@contextlib.contextmanager
def _delayed_interrupt() -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():  # only the main thread may handle signals
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
        ctypes.CDLL(None).fflush(None)  # native code may have buffered output
    os.dup2(saved, number)
    os.close(saved)
