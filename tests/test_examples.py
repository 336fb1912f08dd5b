"""The notebooks in examples/ run from top to bottom."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.optional import needs

EXAMPLES = sorted((Path(__file__).parents[1] / "examples").glob("*.ipynb"))
SMALLER = {
    # What a person does with large images and long runs, done with small ones.
    "epochs=30": "epochs=1, batch_size=8",
    "DataConfig(size=0": "DataConfig(size=0, crop=(64, 64)",
    "range(40)": "range(10)",
    "number < 32": "number < 8",
    "val/32.png": "val/08.png",
    'convert("RGB"))': 'convert("RGB").resize((160, 96)))',
    "window=1024": "window=64",
    '(360, 720, "native")': "(64,)",
}
NEEDS = {
    "large-images": ("rasterio", "pyogrio"),
    "train": ("torch", "safetensors", "accelerate", "tensorboard", "onnx"),
}


def cells(notebook: Path) -> list[str]:
    content = json.loads(notebook.read_text(encoding="utf-8"))
    return ["".join(cell["source"]) for cell in content["cells"] if cell["cell_type"] == "code"]


@pytest.mark.parametrize(
    "notebook",
    [pytest.param(path, id=path.stem, marks=[pytest.mark.slow] if path.stem == "train" else []) for path in EXAMPLES],
)
def test_a_notebook_runs(notebook: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    needs(*NEEDS.get(notebook.stem, ()))
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {"__name__": "notebook"}
    for number, code in enumerate(cells(notebook), 1):
        for large, small in SMALLER.items():
            code = code.replace(large, small)
        exec(compile(code, f"{notebook.name}, cell {number}", "exec"), names)


def test_notebooks_are_stored_without_outputs() -> None:
    assert len(EXAMPLES) >= 3
    for notebook in EXAMPLES:
        for cell in json.loads(notebook.read_text(encoding="utf-8"))["cells"]:
            assert not cell.get("outputs"), f"{notebook.name}: clear all outputs before you commit"


def test_every_replacement_is_needed() -> None:
    code = "\n".join(code for notebook in EXAMPLES for code in cells(notebook))
    for large in SMALLER:
        assert large in code, f"no notebook has {large!r} any more"
