"""Label spaces: the names and colours of classes, and their ids in the masks of a dataset."""

from __future__ import annotations

import colorsys
import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from evitseg.errors import ConfigError, DatasetError, unknown

Color = tuple[int, int, int]
"""Red, green and blue, 0 to 255."""
BACKGROUND = "background"
BACKGROUNDS = frozenset({BACKGROUND, "_background_", "__background__"})
"""Names that annotation tools give to pixels outside all objects."""
IGNORED = frozenset({"__ignore__", "ignore", "_ignore_"})
"""Names that annotation tools give to pixels to ignore."""
_MAX_BYTES = 16 * 2**20
_NUMBERED = re.compile(r"(\d{1,5})(?:\s*[:,;=]\s*|\s+)(\S.*)")
_LARGEST_ID = 65_535  # the largest value of a 16-bit mask


def mask_dtype(num_classes: int) -> type[np.uint8] | type[np.uint16]:
    """The smallest integer type for all class indices and `ignore_index`."""
    return np.uint8 if num_classes <= 255 else np.uint16


@dataclass(frozen=True)
class LabelClass:
    """A class.

    Attributes:
        name: its name.
        raw_ids: the numbers of the class in the masks of the dataset.
        color: its colour in palettes and overlays.
    """

    name: str
    raw_ids: tuple[int, ...]
    color: Color


@dataclass(frozen=True)
class LabelSpace:
    """The classes, in the order of the channels of the logits.

    Attributes:
        name: name of the label space, such as "camvid".
        classes: the classes by class index.
        ignored_ids: raw ids that training and evaluation ignore.
        assumed: which of "raw_ids" and "ignored_ids" are defaults that the masks may override. For example, two names
            without ids are background and foreground if the masks contain only 0 and 255.
    """

    name: str
    classes: tuple[LabelClass, ...]
    ignored_ids: tuple[int, ...] = (255,)
    assumed: frozenset[str] = field(default=frozenset(), compare=False)

    def __post_init__(self) -> None:
        # The name may be that of a folder, which need not be UTF-8, but it is written to UTF-8 files.
        object.__setattr__(self, "name", self.name.encode("utf-8", "replace").decode())
        if not self.classes:
            raise ConfigError(f"label space {self.name!r} has no classes; it needs at least one.")
        names: list[Any] = [c.name for c in self.classes]
        raw_ids: list[Any] = [*self.ignored_ids, *(raw_id for c in self.classes for raw_id in c.raw_ids)]
        for what, seen in (("class name", names), ("raw id", raw_ids)):
            twice = next((item for item, count in Counter(seen).items() if count > 1), None)
            if twice is not None:
                raise ConfigError(f"label space {self.name!r}: {what} {twice!r} occurs twice; use each once.")
        if not all(isinstance(name, str) and name.isprintable() and name for name in names):
            raise ConfigError(f"label space {self.name!r}: every class needs a name of printable characters.")
        if not all(isinstance(raw_id, int) and 0 <= raw_id <= _LARGEST_ID for raw_id in raw_ids):
            raise ConfigError(f"label space {self.name!r}: raw ids must be whole numbers from 0 to {_LARGEST_ID}.")
        if any(not 0 <= level <= 255 for c in self.classes for level in c.color):
            raise ConfigError(f"label space {self.name!r}: colours must be three levels from 0 to 255.")

    @property
    def names(self) -> tuple[str, ...]:
        """The class names by class index."""
        return tuple(c.name for c in self.classes)

    @property
    def ignore_index(self) -> int:
        """The class index of ignored pixels: 255, or 65535 if 255 is a class."""
        return int(np.iinfo(self.dtype).max)

    @property
    def dtype(self) -> type[np.uint8] | type[np.uint16]:
        """The integer type of masks."""
        return mask_dtype(len(self.classes))

    @property
    def palette(self) -> NDArray[np.uint8]:
        """(256, 3) colours by class index. Indices without a class are black, except 255, which is white."""
        palette = np.zeros((256, 3), np.uint8)
        palette[255] = 255
        palette[: min(256, len(self.classes))] = [c.color for c in self.classes[:256]]
        return palette


def recolored(labels: LabelSpace, palette: Mapping[str, Color] | Sequence[Color]) -> LabelSpace:
    """The same classes in other colours.

    Args:
        palette: RGB colours, 0 to 255: by class name, for some or all classes; or one for each class, in their order.

    Raises: ConfigError for an unknown class, another number of colours, and a colour that is no RGB triple.
    """
    if isinstance(palette, Mapping):
        for name in palette:
            if name not in labels.names:
                raise unknown("class", name, labels.names)
        colors = [palette.get(c.name, c.color) for c in labels.classes]
    else:
        colors = list(palette)
        if len(colors) != len(labels.classes):
            raise ConfigError(
                f"a palette of {len(colors)} colours for the {len(labels.classes)} classes of {labels.name!r}; give "
                "one for each, or only some by name: {name: (red, green, blue)}."
            )
    checked: list[Color] = []
    for color in colors:
        if isinstance(color, str) or len(color) != 3 or not all(float(level).is_integer() for level in color):
            raise ConfigError(f"palette: {color!r} is no colour; give (red, green, blue), each 0 to 255.")
        red, green, blue = (int(level) for level in color)
        checked.append((red, green, blue))
    classes = tuple(replace(c, color=color) for c, color in zip(labels.classes, checked, strict=True))
    return replace(labels, classes=classes)


def distinct_color(index: int) -> Color:
    """A colour for a class without one; neighbouring indices get very different colours."""
    # Steps of the golden ratio spread hues evenly for any number of classes. Three levels separate similar hues.
    hue, level = index * 0.618034 % 1, (0.95, 0.7, 0.5)[index % 3]
    red, green, blue = (round(255 * part) for part in colorsys.hsv_to_rgb(hue, 0.75, level))
    return red, green, blue


def aligned(data: LabelSpace, model: LabelSpace) -> LabelSpace:
    """The label space of the data with its classes in the model's order.

    Raises: ConfigError if the two have different classes.
    """
    own = {c.name: c for c in data.classes}
    if set(own) != set(model.names):
        missing, extra = sorted(set(model.names) - set(own)), sorted(set(own) - set(model.names))
        raise ConfigError(
            f"the data's classes ({data.name}) are not the model's ({model.name}): "
            + "; ".join(
                f"{what} {', '.join(names[:5])}{', ...' * (len(names) > 5)}"
                for what, names in (("the data lacks", missing), ("the model lacks", extra))
                if names
            )
            + "; use a model with the data's classes, or map raw ids to the model's classes with --labels."
        )
    return LabelSpace(data.name, tuple(own[name] for name in model.names), data.ignored_ids)


def named(name: str, names: Sequence[str]) -> LabelSpace:
    """A label space from names only. Ids count from 0, but the masks may override them (`LabelSpace.assumed`)."""
    classes = tuple(LabelClass(n, (i,), distinct_color(i)) for i, n in enumerate(names))
    ignored = (int(np.iinfo(mask_dtype(len(classes))).max),)
    return LabelSpace(name, classes, ignored, frozenset({"raw_ids", "ignored_ids"}))


def by_index(labels: LabelSpace) -> LabelSpace:
    """The label space of predicted masks, whose values are class indices."""
    classes = tuple(replace(c, raw_ids=(index,)) for index, c in enumerate(labels.classes))
    return LabelSpace(labels.name, classes, ignored_ids=())


def numbered(num_classes: int) -> LabelSpace:
    """A label space of classes without names."""
    classes = tuple(LabelClass(f"class {i}", (i,), distinct_color(i)) for i in range(num_classes))
    return LabelSpace("numbered", classes, ignored_ids=(int(np.iinfo(mask_dtype(num_classes)).max),))


def named_label_spaces() -> list[str]:
    """Names of the label spaces in the package."""
    folder = Path(__file__).parent / "labelsets"
    return sorted(entry.name.removesuffix(".json") for entry in folder.iterdir() if entry.name.endswith(".json"))


def load_labels(name_or_path: str | Path) -> LabelSpace:
    """A label space of the package by name, or one from a JSON file or a text file with one name per line (.txt).

    The JSON file has the form {"name": "fields", "ignored_ids": [255], "classes": [{"name": "wheat", "raw_ids": [1],
    "color": [200, 180, 60]}, ...]}. Optional are `ignored_ids`, `raw_ids` (by default the index of the class) and
    `color`.

    Raises: ConfigError for an unknown name or a file of another form.
    """
    names = named_label_spaces()
    if str(name_or_path) in names:
        text = (Path(__file__).parent / "labelsets" / f"{name_or_path}.json").read_text(encoding="utf-8")
    elif Path(name_or_path).suffix == ".txt":
        try:
            return read_class_list(Path(name_or_path), Path(name_or_path).stem)
        except DatasetError as error:
            raise ConfigError(str(error)) from error
    elif Path(name_or_path).suffix != ".json":
        raise unknown("label space", name_or_path, [*names, "the path of a .json or .txt file"])
    else:
        from evitseg.system.text import decoded

        try:
            text = decoded(Path(name_or_path), most=_MAX_BYTES)
        except DatasetError as error:
            raise ConfigError(str(error)) from error
    try:
        return _parse(json.loads(text, object_pairs_hook=_unique_keys))
    except ConfigError as error:
        raise ConfigError(f"{name_or_path}: {error}") from error
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError, RecursionError) as error:
        raise ConfigError(
            f"{name_or_path}: not a label space ({type(error).__name__}: {error}); it looks like "
            '{"name": "fields", "classes": [{"name": "wheat", "raw_ids": [1], "color": [200, 180, 60]}]}.'
        ) from error


def read_class_list(path: Path, name: str) -> LabelSpace:
    """The classes in a file with one name per line. Empty lines and comments, which start with #, are skipped.

    If every line starts with a number, and the numbers are 0 or 1 and those that follow, in any order, they are the raw
    ids of the classes. Annotation tools' names of the background, such as _background_, become "background"; their
    names of pixels to ignore, such as __ignore__, are no classes.

    Raises: DatasetError.
    """
    from evitseg.system.text import decoded

    lines = [line.strip() for line in decoded(path, most=_MAX_BYTES).splitlines()]
    names = [line for line in lines if line and not line.startswith("#")]
    found = [row for line in names if (row := _NUMBERED.fullmatch(line))]
    rows = sorted((int(row[1]), row[2]) for row in found)
    numbers = [number for number, _ in rows]
    try:
        if len(rows) < max(2, len(names)) or numbers not in (list(range(len(rows))), list(range(1, len(rows) + 1))):
            return _by_convention(named(name, names))
        if numbers[0] == 0:
            return _by_convention(named(name, [text for _, text in rows]))
        classes = tuple(LabelClass(text, (i + 1,), distinct_color(i)) for i, (_, text) in enumerate(rows))
        ignored = (255,) if len(rows) < 255 else (65_535,)
        return _by_convention(LabelSpace(name, classes, ignored, frozenset({"ignored_ids"})))
    except ConfigError as error:
        raise DatasetError(f"{path}: {error}") from error


def _by_convention(labels: LabelSpace) -> LabelSpace:
    """A class list as annotation tools mean it: some names are background, others pixels to ignore and no class."""
    kept = [replace(c, name=BACKGROUND if c.name in BACKGROUNDS else c.name) for c in labels.classes]
    kept = [c for c in kept if c.name not in IGNORED]
    if "raw_ids" in labels.assumed:
        return named(labels.name, [c.name for c in kept])
    ids = (raw_id for c in labels.classes if c.name in IGNORED for raw_id in c.raw_ids)
    return replace(labels, classes=tuple(kept), ignored_ids=(*labels.ignored_ids, *ids))


def _parse(content: Any) -> LabelSpace:
    extra = set(content) - {"name", "ignored_ids", "classes"}
    for entry in content["classes"]:
        extra |= set(entry) - {"name", "raw_ids", "color"}
    if extra:
        raise ValueError(f"unknown keys {sorted(extra)}")
    classes = []
    for i, entry in enumerate(content["classes"]):
        red, green, blue = _integers(entry.get("color") or list(distinct_color(i)))
        classes.append(LabelClass(entry["name"], _integers(entry.get("raw_ids", [i])), (red, green, blue)))
    ids = {raw_id for c in classes for raw_id in c.raw_ids}
    ignored = _integers(content["ignored_ids"]) if "ignored_ids" in content else tuple({255} - ids)
    stated = {"raw_ids"} if any("raw_ids" in entry for entry in content["classes"]) else set()
    assumed = frozenset({"raw_ids", "ignored_ids"} - stated - set(content))
    return LabelSpace(str(content["name"]), tuple(classes), ignored, assumed)


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    twice = next((key for key, count in Counter(key for key, _ in pairs).items() if count > 1), None)
    if twice is not None:
        raise ValueError(f"{twice!r} occurs twice")
    return dict(pairs)


def _integers(values: Any) -> tuple[int, ...]:
    if not isinstance(values, list) or any(type(value) is not int for value in values):
        raise TypeError(f"{values!r} is not a list of whole numbers")
    return tuple(values)
