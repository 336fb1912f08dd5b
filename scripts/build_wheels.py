"""Build the wheels of a release on one Linux machine, and check each of them as far as that is possible here.

    pip install '.[wheels]'
    python scripts/build_wheels.py                        all wheels, into dist/
    python scripts/build_wheels.py --only linux-aarch64   some of them

The core is compiled by ziglang, for every key of `TARGETS` in core/build.py. A wheel must have the right tag and at
most 6 MB. Its library must be for the right processor and system version, have every instruction set, export the
functions of evitseg.h and nothing else, and need no library but the system's own. Then core/tests/check.c runs with the
library and must print the same checksums everywhere: on this machine, under qemu-user (Arm), under musl's loader, and
under Wine (Windows). A library that cannot run here, because it is for macOS or because an emulator is missing, is
reported as not run.
"""

from __future__ import annotations

import argparse
import os
import re
import runpy
import shlex
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from zipfile import ZipFile

import lief

lief.logging.disable()  # its messages about macOS files do not concern us

ROOT = Path(__file__).resolve().parents[1]
TARGETS = runpy.run_path(str(ROOT / "core/build.py"))["TARGETS"]
ZIG = [sys.executable, "-m", "ziglang"]
LARGEST_WHEEL = 6_000_000
OLDEST_GLIBC, OLDEST_MACOS = (2, 17), (11, 0)


class WheelError(Exception):
    """A wheel that must not be released."""


@dataclass(frozen=True)
class Machine:
    """The machines of a wheel.

    Attributes:
        processor: lief's name of the processor.
        libraries: a pattern of the only libraries that the core may need.
        sets: the instruction sets that the core must have.
        emulator: the command that runs a program for these machines here; None if nothing does.
    """

    processor: str
    libraries: str
    sets: tuple[str, ...]
    emulator: tuple[str, ...] | None = ()

    def runs_here(self) -> bool:
        """Whether the emulator, and each file that it needs, is installed."""
        words = [word for word in self.emulator or () if not word.startswith("-")]
        return self.emulator is not None and all(shutil.which(word) or Path(word).is_dir() for word in words)


GLIBC, SYSTEM = r"lib(c|pthread)\.so\.\d", r"/usr/lib/libSystem\.B\.dylib"
MSVCRT = r"(?i)kernel32\.dll|api-ms-win-crt-\w+-l1-1-0\.dll"
INTEL = ("avx512fp16", "amxbf16", "avx512bf16", "avx512", "avx2", "sse4")
ARM = ("neonfp16", "neon")
QEMU = "qemu-aarch64-static"
MACHINES = {
    "linux-x86_64": Machine("X86_64", GLIBC, INTEL),
    "linux-aarch64": Machine("AARCH64", GLIBC, ARM, (QEMU, "-L", "/usr/aarch64-linux-gnu")),
    "musllinux-x86_64": Machine("X86_64", r"libc\.so", INTEL, ("/lib/ld-musl-x86_64.so.1",)),
    "musllinux-aarch64": Machine("AARCH64", r"libc\.so", ARM, (QEMU, "/lib/ld-musl-aarch64.so.1")),
    "macos-x86_64": Machine("X86_64", SYSTEM, INTEL, None),
    "macos-arm64": Machine("ARM64", SYSTEM, ARM, None),
    "windows-x86_64": Machine("AMD64", MSVCRT, INTEL, ("wine",)),
}


def build_wheel(target: str, out: Path) -> Path:
    """A wheel in an empty folder inside `out`. Raises: WheelError."""
    with tempfile.TemporaryDirectory(dir=out) as folder:
        run(
            [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "-w", folder, ROOT],
            EVITSEG_TARGET=target,
        )
        (wheel,) = Path(folder).glob("*.whl")
        return wheel.replace(out / wheel.name)


def run(command: list[str | Path], where: Path = ROOT, **variables: str) -> str:
    """What a command prints. Raises: WheelError with what it prints if it fails."""
    done = subprocess.run(command, cwd=where, env=os.environ | variables, capture_output=True, text=True, check=False)
    if done.returncode:
        raise WheelError(f"{shlex.join(map(str, command))} failed:\n{done.stdout}{done.stderr}")
    return done.stdout


def check_wheel(target: str, wheel: Path, folder: Path) -> Path:
    """Check a wheel, and unpack the core's library into the folder. Raises: WheelError."""
    expected = TARGETS[target]
    tags = set(wheel.stem.split("-py3-none-")[-1].split("."))
    if tags != set(expected.platform.split(".")):
        raise WheelError(f"{wheel.name}: is for {tags}")
    if wheel.stat().st_size > LARGEST_WHEEL:
        raise WheelError(f"{wheel.name}: {wheel.stat().st_size} bytes, more than {LARGEST_WHEEL}")
    with ZipFile(wheel) as archive:
        libraries = [name for name in archive.namelist() if name.endswith((".so", ".dylib", ".dll", ".lib", ".pdb"))]
        if libraries != [f"evitseg/runtime/{expected.library}"]:
            raise WheelError(f"{wheel.name}: contains {libraries}")
        if (
            "Root-Is-Purelib: false"
            not in archive.read(next(n for n in archive.namelist() if n.endswith("/WHEEL"))).decode()
        ):
            raise WheelError(f"{wheel.name}: says that it is the same for every machine")
        library: Path = folder / expected.library
        library.write_bytes(archive.read(libraries[0]))
    return library


def functions() -> set[str]:
    """The functions of the C interface."""
    return set(re.findall(r"^EVS_API .*?\b(evs_\w+)\(", (ROOT / "core/include/evitseg.h").read_text(), re.MULTILINE))


def check_library(target: str, library: Path) -> None:
    """Processor, instruction sets, exported functions, needed libraries and versions. Raises: WheelError."""
    machine, parsed = MACHINES[target], lief.parse(library)
    if isinstance(parsed, lief.ELF.Binary):
        processor, needed = parsed.header.machine_type.name, list(parsed.libraries)
        exported = {str(symbol.name) for symbol in parsed.exported_symbols}
        versions = [
            tuple(map(int, version.name[6:].split(".")))
            for needs in parsed.symbols_version_requirement
            for version in needs.get_auxiliary_symbols()
            if version.name.startswith("GLIBC_")
        ]
        if max(versions, default=(0,)) > OLDEST_GLIBC:
            raise WheelError(f"{target}: needs glibc {max(versions)}")
    elif isinstance(parsed, lief.MachO.Binary):
        processor, needed = parsed.header.cpu_type.name, [entry.name for entry in parsed.libraries]
        needed.remove(f"@rpath/{library.name}")  # its own name
        exported = {str(symbol.name).removeprefix("_") for symbol in parsed.exported_symbols}
        exported -= {"_mh_dylib_header", "__dso_handle"}  # the linker's
        if tuple(parsed.build_version.minos[:2]) > OLDEST_MACOS:
            raise WheelError(f"{target}: needs macOS {parsed.build_version.minos}")
    elif isinstance(parsed, lief.PE.Binary):
        processor, needed = parsed.header.machine.name, [entry.name for entry in parsed.imports]
        exported = {entry.name for entry in parsed.get_export().entries}
    else:
        raise WheelError(f"{target}: {library.name} is no library")
    if processor != machine.processor:
        raise WheelError(f"{target}: the library is for {processor}")
    content = library.read_bytes()
    if lacking := [name for name in machine.sets if name.encode() + b"\0" not in content]:
        raise WheelError(f"{target}: lacks the instruction sets {', '.join(lacking)}")
    if exported != functions():
        raise WheelError(f"{target}: exports {sorted(exported ^ functions())} too much or too little")
    if foreign := [name for name in needed if not re.fullmatch(machine.libraries, name)]:
        raise WheelError(f"{target}: needs {', '.join(foreign)}")


def checksums(target: str, library: Path, programs: Path) -> str:
    """What core/tests/check.c prints with the library. Raises: WheelError."""
    folder, machine = library.parent, MACHINES[target]
    program = folder / "check.exe"
    command = [*ZIG, "cc", "-target", TARGETS[target].zig, "-O2", ROOT / "core/tests/check.c", library, "-o", program]
    run([*command, *([] if library.suffix == ".dll" else ["-lpthread", "-Wl,-rpath,$ORIGIN"])])
    return run([*(machine.emulator or ()), program, *sorted(programs.glob("*.*"))], folder, WINEDEBUG="-all")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=list(TARGETS), default=list(TARGETS), metavar="TARGET")
    parser.add_argument("--out", type=Path, default=ROOT / "dist", help="folder for the wheels; default: dist")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    expected: dict[str, str] = {}
    with tempfile.TemporaryDirectory() as work:
        programs = Path(work, "programs")
        run([sys.executable, "-m", "tests.runtime.programs", programs], PYTHONPATH=str(ROOT / "src"))
        for target in options.only:
            folder = Path(work, target)
            folder.mkdir()
            wheel = build_wheel(target, options.out)
            library = check_wheel(target, wheel, folder)
            check_library(target, library)
            ran = "not run here"
            if MACHINES[target].runs_here():
                expected[target] = checksums(target, library, programs)
                ran = f"{len(expected[target].splitlines())} checksums"
            size = wheel.stat().st_size / 1e6
            print(f"{wheel.name}: {size:.1f} MB, library {library.stat().st_size / 1e6:.1f} MB, {ran}", flush=True)
    if len(set(expected.values())) > 1:
        raise WheelError(f"the logits of {', '.join(expected)} differ")
    print(f"the same bytes on {', '.join(expected) or 'no machine'}")


if __name__ == "__main__":
    try:
        main()
    except WheelError as error:
        sys.exit(f"error: {error}")
