"""Several machines, two of which are lost in the middle of the work: is the mask still that of one machine?

    sudo python benchmarks/cluster_nodes.py

Each machine of the Ray cluster is a network namespace with an address of its own; the head is also the router between
them. The driver runs beside the head. While an image goes through the network, all processes of one machine are killed,
and later another one is cut off from the network. Mask, sums and counts are compared with those of one process. Needs
root, and the program `ip` (Debian's iproute2). Namespaces and processes are removed at the end.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from contest import RESULTS
from large_images import BUNDLED, Mosaic

from evitseg import cluster
from evitseg.raster.window import ArraySink, ArraySource
from evitseg.system.files import replacing
from evitseg.system.machine import processor_name
from evitseg.tiling.network import Network
from evitseg.tiling.progress import BandProgress
from evitseg.tiling.stream import segment_large

_NAME = f"evs{os.getpid()}"
_SUBNET = "10.213.77"
_PORT = 6379
_HEALTH = {
    "RAY_health_check_initial_delay_ms": "2000",
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_timeout_ms": "1000",
    "RAY_health_check_failure_threshold": "10",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_AUTH_MODE": "disabled",  # nobody else reaches these machines
}
"""A lost machine is noticed after about ten seconds."""
_ENVIRONMENT = {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")} | _HEALTH
"""Without proxies, which these machines do not reach."""


def ip(*arguments: str) -> str:
    done = subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True)
    return done.stdout


def in_machine(number: int, *command: str) -> list[str]:
    """A command that runs in a machine."""
    return ["ip", "netns", "exec", f"{_NAME}n{number}", *command]


def address(number: int) -> str:
    return f"{_SUBNET}.{number + 1}"


@contextlib.contextmanager
def machines(count: int) -> Iterator[None]:
    """Namespaces with an address each; the first one connects the others, as a router does."""
    made = []
    try:
        for number in range(count):
            ip("netns", "add", f"{_NAME}n{number}")
            made.append(number)
            ip("-n", f"{_NAME}n{number}", "link", "set", "lo", "up")
        ip("-n", f"{_NAME}n0", "addr", "add", f"{address(0)}/32", "dev", "lo")
        for number in range(1, count):
            head, own, cable = f"{_NAME}n0", f"{_NAME}n{number}", f"v{number}"
            ip("link", "add", cable, "netns", head, "type", "veth", "peer", "net", "netns", own)
            ip("-n", head, "link", "set", cable, "up")
            ip("-n", own, "link", "set", "net", "up")
            ip("-n", own, "addr", "add", f"{address(number)}/32", "dev", "net")
            ip("-n", head, "route", "add", f"{address(number)}/32", "dev", cable, "src", address(0))
            ip("-n", own, "route", "add", f"{address(0)}/32", "dev", "net", "src", address(number))
            ip("-n", own, "route", "add", "default", "via", address(0), "dev", "net", "src", address(number))
        subprocess.run(in_machine(0, "sh", "-c", "echo 1 > /proc/sys/net/ipv4/ip_forward"), check=True)
        yield
    finally:
        for number in made:
            kill(number)
            ip("netns", "del", f"{_NAME}n{number}")


def kill(number: int) -> None:
    """End all processes of a machine at once."""
    for _ in range(20):
        running = [int(each) for each in ip("netns", "pids", f"{_NAME}n{number}").split()]
        if not running:
            return
        for each in running:
            with contextlib.suppress(ProcessLookupError):
                os.kill(each, signal.SIGKILL)
        time.sleep(0.1)


def start_ray(count: int, folder: Path) -> None:
    """A head without slots, and machines with one slot each."""
    ray = str(Path(sys.executable).with_name("ray"))
    common = [ray, "start", "--object-store-memory=200000000", "--disable-usage-stats"]
    head = ["--head", f"--port={_PORT}", "--num-cpus=0", "--include-dashboard=false", f"--temp-dir={folder}"]
    for number in range(count):
        own = head if number == 0 else [f"--address={address(0)}:{_PORT}", "--num-cpus=1"]
        command = in_machine(number, *common, f"--node-ip-address={address(number)}", *own)
        subprocess.run(command, check=True, env=_ENVIRONMENT, stdout=subprocess.DEVNULL)


def drive(side: int, folder: Path, events: dict[int, str]) -> None:
    """Segment an image on the cluster, alone as well, and print what differs as JSON.

    Args:
        events: what to say on standard output when a segment of the network begins.
    """
    image = ArraySource(Mosaic(side).read(0, 0, side, side))
    network = Network(BUNDLED, "float32")
    here, there = ArraySink((side, side)), ArraySink((side, side))
    expected = segment_large(network, image, here, band=512, scratch=folder)
    said = set[int]()

    def watch(progress: BandProgress) -> None:
        if progress.segment in events and progress.segment not in said:
            said.add(progress.segment)
            print(events[progress.segment], flush=True)
            sys.stdin.readline()  # until it is done

    with cluster.connected(f"{address(0)}:{_PORT}"):
        import ray

        nodes: list[dict[str, Any]] = ray.nodes()  # type: ignore[no-untyped-call]
        before = sum(node["Alive"] for node in nodes)
        found = cluster.segment_large_on_ray(network, image, there, band=512, scratch=folder, watch=watch)
        nodes = ray.nodes()  # type: ignore[no-untyped-call]
        after = sum(node["Alive"] for node in nodes)
    assert expected.context is not None
    assert found.context is not None
    different = [int((a != b).sum()) for a, b in zip(found.context.sums, expected.context.sums, strict=True)]
    print(
        json.dumps(
            {
                "side": side,
                "machines_before": before,
                "machines_after": after,
                "events": len(said),
                "different_pixels": int((here.mask != there.mask).sum()),
                "different_sums": sum(different),
                "different_counts": int(np.abs(found.counts - expected.counts).sum()),
            }
        )
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--side", type=int, default=4096)
    parser.add_argument("--machines", type=int, default=4, help="with the head, which does not compute")
    parser.add_argument("--drive", metavar="FOLDER", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.drive:
        drive(options.side, Path(options.drive), {0: "kill", 5: "cut"})
        return 0
    last, found = options.machines - 1, dict[str, Any]()
    with tempfile.TemporaryDirectory(prefix="evs", dir="/tmp") as folder, machines(options.machines):
        start_ray(options.machines, Path(folder))
        command = in_machine(0, sys.executable, __file__, "--drive", folder, "--side", str(options.side))
        with subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=_ENVIRONMENT
        ) as driver:
            assert driver.stdout is not None
            assert driver.stdin is not None
            for line in driver.stdout:
                if line == "kill\n":
                    kill(last)
                    print(f"all processes of machine {last} were killed", flush=True)
                elif line == "cut\n":
                    subprocess.run(in_machine(last - 1, "ip", "link", "set", "net", "down"), check=True)
                    print(f"machine {last - 1} was cut off from the network", flush=True)
                elif line.startswith("{"):
                    found = json.loads(line)
                    continue
                else:
                    continue
                driver.stdin.write("done\n")
                driver.stdin.flush()
        if driver.returncode:
            return driver.returncode
    print(found)
    with replacing(RESULTS / "cluster_nodes.json") as file:
        file.write(json.dumps({"processor": processor_name(), **found}, indent=2).encode() + b"\n")
    return 1 if found["different_pixels"] or found["different_sums"] or found["different_counts"] else 0


if __name__ == "__main__":
    sys.exit(main())
