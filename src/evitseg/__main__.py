"""The command, as `evitseg` and as `python -m evitseg`.

Signals are taken care of before anything heavy is imported: an interrupt in the first moments is a sentence, too.
"""

from __future__ import annotations

import os
import signal
import sys
from types import FrameType


def end(number: int, frame: FrameType | None) -> None:
    """End at once: nothing has begun, or all is done."""
    os.write(2, b"interrupted.\n")
    os._exit(128 + number)


def main() -> None:
    for name in ("SIGINT", "SIGTERM", "SIGHUP"):
        number = getattr(signal, name, None)
        if number is not None and signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, end)
    options = sys.argv[1 : sys.argv.index("--") if "--" in sys.argv else None]
    if "--debug" in options:  # of the command itself; people also give it to a verb
        sys.argv.remove("--debug")
        sys.argv.insert(1, "--debug")
    from evitseg.cli import app

    app()


if __name__ == "__main__":
    main()
