"""The command line as a whole: exit statuses and the place of messages."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest


@pytest.mark.parametrize(
    ("arguments", "status", "word"),
    [
        (["--version"], 0, ""),
        (["predict", "absent.png"], 1, "absent.png"),
        (["predict", "--bogus"], 2, "--bogus"),
        (["predct"], 2, "predct"),
    ],
)
def test_the_status_says_what_failed_and_stderr_why(
    arguments: list[str], status: int, word: str, cli: Callable[..., Any]
) -> None:
    done = cli(*arguments)
    assert done.status == status
    assert word in done.stderr
    assert "Traceback" not in done.stderr
