"""A long run of the camera on the page that segments in the browser: masks per second, and memory over time.

    python benchmarks/web_camera.py --minutes 2 --out benchmarks/results/web_camera.json

Needs Playwright and Chromium. The camera is Chromium's fake one, which shows the bundled photograph as it moves. Memory
is the resident memory of all of the browser's processes, and the heap of the page after a garbage collection.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from PIL import Image
from playwright.sync_api import Page, sync_playwright

import evitseg
from evitseg.bundled import EXAMPLE_IMAGE
from evitseg.runtime.native import NativeEngine
from evitseg.system.files import replacing
from evitseg.system.machine import processor_name
from evitseg.web.page_files import write_page
from evitseg.web.site_server import SiteServer

WIDTH, HEIGHT, FRAMES = 1280, 720, 30
EVERY_S = 10


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


def resident_bytes() -> int:
    """Proportional memory of the processes that this one started, among which the browser's."""
    total = 0
    for process in psutil.Process().children(recursive=True):
        try:
            if "chrom" in process.name():
                total += process.memory_full_info().pss
        except psutil.Error:
            continue  # it ended
    return total


def watch(page: Page, minutes: float) -> list[dict[str, Any]]:
    devtools = page.context.new_cdp_session(page)
    page.evaluate(
        """() => {
          const { stage } = evitseg;
          const { draw } = stage;
          window.masks = 0;
          stage.draw = (result) => { masks++; draw.call(stage, result); };
        }"""
    )
    rows, start, before = [], time.monotonic(), (time.monotonic(), 0)
    while time.monotonic() - start < 60 * minutes:
        page.wait_for_timeout(1000 * EVERY_S)
        now, masks = time.monotonic(), page.evaluate("masks")
        devtools.send("HeapProfiler.collectGarbage")
        heap = devtools.send("Runtime.getHeapUsage")
        rows.append(
            {
                "seconds": round(now - start),
                "masks": masks,
                "masks_per_s": (masks - before[1]) / (now - before[0]),
                "age": page.inner_text("#age"),
                "input": page.inner_text("#input"),
                "heap_bytes": heap["usedSize"] + heap["backingStorageSize"],
                "resident_bytes": resident_bytes(),
            }
        )
        before = now, masks
        print(rows[-1], flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=2)
    parser.add_argument("--size", default="", help="short side in pixels; none for the page's automatic choice")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    browser_path = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))))
    with tempfile.TemporaryDirectory() as name, sync_playwright() as playwright:
        folder = Path(name)
        write_camera(folder / "camera.y4m")
        engine = evitseg.load(engine="native", precision="float32").engine
        assert isinstance(engine, NativeEngine)
        write_page(folder / "site", engine.manifest, engine.program)
        browser = playwright.chromium.launch(
            executable_path=browser_path,
            args=[
                "--no-sandbox",
                "--use-fake-device-for-media-stream",
                f"--use-file-for-fake-video-capture={folder / 'camera.y4m'}",
            ],
        )
        with SiteServer(folder / "site") as server:
            page = browser.new_page(permissions=["camera"], viewport={"width": 1366, "height": 768})
            page.goto(server.url)
            while not page.is_enabled("#save-mask"):
                page.wait_for_timeout(50)
            page.select_option("#size", arguments.size)
            page.click("#camera")
            page.wait_for_timeout(5000)  # until the size has been chosen
            rows = watch(page, arguments.minutes)
        version = browser.version
        browser.close()
    content = {
        "processor": processor_name(),
        "browser": f"Chromium {version}",
        "evitseg": evitseg.__version__,
        "rows": rows,
    }
    if arguments.out:
        with replacing(arguments.out) as file:
            file.write(json.dumps(content, indent=1).encode())


if __name__ == "__main__":
    main()
