"""The names of results: every input gets its own, and files that evitseg did not write are never replaced."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from evitseg.cli.request import Request
from evitseg.errors import FileError
from evitseg.system.files import is_there

if TYPE_CHECKING:
    from evitseg.cli.jobs import PredictJob


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
    from evitseg.raster.places import companions_of_png
    from evitseg.system.authorship import is_ours

    for path in paths:
        if not os.path.lexists(path):
            # A world file that is already there would place the mask, or be replaced by the mask's own.
            beside = companions_of_png(path) if path.suffix.lower() == ".png" else ()
            stray = [each for each in beside if os.path.lexists(each)]
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


def name_of_part(stem: Path, request: Request) -> Path:
    """The beginning of names for a region, which must not be those of the whole image."""
    if request.region is None:
        return stem
    part = request.region
    return stem.with_name(f"{stem.name}_x{part.left}_y{part.top}_{part.width}x{part.height}")


def check_places(jobs: Sequence[PredictJob], request: Request) -> None:
    """Refuse results that would replace an input, or another result. Raises: FileError."""
    inputs = {os.path.realpath(job.source) for job in jobs if isinstance(job.source, Path)}
    for job in jobs if request.overwrite else ():  # otherwise `check_free` refuses what evitseg did not write
        own = os.path.realpath(job.source) if isinstance(job.source, Path) else None
        for path in (path for names in job.results(request) for path in names if is_there(path)):
            place = os.path.realpath(path)
            if place in inputs and place != own:
                raise FileError(
                    f"{path}: is an input, and the name of the result of {job.source}; choose another --out."
                )
    single = [job.file for job in jobs if job.file is not None]
    if request.annotations is not None:
        from evitseg.cli.predict_annotations import places_of

        single += places_of(list(jobs), request)
    single += [path for path in (request.polygons, request.save_context) if path is not None]
    taken = [os.path.realpath(path) for path in single]
    often = Counter(taken)
    for path, place in zip(single, taken, strict=True):
        if often[place] > 1:
            raise FileError(f"{path}: would be written for two options; give each a name of its own.")
        if place in inputs and path not in (job.file for job in jobs):
            raise FileError(f"{path}: is an input, and the name of a result; choose another name.")
