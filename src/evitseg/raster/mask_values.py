"""The values of a mask file, and the class that each of them stands for."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from evitseg.errors import ConfigError
from evitseg.labels import LabelSpace

VOID_COLORS = frozenset({0, 0xFFFFFF, 0xE0E0C0})
"""Black, white and the border colour of PASCAL VOC: ignored, unless a class has the colour."""


@dataclass(frozen=True)
class DistinctValues:
    """The distinct values of a mask.

    Attributes:
        kind: "levels" of grey, "palette" indices, or "colors".
        values: ascending: grey levels, palette indices, or colours as 0xRRGGBB.
        counts: pixels of each value.
        colors: the colour of each value as a viewer shows it, as 0xRRGGBB. Levels of fewer than 8 bits are stretched:
            level 3 of 2 bits is white.
        is_gray: whether the mask can only hold grey; for a palette, whether all of its entries are grey.
        depth: bits per level.
    """

    kind: Literal["levels", "palette", "colors"]
    values: tuple[int, ...]
    counts: tuple[int, ...]
    colors: tuple[int, ...]
    is_gray: bool
    depth: int = 8

    @property
    def levels(self) -> tuple[int, ...]:
        """The grey levels as stored, or of the grey colours."""
        return self.values if self.kind == "levels" else tuple(color & 255 for color in self.colors)

    @property
    def shown_levels(self) -> tuple[int, ...]:
        """The grey levels as a viewer shows them."""
        return tuple(color & 255 for color in self.colors) if self.depth < 8 else self.levels


def class_indices(distinct: DistinctValues, labels: LabelSpace) -> NDArray[np.int64]:
    """The class index, or `ignore_index`, of every value of a mask.

    If every colour belongs to a class, colours decide, whatever the palette indices are. Grey values, also those of a
    palette, are read by level, and any other palette by index.

    Raises: ConfigError, with the value, for a value without a class.
    """
    by_id = dict.fromkeys(labels.ignored_ids, labels.ignore_index)
    by_id |= {raw: index for index, label in enumerate(labels.classes) for raw in label.raw_ids}
    by_color = colors_of(labels)
    for reading in _readings(distinct, labels, by_id, by_color):
        if None not in reading:
            return np.array(reading, np.int64)
    raise ConfigError(_unknown_value(distinct, labels, by_id, by_color))


def _readings(
    distinct: DistinctValues, labels: LabelSpace, by_id: dict[int, int], by_color: dict[int, int]
) -> Iterator[list[int | None]]:
    """The possible readings of the values, most certain first, with None for a value that has no meaning."""
    # If two palette indices share a colour, colours do not identify classes.
    is_unambiguous = len(set(distinct.colors)) == len(distinct.colors)
    if distinct.kind != "levels" and is_unambiguous:
        yield [by_color.get(color) for color in distinct.colors]
    if distinct.is_gray and is_unambiguous:
        stored, shown = distinct.levels, distinct.shown_levels
        # With two classes, white in 1 bit is the second class. With more it is 255, if that is an id.
        if distinct.depth == 1 and len(labels.classes) != 2 and 255 in by_id:
            stored, shown = shown, stored
        yield [by_id.get(level) for level in stored]
        yield [by_id.get(level) for level in shown]
    if distinct.kind != "levels" and is_unambiguous:
        void = dict.fromkeys(VOID_COLORS, labels.ignore_index)
        if distinct.kind == "colors" or any(color in by_color for color in distinct.colors):
            yield [(void | by_color).get(color) for color in distinct.colors]
    if distinct.kind == "palette" and not (distinct.is_gray and is_unambiguous):
        yield _by_index(distinct, labels, by_id, by_color if is_unambiguous else {})
    if distinct.kind == "levels":
        yield [by_color.get(color) for color in distinct.colors]


def colors_of(labels: LabelSpace) -> dict[int, int]:
    """Class indices by colour, as 0xRRGGBB, for colours that only one class has."""
    codes = [code_of(c.color) for c in labels.classes]
    often = Counter(codes)
    return {code: index for index, code in enumerate(codes) if often[code] == 1}


def code_of(color: Sequence[int]) -> int:
    """0xRRGGBB of (red, green, blue)."""
    return color[0] << 16 | color[1] << 8 | color[2]


def color_of(code: int) -> tuple[int, int, int]:
    """(red, green, blue) of 0xRRGGBB."""
    return code >> 16, code >> 8 & 255, code & 255


def _by_index(
    distinct: DistinctValues, labels: LabelSpace, by_id: dict[int, int], by_color: dict[int, int]
) -> list[int | None]:
    indices = [by_id.get(value) for value in distinct.values]
    if None in indices:
        return indices
    for value, color, index in zip(distinct.values, distinct.colors, indices, strict=True):
        shown = by_color.get(color)
        if shown is not None and shown != index:
            other = "an ignored id" if index == labels.ignore_index else f"the id of {labels.names[index or 0]!r}"
            raise ConfigError(
                f"palette index {value} has the colour of {labels.names[shown]!r} but is {other} in label space "
                f"{labels.name!r}; give every class its colour in the palette."
            )
    return indices


def _unknown_value(
    distinct: DistinctValues, labels: LabelSpace, by_id: dict[int, int], by_color: dict[int, int]
) -> str:
    numbers = distinct.levels if distinct.is_gray else distinct.values
    if distinct.kind == "levels" or distinct.is_gray:
        known = sorted(raw for c in labels.classes for raw in c.raw_ids)
        ids = f"ids {known[0]} to {known[-1]}" if known else "without ids"
        unknown = next((number for number in numbers if number not in by_id), numbers[0])
        return (
            f"id {unknown} is not in label space {labels.name!r} ({ids}, ignored "
            f"{', '.join(map(str, labels.ignored_ids)) or 'none'}); add it to a class's raw_ids or to ignored_ids in "
            "labels.json."
        )
    known_colors = {*VOID_COLORS, *by_color}
    wrong = [at for at, color in enumerate(distinct.colors) if color not in known_colors]
    # Of a palette, an index may be known by its number.
    at = next((at for at in wrong if distinct.kind != "palette" or distinct.values[at] not in by_id), (wrong or [0])[0])
    color = color_of(distinct.colors[at]) if distinct.colors[at] >= 0 else "none"
    if distinct.kind == "palette":
        return (
            f"palette index {distinct.values[at]} of colour {color} is neither an id nor a class colour in label space "
            f"{labels.name!r}; add the colour to its class, or the index to raw_ids."
        )
    return (
        f"no class in label space {labels.name!r} has the colour {color}; add it, or save the mask without "
        "anti-aliasing if its edges are blurred."
    )
