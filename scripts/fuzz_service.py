"""Check `evitseg serve` against its own OpenAPI description with schemathesis.

    pip install schemathesis
    python scripts/fuzz_service.py

Schemathesis makes requests from the description, valid and invalid ones, and checks that no answer is a server error,
and that statuses, types and bodies are those of the description. The exit status is schemathesis's. Give its path with
--schemathesis if it is installed in an environment of its own.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

_EXCLUDED = {
    "positive_data_acceptance": "a schema cannot say that the header Accept decides which parameters apply, nor that a "
    "file must be an image",
}
"""Checks of schemathesis that are left out, with the reason."""
_KEY = "a-key-for-the-fuzzer-only"


def _images(folder: Path) -> Path:
    """A folder with an image and its context."""
    import evitseg
    from evitseg.bundled import EXAMPLE_IMAGE

    root = folder / "images"
    root.mkdir()
    shutil.copy(EXAMPLE_IMAGE, root / "street.jpg")
    result = evitseg.segment_large(None, root / "street.jpg", folder / "mask.png")
    assert result.context is not None
    result.context.save(root / "street.npz")
    return root


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--examples", type=int, default=100, help="examples per address")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--schemathesis", default=shutil.which("schemathesis"), help="the program")
    arguments = parser.parse_args()
    if not arguments.schemathesis:
        parser.error("schemathesis is not installed: pip install schemathesis")
    with tempfile.TemporaryDirectory() as folder:
        keys = Path(folder, "keys.txt")
        keys.write_text(_KEY, encoding="utf-8")
        command = [sys.executable, "-m", "evitseg", "serve", "--port", "0", "--size", "64", "--timeout", "5"]
        command += ["--api-key-file", str(keys), "--root", str(_images(Path(folder))), "--cache", f"{folder}/cache"]
        log = Path(folder, "log")
        with log.open("wb") as errors, subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors) as service:
            assert service.stdout is not None
            lines = (service.stdout.readline() for _ in range(2))
            address = next(found[0].decode() for line in lines if (found := re.search(rb"http://[\d.:]+\d", line)))
            header = f"Authorization: Bearer {_KEY}"
            status = subprocess.run(
                [
                    arguments.schemathesis, "run", f"{address}/openapi.json", "--header", header,
                    "--exclude-checks", ",".join(_EXCLUDED), "--max-examples", str(arguments.examples),
                    "--seed", str(arguments.seed), "--no-color",
                ],
                check=False, cwd=folder, env={key: value for key, value in os.environ.items() if key != "PYTHONPATH"},
            ).returncode  # fmt: skip
            service.terminate()
            ended = service.wait(30)
        problems = [line for line in log.read_text(encoding="utf-8").splitlines() if '"level": "error"' in line]
    print(f"the service ended with exit status {ended} and logged {len(problems)} errors", *problems[:5], sep="\n")
    return status or ended or bool(problems)


if __name__ == "__main__":
    sys.exit(main())
