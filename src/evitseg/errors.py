"""Errors caused by the user's input or environment. Every message says what is wrong, where, and what to do."""

from __future__ import annotations

import difflib
import re
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar


class EvitsegError(Exception):
    """Base class of all errors that a user can cause; the command line prints them without a traceback."""


class EvitsegWarning(UserWarning):
    """A file was read, but perhaps not as its owner meant it; the command line prints the message once."""


class EvitsegDeprecationWarning(EvitsegWarning, DeprecationWarning):
    """An old name that still works, and the name that replaces it. Python hides it outside `__main__` and tests."""


_collected: ContextVar[list[str] | None] = ContextVar("collected", default=None)


def warn(sentence: str, stacklevel: int = 2) -> None:
    """Issue an `EvitsegWarning`, unless `without_warnings` or `collected_warnings` keeps it."""
    kept = _collected.get()
    if kept is not None:
        kept.append(sentence)
    else:
        warnings.warn(sentence, EvitsegWarning, stacklevel=stacklevel + 1)


def warn_deprecated(sentence: str, stacklevel: int = 2) -> None:
    """Warn that a name is deprecated, attributing the warning to the caller `stacklevel` frames up."""
    warnings.warn(sentence, EvitsegDeprecationWarning, stacklevel=stacklevel + 1)


@contextmanager
def collected_warnings() -> Iterator[list[str]]:
    """Collect the sentences of `warn` in the block, and only in this thread, unlike `warnings.catch_warnings`."""
    sentences: list[str] = []
    token = _collected.set(sentences)
    try:
        yield sentences
    finally:
        _collected.reset(token)


@contextmanager
def without_warnings() -> Iterator[None]:
    """Suppress `warn` in the block, and only in this thread."""
    with collected_warnings():
        yield


class ConfigError(EvitsegError):
    """A setting is invalid: an unknown name, a size out of range, a damaged manifest."""


class ImageError(EvitsegError):
    """An image or mask cannot be read, or cannot be written in the requested format."""


class VideoError(EvitsegError):
    """A video or live stream cannot be read, or only in part."""


class FileError(EvitsegError):
    """A file cannot be written."""


class DatasetError(EvitsegError):
    """A dataset cannot be used: its files are missing, unpaired, or contain ids without a class."""


class TrainError(EvitsegError):
    """A training run cannot start, continue or finish."""


class WeightsError(EvitsegError):
    """A checkpoint is missing, unreadable, or does not fit its network."""


class EngineError(EvitsegError):
    """An inference engine is not installed, or cannot run the model as requested."""


class ExportError(EvitsegError):
    """A conversion failed, or an exported model disagrees with its checkpoint."""


class MissingPackageError(EvitsegError):
    """An optional package is needed and not installed."""

    def __init__(self, purpose: str, extra: str) -> None:
        pip = "python -m pip install"
        names = " ".join(map(repr, _missing(extra)))
        ways = [f"{pip} {names}"] if names else []
        ways.append(f"{'in a clone of evitseg, ' * bool(ways)}{pip} '.[{extra}]'")
        super().__init__(f"{purpose} needs packages that are not installed: {'; or, '.join(ways)}.")
        self._arguments = purpose, extra

    def __reduce__(self) -> tuple[type[MissingPackageError], tuple[str, str]]:
        # By default, pickle would pass the message to __init__.
        return type(self), self._arguments


class UnreadableHereError(ImageError, MissingPackageError):
    """An image needs an optional package that is not installed; other images can be read without it."""


def _missing(extras: str) -> list[str]:
    """The requirements of extras that are not installed, or all of them if none seems to be missing.

    `pip install evitseg[extra]` would work only if evitseg were on a package index.
    """
    from importlib import metadata

    try:
        stated = metadata.requires("evitseg") or []
    except metadata.PackageNotFoundError:  # evitseg runs from its source folder
        return []
    wanted, known, found = extras.split(","), set[str](), list[str]()
    while wanted:
        extra = wanted.pop()
        known.add(extra)
        for line in stated:
            requirement, _, condition = line.partition(";")
            if not re.search(rf"extra == ['\"]{re.escape(extra)}['\"]", condition):
                continue
            ours = re.fullmatch(r"evitseg\[([\w,-]+)\]", requirement.strip())
            if ours:
                wanted += [name for name in ours[1].split(",") if name not in known]
            else:
                found.append(requirement.strip())
    found = sorted(set(found))
    return [requirement for requirement in found if not _is_installed(requirement)] or found


def _is_installed(requirement: str) -> bool:
    from importlib import metadata

    try:
        metadata.distribution(re.split(r"[^\w.-]", requirement, maxsplit=1)[0])
    except metadata.PackageNotFoundError:
        return False
    return True


def reason(error: Exception) -> str:
    """The first line of a library's message, or the error's class if the message is empty."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)[:200]


def unknown(kind: str, name: object, known: Iterable[str]) -> ConfigError:
    """The error for an unknown name, which suggests the most similar known names."""
    known = sorted(known)
    near = difflib.get_close_matches(str(name), known, n=3, cutoff=0.5)
    advice = f"did you mean {' or '.join(map(repr, near))}?" if near else f"known are {', '.join(known)}."
    return ConfigError(f"unknown {kind} {str(name)!r}; {advice}")
