"""Training that draws nothing."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

import pytest

from tests.optional import is_installed


@contextlib.contextmanager
def nothing_drawn() -> Iterator[dict[str, Callable[..., object]]]:
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
