from __future__ import annotations

import math
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from evitseg.system import machine

MIB = 1024**2
Made = Callable[[dict[str, str]], None]


@pytest.fixture
def made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Made:
    """A machine of these files, with four cores of two hardware threads."""
    monkeypatch.setattr(machine, "ROOT", tmp_path)
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(8)), raising=False)
    monkeypatch.setattr(machine, "_own_limits", lambda: math.inf)

    def make(files: dict[str, str]) -> None:
        cores = {
            f"sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list": f"{cpu % 4},{cpu % 4 + 4}\n"
            for cpu in range(8)
        }
        for name, text in ({"proc/meminfo": "MemTotal: 9 kB\nMemAvailable:  8388608 kB\n"} | cores | files).items():
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_text(text)

    return make


VERSION_2 = "30 23 0:26 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate\n"
VERSION_1 = (
    "33 31 0:30 / /sys/fs/cgroup/cpu,cpuacct rw,relatime - cgroup cgroup rw,cpu,cpuacct\n"
    "35 31 0:32 /docker/abc /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory\n"
)


def test_without_control_groups_the_machine_is_what_there_is(made: Made) -> None:
    made({})
    assert machine.free_memory() == 8192 * MIB
    assert machine.physical_cores() == 4
    assert machine.logical_cores() == 8


def test_a_container_of_version_2_limits_cores_and_memory(made: Made) -> None:
    made(
        {
            "proc/self/mountinfo": VERSION_2,
            "proc/self/cgroup": "0::/\n",
            "sys/fs/cgroup/cpu.max": "150000 100000\n",
            "sys/fs/cgroup/memory.max": f"{512 * MIB}\n",
            "sys/fs/cgroup/memory.current": f"{300 * MIB}\n",
            "sys/fs/cgroup/memory.stat": f"anon {180 * MIB}\ninactive_file {100 * MIB}\nactive_file {20 * MIB}\n",
        }
    )
    assert machine.free_memory() == (512 - 300 + 100) * MIB
    assert machine.cpu_quota() == 1.5
    assert machine.physical_cores() == machine.logical_cores() == 2


def test_the_tightest_of_nested_groups_counts(made: Made) -> None:
    made(
        {
            "proc/self/mountinfo": VERSION_2,
            "proc/self/cgroup": "0::/user.slice/job.scope\n",
            "sys/fs/cgroup/user.slice/cpu.max": "100000 100000\n",
            "sys/fs/cgroup/user.slice/job.scope/cpu.max": "max 100000\n",
            "sys/fs/cgroup/user.slice/memory.max": f"{1024 * MIB}\n",
            "sys/fs/cgroup/user.slice/memory.current": f"{900 * MIB}\n",
            "sys/fs/cgroup/user.slice/job.scope/memory.max": f"{600 * MIB}\n",
            "sys/fs/cgroup/user.slice/job.scope/memory.current": f"{100 * MIB}\n",
        }
    )
    assert machine.free_memory() == 124 * MIB
    assert machine.physical_cores() == 1


def test_a_container_of_version_1_limits_cores_and_memory(made: Made) -> None:
    # Docker without a namespace of groups: the memory group is mounted at the top, its path is still the host's.
    made(
        {
            "proc/self/mountinfo": VERSION_1,
            "proc/self/cgroup": "4:memory:/docker/abc\n1:cpu,cpuacct:/docker/abc\n0::/\n",
            "sys/fs/cgroup/cpu,cpuacct/docker/abc/cpu.cfs_quota_us": "300000\n",
            "sys/fs/cgroup/cpu,cpuacct/docker/abc/cpu.cfs_period_us": "100000\n",
            "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us": "-1\n",
            "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us": "100000\n",
            "sys/fs/cgroup/memory/memory.limit_in_bytes": f"{400 * MIB}\n",
            "sys/fs/cgroup/memory/memory.usage_in_bytes": f"{150 * MIB}\n",
            "sys/fs/cgroup/memory/memory.stat": f"inactive_file 0\ntotal_inactive_file {50 * MIB}\n",
        }
    )
    assert machine.free_memory() == 300 * MIB
    assert machine.physical_cores() == 3


def test_no_limit_and_damaged_files_limit_nothing(made: Made) -> None:
    made(
        {
            "proc/self/mountinfo": VERSION_2 + VERSION_1 + "broken\n",
            "proc/self/cgroup": "0::/\n4:memory:/\nbroken\n",
            "sys/fs/cgroup/cpu.max": "max 100000\n",
            "sys/fs/cgroup/memory.max": "max\n",
            "sys/fs/cgroup/memory.current": f"{99999 * MIB}\n",
            "sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n",
            "sys/fs/cgroup/memory/memory.usage_in_bytes": "nonsense\n",
        }
    )
    assert machine.free_memory() == 8192 * MIB
    assert machine.physical_cores() == 4


def test_what_the_kernel_does_not_tell_is_none_and_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "ROOT", tmp_path)  # as on macOS, or where /proc/self/status has no VmHWM
    assert machine.held_memory() == 0
    assert machine.free_memory() > 2**20
    assert machine.physical_cores() >= 1
    peak = machine.peak_memory()
    assert peak is None or peak > 10 * MIB


def test_a_limit_of_the_address_space_counts() -> None:
    resource = pytest.importorskip("resource")
    if not Path("/proc/self/status").exists():
        pytest.skip("only Linux says how much of it is taken")
    code = (
        "import resource; resource.setrlimit(resource.RLIMIT_AS, (2**29, 2**29));"
        "from evitseg.system.machine import free_memory; print(free_memory())"
    )
    free = int(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout)
    assert resource.RLIM_INFINITY
    assert 2**28 < free < 2**29
