"""Parsed JSON as typed Python values, by one strict rule for every file the package reads."""

from __future__ import annotations

import types
from collections.abc import Mapping
from dataclasses import MISSING, Field, fields, is_dataclass
from functools import cache
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from evitseg.errors import ConfigError

_IN_WORDS: dict[type, str] = {bool: "true or false", int: "a whole number", float: "a number", str: "text"}


class MismatchError(ValueError):
    """A value that does not fit its type; the message says where it is."""


def typed(value: Any, kind: Any, where: str) -> Any:
    """The value as a type: a dataclass, a number, text, `tuple`, `dict`, `Literal`, or a union of these.

    Dataclasses reject unknown keys, and numbers and text are not converted to each other (see `exactly`).

    Args:
        where: what messages call the value.

    Raises: MismatchError.
    """
    origin, arguments = get_origin(kind), get_args(kind)
    if kind in (bool, int, float, str):
        return exactly(value, kind, where)
    if is_dataclass(kind):
        return _structured(value, kind, where)
    if kind is types.NoneType or origin is Literal:
        choices = arguments if origin is Literal else (None,)
        if not any(type(value) is type(choice) and value == choice for choice in choices):
            raise MismatchError(f"{where} is {_shown(value)}, not one of {', '.join(map(repr, choices))}")
        return value
    if origin in (Union, types.UnionType):
        return _one_of(value, arguments, where)
    if origin in (tuple, frozenset):
        return origin(_items(value, arguments if origin is tuple else (*arguments, ...), where))
    assert origin in (dict, Mapping), kind
    if not isinstance(value, Mapping):
        raise MismatchError(f"{where} is {_shown(value)}, not a set of keys and values")
    keys, values = arguments
    return {typed(key, keys, f"a key of {where}"): typed(own, values, f"{where}.{key}") for key, own in value.items()}


def exactly(value: Any, kind: type[Any], where: str) -> Any:
    """The value as a bool, int, float or str. An int passes for a float; a bool passes for neither number.

    Raises: MismatchError for a value of another type, and for an int beyond the range of a float.
    """
    accepted: type | tuple[type, ...] = (int, float) if kind is float else kind
    if not isinstance(value, accepted) or (isinstance(value, bool) and kind is not bool):
        raise MismatchError(f"{where} is {_shown(value)}, not {_IN_WORDS[kind]}")
    try:
        return kind(value)
    except OverflowError as error:
        raise MismatchError(f"{where} is {_shown(value)}, too large") from error


def _shown(value: Any) -> str:
    """The beginning of a value as Python writes it."""
    try:
        return f"{value!r:.80}"
    except (RecursionError, ValueError):  # lists in thousands of lists, an int of thousands of digits
        return f"a value of type {type(value).__name__}"


def _items(value: Any, kinds: tuple[Any, ...], where: str) -> list[Any]:
    # Iterating over a string or an object would give its letters or its keys.
    if not isinstance(value, list | tuple):
        raise MismatchError(f"{where} is {_shown(value)}, not a list")
    if kinds[-1:] == (Ellipsis,):
        kinds = kinds[:1] * len(value)
    if len(kinds) != len(value):
        raise MismatchError(f"{where} has {len(value)} values, not {len(kinds)}")
    return [typed(own, kind, f"{where}[{i}]") for i, (own, kind) in enumerate(zip(value, kinds, strict=True))]


def _one_of(value: Any, kinds: tuple[Any, ...], where: str) -> Any:
    if isinstance(value, Mapping):  # of several dataclasses, the one that has the keys
        able = [kind for kind in kinds if is_dataclass(kind) and set(value) <= set(_fields(kind))]  # type: ignore[arg-type]
        kinds = tuple(able) or kinds
    errors = []
    for kind in kinds:
        try:
            return typed(value, kind, where)
        except MismatchError as error:
            if kind is not types.NoneType:
                errors.append(error)
    raise errors[0]


def _structured(value: Any, kind: Any, where: str) -> Any:
    if not isinstance(value, Mapping):
        raise MismatchError(f"{where} is {_shown(value)}, not a set of keys and values")
    known = _fields(kind)
    if unknown := [key for key in value if key not in known]:
        raise MismatchError(f"{where} has the unknown key {unknown[0]!r:.80}")
    for name, (field, _) in known.items():
        if name not in value and field.default is MISSING and field.default_factory is MISSING:
            raise MismatchError(f"{where} lacks the key {name!r}")
    values = {name: typed(value[name], own, f"{where}.{name}") for name, (_, own) in known.items() if name in value}
    try:
        return kind(**values)
    except ConfigError as error:
        raise MismatchError(f"{where}: {str(error).rstrip('.')}") from error


@cache
def _fields(kind: Any) -> dict[str, tuple[Field[Any], Any]]:
    """The fields of a dataclass, with their types."""
    hints = get_type_hints(kind)
    return {field.name: (field, hints[field.name]) for field in fields(kind)}
