"""The command line itself: the application, errors as sentences, exit statuses."""

from __future__ import annotations

import io
import os
import sys
import warnings
from collections.abc import Callable
from functools import wraps
from typing import Annotated, Any

import typer

from evitseg.cli.console import FAILED, fail, sentence_of, set_debugging
from evitseg.cli.signals import as_interrupts, received
from evitseg.errors import EvitsegWarning

_Usage: type[Exception] = typer.BadParameter.__mro__[2]
"""Click's own errors, which typer hides."""

app = typer.Typer(
    name="evitseg",
    help="Semantic segmentation with EfficientViT, from a folder of photos to a small device.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def plain_errors(verb: Callable[..., None]) -> Callable[..., None]:
    """Whatever goes wrong as one sentence and exit status 1; an interrupt as one and 130, or 143 for SIGTERM."""

    @wraps(verb)
    def run(*args: Any, **kwargs: Any) -> None:
        try:
            with as_interrupts():
                verb(*args, **kwargs)
                sys.stdout.flush()
        except (typer.Exit, typer.Abort, _Usage):
            raise
        except KeyboardInterrupt as interrupt:
            print(str(interrupt) or "interrupted.", file=sys.stderr)
            raise typer.Exit(128 + received()) from None
        except BrokenPipeError:
            # Whoever read our output has enough, as head has; nothing is left to say, also not at exit.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise typer.Exit(FAILED) from None
        except Exception as error:  # no traceback, ever: a bug of ours is a sentence, too
            if isinstance(error, OSError) and error.filename is None and not _stdout_works():
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
                fail(f"the output cannot be written ({error.strerror or error}).")
            fail(sentence_of(error))

    return run


def _stdout_works() -> bool:
    try:
        sys.stdout.flush()
    except OSError:
        return False
    return True


class _WarnOnce:
    """Prints our warnings, each sentence once, and no others."""

    def __init__(self) -> None:
        self._seen: set[str] = set()

    def __call__(self, message: Warning | str, *about: Any, **more: Any) -> None:
        sentence = str(message)
        if isinstance(message, EvitsegWarning) and sentence not in self._seen:
            self._seen.add(sentence)
            print(f"warning: {sentence}", file=sys.stderr)


def _version(wanted: bool) -> None:
    if wanted:
        from evitseg._version import __version__

        print(f"evitseg {__version__}")
        raise typer.Exit


@app.callback()
def main(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of every error.")] = False,
) -> None:
    set_debugging(debug)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a console without × or █ shows something else, and goes on
    warnings.simplefilter("ignore")  # libraries' remarks to programmers
    warnings.filterwarnings("always", category=EvitsegWarning)
    warnings.showwarning = _WarnOnce()
