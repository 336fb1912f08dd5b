"""The pixels of video frames: the network's input, rotation, and the overlay of class colours.

The overlay is blended in YUV, so that no RGB image of the full size is needed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from evitseg.image import ImageArray, Mask
from evitseg.labels import LabelSpace
from evitseg.runtime.segmenter import Segmenter, finite
from evitseg.runtime.upsample import argmax_upsampled
from evitseg.visualize import OPACITY

if TYPE_CHECKING:
    import av


def rgb(image: av.VideoFrame, height: int, width: int) -> ImageArray:
    """A frame as (height, width, 3) RGB pixels."""
    # Resizing before the conversion is faster than both in one pass, and closer to Pillow's result.
    sized = image.reformat(width=width, height=height, threads=1)
    rgb = sized.reformat(format="rgb24", threads=1)
    return np.ascontiguousarray(_rows(rgb, 0)[:, : 3 * width]).reshape(height, width, 3)


def frame_mask(image: av.VideoFrame, segment: Segmenter) -> Mask:
    """The mask of a frame, as from `Segmenter.mask` except that FFmpeg resamples. Raises: WeightsError."""
    size = (image.height, image.width)
    network_input = rgb(image, *segment.manifest.preprocess.fit(size, segment.size))
    logits = finite(segment.engine(network_input[None])[0], segment.manifest, segment.info)
    return argmax_upsampled(logits, size)


TRANSPOSED, _ROWS_BACK, _COLUMNS_BACK = 4, 2, 1


def rotation_of(image: av.VideoFrame) -> int:
    """The flags, applied in the order above, that make a frame upright according to its display matrix."""
    found: Any = image.side_data.get("DISPLAYMATRIX")
    if found is None:
        return 0
    numbers: list[int] = np.frombuffer(bytes(found), np.int32).tolist()
    a, b, _, c, d, *_ = numbers
    # A stored pixel (x, y) is shown at (a x + c y, b x + d y).
    if abs(a) >= abs(b):
        return _COLUMNS_BACK * (a < 0) + _ROWS_BACK * (d < 0)
    return TRANSPOSED + _COLUMNS_BACK * (c < 0) + _ROWS_BACK * (b < 0)


def upright(image: av.VideoFrame, turn: int) -> av.VideoFrame:
    """The upright form of a frame; `turn` is from `rotation_of`."""
    if not turn:
        return image
    image = yuv(image)
    size = (image.width, image.height) if turn & TRANSPOSED else (image.height, image.width)
    turned = new_frame(image, *size)
    for i in range(3):
        plane = plane_of(image, i)
        plane = plane.T if turn & TRANSPOSED else plane
        plane = plane[::-1] if turn & _ROWS_BACK else plane
        plane_of(turned, i)[:] = plane[:, ::-1] if turn & _COLUMNS_BACK else plane
    return turned


_PLANAR = ("yuv420p", "yuvj420p")


def yuv(image: av.VideoFrame) -> av.VideoFrame:
    """A frame in yuv420p: three planes of 8 bits, with the two colour planes at half size."""
    if image.format.name in _PLANAR:
        return image
    rgb = {"dst_colorspace": _BT601} if image.format.is_rgb else {}
    converted = image.reformat(format="yuv420p", dst_color_range=_LIMITED, threads=1, **rgb)
    converted.color_range = _LIMITED
    return converted


def new_frame(like: av.VideoFrame, height: int, width: int) -> av.VideoFrame:
    """An empty yuv420p frame in the colour space and range of another one."""
    import av

    frame = av.VideoFrame(width, height, "yuv420p")
    full = like.format.name == "yuvj420p" or like.color_range == _FULL
    frame.color_range = _FULL if full else _LIMITED
    frame.colorspace, frame.color_primaries, frame.color_trc = like.colorspace, like.color_primaries, like.color_trc
    return frame


def plane_of(image: av.VideoFrame, i: int) -> NDArray[np.uint8]:
    """(height, width) view of a plane's memory."""
    plane = image.planes[i]
    return _rows(image, i)[: plane.height, : plane.width]


def _rows(image: av.VideoFrame, i: int) -> NDArray[np.uint8]:
    """A plane's memory, with the padding of every line."""
    plane = image.planes[i]
    return np.frombuffer(memoryview(plane), np.uint8).reshape(-1, plane.line_size)


_LIMITED, _FULL = 1, 2  # FFmpeg's numbers of colour ranges
_BT601 = 5
_LUMA = {1: (0.2126, 0.0722), 7: (0.212, 0.087), 9: (0.2627, 0.0593), 10: (0.2627, 0.0593)}
"""Weights of red and blue in luma, by FFmpeg's number of the colour space. All others use BT.601."""


@dataclass(frozen=True)
class Colors:
    """The classes' colours, prepared for blending.

    Attributes:
        planes: (classes,) values for each plane, times the opacity in 256ths.
        rest: weight of the image in 256ths.
    """

    planes: tuple[NDArray[np.uint16], ...]
    rest: int


def yuv_colors(labels: LabelSpace, like: av.VideoFrame) -> Colors:
    """The classes' colours in the colour space and range of a frame."""
    rgb = np.array([c.color for c in labels.classes], np.float64)
    red, blue = _LUMA.get(like.colorspace, (0.299, 0.114))
    y = rgb @ (red, 1 - red - blue, blue)
    u, v = (rgb[:, 2] - y) / (2 - 2 * blue), (rgb[:, 0] - y) / (2 - 2 * red)
    if like.color_range != _FULL:
        y, u, v = 16 + y * 219 / 255, u * 224 / 255, v * 224 / 255
    opacity = round(256 * OPACITY)
    planes = tuple(
        (opacity * plane + 128).astype(np.uint16) for plane in (y, u + 128, v + 128)
    )  # 128 rounds the division by 256
    return Colors(planes, 256 - opacity)


def overlaid(image: av.VideoFrame, mask: Mask, colors: Colors) -> av.VideoFrame:
    """The frame blended with the classes' colours. Odd sides repeat their last pixel, because H.264 needs even ones."""
    image = yuv(image)
    height, width = mask.shape
    drawn = new_frame(image, height + height % 2, width + width % 2)
    for i, table in enumerate(colors.planes):
        blended = np.multiply(plane_of(image, i), colors.rest, dtype=np.uint16)
        blended += np.take(table, mask[::2, ::2] if i else mask, mode="clip")  # clip skips the check of indices
        blended >>= 8
        into, (h, w) = plane_of(drawn, i), blended.shape
        into[:h, :w] = blended
        into[h:], into[:, w:] = into[h - 1 : h], into[:, w - 1 : w]
    return drawn
