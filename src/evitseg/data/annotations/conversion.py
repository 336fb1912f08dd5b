"""Write masks, lists of pairs and the classes from annotations of any format."""

from __future__ import annotations

import contextlib
import json
import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from evitseg.data.annotations.objects import AnnotatedImage, Annotations, count, space_name
from evitseg.data.annotations.regions import Runs, ShapeError, paint
from evitseg.data.dataset import ALL, SPLITS
from evitseg.data.lists import Pair, write_pairs
from evitseg.errors import DatasetError, EvitsegError
from evitseg.image import MAX_PIXELS
from evitseg.labels import BACKGROUND, BACKGROUNDS, IGNORED, LabelClass, LabelSpace, distinct_color, mask_dtype
from evitseg.raster.files import image_size
from evitseg.raster.orientation import TRANSPOSES, orientation_of_file
from evitseg.raster.png import save_mask
from evitseg.system.files import replacing

MARK = "# written by evitseg convert"
"""First line of a list of pairs; a folder with a list is overwritten only if the list starts with it."""
_LISTS = ("pairs.txt", "train.txt", "val.txt", "test.txt")
_MOST_CLASSES = 65_535
_DARK = (40, 40, 40)
_SUFFIXES = {b"\xff\xd8": ".jpg", b"\x89P": ".png", b"RI": ".webp", b"BM": ".bmp", b"II": ".tif", b"MM": ".tif"}


@dataclass(frozen=True)
class Conversion:
    """The result of a conversion.

    Attributes:
        tool: the tool that wrote the annotations, in words.
        lists: the lists of pairs; `find_dataset` reads them, or their folder.
        splits: pairs per split.
        labels: the classes of the masks.
        objects: number of objects drawn.
        problems: sentences about annotations that are wrong and were skipped.
        notes: sentences about other things worth knowing.
    """

    tool: str
    lists: tuple[Path, ...]
    splits: Mapping[str, tuple[Pair, ...]]
    labels: LabelSpace
    objects: int
    problems: tuple[str, ...]
    notes: tuple[str, ...]

    @property
    def pairs(self) -> int:
        """Number of images with a mask."""
        return sum(map(len, self.splits.values()))


def write_masks(
    found: Annotations,
    out: str | os.PathLike[str],
    *,
    labels: LabelSpace | None = None,
    ignore_background: bool = False,
    progress: Callable[[int], None] = lambda done: None,
) -> Conversion:
    """Write a mask for every image, lists of pairs, and the classes.

    Pixels outside all objects get the first class, "background". In an image with a damaged object they are ignored
    instead, because some of them belong to that object.

    Args:
        found: the annotations, from `read_annotations`.
        out: folder for `masks/`, `labels.json` and `pairs.txt`, or instead of the latter one list per split:
            `train.txt`, `val.txt`, `test.txt`.
        labels: the classes and their order; None for those of the annotations.
        ignore_background: ignore pixels outside all objects in every image.
        progress: called with 1 after every image.

    Raises: DatasetError if no image is left or `out` contains something else; FileError if it cannot be written.
    """
    out = Path(out)
    space, value_of = _label_space(found, labels, ignore_background)
    fill = next((value_of[name] for name in BACKGROUNDS if name in value_of), space.ignore_index)
    if ignore_background:
        fill = space.ignore_index
    elif fill == space.ignore_index:
        found.notes.append(f"the classes of {space.name} have no background: pixels outside all objects are ignored.")
    _begin(out)
    try:
        return _write(found, out, _Work(space, value_of, fill, found.larger_first), progress)
    except EvitsegError:
        _remove_lists(out, ())
        for place in (*(folder for folder, *_ in os.walk(out / "masks", topdown=False)), str(out)):
            with contextlib.suppress(OSError):  # a folder that is not empty stays
                Path(place).rmdir()
        raise


def _listed_once(images: Sequence[AnnotatedImage], problems: list[str]) -> list[AnnotatedImage]:
    """The images that their split has once; the masks of the others would contradict each other."""
    places = [(image.split, image.file.resolve()) if image.file is not None else None for image in images]
    often = Counter(places)
    problems += [
        f"{image.where} ({image.name}): the image is listed {often[place]} times; left out."
        for image, place in zip(images, places, strict=True)
        if place is not None and often[place] > 1
    ]
    return [image for image, place in zip(images, places, strict=True) if place is None or often[place] == 1]


def _write(found: Annotations, out: Path, work: _Work, progress: Callable[[int], None]) -> Conversion:
    space = work.space
    lines: dict[str, list[Pair]] = {}
    images = [image for image in found.images if image.file is not None or image.embedded is not None]
    images = _listed_once(images, work.problems)
    missing = [image for image in found.images if image.file is None and image.embedded is None]
    work.problems += [
        f"{image.where} ({image.name}): the image was not found near the annotations; give its folder with evitseg "
        "convert --images DIR."
        for image in missing
    ]
    for image, mask_name in zip(images, mask_names([image.name for image in images]), strict=True):
        try:
            file = image.file or _unpacked(image, out / "images" / mask_name)
            mask = work.mask(image, file)
        except EvitsegError as error:
            work.problems.append(str(error))
            mask = None
        if mask is not None:
            save_mask(mask, out / "masks" / mask_name, space)
            lines.setdefault(image.split, []).append(Pair(file, out / "masks" / mask_name))
        progress(1)
    problems = [*found.problems, *work.problems]
    if not lines:
        _explain_nothing(found, missing, problems)
    if not work.objects:
        for pair in (pair for pairs in lines.values() for pair in pairs):
            pair.mask.unlink()
        raise DatasetError(
            f"{found.source}: {found.tool}, but it has no object with an area to draw"
            + (f": {problems[0]}" if problems else "; " + " ".join(found.notes) if found.notes else ".")
        )
    _write_labels(space, out)
    lists = tuple(_write_list(out, split, pairs) for split, pairs in sorted(lines.items()))
    _remove_lists(out, lists)
    return Conversion(
        found.tool,
        lists,
        {split: tuple(pairs) for split, pairs in sorted(lines.items(), key=lambda item: SPLITS.index(item[0]))},
        space,
        work.objects,
        tuple(problems),
        (*found.notes, *work.notes()),
    )


def _unpacked(image: AnnotatedImage, place: Path) -> Path:
    """Write an image that is embedded in the annotations to a file."""
    assert image.embedded is not None
    data = image.embedded()
    file = place.with_suffix(_SUFFIXES.get(data[:2], ".jpg"))
    with replacing(file) as copy:
        copy.write(data)
    return file


def _explain_nothing(found: Annotations, missing: Sequence[AnnotatedImage], problems: Sequence[str]) -> None:
    if missing and len(missing) == len(found.images):
        raise DatasetError(
            f"{found.source}: {found.tool}, but none of its {len(missing)} images ({missing[0].name}, ...) was "
            "found near it; give the folder that their names are relative to with evitseg convert --images DIR."
        )
    raise DatasetError(
        f"{found.source}: {found.tool}, but no image is left to write a mask for"
        + (f" (first of {count(len(problems), 'problem')}: {problems[0]})" if problems else ".")
    )


class _Work:
    """Draws masks and collects problems and notes."""

    def __init__(self, space: LabelSpace, value_of: Mapping[str, int], fill: int, larger_first: bool) -> None:
        self.space, self._value_of, self._fill, self._larger_first = space, value_of, fill, larger_first
        self.problems: list[str] = []
        self.objects = 0
        self._unknown: Counter[str] = Counter()
        self._empty: list[str] = []
        self._rotated: list[str] = []
        self._without_objects: list[str] = []
        self._without_valid: list[str] = []
        self._partial = 0

    def mask(self, image: AnnotatedImage, file: Path) -> NDArray[np.integer] | None:
        """(H, W) class indices, or None if every pixel is ignored. Raises: EvitsegError."""
        upright = image_size(file)
        size = image.size or upright
        if not 0 < size[0] * size[1] <= MAX_PIXELS or min(size) <= 0:
            raise DatasetError(f"{image.where} ({image.name}) has {size[1]}×{size[0]} pixels, which is impossible.")
        turn = None
        if size != upright:
            orientation = orientation_of_file(file)
            # EXIF orientations 5 to 8 swap rows and columns.
            turn = TRANSPOSES[orientation] if orientation in range(5, 9) and size == upright[::-1] else None
            if turn is None:
                raise DatasetError(
                    f"{image.where} ({image.name}): its annotations are for {size[1]}×{size[0]} pixels, but the image "
                    f"has {upright[1]}×{upright[0]}; give the folder of the annotated images with --images."
                )
            self._rotated.append(image.name)
        drawn, damaged = self._drawn(image, size)
        fill = self.space.ignore_index if damaged else self._fill
        if fill == self.space.ignore_index and all(value == fill or not runs.area for runs, value in drawn):
            (self._without_valid if damaged else self._without_objects).append(image.name)
            return None
        self._partial += damaged and self._fill != self.space.ignore_index
        canvas = np.full(size[0] * size[1], fill, self.space.dtype)
        for runs, value in drawn:
            paint(canvas, runs, value)
        mask = np.ascontiguousarray(canvas.reshape(size[::-1]).T)
        return mask if turn is None else np.asarray(Image.fromarray(mask).transpose(turn))

    def _drawn(self, image: AnnotatedImage, size: tuple[int, int]) -> tuple[list[tuple[Runs, int]], bool]:
        """Regions and their values in drawing order, and whether the shape of an object is damaged."""
        drawn, damaged = [], False
        for item in image.items():
            try:
                runs = item.shape.runs(size)
            except ShapeError as error:
                self.problems.append(f"{item.where} ({image.name}) {error}.")
                damaged = True
                continue
            value = self.space.ignore_index
            if item.label is not None:
                if item.label in self._value_of:
                    value = self._value_of[item.label]
                    self.objects += bool(runs.area)
                else:
                    self._unknown[item.label] += 1
            if not runs.area:
                self._empty.append(item.where)
            drawn.append((runs, value))
        if self._larger_first:
            drawn.sort(key=lambda pair: -pair[0].area)
        return drawn, damaged

    def notes(self) -> list[str]:
        """Sentences about objects and images that are not drawn as annotated."""
        notes = []
        for name, times in self._unknown.most_common():
            notes.append(f"{count(times, 'object')} of class {name!r}, which is not in --labels: ignored.")
        if self._partial:
            notes.append(
                f"{count(self._partial, 'image')} with damaged objects: pixels outside the other objects are ignored, "
                "because some of them belong to the damaged ones."
            )
        if self._empty:
            notes.append(f"{count(len(self._empty), 'object')} too small to cover a pixel, the first {self._empty[0]}.")
        if self._without_valid:
            notes.append(
                f"{count(len(self._without_valid), 'image')} skipped, the first {self._without_valid[0]}: no object is "
                "intact and of a class."
            )
        if self._without_objects:
            notes.append(
                f"{count(len(self._without_objects), 'image')} without an object skipped, the first "
                f"{self._without_objects[0]}."
            )
        if self._rotated:
            notes.append(
                f"{count(len(self._rotated), 'image')} annotated without its EXIF rotation, the first "
                f"{self._rotated[0]}; the masks are rotated like the images."
            )
        return notes


def _label_space(
    found: Annotations, given: LabelSpace | None, ignore_background: bool
) -> tuple[LabelSpace, dict[str, int]]:
    """The classes of the masks, and the mask value of every class name, including names to ignore."""
    if given is not None:
        value_of = {name: i for i, name in enumerate(given.names)}
        background = next((name for name in BACKGROUNDS if name in value_of), None)
        if background is not None:
            value_of |= dict.fromkeys(BACKGROUNDS, value_of[background])
        value_of |= dict.fromkeys(IGNORED - set(value_of), given.ignore_index)
        own = tuple(LabelClass(c.name, (i,), c.color) for i, c in enumerate(given.classes))
        return LabelSpace(given.name, own, (given.ignore_index,)), value_of
    explicit = any(name in BACKGROUNDS for name in found.names)
    names = [BACKGROUND] if explicit or not ignore_background else []
    seen = {*BACKGROUNDS, *IGNORED}
    for name in found.names:
        if name not in seen:
            names.append(name)
            seen.add(name)
    if len(names) > _MOST_CLASSES:
        raise DatasetError(f"{found.source}: {len(names):,} classes; a mask can hold at most {_MOST_CLASSES:,}.")
    if not names:
        raise DatasetError(f"{found.source}: {found.tool}, but it contains no classes.")
    classes = tuple(
        LabelClass(name, (i,), found.colors.get(name) or (_DARK if name == BACKGROUND else distinct_color(i)))
        for i, name in enumerate(names)
    )
    ignored = int(np.iinfo(mask_dtype(len(classes))).max)
    value_of = {name: i for i, name in enumerate(names)}
    if BACKGROUND in value_of:
        value_of |= dict.fromkeys(BACKGROUNDS, value_of[BACKGROUND])
    value_of |= dict.fromkeys(IGNORED, ignored)
    return LabelSpace(space_name(found.source), classes, (ignored,)), value_of


def mask_names(names: Sequence[str]) -> list[str]:
    """A distinct mask path for every image, also if case is ignored: a.png, or a.jpg.png if a.png is taken."""
    stems = [_stem(name) for name in names]
    occurrences = Counter(stem.casefold() for stem in stems)
    taken: set[str] = set()
    numbers: dict[str, int] = {}  # the last suffix used for each name
    result = []
    for name, stem in zip(names, stems, strict=True):
        base = stem if occurrences[stem.casefold()] == 1 else name
        candidate, number = base, numbers.get(base, 1)
        while f"{candidate}.png".casefold() in taken:
            number += 1
            candidate = f"{base}_{number}"
        numbers[base] = number
        taken.add(f"{candidate}.png".casefold())
        result.append(f"{candidate}.png")
    return result


def _stem(name: str) -> str:
    folder, _, file = name.rpartition("/")
    stem = file.rpartition(".")[0] or file
    return f"{folder}/{stem}" if folder else stem


def _begin(out: Path) -> None:
    """Mark the folder as ours, so that another conversion may overwrite it after an interrupt.

    Raises: DatasetError if it contains masks or lists that evitseg did not write.
    """
    if out.exists() and not out.is_dir():
        raise DatasetError(f"{out}: is a file; --out is the folder for masks and lists.")
    lists = [out / name for name in _LISTS if (out / name).exists()]
    if any(_is_ours(path) for path in lists):
        return
    there = next((p for p in (*lists, out / "labels.json", out / "masks") if p.exists()), None)
    if there is not None:
        raise DatasetError(f"{there}: exists, and evitseg convert did not write it; choose another --out.")
    write_pairs(out / _LISTS[0], (), f"{MARK}, which was interrupted")


def _remove_lists(out: Path, keep: Sequence[Path]) -> None:
    """Delete the lists of an earlier or interrupted conversion, except `keep`."""
    for path in (out / name for name in _LISTS):
        if path not in keep and _is_ours(path):
            path.unlink()


def _is_ours(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            return file.read(len(MARK)) == MARK.encode()
    except OSError:
        return False


def _write_labels(labels: LabelSpace, out: Path) -> None:
    space = {
        "name": labels.name,
        "ignored_ids": list(labels.ignored_ids),
        "classes": [asdict(c) for c in labels.classes],
    }
    with replacing(out / "labels.json") as file:
        file.write((json.dumps(space, indent=1, ensure_ascii=False) + "\n").encode())


def _write_list(out: Path, split: str, pairs: Sequence[Pair]) -> Path:
    path = out / ("pairs.txt" if split == ALL else f"{split}.txt")
    write_pairs(path, pairs, f"{MARK}: image, mask")
    return path
