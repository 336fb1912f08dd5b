"""The common form of all annotation formats: images with objects, each with a class name and a shape."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Callable, Container, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, Protocol

from evitseg.data.annotations import regions
from evitseg.data.annotations.regions import Runs, ShapeError
from evitseg.data.dataset import ALL, SPLIT_SYNONYMS
from evitseg.errors import DatasetError
from evitseg.system.files import walk

_MAX_PATH_LENGTH = 4_000
MAX_FILES = 200_000
"""Most files that are looked at in a search for images."""


class Shape(Protocol):
    """The shape of an object, whatever its format."""

    def runs(self, size: tuple[int, int]) -> Runs:
        """The pixels of the shape in an image of this (height, width). Raises: ShapeError."""


@dataclass(frozen=True)
class Polygons:
    """The pixels inside any of the rings; a ring is a list of pairs, or of alternating x and y."""

    rings: Sequence[Any]

    def runs(self, size: tuple[int, int]) -> Runs:
        if not self.rings:
            raise ShapeError("has no polygon")
        return regions.union([regions.polygon(regions.coordinates(ring, size), size) for ring in self.rings])


@dataclass(frozen=True)
class Drawn:
    """A shape drawn by a function."""

    draw: Callable[[tuple[int, int]], Runs]

    def runs(self, size: tuple[int, int]) -> Runs:
        return self.draw(size)


@dataclass(frozen=True)
class Damaged:
    """A shape or class that the annotations do not give, and the reason."""

    reason: str

    def runs(self, size: tuple[int, int]) -> Runs:
        raise ShapeError(self.reason)


@dataclass(frozen=True)
class Item:
    """An object in an image.

    Attributes:
        where: its name in messages, such as "annotation 17".
        label: its class; None for pixels to ignore.
        shape: its pixels.
    """

    where: str
    label: str | None
    shape: Shape


@dataclass(frozen=True)
class AnnotatedImage:
    """An image and the objects on it.

    Attributes:
        name: the path in the annotations, with forward slashes.
        where: its name in messages.
        size: (height, width) stated in the annotations, or None.
        items: returns the objects in drawing order.
        split: "train", "val", "test" or "all".
        file: the image file, if it was found.
        embedded: returns the bytes of an image file that is embedded in the annotations; used if `file` is None.
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
    """The content of a file or folder of annotations.

    Attributes:
        tool: the tool that wrote it, in words.
        source: the file or folder.
        names: class names in order; a background is among them only if the annotations name it.
        images: every image that can be used.
        larger_first: draw objects by decreasing area instead of in the order of the annotations.
        colors: colours of classes that have one.
        problems: sentences about annotations that are wrong and were skipped.
        notes: sentences about other things worth knowing.
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
    """A whole number, also one written as 640.0 or "640". Raises: DatasetError that continues a sentence."""
    if isinstance(value, str) and len(value) < 20 and value.strip().isdecimal():
        return int(value)
    article = "an" if what[0] in "aeio" else "a"
    if isinstance(value, bool) or not isinstance(value, (int, float)) or value != value or abs(value) > 2**53:
        raise DatasetError(f"has {article} {what} that is not a number ({short(value)})")
    if value != int(value):
        raise DatasetError(f"has {article} {what} that is not a whole number ({short(value)})")
    return int(value)


def short(value: Any) -> str:
    """A value as text for a message, shortened."""
    text = ascii(value) if isinstance(value, str) and not value.isprintable() else repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def split_of(name: str) -> str:
    """The split in a name such as instances_train2017; "all" if the name has none or several."""
    splits = {SPLIT_SYNONYMS[word] for word in re.findall(r"[a-z]+", name.lower()) if word in SPLIT_SYNONYMS}
    return splits.pop() if len(splits) == 1 else ALL


def space_name(source: Path) -> str:
    """A name for the label space of a file or folder, of printable characters only."""
    name = source.resolve().stem or "annotations"
    return "".join(c if c.isprintable() else "_" for c in name)


def count(number: int, noun: str) -> str:
    """ "1 object", "2 objects"."""
    return f"{number:,} {noun}{'s' * (number != 1)}"


def image_name(value: Any) -> str:
    """A relative path below the folder of images. Raises: DatasetError that continues a sentence ("image 7 ...")."""
    if not isinstance(value, str):
        raise DatasetError(f"has a file name that is not text ({short(value)})")
    if not value.isprintable():  # also halves of surrogate pairs, which no file system takes
        raise DatasetError(f"has a file name with characters that cannot be printed ({short(value)})")
    name = value.replace("\\", "/")
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or not path.name or (len(name) > 1 and name[1] == ":"):
        raise DatasetError(f"has the file name {short(value)}, which is outside the folder of images")
    if any(len(part.encode()) > 250 for part in path.parts):
        raise DatasetError(f"has a file name that is too long ({short(value)})")
    return str(path)


def class_name(value: Any) -> str:
    """The name of a class. Raises: DatasetError that continues a sentence ("category 7 ...")."""
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        value = str(value)
    if not isinstance(value, str) or not value.strip() or not value.isprintable():
        raise DatasetError(f"has a name that is not printable text ({short(value)})")
    return value.strip()


def read_json(path: Path) -> Any:
    """The content of a JSON file. Raises: DatasetError."""
    try:
        if path.exists() and not path.is_file():
            raise DatasetError(f"{path}: not a regular file.")
        return json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, UnicodeDecodeError) as error:
        raise DatasetError(f"{path}: cannot be read ({error}).") from error
    except (ValueError, RecursionError) as error:
        raise DatasetError(f"{path}: not JSON ({error}).") from error


def text_lines(path: Path) -> list[str]:
    """The lines of a UTF-8 file, stripped. Raises: DatasetError."""
    # Not `decoded`, which refuses files with NUL characters: here only the line of such a character is damaged.
    try:
        if path.exists() and not path.is_file():
            raise DatasetError(f"{path}: not a regular file.")
        return [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise DatasetError(f"{path}: cannot be read as UTF-8 text ({error}).") from error


class ImageFolder:
    """Finds image files by the names in the annotations.

    The names are looked up in the folder that the user chose, or in the usual folders near the annotations. If that
    fails, the only file of that name near the annotations is used.
    """

    def __init__(self, near: Path, given: Path | None = None, inside: Sequence[str] = ()) -> None:
        """
        Args:
            near: the folder of the annotations.
            given: the folder that the user chose; no other is searched.
            inside: further folders, relative to `near`.

        Raises: DatasetError if the given folder does not exist.
        """
        if given is not None and not given.is_dir():
            raise DatasetError(
                f"{given}: the folder of images does not exist; --images is the folder that file names are relative to."
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
        """The longest tail of a path from another machine (absolute, or with "..") that is a file here, or the value.

        Args:
            taken: names that other images have exactly, which are not used.
        """
        if not isinstance(value, str) or not value.isprintable() or len(value) > _MAX_PATH_LENGTH:
            return value
        parts = value.replace("\\", "/").split("/")
        if parts[0] and ".." not in parts and parts[0][1:2] != ":":
            return value
        first = max((i for i, part in enumerate(parts) if part in ("", "..")), default=0)
        ends = ["/".join(parts[i:]) for i in range(max(1, first + 1), len(parts))]
        return next((end for end in ends if end not in taken and self.find(end) is not None), value)

    def find(self, name: str) -> Path | None:
        """The file with this name; None if there is none or the name is ambiguous."""
        try:
            for folder in self.folders:
                if (folder / name).is_file():
                    # Most other images are in the same folder, so it is searched first.
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
    """Visible files at any depth below a folder, sorted; at most about `MAX_FILES` files are looked at.

    Args:
        suffixes: only files with these extensions, in lower case.
    """
    files = itertools.islice(walk(folder, lambda error: None), MAX_FILES)
    return sorted(path for path in files if suffixes is None or path.suffix.lower() in suffixes)
