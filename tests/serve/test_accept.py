"""The choice of an answer by the header Accept."""

from __future__ import annotations

import pytest

from tests.optional import needs

needs("starlette")

from evitseg.serve.accept import chosen
from evitseg.serve.problems import ProblemError

OFFERED = ("image/png", "application/json", "image/webp")


@pytest.mark.parametrize(
    ("accept", "expected"),
    [
        ("", "image/png"),
        ("*/*", "image/png"),
        ("image/*", "image/png"),
        ("application/json", "application/json"),
        ("Application/JSON; charset=utf-8", "application/json"),
        ("application/*;q=0.5, image/webp;q=0.4", "application/json"),
        ("image/*;q=0.2, image/webp", "image/webp"),
        ("image/png;q=0, */*", "application/json"),
        ("text/html, image/webp;q=0.1", "image/webp"),
        ("image/avif,image/webp,image/apng,image/*,*/*;q=0.8", "image/png"),
    ],
)
def test_the_most_preferred_type_is_chosen(accept: str, expected: str) -> None:
    assert chosen(accept, OFFERED) == expected


@pytest.mark.parametrize("accept", ["text/html", "image/png;q=0, application/json;q=0, image/webp;q=0", "nonsense"])
def test_a_client_that_accepts_no_answer_gets_the_list(accept: str) -> None:
    with pytest.raises(ProblemError, match="image/png, application/json, image/webp"):
        chosen(accept, OFFERED)
