"""Compiles the core into a shared library: python core/build.py OUT [COMPILER...]

The source of the operations is compiled once per instruction set; the best one is chosen when the library loads.
Compilers: the system's C++ compiler (CXX, c++, g++ or clang++), or any command that takes the same arguments, such as
`python -m ziglang c++ -target aarch64-linux-gnu.2.17`.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

HERE = Path(__file__).resolve().parent
FLAGS = (
    "-std=c++20", "-O3", "-fPIC", "-fvisibility=hidden", "-fno-exceptions", "-fno-rtti", "-fno-math-errno", "-Wall",
    "-ffp-contract=fast",  # a product that is added becomes a fused multiply-add, on every processor that has it
)  # fmt: skip
# By machine: name, numbers in a vector, flags; names with fp16 compute in float16.
INSTRUCTION_SETS = {
    "x86_64": (
        ("avx512fp16", 32, "-mavx512f -mavx512dq -mavx512bw -mavx512vl -mavx512fp16 -mfma -mprefer-vector-width=512"),
        ("avx512", 16, "-mavx512f -mavx512dq -mavx512bw -mavx512vl -mfma -mprefer-vector-width=512"),
        ("avx2", 8, "-mavx2 -mfma"),
        ("sse4", 4, "-msse4.2"),
    ),
    "aarch64": (("neonfp16", 8, "-march=armv8.2-a+fp16"), ("neon", 4, "")),
}
OTHERS = (("portable", 4, ""),)


def find_compiler() -> list[str] | None:
    """The system's C++ compiler, if there is one that works."""
    named = os.environ.get("CXX")
    for candidate in [named] if named else ["c++", "g++", "clang++"]:
        command = shlex.split(candidate)
        if shutil.which(command[0]) is None:
            continue
        try:
            with tempfile.TemporaryDirectory() as folder:
                source = Path(folder, "probe.cpp")
                source.write_text("#include <stdint.h>\n#include <new>\nint probe() { return 0; }\n")
                subprocess.run(
                    [*command, *FLAGS, "-shared", str(source), "-o", str(source.with_suffix(".so"))],
                    check=True, capture_output=True, timeout=120,
                )  # fmt: skip
        except (OSError, subprocess.SubprocessError):
            continue
        return command
    return None


def machine(compiler: list[str]) -> str:
    """The processor family that the compiler makes code for, of those in `INSTRUCTION_SETS`, else ""."""
    command = [*compiler, "-dM", "-E", "-x", "c++", os.devnull]
    macros = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return next((name for name in INSTRUCTION_SETS if f"#define __{name}__ 1" in macros), "")


def instruction_sets(compiler: list[str]) -> list[tuple[str, list[str]]]:
    """Name and flags of every set that the compiler knows; old ones know no float16."""
    sets = []
    for name, width, flags in INSTRUCTION_SETS.get(machine(compiler), OTHERS):
        arguments = [f"-DEVS_ISA={name}", f"-DEVS_WIDTH={width}", f"-DEVS_HALF={int('fp16' in name)}", *flags.split()]
        probe = [*compiler, *FLAGS, *arguments, "-fsyntax-only", "-x", "c++", str(HERE / "src" / "ops" / "vector.h")]
        if "fp16" not in name or subprocess.run(probe, capture_output=True).returncode == 0:
            sets.append((name, arguments))
    return sets


def build(out: Path, compiler: list[str], extra: tuple[str, ...] = ()) -> None:
    """Writes the library. Raises: subprocess.CalledProcessError with the compiler's words in `stderr`."""
    source, sets = HERE / "src", instruction_sets(compiler)
    names = "".join(f"X({name}) " for name, _ in sets)
    with tempfile.TemporaryDirectory() as folder:
        jobs = [
            *((f"chain_{name}", "chain", flags) for name, flags in sets),
            *((f"mask_{name}", "mask", [*flags, "-ffp-contract=off"]) for name, flags in sets),
            *((name, name, [f"-DEVS_SETS(X)={names}"]) for name in ("program", "threads", "engine")),
        ]

        def compile_one(job: tuple[str, str, list[str]]) -> str:
            name, file, flags = job
            made = str(Path(folder, f"{name}.o"))
            command = [*compiler, *FLAGS, *extra, *flags, "-c", str(source / f"{file}.cpp"), "-o", made]
            subprocess.run(command, check=True, capture_output=True, text=True)
            return made

        with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
            objects = list(pool.map(compile_one, jobs))
        out.parent.mkdir(parents=True, exist_ok=True)
        made = out.with_name(f".{os.getpid()}.{out.name}")  # moved at the end: a process may have the old one open
        link = [*compiler, *extra, "-shared", "-s", "-o", str(made), *objects, "-lpthread"]
        try:
            subprocess.run(link, check=True, capture_output=True, text=True)
            made.replace(out)
        finally:
            made.unlink(missing_ok=True)


if __name__ == "__main__":
    if len(sys.argv) < 2 or sys.argv[1].startswith("-"):
        sys.exit(__doc__)
    chosen = sys.argv[2:] or find_compiler()
    if not chosen:
        sys.exit("no C++ compiler works here; install one (apt install g++), or ziglang and name it (see --help).")
    try:
        build(Path(sys.argv[1]), chosen)
    except subprocess.CalledProcessError as failed:
        sys.exit(f"{shlex.join(failed.cmd)}\n{failed.stderr}")
