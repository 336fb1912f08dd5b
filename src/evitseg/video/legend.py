"""Draw the classes' colours and names in a corner of video frames."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from evitseg.labels import LabelSpace
from evitseg.video.frames import new_frame, plane_of

if TYPE_CHECKING:
    import av

_MIN_FRACTION = 0.001
"""Fraction of a frame below which a class is more likely an error of the network than an object."""
_MIN_TEXT = 10
"""Text height in pixels in the smallest frames."""
_BACKGROUND, _TEXT = (24, 24, 24), (255, 255, 255)


class Legend:
    """A legend of all classes that have occurred so far, so that entries do not flicker.

    It is at the upper left and covers at most half of the width and half of the height. If it has no room for all
    classes, a last line counts the rarest ones.
    """

    def __init__(self, labels: LabelSpace) -> None:
        self._labels = labels
        self._seen = np.zeros(len(labels.classes), np.int64)
        self._shown: tuple[int, ...] | None = None
        self._planes: list[NDArray[np.uint8]] = []

    def draw(self, frame: av.VideoFrame, counts: NDArray[np.intp]) -> None:
        """Draw onto a frame in place, given its class counts. Frames must come in the order of the video."""
        occurs = counts > _MIN_FRACTION * max(1, counts.sum())
        self._seen += np.where(occurs | (self._seen > 0), counts, 0)
        shown = tuple(int(i) for i in np.flatnonzero(self._seen))
        if shown != self._shown:
            self._shown, self._planes = shown, self._drawn(frame)
        for i, plane in enumerate(self._planes):
            height, width = plane.shape
            plane_of(frame, i)[:height, :width] = plane

    def _drawn(self, like: av.VideoFrame) -> list[NDArray[np.uint8]]:
        """The legend as planes of a frame; empty if there is no room for a single line."""
        size = max(_MIN_TEXT, like.height // 40)
        line, gap = size + size // 2, size // 2
        lines = (like.height // 2 - gap) // line
        common = sorted(np.flatnonzero(self._seen).tolist(), key=lambda i: -self._seen[i])
        if lines < 1 or not common:
            return []
        room = lines if len(common) <= lines else lines - 1
        kept, left_out = sorted(common[:room]), len(common) - room
        entries: list[tuple[str, tuple[int, ...] | None]] = [
            (self._labels.classes[i].name, tuple(self._labels.classes[i].color)) for i in kept
        ]
        if left_out > 0:
            entries.append((f"+ {left_out} more", None))
        font = ImageFont.load_default(size)
        wide = max(int(font.getlength(name)) for name, _ in entries) + 2 * gap + size + gap
        width, height = min(wide, like.width // 2) // 2 * 2, min(gap + line * len(entries), like.height) // 2 * 2
        if width < 2:
            return []
        image = Image.new("RGB", (width, height), _BACKGROUND)
        draw = ImageDraw.Draw(image)
        for row, (name, color) in enumerate(entries):
            top = gap + row * line
            if color is not None:
                draw.rectangle((gap, top, gap + size - 1, top + size - 1), fill=color)
            draw.text((2 * gap + size, top + size // 2), name, _TEXT, font, anchor="lm")
        return _planes(image, like)


def _planes(image: Image.Image, like: av.VideoFrame) -> list[NDArray[np.uint8]]:
    """The planes of an image in the colour space and range of a frame."""
    import av

    target = new_frame(like, 2, 2)
    frame = av.VideoFrame.from_ndarray(np.asarray(image), format="rgb24").reformat(
        format="yuv420p", dst_colorspace=target.colorspace, dst_color_range=target.color_range, threads=1
    )
    return [plane_of(frame, i).copy() for i in range(3)]
