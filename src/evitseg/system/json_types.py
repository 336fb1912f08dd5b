"""Parsed JSON as typed Python values, by one strict rule for every file the package reads."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import cattrs


@cache
def strict_converter() -> cattrs.Converter:
    """A converter to dataclasses that rejects unknown keys and values of another type (see `exactly`).

    Shared by the whole package: take a `copy()` before you register further hooks.
    """
    import cattrs
    from cattrs.cols import homogenous_tuple_structure_factory

    converter = cattrs.Converter(forbid_extra_keys=True)
    for kind in (bool, int, float, str):
        converter.register_structure_hook(kind, exactly)

    def sequence_hook(kind: Any, converter: cattrs.Converter) -> Callable[[Any, Any], Any]:
        structure = homogenous_tuple_structure_factory(kind, converter)

        def hook(value: Any, kind: Any) -> Any:
            # Iterating over a string or an object would give its letters or its keys.
            if not isinstance(value, list | tuple):
                raise TypeError(f"{value!r} is not a list")
            return structure(value, kind)

        return hook

    converter.register_structure_hook_factory(_is_homogenous_tuple, sequence_hook)
    return converter


def exactly(value: Any, kind: type[Any]) -> Any:
    """The value as a bool, int, float or str. An int passes for a float; a bool passes for neither number.

    Raises: TypeError for a value of another type, ValueError for an int beyond the range of a float.
    """
    accepted: type | tuple[type, ...] = (int, float) if kind is float else kind
    if not isinstance(value, accepted) or (isinstance(value, bool) and kind is not bool):
        raise TypeError(f"{value!r} is not a {kind.__name__}")
    try:
        return kind(value)
    except OverflowError as error:
        raise ValueError(f"{value!r} is too large for a {kind.__name__}") from error


def _is_homogenous_tuple(kind: Any) -> bool:
    """Whether the type is `tuple[X, ...]`."""
    arguments = getattr(kind, "__args__", ())
    return getattr(kind, "__origin__", None) is tuple and arguments[-1:] == (Ellipsis,)
