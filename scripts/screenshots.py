"""Take the screenshots of docs/how-to/web.md into docs/images: the page of `evitseg web` on three screens.

pip install -e '.[dev]'; apt install chromium
python scripts/screenshots.py
"""

from __future__ import annotations

import io
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from PIL import Image
from playwright.sync_api import sync_playwright

import evitseg
from evitseg.runtime.native import NativeEngine
from evitseg.web.page_files import write_page
from evitseg.web.site_server import SiteServer

if TYPE_CHECKING:
    from playwright.sync_api import Browser

IMAGES = Path(__file__).parents[1] / "docs" / "images"
CHROMIUM = "/usr/bin/chromium"
QUALITY = 78
HAS_MASK = "window.evitseg && evitseg.source?.name === 'example.jpg' && evitseg.stage.result !== null"


@dataclass(frozen=True)
class Screen:
    """A screen, and what is done on the page before it is photographed.

    Attributes:
        width, height: in CSS pixels.
        scale: pixels of the file per CSS pixel.
        actions: statements of JavaScript.
    """

    name: str
    width: int
    height: int
    scale: float
    scheme: Literal["light", "dark"]
    actions: str = ""


COMPARE = "const split = document.getElementById('split'); split.value = 42; split.dispatchEvent(new Event('input'));"
POINT = """const { left, top, width, height } = evitseg.stage.frame.getBoundingClientRect();
const at = { clientX: left + 0.5 * width, clientY: top + 0.8 * height, bubbles: true };
document.getElementById('stage').dispatchEvent(new PointerEvent('pointermove', at));"""
SCREENS = [
    Screen("web", 1366, 768, 0.8, "light", COMPARE),
    Screen("web-phone", 360, 740, 1.5, "light", POINT),
    Screen("web-large", 2560, 1440, 0.5, "dark", POINT),
]


def photograph(browser: Browser, address: str, screen: Screen) -> Image.Image:
    """The page as it is seen on a screen."""
    page = browser.new_page(
        viewport={"width": screen.width, "height": screen.height},
        color_scheme=screen.scheme,
        device_scale_factor=max(1, screen.scale),
    )
    page.goto(address)
    for again in (True, False):  # the first run of a network is the slowest
        while not page.evaluate(HAS_MASK):  # the page's policy forbids wait_for_function
            page.wait_for_timeout(50)
        if again:
            page.click("#example")
            page.evaluate("evitseg.stage.clear()")
    page.evaluate(f"() => {{ {screen.actions} }}")
    page.wait_for_timeout(200)
    with Image.open(io.BytesIO(page.screenshot())) as image:
        size = round(screen.width * screen.scale), round(screen.height * screen.scale)
        seen: Image.Image = image.convert("RGB").resize(size, Image.Resampling.LANCZOS)
    page.close()
    return seen


def main() -> None:
    engine = evitseg.load(engine="native", precision="float32").engine
    assert isinstance(engine, NativeEngine)
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        site = Path(folder, "site")
        write_page(site, engine.manifest, engine.program)
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        with SiteServer(site) as server:
            for screen in SCREENS:
                path = IMAGES / f"{screen.name}.jpg"
                photograph(browser, server.url, screen).save(path, quality=QUALITY, optimize=True)
                print(f"{path.name}: {path.stat().st_size / 1000:.0f} KB")
        browser.close()


if __name__ == "__main__":
    main()
