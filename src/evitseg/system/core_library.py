"""Open the library of our core (`core/`), which the engine and the PNG encoder call."""

from __future__ import annotations

import ctypes
import sys
from functools import cache
from pathlib import Path

from evitseg.errors import EngineError

LIBRARY = (
    Path(__file__).parents[1]
    / "runtime"
    / ({"win32": "evitseg.dll", "darwin": "libevitseg.dylib"}.get(sys.platform, "libevitseg.so"))
)
"""The core's library, compiled when the package is installed."""


@cache
def open_library(path: Path = LIBRARY) -> ctypes.CDLL:
    """The core's functions; whoever calls one sets its types.

    Raises: EngineError if it was not compiled or does not load.
    """
    if not path.is_file():
        raise EngineError(
            f"{path}: the native engine's library is missing; install evitseg again (pip install .), which compiles it."
        )
    try:
        core = ctypes.CDLL(str(path))
    except OSError as error:
        raise EngineError(f"{path}: the native engine cannot be loaded ({error}); install evitseg again.") from error
    core.evs_error_text.restype, core.evs_error_text.argtypes = ctypes.c_char_p, [ctypes.c_int]
    return core


def check(code: int, path: Path = LIBRARY) -> None:
    """Raise an error for an error code of the core. Raises: EngineError."""
    if code:
        raise EngineError(f"the native engine: {open_library(path).evs_error_text(code).decode()}.")
