"""Compiles the core while the package is built.

A build for this machine uses the system's C++ compiler. Without one it asks for ziglang, which has a compiler. A wheel
for another machine is always compiled by ziglang: EVITSEG_TARGET names a key of `TARGETS` in core/build.py. With
EVITSEG_REUSE_CORE=1, a library for this machine that is newer than core/ is not compiled again.
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

ROOT = Path(__file__).resolve().parent
sys.path.insert(0, str(ROOT / "core"))

from build import TARGETS, Target, build, find_compiler  # noqa: E402  # core/build.py

NAMES = {"win32": "evitseg.dll", "darwin": "libevitseg.dylib"}
RUNTIME = "src/evitseg/runtime"
ZIG = [sys.executable, "-m", "ziglang", "c++"]


def target() -> Target | None:
    """The machines to build for, or None for this one."""
    name = os.environ.get("EVITSEG_TARGET")
    if name and name not in TARGETS:
        raise SystemExit(f"evitseg: EVITSEG_TARGET={name} is unknown; choose one of {', '.join(TARGETS)}.")
    return TARGETS[name] if name else None


def compiler() -> list[str]:
    """A compiler for this machine, or for any target."""
    if target() is None and (found := find_compiler()):
        return found
    if find_spec("ziglang") is None:
        raise SystemExit(
            "evitseg: no C++20 compiler works here, and the Python package ziglang, which has one, is not installed; "
            "install either (such as apt install g++, xcode-select --install, or pip install ziglang)."
        )
    return ZIG


def is_current(library: Path) -> bool:
    """Whether the library was made after the last change of what it is made from."""
    sources = [path for path in (ROOT / "core").rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    return library.exists() and library.stat().st_mtime > max(path.stat().st_mtime for path in sources)


class CoreHook(BuildHookInterface):  # type: ignore[type-arg]
    PLUGIN_NAME = "custom"
    folder: str | None = None

    def dependencies(self) -> list[str]:
        return [] if target() is None and find_compiler() else ["ziglang"]

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        chosen, command = target(), compiler()
        build_data["pure_python"] = False
        if chosen is None:
            system = sysconfig.get_platform().replace(
                "universal2", platform.machine()
            )  # the core is for one of the two
            build_data["tag"] = f"py3-none-{system.replace('-', '_').replace('.', '_')}"
            place = ROOT / RUNTIME / NAMES.get(sys.platform, "libevitseg.so")
            build_data["artifacts"].append(f"{RUNTIME}/{place.name}")
        else:
            build_data["tag"] = f"py3-none-{chosen.platform}"
            command = [*command, "-target", chosen.zig]
            self.folder = tempfile.mkdtemp()  # the source tree may hold the library of this machine
            place = Path(self.folder, chosen.library)
            build_data["force_include"][str(place)] = f"evitseg/runtime/{place.name}"
        if chosen is None and os.environ.get("EVITSEG_REUSE_CORE") == "1" and is_current(place):
            return
        try:
            build(place, command)
        except (OSError, subprocess.SubprocessError) as error:
            said = getattr(error, "stderr", None) or str(error)
            raise SystemExit(f"evitseg: its core cannot be compiled with {' '.join(command)}:\n{said}") from error

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:
        if self.folder is not None:
            shutil.rmtree(self.folder)
