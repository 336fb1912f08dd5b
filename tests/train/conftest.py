from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from tests.optional import is_installed


@pytest.fixture(scope="package", autouse=True)
def _undrawn() -> Iterator[dict[str, Callable[..., object]]]:
    """Leaves out curves and sample predictions, which take longer to draw than an epoch on small scenes takes.

    Yields the functions that draw them.
    """
    if not is_installed("torch"):
        yield {}
        return
    from evitseg.train import run_log

    drawing: dict[str, Callable[..., object]] = {
        "draw_curves": run_log.draw_curves,
        "draw_predictions": run_log.draw_predictions,
    }
    with pytest.MonkeyPatch.context() as patch:
        for name in drawing:
            patch.setattr(run_log, name, lambda *arguments: None)
        yield drawing


@pytest.fixture
def drawn(_undrawn: dict[str, Callable[..., object]], monkeypatch: pytest.MonkeyPatch) -> None:
    """Draws curves and sample predictions in this test."""
    from evitseg.train import run_log

    for name, function in _undrawn.items():
        monkeypatch.setattr(run_log, name, function)
