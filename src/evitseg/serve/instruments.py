"""What the service counts and measures, for Prometheus."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypedDict

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info, ProcessCollector, generate_latest

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)


class _Own(TypedDict):
    """What all instruments of a service have in common."""

    registry: CollectorRegistry


class Instruments:
    """Counters, gauges and histograms of one service, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        own: _Own = {"registry": self.registry}
        self.requests = Counter("evitseg_requests", "Requests answered.", ["endpoint", "status"], **own)
        self.request_seconds = Histogram(
            "evitseg_request_seconds", "Time from header to answer.", ["endpoint"], buckets=_SECONDS,
            **own,
        )  # fmt: skip
        self.stage_seconds = Histogram(
            "evitseg_stage_seconds", "Time of an image per stage.", ["stage"], buckets=_SECONDS, **own
        )
        self.pixels = Counter("evitseg_pixels", "Pixels of segmented images.", **own)
        self.shed = Counter("evitseg_shed", "Requests and connections refused.", ["reason"], **own)
        self.dropped = Counter(
            "evitseg_dropped", "Work given up because its client had left or waited too long.", **own
        )
        self.waiting = Gauge("evitseg_queue_waiting", "Images that wait for a thread.", **own)
        self.running = Gauge("evitseg_running", "Images that threads work on.", **own)
        self.upload_bytes = Gauge("evitseg_upload_bytes", "Bytes of bodies in memory.", **own)
        self._build = Info("evitseg_build", "Version, model and engine.", **own)
        ProcessCollector(**own)

    def describe(self, facts: Mapping[str, str]) -> None:
        """State version, model and engine."""
        self._build.info(dict(facts))

    def text(self) -> bytes:
        """All values in Prometheus's text format."""
        return generate_latest(self.registry)
