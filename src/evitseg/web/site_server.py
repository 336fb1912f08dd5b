"""Serve the folder of a web page that `export --to web` wrote, for `evitseg web`."""

from __future__ import annotations

import ssl
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from evitseg.errors import FileError
from evitseg.system.page_server import LOOPBACK, Content, NotFoundError, PageServer

_TYPES = {
    ".css": "text/css; charset=utf-8",
    ".html": "text/html; charset=utf-8",
    ".jpg": "image/jpeg",
    ".js": "text/javascript; charset=utf-8",
    ".json": "application/json",
    ".png": "image/png",
    ".svg": "image/svg+xml",
    ".wasm": "application/wasm",
    ".webmanifest": "application/manifest+json",
}
_TEXT = "text/plain; charset=utf-8"
_BINARY = "application/octet-stream"
_HEADERS = {
    # Threads in the page need both this and Cross-Origin-Opener-Policy.
    "Cross-Origin-Embedder-Policy": "require-corp",
    # The page has the rest of the policy in itself, for other servers. Its workers have only what is sent with them.
    "Content-Security-Policy": "connect-src 'self'; frame-ancestors 'none'",
    "Permissions-Policy": "camera=(self)",
}


class SiteServer(PageServer):
    """Serves the files that a folder has when it starts, without hidden ones and links that lead out of it.

    Raises: FileError if the folder has no page, or the port is in use.
    """

    def __init__(
        self, folder: Path, port: int = 0, address: str = LOOPBACK, certificate: ssl.SSLContext | None = None
    ) -> None:
        site = {name.as_posix(): folder / name for name in _visible(folder)}
        if "index.html" not in site:
            raise FileError(f"{folder}: has no index.html; `evitseg export MODEL --to web --out DIR` writes a page.")
        site[""] = site["index.html"]
        super().__init__(partial(_answer, site), port, _HEADERS, address, certificate)


def _visible(folder: Path) -> Iterator[Path]:
    """The names of the files of a folder, relative to it."""
    inside = folder.resolve()
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder)
        is_hidden = any(part.startswith(".") for part in name.parts)  # such as .git, which may hold passwords
        if not is_hidden and path.is_file() and path.resolve().is_relative_to(inside):
            yield name


def _answer(site: dict[str, Path], path: str, query: dict[str, str]) -> Content:
    if path not in site:
        raise NotFoundError
    try:
        body = site[path].read_bytes()
    except OSError as error:
        raise FileError(f"{path}: cannot be read ({error.strerror or error}).") from error
    return Content(body, {"Content-Type": content_type(site[path]), "Cache-Control": "no-cache"})


def content_type(path: Path) -> str:
    """The media type of a file of a page, by its ending."""
    return _TYPES.get(path.suffix, _TEXT if path.suffix in ("", ".txt", ".md") else _BINARY)
