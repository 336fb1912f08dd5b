"""The one place that a verb writes to: results for a person, one JSON object for a program, or nothing."""

from __future__ import annotations

import json
import os
import sys
import unicodedata
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from typing import TYPE_CHECKING, Any

from evitseg.cli.failures import visible

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

    from evitseg.cli.progress import Advance
    from evitseg.labels import LabelSpace

_NODATA = "no data"


class Output:
    """Results on standard output, errors on standard error; what --json and --quiet change is decided here.

    Attributes:
        as_json: print `content` as one JSON object at the end, and nothing else on standard output.
        quiet: print no results, remarks or progress; errors still appear, and so does JSON if it was asked for.
        content: what `as_json` prints.
    """

    def __init__(self, as_json: bool = False, quiet: bool = False) -> None:
        self.as_json = as_json
        self.quiet = quiet
        self.content: dict[str, Any] = {}
        self._stdout_is_data = False

    def keep_stdout_for_data(self) -> None:
        """Print results for a person on standard error, because a file's bytes go to standard output."""
        self._stdout_is_data = True

    @cached_property
    def _is_plain(self) -> bool:
        """Whether nothing is a terminal. Rich is not needed then, and its import takes a tenth of a short command."""
        asked_for = os.environ.get("FORCE_COLOR") or os.environ.get("TTY_COMPATIBLE")
        return not (asked_for or sys.stdout.isatty() or sys.stderr.isatty())

    @cached_property
    def console(self) -> Console:
        """The console for results; on standard error where standard output belongs to a program."""
        from rich.console import Console

        return Console(stderr=self.as_json or self._stdout_is_data, quiet=self.quiet, highlight=False)

    @cached_property
    def progress_console(self) -> Console:
        """The console for progress bars: the terminal, whichever of the two streams leads to it."""
        from rich.console import Console

        return self.console if self.console.is_terminal else Console(stderr=True, quiet=self.quiet, highlight=False)

    def result(self, line: str, style: str = "") -> None:
        """A line of results for a person."""
        if not self.as_json and not self.quiet:
            self._print(line, style)

    def show(self, table: RenderableType) -> None:
        """A table or another Rich object for a person."""
        if not self.as_json:
            self.console.print(table)

    def note(self, line: str) -> None:
        """A remark that is neither a result nor an error; with --json it goes to standard error."""
        if not self.quiet:
            self._print(line, "")

    def _print(self, line: str, style: str, bar: str = "", bar_style: str = "") -> None:
        line = visible(line)
        if (style or bar_style) and not self._is_plain and self.console.is_terminal:
            from rich.text import Text

            self.console.print(Text(line, style=style).append(bar, style=bar_style), soft_wrap=True)
        else:
            to = sys.stderr if self.as_json or self._stdout_is_data else sys.stdout
            print(line + bar, file=to, flush=True)

    def log(self, line: str) -> None:
        """A line about work under way, on standard error."""
        if not self.quiet:
            print(visible(line), file=sys.stderr, flush=True)

    def warning(self, sentence: object) -> None:
        """What was left out or may be wrong, where the exit status stays 0."""
        print(f"warning: {visible(sentence)}", file=sys.stderr, flush=True)

    def error(self, sentence: object) -> None:
        """What failed; the exit status is then not 0."""
        print(f"error: {visible(sentence)}", file=sys.stderr, flush=True)

    def fractions(self, title: str, fractions: Mapping[str, float], labels: LabelSpace, nodata: float = 0.0) -> None:
        """A table with a bar for each class of a mask, and for pixels without data; it adds up to 100 %."""
        if self.as_json or self.quiet:
            return
        self._print(title, "italic")
        colors = {c.name: c.color for c in labels.classes}
        rows = [*fractions.items(), *([(_NODATA, nodata)] if nodata else [])]
        width = max(_cells(name) for name in ("class", *(name for name, _ in rows)))
        self._print(f" class{' ' * (width - len('class'))}  pixels", "bold")
        for (name, fraction), tenths in zip(rows, _tenths([fraction for _, fraction in rows]), strict=True):
            bar = "█" * max(1, round(40 * fraction))
            style = f"rgb({','.join(map(str, colors[name]))})" if name in fractions else "dim"
            self._print(f" {name}{' ' * (width - _cells(name))}  {tenths / 10:>5.1f}%  ", "", bar, style)

    @contextmanager
    def progress(self, what: str, total: int | None, unit: str = "") -> Iterator[Advance]:
        """A progress bar on a terminal, else a line now and then; call what it yields with the number of units done."""
        from evitseg.cli.progress import counted_lines, progress_bar

        if self._is_plain:
            yield counted_lines(what, total, unit, silent=self.quiet)
            return
        with progress_bar(what, total, self.progress_console, unit) as advance:
            yield advance

    def print_json(self, error: str | None = None) -> None:
        """Print the JSON object, if it was asked for; its key `error` says why the verb ended early, or is null."""
        if self.as_json:
            print(json.dumps(self.content | {"error": error}, indent=2))


def _cells(text: str) -> int:
    """The columns that a text takes on a terminal."""
    return sum(2 if unicodedata.east_asian_width(character) in "WF" else 1 for character in text)


def _tenths(fractions: list[float]) -> list[int]:
    """Fractions that add up to 1 as tenths of a percent that add up to 1000 (the method of largest remainders)."""
    tenths = [int(1000 * fraction) for fraction in fractions]
    left = round(1000 * sum(fractions)) - sum(tenths)
    by_remainder = sorted(range(len(tenths)), key=lambda i: tenths[i] - 1000 * fractions[i])
    for i in by_remainder[:left]:
        tenths[i] += 1
    return tenths
