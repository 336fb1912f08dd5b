"""Compiles the core while the package is built; without a C++ compiler the build asks for ziglang, which has one."""

from __future__ import annotations

import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

ROOT = Path(__file__).resolve().parent
sys.path.insert(0, str(ROOT / "core"))

from build import build, find_compiler  # noqa: E402  # core/build.py

NAMES = {"win32": "evitseg.dll", "darwin": "libevitseg.dylib"}


class CoreHook(BuildHookInterface):  # type: ignore[type-arg]
    PLUGIN_NAME = "custom"

    def dependencies(self) -> list[str]:
        return [] if find_compiler() else ["ziglang"]

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        compiler = find_compiler() or [sys.executable, "-m", "ziglang", "c++"]
        place = ROOT / "src" / "evitseg" / "runtime" / NAMES.get(sys.platform, "libevitseg.so")
        try:
            build(place, compiler)
        except (OSError, subprocess.CalledProcessError) as error:
            said = getattr(error, "stderr", None) or str(error)
            raise SystemExit(f"evitseg: its core cannot be compiled with {' '.join(compiler)}:\n{said}") from error
        build_data["pure_python"] = False
        build_data["tag"] = f"py3-none-{sysconfig.get_platform().replace('-', '_').replace('.', '_')}"
        build_data["artifacts"].append(f"src/evitseg/runtime/{place.name}")
