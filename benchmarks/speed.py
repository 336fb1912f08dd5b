"""Measure all speeds in README.md and docs/results/speed.md again, except the core's table (core.py); fill the tables.

    python benchmarks/speed.py CHECKPOINT

Takes a quarter of an hour, during which nothing else should run.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

TAKES_CHECKPOINT = {
    "end_to_end.py": True,
    "peers.py": True,
    "scaling.py": True,
    "folder.py": False,
    "upsampling.py": False,
    "tables.py": False,
}


def main() -> None:
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    here = Path(__file__).parent
    for script, takes_checkpoint in TAKES_CHECKPOINT.items():
        print(f"benchmarks/{script}", flush=True)
        command = [sys.executable, str(here / script), *sys.argv[1 : 1 + takes_checkpoint]]
        if status := subprocess.run(command, check=False).returncode:
            sys.exit(f"benchmarks/{script} failed with status {status}")


if __name__ == "__main__":
    main()
