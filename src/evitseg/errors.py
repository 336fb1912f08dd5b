"""What can go wrong through no fault of ours, each with a sentence that says what, where and what to do."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class EvitsegError(Exception):
    """Base of every error a user can cause; the command line prints its message without a traceback."""


class EvitsegWarning(UserWarning):
    """A sentence about a file that was read, but perhaps not as its owner means it; the command line prints it once."""


class ConfigError(EvitsegError):
    """A setting that cannot work: an unknown name, a size out of range, a manifest that is not one."""


class PictureError(EvitsegError):
    """A picture or mask that cannot be read, or not written in the format asked for."""


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
    """A conversion that failed, or an artefact that disagrees with its checkpoint."""


class MissingPackageError(EvitsegError):
    """An optional package that the call needs is not installed."""

    def __init__(self, purpose: str, extra: str) -> None:
        super().__init__(f"{purpose} needs packages that are not installed: python -m pip install 'evitseg[{extra}]'.")
        self._given = purpose, extra

    def __reduce__(self) -> tuple[type[MissingPackageError], tuple[str, str]]:
        return type(self), self._given  # an exception is rebuilt from its sentence, which is not what this one takes


class UnreadableHereError(PictureError, MissingPackageError):
    """An image that only an optional package reads, which is not installed: other images can be read."""


def unknown(kind: str, name: object, known: Iterable[str]) -> ConfigError:
    """The error for a name that is not in a table, with the nearest names that are."""
    known = sorted(known)
    near = difflib.get_close_matches(str(name), known, n=3, cutoff=0.5)
    advice = f"did you mean {' or '.join(map(repr, near))}?" if near else f"known are {', '.join(known)}."
    return ConfigError(f"unknown {kind} {str(name)!r}; {advice}")
