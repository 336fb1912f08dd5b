"""The HTTP server of the viewer: one page, its files and tiles, on the loopback address only."""

from __future__ import annotations

import io
import json
import re
import zlib
from functools import cache, partial
from importlib.resources import files
from typing import Any

import numpy as np
from PIL import Image

from evitseg.system.page_server import Content, NotFoundError, PageServer
from evitseg.viewer.pyramid import Rectangle
from evitseg.viewer.view import View

_HTML, _CSS = "text/html; charset=utf-8", "text/css; charset=utf-8"
_SCRIPT, _TEXT = "text/javascript; charset=utf-8", "text/plain; charset=utf-8"
PAGE = {
    "": ("viewer/page/index.html", _HTML),
    "theme.css": ("web/site/theme.css", _CSS),
    "style.css": ("viewer/page/style.css", _CSS),
    "app.js": ("viewer/page/app.js", _SCRIPT),
    "mask_layer.js": ("viewer/page/mask_layer.js", _SCRIPT),
    "panel.js": ("viewer/page/panel.js", _SCRIPT),
    "parts.js": ("web/site/parts.js", _SCRIPT),
    "save.js": ("viewer/page/save.js", _SCRIPT),
    "openseadragon.min.js": ("viewer/page/openseadragon.min.js", _SCRIPT),
    "openseadragon.LICENSE.txt": ("viewer/page/openseadragon.LICENSE.txt", _TEXT),
}
"""The files of the page, by the last part of their address, each with its place in the package and its type."""
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' blob: data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_MAX_SAVED_PIXELS = 2**26
_QUALITY = 90


def answer(view: View, path: str, query: dict[str, str]) -> Content:
    """The content of an address of the viewer, relative to its page.

    Raises: NotFoundError, ValueError for a bad query, EvitsegError.
    """
    if path in PAGE:
        return Content(_file(PAGE[path][0]), {"Content-Type": PAGE[path][1], "Cache-Control": "no-cache"})
    if path == "about.json":
        return _json(view.about())
    if path == "status.json":
        return _json(view.status())
    if path == "place.json":
        return _json(view.place(float(query["x"]), float(query["y"])))
    if path == "mask.png":
        return _saved(view, *(int(query[name]) for name in ("level", "top", "left", "height", "width")))
    found = re.fullmatch(r"(image|mask)/([0-9]{1,2})/([0-9]{1,7})/([0-9]{1,7})", path)
    if found is None:
        raise NotFoundError
    place = int(found[2]), int(found[3]), int(found[4])
    if not view.has(*place):
        raise NotFoundError
    return _image_tile(view, *place) if found[1] == "image" else _mask_tile(view, *place, "exact" not in query)


@cache
def _file(name: str) -> bytes:
    return (files("evitseg") / name).read_bytes()


def _json(content: dict[str, Any]) -> Content:
    return Content(json.dumps(content).encode(), {"Content-Type": "application/json", "Cache-Control": "no-store"})


def _image_tile(view: View, level: int, row: int, column: int) -> Content:
    """Pixels at full size are stored without loss, because they may be looked at one by one."""
    image = Image.fromarray(view.image_tile(level, row, column))
    stream = io.BytesIO()
    if level == 0:
        image.save(stream, "PNG", compress_level=1)
    else:
        image.save(stream, "JPEG", quality=_QUALITY, subsampling=0)
    kind = "image/png" if level == 0 else "image/jpeg"
    return Content(stream.getvalue(), {"Content-Type": kind, "Cache-Control": "private, max-age=3600"})


def _mask_tile(view: View, level: int, row: int, column: int, with_preview: bool) -> Content:
    """Class indices, one or two bytes each, in the order of pixels; no bytes if there are none yet."""
    mask, is_exact = view.mask_tile(level, row, column, with_preview)
    content = b"" if mask is None else np.ascontiguousarray(mask, mask.dtype.newbyteorder("<")).tobytes()
    headers = {
        "Content-Type": "application/octet-stream",
        "Content-Encoding": "deflate",
        "Cache-Control": "no-store",
        "X-Mask": "exact" if is_exact else "none" if mask is None else "preview",
    }
    return Content(zlib.compress(content, 1), headers)


def _saved(view: View, level: int, top: int, left: int, height: int, width: int) -> Content:
    """A part of the mask as a PNG with the classes' colours as a palette."""
    from evitseg.raster.png import mask_png

    rows, columns = view.size_of(level)
    if min(top, left) < 0 or min(height, width) < 1 or top + height > rows or left + width > columns:
        raise ValueError("the part is not inside the image")
    if height * width > _MAX_SAVED_PIXELS:
        raise ValueError(f"the part has more than {_MAX_SAVED_PIXELS:,} pixels")
    mask, is_exact = view.mask_part(level, Rectangle(top, left, height, width))
    name = f"{view.request.image.stem}_x{left}_y{top}_{1 << level}to1{'' if is_exact else '_preview'}_mask.png"
    safe = re.sub(r"[^A-Za-z0-9._-]", "_", name)
    headers = {
        "Content-Type": "image/png",
        "Content-Disposition": f'attachment; filename="{safe}"',
        "Cache-Control": "no-store",
    }
    return Content(mask_png(mask, view.labels), headers)


class LocalServer(PageServer):
    """Serves a view on the loopback address, from `start` to `close`. Raises: FileError if the port is in use."""

    def __init__(self, view: View, port: int = 0) -> None:
        super().__init__(partial(answer, view), port, {"Content-Security-Policy": _POLICY})
