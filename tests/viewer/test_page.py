"""The page in a real browser."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

import evitseg
from evitseg.labels import load_labels
from evitseg.viewer.local_server import LocalServer
from evitseg.viewer.view import View
from evitseg.viewer.view_request import ViewRequest
from tests.browsing import pixels_of, started_browser, until
from tests.optional import needs

needs("playwright")

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

ROAD, SKY = (load_labels("camvid").names.index(name) for name in ("road", "sky"))


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with started_browser() as browser:
        yield browser


@contextmanager
def shown(browser: Browser, image: Path, cache: Path, **settings: Any) -> Iterator[tuple[Page, View]]:
    """The page of an image, which must not raise errors."""
    problems: list[str] = []
    with View(ViewRequest(image, cache=cache, **settings)) as view, LocalServer(view) as server:
        page = browser.new_page(viewport={"width": 1000, "height": 600}, accept_downloads=True)
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on("console", lambda message: problems.append(message.text) if message.type == "error" else None)
        page.on("request", lambda request: problems.append(request.url) if not own(request.url, server) else None)
        try:
            page.goto(server.url)
            yield page, view
        finally:
            page.close()
    assert problems == []


def own(address: str, server: LocalServer) -> bool:
    return address.startswith((server.url, "blob:", "data:"))


def is_shown(page: Page, place: str, text: str) -> bool:
    return page.inner_text(place) == text


def screen_place(page: Page, x: float, y: float) -> tuple[int, int]:
    """Where a pixel of the image is on the screen."""
    script = (
        "([x, y]) => { const { viewer } = evitseg; const p = viewer.world.getItemAt(0)"
        ".imageToViewerElementCoordinates(new OpenSeadragon.Point(x, y)); return [p.x, p.y]; }"
    )
    left, top = page.evaluate(script, [x, y])
    return round(left), round(top)


def legend_row(page: Page, name: str) -> Any:
    return page.locator("#legend tr").filter(has_text=name)


def test_an_image_is_shown_with_its_mask_legend_and_the_class_under_the_pointer(
    browser: Browser, street: Path, tmp_path: Path
) -> None:
    expected = evitseg.load()(street)
    with shown(browser, street, tmp_path) as (page, _):
        until(page, lambda: page.inner_text("#status") == "The mask is exact.")
        until(page, lambda: page.evaluate("[...evitseg.layer.tiles.values()].some((tile) => tile.isExact)"))
        until(page, lambda: "%" in legend_row(page, "road").locator("td").nth(1).inner_text())
        assert page.title() == "street.png – evitseg view"
        assert "480 × 270 pixels" in page.inner_text("#details")
        # Fractions of the view, which shows the whole image, and of the image.
        road = f"{100 * expected.fractions()['road']:.1f} %"
        in_view, in_image = legend_row(page, "road").locator("td").all_inner_texts()[1:]
        assert in_image == road
        assert abs(float(in_view.split()[0]) - float(road.split()[0])) < 1
        assert not page.is_visible("#badge")
        # The mouse finds each class where it is.
        for index in (ROAD, SKY):
            y, x = (int(at.mean()) for at in np.nonzero(expected.mask == index))
            found = int(expected.mask[y, x])
            page.mouse.move(*screen_place(page, x + 0.5, y + 0.5))
            text = f"{expected.labels.names[found]} · x {x}, y {y}"
            until(page, partial(is_shown, page, "#pointer", text))


def test_opacity_and_classes_change_what_is_seen(browser: Browser, street: Path, tmp_path: Path) -> None:
    expected = evitseg.load()(street)
    with shown(browser, street, tmp_path) as (page, _):
        until(page, lambda: page.inner_text("#status") == "The mask is exact.")
        y, x = (int(at.mean()) for at in np.nonzero(expected.mask == ROAD))
        assert expected.mask[y, x] == ROAD
        left, top = screen_place(page, x + 0.5, y + 0.5)
        color, photo = np.array(expected.labels.classes[ROAD].color), expected.image[y, x].astype(int)

        def is_near(wanted: NDArray[Any]) -> bool:
            return bool(np.abs(pixels_of(page)[top, left].astype(int) - wanted).max() <= 25)

        page.evaluate("evitseg.viewer.navigator.element.style.display = 'none'")
        until(page, lambda: is_near(0.55 * color + 0.45 * photo))
        page.fill("#opacity", "100")
        until(page, lambda: is_near(color))
        assert page.inner_text("#opacity-value") == "100 %"
        legend_row(page, "road").locator("input").uncheck()
        until(page, lambda: is_near(photo))
        legend_row(page, "road").locator("input").check()
        until(page, lambda: is_near(color))
        page.click("#none")
        until(page, lambda: is_near(photo))
        page.click("#all")
        until(page, lambda: is_near(color))
        page.keyboard.press("m")
        until(page, lambda: is_near(photo))
        page.keyboard.press("m")
        until(page, lambda: is_near(color))


def test_keys_move_and_zoom_down_to_single_pixels(browser: Browser, street: Path, tmp_path: Path) -> None:
    with shown(browser, street, tmp_path) as (page, _):
        until(page, lambda: page.inner_text("#status") == "The mask is exact.")

        def zoom() -> float:
            script = "evitseg.viewer.world.getItemAt(0).viewportToImageZoom(evitseg.viewer.viewport.getZoom())"
            return float(page.evaluate(script))

        whole = zoom()
        page.keyboard.press("1")
        until(page, lambda: abs(zoom() - 1) < 0.01)
        for _ in range(12):
            page.keyboard.press("+")
        until(page, lambda: zoom() > 20)
        page.wait_for_timeout(800)
        # Squares of one colour: the photograph's own pixels, not smoothed.
        page.keyboard.press("m")
        until(page, lambda: len(np.unique(pixels_of(page)[200:400, 200:500].reshape(-1, 3), axis=0)) < 400)
        page.keyboard.press("0")
        until(page, lambda: abs(zoom() - whole) < 0.01)


def test_the_view_and_its_mask_can_be_saved(browser: Browser, street: Path, tmp_path: Path) -> None:
    expected = evitseg.load()(street)
    with shown(browser, street, tmp_path) as (page, _):
        until(page, lambda: page.inner_text("#status") == "The mask is exact.")
        until(page, lambda: "%" in legend_row(page, "road").locator("td").nth(1).inner_text())
        with page.expect_download() as download:
            page.click("#save-view")
        assert download.value.suggested_filename == "street_view.png"
        view = np.asarray(Image.open(download.value.path()).convert("RGB"))
        assert view.shape[0] > 600  # a legend below
        road = np.array(expected.labels.classes[ROAD].color)
        assert (np.abs(view[600:].astype(int) - road).max(-1) == 0).sum() > 50  # its square in the legend
        with page.expect_download() as download:
            page.click("#save-mask")
        assert download.value.suggested_filename == "street_x0_y0_1to1_mask.png"
        np.testing.assert_array_equal(np.asarray(Image.open(download.value.path())), expected.mask)


def test_a_preview_is_marked_and_replaced(
    browser: Browser, photograph: NDArray[np.uint8], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    needs("rasterio")
    from evitseg.viewer import mask_sources

    path = tmp_path / "mosaic.png"
    Image.fromarray(np.tile(photograph.repeat(4, 0).repeat(4, 1), (2, 2, 1))[:2100, :2200]).save(path)
    compute = mask_sources.ExactMask.compute
    is_seen = threading.Event()

    def late(*arguments: Any) -> None:
        is_seen.wait(20)
        compute(*arguments)

    monkeypatch.setattr(mask_sources.ExactMask, "compute", late)
    with shown(browser, path, tmp_path / "cache", size="native") as (page, view):
        until(page, lambda: page.is_visible("#badge"))
        assert page.inner_text("#badge") == "Preview: the exact mask follows"
        until(page, lambda: "≈" in legend_row(page, "road").inner_text())
        page.mouse.move(300, 300)
        until(page, lambda: "(preview)" in page.inner_text("#pointer"))
        is_seen.set()
        until(page, lambda: page.inner_text("#status") == "The mask is exact.")
        until(page, lambda: not page.is_visible("#badge"))
        until(page, lambda: "≈" not in legend_row(page, "road").inner_text())
        # What the page holds is what the server has.
        some = "[...indices.filter((_, i) => i % 97 === 0)]"
        script = f"[...evitseg.layer.tiles].map(([address, {{ isExact, indices }}]) => [address, isExact, {some}])"
        for address, is_exact, indices in page.evaluate(script):
            level, row, column = map(int, address.split("/")[1:])
            if is_exact:
                mask, _ = view.mask_tile(level, row, column)
                assert mask is not None
                assert indices == mask.ravel()[::97].tolist()


def test_an_error_is_shown_as_a_sentence(browser: Browser, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("no image")
    with View(ViewRequest(tmp_path / "a.txt", cache=tmp_path / "cache")) as view, LocalServer(view) as server:
        page = browser.new_page()
        page.goto(server.url)
        until(page, lambda: page.is_visible("#problem"))
        assert "not in a supported image format" in page.inner_text("#problem")
        page.close()
