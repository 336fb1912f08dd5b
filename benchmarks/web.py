"""Our core in the browser beside LiteRT.js and onnxruntime-web, on the same images in the same browser.

    python benchmarks/web.py        needs node's npm, Chromium, and pip install '.[dev,litert-export]'

The bundled model at 512x512, on one and on two threads. One frame is bytes in, logits out. The others run on the page's
main thread, with a file of one size each; ours runs in its worker, and the time is that of the network alone ("with
everything" adds the way to the worker, the mask and the way back). In turns, each in a page of its own; medians over
all turns.

Then: logits and masks against the native core, bytes of the page, and the time from opening a page to its first mask
with nothing in the browser's cache.
"""

from __future__ import annotations

import argparse
import functools
import gzip
import json
import shutil
import statistics
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
from contest import RESULTS
from numpy.typing import NDArray
from playwright.sync_api import Browser, sync_playwright

import evitseg
from evitseg.bundled import EXAMPLE_IMAGE
from evitseg.preprocess import resampled
from evitseg.raster.files import read_image
from evitseg.runtime.core import Core
from evitseg.runtime.evit_file import read_evit
from evitseg.runtime.upsample import argmax_upsampled
from evitseg.system.files import replacing
from evitseg.system.machine import processor_name
from evitseg.web.page_files import HEADERS

SIDE = 512
PACKAGES = {"@litertjs/core": "2.5.3", "onnxruntime-web": "1.30.0"}
THREADS = (1, 2)
FLAGS = ["--no-sandbox"]

PAGE = """<!doctype html><title>benchmark</title><script type="importmap">{"imports": {
  "@litertjs/core": "./npm/@litertjs/core/dist/index.js",
  "@litertjs/wasm-utils": "./npm/@litertjs/wasm-utils/dist/bundle.js"
}}</script>"""
# Each: a function that runs one frame, and returns the logits, or null for the time that it took itself.
OPEN = {
    "evitseg": """
        const { load } = await import("./site/evitseg/index.js");
        const model = await load("site/model.evit", { threads });
        return (data) => segmented(model, data, side);""",
    "evitseg, plain SIMD": """
        const { load } = await import("./site/evitseg/index.js");
        const model = await load("site/model.evit", { threads, simd: "plain" });
        return (data) => segmented(model, data, side);""",
    "LiteRT.js": """
        const { loadLiteRt, loadAndCompile, Tensor } = await import("@litertjs/core");
        await loadLiteRt("./npm/@litertjs/core/wasm/", { threads: threads > 1 });
        const cpuOptions = { numThreads: threads };
        const model = await loadAndCompile("model.tflite", { accelerator: "wasm", cpuOptions });
        return async (data) => {
          const input = new Tensor(data, [1, side, side, 3]);
          const [output] = await model.run(input);
          const logits = output.toTypedArray().slice();
          input.delete();
          output.delete();
          return { logits };
        };""",
    "onnxruntime-web": """
        const ort = await import("./npm/onnxruntime-web/dist/ort.wasm.min.mjs");
        ort.env.wasm.numThreads = threads;
        ort.env.wasm.wasmPaths = new URL("./npm/onnxruntime-web/dist/", location.href).href;
        const session = await ort.InferenceSession.create("model.onnx", { executionProviders: ["wasm"] });
        const [name] = session.inputNames;
        return async (data) => {
          const output = await session.run({ [name]: new ort.Tensor("uint8", data, [1, side, side, 3]) });
          return { logits: output[session.outputNames[0]].data };
        };""",
}
MEASURE = """globalThis.segmented = async (model, data, side) => {
  const { logits, mask, milliseconds } = await model.segment({ data, width: side, height: side }, { size: "native" });
  return { logits, mask, own: milliseconds.network };
};
async ({ open, threads, side, count, warm, runs }) => {
  const bytes = new Uint8Array(await (await fetch("images.rgb")).arrayBuffer());
  const image = (i) => bytes.slice((i % count) * side * side * 3, (i % count + 1) * side * side * 3);
  const run = await new (Object.getPrototypeOf(async () => {}).constructor)("threads", "side", open)(threads, side);
  const times = [], own = [];
  for (let i = 0; i < warm + runs; i++) {
    const data = image(i), start = performance.now();
    const result = await run(data);
    if (i >= warm) { times.push(performance.now() - start); own.push(result.own ?? times.at(-1)); }
  }
  const answers = [];
  for (let i = 0; i < count; i++) {
    const { logits, mask } = await run(image(i));
    answers.push({ logits: Array.from(logits), mask: mask ? Array.from(mask) : null });
  }
  return { times, own, answers };
}"""
FIRST = """<!doctype html><title>first mask</title><script type="module">
  const image = fetch("site/example.jpg").then((response) => response.blob());
  const { load } = await import("./site/evitseg/index.js");
  const model = await load("site/model.evit", { check: "site/model.check" });
  await model.segment(await image);
  globalThis.firstMask = performance.now();
</script>"""


class _Handler(SimpleHTTPRequestHandler):
    extensions_map = SimpleHTTPRequestHandler.extensions_map | {
        ".js": "text/javascript", ".mjs": "text/javascript", ".wasm": "application/wasm",
    }  # fmt: skip

    def end_headers(self) -> None:
        for name, value in HEADERS.items():
            self.send_header(name, value)
        super().end_headers()

    def log_message(self, format: str, *arguments: object) -> None:  # noqa: A002  # the standard library's name
        pass


@contextmanager
def served(folder: Path) -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(_Handler, directory=str(folder))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def images(count: int) -> NDArray[np.uint8]:
    """The bundled photograph, each time another part of it."""
    whole = read_image(EXAMPLE_IMAGE)
    height, width = whole.shape[:2]
    parts = [whole[i * 40 : height - 200 + i * 40, i * 60 : width - 300 + i * 60] for i in range(count)]
    return np.stack([resampled(np.ascontiguousarray(part), (SIDE, SIDE)) for part in parts])


def prepare(folder: Path, pictures: NDArray[np.uint8]) -> None:
    """Everything that the pages load."""
    evitseg.export("b0-camvid", "web", folder / "site")
    evitseg.export("b0-camvid", "litert", folder / "model.tflite", size=(SIDE, SIDE))
    evitseg.export("b0-camvid", "onnx", folder / "model.onnx", size=(SIDE, SIDE))
    (folder / "images.rgb").write_bytes(pictures.tobytes())
    (folder / "page.html").write_text(PAGE)
    (folder / "first.html").write_text(FIRST)
    packages = [f"{name}@{version}" for name, version in PACKAGES.items()]
    npm = shutil.which("npm") or "npm"
    options = ["--no-audit", "--no-fund", "--ignore-scripts", "--prefix", str(folder)]
    subprocess.run([npm, "install", *options, *packages], check=True, capture_output=True)
    (folder / "node_modules").rename(folder / "npm")


START_SECONDS = 15
"""Chromium goes on working for some seconds after its start, on the same cores as the contestants."""


def turn(browser: Browser, url: str, engine: str, threads: int, count: int, warm: int, runs: int) -> dict[str, Any]:
    page = browser.new_page()
    page.goto(f"{url}/page.html")
    settings = {"open": OPEN[engine], "threads": threads, "side": SIDE, "count": count, "warm": warm, "runs": runs}
    script, function = MEASURE.split("\nasync (", 1)
    page.evaluate(f"{script} null")  # a function would be called
    measured: dict[str, Any] = page.evaluate(f"async ({function}", settings)
    page.close()
    return measured


def first_masks(browser: Browser, url: str, times: int) -> list[float]:
    found = []
    for _ in range(times):
        context = browser.new_context()  # with a cache of its own
        page = context.new_page()
        page.goto(f"{url}/first.html")
        page.wait_for_function("globalThis.firstMask !== undefined")
        found.append(float(page.evaluate("globalThis.firstMask")))
        context.close()
    return found


def sizes(site: Path) -> dict[str, int]:
    """Bytes of the page, compressed, without the model: of all files, and of those that one visit needs."""
    script = (site / "service-worker.js").read_text()
    start = script.index("const FILES = ") + len("const FILES = ")
    names = json.loads(script[start : script.index(";\n", start)])
    packed = {
        name: len(gzip.compress((site / name).read_bytes(), 9))
        for name in (*names, "service-worker.js")
        if not name.startswith("model.")
    }
    wasm = {name: size for name, size in packed.items() if name.endswith(".wasm")}
    return {
        "files": len(packed),
        "all_gzipped": sum(packed.values()),
        "one_visit_gzipped": sum(packed.values()) - sum(wasm.values()) + max(wasm.values()),
        "wasm_gzipped": sum(wasm.values()),
        "example_image": packed["example.jpg"],
        "model_gzipped": len(gzip.compress((site / "model.evit").read_bytes(), 9)),
    }


def compared(measured: dict[str, Any], expected: NDArray[np.float32]) -> dict[str, float]:
    """Against the native core: the largest difference of a logit, and the fraction of equal pixels in the masks."""
    difference, equal = 0.0, 0.0
    for answer, logits in zip(measured["answers"], expected, strict=True):
        actual = np.array(answer["logits"], np.float32).reshape(logits.shape)
        difference = max(difference, float(np.abs(actual - logits).max()))
        mask = answer["mask"]
        found = argmax_upsampled(actual, (SIDE, SIDE)) if mask is None else np.array(mask).reshape(SIDE, SIDE)
        equal += float((found == argmax_upsampled(logits, (SIDE, SIDE))).mean()) / len(expected)
    return {"largest_difference": difference, "equal_pixels": equal}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--warm", type=int, default=12, help="frames before those that count, in every turn")
    parser.add_argument("--runs", type=int, default=15, help="frames that count, in every turn")
    parser.add_argument("--chromium", default="/usr/bin/chromium")
    parser.add_argument("--folder", type=Path, help="what an earlier run prepared, or where to prepare it")
    options = parser.parse_args()
    pictures = images(4)
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.folder or Path(temporary)
        if not (folder / "npm").is_dir():
            folder.mkdir(parents=True, exist_ok=True)
            prepare(folder, pictures)
        core = Core(read_evit(folder / "site/model.evit")[1])
        expected = np.stack([core(picture) for picture in pictures])
        contestants = [(engine, threads) for engine in OPEN for threads in THREADS]
        frames: dict[tuple[str, int], list[float]] = {contestant: [] for contestant in contestants}
        whole: dict[tuple[str, int], list[float]] = {contestant: [] for contestant in contestants}
        agreement = {}
        with served(folder) as url, sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=options.chromium, args=FLAGS)
            version = browser.version
            time.sleep(START_SECONDS)
            for number in range(options.rounds):
                for contestant in contestants if number % 2 == 0 else reversed(contestants):
                    measured = turn(browser, url, *contestant, len(pictures), options.warm, options.runs)
                    frames[contestant] += measured["own"]
                    whole[contestant] += measured["times"]
                    agreement[contestant] = compared(measured, expected)
            first = first_masks(browser, url, 5)
            browser.close()
        page = sizes(folder / "site")
    report(options, version, frames, whole, agreement, first, page)


def report(
    options: argparse.Namespace,
    version: str,
    frames: dict[tuple[str, int], list[float]],
    whole: dict[tuple[str, int], list[float]],
    agreement: dict[tuple[str, int], dict[str, float]],
    first: list[float],
    page: dict[str, int],
) -> None:
    results = {}
    for threads in THREADS:
        ours = statistics.median(frames["evitseg", threads])
        for engine in OPEN:
            own = sorted(frames[engine, threads])
            results[f"{engine}, {threads} thread{'s' if threads > 1 else ''}"] = {
                "median_ms": statistics.median(own),
                "fastest_ms": own[0],
                "with_everything_ms": statistics.median(whole[engine, threads]),
                "times_slower": statistics.median(own) / ours,
                **agreement[engine, threads],
            }
    for name, row in results.items():
        print(
            f"{name:<32}{row['median_ms']:>8.1f} ms{row['with_everything_ms']:>8.1f} ms{row['times_slower']:>7.2f}"
            f"{row['largest_difference']:>10.1e}{row['equal_pixels']:>11.4%}"
        )
    print(f"first mask after {statistics.median(first):.0f} ms; bytes, compressed: {page}")
    content = {
        "settings": {
            "browser": f"Chromium {version}",
            "packages": PACKAGES,
            "size": [SIDE, SIDE],
            "processor": processor_name(),
            "frames": options.rounds * options.runs,
        },
        "results": results,
        "first_mask_ms": {"median": statistics.median(first), "largest": max(first)},
        "page": page,
    }
    with replacing(RESULTS / "web.json") as file:
        file.write((json.dumps(content, indent=2) + "\n").encode())


if __name__ == "__main__":
    main()
