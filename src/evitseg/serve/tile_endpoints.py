"""The addresses of images below the service's folder: a list, facts about each, and tiles of their layers."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, TypeVar
from urllib.parse import quote

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from evitseg.errors import ConfigError, unknown
from evitseg.serve.endpoints import route, service_of
from evitseg.serve.exchange import exchange_of
from evitseg.serve.image_shelf import ImageShelf
from evitseg.serve.parameters import PARAMETERS
from evitseg.serve.problems import ProblemError
from evitseg.serve.tile_layers import (
    FORMATS,
    MEDIA_TYPES,
    Layer,
    Tile,
    TileOptions,
    deep_zoom_tile,
    layer_of,
    map_tile,
    map_tile_of,
)
from evitseg.viewer.pyramid import TILE
from evitseg.viewer.view import View

T = TypeVar("T")
DZI = "application/xml"
_KEPT = "private, max-age=300"
"""For how long clients may keep tiles that do not change."""


async def _worked(request: Request, work: Callable[[ImageShelf], T]) -> T:
    """The result of work on the images, in a thread of the tiles' queue. Raises: ProblemError."""
    service = service_of(request)
    images = service.images
    if images is None:
        raise ProblemError("no-images", "no folder of images was given.")
    service.check_open(service.tile_queue)
    stages = exchange_of(request).stages

    def translated() -> T:
        with service.translated(), stages("tile"):
            return work(images)

    return await service.run(translated, stages, request, queue=service.tile_queue)


def _options(request: Request, layer: Layer) -> TileOptions:
    """The query of a tile. Raises: ProblemError."""
    known = {"image": (), "mask": ("exact",), "overlay": ("exact", "opacity")}[layer]
    found = dict[str, Any]()
    for name, text in request.query_params.multi_items():
        if name not in known:
            raise ProblemError("bad-parameter", str(unknown("parameter", name[:100], known)))
        if name in found:
            raise ProblemError("bad-parameter", f"{name} is given twice; give it once.")
        try:
            if name == "exact" and text not in ("true", "false"):
                raise ConfigError(f"{text[:40]!r} is none of true, false.")
            labels = service_of(request).labels
            found[name] = text == "true" if name == "exact" else PARAMETERS[name].parse(text, labels)
        except ConfigError as error:
            raise ProblemError("bad-parameter", f"{name}: {error}") from error
    return TileOptions(**found)


def _numbers(request: Request, *names: str) -> list[int]:
    """Numbers in the path. Raises: ProblemError."""
    texts = [request.path_params[name] for name in names]
    if not all(re.fullmatch("[0-9]{1,9}", text) for text in texts):
        raise ProblemError("no-such-tile", f"{'/'.join(texts)[:100]!r} are no numbers of a tile.")
    return [int(text) for text in texts]


def _no_query(request: Request) -> None:
    for name in request.query_params:
        raise ProblemError("bad-parameter", str(unknown("parameter", name[:100], ())))


async def _list(request: Request) -> Response:
    _no_query(request)
    images = await _worked(request, lambda shelf: shelf.names())
    return JSONResponse({"images": [{"name": each.name, "has_mask": each.has_mask} for each in images]})


async def _info(request: Request) -> Response:
    _no_query(request)
    name = request.path_params["image"]

    def work(shelf: ImageShelf) -> dict[str, Any]:
        with shelf.opened(name) as view:
            return _facts(view, name, request.scope.get("root_path", ""))

    return JSONResponse(await _worked(request, work))


def _facts(view: View, name: str, root: str) -> dict[str, Any]:
    about, status = view.about(), view.status()
    has_mask = view.request.with_mask and not view.problem
    layers = [layer for layer in FORMATS if has_mask or layer == "image"]
    base, quoted = f"{root}/v1/images", quote(name)
    is_placed = about["crs"] is not None and view.coordinates.crs is not None
    return {
        "name": name,
        "width": about["width"],
        "height": about["height"],
        "crs": about["crs"],
        "classes": about["classes"],
        "mask": {"exact": status["exact"], "problem": view.problem, "fractions": status["fractions"]}
        if view.request.with_mask
        else None,
        "dzi": {layer: f"{base}/dzi/{layer}/{quoted}.dzi" for layer in layers},
        "xyz": {layer: f"{base}/xyz/{layer}/{quoted}/{{z}}/{{x}}/{{y}}.png" for layer in layers} if is_placed else None,
    }


async def _descriptor(request: Request) -> Response:
    name = request.path_params["image"]
    layer = layer_of(request.path_params["layer"], None)
    _options(request, layer)

    def work(shelf: ImageShelf) -> tuple[int, int]:
        with shelf.opened(name) as view:
            return view.pyramid.size

    height, width = await _worked(request, work)
    text = (
        '<?xml version="1.0" encoding="UTF-8"?>\n'
        f'<Image xmlns="http://schemas.microsoft.com/deepzoom/2008" TileSize="{TILE}" Overlap="0" '
        f'Format="{FORMATS[layer][0]}"><Size Width="{width}" Height="{height}"/></Image>\n'
    )
    return Response(text, media_type=DZI)


async def _deep_zoom(request: Request) -> Response:
    level, column, row = _numbers(request, "level", "column", "row")
    return await _tile(
        request, lambda view, layer, ending, options: deep_zoom_tile(view, layer, ending, level, column, row, options)
    )


async def _map(request: Request) -> Response:
    tile = map_tile_of(*_numbers(request, "z", "x", "y"))
    return await _tile(request, lambda view, layer, ending, options: map_tile(view, layer, ending, tile, options))


async def _tile(request: Request, make: Callable[[View, Layer, str, TileOptions], Tile]) -> Response:
    name, ending = request.path_params["image"], request.path_params["ending"]
    layer = layer_of(request.path_params["layer"], ending)
    options = _options(request, layer)

    def work(shelf: ImageShelf) -> Tile:
        with shelf.opened(name) as view:
            return make(view, layer, ending, options)

    tile = await _worked(request, work)
    headers = {"Cache-Control": _KEPT if tile.is_exact else "no-store"}
    if layer != "image":
        headers["X-Evitseg-Mask"] = "exact" if tile.is_exact else "preview"
    return Response(tile.body, headers=headers, media_type=MEDIA_TYPES[ending])


ROUTES = [
    route("/v1/images", _list, "GET"),
    route("/v1/images/info/{image:path}", _info, "GET"),
    route("/v1/images/dzi/{layer}/{image:path}_files/{level}/{column}_{row}.{ending}", _deep_zoom, "GET"),
    route("/v1/images/dzi/{layer}/{image:path}.dzi", _descriptor, "GET"),
    route("/v1/images/xyz/{layer}/{image:path}/{z}/{x}/{y}.{ending}", _map, "GET"),
]
