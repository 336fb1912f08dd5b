"""What the classes are called, how they are drawn, and which numbers stand for them in a dataset's masks."""

from __future__ import annotations

import colorsys
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from evitseg.errors import ConfigError, DatasetError, unknown

Color = tuple[int, int, int]
_MAX_BYTES = 16 * 2**20
_LARGEST_ID = 65_535  # what a 16-bit mask holds


def mask_dtype(num_classes: int) -> type[np.uint8] | type[np.uint16]:
    """The smallest integer type that holds every class index, and above them one for pixels that have no class."""
    return np.uint8 if num_classes <= 255 else np.uint16


@dataclass(frozen=True)
class LabelClass:
    """One class.

    Attributes:
        name: as people read it.
        raw_ids: the numbers that stand for it in the dataset's masks.
        color: RGB, 0 to 255.
    """

    name: str
    raw_ids: tuple[int, ...]
    color: Color


@dataclass(frozen=True)
class LabelSpace:
    """The classes in the order of the logits' channels.

    Attributes:
        name: such as "camvid".
        classes: a class's place is its class index.
        ignored_ids: raw ids that neither training nor measuring counts.
        assumed: which of "raw_ids" and "ignored_ids" nobody stated, so that masks may show something else: in masks
            of 0 and 255, two bare names are background and foreground.
    """

    name: str
    classes: tuple[LabelClass, ...]
    ignored_ids: tuple[int, ...] = (255,)
    assumed: frozenset[str] = field(default=frozenset(), compare=False)

    def __post_init__(self) -> None:
        # Named for a folder whose name is not UTF-8, it still goes into files that are.
        object.__setattr__(self, "name", self.name.encode("utf-8", "replace").decode())
        if not self.classes:
            raise ConfigError(f"label space {self.name!r} has no classes; it needs at least one.")
        names: list[Any] = [c.name for c in self.classes]
        raw_ids: list[Any] = [*self.ignored_ids, *(raw_id for c in self.classes for raw_id in c.raw_ids)]
        for what, seen in (("class name", names), ("raw id", raw_ids)):
            twice = next((item for item, count in Counter(seen).items() if count > 1), None)
            if twice is not None:
                raise ConfigError(f"label space {self.name!r}: {what} {twice!r} occurs twice; each may stand once.")
        if not all(isinstance(name, str) and name.isprintable() and name for name in names):
            raise ConfigError(f"label space {self.name!r}: every class needs a name of printable characters.")
        if not all(isinstance(raw_id, int) and 0 <= raw_id <= _LARGEST_ID for raw_id in raw_ids):
            raise ConfigError(f"label space {self.name!r}: raw ids are whole numbers from 0 to {_LARGEST_ID}.")
        if any(not 0 <= level <= 255 for c in self.classes for level in c.color):
            raise ConfigError(f"label space {self.name!r}: colours are RGB with levels 0 to 255.")

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(c.name for c in self.classes)

    @property
    def ignore_index(self) -> int:
        """The class index that stands for "not counted": 255, or 65535 where 255 is a class."""
        return int(np.iinfo(self.dtype).max)

    @property
    def dtype(self) -> type[np.uint8] | type[np.uint16]:
        """The type of this label space's masks."""
        return mask_dtype(len(self.classes))

    @property
    def palette(self) -> NDArray[np.uint8]:
        """(256, 3) colours by class index; black where there is no class, white for `ignore_index`."""
        palette = np.zeros((256, 3), np.uint8)
        palette[255] = 255
        palette[: min(256, len(self.classes))] = [c.color for c in self.classes[:256]]
        return palette

    def encode(self, raw_mask: NDArray[np.integer]) -> NDArray[np.integer]:
        """(H, W) class indices, or `ignore_index`, from a dataset's raw ids.

        Raises: ConfigError that names a raw id which is in neither the classes nor `ignored_ids`.
        """
        known = sorted(i for c in self.classes for i in c.raw_ids)
        table = np.full(max([*known, *self.ignored_ids, 0]) + 2, -1)
        table[list(self.ignored_ids)] = self.ignore_index
        for index, label in enumerate(self.classes):
            table[list(label.raw_ids)] = index
        # Whatever lies outside the table shares its last entry, which no id has.
        outside = (raw_mask < 0) | (raw_mask >= len(table))
        encoded: NDArray[np.integer] = table[np.where(outside, len(table) - 1, raw_mask)]
        if encoded.min(initial=0) < 0:
            stranger = int(raw_mask[encoded < 0][0])
            ids = f"ids {known[0]} to {known[-1]}" if known else "without ids"
            raise ConfigError(
                f"id {stranger} is not in label space {self.name!r} ({ids}, ignored "
                f"{', '.join(map(str, self.ignored_ids))}); add it to a class's raw_ids or to ignored_ids."
            )
        return encoded.astype(self.dtype)


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
    """A colour for a class that has none; neighbouring indices differ strongly."""
    # Steps of the golden ratio spread hues evenly for any number of classes; three levels tell near hues apart.
    hue, level = index * 0.618034 % 1, (0.95, 0.7, 0.5)[index % 3]
    red, green, blue = (round(255 * part) for part in colorsys.hsv_to_rgb(hue, 0.75, level))
    return red, green, blue


def aligned(data: LabelSpace, model: LabelSpace) -> LabelSpace:
    """The data's raw ids and colours, in the order of the model's classes.

    Raises: ConfigError where the two do not have the same classes.
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
            + "; say with --labels which raw ids stand for the model's classes."
        )
    return LabelSpace(data.name, tuple(own[name] for name in model.names), data.ignored_ids)


def named(name: str, names: Sequence[str]) -> LabelSpace:
    """Classes of which nothing but their names is known: masks number them from 0, unless they show something else."""
    classes = tuple(LabelClass(n, (i,), distinct_color(i)) for i, n in enumerate(names))
    ignored = (int(np.iinfo(mask_dtype(len(classes))).max),)
    return LabelSpace(name, classes, ignored, frozenset({"raw_ids", "ignored_ids"}))


def by_index(labels: LabelSpace) -> LabelSpace:
    """The label space of masks of class indices, as they are predicted."""
    classes = tuple(replace(c, raw_ids=(index,)) for index, c in enumerate(labels.classes))
    return LabelSpace(labels.name, classes, ignored_ids=())


def numbered(num_classes: int) -> LabelSpace:
    """Classes nobody has named."""
    classes = tuple(LabelClass(f"class {i}", (i,), distinct_color(i)) for i in range(num_classes))
    return LabelSpace("numbered", classes, ignored_ids=(int(np.iinfo(mask_dtype(num_classes)).max),))


def named_label_spaces() -> list[str]:
    """Names of the label spaces that ship with the package."""
    folder = resources.files("evitseg") / "labelsets"
    return sorted(entry.name.removesuffix(".json") for entry in folder.iterdir() if entry.name.endswith(".json"))


def load_labels(name_or_path: str | Path) -> LabelSpace:
    """A label space that ships with the package, by name, or one from a JSON file.

    The file: {"name": "fields", "ignored_ids": [255], "classes": [{"name": "wheat", "raw_ids": [1], "color":
    [200, 180, 60]}, ...]}; `ignored_ids`, `raw_ids` (else the class's place) and `color` may be left out.

    Raises: ConfigError for a name that is unknown and a file that is not of that form.
    """
    names = named_label_spaces()
    if str(name_or_path) in names:
        text = (resources.files("evitseg") / "labelsets" / f"{name_or_path}.json").read_text(encoding="utf-8")
    elif Path(name_or_path).suffix != ".json":
        raise unknown("label space", name_or_path, [*names, "the path of a .json file"])
    else:
        from evitseg.system.text import decoded

        try:
            text = decoded(Path(name_or_path), most=_MAX_BYTES)
        except DatasetError as error:
            raise ConfigError(str(error)) from error
    try:
        return _parse(json.loads(text, object_pairs_hook=_without_twins))
    except ConfigError as error:
        raise ConfigError(f"{name_or_path}: {error}") from error
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError, RecursionError) as error:
        raise ConfigError(
            f"{name_or_path}: not a label space ({type(error).__name__}: {error}); it looks like "
            '{"name": "fields", "classes": [{"name": "wheat", "raw_ids": [1], "color": [200, 180, 60]}]}.'
        ) from error


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


def _without_twins(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    twice = next((key for key, count in Counter(key for key, _ in pairs).items() if count > 1), None)
    if twice is not None:
        raise ValueError(f"{twice!r} occurs twice")
    return dict(pairs)


def _integers(values: Any) -> tuple[int, ...]:
    if not isinstance(values, list) or any(type(value) is not int for value in values):
        raise TypeError(f"{values!r} is not a list of whole numbers")
    return tuple(values)
