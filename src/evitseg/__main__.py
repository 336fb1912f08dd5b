"""The command, as `evitseg` and as `python -m evitseg`.

Signals are handled before anything heavy is imported, so that an interrupt in the first moments prints a sentence, too.
"""

from __future__ import annotations

import os
import signal
import sys
from types import FrameType


def end(number: int, frame: FrameType | None) -> None:
    """End at once, where no work is in progress."""
    os.write(2, b"interrupted.\n")
    os._exit(128 + number)


def main() -> None:
    for name in ("SIGINT", "SIGTERM", "SIGHUP"):
        number = getattr(signal, name, None)
        if number is not None and signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, end)
    from evitseg.cli import app

    sys.exit(app.main())


if __name__ == "__main__":
    main()
