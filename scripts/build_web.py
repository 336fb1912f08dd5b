"""Build the core for browsers, as WebAssembly, into src/evitseg/web/library.

    pip install '.[wheels]'
    python scripts/build_web.py            build the files, which belong to the repository
    python scripts/build_web.py --check    say which are out of date, with exit status 1

There are four: with and without relaxed SIMD, which fuses multiply and add but is not in every browser, and with and
without threads, which browsers allow on isolated pages only. ziglang compiles them, so that everybody gets the same
bytes. Beside them lies a hash of the source, with which a test finds out without a compiler that they are out of date.
"""

from __future__ import annotations

import argparse
import hashlib
import runpy
import sys
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "src/evitseg/web/library"
ZIG = [sys.executable, "-m", "ziglang", "c++", "-target", "wasm32-wasi", "-mbulk-memory"]
FILES = {
    "core.wasm": [],
    "core-threads.wasm": ["-matomics"],
    "core-relaxed.wasm": ["-msimd128", "-mrelaxed-simd"],
    "core-relaxed-threads.wasm": ["-msimd128", "-mrelaxed-simd", "-matomics"],
}
"""Flags by file name."""
HASH = "core.sha256"


def source_hash() -> str:
    """The hash of the source that the files are made of."""
    paths = [*(ROOT / "core/src").rglob("*.*"), ROOT / "core/include/evitseg.h"]
    content = hashlib.sha256()
    for name, path in sorted((path.relative_to(ROOT).as_posix(), path) for path in paths):
        content.update(f"{name}\0".encode() + path.read_bytes())
    return content.hexdigest()


def build_all(folder: Path) -> None:
    """Compile all files into a folder. Raises: subprocess.CalledProcessError with the compiler's words in `stderr`."""
    build: Callable[[Path, list[str]], None] = runpy.run_path(str(ROOT / "core/build.py"))["build"]
    with ThreadPoolExecutor() as pool:
        list(pool.map(lambda name: build(folder / name, [*ZIG, *FILES[name]]), FILES))
    (folder / HASH).write_text(f"{source_hash()}\n")


def outdated() -> list[str]:
    """Names of the files whose bytes differ from what the source gives."""
    with tempfile.TemporaryDirectory() as made:
        build_all(Path(made))
        places = {name: FOLDER / name for name in (*FILES, HASH)}
        return [
            name
            for name, place in places.items()
            if not place.is_file() or place.read_bytes() != Path(made, name).read_bytes()
        ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="only say which files are out of date")
    if not parser.parse_args().check:
        build_all(FOLDER)
    elif wrong := outdated():
        sys.exit(f"out of date: {', '.join(wrong)}; run python scripts/build_web.py")


if __name__ == "__main__":
    main()
