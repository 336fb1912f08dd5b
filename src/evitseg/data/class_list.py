"""Read text files with one class name per line."""

from __future__ import annotations

import re
from pathlib import Path

from evitseg.errors import ConfigError, DatasetError
from evitseg.labels import LabelClass, LabelSpace, distinct_color, named
from evitseg.system.text import decoded

_MAX_BYTES = 4 * 2**20
_NUMBERED = re.compile(r"(\d{1,5})(?:\s*[:,;=]\s*|\s+)(\S.*)")


def read_class_list(path: Path, name: str) -> LabelSpace:
    """The classes in a file with one name per line. Empty lines and comments, which start with #, are skipped.

    If every line starts with a number, and the numbers count from 0 or 1, they are the raw ids of the classes.

    Raises: DatasetError.
    """
    lines = [line.strip() for line in decoded(path, most=_MAX_BYTES).splitlines()]
    names = [line for line in lines if line and not line.startswith("#")]
    rows = [found for line in names if (found := _NUMBERED.fullmatch(line))]
    numbers = [int(row[1]) for row in rows]
    try:
        if len(rows) < max(2, len(names)) or numbers not in (list(range(len(rows))), list(range(1, len(rows) + 1))):
            return named(name, names)
        if numbers[0] == 0:
            return named(name, [row[2] for row in rows])
        classes = tuple(LabelClass(row[2], (i + 1,), distinct_color(i)) for i, row in enumerate(rows))
        return LabelSpace(name, classes, (255,) if len(rows) < 255 else (65_535,), frozenset({"ignored_ids"}))
    except ConfigError as error:
        raise DatasetError(f"{path}: {error}") from error
