"""Lists of pairs: text files with an image and its mask on each line."""

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
"""A longer row has a quote that is never closed."""
# Not `csv`, which cannot tell whether a field was quoted: spaces around a field belong to a quoted name only.
_FIELD = re.compile(r'\s*"((?:[^"]|"")*)"\s*(?:,|$)|([^,]*)(?:,|$)')
"""A field and the comma or end after it: quoted as in CSV, with quotes inside doubled, or plain."""
_OPENS = re.compile(r'(?:^|,)\s*"')


@dataclass(frozen=True)
class Pair:
    """An image file and its mask file.

    Attributes:
        image, mask: the files.
        reading: how the image is read.
    """

    image: Path
    mask: Path
    reading: ReadOptions = AS_STATED


def write_pairs(path: str | os.PathLike[str], pairs: Iterable[Pair], comment: str = "") -> None:
    """Write a list that `read_pairs` reads back, for any file names.

    Paths are relative to the folder of the list. They are quoted as in CSV if they contain a comma, a quote, a line
    break or unusual spaces.

    Args:
        comment: the first line, which starts with #.

    Raises: FileError if the list cannot be written.
    """
    path = Path(path)
    base = os.path.realpath(path.parent)
    lines = [f"{comment}\n"] if comment else []
    lines += [f"{_quoted(pair.image, base)},{_quoted(pair.mask, base)}\n" for pair in pairs]
    with replacing(path) as file:
        # A file name that is not UTF-8 is written as the bytes that the file system has.
        file.write("".join(lines).encode("utf-8", "surrogateescape"))


def _quoted(file: Path, base: str) -> str:
    # The folder is resolved, because ".." after a link would lead elsewhere. A file that is a link keeps its name.
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
    """Read a list with an image and a mask on each line, separated by a comma, a tab or spaces.

    Paths are relative to the folder of the list and may be quoted as in CSV. Lines that start with # are comments. A
    first line without file names is a header.

    Raises: DatasetError with the number of the line.
    """
    pairs: list[Pair] = []
    for number, row in _rows(decoded(path, "surrogateescape")):
        fields = [part.strip() for part in row.split("\t")] if '"' not in row else []
        if len(fields) != 2:  # separated by a tab, a line may have commas in its names
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
    """Rows that are neither empty nor comments, each with the number of its first line."""
    row, first = "", 0
    for number, line in enumerate(text.split("\n"), start=1):
        if row:
            row += f"\n{line}"
        elif line.strip() and not line.lstrip().startswith("#"):
            row, first = line, number
        # A quoted name may contain a line break, but a quote that is never closed must not swallow the whole file.
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
