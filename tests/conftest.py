from __future__ import annotations

import importlib.util
import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, NoReturn

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from evitseg.bundled import EXAMPLE_IMAGE
from tests.exported import verified_on_small_images
from tests.optional import hide_packages

hide_packages()
if "PYTEST_XDIST_WORKER" in os.environ:
    # Threads of several workers on a few cores wait for each other in loops, which takes minutes.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # for ncnn, which takes two threads all the same

LONGEST_FIRST = (
    "train", "exporters", "model", "profiling", "tiling", "cluster", "runtime", "web", "test_docs.py", "cli", "video",
    "viewer", "serve", "test_docs_site.py", "test_imports.py",
)  # fmt: skip
"""Folders and files of tests that take long. They begin, so that no process is left with a long file while the others
idle."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    def place(item: pytest.Item) -> int:
        folder = item.path.relative_to(Path(__file__).parent).parts[0]
        return LONGEST_FIRST.index(folder) if folder in LONGEST_FIRST else len(LONGEST_FIRST)

    items.sort(key=place)  # stable: files and their tests keep their order


TOGETHER = ("test_formats.py", "test_int8.py", "[docs/how-to/deploy-litert.md]")
"""Parts of the names of tests that import LiteRT's, ExecuTorch's or Core ML's converters, which takes half a minute."""


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """`--dist loadfile`, but one process runs all tests of converters."""
    if config.getvalue("dist") != "loadfile":
        return None
    from xdist.scheduler import LoadFileScheduling

    class Scheduling(LoadFileScheduling):  # type: ignore[misc]  # xdist has no types
        def _split_scope(self, nodeid: str) -> str:
            return "converters" if any(part in nodeid for part in TOGETHER) else super()._split_scope(nodeid)

    return Scheduling(config, log)


SHARED = Path(os.environ.get("EVITSEG_SHARED", Path(__file__).parents[2] / "shared"))


@pytest.fixture(scope="session")
def shared() -> Callable[[str], Path]:
    """Finds a file or folder in ../shared, whose content is not ours to ship.

    A test skips without it, or fails if EVITSEG_REQUIRE_SHARED=1.
    """

    def find(name: str) -> Path:
        path = SHARED / name
        if not path.exists():
            sentence = f"needs {path}, which a clone does not have"
            if os.environ.get("EVITSEG_REQUIRE_SHARED") == "1":
                pytest.fail(sentence)
            pytest.skip(sentence)
        return path

    return find


@pytest.fixture(scope="session")
def skip_without() -> Callable[[str, Exception], NoReturn]:
    """Skips a test whose precision an engine refused; fails it if the processor lists that precision."""

    def end(precision: str, error: Exception) -> NoReturn:
        assert f"no {precision} arithmetic" in str(error) or f"does not compute in {precision}" in str(error)
        info = Path("/proc/cpuinfo")
        flags = set(info.read_text().split()) if info.exists() else set()
        has = flags & {"float16": {"avx512_fp16"}, "bfloat16": {"avx512_bf16", "amx_bf16"}}[precision]
        if has:
            pytest.fail(f"{precision} was refused ({error}), but the processor has {', '.join(sorted(has))}")
        pytest.skip(f"this processor has no {precision}")

    return end


@pytest.fixture(scope="session")
def fidelity(shared: Callable[[str], Path]) -> ModuleType:
    """The module of ../shared that makes reproducible weights and inputs."""
    spec = importlib.util.spec_from_file_location("fidelity_weights", shared("fidelity/weights.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def architectures(shared: Callable[[str], Path]) -> dict[str, dict[str, list[int]]]:
    """Names and shapes of the weights of every published network."""
    tables: dict[str, Any] = {}
    for file in ("architecture.json", "architecture_timm.json"):
        tables |= json.loads(shared(f"fidelity/{file}").read_text())
    return tables


@pytest.fixture(scope="session")
def photograph() -> NDArray[np.uint8]:
    """A real street scene of 270×480 pixels."""
    with Image.open(EXAMPLE_IMAGE) as image:
        return np.asarray(image.resize((480, 270)))


@pytest.fixture(scope="session")
def b0_checkpoint(shared: Callable[[str], Path]) -> Path:
    """The published B0 checkpoint, trained on Cityscapes."""
    return shared("weights/efficientvit_seg_b0_cityscapes.pt")


EXPORT_SIZE = (40, 60)


@dataclass(frozen=True)
class Finished:
    """The exit status and output of a command."""

    status: int
    stdout: str
    stderr: str
    stdout_bytes: bytes


@pytest.fixture
def cli() -> Callable[..., Finished]:
    """Runs `evitseg ARGUMENTS...` inside this process, on lines of 400 columns, and returns a `Finished`.

    Any exception except SystemExit is a bug of the command line and fails the test.
    """
    from click.testing import CliRunner

    from evitseg.cli import app

    def run(*arguments: object, stdin: bytes | None = None, **environment: str) -> Finished:
        done = CliRunner().invoke(app, [*map(str, arguments)], input=stdin, env={"COLUMNS": "400"} | environment)
        if done.exception is not None and not isinstance(done.exception, SystemExit):
            raise done.exception
        return Finished(done.exit_code, done.stdout, done.stderr, done.stdout_bytes)

    return run


@dataclass(frozen=True)
class Converted:
    """The output of `evitseg convert`, and the dataset that it wrote as `evitseg check` reads it."""

    status: int
    output: str
    names: tuple[str, ...]
    masks: dict[str, NDArray[np.integer]]
    splits: dict[str, list[str]]


@pytest.fixture
def convert(tmp_path: Path, cli: Callable[..., Finished]) -> Callable[..., Converted]:
    """Runs `evitseg convert` and reads the resulting folder as `check`, `eval` and `train` do."""
    from evitseg.data.inspect import inspect
    from evitseg.data.layouts import find_dataset
    from evitseg.raster.masks import read_truth

    def run(source: Path, *options: str) -> Converted:
        out = tmp_path / "converted"
        done = cli("convert", source, "--out", out, *options)
        output = done.stdout + done.stderr
        assert "unexpected error" not in output
        if not list(out.glob("*.txt")):
            return Converted(done.status, output, (), {}, {})
        dataset = find_dataset(out)
        assert dataset.labels is not None
        assert inspect(dataset).problems == []
        return Converted(
            done.status,
            output,
            dataset.labels.names,
            {pair.image.name: read_truth(pair.mask, dataset.labels) for pair in dataset.pairs()},
            {split: [pair.image.name for pair in pairs] for split, pairs in dataset.splits.items()},
        )

    return run


@pytest.fixture
def small_examples() -> Iterator[None]:
    """Exports in this test are verified on reduced photographs."""
    with verified_on_small_images():
        yield


@pytest.fixture
def photo() -> Callable[..., Path]:
    """Writes an image of 60×40 pixels."""

    def write(path: Path, level: int = 90) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", EXPORT_SIZE[::-1], (level, level, level)).save(path)
        return path

    return write


@pytest.fixture
def square() -> Callable[..., NDArray[np.integer]]:
    """Draws rectangles (top, left, bottom, right, value) on a mask of zeros; later ones cover earlier ones."""

    def draw(*boxes: tuple[int, int, int, int, int]) -> NDArray[np.integer]:
        mask = np.zeros(EXPORT_SIZE, np.uint8)
        for top, left, bottom, right, value in boxes:
            mask[top:bottom, left:right] = value
        return mask

    return draw
