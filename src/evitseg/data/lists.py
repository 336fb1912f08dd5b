"""Lists of pairs: an image and its mask on each line, as people and `evitseg convert` write them."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from evitseg.errors import DatasetError
from evitseg.image import AS_STATED, ReadOptions
from evitseg.system.files import replacing
from evitseg.system.text import decoded

_LONGEST_ROW = 20_000
_FIELD = re.compile(r'\s*"((?:[^"]|"")*)"\s*(?:,|$)|([^,]*)(?:,|$)')
"""A field quoted as in CSV, a quote in it doubled, or a plain one, and what ends it."""
_OPENS = re.compile(r'(?:^|,)\s*"')


@dataclass(frozen=True)
class Pair:
    """An image and its mask, and how the image's file is read."""

    image: Path
    mask: Path
    reading: ReadOptions = AS_STATED


def write_pairs(path: str | os.PathLike[str], pairs: Iterable[Pair], comment: str = "") -> None:
    """Write a list that `read_pairs` reads back, whatever the files are called.

    The files are named relative to the list's folder, quoted as in CSV where a comma, a quote, a line break or blanks
    require it.

    Args:
        comment: the first line, which begins with #.

    Raises: FileError where the place cannot be written.
    """
    path = Path(path)
    base = os.path.realpath(path.parent)
    lines = [f"{comment}\n"] if comment else []
    lines += [f"{_quoted(pair.image, base)},{_quoted(pair.mask, base)}\n" for pair in pairs]
    with replacing(path) as file:
        # File systems hold bytes: a name that is not UTF-8 is written as the bytes it has.
        file.write("".join(lines).encode("utf-8", "surrogateescape"))


def _quoted(file: Path, base: str) -> str:
    # The folder is resolved, because ".." after a link leads elsewhere; the file's own name stays.
    place = Path(os.path.realpath(file.parent)) / file.name
    try:
        name = os.path.relpath(place, base)
    except ValueError:  # on another drive
        name = str(place)
    if name.startswith("#"):
        name = f".{os.sep}{name}"
    if set(name) & set(',"\r\n\t') or name != " ".join(name.split()):
        return '"' + name.replace('"', '""') + '"'
    return name


def read_pairs(path: Path) -> tuple[Pair, ...]:
    """An image and a mask on each line, separated by a comma, a tab or blanks; relative to the list's folder.

    Names may be quoted as in CSV. Lines that begin with # are comments, and a first line without file names is a
    header.

    Raises: DatasetError that names the line.
    """
    pairs: list[Pair] = []
    for number, row in _rows(decoded(path, "surrogateescape")):
        fields = [part.strip() for part in row.split("\t")] if '"' not in row else []
        if len(fields) != 2:  # not by a tab, in which case commas belong to names
            fields = _fields(row)
        if len(fields) == 1:
            fields = [part.strip() for part in row.split("\t" if "\t" in row else None)]
        if len(fields) != 2 or not all(fields):
            raise DatasetError(
                f"{path}, line {number}: {row[:200]!r} is not an image and a mask, separated by a comma."
            )
        if number == 1 and not any(Path(field).suffix for field in fields):
            continue  # a table's header
        pairs.append(Pair(path.parent / fields[0], path.parent / fields[1]))
    return tuple(pairs)


def _rows(text: str) -> Iterator[tuple[int, str]]:
    """Rows that are neither blank nor comments, with the number of their first line."""
    row, first = "", 0
    for number, line in enumerate(text.split("\n"), start=1):
        if row:
            row += f"\n{line}"
        elif line.strip() and not line.lstrip().startswith("#"):
            row, first = line, number
        # A quoted name may hold a line break; a quote that nothing closes does not swallow the file.
        if len(row) > _LONGEST_ROW or (row and not (_OPENS.search(row) and row.count('"') % 2)):
            yield first, row.strip()
            row = ""
    if row:
        yield first, row.strip()


def _fields(row: str) -> list[str]:
    fields, at = [], 0
    while at <= len(row):
        found = _FIELD.match(row, at)
        assert found is not None
        quoted, plain = found.groups()
        fields.append(plain.strip() if quoted is None else quoted.replace('""', '"'))
        at = found.end() + (found.end() == len(row) and not found[0].endswith(","))
    return fields
