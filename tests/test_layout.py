"""The layout of the package and of its tests: sizes, names, and where a test belongs."""

from __future__ import annotations

import ast
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest

import evitseg

PACKAGE = Path(evitseg.__file__).parent
TESTS = Path(__file__).parent
DESIGN = TESTS.parent / "docs/explanation/design.md"
MODULES = {path.relative_to(PACKAGE).as_posix(): path for path in sorted(PACKAGE.rglob("*.py"))}

LONGEST, LONGEST_OF_CLI = 450, 250
LONGER = ("architecture.py",)
"""Modules above the limit. The design document says, for each, why it is not two."""
SAME_NAME = {
    "files": "reading and writing of images; reading and writing of any file",
    "formats": "of images; of exported models",
    "network": "the network in PyTorch; the network in bands",
    "verify": "of bands; of exported models",
    # To be renamed:
    "engine": "",
}
"""Names that several modules have, with what each is about."""
SAME_CLASS: dict[str, str] = {}
"""Names that several public classes have, with the reason."""


def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__")


def test_no_module_is_too_long_but_those_that_the_design_document_argues_for() -> None:
    lines = {name: len(path.read_text(encoding="utf-8").splitlines()) for name, path in MODULES.items()}
    limits = {name: LONGEST_OF_CLI if name.startswith("cli/") else LONGEST for name in MODULES}
    assert sorted(name for name in MODULES if lines[name] > limits[name]) == sorted(LONGER)
    text = DESIGN.read_text(encoding="utf-8")
    for name in LONGER:
        assert f"`{name}`" in text, f"{DESIGN.name} does not say why {name} is longer than {limits[name]} lines"


def test_no_two_modules_share_a_name() -> None:
    """A verb's file in cli/ is named for the verb, and a package's __init__ for nothing."""
    found = defaultdict(list)
    for name in MODULES:
        stem = Path(name).stem
        if not name.startswith("cli/") and stem != "__init__":
            found[stem].append(name)
    assert {stem: names for stem, names in found.items() if len(names) > 1 and stem not in SAME_NAME} == {}
    assert {stem for stem in SAME_NAME if len(found[stem]) < 2} == set(), "take these out of the table"


def test_no_two_public_classes_share_a_name() -> None:
    found = defaultdict(list)
    for name, path in MODULES.items():
        for node in tree(path).body:
            if isinstance(node, ast.ClassDef) and not is_private(node.name):
                found[node.name].append(name)
    assert {cls: names for cls, names in found.items() if len(names) > 1 and cls not in SAME_CLASS} == {}
    assert {cls for cls in SAME_CLASS if len(found[cls]) < 2} == set(), "take these out of the table"


def private_uses(path: Path) -> Iterator[str]:
    """Private names of the package's modules that a file imports, or reads as an attribute of a module."""
    nodes = list(ast.walk(tree(path)))
    modules = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            modules |= {alias.asname for alias in node.names if alias.asname and alias.name.startswith("evitseg.")}
        elif isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "evitseg":
            for alias in node.names:
                if is_private(alias.name):
                    yield f"{node.module}.{alias.name}"
                folder = PACKAGE.joinpath(*node.module.split(".")[1:])
                if (folder / f"{alias.name}.py").exists() or (folder / alias.name / "__init__.py").exists():
                    modules.add(alias.asname or alias.name)
    for node in nodes:
        if (
            isinstance(node, ast.Attribute)
            and is_private(node.attr)
            and isinstance(node.value, ast.Name)
            and node.value.id in modules
        ):
            yield f"{node.value.id}.{node.attr}"


@pytest.mark.parametrize("name", MODULES)
def test_no_module_uses_a_private_name_of_another(name: str) -> None:
    assert set(private_uses(MODULES[name])) <= {"evitseg._version"}


def test_tests_use_public_names() -> None:
    found = {path.relative_to(TESTS).as_posix(): set(private_uses(path)) for path in TESTS.rglob("*.py")}
    assert {name: uses for name, uses in found.items() if uses} == {}


def test_tests_lie_where_the_module_that_they_are_about_lies() -> None:
    folders = {path.parent.relative_to(TESTS).as_posix() for path in TESTS.rglob("test_*.py")}
    assert {folder for folder in folders if not (PACKAGE / folder).is_dir()} == set()
    assert {folder for folder in folders if not (TESTS / folder / "__init__.py").exists()} == set(), (
        "a folder of tests needs an __init__.py: test files of different folders may share a name"
    )
