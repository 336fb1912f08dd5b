"""What can go wrong through no fault of ours, each with a sentence that says what, where and what to do."""

from __future__ import annotations

import difflib
import re
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar


class EvitsegError(Exception):
    """Base of every error a user can cause; the command line prints its message without a traceback."""


class EvitsegWarning(UserWarning):
    """A sentence about a file that was read, but perhaps not as its owner means it; the command line prints it once."""


_unsaid: ContextVar[bool] = ContextVar("unsaid", default=False)


def warn(sentence: str, stacklevel: int = 2) -> None:
    """An EvitsegWarning, as `warnings.warn`."""
    if not _unsaid.get():
        warnings.warn(sentence, EvitsegWarning, stacklevel=stacklevel + 1)


@contextmanager
def without_warnings() -> Iterator[None]:
    """What `warn` says in the block is left unsaid. Unlike `warnings.catch_warnings` for this thread alone."""
    token = _unsaid.set(True)
    try:
        yield
    finally:
        _unsaid.reset(token)


class ConfigError(EvitsegError):
    """A setting that cannot work: an unknown name, a size out of range, a manifest that is not one."""


class ImageError(EvitsegError):
    """An image or mask that cannot be read, or not written in the format asked for."""


class VideoError(EvitsegError):
    """A video or live stream that cannot be read, or not to its end."""


class FileError(EvitsegError):
    """A place where no file can be written."""


class DatasetError(EvitsegError):
    """Data that cannot be trained on or measured with: unpaired, unlabelled, outside its label space."""


class TrainError(EvitsegError):
    """A training run that cannot begin, go on, or come to an end."""


class WeightsError(EvitsegError):
    """A checkpoint that is missing, unreadable, or does not fit its network."""


class EngineError(EvitsegError):
    """An inference engine that is not installed, or cannot run what was asked of it."""


class ExportError(EvitsegError):
    """A conversion that failed, or an exported model that disagrees with its checkpoint."""


class MissingPackageError(EvitsegError):
    """An optional package that the call needs is not installed."""

    def __init__(self, purpose: str, extra: str) -> None:
        pip = "python -m pip install"
        names = " ".join(map(repr, _missing(extra)))
        ways = [f"{pip} {names}"] if names else []
        ways.append(f"{'in a clone of evitseg, ' * bool(ways)}{pip} '.[{extra}]'")
        super().__init__(f"{purpose} needs packages that are not installed: {'; or, '.join(ways)}.")
        self._given = purpose, extra

    def __reduce__(self) -> tuple[type[MissingPackageError], tuple[str, str]]:
        return type(self), self._given  # an exception is rebuilt from its sentence, which is not what this one takes


class UnreadableHereError(ImageError, MissingPackageError):
    """An image that only an optional package reads, which is not installed: other images can be read."""


def _missing(extras: str) -> list[str]:
    """What pip has to install for extras: requirements that are not there, or all of them if each seems to be.

    evitseg's own name would do only where it comes from an index.
    """
    from importlib import metadata

    try:
        stated = metadata.requires("evitseg") or []
    except metadata.PackageNotFoundError:  # run from its source
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


def unknown(kind: str, name: object, known: Iterable[str]) -> ConfigError:
    """The error for a name that is not in a table, with the nearest names that are."""
    known = sorted(known)
    near = difflib.get_close_matches(str(name), known, n=3, cutoff=0.5)
    advice = f"did you mean {' or '.join(map(repr, near))}?" if near else f"known are {', '.join(known)}."
    return ConfigError(f"unknown {kind} {str(name)!r}; {advice}")
