"""The page of the service in a real browser: that of `evitseg web`, whose masks come from the service."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from PIL import Image

from tests.browsing import started_browser, until
from tests.optional import needs

needs("playwright", "starlette", "uvicorn", "prometheus_client", "python_multipart", "httpx2")

import evitseg
from evitseg.bundled import EXAMPLE_IMAGE
from evitseg.labels import load_labels
from evitseg.raster.png import mask_png
from evitseg.runtime.segmenter import Segmenter
from evitseg.serve.app import create_app
from evitseg.serve.exchange import AccessRules
from evitseg.serve.service import Service, ServiceLimits
from tests.serve.serving import gated, live, segmenter
from tests.web.pages import (
    camera_arguments,
    camera_state,
    has_mask,
    hold_track,
    legend_of,
    mask_of,
    masks,
    moving_photograph,
    restore,
    saved,
    show,
    shown,
    start_camera,
    without_problems,
    write_y4m,
)

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

SIZE = 192
"""Working size of the service, which is not the model's own."""
KEY = "the-only-key-of-the-service"


@contextmanager
def running(service: Service, *keys: str) -> Iterator[str]:
    """The address of a service that runs until the block ends."""
    with live(create_app(service, AccessRules(keys=keys)), service) as server:
        yield f"http://127.0.0.1:{server.port}/"


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    path = tmp_path_factory.mktemp("camera") / "camera.y4m"
    write_y4m(path, moving_photograph())
    with started_browser(camera_arguments(path)) as browser:
        yield browser


@pytest.fixture(scope="module")
def segment() -> Segmenter:
    return evitseg.load(size=SIZE, streams=2)


@pytest.fixture(scope="module")
def address(segment: Segmenter) -> Iterator[str]:
    with running(Service(segment, ServiceLimits(max_bytes=1_000_000))) as address:
        yield address


@pytest.fixture(scope="module")
def open_page(browser: Browser, address: str) -> Iterator[Page]:
    with shown(browser, address, permissions=["camera"]) as page:
        until(page, lambda: has_mask(page, "example.jpg"))
        yield page


@pytest.fixture
def page(open_page: Page, address: str) -> Iterator[Page]:
    with without_problems(open_page, address):
        yield open_page
        restore(open_page)


@pytest.fixture(scope="module")
def street(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("image") / "street.png"
    Image.open(EXAMPLE_IMAGE).resize((480, 270)).save(path)
    return path


def problem(page: Page) -> str:
    """The sentence about what went wrong, once there is one."""
    until(page, lambda: page.is_visible("#problem"))
    return page.inner_text("#problem-text")


def test_the_page_shows_the_masks_of_the_service_and_says_where_images_go(
    page: Page, address: str, street: Path, segment: Segmenter
) -> None:
    host = address.split("/")[2]
    assert page.inner_text("#privacy") == (
        f"Images and frames are sent to the service at {host}, which segments them and does not store them. "
        "They are sent nowhere else."
    )
    assert page.inner_text("h1") == segment.manifest.name
    show(page, street)
    expected = segment(street)
    np.testing.assert_array_equal(mask_of(page), expected.mask)
    wanted = {name: f"{100 * fraction:.1f} %" for name, fraction in expected.fractions().items() if fraction > 0.01}
    assert wanted.items() <= legend_of(page).items()
    assert "480 × 270 pixels" in page.inner_text("#status")
    assert page.inner_text("#input") == "352 × 192"
    assert page.inner_text("#size option >> nth=0") == f"Automatic (images: {SIZE})"
    assert segment.info.precision in page.inner_text("#engine")
    assert not page.is_visible("#isolated")
    assert not page.is_visible("#verification")
    assert page.get_attribute("text=Addresses of this service", "href") == "docs"
    page.select_option("#size", "128")
    until(page, lambda: page.inner_text("#input") == "224 × 128")


def test_the_mask_and_its_numbers_can_be_saved(page: Page, street: Path, segment: Segmenter) -> None:
    show(page, street)
    expected = segment(street)
    assert saved(page, "#save-mask") == ("street_mask.png", mask_png(expected.mask, expected.labels))
    assert saved(page, "#save-ids") == ("street_ids.png", mask_png(expected.mask, expected.labels, "gray"))
    about = json.loads(saved(page, "#save-json")[1])
    assert [each["pixels"] for each in about["classes"]] == np.bincount(
        expected.mask.ravel(), minlength=len(expected.labels.classes)
    ).tolist()
    assert {"decode", "network", "mask", "total"} < set(about["timing_ms"])
    assert about["device"] == {"instruction_set": None, "threads": segment.info.threads, "verified": None}
    assert Image.open(io.BytesIO(saved(page, "#save-overlay")[1])).width == 480


def test_an_image_that_only_the_service_can_read_is_shown(page: Page, street: Path, segment: Segmenter) -> None:
    tiff = street.with_suffix(".tif")  # the next test finds the image still shown
    Image.open(street).save(tiff)
    show(page, tiff)
    assert page.evaluate("document.getElementById('photo').naturalWidth") == 480
    np.testing.assert_array_equal(mask_of(page), segment(street).mask)


def test_frames_of_the_camera_go_to_the_service_one_at_a_time(page: Page, segment: Segmenter) -> None:
    page.evaluate(
        """() => {
          const [{ model }, ask] = [evitseg, fetch];
          const segment = model.segment.bind(model);
          window.flights = { now: 0, most: 0, sent: [], masks: [] };
          window.fetch = (path, settings) => {
            if (path.includes("size=native")) flights.sent.push(settings.body);
            return ask(path, settings);
          };
          model.segment = async (...given) => {
            flights.most = Math.max(flights.most, ++flights.now);
            const result = await segment(...given).finally(() => { flights.now--; });
            if (given[1].size === "native") flights.masks.push([...result.mask]);
            return result;
          };
          window.restoreFetch = () => {
            window.fetch = ask;
            delete model.segment;
          };
        }"""
    )
    start_camera(page)
    hold_track(page)
    page.evaluate("restoreFetch()")
    frame = page.evaluate("flights.sent[0].arrayBuffer().then((body) => [...new Uint8Array(body)])")
    image = Image.open(io.BytesIO(bytes(frame)))
    assert (image.format, image.size) == ("JPEG", (320, 192))
    expected = Segmenter(segment.engine, "native")(bytes(frame)).mask
    assert page.evaluate("flights.masks[0]") == expected.ravel().tolist()
    assert page.evaluate("flights.most") == 1
    assert page.inner_text("#input") == "320 × 192"
    assert page.inner_text("#age").endswith("ms")
    page.click("#camera")
    until(page, lambda: "The camera is off. The last image is shown." in page.inner_text("#status"))
    assert camera_state(page) == "ended"


def test_a_video_is_segmented(page: Page, tmp_path: Path) -> None:
    needs("av")
    import av

    with av.open(str(tmp_path / "drive.webm"), "w") as container:
        stream = container.add_stream("libvpx", rate=10)
        frames = moving_photograph()
        stream.width, stream.height = frames[0].size
        for image in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.asarray(image), format="rgb24")))
        container.mux(stream.encode())
    first = masks(page)
    page.select_option("#size", "128")
    page.set_input_files("#file", tmp_path / "drive.webm")
    until(page, lambda: page.evaluate("evitseg.source.kind") == "video" and masks(page) > first + 2)
    assert page.inner_text("#status") == "drive.webm is being segmented."
    assert mask_of(page).shape == (128, 224)


def test_a_mask_of_two_bytes_per_pixel_is_read(page: Page) -> None:
    rows = np.random.default_rng(0).integers(0, 1000, (40, 7)).astype(np.uint16)
    mask = np.repeat(rows, [1, 3] * 20, 0)
    script = """async (bytes) => {
      const { readPng } = await import("./read_png.js");
      const { mask, width, height } = await readPng(Uint8Array.from(bytes));
      return [mask.constructor.name, width, height, [...mask]];
    }"""
    found = page.evaluate(script, list(mask_png(mask, load_labels("camvid"))))
    assert found == ["Uint16Array", 7, 80, mask.ravel().tolist()]


def test_what_the_service_refuses_is_a_sentence(browser: Browser, address: str, street: Path, tmp_path: Path) -> None:
    (tmp_path / "text.png").write_text("no image")
    street = Path(shutil.copy(street, tmp_path / "street.png"))
    noise = np.random.default_rng(0).integers(0, 256, (700, 700, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "large.png")
    page = browser.new_page()
    page.goto(address)
    until(page, lambda: has_mask(page, "example.jpg"))
    page.set_input_files("#file", tmp_path / "text.png")
    assert problem(page).startswith("text.png: ")
    assert problem(page).endswith("Send the complete file of an image.")
    assert has_mask(page, "example.jpg")
    page.set_input_files("#file", tmp_path / "large.png")
    until(page, lambda: page.inner_text("#problem-text").startswith("large.png: the file has 1.4 MiB, and the service"))
    show(page, street)
    assert not page.is_visible("#problem")
    street.unlink()
    page.select_option("#size", "128")
    assert problem(page) == "street.png: the file has changed or is gone; open it again."
    page.close()


def test_a_service_that_is_busy_or_gone_can_be_asked_again(browser: Browser, street: Path) -> None:
    service, engine = gated(ServiceLimits(queue=0))
    engine.gate.set()  # for the first image, with which the service gets ready
    with running(service) as address:
        engine.gate.clear()
        page = browser.new_page()
        page.goto(address)
        until(page, lambda: service.queue.running == 1)  # the example
        page.evaluate(
            "fetch('example.jpg').then((answer) => answer.blob()).then((body) => "
            "void fetch('v1/segment', { method: 'POST', body }))"
        )
        until(page, lambda: service.queue.running == service.queue.threads)
        page.set_input_files("#file", street)
        assert problem(page) == "0 images wait, as many as may wait. Try again in 1 s."
        engine.gate.set()
        until(page, lambda: service.queue.running == 0)
        page.click("#remedy")
        until(page, lambda: has_mask(page, "street.png"))
    page.set_input_files("#file", street)
    until(page, lambda: "The service does not answer" in problem(page))
    assert page.inner_text("#remedy") == "Try again"
    page.close()


def test_the_page_asks_for_the_key_and_forgets_it_with_the_tab(browser: Browser, street: Path) -> None:
    addresses: list[str] = []
    with running(Service(segmenter(), ServiceLimits()), KEY) as address:
        page = browser.new_page(viewport={"width": 360, "height": 640})
        page.on("request", lambda request: addresses.append(request.url))
        page.goto(address)
        until(page, lambda: page.is_visible("#key"))
        assert page.inner_text("#status") == "This service needs an API key."
        assert page.evaluate("document.activeElement.id") == "key"
        assert page.evaluate("document.documentElement.scrollWidth") == 360
        for wrong in ("a-wrong-key-of-the-service", "ключ"):
            page.fill("#key", wrong)
            page.keyboard.press("Enter")
            until(page, lambda: page.is_visible("#key") and page.input_value("#key") == "")
            assert "API key" in page.inner_text("#status")
        page.fill("#key", KEY)
        page.click("text=Use the key")
        until(page, lambda: has_mask(page, "example.jpg"))
        assert not page.is_visible("#key")
        assert page.input_value("#key") == ""
        page.reload()
        until(page, lambda: has_mask(page, "example.jpg"))
        assert not page.is_visible("#key")
        # The key is replaced while the page is open.
        page.evaluate("import('./engine.js').then(({ useKey }) => useKey('an-old-key-of-the-service'))")
        page.set_input_files("#file", street)
        until(page, lambda: page.is_visible("#key"))
        assert page.inner_text("#status") == "The service does not accept this API key."
        page.fill("#key", KEY)
        page.keyboard.press("Enter")
        until(page, lambda: has_mask(page, "street.png"))
        assert page.evaluate("[localStorage.length, document.cookie]") == [0, ""]
        assert not any(KEY in asked for asked in addresses)
        other = browser.new_page()
        other.goto(address)
        until(other, lambda: other.is_visible("#key"))
        other.close()
        page.close()
