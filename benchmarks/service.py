"""`evitseg serve` under load: throughput, overload, and memory over many mixed requests.

    python benchmarks/service.py

The service runs in a process of its own, the client in this one; both are on this machine. Throughput: the same files
as masks, by the service and by what `evitseg predict FOLDER` does, in turns; medians. Overload: four times as many
requests per second as the service answers. Memory: images of many sizes and formats, every kind of answer, and one
request in five hostile (no image, truncated, too large, wrong parameters, broken HTTP, hang-ups).
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import io
import itertools
import json
import random
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import folder
from contest import RESULTS
from PIL import Image

import evitseg
from evitseg.bundled import EXAMPLE_IMAGE
from evitseg.system.files import replacing
from evitseg.system.machine import physical_cores, processor_name

CONNECTIONS = 4
"""Connections of the client that measures throughput."""
MOST_OPEN = 400
"""Most requests that are open at the same time under overload."""
OVERLOAD = 4
FILE_SIZE = (480, 640)


@dataclass
class Served:
    """A service in a process of its own."""

    process: subprocess.Popen[bytes]
    port: int

    async def metrics(self) -> dict[str, float]:
        status, body = await ask(self.port, b"GET /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        assert status == 200
        lines = (line.rsplit(" ", 1) for line in body.decode().splitlines() if not line.startswith("#"))
        return {name: float(value) for name, value in lines}

    async def resident_mib(self) -> float:
        return (await self.metrics())["process_resident_memory_bytes"] / 2**20


@contextlib.contextmanager
def service(*options: str) -> Iterator[Served]:
    command = [sys.executable, "-m", "evitseg", "serve", "--port", "0", *options]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        assert process.stdout is not None
        lines = (process.stdout.readline() for _ in range(2))
        found = next(match for line in lines if (match := re.search(rb"http://127.0.0.1:(\d+)", line)))
        try:
            yield Served(process, int(found[1]))
        finally:
            process.terminate()
            assert process.wait(30) == 0, "the service did not end with exit status 0"


def request(body: bytes, kind: str = "image/jpeg", query: str = "", accept: str = "*/*", close: bool = True) -> bytes:
    head = (
        f"POST /v1/segment{query} HTTP/1.1\r\nHost: localhost\r\nContent-Type: {kind}\r\nAccept: {accept}\r\n"
        f"Content-Length: {len(body)}\r\n{'Connection: close' if close else 'X: y'}\r\n\r\n"
    )
    return head.encode() + body


async def ask(port: int, sent: bytes, hang_up: bool = False) -> tuple[int, bytes]:
    """Status and body of the answer on a connection of its own; status 0 if there is none."""
    try:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
    except OSError:
        return 0, b""
    try:
        writer.write(sent)
        await writer.drain()
        if hang_up:
            return 0, b""
        return await answer(reader)
    except OSError:
        return 0, b""
    finally:
        writer.close()


async def answer(reader: asyncio.StreamReader) -> tuple[int, bytes]:
    try:
        head = await reader.readuntil(b"\r\n\r\n")
        length = re.search(rb"content-length: (\d+)", head, re.IGNORECASE)
        body = await reader.readexactly(int(length[1])) if length else await reader.read()
    except asyncio.IncompleteReadError:
        return 0, b""
    return int(head.split()[1]), body


async def throughput(port: int, bodies: Sequence[bytes], count: int) -> float:
    """Answers per second on a few connections, each with one request at a time."""
    todo = iter(range(count))

    async def connection() -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=2**22)
        for i in todo:
            writer.write(request(bodies[i % len(bodies)], close=False))
            status, _ = await answer(reader)
            assert status == 200, status
        writer.close()

    start = time.perf_counter()
    await asyncio.gather(*(connection() for _ in range(CONNECTIONS)))
    return count / (time.perf_counter() - start)


def compare_with_predict(rounds: int) -> dict[str, Any]:
    """Masks of the same files by the service and by predict, in turns."""
    segment = evitseg.load(streams=min(physical_cores(), 4))
    with tempfile.TemporaryDirectory() as name, service() as served:
        images = folder.files(Path(name), FILE_SIZE, 48)
        bodies = [image.read_bytes() for image in images]
        contestants: dict[str, Callable[[], float]] = {
            "evitseg serve": lambda: asyncio.run(throughput(served.port, bodies, len(bodies))),
            "evitseg predict FOLDER": folder.whole(segment, images, Path(name, "masks"), overlay=False),
        }
        rates: dict[str, list[float]] = {key: [] for key in contestants}
        for turn in range(rounds + 1):
            for key in random.Random(turn).sample(list(contestants), len(contestants)):
                rate = contestants[key]()
                if turn:
                    rates[key].append(rate)
    medians = {key: statistics.median(values) for key, values in rates.items()}
    ratios = [a / b for a, b in zip(*rates.values(), strict=True)]
    return {"images_per_s": medians, "ratio": statistics.median(ratios), "engine": str(segment.info)}


@dataclass
class Tally:
    """What happened to many requests."""

    statuses: Counter[int] = field(default_factory=Counter)
    milliseconds: dict[int, list[float]] = field(default_factory=dict)

    def add(self, status: int, seconds: float) -> None:
        self.statuses[status] += 1
        self.milliseconds.setdefault(status, []).append(1000 * seconds)

    def median_ms(self, status: int) -> float:
        return statistics.median(self.milliseconds.get(status, [float("nan")]))


async def overload(served: Served, bodies: Sequence[bytes], rate: float, seconds: float) -> dict[str, Any]:
    """Send requests at a fixed rate, whether or not earlier ones have been answered."""
    tally, open_requests = Tally(), set[asyncio.Task[None]]()
    before, peak, skipped = await served.resident_mib(), 0.0, 0

    async def one(i: int) -> None:
        start = time.perf_counter()
        status, _ = await ask(served.port, request(bodies[i % len(bodies)]))
        tally.add(status, time.perf_counter() - start)

    start = time.perf_counter()
    for i in range(int(rate * seconds)):
        await asyncio.sleep(max(0.0, start + i / rate - time.perf_counter()))
        if len(open_requests) >= MOST_OPEN:
            skipped += 1
            continue
        task = asyncio.ensure_future(one(i))
        open_requests.add(task)
        task.add_done_callback(open_requests.discard)
        if i % 50 == 0:
            peak = max(peak, await served.resident_mib())
    await asyncio.gather(*open_requests)
    return {
        "asked_per_s": rate,
        "statuses": dict(sorted(tally.statuses.items())),
        "answered_per_s": tally.statuses[200] / (time.perf_counter() - start),
        "median_ms": {status: tally.median_ms(status) for status in sorted(tally.statuses)},
        "not_sent": skipped,
        "resident_mib": {"before": before, "peak": peak, "after": await served.resident_mib()},
    }


def overloaded(rate: float, seconds: float) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as name, service() as served:
        bodies = [image.read_bytes() for image in folder.files(Path(name), FILE_SIZE, 16)]
        asyncio.run(throughput(served.port, bodies, 100))  # warm
        return asyncio.run(overload(served, bodies, rate, seconds))


ANSWERS = ("image/png", "application/json", "image/jpeg", "image/webp", "application/octet-stream")
FORMATS = {"JPEG": "image/jpeg", "PNG": "image/png", "WEBP": "image/webp", "TIFF": "image/tiff", "BMP": "image/bmp"}


def mixed(count: int) -> Iterator[tuple[bytes, bool]]:
    """Requests, and whether the client hangs up after them; every fifth is hostile."""
    dice = random.Random(0)
    with Image.open(EXAMPLE_IMAGE) as file:
        source = file.convert("RGB")
    hostile: list[Callable[[bytes], tuple[bytes, bool]]] = [
        lambda image: (request(b"%PDF-1.7" + image), False),
        lambda image: (request(image[: len(image) // 2]), False),
        lambda image: (request(image)[: -len(image) // 2], True),
        lambda image: (request(image)[: -len(image) // 2], False),
        lambda image: (request(image), True),
        lambda image: (request(image, "text/html"), False),
        lambda image: (request(image, query="?size=-1&nothing=%00"), False),
        lambda image: (request(image, accept="text/html"), False),
        lambda image: (request(image, "multipart/form-data; boundary=x"), False),
        lambda image: (b"POST /v1/segment HTTP/1.1\r\nContent-Length: 99999999999\r\n\r\n", False),
        lambda image: (b"GET /" + b"../" * 50 + b"etc/passwd HTTP/1.1\r\nHost: localhost\r\n\r\n", False),
        lambda image: (b"GET / HTTP/1.1\r\nX: " + b"y" * 40_000, False),
        lambda image: (b"\x16\x03\x01 this is not HTTP\r\n\r\n", False),
        lambda image: (
            request(b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR\0\0\xff\xff\0\0\xff\xff\x08\x02\0\0\0" + bytes(64)), False
        ),
    ]  # fmt: skip
    for i in range(count):
        width, height = (int(40 * 50 ** dice.random()) for _ in range(2))
        name = dice.choice(list(FORMATS))
        content = io.BytesIO()
        source.resize((width, height), reducing_gap=2).save(content, name)
        image = content.getvalue()
        if i % 5 == 4:
            yield hostile[i // 5 % len(hostile)](image)
        else:
            query = dice.choice(["", "?size=256", "?size=512"])
            yield request(image, FORMATS[name], query, dice.choice(ANSWERS)), False


async def soak(served: Served, count: int) -> dict[str, Any]:
    statuses: Counter[int] = Counter()
    resident: list[tuple[int, float]] = []
    requests = mixed(count)

    async def client(todo: Iterator[tuple[bytes, bool]]) -> None:
        for sent, hang_up in todo:
            status, _ = await ask(served.port, sent, hang_up)
            statuses[status] += 1

    while sum(statuses.values()) < count:
        todo = itertools.islice(requests, 100)
        await asyncio.gather(*(client(todo) for _ in range(4)))
        # Now no request is open: this is what the service keeps.
        resident.append((sum(statuses.values()), await served.resident_mib()))
    return {"requests": count, "statuses": dict(sorted(statuses.items())), "resident_mib": resident}


def soaked(count: int) -> dict[str, Any]:
    """The growth from the first quarter, when caches are full, to the end: medians over a tenth of the requests."""
    with service("--max-pixels", "20000000", "--timeout", "3") as served:
        result = asyncio.run(soak(served, count))
        metrics = asyncio.run(served.metrics())
    values = [mib for _, mib in sorted(result["resident_mib"])]
    few = max(1, len(values) // 10)
    begin = statistics.median(values[len(values) // 4 : len(values) // 4 + few])
    result["growth"] = statistics.median(values[-few:]) / begin - 1
    result["answered_500"] = sum(
        value for name, value in metrics.items() if name.startswith("evitseg_requests_total") and 'status="500"' in name
    )
    return result


PARTS = ("throughput", "overload", "memory")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=PARTS, help="measure one part, and keep the other results")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--seconds", type=float, default=20)
    parser.add_argument("--requests", type=int, default=2000)
    arguments = parser.parse_args()
    file = RESULTS / "service.json"
    content: dict[str, Any] = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    for part in PARTS if arguments.only is None else (arguments.only,):
        if part == "throughput":
            content[part] = compare_with_predict(arguments.rounds)
        elif part == "overload":
            content[part] = overloaded(
                OVERLOAD * content["throughput"]["images_per_s"]["evitseg serve"], arguments.seconds
            )
        else:
            content[part] = soaked(arguments.requests)
        content[part]["machine"] = {"processor": processor_name(), "cores": physical_cores()}
        print(json.dumps({part: content[part]}, indent=2))
    with replacing(file) as stream:
        stream.write((json.dumps(content, indent=2) + "\n").encode())


if __name__ == "__main__":
    main()
