"""What a visit to the page may cost: bytes, requests, and time of the thread that also answers the person.

Times are processor time of that thread, which other programs on the machine do not lengthen.
"""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from evitseg.web.site_server import SiteServer
from tests.browsing import until
from tests.optional import needs
from tests.web.pages import has_mask, masks, shown, start_camera

needs("playwright")

if TYPE_CHECKING:
    from playwright.sync_api import Browser


COMPRESSED_BYTES = 120_000
"""Everything but the model and the first image, as gzip compresses it."""
REQUESTS = 34
OPENING_S = 0.3
"""From the address to the first mask. 0.09 was measured."""
MASK_S = 0.012
"""Per mask of the camera, with everything that the page does meanwhile. 0.0035 was measured."""


def test_a_visit_stays_within_its_budget(browser: Browser, server: SiteServer, site: Path) -> None:
    asked: list[str] = []
    with shown(browser, server.url, permissions=["camera"]) as page:
        devtools = page.context.new_cdp_session(page)
        devtools.send("Performance.enable", {"timeDomain": "threadTicks"})

        def seconds() -> float:
            metrics: list[dict[str, Any]] = devtools.send("Performance.getMetrics")["metrics"]
            return float(next(each["value"] for each in metrics if each["name"] == "TaskDuration"))

        until(page, lambda: has_mask(page, "example.jpg"))
        page.on("request", lambda request: asked.append(urlsplit(request.url).path))
        page.reload()
        until(page, lambda: has_mask(page, "example.jpg"))
        assert seconds() < OPENING_S
        names = [path.split("/", 2)[-1] for path in asked if path.startswith("/")]
        assert len(names) <= REQUESTS
        files = {site / (name or "index.html") for name in names} - {site / "example.jpg", site / "model.evit"}
        assert sum(len(gzip.compress(path.read_bytes())) for path in files) < COMPRESSED_BYTES
        start_camera(page)
        before, first = seconds(), masks(page)
        until(page, lambda: masks(page) > first + 20)
        assert (seconds() - before) / (masks(page) - first) < MASK_S
