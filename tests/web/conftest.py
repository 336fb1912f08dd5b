from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from PIL import Image

import evitseg
from evitseg.bundled import EXAMPLE_IMAGE
from evitseg.runtime.native import NativeEngine
from evitseg.web.page_files import write_page
from evitseg.web.site_server import SiteServer
from tests.browsing import started_browser, until
from tests.web.pages import camera_arguments, has_mask, moving_photograph, restore, shown, without_problems, write_y4m

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

    from evitseg.runtime.segmenter import Prediction


@pytest.fixture(scope="package")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the bundled model's page."""
    engine = evitseg.load(engine="native", precision="float32").engine
    assert isinstance(engine, NativeEngine)
    folder = tmp_path_factory.mktemp("site") / "site"
    write_page(folder, engine.manifest, engine.program)
    return folder


@pytest.fixture(scope="package")
def street(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small photograph, without JPEG's losses, so that all decoders agree."""
    path = tmp_path_factory.mktemp("image") / "street.png"
    Image.open(EXAMPLE_IMAGE).resize((480, 270)).save(path)
    return path


@pytest.fixture(scope="package")
def expected(street: Path) -> Prediction:
    return evitseg.load(precision="float32")(street)


@pytest.fixture(scope="package")
def server(site: Path) -> Iterator[SiteServer]:
    with SiteServer(site) as server:
        yield server


@pytest.fixture(scope="package")
def frames() -> list[Image.Image]:
    """A photograph that moves a little."""
    return moving_photograph()


@pytest.fixture(scope="package")
def browser(frames: list[Image.Image], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    """A browser whose camera shows a file."""
    path = tmp_path_factory.mktemp("camera") / "camera.y4m"
    write_y4m(path, frames)
    with started_browser(camera_arguments(path)) as browser:
        yield browser


@pytest.fixture(scope="package")
def open_page(browser: Browser, server: SiteServer) -> Iterator[Page]:
    with shown(browser, server.url, permissions=["camera"]) as page:
        until(page, lambda: has_mask(page, "example.jpg"))
        yield page


@pytest.fixture
def page(open_page: Page, server: SiteServer) -> Iterator[Page]:
    """A page that shows an image, with its controls as they are when it opens. Tests share it."""
    with without_problems(open_page, server.url):
        yield open_page
        restore(open_page)
