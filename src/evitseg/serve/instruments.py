"""What the service counts and measures, for Prometheus."""

from __future__ import annotations

from collections.abc import Mapping

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info, ProcessCollector, generate_latest

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)


class Instruments:
    """Counters, gauges and histograms of one service, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "evitseg_requests", "Requests answered.", ["endpoint", "status"], registry=self.registry
        )
        self.request_seconds = Histogram(
            "evitseg_request_seconds", "Time from header to answer.", ["endpoint"], buckets=_SECONDS,
            registry=self.registry,
        )  # fmt: skip
        self.stage_seconds = Histogram(
            "evitseg_stage_seconds", "Time of an image per stage.", ["stage"], buckets=_SECONDS, registry=self.registry
        )
        self.pixels = Counter("evitseg_pixels", "Pixels of segmented images.", registry=self.registry)
        self.shed = Counter("evitseg_shed", "Requests and connections refused.", ["reason"], registry=self.registry)
        self.dropped = Counter(
            "evitseg_dropped", "Work given up because its client had left or waited too long.", registry=self.registry
        )
        self.waiting = Gauge("evitseg_queue_waiting", "Images that wait for a thread.", registry=self.registry)
        self.running = Gauge("evitseg_running", "Images that threads work on.", registry=self.registry)
        self.upload_bytes = Gauge("evitseg_upload_bytes", "Bytes of bodies in memory.", registry=self.registry)
        self._build = Info("evitseg_build", "Version, model and engine.", registry=self.registry)
        ProcessCollector(registry=self.registry)

    def describe(self, facts: Mapping[str, str]) -> None:
        """State version, model and engine."""
        self._build.info(dict(facts))

    def text(self) -> bytes:
        """All values in Prometheus's text format."""
        return generate_latest(self.registry)
