"""The regions of a mask as annotation tools draw them: polygons one above the other, without holes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from evitseg.data.annotations.regions import Runs, paint, polygon
from evitseg.labels import BACKGROUNDS, LabelSpace
from evitseg.raster.vector_files import Feature, Ring, Rings, doubled_area

IGNORED_LABEL = "__ignore__"
"""Label of pixels without data, Labelme's own for pixels that do not count."""


@dataclass(frozen=True)
class Outline:
    """A region of one class.

    Attributes:
        label: name of the class, or `IGNORED_LABEL`.
        rings: its outline, then its holes, in pixels of the image.
        depth: number of larger outlines around it, above which it is drawn.
    """

    label: str
    rings: Rings
    depth: int = 0

    @property
    def points(self) -> list[list[int]]:
        """The corners x, y of the outline; the last one is not the first again."""
        points: list[list[int]] = self.rings[0][:-1].tolist()
        return points


@dataclass(frozen=True)
class OutlinedImage:
    """An image and the regions of its mask.

    Attributes:
        name: path of the image with forward slashes, relative to a folder that the person knows.
        size: (height, width) of its mask.
        outlines: from the largest to the smallest, so that each is drawn above those around it.
    """

    name: str
    size: tuple[int, int]
    outlines: Sequence[Outline]


def filled(ring: Ring, size: tuple[int, int]) -> Runs:
    """The pixels inside a ring."""
    return polygon(ring[:-1].astype(np.float64), size)


def stacked(regions: Sequence[Feature], size: tuple[int, int], labels: LabelSpace) -> list[Outline]:
    """Outlines that give the mask again if each is filled and drawn above those before it.

    The holes of a region are filled by the regions inside it, which come later. Tools take pixels of no object for
    background, so regions of a class of that name are left out, except in the hole of another region.

    Args:
        regions: all regions of the mask, or all but the smallest.
    """
    largest_first = sorted(regions, key=lambda region: -doubled_area(region.rings[0]))
    # How many outlines cover a pixel, column by column like `Runs`. Without holes, no outline is inside another one.
    depths = np.zeros(size[0] * size[1], np.uint16) if any(len(region.rings) > 1 for region in regions) else None
    outlines = []
    for region in largest_first:
        depth = 0
        if depths is not None:
            inside = filled(region.rings[0], size)
            # A simplified outline may be too thin for a pixel.
            depth = int(depths[inside.starts[0]]) if len(inside.starts) else 0
            if depth or region.name not in BACKGROUNDS:
                paint(depths, inside, depth + 1)
        if region.name in BACKGROUNDS and not depth:
            continue
        is_ignored = region.value == labels.ignore_index
        outlines.append(Outline(IGNORED_LABEL if is_ignored else region.name, region.rings, depth))
    return outlines
