"""Compiles the core into a shared library: python core/build.py OUT [COMPILER...]

The source of the operations is compiled once per instruction set; the best one is chosen when a program is loaded.
Compilers: the system's C++ compiler (CXX, c++, g++ or clang++), or any command that takes the same arguments, such as
`python -m ziglang c++ -target aarch64-linux-gnu.2.17`.

The library needs libc and its threads, and no C++ library: of C++'s own headers it uses those without code.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
FLAGS = (
    "-std=c++20", "-O3", "-fPIC", "-fvisibility=hidden", "-fno-exceptions", "-fno-rtti", "-fno-math-errno", "-Wall",
    "-DEVS_BUILD",
    "-ffp-contract=fast",  # a product that is added becomes a fused multiply-add, on every processor that has it
)  # fmt: skip
AVX512 = "-mavx512f -mavx512dq -mavx512bw -mavx512vl -mfma -mprefer-vector-width=512"
# By machine: name, numbers in a vector, flags; names with fp16 or bf16 are for half precision. Of rows with one name,
# the first that the compiler takes counts.
INSTRUCTION_SETS = {
    "x86_64": (
        ("avx512fp16", 32, f"{AVX512} -mavx512fp16"),
        ("amxbf16", 16, f"{AVX512} -mavx512bf16 -mamx-tile -mamx-bf16 -DEVS_AMX=1"),
        ("avx512bf16", 16, f"{AVX512} -mavx512bf16"),
        ("avx512", 16, AVX512),
        ("avx2", 8, "-mavx2 -mfma"),
        ("sse4", 4, "-msse4.2"),
    ),
    "wasm_relaxed_simd": (("wasmrelaxed", 4, "-msimd128 -mrelaxed-simd"),),  # with fused multiply-add
    "wasm32": (("wasm", 4, "-msimd128"),),
    "aarch64": (
        ("neonfp16", 8, "-march=armv8.2-a+fp16"),
        ("neonfp16", 8, "-mcpu=generic+v8_2a+fullfp16"),  # zig's names
        ("neon", 4, ""),
    ),
}
OTHERS = (("portable", 4, ""),)


@dataclass(frozen=True)
class Target:
    """Machines that one wheel is for.

    Attributes:
        zig: the name of processor, system and C library for `zig c++ -target`, with the oldest version to support.
        platform: tag of the wheel.
        library: name of the core's library there, as in `evitseg.runtime.core`.
    """

    zig: str
    platform: str
    library: str = "libevitseg.so"


TARGETS = {
    "linux-x86_64": Target("x86_64-linux-gnu.2.17", "manylinux2014_x86_64.manylinux_2_17_x86_64"),
    "linux-aarch64": Target("aarch64-linux-gnu.2.17", "manylinux2014_aarch64.manylinux_2_17_aarch64"),
    "musllinux-x86_64": Target("x86_64-linux-musl", "musllinux_1_1_x86_64"),
    "musllinux-aarch64": Target("aarch64-linux-musl", "musllinux_1_1_aarch64"),
    "macos-x86_64": Target("x86_64-macos.11.0", "macosx_11_0_x86_64", "libevitseg.dylib"),
    "macos-arm64": Target("aarch64-macos.11.0", "macosx_11_0_arm64", "libevitseg.dylib"),
    "windows-x86_64": Target("x86_64-windows-gnu", "win_amd64", "evitseg.dll"),
}
"""What `scripts/build_wheels.py` makes wheels for."""


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
                known = macros(command)
        except (OSError, subprocess.SubprocessError):
            continue
        # GCC aligns the stack to 16 bytes on Windows, too little for the registers of AVX (GCC's bug 54412).
        if "_WIN32" in known and "__clang__" not in known:
            continue
        return command
    return None


def macros(compiler: list[str]) -> set[str]:
    """Names of the macros that the compiler defines, which tell the processor and the system that it makes code for."""
    command = [*compiler, "-dM", "-E", "-x", "c++", os.devnull]
    lines = subprocess.run(command, check=True, capture_output=True, text=True, timeout=120).stdout.splitlines()
    return {words[1] for words in map(str.split, lines) if len(words) > 1}


def instruction_sets(compiler: list[str], known: set[str]) -> list[tuple[str, list[str]]]:
    """Name and flags of every set that the compiler knows; old compilers lack those for half precision."""
    sets: dict[str, list[str]] = {}
    table = next((sets for machine, sets in INSTRUCTION_SETS.items() if f"__{machine}__" in known), OTHERS)
    for name, width, flags in table:
        arguments = [
            f"-DEVS_ISA={name}",
            f"-DEVS_WIDTH={width}",
            f"-DEVS_PRECISION={1 if 'fp16' in name else 2 if 'bf16' in name else 0}",
            *flags.split(),
        ]
        if name not in sets and (not name.endswith("16") or _compiles("ops/vector.h", [*compiler, *FLAGS, *arguments])):
            sets[name] = arguments
    return list(sets.items())


def _compiles(file: str, command: list[str]) -> bool:
    with tempfile.TemporaryDirectory() as folder:  # zig cannot do with -fsyntax-only
        out = ["-o", str(Path(folder, "probe.o"))]
        probe = [*command, "-x", "c++", "-c", str(HERE / "src" / file), *out]
        return subprocess.run(probe, capture_output=True).returncode == 0


def build(out: Path, compiler: list[str], extra: tuple[str, ...] = ()) -> None:
    """Writes the library. Raises: subprocess.CalledProcessError with the compiler's words in `stderr`."""
    known = macros(compiler)
    sets = instruction_sets(compiler, known)
    links = ["-shared", *([] if "-g" in compiler else ["-s"])]
    if "__clang__" in known:
        links.append("-nostdlib++")
    if "__wasm__" in known:  # a module for JavaScript; wasm.cpp has what it needs of libc
        links = ["-nostdlib", "-s", "-Wl,--no-entry,--export-dynamic,-z,stack-size=1048576"]
        if "__wasm_atomics__" in known:  # the host makes the memory, and an instance for each thread
            links.append(f"-Wl,--shared-memory,--import-memory,--max-memory={1 << 31},--export=__stack_pointer")
    elif "_WIN32" not in known:  # the name by which programs that are linked with it find it
        links += ["-lpthread", "-Wl,-install_name,@rpath/" if "__APPLE__" in known else "-Wl,-soname,"]
        links[-1] += out.name
    names = "".join(f"X({name}) " for name, _ in sets)
    with tempfile.TemporaryDirectory() as folder:
        jobs = [
            *((f"chain_{name}", "chain", flags) for name, flags in sets),
            *(
                (f"{file}_{name}", file, [*flags, "-ffp-contract=off"])
                for file in ("mask", "resize")
                for name, flags in sets
            ),
            *((name, name, [f"-DEVS_SETS(X)={names}"]) for name in ("program", "threads", "engine", "png")),
            *([("wasm", "wasm", [*sets[0][1], "-fno-builtin"])] if "__wasm__" in known else []),
        ]

        def compile_one(job: tuple[str, str, list[str]]) -> str:
            name, file, flags = job
            made = str(Path(folder, f"{name}.o"))
            command = [*compiler, *FLAGS, *extra, *flags, "-c", str(HERE / "src" / f"{file}.cpp"), "-o", made]
            subprocess.run(command, check=True, capture_output=True, text=True)
            return made

        with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
            objects = list(pool.map(compile_one, jobs))
        linked = Path(folder, out.name)  # where further files, such as Windows' import library, do no harm
        command = [*compiler, *extra, *links, "-o", str(linked), *objects]
        subprocess.run(command, check=True, capture_output=True, text=True)
        if "_WIN32" in known:
            _forget_time(linked)
        if "__wasm__" in known:
            linked.chmod(0o644)  # it is no program of this machine
        out.parent.mkdir(parents=True, exist_ok=True)
        made = out.with_name(f".{os.getpid()}.{out.name}")  # moved at the end: a process may have the old one open
        try:
            shutil.copy(linked, made)
            made.replace(out)
        finally:
            made.unlink(missing_ok=True)


def _forget_time(library: Path) -> None:
    """Clear the time of linking in the COFF header, so that the same source gives the same bytes."""
    content = bytearray(library.read_bytes())
    at = int.from_bytes(content[60:64], "little") + 8
    content[at : at + 4] = bytes(4)
    library.write_bytes(content)


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
