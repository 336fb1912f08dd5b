"""Everything about speed in README.md and docs/speed.md, anew: measures, then fills the tables.

    python benchmarks/speed.py CHECKPOINT

Takes about seven minutes, during which nothing else should run.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

SCRIPTS = ("end_to_end.py", "peers.py", "scaling.py")


def main() -> None:
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    here = Path(__file__).parent
    for script, *arguments in [*((script, sys.argv[1]) for script in SCRIPTS), ("tables.py",)]:
        print(f"benchmarks/{script}", flush=True)
        if status := subprocess.run([sys.executable, str(here / script), *arguments], check=False).returncode:
            sys.exit(f"benchmarks/{script} failed with status {status}")


if __name__ == "__main__":
    main()
