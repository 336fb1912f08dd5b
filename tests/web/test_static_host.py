"""The page on a plain web server, which sends no headers for threads, and without a network."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from PIL import Image

from evitseg.runtime.evit_file import read_evit
from evitseg.web.page_files import MODEL, set_page_manifest
from tests.browsing import until
from tests.optional import needs
from tests.web.pages import has_mask

needs("playwright")

if TYPE_CHECKING:
    from playwright.sync_api import Browser


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *arguments: Any) -> None:  # noqa: A002  # the standard library's name
        """Write nothing."""


@contextmanager
def plain_server(folder: Path) -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder)))
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}/"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture
def folder(site: Path, street: Path, tmp_path: Path) -> Path:
    """A copy of the page, with a first image that is segmented in no time."""
    shutil.copytree(site, tmp_path / "site")
    with Image.open(street) as image:
        image.resize((64, 36)).save(tmp_path / "site" / "example.jpg")
    return tmp_path / "site"


def test_the_first_visit_reloads_once_for_threads_and_later_ones_need_no_network(
    browser: Browser, folder: Path
) -> None:
    script = folder / "service-worker.js"
    shorter = script.read_text().replace('";\nconst FILES = ', '",FILES=').replace("VERSION = ", "VERSION=", 1)
    script.write_text(shorter)  # as some hosts do
    assert 'const VERSION="' in shorter
    page = browser.new_page()
    loads: list[str] = []
    page.on("domcontentloaded", lambda opened: loads.append(opened.url))
    with plain_server(folder) as address:
        page.goto(address)
        until(page, lambda: len(loads) == 2)
        until(page, lambda: has_mask(page, "example.jpg"))
        assert page.inner_text("#isolated") == "yes (threads)"
        assert len(loads) == 2
    # The server is gone.
    page.reload()
    until(page, lambda: has_mask(page, "example.jpg"))
    assert page.inner_text("#isolated") == "yes (threads)"
    assert len(loads) == 3
    page.close()


def test_a_new_export_to_the_same_folder_and_another_page_at_the_address_are_seen_at_once(
    browser: Browser, folder: Path
) -> None:
    page = browser.new_page()
    with plain_server(folder) as address:
        page.goto(address)
        until(page, lambda: page.inner_text("#isolated") == "yes (threads)")
        assert page.inner_text("h1") == "b0-camvid"
        set_page_manifest(folder, replace(read_evit(folder / MODEL)[0], name="another"))
        page.goto(address)
        until(page, lambda: page.inner_text("#isolated") == "yes (threads)")
        assert page.inner_text("h1") == "another"
        shutil.rmtree(folder)
        folder.mkdir()
        (folder / "index.html").write_text("<!doctype html><h1>another program</h1>")
        page.goto(address)
        assert page.inner_text("h1") == "another program"
        assert not page.evaluate("crossOriginIsolated")
        assert page.evaluate("navigator.serviceWorker.getRegistration().then(Boolean)") is False
    page.close()


def test_without_a_service_worker_the_page_works_with_one_thread_and_says_so(browser: Browser, folder: Path) -> None:
    (folder / "service-worker.js").unlink()
    page = browser.new_page()
    with plain_server(folder) as address:
        page.goto(address)
        until(page, lambda: has_mask(page, "example.jpg"))
        assert page.inner_text("#isolated") == "no (one thread)"
        assert page.inner_text("#threads").startswith("1 of ")
    page.close()


def test_a_service_worker_that_cannot_keep_all_files_does_not_stop_the_page(browser: Browser, folder: Path) -> None:
    (folder / "icon.svg").unlink()
    page = browser.new_page()
    with plain_server(folder) as address:
        page.goto(address)
        until(page, lambda: has_mask(page, "example.jpg"))
        assert page.inner_text("#isolated") == "no (one thread)"
    page.close()
