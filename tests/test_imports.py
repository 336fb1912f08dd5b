"""Who may import whom, and what may be missing."""

from __future__ import annotations

import ast
import inspect
import os
import subprocess
import sys
from pathlib import Path

import pytest

import evitseg
from tests.exported import bundled_onnx
from tests.optional import needs

PACKAGE = Path(evitseg.__file__).parent
MODULES = sorted(PACKAGE.rglob("*.py"))

# A module may import from its own group and from the groups above it: at its top and inside its functions.
ORDER = (
    ("errors", "_version", "bundled"),
    ("system", "architecture", "labels"),
    ("image", "preprocess", "visualize", "manifest", "engine"),
    ("raster",),
    ("data",),
    ("evaluation",),
    ("runtime",),
    ("model",),
    ("loading",),
    ("tiling", "video", "web"),
    ("exporters", "train", "profiling", "cluster", "viewer", "sharing"),
    ("serve",),
    ("__init__",),
    ("cli",),
    ("__main__",),
)
RANK = {name: rank for rank, group in enumerate(ORDER) for name in group}
# Packages that a module may import at its top, beside the standard library.
LIGHT = {"numpy", "PIL", "click", "rich"}
OUTSIDE = {name: LIGHT | {"torch"} for name in ("model", "exporters", "train")} | {
    "serve": LIGHT | {"anyio", "prometheus_client", "starlette", "uvicorn"}
}


def place(module: Path) -> str:
    """The folder, or the module of the package's root."""
    return module.relative_to(PACKAGE).with_suffix("").parts[0]


def imports(module: Path, everywhere: bool) -> set[str]:
    """Names of the modules it imports: at the top, or also inside functions; not those for type checking alone."""
    found = set()
    tree = ast.parse(module.read_text(encoding="utf-8"))
    checking = {
        id(node)
        for block in ast.walk(tree)
        if isinstance(block, ast.If) and isinstance(block.test, ast.Name) and block.test.id == "TYPE_CHECKING"
        for node in ast.walk(block)
    }
    for node in ast.walk(tree) if everywhere else tree.body:
        if id(node) in checking:
            continue
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            if node.module == "evitseg":
                names = {f"evitseg.{alias.name}" for alias in node.names}
                found |= {name if name.split(".")[1] in RANK else "evitseg" for name in names}
            else:
                found.add(node.module)
    return found


def place_of(name: str) -> str:
    return name.split(".")[1] if "." in name else "__init__"


@pytest.mark.parametrize("module", MODULES, ids=lambda m: str(m.relative_to(PACKAGE)))
def test_a_module_imports_only_from_its_own_group_and_those_above(module: Path) -> None:
    here = place(module)
    for name in imports(module, everywhere=True):
        if name.split(".")[0] != "evitseg" or place_of(name) not in RANK:
            continue
        there = place_of(name)
        assert there == here or RANK[there] <= RANK[here], f"{here} imports {name}"
        assert {here, there} != {"runtime", "model"}, f"{here} imports {name}"


@pytest.mark.parametrize("module", MODULES, ids=lambda m: str(m.relative_to(PACKAGE)))
def test_importing_a_module_needs_only_light_packages(module: Path) -> None:
    for name in imports(module, everywhere=False):
        top = name.split(".")[0]
        allowed = top == "evitseg" or top in sys.stdlib_module_names or top in OUTSIDE.get(place(module), LIGHT)
        assert allowed, f"{place(module)} imports {name}"


def test_every_module_has_a_place_in_the_order() -> None:
    assert {place(module) for module in MODULES} == set(RANK)


def python(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, env=os.environ | environment
    )


def test_import_loads_neither_torch_nor_an_engine() -> None:
    run = python("import sys, evitseg; print({m.split('.')[0] for m in sys.modules})")
    loaded = ast.literal_eval(run.stdout)
    assert not loaded & {"torch", "openvino", "onnxruntime", "onnx", "numpy", "PIL", "rich", "click"}


def test_help_loads_only_the_command_lines_library() -> None:
    run = python(
        "import sys; sys.argv = ['evitseg', '--help']; import evitseg.cli, atexit;"
        "atexit.register(lambda: print('LOADED', {m.split('.')[0] for m in sys.modules})); evitseg.cli.app()"
    )
    loaded = ast.literal_eval(run.stdout.split("LOADED ")[1])
    assert not loaded & {"torch", "openvino", "onnxruntime", "onnx", "numpy", "PIL"}


def test_segmenting_an_image_loads_only_what_it_uses(tmp_path: Path) -> None:
    run = python(
        "import sys, atexit, evitseg.cli\n"
        f"sys.argv = ['evitseg', 'predict', '--example', '--size', '64', '--out', {str(tmp_path / 'out')!r}]\n"
        "atexit.register(lambda: print('LOADED', [*sys.modules])); evitseg.cli.app()"
    )
    loaded = set(ast.literal_eval(run.stdout.split("LOADED ")[1]))
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["street_mask.png", "street_overlay.jpg"]
    unused = {"rich", "PIL.PdfImagePlugin", "evitseg.tiling.driver", "av", "rasterio"}
    assert not loaded & unused


FORBID = """
import sys

class Forbidden:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {"torch", "onnx", "onnxruntime", "openvino", "ray", "huggingface_hub"}:
            raise ImportError(f"{name} is not installed")

sys.meta_path.insert(0, Forbidden())
"""


def test_the_runtime_works_without_torch() -> None:
    code = (
        "import evitseg; from evitseg.bundled import EXAMPLE_IMAGE; "
        "print(round(evitseg.load()(EXAMPLE_IMAGE).fractions()['road'], 1))"
    )
    run = python(FORBID + code)
    assert run.returncode == 0, run.stderr
    assert run.stdout.strip() == "0.4"


def test_nobody_is_told_that_it_runs(tmp_path: Path) -> None:
    needs("openvino")
    code = (
        f"import sys, evitseg; evitseg.load({str(bundled_onnx())!r}, engine='openvino'); "
        "print([name for name, module in sys.modules.items() if 'openvino_telemetry' in name and module])"
    )
    run = python(code, HOME=str(tmp_path), USERPROFILE=str(tmp_path), CI="")
    assert run.stdout.strip() == "[]", run.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "extra"),
    [
        (["predict", "--example", "--model", "b0-cityscapes"], "torch"),
        (["predict", "--example", "--model", "x.pt"], "torch"),
        (["predict", "--example", "--model", "x.onnx", "--engine", "openvino"], "openvino"),
        (["predict", "--example", "--model", "x.onnx", "--engine", "onnxruntime"], "onnxruntime"),
        (["export", "x.pt"], "export"),
        (["predict", "--example", "--ray", "auto"], "ray"),
    ],
)
def test_what_is_not_installed_is_named_with_its_extra(arguments: list[str], extra: str, tmp_path: Path) -> None:
    for name in ("x.pt", "x.onnx"):
        (tmp_path / name).touch()
    run = python(
        FORBID + f"import os; os.chdir({str(tmp_path)!r}); sys.argv = ['evitseg', *{arguments!r}]; "
        "import evitseg.cli; evitseg.cli.app()"
    )
    assert run.returncode == 1
    assert f"pip install '.[{extra}]'" in run.stderr
    assert "Traceback" not in run.stderr
    assert sorted(p.name for p in tmp_path.iterdir()) == ["x.onnx", "x.pt"]


def test_public_names_stay_what_they_are_after_every_import() -> None:
    needs("torch", "onnx")
    # A submodule of the same name would take a function's place.
    import evitseg.exporters.export
    import evitseg.loading
    import evitseg.model.network
    import evitseg.runtime.segmenter

    for name in evitseg.__all__:
        is_module = inspect.ismodule(getattr(evitseg, name))
        assert is_module == (name in ("cluster", "errors")), name
    with pytest.raises(AttributeError, match="nothing"):
        evitseg.nothing  # type: ignore[attr-defined]  # noqa: B018


def test_names_that_need_torch_can_be_looked_at_without_it() -> None:
    code = (
        "import sys; sys.modules['torch'] = None\n"  # as if it were not installed
        "import evitseg, inspect\n"
        "from evitseg import build\n"
        "assert hasattr(evitseg, 'build') and not hasattr(evitseg, 'biuld')\n"
        "assert 'fit' in dict(inspect.getmembers(evitseg)) and 'extra' in build.__doc__\n"
        "from evitseg import *\n"
        "try:\n    evitseg.TrainConfig(variant='b0')\n"
        "except evitseg.EvitsegError as error:\n    print(error)\n"
        "build('b0', 3)\n"
    )
    run = python(code)
    assert "evitseg.TrainConfig needs packages" in run.stdout, run.stderr
    assert run.stderr.splitlines()[-1].startswith("evitseg.errors.MissingPackageError: evitseg.build needs packages")
