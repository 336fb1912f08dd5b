"""From arguments to files: searches folders and patterns, and records which files are left out and why."""

from __future__ import annotations

import glob
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from evitseg.cli.failures import printable
from evitseg.cli.outcome import Outcome
from evitseg.system.files import is_folder, is_there, walk

RESULT_ENDINGS = ("_mask.png", "_mask.tif", "_mask.tiff", "_mask.zarr", "_overlay.jpg", "_overlay.png", "_overlay.tif")
OURS = "evitseg wrote them"
NOT_REGULAR = "neither files nor folders (pipes, sockets, devices)"


@dataclass(frozen=True)
class Found:
    """An input file.

    Attributes:
        place: its path relative to the folder it was found in.
        is_named: the person named it, rather than its folder or a pattern.
    """

    path: Path
    place: Path
    is_named: bool = True


def find_inputs(inputs: list[str], out: Path, outcome: Outcome) -> list[Found]:
    """Every image and video; `outcome` records inputs that cannot be found and files that are left out."""
    from evitseg.raster import is_zarr
    from evitseg.raster.formats import READABLE

    found: list[Found] = []
    for given in inputs:
        path = Path(given)
        try:
            mode = path.stat().st_mode if path.exists() else None
            if mode is not None and stat.S_ISDIR(mode) and not is_zarr(path):
                files = [Found(file, file.relative_to(path), False) for file in _files_in(path, out, outcome)]
                if not files:
                    outcome.fail(
                        given,
                        f"{given}: contains no image or video; {READABLE}, and videos such as MP4, MOV, MKV and AVI.",
                    )
                found += files
            elif mode is None and glob.has_magic(given):
                matches = list(_matches(given, out, outcome))
                if not matches:
                    outcome.fail(given, f"{given}: no file matches this pattern.")
                found += matches
            elif mode is not None and not (stat.S_ISREG(mode) or stat.S_ISDIR(mode) or stat.S_ISFIFO(mode)):
                outcome.fail(given, f"{given}: a device or a socket, not a file; give a file.")
            else:
                if mode is not None and _is_result(path, out):
                    outcome.output.note(f"{path}: evitseg wrote this file; it is segmented like a photograph.")
                found.append(Found(path, Path(path.name)))
        except (OSError, ValueError) as error:
            outcome.fail(given, f"{printable(given)}: cannot be read ({getattr(error, 'strerror', None) or error}).")
    return list(dict.fromkeys(found))


def _matches(pattern: str, out: Path, outcome: Outcome) -> Iterator[Found]:
    """Files that a pattern matches, each once even if several links lead to it."""
    from evitseg.raster import is_zarr

    seen = set()
    for match in sorted(glob.glob(pattern, recursive=True), key=lambda name: (name.count(os.sep), name)):
        path = Path(match)
        if is_folder(path) and not is_zarr(path):
            continue
        about = path.stat() if is_there(path) else None
        key = (about.st_dev, about.st_ino) if about else match
        if key in seen:
            continue
        seen.add(key)
        if about and not stat.S_ISREG(about.st_mode) and not stat.S_ISDIR(about.st_mode):
            outcome.skip(match, NOT_REGULAR)
        elif _is_result(path, out):
            outcome.skip(match, OURS)
        else:
            yield Found(path, Path(path.name), False)


def _files_in(folder: Path, out: Path, outcome: Outcome) -> list[Path]:
    """Images and videos below a folder, sorted; hidden files and folders are ignored."""
    from evitseg.raster import SLIDE_ENDINGS, formats, is_zarr
    from evitseg.raster.formats import EXTENSIONS as IMAGES
    from evitseg.video import EXTENSIONS as VIDEOS

    known = IMAGES | VIDEOS | {*SLIDE_ENDINGS}
    unread = (formats.UNREAD_EXTENSIONS | formats.EXTENSIONS) - known
    found: list[Path] = []

    def report(error: OSError) -> None:
        if error.filename is None or Path(error.filename) == folder:
            raise error
        outcome.fail(error.filename, f"{error.filename}: the folder cannot be read ({error.strerror or error}).")

    for path in walk(folder, report, is_zarr):
        ending = path.suffix.lower()
        if not is_folder(path):
            if ending in unread:
                outcome.skip(path, f"{ending} is not read")
            if ending not in known:
                continue
            if _is_special(path):  # never opened: a pipe would block
                outcome.skip(path, NOT_REGULAR)
                continue
        if _is_result(path, out):
            outcome.skip(path, OURS)
        else:
            found.append(path)
    return sorted(found)


def _is_special(path: Path) -> bool:
    """Whether it is a pipe, a socket or a device; inaccessible files are reported when they are read."""
    try:
        return not stat.S_ISREG(path.stat().st_mode)
    except OSError:
        return False


def _is_result(path: Path, out: Path) -> bool:
    """Whether evitseg wrote it; the file is opened only if its name or its folder suggests so."""
    from evitseg.system.authorship import is_ours
    from evitseg.video import is_result

    inside = Path(os.path.abspath(out))
    place = Path(os.path.abspath(path))
    suggests = path.name.lower().endswith(RESULT_ENDINGS) or is_result(path) or inside in place.parents
    return suggests and is_ours(path)
