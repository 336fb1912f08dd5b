"""The names of results: every input gets its own, and files that evitseg did not write are never replaced."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path

from evitseg.cli.request import Request
from evitseg.errors import FileError
from evitseg.system.files import is_there


def name_outputs(found: list[tuple[Path | str, Path]], out: Path) -> list[tuple[Path | str, Path]]:
    """For every input the beginning of the names of its results; no two inputs share it."""
    found = list(dict.fromkeys(found))
    # Compared without case, because some file systems do.
    stems = Counter(str(place.with_suffix("")).casefold() for _, place in found)
    taken: set[str] = set()
    counts: dict[Path, int] = {}
    outputs = []
    for source, place in found:
        stem = place.with_suffix("")
        if stems[str(stem).casefold()] > 1:  # street.jpg next to street.png
            stem = stem.with_name(place.name.replace(".", "_"))
        name, count = stem, counts.get(stem, 1)
        while str(name).casefold() in taken:  # the same name from two folders
            count += 1
            name = stem.with_name(f"{stem.name}_{count}")
        counts[stem] = count
        taken.add(str(name).casefold())
        outputs.append((source, out / name))
    return outputs


def check_free(paths: list[Path], request: Request, source: Path | str) -> None:
    """Refuse to replace the input, or a file that evitseg did not write. Raises: FileError."""
    from evitseg.system.authorship import is_ours

    for path in paths:
        if not os.path.lexists(path):
            # A world file that is already there would place the mask, or be replaced by the mask's own.
            beside = path.with_suffix(".pgw"), path.with_name(f"{path.name}.aux.xml")
            stray = [each for each in beside if path.suffix.lower() == ".png" and os.path.lexists(each)]
            if stray and not request.overwrite:
                raise FileError(
                    f"{stray[0]}: would georeference {path.name}, which does not exist yet; choose another --out, or "
                    "add --overwrite."
                )
            continue
        if isinstance(source, Path) and is_there(source) and is_there(path) and path.samefile(source):
            raise FileError(f"{path}: is the input itself, which is never replaced; choose another --out.")
        if not request.overwrite and not is_ours(path):
            raise FileError(
                f"{path}: exists and was not written by evitseg; choose another --out, or add --overwrite to replace "
                "it."
            )
