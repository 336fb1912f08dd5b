"""What `evitseg web` serves: the files of a page, with the headers that browsers want for threads, and over https."""

from __future__ import annotations

import hashlib
import http.client
import ipaddress
import socket
import ssl
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from evitseg.errors import ConfigError, FileError
from evitseg.web.local_network import make_certificate, own_address
from evitseg.web.site_server import SiteServer
from tests.optional import needs


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "secret.txt").write_text("not part of the page")
    site = tmp_path / "site"
    (site / "evitseg").mkdir(parents=True)
    (site / "index.html").write_text("<!doctype html><title>a page</title>")
    (site / "evitseg" / "core.wasm").write_bytes(b"\0asm")
    (site / "evitseg" / "index.js").write_text("export {};")
    return site


def ask(server: SiteServer, path: str, host: str | None = None) -> tuple[int, bytes, http.client.HTTPMessage]:
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)
    try:
        connection.request("GET", urlsplit(server.url).path + path, headers={"Host": host} if host else {})
        response = connection.getresponse()
        return response.status, response.read(), response.headers
    finally:
        connection.close()


def test_files_come_with_their_types_and_isolate_the_page(folder: Path) -> None:
    with SiteServer(folder) as server:
        for path, kind, body in (
            ("", "text/html; charset=utf-8", (folder / "index.html").read_bytes()),
            ("evitseg/core.wasm", "application/wasm", b"\0asm"),
            ("evitseg/index.js", "text/javascript; charset=utf-8", b"export {};"),
        ):
            status, found, headers = ask(server, path)
            assert (status, headers["Content-Type"], found) == (200, kind, body)
            assert headers["Cross-Origin-Opener-Policy"] == "same-origin"
            assert headers["Cross-Origin-Embedder-Policy"] == "require-corp"
            assert "connect-src 'self'" in headers["Content-Security-Policy"]  # workers have no other policy


@pytest.mark.parametrize(
    "path", ["../secret.txt", "%2e%2e/secret.txt", "..%2fsecret.txt", "evitseg/../../secret.txt", "evitseg", "evitseg/",
             "/etc/passwd", "index.html/", "evitseg\\index.js", "new.js"]
)  # fmt: skip
def test_nothing_but_the_files_of_the_page_is_served(path: str, folder: Path) -> None:
    with SiteServer(folder) as server:
        (folder / "new.js").write_text("was not there when the server started")
        assert ask(server, path)[0] == 404


def test_only_the_printed_address_works(folder: Path) -> None:
    with SiteServer(folder) as server:
        assert ask(server, "", f"evil.example:{server.port}")[0] == 403
        assert ask(server, "../")[0] == 404  # without the secret


def test_hidden_files_and_links_that_lead_out_of_the_folder_are_not_served(folder: Path) -> None:
    (folder / ".git").mkdir()
    (folder / ".git" / "config").write_text("a password")
    (folder / "link.txt").symlink_to(folder.parent / "secret.txt")
    (folder / "up").symlink_to(folder.parent)
    (folder / "inside.js").symlink_to(folder / "evitseg" / "index.js")
    with SiteServer(folder) as server:
        for path in (".git/config", "link.txt", "up/secret.txt"):
            assert ask(server, path)[0] == 404
        assert ask(server, "inside.js")[1] == b"export {};"


def test_an_error_does_not_say_where_the_folder_lies(folder: Path) -> None:
    with SiteServer(folder) as server:
        (folder / "evitseg" / "index.js").unlink()
        status, body, _ = ask(server, "evitseg/index.js")
        assert (status, body) == (500, b"evitseg/index.js: cannot be read (No such file or directory).")


def test_an_address_of_another_machine_is_refused(folder: Path) -> None:
    with pytest.raises(FileError, match=r"^203\.0\.113\.9 is no address of this machine; choose .* --address\.$"):
        SiteServer(folder, address="203.0.113.9")


def test_browsers_leave_out_the_usual_port(folder: Path) -> None:
    try:
        server = SiteServer(folder, 80)
    except FileError:
        pytest.skip("port 80 cannot be used here")
    with server:
        assert [ask(server, "", host)[0] for host in ("127.0.0.1", "127.0.0.1:80", "127.0.0.1:81")] == [200, 200, 403]
    with SiteServer(folder) as server:
        assert ask(server, "", "127.0.0.1")[0] == 403


def test_a_folder_without_a_page_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileError, match=r"has no index\.html; `evitseg export MODEL --to web"):
        SiteServer(tmp_path)


def test_https_has_the_printed_certificate_and_a_silent_client_keeps_nobody_waiting(folder: Path) -> None:
    needs("cryptography")
    certificate = make_certificate("127.0.0.1")
    with SiteServer(folder, certificate=certificate.context) as server:
        assert server.url.startswith("https://127.0.0.1:")
        with socket.create_connection(("127.0.0.1", server.port)):  # says nothing
            trusting = ssl.create_default_context()
            trusting.check_hostname, trusting.verify_mode = False, ssl.CERT_NONE
            connection = http.client.HTTPSConnection("127.0.0.1", server.port, timeout=30, context=trusting)
            connection.request("GET", urlsplit(server.url).path)
            assert connection.getresponse().read() == (folder / "index.html").read_bytes()
            assert connection.sock is not None
            shown = connection.sock.getpeercert(binary_form=True)
            connection.close()
        assert isinstance(shown, bytes)
        assert hashlib.sha256(shown).hexdigest().upper() == certificate.fingerprint.replace(":", "")
        # A browser that distrusts it hangs up, which is no error of the server.
        with pytest.raises(ssl.SSLCertVerificationError):
            http.client.HTTPSConnection("127.0.0.1", server.port, timeout=30).request("GET", "/")


def test_every_run_has_a_certificate_of_its_own() -> None:
    needs("cryptography")
    assert make_certificate("10.0.0.1").fingerprint != make_certificate("10.0.0.1").fingerprint


@pytest.mark.parametrize(
    ("address", "told"),
    [("192.168.1.20", None), ("127.0.0.1", "is on no network"), ("203.0.114.7", "--address 203.0.114.7")],
)
def test_the_address_on_the_network_is_found_unless_it_is_public(
    address: str, told: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Probe:
        def __init__(self, *arguments: object) -> None: ...

        def __enter__(self) -> Probe:
            return self

        def __exit__(self, *error: object) -> None: ...

        def connect(self, target: tuple[str, int]) -> None:
            assert not ipaddress.ip_address(target[0]).is_global

        def getsockname(self) -> tuple[str, int]:
            return address, 1

    monkeypatch.setattr("socket.socket", Probe)
    if told is None:
        assert own_address() == address
    else:
        with pytest.raises(ConfigError, match=told):
            own_address()
