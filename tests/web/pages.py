"""The page in a browser, and what is on it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from evitseg.bundled import EXAMPLE_IMAGE
from tests.browsing import until

if TYPE_CHECKING:
    from playwright.sync_api import Browser, ConsoleMessage, Page, Request, ViewportSize

    from evitseg.runtime.segmenter import Prediction

SIZE = (320, 192)
VIEWPORT: ViewportSize = {"width": 1000, "height": 600}


def moving_photograph() -> list[Image.Image]:
    """Frames of a video."""
    image = Image.open(EXAMPLE_IMAGE).resize((SIZE[0] + 16, SIZE[1] + 16))
    return [image.crop((i, i, i + SIZE[0], i + SIZE[1])) for i in (*range(0, 16, 2), *range(16, 0, -2))]


def write_y4m(path: Path, images: list[Image.Image]) -> None:
    """An uncompressed video, which Chromium shows as its camera."""
    with path.open("wb") as file:
        file.write(f"YUV4MPEG2 W{SIZE[0]} H{SIZE[1]} F30:1 Ip A1:1 C420\n".encode())
        for image in images:
            full = np.asarray(image.convert("YCbCr"), np.float32)
            planes = (128 + (full - 128) * (219 / 255, 224 / 255, 224 / 255) - (2, 0, 0)).round().astype(np.uint8)
            file.write(b"FRAME\n" + planes[..., 0].tobytes())
            for plane in (planes[..., 1], planes[..., 2]):
                file.write(plane[::2, ::2].tobytes())


def camera_arguments(path: Path) -> list[str]:
    """Chromium's arguments for a camera that shows such a video."""
    return ["--use-fake-device-for-media-stream", f"--use-file-for-fake-video-capture={path}"]


@contextmanager
def shown(browser: Browser, address: str, **settings: Any) -> Iterator[Page]:
    """A page of its own at an address, without problems."""
    page = browser.new_page(**{"viewport": VIEWPORT} | settings)
    try:
        with without_problems(page, address):
            page.goto(address)
            yield page
    finally:
        page.close()


@contextmanager
def without_problems(page: Page, address: str) -> Iterator[None]:
    """A page that must not raise errors in the block, nor ask for anything elsewhere."""
    problems: list[str] = []

    def failed(error: object) -> None:
        problems.append(str(error))

    def told(message: ConsoleMessage) -> None:
        if message.type == "error":
            problems.append(f"{message.text} ({message.location['url']})")

    def asked(request: Request) -> None:
        if not request.url.startswith((address, "blob:")):
            problems.append(request.url)

    page.on("pageerror", failed)
    page.on("console", told)
    page.on("request", asked)
    try:
        yield
    finally:
        page.remove_listener("pageerror", failed)
        page.remove_listener("console", told)
        page.remove_listener("request", asked)
    assert not problems, problems


def restore(page: Page) -> None:
    """Set the controls of a page as they are when it opens. What it shows stays, but a camera or video ends."""
    page.set_viewport_size(VIEWPORT)
    page.emulate_media(color_scheme="light")
    page.evaluate(
        """() => {
          const $ = (id) => document.getElementById(id);
          const set = (id, value, kind) => {
            if ($(id).value === value) return;
            $(id).value = value;
            $(id).dispatchEvent(new Event(kind));
          };
          set("opacity", "55", "input");
          set("size", "", "change");
          if ($("compare").checked) $("compare").click();
          $("all").click();
          document.querySelector("details").open = false;
          document.activeElement.blur();
        }"""
    )
    page.mouse.move(VIEWPORT["width"] - 1, VIEWPORT["height"] - 1)
    if page.evaluate("evitseg.source?.kind") != "image":
        page.click("#example")
        until(page, lambda: has_mask(page, "example.jpg"))


def has_mask(page: Page, name: str) -> bool:
    """Whether an image is shown with its mask."""
    script = "(name) => evitseg?.source?.name === name && evitseg.stage.result !== null"
    return bool(page.evaluate(f"window.evitseg && ({script})({json.dumps(name)})"))


def show(page: Page, path: Path) -> None:
    page.evaluate("evitseg.stage.clear()")  # the same image may be there
    page.set_input_files("#file", path)
    until(page, lambda: has_mask(page, path.name))


def mask_of(page: Page) -> NDArray[np.uint8]:
    script = "[new TextDecoder().decode(evitseg.stage.result.mask), evitseg.stage.result.width]"
    mask, width = page.evaluate(script)
    return np.frombuffer(mask.encode(), np.uint8).reshape(-1, width)


def legend_of(page: Page) -> dict[str, str]:
    rows = page.locator("#legend tr")
    return {
        row.locator("th").inner_text().strip(): row.locator("td").inner_text().strip()
        for row in (rows.nth(i) for i in range(rows.count()))
    }


def row_of(page: Page, name: str) -> Any:
    return page.locator("#legend tr").filter(has_text=name)


def screen_place(page: Page, x: float, y: float) -> tuple[int, int]:
    """Where a pixel of the image is on the screen."""
    script = """([x, y]) => {
      const { frame, result } = evitseg.stage;
      const box = frame.getBoundingClientRect();
      return [box.left + x * box.width / result.width, box.top + y * box.height / result.height];
    }"""
    left, top = page.evaluate(script, [x, y])
    return round(left), round(top)


def middle_of(expected: Prediction, index: int) -> tuple[int, int]:
    """A pixel of a class, far from its border."""
    mask = expected.mask
    inside = [
        (int(y), int(x))
        for y, x in zip(*np.nonzero(mask == index), strict=True)
        if 8 <= y < mask.shape[0] - 8
        and 8 <= x < mask.shape[1] - 8
        and (mask[y - 8 : y + 9, x - 8 : x + 9] == index).all()
    ]
    return inside[len(inside) // 2]


def saved(page: Page, button: str) -> tuple[str, bytes]:
    with page.expect_download() as download:
        page.click(button)
    path = download.value.path()
    return download.value.suggested_filename, Path(path).read_bytes()


def masks(page: Page) -> Any:
    """Number of masks that the page has drawn since it was first asked."""
    script = """(() => {
      const { stage } = evitseg;
      if (stage.drawn === undefined) {
        stage.drawn = 0;
        const { draw } = stage;
        stage.draw = (result) => { stage.drawn++; draw.call(stage, result); };
      }
      return stage.drawn;
    })()"""
    return page.evaluate(script)


def start_camera(page: Page) -> None:
    page.select_option("#size", "192")
    page.click("#camera")
    until(page, lambda: page.evaluate("window.evitseg?.source?.kind") == "camera")
    first = masks(page)
    until(page, lambda: masks(page) > first + 2)


def hold_track(page: Page) -> None:
    """Remember the camera's track, for `camera_state`."""
    page.evaluate("window.track = evitseg.camera.stream.getVideoTracks()[0]")


def camera_state(page: Page) -> Any:
    return page.evaluate("track.readyState")
