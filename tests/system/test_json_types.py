from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import pytest

from evitseg.errors import ConfigError
from evitseg.system.json_types import MismatchError, typed


@dataclass(frozen=True)
class Point:
    x: int
    y: float = 0.0

    def __post_init__(self) -> None:
        if self.x < 0:
            raise ConfigError("x must not be negative.")


@dataclass(frozen=True)
class Named:
    name: str
    kind: Literal["a", "b"] = "a"
    points: tuple[Point, ...] = ()
    weights: dict[str, float] = field(default_factory=dict)


@pytest.mark.parametrize(
    ("value", "kind", "expected"),
    [
        (3, float, 3.0),
        ([1, 2], tuple[int, int], (1, 2)),
        ([], tuple[int, ...], ()),
        (None, int | None, None),
        ("auto", tuple[float, float] | Literal["auto"] | None, "auto"),
        ([0, 1], tuple[float, float] | Literal["auto"] | None, (0.0, 1.0)),
        ({"a": ["x"]}, Mapping[str, tuple[str, ...]], {"a": ("x",)}),
        ({"x": 1}, Point | Named, Point(1)),
        ({"name": "n", "points": [{"x": 1, "y": 2}]}, Point | Named, Named("n", points=(Point(1, 2.0),))),
    ],
)
def test_json_becomes_the_type(value: Any, kind: Any, expected: Any) -> None:
    found = typed(value, kind, "v")
    assert found == expected
    assert type(found) is type(expected)


def test_a_value_that_cannot_be_shown_is_refused_all_the_same() -> None:
    deep: list[Any] = []
    for _ in range(100_000):
        deep = [deep]
    with pytest.raises(MismatchError, match="v is a value of type list, not text"):
        typed(deep, str, "v")
    with pytest.raises(MismatchError, match="v is a value of type int, not text"):
        typed(1 << 20_000, str, "v")


@pytest.mark.parametrize(
    ("value", "kind", "message"),
    [
        (True, int, "v is True, not a whole number"),
        (1, bool, "not true or false"),
        (1.0, int, "not a whole number"),
        ("1", float, "not a number"),
        (10**400, float, "too large"),
        ("ab", tuple[str, ...], "v is 'ab', not a list"),
        ([1], tuple[int, int], "v has 1 values, not 2"),
        (1, Literal["a", "b"], "not one of 'a', 'b'"),
        (True, Literal[1], "not one of 1"),
        ([1], dict[str, int], "not a set of keys and values"),
        ({"points": []}, Named, "v lacks the key 'name'"),
        ({"name": "n", "nmae": 1}, Named, "v has the unknown key 'nmae'"),
        ({"name": "n", "points": [{"x": 1}, {"x": "2"}]}, Named, r"v\.points\[1\]\.x is '2', not a whole number"),
        ({"name": "n", "points": [{"x": -1}]}, Named, r"v\.points\[0\]: x must not be negative$"),
        ({"x": 1, "name": "n"}, Point | Named, "unknown key"),
        ("9" * 200, int, r"v is .{80}, not a whole number"),
    ],
)
def test_a_value_of_another_type_is_refused_with_its_place(value: Any, kind: Any, message: str) -> None:
    with pytest.raises(MismatchError, match=message):
        typed(value, kind, "v")
