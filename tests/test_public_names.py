"""The public surface: everything that `evitseg` exports can be imported, is documented, and has real types."""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import evitseg
from tests.optional import needs

ROOT = Path(__file__).parents[1]
PUBLIC = evitseg.__all__


def members(name: str) -> Iterator[tuple[str, object]]:
    """A public name with the public functions and classes of a module, and the public methods of a class."""
    value = getattr(evitseg, name)
    yield name, value
    if not inspect.ismodule(value) and not inspect.isclass(value):
        return
    for own, item in vars(value).items():
        if own.startswith("_") and own not in ("__init__", "__call__"):
            continue
        if inspect.ismodule(value) and getattr(item, "__module__", "").partition(".")[0] != "evitseg":
            continue
        if isinstance(item, (staticmethod, classmethod)):
            item = item.__func__
        if isinstance(item, property):
            item = item.fget
        if inspect.isfunction(item) or inspect.isclass(item) or hasattr(item, "func"):
            yield f"{name}.{own}", getattr(item, "func", item)


@pytest.mark.parametrize("name", PUBLIC)
def test_every_public_name_can_be_imported_and_is_documented(name: str) -> None:
    needs("torch")
    value = getattr(evitseg, name)
    documented = inspect.getdoc(value)
    assert documented
    assert documented.splitlines()[0].endswith(".")
    assert not documented.startswith(f"{name}(")  # what dataclass writes where nobody wrote anything


def test_the_reference_has_every_public_name() -> None:
    headings = re.findall(r"^### (\w+)$", (ROOT / "docs/reference/api.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert sorted(headings) == PUBLIC


def test_type_checkers_see_the_names_that_the_table_has() -> None:
    tree = ast.parse(Path(evitseg.__file__).read_text(encoding="utf-8"))
    (block,) = [node for node in tree.body if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"]
    seen = {}
    for node in block.body:
        assert isinstance(node, ast.ImportFrom)
        for alias in node.names:
            assert alias.asname == alias.name, "without `as`, a type checker does not count it as exported"
            seen[alias.name] = node.module
    modules = dict.fromkeys((name for name in PUBLIC if inspect.ismodule(getattr(evitseg, name))), "evitseg")
    table = {name: module for module, names in evitseg._MODULES.items() for name in names}
    assert seen == table | modules
    assert sorted(seen) == PUBLIC


@pytest.mark.parametrize("name", PUBLIC)
def test_no_public_signature_has_any(name: str) -> None:
    needs("torch")
    for path, item in members(name):
        annotations = inspect.get_annotations(item) if callable(item) else {}
        for where, annotation in annotations.items():
            if where.startswith("_"):
                continue
            assert not re.search(r"\bAny\b", str(annotation)), f"{path}, {where}: {annotation}"
        if inspect.isfunction(item):
            parameters = [p for p in inspect.signature(item).parameters if p not in ("self", "cls")]
            missing = [p for p in parameters if p not in annotations]
            assert not missing, f"{path}: {missing} without a type"


def test_the_package_says_that_it_has_types() -> None:
    assert (Path(evitseg.__file__).parent / "py.typed").is_file()


def test_an_unknown_name_is_an_attribute_error_and_dir_lists_every_name() -> None:
    assert not hasattr(evitseg, "sgement")
    assert set(PUBLIC) <= set(dir(evitseg))
