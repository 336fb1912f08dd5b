"""The command line itself: the application, errors as sentences, exit statuses."""

from __future__ import annotations

import io
import os
import sys
import warnings
from collections.abc import Callable
from functools import wraps
from typing import TYPE_CHECKING, Annotated, Any

import typer

from evitseg.cli.console import FAILED, INTERRUPTED, fail
from evitseg.errors import EvitsegError, EvitsegWarning

if TYPE_CHECKING:
    pass


app = typer.Typer(
    name="evitseg",
    help="Semantic segmentation with EfficientViT, from a folder of photos to a small device.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def plain_errors(verb: Callable[..., None]) -> Callable[..., None]:
    """Our errors as one line and exit status 1; an interrupt as one line and 130."""

    @wraps(verb)
    def run(*args: Any, **kwargs: Any) -> None:
        try:
            verb(*args, **kwargs)
        except EvitsegError as error:
            fail(error)
        except KeyboardInterrupt as interrupt:
            print(str(interrupt) or "interrupted.", file=sys.stderr)
            raise typer.Exit(INTERRUPTED) from None
        except BrokenPipeError:
            # Whoever read our output has enough, as head has; nothing is left to say, also not at exit.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise typer.Exit(FAILED) from None
        except OSError as error:  # ours are EvitsegErrors: what is left is a standard output on a full disk
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            fail(f"the output cannot be written ({error.strerror or error}).")

    return run


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
        from evitseg import __version__

        print(f"evitseg {__version__}")
        raise typer.Exit


@app.callback()
def main(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a console without × or █ shows something else, and goes on
    warnings.simplefilter("ignore")  # libraries' remarks to programmers
    warnings.filterwarnings("always", category=EvitsegWarning)
    warnings.showwarning = _WarnOnce()
