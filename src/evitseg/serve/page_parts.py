"""The files of the page at `/`: the page of `evitseg web`, with an engine that asks the service."""

from __future__ import annotations

from functools import cache
from pathlib import Path

from evitseg.web.page_files import EXAMPLE, LIBRARY, PAGE, example_jpeg
from evitseg.web.site_server import content_type

_SITE = (
    "app.js", "icon.svg", "image_file.js", "live.js", "manifest.webmanifest", "panel.js", "parts.js", "save.js",
    "stage.js", "style.css", "text.js", "theme.css",
)  # fmt: skip
_LIBRARY = ("errors.js", "model_file.js", "png.js")
_OWN = Path(__file__).parent / "page"
_INDEX = "index.html"
_PRELOADED = f'<link rel="modulepreload" href="{LIBRARY}/index.js">\n'
"""The library, which only the engine of `evitseg web` loads."""
_FILES = (
    {name: PAGE / "site" / name for name in (_INDEX, *_SITE)}
    | {f"{LIBRARY}/{name}": PAGE / "library" / name for name in _LIBRARY}
    | {name: _OWN / name for name in ("engine.js", "frames.js", "read_png.js", "docs.css")}
    | {"LICENSE": PAGE / "library" / "LICENSE"}
)
PART_NAMES = (*(name for name in _FILES if name != _INDEX), EXAMPLE)
"""Names of all files but the page itself, whose address is `/`."""


def docs_template() -> str:
    """The page about the addresses, without its content."""
    return (_OWN / "docs.html").read_text(encoding="utf-8")


@cache
def part(name: str = _INDEX) -> tuple[bytes, str]:
    """The content of a file, and its media type."""
    if name == EXAMPLE:
        return example_jpeg(), content_type(Path(name))
    body = _FILES[name].read_bytes()
    if name == _INDEX:
        body = body.replace(_PRELOADED.encode(), b"")
    return body, content_type(_FILES[name])
