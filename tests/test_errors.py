"""Sentences for people."""

from __future__ import annotations

import pickle
import re
import threading
import warnings
from importlib import metadata

import pytest

from evitseg.errors import MissingPackageError, warn, without_warnings

STATED = [
    "numpy>=1.24",
    'rasterio>=1.4; extra == "geo"',
    "tifffile>=2025.5; extra == 'slides'",
    'evitseg[torch,bench]; extra == "train"',
    'torch>=2.6; extra == "torch"',
    'ray[data]>=2.60; extra == "bench"',
]


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """Names of the packages that are there; evitseg itself is, with the requirements above."""
    names: set[str] = set()

    def distribution(name: str) -> None:
        if name not in names:
            raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "requires", lambda name: STATED)
    monkeypatch.setattr(metadata, "distribution", distribution)
    return names


def test_missing_packages_are_named_as_pip_takes_them(installed: set[str]) -> None:
    assert str(MissingPackageError("x", "geo,slides")) == (
        "x needs packages that are not installed: python -m pip install 'rasterio>=1.4' 'tifffile>=2025.5'; or, in a "
        "clone of evitseg, python -m pip install '.[geo,slides]'."
    )
    installed.add("rasterio")
    assert "'rasterio" not in str(MissingPackageError("x", "geo,slides"))
    assert "'ray[data]>=2.60' 'torch>=2.6'" in str(MissingPackageError("x", "train"))
    assert str(pickle.loads(pickle.dumps(MissingPackageError("x", "geo")))) == str(MissingPackageError("x", "geo"))


def test_without_metadata_the_clone_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def requires(name: str) -> None:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "requires", requires)
    assert str(MissingPackageError("x", "geo")).endswith("not installed: python -m pip install '.[geo]'.")


def test_every_extra_has_packages() -> None:
    for extra in {*(metadata.metadata("evitseg").get_all("Provides-Extra") or [])} - {"coco"}:  # needs nothing any more
        assert re.search(r"install '[\w-]+", str(MissingPackageError("x", extra))), extra


def test_warnings_left_unsaid_in_one_thread_are_said_in_the_others() -> None:
    """`warnings.catch_warnings` in several threads restores whatever was there last: then none is said any more."""
    inside, told = threading.Barrier(2), threading.Barrier(2)

    def quiet() -> None:
        with without_warnings():
            inside.wait(10)
            warn("never said")
            told.wait(10)

    thread = threading.Thread(target=quiet)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        thread.start()
        inside.wait(10)
        warn("of another file")
        told.wait(10)
        thread.join()
        warn("afterwards")
    assert [str(warning.message) for warning in said] == ["of another file", "afterwards"]
