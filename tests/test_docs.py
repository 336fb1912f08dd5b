"""Every code block of README.md and docs/ runs, on small stand-ins for the files that it names.

Comments in the Markdown direct the test:

- `<!-- not run: needs a phone -->` right above a block gives the reason why the block does not run.
- `<!-- lines not run: "camera:0" needs a camera; "rtsp://" needs one on the network -->` skips the lines that contain
  the quoted words.
- `<!-- file: street.py -->` right above a block stores it under that name for every page.
- `<!-- given: evitseg export b0-camvid -->` anywhere in a page is a command that runs before its blocks.
"""

from __future__ import annotations

import re
import shlex
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from markdown_it import MarkdownIt
from PIL import Image

from evitseg.bundled import EXAMPLE_IMAGE
from evitseg.profiling import worker
from tests.exported import bundled_onnx, verified_on_small_images
from tests.optional import is_installed, needs
from tests.train.undrawn import nothing_drawn

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
RUN = {"sh", "python"}
SHOWN = {"", "text"}
"""Languages of blocks that are diagrams and output, not code."""
SMALLER = {
    # What a person does with large files, done with small ones.
    "512x1024": "64x96",
    "512, 1024": "64, 96",
    "12000,8000,1024,768": "8,16,64,32",
    "8000, 12000, 768, 1024": "16, 8, 32, 64",
    "range(40)": "range(8)",
    "annotated/00.jpg": "annotated/07.jpg",
    "down, across = 32, 16": "down, across = 2, 1",
    "--minimum-pixels 400": "--minimum-pixels 1",
    "SIDE = 1024": "SIDE = 64",
}
TRAINING = ["--start", "none", "--epochs", "1", "--crop", "64x64", "--size", "64", "--workers", "0", "--batch", "2"]
"""Given last, these replace a run of hours by one of seconds."""
PACKAGES = {
    r"evitseg (train|average)|evitseg\.(fit|TrainConfig)": (
        "torch",
        "safetensors",
        "accelerate",
        "tensorboard",
        "matplotlib",
    ),
    r"evitseg export|evitseg\.(build|export)|\.safetensors": ("torch", "safetensors", "onnx"),
    r"clip\.|holiday|camera:|import av|segment_video": ("av",),
    r"mosaic\.|rasterio|polygons": ("rasterio", "pyogrio"),
    r"--to litert|ai_edge_litert": ("litert_torch", "ai_edge_litert"),
    r"import onnxruntime": ("onnxruntime",),
}
"""The optional packages that code needs, by a pattern of the code."""


@dataclass(frozen=True)
class Block:
    page: Path
    line: int
    language: str
    code: str
    reason: str | None
    left_out: tuple[str, ...]
    file: str | None

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"


def blocks() -> Iterator[Block]:
    for page in PAGES:
        comment = ""
        for token in MarkdownIt().parse(page.read_text(encoding="utf-8")):
            if token.type == "fence" and token.map:
                reason = re.fullmatch(r"<!-- not run: (.*) -->", comment, re.DOTALL)
                lines = re.fullmatch(r"<!-- lines not run: (.*) -->", comment, re.DOTALL)
                file = re.fullmatch(r"<!-- file: (.*) -->", comment)
                yield Block(
                    page,
                    token.map[0] + 1,
                    token.info.strip(),
                    token.content,
                    reason[1] if reason else None,
                    tuple(re.findall(r'"([^"]+)"', lines[1])) if lines else (),
                    file[1] if file else None,
                )
            comment = token.content.strip() if token.type == "html_block" else ""


BLOCKS = list(blocks())
FILES = {block.file: block for block in BLOCKS if block.file}


def title(page: Path) -> str:
    return str(page.relative_to(ROOT))


def test_every_block_runs_or_says_why_not() -> None:
    assert len(BLOCKS) > 40
    for block in BLOCKS:
        if block.language not in RUN | SHOWN:
            assert block.reason, f"{block}: {block.language} does not run here; say why in a comment above it"
        if block.reason is not None:
            assert len(block.reason.split()) > 2, f"{block}: {block.reason!r} is no reason"
        for part in block.left_out:
            assert part in block.code, f"{block}: no line has {part!r}"


def test_every_replacement_is_needed() -> None:
    code = "\n".join(map(code_of, PAGES))
    for large in SMALLER:
        assert large in code, f"no page has {large!r} any more"


@pytest.mark.parametrize("page", PAGES, ids=title)
def test_every_file_of_this_project_that_a_page_names_exists(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    named = re.findall(r"(?<![\w/])(?:core|tests|benchmarks|scripts|examples)/[\w/.-]*\w", text)
    folders = "|".join(path.name for path in (ROOT / "src/evitseg").iterdir() if path.is_dir())
    named += [f"src/evitseg/{path}" for path in re.findall(rf"`((?:{folders})/[\w/]+\.py)`", text)]
    for path in named:
        assert (ROOT / path).exists(), f"{title(page)}: there is no {path}"


def test_every_extra_that_is_installed_by_the_docs_exists() -> None:
    known = set(metadata.metadata("evitseg").get_all("Provides-Extra") or [])
    for page in [*PAGES, ROOT / "CONTRIBUTING.md"]:
        text = page.read_text(encoding="utf-8")
        assert "install 'evitseg" not in text, f"{page}: evitseg is on no package index; write pip install '.[extra]'"
        for extras in re.findall(r"pip install [^`\n]*'\.\[([\w,-]+)\]'", text):
            assert set(extras.split(",")) <= known, f"{page}: {extras}"


# Stand-ins.


def photograph(size: tuple[int, int] = (96, 64)) -> Image.Image:
    with Image.open(EXAMPLE_IMAGE) as image:
        small: Image.Image = image.convert("RGB").resize(size)
    return small


def clip(path: Path) -> None:
    import av

    with av.open(str(path), "w") as out:
        stream: Any = out.add_stream("libx264", 25)
        stream.height, stream.width, stream.pix_fmt = 64, 96, "yuv420p"
        for i in range(4):
            pixels = np.roll(np.asarray(photograph()), 3 * i, 1)
            out.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        out.mux(stream.encode(None))


def data_set(folder: Path) -> None:
    """Photographs whose masks are the bundled model's, as CamVid's classes."""
    import evitseg
    from evitseg.labels import load_labels

    segment = evitseg.load(size=64)
    folder.mkdir()
    (folder / "classes.txt").write_text("\n".join(load_labels("camvid").names) + "\n", encoding="utf-8")
    for split, count in (("train", 4), ("val", 2), ("test", 2)):
        for i in range(count):
            image = np.roll(np.asarray(photograph()), 9 * i + len(split), 1)
            for kind in ("images", "masks"):
                (folder / kind / split).mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(folder / "images" / split / f"{split}{i}.png")
            segment(image).save(folder / "masks" / split / f"{split}{i}.png")


def mosaic(path: Path) -> None:
    import rasterio

    pixels = np.asarray(photograph((160, 96)))
    with rasterio.open(
        path, "w", driver="GTiff", height=96, width=160, count=3, dtype="uint8", crs="EPSG:32632",
        transform=rasterio.Affine(0.5, 0, 500_000, 0, -0.5, 5_300_000),
    ) as file:  # fmt: skip
        file.write(pixels.transpose(2, 0, 1))


@pytest.fixture(scope="module", autouse=True)
def _less_work() -> Iterator[None]:
    """Exports are verified on small images, training draws nothing, and measurements do not wait for a quiet moment."""
    with verified_on_small_images(), nothing_drawn(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(worker, "PAUSE_S", 0.0)
        yield


@pytest.fixture(scope="module")
def stand_ins(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every file that the docs name."""
    from evitseg.bundled import DEFAULT_MODEL, bundled_models

    folder = tmp_path_factory.mktemp("docs")
    for name in ("photo.jpg", "street.jpg", "folder/a.jpg", "holiday/b.jpg"):
        (folder / name).parent.mkdir(exist_ok=True)
        photograph().save(folder / name)
    if is_installed("av"):
        for name in ("clip.mp4", "clip.mov", "holiday/c.mp4"):
            clip(folder / name)
    data_set(folder / "data")
    if is_installed("rasterio"):
        mosaic(folder / "mosaic.tif")
    photograph((160, 96)).save(folder / "mosaic.png")
    (folder / "predictions").mkdir()
    for mask in (folder / "data/masks/val").iterdir():
        shutil.copy(mask, folder / "predictions")
    shutil.copy(bundled_models()[DEFAULT_MODEL], folder / "model.safetensors")
    if is_installed("torch") and is_installed("onnx"):
        shutil.copy(bundled_onnx(), folder / "model.onnx")
    return folder


@pytest.fixture
def place(stand_ins: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "here"
    shutil.copytree(stand_ins, folder)
    monkeypatch.chdir(folder)
    return folder


def smaller(code: str) -> str:
    for large, small in SMALLER.items():
        code = code.replace(large, small)
    return code


def commands(block: Block) -> Iterator[list[str]]:
    """Words of every command, comments and left-out lines gone."""
    code = block.code.replace("\\\n", " ")
    for line in code.splitlines():
        if any(part in line for part in block.left_out):
            continue
        words = shlex.split(smaller(line), comments=True)
        while "&&" in words:
            yield words[: words.index("&&")]
            words = words[words.index("&&") + 1 :]
        if words:
            yield words


def run(words: list[str], where: str) -> None:
    """One command: our own in this process; an installation is checked by the test above."""
    from evitseg.cli import app

    program = words[0].removeprefix(".venv/bin/")
    if program in ("pip", "python3") and words[1] in ("install", "-m"):
        return
    assert program == "evitseg", f"{where}: {program} is not known here; say why it is not run"
    if words[1] == "train" and "--resume" not in words:
        words = [*words, *TRAINING]
    done = CliRunner().invoke(app, words[1:])
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    assert done.exit_code == 0, f"{where}: {shlex.join(words)}\n{done.output}"


def given(page: Path) -> list[list[str]]:
    commands = re.findall(r"<!-- given: (.*?) -->", page.read_text(encoding="utf-8"), re.DOTALL)
    return [shlex.split(smaller(command)) for command in commands]


def runs(page: Path) -> list[Block]:
    return [block for block in BLOCKS if block.page == page and block.language in RUN and block.reason is None]


def code_of(page: Path) -> str:
    """Everything that a page runs."""
    lines = [shlex.join(words) for words in given(page)]
    for block in runs(page):
        lines += [line for line in block.code.splitlines() if not any(part in line for part in block.left_out)]
    return "\n".join(lines)


def marked_pages() -> Iterator[Any]:
    for page in PAGES:
        code = code_of(page)
        marks = [pytest.mark.slow] if "evitseg train" in code else []
        marks += [pytest.mark.converters] if "--to litert" in code else []
        yield pytest.param(page, id=title(page), marks=marks)


@pytest.mark.parametrize("page", list(marked_pages()))
def test_the_blocks_of_a_page_run_one_after_the_other(page: Path, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for pattern, packages in PACKAGES.items():
        if re.search(pattern, code_of(page)):
            needs(*packages)
    monkeypatch.setattr(sys, "path", [str(place), *sys.path])
    for name, block in FILES.items():
        (place / name).write_text(smaller(block.code), encoding="utf-8")
        monkeypatch.delitem(sys.modules, Path(name).stem, raising=False)
    for words in given(page):
        run(words, title(page))
    names: dict[str, Any] = {"__name__": "docs"}
    for block in runs(page):
        if block.language == "sh":
            for words in commands(block):
                run(words, str(block))
        else:
            exec(compile(smaller(block.code), str(block), "exec"), names)
    for name in FILES:
        monkeypatch.delitem(sys.modules, Path(name).stem, raising=False)
