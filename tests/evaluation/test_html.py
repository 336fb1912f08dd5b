from __future__ import annotations

from pathlib import Path

from evitseg.evaluation.evaluate import evaluate
from evitseg.evaluation.html import write_html
from evitseg.labels import numbered
from tests.evaluation.test_evaluate import almost, pairs_of


def test_the_page_holds_everything_and_escapes_names(folder: Path) -> None:
    report = evaluate(almost, pairs_of(folder), numbered(3), settings={"model": "<script>alert(1)</script>"})

    write_html(report, folder / "report.html", almost)
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert "<script>" not in page
    assert "http" not in page
    assert page.count("data:image/jpeg;base64,") == 12
    assert f"{100 * report.miou:.1f}" in page
