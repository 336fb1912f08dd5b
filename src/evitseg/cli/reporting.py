"""How the log, the warnings and the final error of a verb reach the terminal."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import warnings
from collections.abc import Iterator

from evitseg.cli.failures import Interrupted, sentence_of, status_of, visible
from evitseg.cli.output import Output
from evitseg.errors import EvitsegWarning


def report(error: BaseException, output: Output) -> int:
    """Print what ended the verb. Returns: the exit status."""
    sentence, status = sentence_of(error), status_of(error)
    if isinstance(error, OSError) and error.filename is None and not _stdout_works():
        if not isinstance(error, BrokenPipeError):
            sentence = f"the output cannot be written ({error.strerror or error})."
        # Python flushes standard output at exit, which would fail again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    else:
        output.print_json(sentence)
    if isinstance(error, (KeyboardInterrupt, Interrupted)):
        print(sentence, file=sys.stderr)
    elif sentence:
        output.error(sentence)
    return status


def _stdout_works() -> bool:
    try:
        sys.stdout.flush()
    except OSError:
        return False
    return True


class _StderrHandler(logging.Handler):
    """Writes to the current sys.stderr, which a progress bar replaces to print lines above itself."""

    def emit(self, record: logging.LogRecord) -> None:
        print(self.format(record), file=sys.stderr)


@contextlib.contextmanager
def logging_to_stderr(verbose: int) -> Iterator[None]:
    """Show the package's log on standard error while a verb runs, if --verbose asks for it."""
    if not verbose:
        yield
        return
    logger, handler = logging.getLogger("evitseg"), _StderrHandler()
    handler.setFormatter(logging.Formatter("%(name)s: %(message)s"))
    before = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO if verbose == 1 else logging.DEBUG)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(before)


@contextlib.contextmanager
def printed_warnings() -> Iterator[None]:
    """Print each of our own warnings once, as a sentence, and none that other libraries address to programmers."""
    seen: set[str] = set()

    def show(message: Warning | str, *about: object, **more: object) -> None:
        sentence = str(message)
        if isinstance(message, EvitsegWarning) and sentence not in seen:
            seen.add(sentence)
            print(f"warning: {visible(sentence)}", file=sys.stderr)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.filterwarnings("always", category=EvitsegWarning)
        warnings.showwarning = show
        yield
