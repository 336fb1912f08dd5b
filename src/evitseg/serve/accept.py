"""Choose an answer's media type by the header Accept (RFC 9110)."""

from __future__ import annotations

import re
from collections.abc import Sequence

from evitseg.serve.problems import ProblemError

_MAX_RANGES = 64
_QUALITY = re.compile(r"0(\.[0-9]{0,3})?|1(\.0{0,3})?")


def chosen(accept: str, offered: Sequence[str]) -> str:
    """The media type that the client prefers, the first one offered if it has no preference.

    Args:
        accept: the header's value; "" accepts everything.
        offered: media types, best first.

    Raises: ProblemError if the client accepts none of them.
    """
    ranges = [_parsed(part) for part in accept.split(",")[:_MAX_RANGES] if part.strip()]
    if not ranges:
        return offered[0]
    best = max(offered, key=lambda media: _quality(media, ranges))  # the first of equals
    if not _quality(best, ranges):
        raise ProblemError("not-acceptable", f"the answers are {', '.join(offered)}; Accept is {accept[:100]!r}.")
    return best


def _parsed(part: str) -> tuple[str, float]:
    media, *parameters = (piece.strip().lower() for piece in part.split(";"))
    for parameter in parameters:
        name, _, value = parameter.partition("=")
        if name.strip() == "q":
            return media, float(value) if _QUALITY.fullmatch(value.strip()) else 0.0
    return media, 1.0


def _quality(media: str, ranges: Sequence[tuple[str, float]]) -> float:
    """The quality of the most specific range that contains a media type; 0 if none does."""
    kind = media.partition("/")[0]
    for wanted in (media, f"{kind}/*", "*/*"):
        found = [quality for each, quality in ranges if each == wanted]
        if found:
            return max(found)
    return 0.0
