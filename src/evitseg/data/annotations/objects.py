"""What every annotation format becomes: images with objects, each a class's name and a shape."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Container, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, Protocol

from evitseg.data.annotations import regions
from evitseg.data.annotations.regions import Runs, ShapeError
from evitseg.errors import DatasetError

ALL = "all"
"""The split of data that has none."""
_LONGEST = 4_000
"""Characters of a path."""
MAX_FILES = 200_000
"""Files looked at in search of images."""


class Shape(Protocol):
    def runs(self, size: tuple[int, int]) -> Runs:
        """Its pixels in an image of this (height, width). Raises: ShapeError."""


@dataclass(frozen=True)
class Polygons:
    """The pixels inside any of the rings, each a list of x and y by turns or of pairs."""

    rings: Sequence[Any]

    def runs(self, size: tuple[int, int]) -> Runs:
        if not self.rings:
            raise ShapeError("has no polygon")
        return regions.union([regions.polygon(regions.coordinates(ring, size), size) for ring in self.rings])


@dataclass(frozen=True)
class Drawn:
    """A shape that a function draws."""

    draw: Callable[[tuple[int, int]], Runs]

    def runs(self, size: tuple[int, int]) -> Runs:
        return self.draw(size)


@dataclass(frozen=True)
class Damaged:
    """A shape or class that cannot be known, and why."""

    reason: str

    def runs(self, size: tuple[int, int]) -> Runs:
        raise ShapeError(self.reason)


@dataclass(frozen=True)
class Item:
    """One object of an image.

    Attributes:
        where: what messages call it, such as "annotation 17".
        label: its class; None for pixels to be ignored.
        shape: its pixels.
    """

    where: str
    label: str | None
    shape: Shape


@dataclass(frozen=True)
class AnnotatedImage:
    """An image and the objects on it.

    Attributes:
        name: its path as the format gives it, with forward slashes.
        where: what messages call it.
        size: (height, width) that the format states, or None.
        items: gives the objects in the order in which they are drawn.
        split: "train", "val", "test" or "all".
        file: where it lies, if that is known.
        embedded: gives the image file that the annotations hold themselves, for want of another.
    """

    name: str
    where: str
    size: tuple[int, int] | None
    items: Callable[[], Iterable[Item]]
    split: str = ALL
    file: Path | None = None
    embedded: Callable[[], bytes] | None = None


@dataclass
class Annotations:
    """A source, read.

    Attributes:
        tool: what wrote it, in words.
        source: the file or folder.
        names: classes in their order, without a background that nobody named.
        images: every image that can be used.
        larger_first: whether objects are drawn by area instead of in their order.
        colors: of the classes that have one.
        problems: sentences about what is wrong and was left out.
        notes: sentences about what is not wrong but worth knowing.
    """

    tool: str
    source: Path
    names: list[str]
    images: list[AnnotatedImage]
    larger_first: bool = False
    colors: dict[str, tuple[int, int, int]] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def whole(value: Any, what: str) -> int:
    """A whole number, also one written as 640.0 or "640". Raises: DatasetError that names what it is."""
    if isinstance(value, str) and len(value) < 20 and value.strip().isdecimal():
        return int(value)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or value != value or abs(value) > 2**53:
        raise DatasetError(f"has a {what} that is no number ({short(value)})")
    if value != int(value):
        raise DatasetError(f"has a {what} that is no whole number ({short(value)})")
    return int(value)


def short(value: Any) -> str:
    """A value in a message."""
    text = ascii(value) if isinstance(value, str) and not value.isprintable() else repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


_SPLITS = {
    "train": "train", "training": "train",
    "val": "val", "valid": "val", "validation": "val",
    "test": "test", "testing": "test",
}  # fmt: skip


def split_of(name: str) -> str:
    """The split that the name of a file, folder or subset tells, such as instances_train2017; else "all"."""
    told = {_SPLITS[word] for word in re.findall(r"[a-z]+", name.lower()) if word in _SPLITS}
    return told.pop() if len(told) == 1 else ALL


def space_name(source: Path) -> str:
    """What the classes of this file or folder are called; without characters that no text file can hold."""
    name = source.resolve().stem or "annotations"
    return "".join(c if c.isprintable() else "_" for c in name)


def count(number: int, noun: str) -> str:
    """ "1 object", "2 objects"."""
    return f"{number:,} {noun}{'s' * (number != 1)}"


def image_name(value: Any) -> str:
    """A path below the folder of images. Raises: DatasetError whose text continues "image 7"."""
    if not isinstance(value, str):
        raise DatasetError(f"has a file name that is no text ({short(value)})")
    if not value.isprintable():  # also halves of surrogate pairs, which no file system takes
        raise DatasetError(f"has a file name with characters that cannot be printed ({short(value)})")
    name = value.replace("\\", "/")
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or not path.name or (len(name) > 1 and name[1] == ":"):
        raise DatasetError(f"has the file name {short(value)}, which leads out of the folder of images")
    if any(len(part.encode()) > 250 for part in path.parts):
        raise DatasetError(f"has a file name that is too long ({short(value)})")
    return str(path)


def class_name(value: Any) -> str:
    """A class's name. Raises: DatasetError whose text continues "category 7"."""
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        value = str(value)
    if not isinstance(value, str) or not value.strip() or not value.isprintable():
        raise DatasetError(f"has a name that is no printable text ({short(value)})")
    return value.strip()


def read_json(path: Path) -> Any:
    """What a JSON file holds. Raises: DatasetError."""
    try:
        if path.exists() and not path.is_file():
            raise DatasetError(f"{path}: not a regular file.")
        return json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, UnicodeDecodeError) as error:
        raise DatasetError(f"{path}: cannot be read ({error}).") from error
    except (ValueError, RecursionError) as error:
        raise DatasetError(f"{path}: not JSON ({error}).") from error


def text_lines(path: Path) -> list[str]:
    """Lines of a UTF-8 file without blanks at their ends. Raises: DatasetError."""
    try:
        if path.exists() and not path.is_file():
            raise DatasetError(f"{path}: not a regular file.")
        return [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise DatasetError(f"{path}: cannot be read as UTF-8 text ({error}).") from error


class ImageFolder:
    """Finds image files by the names that annotations give them.

    Names are looked up below a given folder, or else below the usual folders near the annotations; at last any file
    of that name near them is taken, if there is only one.
    """

    def __init__(self, near: Path, given: Path | None = None, inside: Sequence[str] = ()) -> None:
        """
        Args:
            near: the folder of the annotations.
            given: the folder that a person named; then no other is looked at.
            inside: further folders, relative to `near`.

        Raises: DatasetError where the given folder is none.
        """
        if given is not None and not given.is_dir():
            raise DatasetError(
                f"{given}: no such folder of images; --images names the folder that file names start from."
            )
        above = near.parent
        usual = ("", "images", "image", "imgs", "photos", "data", "JPEGImages", "img")
        self.folders = (
            [given]
            if given is not None
            else [*(near / name for name in (*inside, *usual)), *(above / name for name in (*inside, *usual))]
        )
        self._roots = (
            [given] if given is not None else [near] + ([above] if near.name.lower().startswith("annot") else [])
        )
        self._by_name: dict[str, list[Path]] | None = None

    def tail(self, value: object, taken: Container[object]) -> object:
        """The longest end of another machine's path (absolute, or leading upwards) that is a file here; else the value.

        Args:
            taken: names that others have exactly.
        """
        if not isinstance(value, str) or not value.isprintable() or len(value) > _LONGEST:
            return value
        parts = value.replace("\\", "/").split("/")
        if parts[0] and ".." not in parts and parts[0][1:2] != ":":
            return value
        first = max((i for i, part in enumerate(parts) if part in ("", "..")), default=0)
        ends = ["/".join(parts[i:]) for i in range(max(1, first + 1), len(parts))]
        return next((end for end in ends if end not in taken and self.find(end) is not None), value)

    def find(self, name: str) -> Path | None:
        """The file, or None where there is none or more than one could be meant."""
        try:
            for folder in self.folders:
                if (folder / name).is_file():
                    # The others are mostly there, too.
                    self.folders.remove(folder)
                    self.folders.insert(0, folder)
                    return folder / name
        except OSError:  # a name that is too long
            return None
        if self._by_name is None:
            self._by_name = {}
            for root in self._roots:
                for path in files_below(root):
                    self._by_name.setdefault(path.name, []).append(path)
        wanted = PurePosixPath(name).parts
        found = [path for path in self._by_name.get(wanted[-1], []) if path.parts[-len(wanted) :] == wanted]
        return found[0] if len(found) == 1 else None


def files_below(folder: Path, suffixes: Container[str] | None = None) -> list[Path]:
    """Files at any depth, in order; through linked folders once, never hidden ones, and at most `MAX_FILES` of them.

    Args:
        suffixes: only files with these endings, in lower case.
    """
    found: list[Path] = []
    real: set[str] = set()
    seen = 0
    for place, folders, names in os.walk(folder, followlinks=True):
        resolved = os.path.realpath(place)
        folders[:] = [] if resolved in real else sorted(f for f in folders if not f.startswith("."))
        if resolved in real:  # links may lead in a circle
            continue
        real.add(resolved)
        seen += len(names)
        found += [
            Path(place, name)
            for name in names
            if not name.startswith(".") and (suffixes is None or Path(name).suffix.lower() in suffixes)
        ]
        if seen > MAX_FILES:
            break
    return sorted(found)
