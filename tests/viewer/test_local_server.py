"""The server of the viewer, which answers only its own page."""

from __future__ import annotations

import http.client
import io
import json
import re
import socket
import zlib
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import pytest
from PIL import Image

import evitseg
from evitseg.errors import FileError
from evitseg.viewer.local_server import PAGE, LocalServer
from evitseg.viewer.view import View
from evitseg.viewer.view_request import ViewRequest


@pytest.fixture(scope="module")
def server(street: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalServer]:
    with View(ViewRequest(street, cache=tmp_path_factory.mktemp("cache"))) as view, LocalServer(view) as server:
        yield server


def ask(
    server: LocalServer, path: str, method: str = "GET", whole: str | None = None, **headers: str
) -> tuple[int, bytes, http.client.HTTPMessage]:
    """Status, body and headers for an address relative to the page, or for a `whole` one."""
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)
    try:
        address = whole if whole is not None else urlsplit(server.url).path + path
        connection.request(method, address, headers={name.replace("_", "-"): value for name, value in headers.items()})
        response = connection.getresponse()
        return response.status, response.read(), response.headers
    finally:
        connection.close()


def test_the_page_and_its_files_are_served(server: LocalServer) -> None:
    for name, (file, kind) in PAGE.items():
        status, body, headers = ask(server, name)
        assert (status, headers["Content-Type"]) == (200, kind)
        assert body == (files("evitseg") / file).read_bytes()
        assert "default-src 'none'" in headers["Content-Security-Policy"]


def test_the_page_refers_only_to_files_of_its_own() -> None:
    own = {file: (files("evitseg") / file).read_text() for file, _ in PAGE.values() if "sea" not in file}
    used = {
        name for text in own.values() for name in re.findall(r"""(?:src|href|from) ?=? ?"(?:\./)?([^"]+)\"""", text)
    }
    assert used - {"data:,"} == set(PAGE) - {""}
    assert not any(re.search(r"https?://", text) for text in own.values())


def test_tiles_are_the_image_and_its_mask(server: LocalServer, street: Path) -> None:
    expected = evitseg.load()(street)
    status, body, headers = ask(server, "image/0/0/0")
    assert (status, headers["Content-Type"]) == (200, "image/png")
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(body))), expected.image)
    while ask(server, "mask/0/0/0")[2]["X-Mask"] != "exact":
        pass
    status, body, headers = ask(server, "mask/0/0/0?exact=1")
    assert (status, headers["Content-Encoding"]) == (200, "deflate")
    np.testing.assert_array_equal(np.frombuffer(zlib.decompress(body), np.uint8).reshape(270, 480), expected.mask)
    status, body, headers = ask(server, "mask.png?level=0&top=30&left=40&height=50&width=60")
    assert 'filename="street_x40_y30_1to1_mask.png"' in headers["Content-Disposition"]
    saved = Image.open(io.BytesIO(body))
    assert saved.mode == "P"
    np.testing.assert_array_equal(np.asarray(saved), expected.mask[30:80, 40:100])
    assert json.loads(ask(server, "about.json")[1])["name"] == "street.png"
    assert json.loads(ask(server, "status.json")[1])["phase"] == "ready"
    assert json.loads(ask(server, "place.json?x=1.5&y=2")[1]) == {}


@pytest.mark.parametrize(
    "path",
    ["nothing", "image/0/0/1", "image/1/0/0", "mask/0/9/0", "mask/0/0", "image/0/0/0/", "../view.py", "%2e%2e/view.py",
     "page/app.js", "..%2fserver.py", "//etc/passwd", "image/0/0/-1", "image/00000000000/0/0"],
)  # fmt: skip
def test_an_address_without_content_is_not_found(path: str, server: LocalServer) -> None:
    assert ask(server, path)[0] == 404


@pytest.mark.parametrize(
    "path",
    ["mask.png", "mask.png?level=0&top=0&left=0&height=0&width=1", "mask.png?level=0&top=0&left=0&height=271&width=1",
     "mask.png?level=9&top=0&left=0&height=1&width=1", "mask.png?level=x&top=0&left=0&height=1&width=1",
     "place.json?x=1", "place.json?x=a&y=1"],
)  # fmt: skip
def test_a_wrong_query_is_a_bad_request(path: str, server: LocalServer) -> None:
    assert ask(server, path)[0] == 400


def test_an_address_that_cannot_be_parsed_is_a_bad_request(server: LocalServer) -> None:
    with socket.create_connection(("127.0.0.1", server.port)) as connection:  # http.client refuses to send it
        connection.sendall(f"GET http://[ HTTP/1.1\r\nHost: 127.0.0.1:{server.port}\r\n\r\n".encode())
        assert connection.recv(1000).startswith(b"HTTP/1.1 400 ")


def test_nothing_is_served_without_the_secret(server: LocalServer) -> None:
    for whole in ("/", "/about.json", "/image/0/0/0", f"/{'x' * 22}/about.json", "*", "/.."):
        assert ask(server, "", whole=whole)[0] == 404


def test_pages_of_other_sites_get_nothing(server: LocalServer) -> None:
    good = {f"{name}:{server.port}" for name in ("127.0.0.1", "localhost", "[::1]")}
    for host in good:
        assert ask(server, "about.json", Host=host)[0] == 200
    for host in ("evil.example", f"evil.example:{server.port}", "127.0.0.1", "127.0.0.1:1", ""):
        assert ask(server, "about.json", Host=host)[0] == 403
    for site in ("cross-site", "same-site"):
        assert ask(server, "image/0/0/0", Sec_Fetch_Site=site, Sec_Fetch_Mode="no-cors")[0] == 403
    assert ask(server, "image/0/0/0", Sec_Fetch_Site="same-origin", Sec_Fetch_Mode="cors")[0] == 200
    assert ask(server, "", Sec_Fetch_Site="none", Sec_Fetch_Mode="navigate")[0] == 200
    headers = ask(server, "")[2]
    assert "Access-Control-Allow-Origin" not in headers
    assert headers["Cross-Origin-Resource-Policy"] == "same-origin"


def test_only_reading_is_possible(server: LocalServer) -> None:
    status, body, headers = ask(server, "about.json", "HEAD")
    assert (status, body) == (200, b"")
    assert int(headers["Content-Length"]) > 100
    for method in ("POST", "PUT", "DELETE", "OPTIONS"):
        assert ask(server, "about.json", method)[0] == 501


def test_only_this_machine_can_connect(server: LocalServer) -> None:
    assert urlsplit(server.url).hostname == "127.0.0.1"
    with pytest.raises(FileError, match=f"port {server.port} cannot be used .*--port"):
        LocalServer(View(ViewRequest(Path("a.png"))), server.port)
