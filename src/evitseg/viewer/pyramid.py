"""The geometry of a pyramid of tiles: an image at its own size, at half of it, a quarter, and so on."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

TILE = 512
"""Side of a tile in pixels of its level."""


class Rectangle(NamedTuple):
    """A part of a level, in its pixels."""

    top: int
    left: int
    height: int
    width: int


@dataclass(frozen=True)
class Pyramid:
    """The levels of an image. Level 0 has its own size; the last level is one tile.

    Attributes:
        size: (height, width) of the image.
    """

    size: tuple[int, int]

    @cached_property
    def levels(self) -> int:
        """Number of levels."""
        return (-(-max(self.size) // TILE) - 1).bit_length() + 1

    def size_of(self, level: int) -> tuple[int, int]:
        """(height, width) of a level."""
        height, width = (-(-side // 2**level) for side in self.size)
        return height, width

    def grid(self, level: int) -> tuple[int, int]:
        """Number of tiles of a level, down and across."""
        height, width = self.size_of(level)
        return -(-height // TILE), -(-width // TILE)

    def has(self, level: int, row: int, column: int) -> bool:
        """Whether a tile exists."""
        if not 0 <= level < self.levels:
            return False
        rows, columns = self.grid(level)
        return 0 <= row < rows and 0 <= column < columns

    def tile(self, level: int, row: int, column: int, margin: int = 0) -> Rectangle:
        """The pixels of a tile, and up to `margin` pixels around it."""
        height, width = self.size_of(level)
        top, left = max(0, row * TILE - margin), max(0, column * TILE - margin)
        bottom, right = min(height, (row + 1) * TILE + margin), min(width, (column + 1) * TILE + margin)
        return Rectangle(top, left, bottom - top, right - left)

    def in_image(self, level: int, part: Rectangle) -> Rectangle:
        """The pixels of the image that a part of a level shows."""
        factor = 2**level
        top, left = part.top * factor, part.left * factor
        bottom = min(self.size[0], (part.top + part.height) * factor)
        right = min(self.size[1], (part.left + part.width) * factor)
        return Rectangle(top, left, bottom - top, right - left)
