"""The page that segments in the browser, in a real browser."""

from __future__ import annotations

import base64
import csv
import io
import json
import shutil
from dataclasses import replace
from functools import partial
from html.parser import HTMLParser
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

import evitseg
from evitseg.labels import load_labels
from evitseg.runtime.evit_file import read_evit
from evitseg.web.page_files import MODEL, set_page_manifest
from evitseg.web.site_server import SiteServer
from tests.browsing import pixels_of, until
from tests.optional import needs
from tests.web.pages import has_mask, legend_of, mask_of, middle_of, row_of, saved, screen_place, show, shown

needs("playwright")

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

    from evitseg.runtime.segmenter import Prediction

LABELS = load_labels("camvid")
ROAD, SKY = (LABELS.names.index(name) for name in ("road", "sky"))


def test_an_image_is_segmented_when_the_page_opens(browser: Browser, server: SiteServer, site: Path) -> None:
    expected = evitseg.load(precision="float32")(site / "example.jpg")
    with shown(browser, server.url) as page:
        until(page, lambda: has_mask(page, "example.jpg"))
        assert "1024 × 576 pixels" in page.inner_text("#status")
        assert page.inner_text("h1") == "b0-camvid"
        assert page.inner_text("#privacy") == "Everything runs on this device. No image is uploaded."
        assert (mask_of(page) == expected.mask).mean() > 0.9999
        wanted = {name: f"{100 * fraction:.1f} %" for name, fraction in expected.fractions().items() if fraction > 0.01}
        assert wanted.items() <= legend_of(page).items()
        assert page.inner_text("#verification").startswith("agrees ")
        assert page.inner_text("#isolated") == "yes (threads)"
        assert page.inner_text("#instructions") in ("relaxed SIMD", "SIMD")
        assert page.inner_text("#input") == "1280 × 704"
        assert page.inner_text("#network").endswith("ms")
        assert not page.is_visible("#problem")


def test_an_image_is_chosen_dropped_or_pasted(page: Page, street: Path, expected: Prediction) -> None:
    give = """([kind, name, bytes]) => {
      const data = new DataTransfer();
      const content = Uint8Array.from(atob(bytes), (letter) => letter.charCodeAt(0));
      data.items.add(new File([content], name, { type: "image/png" }));
      const event = kind === "drop"
        ? new DragEvent("drop", { dataTransfer: data, bubbles: true, cancelable: true })
        : new ClipboardEvent("paste", { clipboardData: data, bubbles: true, cancelable: true });
      document.body.dispatchEvent(event);
    }"""
    page.evaluate("evitseg.stage.clear()")
    with page.expect_file_chooser() as chooser:
        page.click("#open")
    chooser.value.set_files(street)
    until(page, lambda: has_mask(page, "street.png"))
    assert (mask_of(page) == expected.mask).mean() > 0.9999
    for kind in ("drop", "paste"):
        page.evaluate(give, [kind, f"{kind}.png", base64.b64encode(street.read_bytes()).decode()])
        until(page, partial(has_mask, page, f"{kind}.png"))
        assert (mask_of(page) == expected.mask).mean() > 0.9999
    page.click("#example")
    until(page, lambda: has_mask(page, "example.jpg"))


def test_the_place_to_drop_is_seen_only_while_something_is_dragged(page: Page) -> None:
    for kind, is_seen in (("dragover", True), ("dragleave", False), ("dragover", True), ("drop", False)):
        given = "{ bubbles: true, dataTransfer: new DataTransfer() }"
        page.evaluate(f"document.body.dispatchEvent(new DragEvent('{kind}', {given}))")
        assert page.is_visible("#drop") == is_seen
    assert page.inner_text("#problem") == "There is no image or video in what was dropped or pasted."


def test_a_photograph_is_shown_upright(page: Page, street: Path, tmp_path: Path) -> None:
    turned = Image.open(street).transpose(Image.Transpose.ROTATE_90)
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned clockwise
    turned.save(tmp_path / "turned.png", exif=exif)
    expected = evitseg.load(precision="float32")(tmp_path / "turned.png")
    show(page, tmp_path / "turned.png")
    found = mask_of(page)
    assert found.shape == expected.mask.shape == (270, 480)
    assert (found == expected.mask).mean() > 0.9999


def test_an_animation_stands_still_at_the_frame_that_has_the_mask(page: Page, street: Path, tmp_path: Path) -> None:
    first = Image.open(street)
    small, blank = (image.resize((8, 8)) for image in (first, Image.new("RGB", (1, 1), "white")))
    for ending in ("gif", "webp", "png"):
        small.save(tmp_path / f"moves.{ending}", save_all=True, append_images=[blank], duration=20)
        small.save(tmp_path / f"stands.{ending}")
    files = {path.name: list(path.read_bytes()) for path in tmp_path.iterdir()}
    script = """async (files) => {
      const { isAnimated } = await import("./image_file.js");
      const judge = async ([name, bytes]) => [name, await isAnimated(new Blob([Uint8Array.from(bytes)]))];
      return Object.fromEntries(await Promise.all(Object.entries(files).map(judge)));
    }"""
    assert page.evaluate(script, files) == {name: name.startswith("moves") for name in files}
    page.fill("#opacity", "0")
    first.save(tmp_path / "moves.gif", save_all=True, append_images=[blank.resize(first.size)], duration=20)
    show(page, tmp_path / "moves.gif")
    assert page.inner_text("#status").endswith("It is an animation; only its first frame is used.")
    page.wait_for_timeout(100)
    left, top = screen_place(page, 240, 260)
    assert pixels_of(page)[top, left].max() < 200  # the road
    with Image.open(tmp_path / "moves.gif") as moving:
        expected = evitseg.load(precision="float32")(moving.convert("RGB"))
    assert (mask_of(page) == expected.mask).mean() > 0.9999


def test_a_file_that_cannot_be_shown_is_a_sentence_and_keeps_what_is_shown(
    page: Page, street: Path, tmp_path: Path
) -> None:
    (tmp_path / "broken.png").write_bytes(b"no image")
    (tmp_path / "cut.png").write_bytes(street.read_bytes()[:100])
    (tmp_path / "broken.webm").write_bytes(b"no video")
    show(page, street)
    page.set_input_files("#file", tmp_path / "broken.png")
    until(page, lambda: page.is_visible("#problem"))
    assert page.inner_text("#problem").startswith("broken.png cannot be shown: this browser does not know")
    assert has_mask(page, "street.png")
    page.set_input_files("#file", tmp_path / "broken.webm")
    until(page, lambda: "broken.webm cannot be played" in page.inner_text("#problem"))
    page.set_input_files("#file", tmp_path / "cut.png")
    until(page, lambda: page.inner_text("#problem").startswith("cut.png: the file is not an image"))
    show(page, street)
    assert not page.is_visible("#problem")


def test_opacity_classes_and_before_and_after_change_what_is_seen(
    page: Page, street: Path, expected: Prediction
) -> None:
    y, x = middle_of(expected, ROAD)
    color, photo = np.array(LABELS.classes[ROAD].color), expected.image[y - 1 : y + 2, x - 1 : x + 2].mean((0, 1))
    show(page, street)
    left, top = screen_place(page, x + 0.5, y + 0.5)

    def is_near(wanted: NDArray[Any]) -> bool:
        return bool(np.abs(pixels_of(page)[top, left].astype(int) - wanted).max() <= 25)

    until(page, lambda: is_near(0.55 * color + 0.45 * photo))
    page.fill("#opacity", "100")
    until(page, lambda: is_near(color))
    assert page.inner_text("#opacity-value") == "100 %"
    row_of(page, "road").locator("input").uncheck()
    until(page, lambda: is_near(photo))
    row_of(page, "road").locator("input").check()
    until(page, lambda: is_near(color))
    page.click("#none")
    until(page, lambda: is_near(photo))
    page.click("#all")
    until(page, lambda: is_near(color))
    # Before, on the left of the line, and after.
    page.check("#compare")
    share = 100 * (x + 0.5) / expected.mask.shape[1]
    page.fill("#split", str(round(share + 10)))
    until(page, lambda: is_near(photo))
    page.fill("#split", str(round(share - 10)))
    until(page, lambda: is_near(color))
    # The line can be dragged.
    line = page.locator("#divider").bounding_box()
    assert line is not None
    page.mouse.move(line["x"] + line["width"] / 2, line["y"] + 20)
    page.mouse.down()
    page.mouse.move(left + 60, line["y"] + 40, steps=3)
    page.mouse.up()
    until(page, lambda: is_near(photo))
    assert abs(float(page.input_value("#split")) - share) > 3
    page.uncheck("#compare")
    until(page, lambda: is_near(color))
    assert not page.is_visible("#divider")


def test_the_class_under_the_pointer_is_shown(page: Page, street: Path, expected: Prediction) -> None:
    show(page, street)
    for index in (ROAD, SKY):
        y, x = middle_of(expected, index)
        page.mouse.move(*screen_place(page, x + 0.5, y + 0.5))
        name = LABELS.names[index]
        until(page, lambda name=name: page.inner_text("#pointer").startswith(f"{name} · x "))  # type: ignore[misc]
    # As in a mirror, which is how a camera that looks at a person is shown.
    page.evaluate("evitseg.stage.mirror(true)")
    page.mouse.move(*screen_place(page, expected.mask.shape[1] - x - 0.5, y + 0.5))
    until(page, lambda: page.inner_text("#pointer") == f"sky · x {x}, y {y}")
    page.evaluate("evitseg.stage.mirror(false)")
    page.mouse.move(990, 300)
    until(page, lambda: page.inner_text("#pointer") == "")


def test_everything_works_with_the_keyboard(page: Page, street: Path, expected: Prediction) -> None:
    show(page, street)
    page.focus("#stage")
    page.keyboard.press("ArrowRight")
    height, width = expected.mask.shape
    assert page.is_visible("#cross")
    spoken = page.inner_text("#spoken")
    assert spoken == f"{LABELS.names[expected.mask[height // 2, width // 2]]} · x {width // 2}, y {height // 2}"
    for _ in range(4):
        page.keyboard.press("Shift+ArrowUp")
    assert page.inner_text("#spoken").startswith("sky · ")
    page.keyboard.press("m")
    assert page.inner_text("#opacity-value") == "0 %"
    page.keyboard.press("M")
    assert page.inner_text("#opacity-value") == "55 %"
    page.keyboard.press("]")
    assert page.inner_text("#opacity-value") == "65 %"
    page.keyboard.press("[")
    assert page.inner_text("#opacity-value") == "55 %"
    page.keyboard.press("b")
    assert page.is_checked("#compare")
    page.keyboard.press("b")
    assert not page.is_checked("#compare")
    # Keys act only on the image: someone who types elsewhere changes nothing.
    page.focus("#open")
    page.keyboard.press("m")
    assert page.inner_text("#opacity-value") == "55 %"
    assert not page.is_visible("#cross")
    # Every control can be reached, and nothing else.
    page.focus("#stage")
    reached = []
    for _ in range(60):
        page.keyboard.press("Tab")
        reached.append(page.evaluate("document.activeElement.id || document.activeElement.tagName"))
        if reached[-1] == "BODY":
            break
    controls = page.evaluate(
        "[...document.querySelectorAll('button, input, select, a[href], summary')]"
        ".filter((each) => each.checkVisibility() && !each.disabled && each.tabIndex >= 0).length"
    )
    assert len(reached) - 1 == controls
    # The list of keys.
    assert not page.is_visible("#keys")
    page.focus("summary")
    page.keyboard.press("Enter")
    assert page.inner_text("#keys").split("\n")[:2] == ["← ↑ → ↓", "class below a cross"]


def test_the_mask_and_its_numbers_can_be_saved(page: Page, street: Path, expected: Prediction) -> None:
    show(page, street)
    mask = mask_of(page)
    name, content = saved(page, "#save-mask")
    image = Image.open(io.BytesIO(content))
    assert (name, image.mode) == ("street_mask.png", "P")
    np.testing.assert_array_equal(np.asarray(image), mask)
    palette = image.getpalette()
    assert palette is not None
    assert palette[3 * ROAD : 3 * ROAD + 3] == list(LABELS.classes[ROAD].color)
    name, content = saved(page, "#save-ids")
    image = Image.open(io.BytesIO(content))
    assert (name, image.mode) == ("street_ids.png", "L")
    np.testing.assert_array_equal(np.asarray(image), mask)
    counts = np.bincount(mask.ravel(), minlength=len(LABELS.classes))
    name, content = saved(page, "#save-json")
    about = json.loads(content)
    assert name == "street.json"
    assert about["image"] == {"name": "street.png", "width": 480, "height": 270}
    assert about["model"] == {"name": "b0-camvid"}
    assert [each["pixels"] for each in about["classes"]] == counts.tolist()
    assert [each["name"] for each in about["classes"]] == list(LABELS.names)
    assert about["classes"][ROAD]["fraction"] == pytest.approx(counts[ROAD] / mask.size)
    assert about["device"]["verified"] is True
    assert set(about["timing_ms"]) == {"decode", "resize", "network", "mask", "total"}
    name, content = saved(page, "#save-csv")
    rows = list(csv.DictReader(io.StringIO(content.decode())))
    assert name == "street.csv"
    assert [int(row["pixels"]) for row in rows] == counts.tolist()
    assert [row["name"] for row in rows] == list(LABELS.names)
    assert rows[ROAD]["fraction"] == f"{counts[ROAD] / mask.size:.6f}"
    # The overlay: the image tinted, above a legend.
    name, content = saved(page, "#save-overlay")
    overlay = np.asarray(Image.open(io.BytesIO(content)).convert("RGB")).astype(int)
    assert name == "street_overlay.png"
    assert overlay.shape[1] == 480
    assert overlay.shape[0] > 270
    y, x = middle_of(expected, ROAD)
    tinted = 0.55 * np.array(LABELS.classes[ROAD].color) + 0.45 * expected.image[y, x]
    assert np.abs(overlay[y, x] - tinted).max() <= 2
    assert (np.abs(overlay[270:] - LABELS.classes[ROAD].color).max(-1) == 0).sum() > 50


def test_the_legend_of_a_saved_overlay_has_room_for_its_names(page: Page) -> None:
    script = """async () => {
      const { withLegend } = await import("./parts.js");
      const view = document.createElement("canvas");
      [view.width, view.height] = [1, 1];
      const classes = ["w".repeat(300), "road"].map((name, index) => ({ index, name, color: [255, 0, 0] }));
      const { width, height } = withLegend(view, classes, [0.5, 0.5], new Set());
      return [width, height];
    }"""
    width, height = page.evaluate(script)
    assert width > 300 * 6
    assert 2 * 12 < height < 6 * 12


NAMES = ["<img src=x onerror=alert(1)>", "w" * 500, '=1+1, "quoted"', "&lt;b&gt;", "</td>", "__proto__"]
"""Names of classes that a stranger's model may have."""


def test_names_in_a_model_are_shown_as_they_are(browser: Browser, site: Path, street: Path, tmp_path: Path) -> None:
    folder = tmp_path / "site"
    shutil.copytree(site, folder)
    manifest = read_evit(folder / MODEL)[0]
    classes = tuple(replace(each, name=name) for each, name in zip(LABELS.classes, NAMES, strict=False))
    labels = replace(manifest.labels, classes=classes + LABELS.classes[len(NAMES) :])
    name = "<script>alert(1)</script>" + "n" * 300
    set_page_manifest(folder, replace(manifest, name=name, labels=labels))
    with SiteServer(folder) as server, shown(browser, server.url, viewport={"width": 360, "height": 640}) as page:
        until(page, lambda: has_mask(page, "example.jpg"))
        assert page.inner_text("h1") == name
        assert list(legend_of(page)) == list(labels.names)
        assert page.evaluate("document.documentElement.scrollWidth") == 360
        rows = csv.DictReader(io.StringIO(saved(page, "#save-csv")[1].decode()))
        assert [row["name"] for row in rows] == list(labels.names)


def test_a_smaller_size_is_faster_and_says_so(page: Page, street: Path) -> None:
    show(page, street)
    assert page.inner_text("#input") == "960 × 544"  # the model's rule enlarges it twice at most
    assert page.locator("#size option").all_inner_texts() == [
        "Automatic (images: 720)", "720 pixels", "512 pixels", "384 pixels", "256 pixels", "192 pixels",
        "128 pixels",
    ]  # fmt: skip
    page.select_option("#size", "256")
    until(page, lambda: page.inner_text("#input") == "448 × 256")
    page.select_option("#size", "")
    until(page, lambda: page.inner_text("#input") == "960 × 544")


@pytest.fixture
def wrong_site(site: Path, tmp_path: Path) -> Path:
    """A page whose stored values this device does not compute."""
    folder = tmp_path / "wrong"
    shutil.copytree(site, folder)
    content = json.loads((folder / "model.check").read_text())
    content["logits"] = content["logits"][:-8] + content["logits"][:8]
    (folder / "model.check").write_text(json.dumps(content))
    return folder


def test_a_device_that_disagrees_shows_no_mask_until_somebody_insists(browser: Browser, wrong_site: Path) -> None:
    with SiteServer(wrong_site) as server, shown(browser, server.url) as page:
        until(page, lambda: page.is_visible("#problem"))
        told = page.inner_text("#problem-text")
        assert told.startswith(
            "This device does not compute what the model computes elsewhere. The largest difference is "
        )
        assert "Its masks may be wrong, so none are shown." in told
        until(page, lambda: page.is_visible("#photo"))
        page.wait_for_timeout(300)
        assert page.evaluate("evitseg.stage.result") is None
        assert page.is_disabled("#save-mask")
        assert not page.is_visible("#badge")
        page.click("text=Show masks anyway")
        until(page, lambda: has_mask(page, "example.jpg"))
        assert page.inner_text("#badge") == "Unverified masks"
        assert page.inner_text("#verification") == "disagrees"
        assert not page.is_visible("#problem")
        assert json.loads(saved(page, "#save-json")[1])["device"]["verified"] is False


def test_a_model_without_a_check_is_neither_verified_nor_wrong(page: Page) -> None:
    script = """async () => {
      const { showDevice } = await import("./panel.js");
      showDevice({ info: evitseg.model.info, verification: null, isVerified: null });
    }"""
    page.evaluate(script)
    assert page.inner_text("#verification") == "not stored with this model"
    assert "wrong" not in (page.get_attribute("#verification", "class") or "")


def test_a_missing_model_is_a_sentence(browser: Browser, site: Path, tmp_path: Path) -> None:
    folder = tmp_path / "site"
    shutil.copytree(site, folder)
    (folder / "model.evit").unlink()
    with SiteServer(folder) as server:
        page = browser.new_page()
        page.goto(server.url)
        until(page, lambda: page.is_visible("#problem"))
        told = page.inner_text("#problem-text")
        assert "model.evit" in told
        assert told.endswith(".")
        assert page.inner_text("#remedy") == "Try again"
        page.close()


@pytest.mark.parametrize(("width", "height"), [(360, 640), (640, 360), (1366, 768), (3840, 2160)])
def test_nothing_is_cut_off_at_any_size(width: int, height: int, page: Page, street: Path) -> None:
    page.set_viewport_size({"width": width, "height": height})
    show(page, street)
    page.check("#compare")
    assert page.evaluate("document.documentElement.scrollWidth") == width
    parts = "button, input:not(.unseen), select, #stage, #frame, p:not(.unseen), dd, th, td"
    script = """(parts) => [...document.querySelectorAll(parts)]
      .filter((each) => each.checkVisibility())
      .map((each) => [each.id || each.textContent, each.getBoundingClientRect()])
      .map(([name, { left, right }]) => [name, left, right])"""
    for name, left, right in page.evaluate(script, parts):
        assert 0 <= left <= right <= width + 0.5, name
    frame = page.locator("#frame").bounding_box()
    assert frame is not None
    assert abs(frame["width"] / frame["height"] - 16 / 9) < 0.02
    assert frame["height"] > 0.3 * height or frame["width"] > 0.95 * width


class Words(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[str, str]] = []
        self.tags: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)

    def handle_data(self, data: str) -> None:
        if data.strip(" \n·"):
            self.found.append((self.tags[-1], data.strip()))


def test_all_text_is_in_one_file(page: Page, site: Path) -> None:
    words = Words()
    words.feed((site / "index.html").read_text())
    # What is seen without scripts, and what a browser needs before they run.
    assert [tag for tag, _ in words.found] == ["title", "p"]
    texts = page.evaluate("[...document.querySelectorAll('[data-text]')].map((each) => each.textContent)")
    labels = page.evaluate(
        "[...document.querySelectorAll('[data-label]')].map((each) => each.getAttribute('aria-label'))"
    )
    assert all(texts)
    assert all(label not in ("", "undefined") for label in labels)
    assert "undefined" not in page.inner_text("body")
