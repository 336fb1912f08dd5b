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
from tests.browsing import started_browser
from tests.web.pages import SIZE, write_y4m

if TYPE_CHECKING:
    from playwright.sync_api import Browser

    from evitseg.runtime.segmenter import Prediction


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the bundled model's page."""
    engine = evitseg.load(engine="native", precision="float32").engine
    assert isinstance(engine, NativeEngine)
    folder = tmp_path_factory.mktemp("site") / "site"
    write_page(folder, engine.manifest, engine.program)
    return folder


@pytest.fixture(scope="module")
def street(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small photograph, without JPEG's losses, so that all decoders agree."""
    path = tmp_path_factory.mktemp("image") / "street.png"
    Image.open(EXAMPLE_IMAGE).resize((480, 270)).save(path)
    return path


@pytest.fixture(scope="module")
def expected(street: Path) -> Prediction:
    return evitseg.load(precision="float32")(street)


@pytest.fixture(scope="module")
def server(site: Path) -> Iterator[SiteServer]:
    with SiteServer(site) as server:
        yield server


@pytest.fixture(scope="module")
def frames() -> list[Image.Image]:
    """A photograph that moves a little."""
    image = Image.open(EXAMPLE_IMAGE).resize((SIZE[0] + 16, SIZE[1] + 16))
    return [image.crop((i, i, i + SIZE[0], i + SIZE[1])) for i in (*range(0, 16, 2), *range(16, 0, -2))]


@pytest.fixture(scope="module")
def browser(frames: list[Image.Image], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    """A browser whose camera shows a file."""
    path = tmp_path_factory.mktemp("camera") / "camera.y4m"
    write_y4m(path, frames)
    with started_browser(
        [
            "--use-fake-device-for-media-stream",
            f"--use-file-for-fake-video-capture={path}",
        ]
    ) as browser:
        yield browser
