"""What other libraries print while they work, kept from people who did not ask."""

from __future__ import annotations

import contextlib
import ctypes
import logging
import os
import sys
import tempfile
import warnings
from collections.abc import Iterator


@contextlib.contextmanager
def silenced() -> Iterator[None]:
    """Nothing that is printed or warned inside reaches the terminal, from Python or from native code.

    The process's standard streams point elsewhere meanwhile: keep it short where other threads print.
    """
    disabled = logging.root.manager.disable
    with contextlib.ExitStack() as stack:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        elsewhere = stack.enter_context(tempfile.TemporaryFile("w+"))
        for number in (1, 2):
            stack.callback(_restore, os.dup(number), number)
            os.dup2(elsewhere.fileno(), number)
        stack.enter_context(contextlib.redirect_stdout(elsewhere))
        stack.enter_context(contextlib.redirect_stderr(elsewhere))
        stack.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore")
        logging.disable(logging.CRITICAL)
        stack.callback(logging.disable, disabled)
        yield


def _restore(saved: int, number: int) -> None:
    if os.name == "posix":
        ctypes.CDLL(None).fflush(None)  # what native code printed may still wait in its buffers
    os.dup2(saved, number)
    os.close(saved)
