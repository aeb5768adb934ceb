"""What the service counts, for Prometheus."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

_SECONDS = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10)
_IMAGES = (1, 2, 4, 8, 16, 32, 64)


class Metrics:
    """Counters of one service, in a registry of their own."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self.requests = Counter(
            "mousetwin_requests",
            "Requests answered, by protocol, call and gRPC status name.",
            ["protocol", "call", "code"],
            registry=self._registry,
        )
        self.request_seconds = Histogram(
            "mousetwin_request_seconds",
            "Time from a request's first byte read to its answer handed over.",
            ["protocol", "call"],
            buckets=_SECONDS,
            registry=self._registry,
        )
        self.images = Counter("mousetwin_images", "Images the engine ran.", ["mouse", "model"], registry=self._registry)
        self.run_seconds = Histogram(
            "mousetwin_run_seconds",
            "Time of one engine run.",
            ["mouse", "model"],
            buckets=_SECONDS,
            registry=self._registry,
        )
        self.run_images = Histogram(
            "mousetwin_run_images",
            "Images in one engine run.",
            ["mouse", "model"],
            buckets=_IMAGES,
            registry=self._registry,
        )
        self.queued = Gauge(
            "mousetwin_queued_images", "Images waiting for the engine.", ["mouse", "model"], registry=self._registry
        )

        self.refused = Gauge(
            "mousetwin_refused_bundles",
            "Bundles that were found and are not served: 1 each.",
            ["mouse", "model", "version"],
            registry=self._registry,
        )

    def expose(self) -> bytes:
        """The Prometheus text format."""
        return generate_latest(self._registry)
