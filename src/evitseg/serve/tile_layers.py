"""Tiles of images, masks and overlays: which parts of an image they show, and how they are encoded."""

from __future__ import annotations

import io
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from evitseg.errors import ConfigError
from evitseg.labels import LabelSpace
from evitseg.raster.png import mask_png
from evitseg.serve.problems import ProblemError
from evitseg.viewer.map_tiles import MapTile, MapView
from evitseg.viewer.mask_tiles import MaskArray, halved
from evitseg.viewer.pyramid import Pyramid
from evitseg.viewer.view import View
from evitseg.visualize import OPACITY, tinted

Layer = Literal["image", "mask", "overlay"]
FORMATS: dict[Layer, tuple[str, ...]] = {"image": ("jpg", "png"), "mask": ("png",), "overlay": ("jpg", "png")}
"""The formats of each layer's tiles, as endings; a descriptor names the first."""
MEDIA_TYPES = {"jpg": "image/jpeg", "png": "image/png"}
_QUALITY = 90


@dataclass(frozen=True)
class TileOptions:
    """What the query of a tile asks for.

    Attributes:
        opacity: of the classes' colours in an overlay.
        exact: whether a preview of the mask is refused.
    """

    opacity: float = OPACITY
    exact: bool = False


class Tile(NamedTuple):
    """A tile that is encoded.

    Attributes:
        is_exact: whether its mask is the one that the whole image gets; True for the image alone.
    """

    body: bytes
    is_exact: bool


def deep_zoom_levels(pyramid: Pyramid) -> int:
    """Number of levels of a Deep Zoom image: down to a single pixel."""
    return math.ceil(math.log2(max(pyramid.size))) + 1


def deep_zoom_tile(
    view: View, layer: Layer, ending: str, level: int, column: int, row: int, options: TileOptions
) -> Tile:
    """A tile of a Deep Zoom image, whose levels count from a single pixel on.

    Raises: ProblemError for a tile that does not exist, or that cannot be shown; EvitsegError.
    """
    pyramid = view.pyramid
    ours = deep_zoom_levels(pyramid) - 1 - level
    finest = min(ours, pyramid.levels - 1)
    if not 0 <= ours < deep_zoom_levels(pyramid) or not pyramid.has(finest, row, column):
        raise ProblemError("no-such-tile", f"the image has no tile {level}/{column}_{row}.")
    halvings = ours - finest  # below the viewer's last level, which is one tile
    pixels, mask, is_exact = None, None, True
    if layer != "image":
        mask, is_exact = _mask(view, lambda previews: view.mask_tile(finest, row, column, previews), options)
        for _ in range(halvings):
            mask = halved(np.pad(mask, [(0, side % 2) for side in mask.shape], "edge"))
    if layer != "mask":
        pixels = view.image_tile(finest, row, column)
        pixels = np.asarray(Image.fromarray(pixels).reduce(1 << halvings)) if halvings else pixels
    return Tile(_encoded(pixels, mask, view.labels, ending, options), is_exact)


def map_tile(view: View, layer: Layer, ending: str, tile: MapTile, options: TileOptions) -> Tile:
    """A tile of a web map; beside the image, a PNG is transparent and a JPEG white.

    Raises: ProblemError for an image without a place, a tile beside it, or one that cannot be shown; EvitsegError.
    """
    place = view.coordinates
    if not place.is_known or place.crs is None:
        raise ProblemError("no-place", "the image has no georeference.")
    map_view = MapView(place, view.pyramid)
    found = map_view.part(tile)
    if found is None:
        raise ProblemError("no-such-tile", f"the image is not in the map tile {tile.zoom}/{tile.x}/{tile.y}.")
    level, part = found
    warp = map_view.warper(tile, level, part)
    pixels, mask, is_exact, ignore = None, None, True, view.labels.ignore_index
    if layer != "image":
        mask, is_exact = _mask(view, lambda previews: view.mask_part(level, part, previews), options)
        mask = warp(mask, ignore, False)
    if layer != "mask":
        if level > 0:
            view.wait_until_prepared()
        pixels = warp(view.image_part(level, part), 255, True)
    inside = warp(np.full((part.height, part.width), 255, np.uint8), 0, False)
    return Tile(_encoded(pixels, mask, view.labels, ending, options, inside), is_exact)


def _mask(
    view: View, read: Callable[[bool], tuple[MaskArray | None, bool]], options: TileOptions
) -> tuple[MaskArray, bool]:
    """Class indices, and whether they are exact. Raises: ProblemError."""
    if not view.request.with_mask or view.problem:
        raise ProblemError("no-mask", view.problem or "there is no context of the image next to it.")
    mask, is_exact = read(False)
    if not is_exact and not options.exact:
        view.wait_until_prepared()  # for previews
        mask, is_exact = read(True)
    if mask is None or (options.exact and not is_exact):
        done = view.status()["exact"]
        raise ProblemError(
            "not-rendered", f"{done:.0%} of the mask is rendered, and not this tile.", headers={"Retry-After": "5"}
        )
    return mask, is_exact


def _encoded(
    pixels: NDArray[np.uint8] | None,
    mask: MaskArray | None,
    labels: LabelSpace,
    ending: str,
    options: TileOptions,
    inside: NDArray[np.uint8] | None = None,
) -> bytes:
    """A tile as a file.

    Args:
        pixels, mask: both for an overlay.
        inside: (height, width) alpha of a PNG; None if all of it is opaque.
    """
    if pixels is None:
        assert mask is not None
        return _with_transparency(mask, labels)
    image = Image.fromarray(pixels) if mask is None else tinted(pixels, mask, labels, options.opacity)
    stream = io.BytesIO()
    if ending == "png":
        if inside is not None:
            image.putalpha(Image.fromarray(inside))
        image.save(stream, "PNG", compress_level=1)
        return stream.getvalue()
    image.save(stream, "JPEG", quality=_QUALITY, subsampling=0)
    return stream.getvalue()


def _with_transparency(mask: MaskArray, labels: LabelSpace) -> bytes:
    """A mask with a palette in which pixels without a class are transparent; of many classes, grey levels."""
    if mask.dtype != np.uint8:
        return mask_png(mask, labels)
    image, stream = Image.fromarray(mask), io.BytesIO()
    image.putpalette(labels.palette.tobytes())
    image.save(stream, "PNG", transparency=labels.ignore_index, compress_level=1)
    return stream.getvalue()


def layer_of(name: str, ending: str | None) -> Layer:
    """A layer by its name. Raises: ProblemError if it is unknown, or does not have tiles of this format."""
    for layer, endings in FORMATS.items():
        if layer == name and (ending is None or ending in endings):
            return layer
    what = f"{name[:40]!r}" if ending is None else f"{name[:40]!r} as {ending[:10]!r}"
    known = "; ".join(f"{layer} ({', '.join(endings)})" for layer, endings in FORMATS.items())
    raise ProblemError("no-such-tile", f"there is no layer {what}; there are {known}.")


def map_tile_of(zoom: int, x: int, y: int) -> MapTile:
    """A map tile by its numbers. Raises: ProblemError."""
    try:
        return MapTile(zoom, x, y)
    except ConfigError as error:
        raise ProblemError("no-such-tile", str(error)) from error
