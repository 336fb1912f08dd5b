"""The camera and video files on the page, in a real browser with a camera that shows a file."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from PIL import Image

import evitseg
from evitseg.web.site_server import SiteServer
from tests.browsing import started_browser, until
from tests.optional import needs
from tests.web.pages import SIZE, camera_state, has_mask, hold_track, legend_of, mask_of, masks, shown, start_camera

needs("playwright")

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page


def set_hidden(page: Page, is_hidden: bool) -> None:
    page.evaluate(
        f"Object.defineProperty(document, 'hidden', {{ configurable: true, value: {str(is_hidden).lower()} }});"
        "document.dispatchEvent(new Event('visibilitychange'))"
    )


def test_the_camera_is_segmented_until_it_is_stopped(page: Page) -> None:
    start_camera(page)
    hold_track(page)
    assert page.inner_text("#status") == "The camera is being segmented."
    assert page.get_attribute("#camera", "aria-pressed") == "true"
    assert page.inner_text("#camera") == "Stop camera"
    until(page, lambda: page.inner_text("#rate") != "–")
    assert float(page.inner_text("#rate")) > 0
    assert page.inner_text("#age").endswith("ms")
    assert page.inner_text("#input") == "320 × 192"
    until(page, lambda: "%" in legend_of(page)["road"])
    assert float(legend_of(page)["road"].split()[0]) > 20
    # The phone is turned.
    turn = """(is) => {
      for (const [name, value] of [["videoWidth", 192], ["videoHeight", 320]]) {
        if (is) Object.defineProperty(video, name, { value, configurable: true });
        else delete video[name];
      }
      video.dispatchEvent(new Event("resize"));
      const { width, height } = evitseg.stage.frame.getBoundingClientRect();
      return width / height;
    }"""
    assert [page.evaluate(turn, each) for each in (True, False)] == pytest.approx([192 / 320, 320 / 192], rel=0.02)
    page.fill("#opacity", "40")
    assert camera_state(page) == "live"
    # The last frame stays, as an image of its own.
    page.click("#camera")
    until(page, lambda: "The camera is off. The last image is shown." in page.inner_text("#status"))
    assert camera_state(page) == "ended"
    assert page.evaluate("document.getElementById('video').srcObject") is None
    assert page.inner_text("#camera") == "Camera"
    assert has_mask(page, "camera")
    kept = page.evaluate("evitseg.source.file.arrayBuffer().then((content) => [...new Uint8Array(content)])")
    expected = evitseg.load(size=192, precision="float32")(bytes(kept)).mask
    assert expected.shape == (192, 320)
    assert (mask_of(page) == expected).mean() > 0.9999
    number = masks(page)
    page.wait_for_timeout(200)
    assert masks(page) == number


def test_the_camera_is_released_while_the_page_is_hidden(page: Page) -> None:
    start_camera(page)
    hold_track(page)
    assert camera_state(page) == "live"
    set_hidden(page, True)
    assert camera_state(page) == "ended"
    assert page.inner_text("#status") == "The camera is off while this page is hidden."
    # Once more in a browser that has the callback for frames, and never calls it.
    page.evaluate("void (video.requestVideoFrameCallback = () => 0)")
    set_hidden(page, False)
    number = masks(page)
    until(page, lambda: masks(page) > number + 2)
    page.evaluate("delete video.requestVideoFrameCallback")
    page.click("#example")
    until(page, lambda: has_mask(page, "example.jpg"))
    assert not page.evaluate("evitseg.camera.isOpen")


def test_the_automatic_size_shrinks_until_masks_are_quick_enough(page: Page) -> None:
    found = page.evaluate(
        """async () => {
          const { AutomaticSize } = await import("./live.js");
          const sizes = [];
          for (const perPixel of [1e-3, 1e-5]) {
            const automatic = new AutomaticSize(720);
            for (let i = 0; i < 100; i++) automatic.took(perPixel * automatic.size ** 2);
            sizes.push(automatic.size);
            for (let i = 0; i < 100; i++) automatic.took(1e-5 * automatic.size ** 2);
            sizes.push(automatic.size);
          }
          return sizes;
        }"""
    )
    assert found == [256, 720, 720, 720]


def test_no_frame_is_left_open_and_memory_stays_flat(page: Page) -> None:
    page.evaluate(
        """() => {
          window.bitmaps = [];
          window.create = createImageBitmap;
          window.createImageBitmap = async (...given) => {
            const bitmap = await create(...given);
            bitmaps.push(bitmap);
            return bitmap;
          };
        }"""
    )
    start_camera(page)
    first = masks(page)

    devtools = page.context.new_cdp_session(page)

    def memory() -> float:
        devtools.send("HeapProfiler.collectGarbage")
        return float(sum(devtools.send("Runtime.getHeapUsage")[name] for name in ("usedSize", "backingStorageSize")))

    until(page, lambda: masks(page) > first + 10)
    before = memory()
    until(page, lambda: masks(page) > first + 40)
    grown = memory() - before
    assert grown < 300_000  # a mask has 61,000 bytes
    page.click("#example")
    until(page, lambda: has_mask(page, "example.jpg"))
    # A bitmap that was closed or given away has no size.
    assert page.evaluate("bitmaps.map(({ width }) => width)") == [0] * page.evaluate("bitmaps.length")
    page.evaluate("void (window.createImageBitmap = create)")


def test_one_frame_is_in_flight_and_the_newest_comes_next(page: Page) -> None:
    page.evaluate(
        """() => {
          window.flights = { now: 0, most: 0, all: 0 };
          const { model } = evitseg;
          const segment = model.segment.bind(model);
          model.segment = async (...given) => {
            flights.most = Math.max(flights.most, ++flights.now);
            flights.all++;
            await new Promise((resolve) => setTimeout(resolve, 100));
            return segment(...given).finally(() => { flights.now--; });
          };
        }"""
    )
    start_camera(page)
    until(page, lambda: page.evaluate("flights.all") > 5)
    assert page.evaluate("flights.most") == 1
    # Frames that came meanwhile are not made up for: the mask is about as old as it takes.
    until(page, lambda: page.inner_text("#age") != "–")
    assert float(page.inner_text("#age").split()[0]) < 2 * 100 + float(page.inner_text("#whole").split()[0]) * 3
    page.evaluate("delete evitseg.model.segment")


def test_a_camera_that_may_not_be_used_is_a_sentence(page: Page) -> None:
    shown_before = page.evaluate("evitseg.source.name")
    page.context.clear_permissions()
    try:
        page.click("#camera")
        until(page, lambda: page.is_visible("#problem"))
    finally:
        page.context.grant_permissions(["camera"])
    assert page.inner_text("#problem").startswith("The camera may not be used. Allow it for this page")
    assert has_mask(page, shown_before)
    assert page.is_enabled("#camera")


def test_the_camera_can_be_switched(browser: Browser, server: SiteServer) -> None:
    with (
        started_browser(["--use-fake-device-for-media-stream=device-count=2,fps=20"], browser) as other,
        shown(other, server.url, permissions=["camera"]) as page,
    ):
        until(page, lambda: has_mask(page, "example.jpg"))
        start_camera(page)
        hold_track(page)
        first = page.evaluate("evitseg.camera.device")
        assert camera_state(page) == "live"
        page.click("#switch")
        until(page, lambda: page.evaluate("evitseg.camera.device") != first)
        assert camera_state(page) == "ended"
        number = masks(page)
        until(page, lambda: masks(page) > number + 2)
        page.click("#switch")
        until(page, lambda: page.evaluate("evitseg.camera.device") == first)


def test_a_video_is_segmented_and_can_be_paused_and_sought(
    page: Page, frames: list[Image.Image], tmp_path: Path
) -> None:
    needs("av")
    import av

    with av.open(str(tmp_path / "drive.webm"), "w") as container:
        stream = container.add_stream("libvpx", rate=10)
        stream.width, stream.height = SIZE
        for image in frames * 8:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.asarray(image), format="rgb24")))
        container.mux(stream.encode())
    page.select_option("#size", "192")
    page.set_input_files("#file", tmp_path / "drive.webm")
    until(page, lambda: page.evaluate("evitseg.source.kind") == "video")
    first = masks(page)
    until(page, lambda: masks(page) > first + 2)
    assert page.inner_text("#status") == "drive.webm is being segmented."
    assert mask_of(page).shape == (192, 320)
    until(page, lambda: page.inner_text("#time").endswith("/ 0:12") and not page.inner_text("#time").startswith("0:00"))
    page.click("#play")
    until(page, lambda: page.inner_text("#play") == "Play")
    # The frame that stays gets its mask, and no more follow.
    page.wait_for_timeout(500)
    number = masks(page)
    page.wait_for_timeout(200)
    assert masks(page) == number
    page.fill("#position", "0.75")
    until(page, lambda: masks(page) > number)
    until(page, lambda: page.inner_text("#time") == "0:09 / 0:12")
    assert page.get_attribute("#position", "aria-valuetext") == "0:09 / 0:12"
    page.focus("#stage")
    page.keyboard.press(" ")
    until(page, lambda: page.inner_text("#play") == "Pause")
    page.click("#example")
    until(page, lambda: has_mask(page, "example.jpg"))
    assert not page.is_visible("#play")
