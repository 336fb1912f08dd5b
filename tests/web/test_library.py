"""The JavaScript library that the page uses, for other pages: its answers, and what it says when something is wrong."""

from __future__ import annotations

import base64
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

import evitseg
from evitseg.image import Size
from evitseg.preprocess import Preprocess
from evitseg.raster.png import mask_png
from evitseg.web.site_server import SiteServer
from tests.optional import needs

needs("playwright")

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

WIDTH, HEIGHT = 160, 96
SCRIPT = """async ([body, given]) => {
  const { load, EvitsegError } = await import(new URL("./evitseg/index.js", location.href));
  const data = Uint8Array.from(atob(given.pixels), (letter) => letter.charCodeAt(0));
  const image = { width: given.width, height: given.height, data };
  const failed = (error) => (error instanceof EvitsegError ? error.code : `${error}`);
  const code = (promise) => promise.then(() => "none", failed);
  const run = new (Object.getPrototypeOf(async () => {}).constructor)("load", "image", "code", "given", body);
  return run(load, image, code, given);
}"""


@pytest.fixture(scope="module")
def pixels() -> np.ndarray[Any, np.dtype[np.uint8]]:
    coarse = np.random.default_rng(0).integers(0, 256, (6, 10, 3), dtype=np.uint8)
    return np.repeat(np.repeat(coarse, 16, 0), 16, 1)


@pytest.fixture(scope="module")
def page(browser: Browser, server: SiteServer) -> Iterator[Page]:
    page = browser.new_page()
    page.goto(f"{server.url}NOTICE")  # a page of the same host, without a program
    yield page
    page.close()


def run(page: Page, pixels: np.ndarray[Any, np.dtype[np.uint8]], body: str, **given: Any) -> Any:
    """What a program with the names load, image, code and given returns."""
    encoded = base64.b64encode(pixels.tobytes()).decode()
    image = {"pixels": encoded, "width": pixels.shape[1], "height": pixels.shape[0]}
    return page.evaluate(SCRIPT, [body, {**image, **given}])


@pytest.mark.parametrize(("simd", "threads"), [("relaxed", 2), ("relaxed", 1), ("plain", 3)])
def test_a_page_gets_the_masks_of_the_native_core(
    simd: str, threads: int, page: Page, pixels: np.ndarray[Any, np.dtype[np.uint8]]
) -> None:
    body = """
        const model = await load("model.evit", { check: "model.check", simd: given.simd, threads: given.threads });
        const { mask, logits, width, height, pixels } = await model.segment(image, { size: 64 });
        const png = await (await model.png({ mask, width, height })).arrayBuffer();
        model.close();
        const { info, verification } = model;
        return { info, verification, mask: [...mask], logits: [...logits], pixels, png: [...new Uint8Array(png)] };"""
    found = run(page, pixels, body, simd=simd, threads=threads)
    expected = evitseg.load(precision="float32", size=64)(pixels)
    assert expected.logits is not None
    assert found["info"]["threads"] == threads
    assert found["verification"]["passed"]
    logits = np.array(found["logits"], np.float32)
    np.testing.assert_allclose(logits, expected.logits.ravel(), atol=1e-5 * np.abs(expected.logits).max())
    mask = np.array(found["mask"], np.uint8).reshape(expected.mask.shape)
    assert (mask == expected.mask).mean() > 0.999
    assert found["pixels"] == np.bincount(mask.ravel(), minlength=len(found["pixels"])).tolist()
    assert bytes(found["png"]) == mask_png(mask, expected.labels)


def test_the_network_sees_the_size_that_python_gives_it(
    page: Page, pixels: np.ndarray[Any, np.dtype[np.uint8]]
) -> None:
    rules = [Preprocess(), Preprocess(short_side=512), Preprocess(short_side=200, max_enlarge=1.5)]
    sizes: tuple[Size, ...] = (None, 80, "native")
    sides = [16, 48, 80, 97, 333, 720, 1040]
    cases = [(rule, w, h, size) for rule in rules for w in sides for h in (48, 144, 997) for size in sizes]
    body = """
        const { networkSize } = await import(new URL("./evitseg/model_file.js", location.href));
        return given.cases.map(([rule, width, height, size]) => {
          const fit = networkSize(rule, width, height, size);
          return [fit.height, fit.width];
        });"""
    asked = [
        [{"short_side": r.short_side, "max_enlarge": r.max_enlarge, "fixed": None}, w, h, s] for r, w, h, s in cases
    ]
    assert run(page, pixels, body, cases=asked) == [list(rule.fit((h, w), size)) for rule, w, h, size in cases]


def test_everything_that_goes_wrong_has_a_code(page: Page, pixels: np.ndarray[Any, np.dtype[np.uint8]]) -> None:
    body = """
        const missing = await code(load("none.evit"));
        const damaged = await code(load("example.jpg"));
        const noUrl = await code(load("http://["));
        const noCheckUrl = await code(load("model.evit", { check: "http://[" }));
        const model = await load("model.evit");
        const noImage = await code(model.segment(new Blob(["text"])));
        const frame = await createImageBitmap(new ImageData(8, 8));
        frame.close();
        const closedFrame = await code(model.segment(frame));
        const noPixels = await code(model.segment({ ...image, width: image.width + 1 }));
        const noBytes = await code(model.segment({ ...image, data: Float32Array.from(image.data) }));
        const noSize = await code(model.segment(image, { size: 7 }));
        const noThreads = await code(model.setThreads(0));
        const good = await code(model.segment(image));
        const stop = new AbortController();
        const three = [{}, { signal: stop.signal }, {}].map((options) => code(model.segment(image, options)));
        stop.abort();
        const aborted = await Promise.all(three);
        const late = code(model.segment(image));
        model.close();
        return { missing, damaged, noUrl, noCheckUrl, closedFrame, noImage, noPixels, noBytes, noSize, noThreads, good,
                 aborted, late: await late,
                 after: await code(model.segment(image)), simd: await code(load("model.evit", { simd: "none" })) };"""
    assert run(page, pixels, body) == {
        "missing": "file",
        "damaged": "model",
        "noUrl": "argument",
        "noCheckUrl": "argument",
        "closedFrame": "image",
        "noImage": "image",
        "noPixels": "argument",
        "noBytes": "argument",
        "noSize": "argument",
        "noThreads": "argument",
        "good": "none",
        "aborted": ["none", "aborted", "none"],
        "late": "closed",
        "after": "closed",
        "simd": "argument",
    }


def test_a_model_can_change_its_threads_and_keeps_its_logits(
    page: Page, pixels: np.ndarray[Any, np.dtype[np.uint8]]
) -> None:
    body = """
        const model = await load("model.evit", { threads: 2 });
        const answers = [];
        for (const threads of [2, 1, 3, 2]) {
          await model.setThreads(threads);
          answers.push([model.info.threads, String((await model.segment(image)).logits)]);
        }
        model.close();
        return [answers.map(([threads]) => threads), new Set(answers.map(([, logits]) => logits)).size];"""
    assert run(page, pixels, body) == [[2, 1, 3, 2], 1]


def test_a_browser_that_isolates_pages_without_shared_memory_gets_one_thread(
    page: Page, pixels: np.ndarray[Any, np.dtype[np.uint8]]
) -> None:
    body = """
        const { SharedArrayBuffer } = globalThis;
        delete globalThis.SharedArrayBuffer;
        const model = await load("model.evit", { threads: 2 });
        Object.assign(globalThis, { SharedArrayBuffer });
        const { threads, isolated } = model.info;
        model.close();
        return [threads, isolated, crossOriginIsolated];"""
    assert run(page, pixels, body) == [1, False, True]


def test_threads_that_cannot_be_started_leave_those_that_there_are(
    browser: Browser, site: Path, pixels: np.ndarray[Any, np.dtype[np.uint8]], tmp_path: Path
) -> None:
    folder = tmp_path / "site"
    shutil.copytree(site, folder)
    page = browser.new_page()
    with SiteServer(folder) as server:
        page.goto(f"{server.url}NOTICE")
        segment = """
            window.model ??= await load("model.evit", { threads: 2 });
            return [...(await model.segment(image)).logits];"""
        before = run(page, pixels, segment)
        (folder / "evitseg" / "thread.js").unlink()
        failed = "return [await code(model.setThreads(3)), await code(model.setThreads(4)), model.info.threads];"
        assert run(page, pixels, failed) == ["worker", "worker", 2]
        assert run(page, pixels, segment) == before
        assert run(page, pixels, "return [await model.setThreads(1), await model.setThreads(2)];") == [1, 2]
        assert run(page, pixels, segment) == before
        assert run(page, pixels, "return code(load('model.evit', { threads: 2 }));") == "worker"
    page.close()
