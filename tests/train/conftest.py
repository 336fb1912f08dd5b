from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from tests.optional import is_installed
from tests.train.undrawn import nothing_drawn


@pytest.fixture(scope="package", autouse=True)
def _tiny_variant() -> Iterator[None]:
    if not is_installed("torch"):
        yield
        return
    from tests.train.scenes import add_tiny_variant

    with pytest.MonkeyPatch.context() as patch:
        add_tiny_variant(patch)
        yield


@pytest.fixture(scope="package", autouse=True)
def _undrawn() -> Iterator[dict[str, Callable[..., object]]]:
    """Yields the functions that draw curves and sample predictions, which no run in this package does by itself."""
    with nothing_drawn() as drawing:
        yield drawing


@pytest.fixture
def drawn(_undrawn: dict[str, Callable[..., object]], monkeypatch: pytest.MonkeyPatch) -> None:
    """Draws curves and sample predictions in this test."""
    from evitseg.train import run_log

    for name, function in _undrawn.items():
        monkeypatch.setattr(run_log, name, function)
