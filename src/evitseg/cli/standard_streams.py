"""predict with an image from standard input, or a mask to standard output."""

from __future__ import annotations

import shutil
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import IO

import click

from evitseg.cli.jobs import run
from evitseg.cli.output import Output
from evitseg.cli.request import Request

STREAM = "-"


def run_on_streams(request: Request, output: Output) -> None:
    """Segment one image through temporary files, so that it works like any other: every format, size and mode.

    Raises: BadParameter, EvitsegError.
    """
    from evitseg.errors import ImageError

    if len(request.inputs) != 1:
        raise click.BadParameter("standard input or output holds one image; give one input", param_hint="INPUT")
    if request.annotations is not None:
        raise click.BadParameter(
            "annotations name their image; give its file, and a folder as --out", param_hint="--as"
        )
    reads_stdin = request.inputs[0] == STREAM
    writes_stdout = str(request.out) == STREAM or "--out" not in request.given
    if reads_stdin and sys.stdin.isatty():
        raise click.BadParameter("standard input is a terminal; redirect an image file to it", param_hint="-")
    if writes_stdout:
        _check_stdout(request, output)
        output.keep_stdout_for_data()
    with tempfile.TemporaryDirectory(prefix="evitseg-") as folder:
        names = {}
        if reads_stdin:
            image = Path(folder) / "stdin"
            with image.open("wb") as file:
                shutil.copyfileobj(sys.stdin.buffer, file)
            if not image.stat().st_size:
                raise ImageError("standard input is empty; redirect an image file to it.")
            names[str(image)] = STREAM
            request = replace(request, inputs=(str(image),))
        if not writes_stdout:
            run(request, output, names)
            return
        mask = Path(folder) / "mask.png"
        names[str(mask)] = "the mask to standard output"
        run(replace(request, out=mask, overlay=False), output, names)
        with mask.open("rb") as file:
            _copy_to_stdout(file)


def _check_stdout(request: Request, output: Output) -> None:
    if sys.stdout.isatty():
        raise click.BadParameter(
            "the mask would be printed to the terminal; redirect standard output, or give --out", param_hint="--out"
        )
    if output.as_json:
        raise click.BadParameter("JSON and the mask cannot share standard output; give --out", param_hint="--json")
    for option in ("--overlay", "--legend", "--skip-existing"):
        if option in request.given:
            raise click.BadParameter("only the mask goes to standard output; give --out", param_hint=option)


def _copy_to_stdout(file: IO[bytes]) -> None:
    sys.stdout.flush()
    shutil.copyfileobj(file, sys.stdout.buffer)
    sys.stdout.buffer.flush()
