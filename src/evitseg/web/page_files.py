"""The files of the page that segments in the browser: our own core as WebAssembly, and no other server.

The page and the library that it uses lie next to this module. They are copied to a folder, next to the model.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
import shutil
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from evitseg.bundled import EXAMPLE_IMAGE
from evitseg.errors import ConfigError
from evitseg.manifest import Manifest
from evitseg.preprocess import resampled
from evitseg.raster.files import read_image
from evitseg.runtime.core import Core
from evitseg.runtime.evit_file import set_evit_manifest, write_evit

PAGE = Path(__file__).parent
"""The page (`site`), its library (`library`), and what every copy of them says about licences."""
MODEL, CHECK, EXAMPLE = "model.evit", "model.check", "example.jpg"
"""The model, the image that the page verifies it with, and the image that the page shows first."""
LIBRARY = "evitseg"
SERVICE_WORKER = "service-worker.js"
NOT_LOADED = {SERVICE_WORKER, "_headers", "README.md", "LICENSE", "NOTICE", "package.json", "index.d.ts", "core.sha256"}
"""Names of files that the page itself never loads."""
EXAMPLE_SIDE, EXAMPLE_QUALITY = 1024, 80
"""Long side of the page's first image in pixels, and its quality as a JPEG: a visit should load little."""
CHECK_SIZE = (64, 96)
TOLERANCE, LEAST_EQUAL = 1e-3, 0.999
"""Limits of the page's own verification: those of a float32 export."""
HEADERS = {
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Embedder-Policy": "require-corp",
    "Cross-Origin-Resource-Policy": "cross-origin",
}
"""What isolates the page, so that browsers allow it threads."""


def write_page(folder: Path, manifest: Manifest, program: bytes) -> None:
    """Write a page.

    Args:
        folder: must not exist.
        program: made by `evitseg.runtime.program.compile_program`.

    Raises: ConfigError for a classifier.
    """
    check = _check(program)
    shutil.copytree(PAGE / "site", folder)
    shutil.copytree(PAGE / "library", folder / LIBRARY)
    for name in ("LICENSE", "NOTICE"):
        shutil.copy(PAGE / "library" / name, folder)
    (folder / EXAMPLE).write_bytes(example_jpeg())
    headers = "".join(f"  {name}: {value}\n" for name, value in HEADERS.items())
    (folder / "_headers").write_text(f"/*\n{headers}", encoding="utf-8")
    write_evit(folder / MODEL, manifest, program)
    (folder / CHECK).write_text(check, encoding="utf-8")
    set_page_manifest(folder, manifest)


def example_jpeg() -> bytes:
    """The page's first image, as a file."""
    content = io.BytesIO()
    with Image.open(EXAMPLE_IMAGE) as image:
        image.thumbnail((EXAMPLE_SIDE, EXAMPLE_SIDE))
        image.save(content, "JPEG", quality=EXAMPLE_QUALITY, optimize=True, progressive=True)
    return content.getvalue()


def _check(program: bytes) -> str:
    """A small image and its logits as JSON; `readCheck` in model_file.js reads it."""
    core = Core(program)
    if core.is_classifier:
        raise ConfigError("only segmentation networks can be exported to a web page.")
    image = resampled(read_image(EXAMPLE_IMAGE), CHECK_SIZE)
    content = {
        "height": CHECK_SIZE[0],
        "width": CHECK_SIZE[1],
        "tolerance": TOLERANCE,
        "least_equal": LEAST_EQUAL,
        "pixels": _base64(image),
        "logits": _base64(core(image).astype("<f4")),
    }
    return json.dumps(content)


def _base64(values: NDArray[np.uint8] | NDArray[np.float32]) -> str:
    return base64.b64encode(values.tobytes()).decode()


def set_page_manifest(folder: Path, manifest: Manifest) -> None:
    """Give a written page the model's manifest, the card for Hugging Face, and the list of its files.

    Raises: WeightsError, ConfigError.
    """
    set_evit_manifest(folder / MODEL, manifest)
    (folder / "README.md").write_text(_card(manifest), encoding="utf-8")
    paths = {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()}
    files = {name: path for name, path in paths.items() if path.name not in NOT_LOADED}
    version = hashlib.sha256()
    for name, path in files.items():
        version.update(f"{name}\0".encode() + hashlib.sha256(path.read_bytes()).digest())
    script = (PAGE / "site" / SERVICE_WORKER).read_text(encoding="utf-8")
    for name, value in (("VERSION", version.hexdigest()[:16]), ("FILES", list(files))):
        line = f"const {name} = {json.dumps(value)};"
        start = script.index(f"const {name} =")
        script = script[:start] + line + script[script.index("\n", start) :]
    (folder / SERVICE_WORKER).write_text(script, encoding="utf-8")


def _card(manifest: Manifest) -> str:
    """The README, which is the card of a static Space on Hugging Face."""
    headers = "".join(f"  {name.lower()}: {value}\n" for name, value in HEADERS.items())
    training = manifest.training
    return f"""---
title: {json.dumps(manifest.name)}
sdk: static
app_file: index.html
colorFrom: green
colorTo: blue
pinned: false
custom_headers:
{headers}---

# {manifest.name}

A page that segments images, videos and the camera in the browser. Nothing is uploaded. It was written by
`evitseg export --to web` and runs from any web server, without a build step.

- Trained on: {training.data}
- Licence of the weights: {training.licence}
- Licence of the program: Apache-2.0 (LICENSE, NOTICE)

Try it here: `python -m http.server`, then open http://localhost:8000. On a host without the headers in `_headers`, the
page loads a second time on its first visit, to get threads.
"""
