"""The values of a mask, and the class that each of them means."""

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
"""Black, white and the border of PASCAL VOC's objects: ignored, unless a class has the colour."""


@dataclass(frozen=True)
class DistinctValues:
    """The distinct values of a mask.

    Attributes:
        kind: "levels" of grey, "palette" indices, or "colors".
        values: ascending: grey levels, palette indices, or colours as 0xRRGGBB.
        counts: pixels of each value.
        colors: what each value looks like, as 0xRRGGBB. A level of fewer than 8 bits is shown stretched: 3 of 2 bits is
            white.
        is_gray: whether nothing but grey can be shown: of a palette, all of its entries are grey.
        depth: bits of a level.
    """

    kind: Literal["levels", "palette", "colors"]
    values: tuple[int, ...]
    counts: tuple[int, ...]
    colors: tuple[int, ...]
    is_gray: bool
    depth: int = 8

    @property
    def levels(self) -> tuple[int, ...]:
        """The grey levels: as stored, or of grey colours."""
        return self.values if self.kind == "levels" else tuple(color & 255 for color in self.colors)

    @property
    def shown_levels(self) -> tuple[int, ...]:
        """The grey levels as a viewer shows them."""
        return tuple(color & 255 for color in self.colors) if self.depth < 8 else self.levels


def class_indices(held: DistinctValues, labels: LabelSpace) -> NDArray[np.int64]:
    """The class index, or `ignore_index`, of every value of a mask.

    Colours that are all of classes are read by colour, whatever their palette indices are; grey, also of a palette, by
    its level; another palette by index.

    Raises: ConfigError that names a value without a class.
    """
    by_id = dict.fromkeys(labels.ignored_ids, labels.ignore_index)
    by_id |= {raw: index for index, label in enumerate(labels.classes) for raw in label.raw_ids}
    by_color = colors_of(labels)
    for reading in _readings(held, labels, by_id, by_color):
        if None not in reading:
            return np.array(reading, np.int64)
    raise ConfigError(_stranger(held, labels, by_id, by_color))


def _readings(
    held: DistinctValues, labels: LabelSpace, by_id: dict[int, int], by_color: dict[int, int]
) -> Iterator[list[int | None]]:
    """What the values may mean, the most certain first; None for one that means nothing."""
    # Two palette indices of one colour: the colours say nothing.
    is_telling = len(set(held.colors)) == len(held.colors)
    if held.kind != "levels" and is_telling:
        yield [by_color.get(color) for color in held.colors]
    if held.is_gray and is_telling:
        stored, shown = held.levels, held.shown_levels
        # Of two classes, white of 1 bit is the second; among more it is 255, where that means something.
        if held.depth == 1 and len(labels.classes) != 2 and 255 in by_id:
            stored, shown = shown, stored
        yield [by_id.get(level) for level in stored]
        yield [by_id.get(level) for level in shown]
    if held.kind != "levels" and is_telling:
        void = dict.fromkeys(VOID_COLORS, labels.ignore_index)
        if held.kind == "colors" or any(color in by_color for color in held.colors):
            yield [(void | by_color).get(color) for color in held.colors]
    if held.kind == "palette" and not (held.is_gray and is_telling):
        yield _by_index(held, labels, by_id, by_color if is_telling else {})
    if held.kind == "levels":
        yield [by_color.get(color) for color in held.colors]


def colors_of(labels: LabelSpace) -> dict[int, int]:
    """Class indices by colour, 0xRRGGBB, of colours that one class alone has."""
    codes = [code_of(c.color) for c in labels.classes]
    often = Counter(codes)
    return {code: index for index, code in enumerate(codes) if often[code] == 1}


def code_of(color: Sequence[int]) -> int:
    return color[0] << 16 | color[1] << 8 | color[2]


def color_of(code: int) -> tuple[int, int, int]:
    return code >> 16, code >> 8 & 255, code & 255


def _by_index(
    held: DistinctValues, labels: LabelSpace, by_id: dict[int, int], by_color: dict[int, int]
) -> list[int | None]:
    indices = [by_id.get(value) for value in held.values]
    if None in indices:
        return indices
    for value, color, index in zip(held.values, held.colors, indices, strict=True):
        shown = by_color.get(color)
        if shown is not None and shown != index:
            other = "an ignored id" if index == labels.ignore_index else f"the id of {labels.names[index or 0]!r}"
            raise ConfigError(
                f"palette index {value} has the colour of {labels.names[shown]!r} but is {other} in label space "
                f"{labels.name!r}; give every class the colour that it has in the palette."
            )
    return indices


def _stranger(held: DistinctValues, labels: LabelSpace, by_id: dict[int, int], by_color: dict[int, int]) -> str:
    numbers = held.levels if held.is_gray else held.values
    if held.kind == "levels" or held.is_gray:
        known = sorted(raw for c in labels.classes for raw in c.raw_ids)
        ids = f"ids {known[0]} to {known[-1]}" if known else "without ids"
        stranger = next((number for number in numbers if number not in by_id), numbers[0])
        return (
            f"id {stranger} is not in label space {labels.name!r} ({ids}, ignored "
            f"{', '.join(map(str, labels.ignored_ids)) or 'none'}); add it to a class's raw_ids or to ignored_ids."
        )
    known_colors = {*VOID_COLORS, *by_color}
    at = next((at for at, color in enumerate(held.colors) if color not in known_colors), 0)
    color = color_of(held.colors[at]) if held.colors[at] >= 0 else "none"
    if held.kind == "palette":
        return (
            f"palette index {held.values[at]} of colour {color} is neither an id nor a class's colour in label space "
            f"{labels.name!r}; add the colour to its class, or the index to raw_ids."
        )
    return (
        f"colour {color} is no class's in label space {labels.name!r}; add it, or save the mask without smoothing if "
        "its colours are blurred."
    )
