"""A long run of the camera on the page that segments in the browser: masks per second, and memory over time.

    python benchmarks/web_camera.py --minutes 2 --out benchmarks/results/web_camera.json

Needs Playwright and Chromium. The camera is Chromium's fake one, which shows the bundled photograph as it moves. Three
runs follow one another:

page            The page, in a Chromium whose frames pass through its graphics process, as on a device with a GPU.
                SwiftShader takes the place of the GPU.
page, no GPU    The same, in a Chromium without graphics. It then keeps every frame that was drawn in a cache of the
                page's process, up to a limit of its own.
control, no GPU A page of ten lines without evitseg, which only reads frames of the camera and closes them.

Memory is proportional (PSS), per kind of process. At the end of a run, Chromium is told that memory is short, so that
it empties its caches.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from PIL import Image
from playwright.sync_api import Browser, Page, sync_playwright

import evitseg
from evitseg.bundled import EXAMPLE_IMAGE
from evitseg.runtime.native import NativeEngine
from evitseg.system.files import replacing
from evitseg.system.machine import processor_name
from evitseg.web.page_files import write_page
from evitseg.web.site_server import SiteServer

WIDTH, HEIGHT, FRAMES = 1280, 720, 30
EVERY_S = 10
GRAPHICS = ["--use-angle=swiftshader", "--enable-unsafe-swiftshader", "--ignore-gpu-blocklist"]
CONTROL = """<!doctype html><video id="video" muted></video><script type="module" src="control.js"></script>"""
CONTROL_SCRIPT = """const video = document.getElementById("video");
const wanted = { width: { ideal: 1280 }, height: { ideal: 720 } };
video.srcObject = await navigator.mediaDevices.getUserMedia({ video: wanted });
await video.play();
for (window.frames = 0; ; window.frames++) {
  await new Promise((resolve) => video.requestVideoFrameCallback(resolve));
  const bitmap = await createImageBitmap(video, { resizeWidth: 448, resizeHeight: 256, resizeQuality: "medium" });
  bitmap.close();
}
"""


def write_camera(path: Path) -> None:
    """A y4m file of the photograph as it moves."""
    whole = Image.open(EXAMPLE_IMAGE).convert("RGB").resize((WIDTH + 2 * FRAMES, HEIGHT + 2 * FRAMES))
    with path.open("wb") as file:
        file.write(f"YUV4MPEG2 W{WIDTH} H{HEIGHT} F30:1 Ip A1:1 C420\n".encode())
        for i in (*range(FRAMES), *range(FRAMES, 0, -1)):
            full = np.asarray(whole.crop((2 * i, i, 2 * i + WIDTH, i + HEIGHT)).convert("YCbCr"), np.float32)
            planes = (128 + (full - 128) * (219 / 255, 224 / 255, 224 / 255) - (2, 0, 0)).round().astype(np.uint8)
            file.write(b"FRAME\n" + planes[..., 0].tobytes())
            file.write(planes[::2, ::2, 1].tobytes() + planes[::2, ::2, 2].tobytes())


def memory_bytes() -> dict[str, int]:
    """Proportional memory of the browser's processes by kind, and of what the pages' processes share with others."""
    found: Counter[str] = Counter()
    for process in psutil.Process().children(recursive=True):
        try:
            if "chrom" not in process.name():
                continue
            kind = re.search(r"--type=([\w-]+)", " ".join(process.cmdline()))
            name = kind[1] if kind else "browser"
            found[name] += process.memory_full_info().pss
            if name == "renderer":
                maps = process.memory_maps(grouped=True)
                found["renderer, shared"] += sum(each.pss for each in maps if each.path.startswith("/memfd:"))
        except psutil.Error:
            continue  # it ended
    return dict(found)


def measured(page: Page) -> dict[str, Any]:
    memory = memory_bytes()
    return {"bytes": sum(value for kind, value in memory.items() if "," not in kind), "kinds": memory}


def watch(page: Page, minutes: float) -> dict[str, Any]:
    """Rows over time, and the memory after Chromium was told that memory is short."""
    devtools = page.context.new_cdp_session(page)
    rows, start, before = [], time.monotonic(), (time.monotonic(), page.evaluate("frames"))
    while time.monotonic() - start < 60 * minutes:
        page.wait_for_timeout(1000 * EVERY_S)
        now, frames = time.monotonic(), page.evaluate("frames")
        devtools.send("HeapProfiler.collectGarbage")
        heap = devtools.send("Runtime.getHeapUsage")
        row = {
            "seconds": round(now - start),
            "frames_per_s": round((frames - before[1]) / (now - before[0]), 1),
            "heap_bytes": heap["usedSize"] + heap["backingStorageSize"],
            **measured(page),
        }
        rows.append(row)
        before = now, frames
        print(row, flush=True)
    devtools.send("Memory.simulatePressureNotification", {"level": "critical"})
    page.wait_for_timeout(2000)
    return {"rows": rows, "under_pressure": measured(page)}


@contextmanager
def chromium(camera: Path, arguments: list[str]) -> Iterator[Browser]:
    path = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))))
    fake = ["--use-fake-device-for-media-stream", f"--use-file-for-fake-video-capture={camera}"]
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox", *fake, *arguments])
        yield browser
        browser.close()


def on_page(browser: Browser, site: Path, size: str, minutes: float) -> dict[str, Any]:
    with SiteServer(site) as server:
        page = browser.new_page(permissions=["camera"], viewport={"width": 1366, "height": 768})
        page.goto(server.url)
        while not page.is_enabled("#save-mask"):
            page.wait_for_timeout(50)
        page.evaluate(
            """() => {
              const { stage } = evitseg;
              const { draw } = stage;
              window.frames = 0;
              stage.draw = (result) => { frames++; draw.call(stage, result); };
            }"""
        )
        page.select_option("#size", size)
        page.click("#camera")
        return watch(page, minutes)


def on_control(browser: Browser, site: Path, minutes: float) -> dict[str, Any]:
    with SiteServer(site) as server:
        page = browser.new_page(permissions=["camera"], viewport={"width": 1366, "height": 768})
        page.goto(server.url)
        page.wait_for_function("window.frames > 0")
        return watch(page, minutes)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=2, help="of each run")
    parser.add_argument("--size", default="256", help="short side in pixels; empty for the page's automatic choice")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    runs = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        camera, control = folder / "camera.y4m", folder / "control"
        write_camera(camera)
        engine = evitseg.load(engine="native", precision="float32").engine
        assert isinstance(engine, NativeEngine)
        write_page(folder / "site", engine.manifest, engine.program)
        control.mkdir()
        (control / "index.html").write_text(CONTROL, encoding="utf-8")
        (control / "control.js").write_text(CONTROL_SCRIPT, encoding="utf-8")
        with chromium(camera, GRAPHICS) as browser:
            version = browser.version
            runs["page"] = on_page(browser, folder / "site", arguments.size, arguments.minutes)
        with chromium(camera, []) as browser:
            runs["page, no GPU"] = on_page(browser, folder / "site", arguments.size, arguments.minutes)
        with chromium(camera, []) as browser:
            runs["control, no GPU"] = on_control(browser, control, arguments.minutes)
    content = {
        "processor": processor_name(),
        "browser": f"Chromium {version}",
        "evitseg": evitseg.__version__,
        "runs": runs,
    }
    if arguments.out:
        with replacing(arguments.out) as file:
            file.write(json.dumps(content, indent=1).encode())


if __name__ == "__main__":
    main()
