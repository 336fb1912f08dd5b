"""A real browser for tests of pages. It needs Chromium or Chrome on the machine, which no package installs."""

from __future__ import annotations

import io
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
_PATIENCE_S = 30


@contextmanager
def started_browser(arguments: Sequence[str] = (), beside: Browser | None = None) -> Iterator[Browser]:
    """A browser, or the end of the test if there is none on the machine; `beside` one that runs already."""
    from playwright.sync_api import sync_playwright

    path = next((found for name in BROWSERS if (found := shutil.which(name))), None)
    if path is None:
        pytest.skip("needs Chromium or Chrome, such as apt install chromium")
    with ExitStack() as stack:
        kind = beside.browser_type if beside else stack.enter_context(sync_playwright()).chromium
        # Chromium's own sandbox does not work for root, whose page is ours.
        started = kind.launch(executable_path=path, args=["--no-sandbox", *arguments])
        yield started
        started.close()


def until(page: Page, is_so: Callable[[], object]) -> None:
    """Wait, while the page goes on, until something is so."""
    end = time.monotonic() + _PATIENCE_S
    while not is_so():
        assert time.monotonic() < end
        page.wait_for_timeout(20)


def pixels_of(page: Page) -> NDArray[np.uint8]:
    """(H, W, 3) the page as it is seen."""
    return np.asarray(Image.open(io.BytesIO(page.screenshot())).convert("RGB"))
