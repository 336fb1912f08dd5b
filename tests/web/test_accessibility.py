"""The page for people who do not see it, or see it differently, as axe-core judges it."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.resources import files
from typing import TYPE_CHECKING, Any, Literal

import pytest

from evitseg.web.site_server import SiteServer
from tests.browsing import until
from tests.optional import needs
from tests.web.pages import has_mask, shown

needs("playwright", "axe_playwright_python")

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page


@pytest.fixture(scope="module")
def axe() -> str:
    return (files("axe_playwright_python") / "axe.min.js").read_text(encoding="utf-8")


def violations(page: Page, axe: str) -> Any:
    page.evaluate(axe)
    # Every rule: those of WCAG 2.2 AA and best practices, but not AAA.
    found = page.evaluate("axe.run(document, { resultTypes: ['violations', 'incomplete'] })")
    assert found["passes"], "axe did not run"
    return [
        (each["id"], each["help"], [node["html"] for node in each["nodes"]])
        for each in found["violations"] + [one for one in found["incomplete"] if one["id"] != "color-contrast"]
    ]


@pytest.fixture(scope="module")
def page(browser: Browser, server: SiteServer) -> Iterator[Page]:
    with shown(browser, server.url) as page:
        until(page, lambda: has_mask(page, "example.jpg"))
        yield page


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 1366])
def test_the_page_has_no_violations(scheme: Literal["light", "dark"], width: int, axe: str, page: Page) -> None:
    page.set_viewport_size({"width": width, "height": 768})
    page.emulate_media(color_scheme=scheme)
    assert violations(page, axe) == []
    # Everything that is hidden at first, too.
    page.check("#compare")
    page.click("summary")
    page.focus("#stage")
    page.keyboard.press("ArrowUp")
    problem = "import('./panel.js').then(({ showProblem }) => showProblem('Something.', 'Try again', () => {}))"
    page.evaluate(problem)
    hide = (
        "(is) => { for (const id of ['switch', 'play', 'seek', 'badge', 'progress', 'key-form'])"
        " document.getElementById(id).hidden = is; }"
    )
    page.evaluate(hide, False)
    assert violations(page, axe) == []
    page.evaluate(hide, True)
    page.evaluate("import('./panel.js').then(({ showProblem }) => showProblem(''))")
    page.click("summary")
    page.uncheck("#compare")
