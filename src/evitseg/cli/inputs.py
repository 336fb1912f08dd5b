"""From arguments to files, and the names of their results."""

from __future__ import annotations

import glob
import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    pass


RESULT_ENDINGS = ("_mask.png", "_mask.tif", "_mask.tiff", "_mask.zarr", "_overlay.jpg", "_overlay.png")


def is_done(target: Path, overlay: bool) -> bool:
    if any(target.with_name(f"{target.name}_mask{ending}").exists() for ending in (".tif", ".tiff", ".zarr")):
        return True  # of a picture that went in tiles
    return all(any(path.is_file() for path in names) for names in result_paths(target, overlay))


def mask_place(source: Path, target: Path) -> Path:
    """Where the mask of a picture that goes in tiles is written: of the picture's kind."""
    from evitseg.raster import mask_ending

    return target.with_name(f"{target.name}_mask{mask_ending(source)}")


def is_huge(path: Path) -> bool:
    """Whether a picture is too large to be read whole. Raises: PictureError."""
    from evitseg.image import TooManyPixelsError, picture_size

    try:
        picture_size(path)
    except TooManyPixelsError:
        return True
    return False


def find_inputs(inputs: list[str], out: Path, problems: list[str]) -> Iterator[tuple[Path, Path]]:
    """Every picture with its place below the input it was found in; what cannot be found goes to `problems`."""
    from evitseg.raster import is_zarr

    for given in inputs:
        path = Path(given)
        try:
            if path.is_dir() and not is_zarr(path):
                files = _pictures_in(path, out)
                if not files:
                    from evitseg.image import EXTENSIONS
                    from evitseg.video import EXTENSIONS as VIDEOS

                    endings = ", ".join([*sorted(EXTENSIONS), *sorted(VIDEOS)])
                    problems.append(f"{given}: a folder without pictures or videos ({endings}).")
                yield from ((p, p.relative_to(path)) for p in files)
            elif not path.exists() and glob.has_magic(given):
                matches = [Path(match) for match in sorted(glob.glob(given, recursive=True)) if Path(match).is_file()]
                if not matches:
                    problems.append(f"{given}: no file matches this pattern.")
                yield from ((match, Path(match.name)) for match in matches)
            else:
                yield path, Path(path.name)
        except OSError as error:
            problems.append(f"{given[:200]}: cannot be looked at ({error.strerror or error}).")


def _pictures_in(folder: Path, out: Path) -> list[Path]:
    """Pictures and videos below a folder, but for hidden files and for our own results."""
    from evitseg.image import EXTENSIONS as PICTURES
    from evitseg.raster import SLIDE_ENDINGS, is_zarr
    from evitseg.video import EXTENSIONS as VIDEOS
    from evitseg.video import is_result

    inside = Path(os.path.abspath(out))
    below = Path(os.path.abspath(folder)) in inside.parents
    found = []
    for path in sorted(folder.rglob("*")):
        endings = PICTURES | VIDEOS | {*SLIDE_ENDINGS, ".zarr"}
        if path.name.startswith(".") or path.suffix.lower() not in endings or (path.is_dir() and not is_zarr(path)):
            continue
        ours = (
            inside in Path(os.path.abspath(path)).parents
            if below
            else path.name.endswith(RESULT_ENDINGS) or is_result(path)
        )
        if not ours:
            found.append(path)
    return found


def name_outputs(found: list[tuple[Path | str, Path]], out: Path) -> list[tuple[Path | str, Path]]:
    """For every picture or video the beginning of its results' names; two never get the same."""
    found = list(dict.fromkeys(found))
    # Compared without case, because some file systems do.
    stems = Counter(str(place.with_suffix("")).casefold() for _, place in found)
    taken: set[str] = set()
    outputs = []
    for source, place in found:
        stem = place.with_suffix("")
        if stems[str(stem).casefold()] > 1:  # street.jpg beside street.png
            stem = stem.with_name(place.name.replace(".", "_"))
        name, count = stem, 1
        while str(name).casefold() in taken:  # the same name from two folders
            count += 1
            name = stem.with_name(f"{stem.name}_{count}")
        taken.add(str(name).casefold())
        outputs.append((source, out / name))
    return outputs


def result_paths(target: Path, overlay: bool) -> list[list[Path]]:
    """Where a picture's results may lie: for each of them the names it may have."""
    mask = [target.with_name(f"{target.name}_mask.png")]
    drawn = [target.with_name(f"{target.name}_overlay.{ending}") for ending in ("jpg", "png")]
    return [mask, drawn] if overlay else [mask]
