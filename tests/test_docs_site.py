"""The documentation as a site: no broken link, an up-to-date reference, a build without a warning."""

from __future__ import annotations

import re
import subprocess
import sys
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path

import pytest
import yaml
from markdown_it import MarkdownIt

from tests.optional import needs

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.rglob("*.md"))
OUTSIDE = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md"]


def title(page: Path) -> str:
    return str(page.relative_to(ROOT))


def links(page: Path) -> list[str]:
    """Targets of all links and images of a page."""
    found = []
    for block in MarkdownIt().enable("table").parse(page.read_text(encoding="utf-8")):
        for token in block.children or []:
            target = token.attrGet("href") or token.attrGet("src")
            if target:
                found.append(str(target))
        if block.type == "html_block":
            found += re.findall(r'(?:href|src)="([^"]+)"', block.content)
    return found


def anchors(page: Path) -> set[str]:
    """Anchors of a page's headings, as forges and the site make them."""
    found: set[str] = set()
    tokens = MarkdownIt().parse(page.read_text(encoding="utf-8"))
    for opening, text in pairwise(tokens):
        if opening.type == "heading_open":
            words = "".join(child.content for child in text.children or [])
            found.add(re.sub(r"[^\w\- ]", "", words.lower()).replace(" ", "-"))
    return found


@pytest.mark.parametrize("page", [*OUTSIDE, *PAGES], ids=title)
def test_every_link_of_a_page_leads_to_a_file_and_a_heading(page: Path) -> None:
    for target in links(page):
        if re.match(r"\w+:", target):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.exists(), f"{title(page)}: {target} leads nowhere"
        if anchor:
            assert anchor in anchors(file), f"{title(page)}: {title(file)} has no heading for #{anchor}"


def test_the_link_check_sees_links_and_anchors(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        '# A `b` c\n\n[x](y.md#z) ![](i.png)\n\n| [t](t.md) |\n| --- |\n| [u](u.md) |\n\n<img src="v.png">\n'
    )
    assert sorted(links(page)) == ["i.png", "t.md", "u.md", "v.png", "y.md#z"]
    assert anchors(page) == {"a-b-c"}


def test_every_page_is_in_the_table_of_contents_once() -> None:
    toc = yaml.safe_load((DOCS / "_toc.yml").read_text(encoding="utf-8"))
    listed = [toc["root"]] + [entry["file"] for part in toc["subtrees"] for entry in part["entries"]]
    assert sorted(listed) == sorted(str(page.relative_to(DOCS).with_suffix("")) for page in PAGES)


def test_the_reference_says_what_the_code_says() -> None:
    needs("torch", "accelerate")
    done = subprocess.run(
        [sys.executable, str(ROOT / "scripts/docs.py"), "--check"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


class _Loaded(HTMLParser):
    """Addresses that a page loads by itself: scripts, styles, images, fonts."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in ("script", "link", "img", "iframe", "source"):
            self.found += [value for name, value in attrs if name in ("src", "href") and value]


@pytest.mark.slow
def test_the_site_builds_without_a_warning_and_loads_nothing_from_the_net(tmp_path: Path) -> None:
    needs("sphinx")
    site = tmp_path / "site"
    command = [sys.executable, str(ROOT / "scripts/docs.py"), "--site", str(site)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    pages = list(site.rglob("*.html"))
    assert len(pages) >= len(PAGES)
    assert (site / "searchindex.js").stat().st_size > 10_000
    for page in pages:
        text = page.read_text(encoding="utf-8")
        parser = _Loaded()
        parser.feed(text)
        outside = [address for address in parser.found if re.match(r"(https?:)?//", address)]
        assert not outside, f"{page.relative_to(site)} loads {outside}"
    for style in site.rglob("*.css"):
        assert not re.search(r"(url\(|@import)[\"' ]*(https?:)?//", style.read_text(encoding="utf-8")), style
