"""What the command line makes of an error: one table gives its exit status and its sentence."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from evitseg.cli.signals import received
from evitseg.errors import EvitsegError

FAILED, WRONG_USAGE = 1, 2
_CONTROLS = {code: f"\\x{code:02x}" for code in (*range(32), *range(127, 160)) if chr(code) not in "\t\n"}


class Interrupted(BaseException):  # not an error: no `except Exception` may stop it
    """A signal ended the work; the message says what was kept and how to go on."""


@dataclass(frozen=True)
class Failure:
    """How one kind of error is reported.

    Attributes:
        status: the exit status; a function where it depends on the signal that was received.
        sentence: the message that follows "error: "; an empty one is not printed.
    """

    kind: type[BaseException]
    status: int | Callable[[], int]
    sentence: Callable[[Any], str]


def _system_sentence(error: OSError) -> str:
    where = "" if error.filename is None else f"{printable(error.filename)}: "
    if not error.strerror:
        return _bug_sentence(error)
    return f"{where}cannot be read or written ({error.strerror})."


def _bug_sentence(error: BaseException) -> str:
    first_line = (str(error).splitlines() or [""])[0][:300]
    return f"unexpected error ({type(error).__name__}: {first_line}); --debug shows the traceback."


def _usage_sentence(error: click.UsageError) -> str:
    if isinstance(error, click.BadParameter) and not isinstance(error, click.MissingParameter):
        hint = error.param_hint or (error.param.opts[0] if isinstance(error.param, click.Option) else None)
        if hint is None and error.param is not None:
            hint = error.param.human_readable_name
        return f"{hint}: {error.message}" if hint else error.message
    return error.format_message()


FAILURES = (
    Failure(Interrupted, lambda: 128 + received(), str),
    Failure(KeyboardInterrupt, lambda: 128 + received(), lambda error: str(error) or "interrupted."),
    Failure(click.UsageError, WRONG_USAGE, _usage_sentence),
    Failure(EvitsegError, FAILED, str),
    Failure(MemoryError, FAILED, lambda _: "not enough memory; free some, use smaller images, or limit it (--memory)."),
    Failure(BrokenPipeError, FAILED, lambda _: ""),  # `head` has read enough: nothing is left to say
    Failure(OSError, FAILED, _system_sentence),
    Failure(Exception, FAILED, _bug_sentence),
)
"""The first row whose kind an error is decides."""

_debugging = False


def show_tracebacks(on: bool) -> None:
    """Choose whether `sentence_of` also prints the traceback."""
    global _debugging
    _debugging = on


def failure_of(error: BaseException) -> Failure:
    return next(failure for failure in FAILURES if isinstance(error, failure.kind))


def status_of(error: BaseException) -> int:
    """The exit status of the command that this error ended."""
    status = failure_of(error).status
    return status if isinstance(status, int) else status()


def sentence_of(error: BaseException) -> str:
    """What went wrong, for a person; with --debug the traceback goes to standard error first."""
    if _debugging:
        traceback.print_exception(error, file=sys.stderr)
    return failure_of(error).sentence(error)


def visible(text: object) -> str:
    """Text for a terminal, where a name in somebody's file must not move the cursor or change the colours."""
    return str(text).translate(_CONTROLS)


def printable(name: object) -> str:
    """A file name, shortened to a length that can be read."""
    text = name.decode(errors="replace") if isinstance(name, bytes) else str(name)
    return text if len(text) <= 200 else f"{Path(text[:200])}…"
