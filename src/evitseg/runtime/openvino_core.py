"""The one OpenVINO core of the process."""

from __future__ import annotations

import sys
from functools import cache
from typing import TYPE_CHECKING

from evitseg.errors import MissingPackageError

if TYPE_CHECKING:
    import openvino


def openvino_core(purpose: str = "the OpenVINO engine") -> openvino.Core:
    """Every part of evitseg that uses OpenVINO shares this core, which lives as long as the process.

    OpenVINO's CPU plugin (2026.x) gives the thread that creates it an alternate signal stack, and unmaps that stack
    when its core is deleted. Two cores deleted in the order of their creation leave the thread with an unmapped
    signal stack: the next Python signal handler (Ctrl-C, or SIGCHLD when a DataLoader worker ends) then kills the
    process with a segmentation fault. A core that is never deleted rules this out.

    Args:
        purpose: what needs it, for the message if it is not installed.

    Raises: MissingPackageError.
    """
    try:
        return _core()
    except ImportError as error:
        raise MissingPackageError(purpose, "openvino") from error


@cache
def _core() -> openvino.Core:
    # OpenVINO's package reports its use over the network and stores an identifier in the home folder, unless this
    # module is missing. Our users did not ask for that. Import openvino first to keep its telemetry.
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
    import openvino

    return openvino.Core()
