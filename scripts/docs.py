"""Build the documentation site, offline, into build/site.

pip install -c constraints.txt -e '.[docs,train]'
python scripts/docs.py              generate the reference, build the site; any warning is an error
python scripts/docs.py --reference  generate the reference only
python scripts/docs.py --check      report which pages of the reference are out of date, with exit status 1
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from docs_reference import PAGES

from evitseg.system.files import replacing

ROOT = Path(__file__).parents[1]
REFERENCE = ROOT / "docs" / "reference"
SITE = ROOT / "build" / "site"


def stale() -> dict[Path, str]:
    """Pages of the reference that no longer say what the code says, with their new text."""
    texts = {REFERENCE / name: page() for name, page in PAGES.items()}
    return {path: text for path, text in texts.items() if not path.exists() or path.read_text(encoding="utf-8") != text}


def build(site: Path) -> int:
    """Build the site from nothing; the exit status of Sphinx."""
    shutil.rmtree(site, ignore_errors=True)
    sphinx = [sys.executable, "-m", "sphinx", "--fail-on-warning", "--keep-going", "--quiet", "-b", "html"]
    with tempfile.TemporaryDirectory() as cache:
        return subprocess.run([*sphinx, "-d", cache, str(ROOT / "docs"), str(site)], check=False).returncode


def generate(only_check: bool) -> None:
    for path, text in stale().items():
        print(f"{path.relative_to(ROOT)}: {'out of date' if only_check else 'written'}")
        if only_check:
            sys.exit("run python scripts/docs.py --reference")
        with replacing(path) as file:
            file.write(text.encode())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--reference", action="store_true")
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--site", type=Path)
    arguments = parser.parse_args()
    if arguments.site is None:
        generate(arguments.check)
    if arguments.reference or arguments.check:
        return
    site = arguments.site or SITE
    if status := build(site):
        sys.exit(status)
    print(f"open {site / 'index.html'}")


if __name__ == "__main__":
    main()
