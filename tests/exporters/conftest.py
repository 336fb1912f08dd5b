from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.exported import verified_on_small_images
from tests.exporters.converters import needs_format


@pytest.fixture(scope="package", autouse=True)
def _small_images() -> Iterator[None]:
    with verified_on_small_images():
        yield


@pytest.fixture(autouse=True)
def _converters_are_installed(request: pytest.FixtureRequest) -> None:
    """Skips a row of the table of formats (the parameter `to`) whose converter is not installed."""
    callspec = getattr(request.node, "callspec", None)
    if callspec is not None and isinstance(callspec.params.get("to"), str):
        needs_format(callspec.params["to"])
