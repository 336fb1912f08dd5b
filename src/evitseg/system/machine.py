"""Cores and memory that this process may use, which a container may limit."""

from __future__ import annotations

import ctypes
import math
import os
import platform
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

UNKNOWN_MEMORY = 4 * 1024**3
"""Free memory in bytes that is assumed if the system does not report it."""

ROOT = Path("/")
"""Folder of /proc and /sys; tests replace it by a simulated machine."""

_sharing = 1
"""Processes that divide the cores, of which this is one."""


def share_cores(processes: int) -> None:
    """Make `physical_cores` and `logical_cores` count this process's part of the cores that several divide."""
    global _sharing
    _sharing = processes


def physical_cores() -> int:
    """Number of physical cores that the process's affinity and its container's quota allow."""
    if sys.platform == "darwin":
        return _part(_darwin_number("hw.physicalcpu") or os.cpu_count() or 1)
    allowed = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(os.cpu_count() or 1)
    siblings = {
        _read(ROOT / f"sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list") or str(cpu) for cpu in allowed
    }
    return _part(min(len(siblings), cpu_quota()))


def logical_cores() -> int:
    """Number of hardware threads that the process's affinity and its container's quota allow."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return _part(min(allowed, cpu_quota()))


def _part(cores: float) -> int:
    return max(1, math.ceil(cores) // _sharing)


def cpu_quota() -> float:
    """CPU quota of the process's control groups, in cores; infinite without a limit."""
    quotas = [math.inf]
    for folder in _control_groups("cpu"):
        # Version 2 has "200000 100000" or "max 100000". Version 1 has one file per number, and -1 for no limit.
        numbers = _read(folder / "cpu.max").split() or [
            _read(folder / f"cpu.cfs_{name}_us") for name in ("quota", "period")
        ]
        quota, period = ([_number(text) for text in numbers] + [None, None])[:2]
        if quota is not None and period and quota > 0:
            quotas.append(quota / period)
    return min(quotas)


def free_memory() -> int:
    """Bytes that this process can still allocate, given free memory, its control groups and its limits."""
    return max(0, int(min(_machine_memory(), _control_group_memory(), _own_limits())))


def held_memory() -> int:
    """Resident memory of this process in bytes; 0 if it is unknown."""
    return 1024 * (_field(_read(ROOT / "proc/self/status"), "VmRSS") or 0)


def peak_memory() -> int | None:
    """Peak resident memory of this process in bytes; None if it is unknown."""
    # Not getrusage on Linux, whose peak includes that of the parent process at the start.
    peak = _field(_read(ROOT / "proc/self/status"), "VmHWM")
    if peak is not None:
        return 1024 * peak
    try:
        import resource  # not on Windows
    except ImportError:
        return None
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _machine_memory() -> int:
    available = _field(_read(ROOT / "proc/meminfo"), "MemAvailable")
    if available is not None:
        return 1024 * available
    if sys.platform == "win32":
        return _windows_free()
    try:  # macOS reports installed memory only; half of it is a guess
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
    except (AttributeError, OSError, ValueError):
        return UNKNOWN_MEMORY


def _control_group_memory() -> float:
    free = [math.inf]
    for folder in _control_groups("memory"):
        limit, used = (
            next((n for name in names if (n := _number(_read(folder / name))) is not None), None)
            for names in (("memory.max", "memory.limit_in_bytes"), ("memory.current", "memory.usage_in_bytes"))
        )
        if limit is None or used is None:
            continue
        # The page cache of files that were not used recently counts as used, but is released first.
        statistics = _read(folder / "memory.stat")
        cached = _field(statistics, "total_inactive_file") or _field(statistics, "inactive_file") or 0
        free.append(limit - max(0, used - cached))
    return min(free)


def _own_limits() -> float:
    """Bytes that `ulimit -v` and `ulimit -d` allow in addition."""
    try:
        import resource  # not on Windows
    except ImportError:
        return math.inf
    status, free = _read(ROOT / "proc/self/status"), [math.inf]
    for limit, held in ((resource.RLIMIT_AS, "VmSize"), (resource.RLIMIT_DATA, "VmData")):
        soft, _ = resource.getrlimit(limit)
        if soft != resource.RLIM_INFINITY:
            free.append(soft - 1024 * (_field(status, held) or 0))
    return min(free)


def _control_groups(controller: str) -> Iterator[Path]:
    """Folders of a controller's groups that contain this process, the innermost first."""
    mounts = _mounts(controller)
    for line in _read(ROOT / "proc/self/cgroup").splitlines():
        number, controllers, path = [*line.split(":", 2), "", ""][:3]
        mount = mounts.get(number == "0" and not controllers)
        if mount is None or (controllers and controller not in controllers.split(",")):
            continue
        # A container may have its own group mounted at the root, while the path is the one on the host.
        folder, top = mount
        inner = path.removeprefix(top.rstrip("/")) if path.startswith(top) else "/"
        parts = [part for part in inner.split("/") if part not in ("", "..")]
        for count in range(len(parts), -1, -1):
            yield folder.joinpath(*parts[:count])


def _mounts(controller: str) -> dict[bool, tuple[Path, str]]:
    """Mount points of control groups and the group at each; by True for version 2 and False for version 1."""
    found: dict[bool, tuple[Path, str]] = {}
    for line in _read(ROOT / "proc/self/mountinfo").splitlines():
        before, _, after = line.partition(" - ")
        kind, _, options = after.partition(" ")
        fields = before.split()
        if kind == "cgroup2" or (kind == "cgroup" and controller in options.split()[-1].split(",")):
            found.setdefault(kind == "cgroup2", (ROOT / fields[4].lstrip("/"), fields[3]))
    return found


def _read(path: Path) -> str:
    """The text of a small file; "" if it cannot be read."""
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""


def _number(text: str) -> int | None:
    """The number, or None for other text such as "max"."""
    try:
        return int(text)
    except ValueError:
        return None


def _field(text: str, name: str) -> int | None:
    """The number after a name, as in /proc/meminfo and memory.stat."""
    found = (line.split() for line in text.splitlines())
    return next((_number(words[1]) for words in found if len(words) > 1 and words[0].rstrip(":") == name), None)


def _darwin_number(name: str) -> int | None:
    """A number from sysctl, or None."""
    value, size = ctypes.c_int64(0), ctypes.c_size_t(8)
    try:
        failed = ctypes.CDLL(None).sysctlbyname(name.encode(), ctypes.byref(value), ctypes.byref(size), None, 0)
    except (AttributeError, OSError):
        return None
    return None if failed else value.value


def _windows_free() -> int:
    class Status(ctypes.Structure):
        _fields_ = (
            ("length", ctypes.c_uint32),
            ("load", ctypes.c_uint32),
            *((name, ctypes.c_uint64) for name in (
                "total", "free", "total_page", "free_page", "total_virtual", "free_virtual", "free_extended"
            )),
        )  # fmt: skip

    status = Status(length=ctypes.sizeof(Status))
    windows = getattr(ctypes, "windll", None)
    if windows is None or not windows.kernel32.GlobalMemoryStatusEx(ctypes.byref(status)):
        return UNKNOWN_MEMORY
    return int(status.free)


def boot_identity() -> str:
    """Text that changes when the machine is restarted; "" where the system does not tell."""
    return _read(Path("/proc/sys/kernel/random/boot_id")).strip()


def processor_name() -> str:
    """The name of the processor."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    named = (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    return next(named, "") or platform.processor() or platform.machine()  # in this order: platform starts a process


@dataclass(frozen=True)
class Machine:
    """The machine of a measurement."""

    processor: str
    physical_cores: int
    logical_cores: int
    system: str

    def to_dict(self) -> dict[str, Any]:
        """The description as JSON types."""
        return asdict(self)

    def __str__(self) -> str:
        return f"{self.processor}, {self.physical_cores} cores ({self.logical_cores} logical), {self.system}"


def machine() -> Machine:
    """A description of this machine."""
    system = f"{platform.system()} {platform.machine()}"
    return Machine(processor_name(), physical_cores(), logical_cores(), system)


def peak_mib() -> float:
    """Peak resident memory of this process in MiB; nan if it is unknown."""
    peak = peak_memory()
    return float("nan") if peak is None else peak / 1024**2
