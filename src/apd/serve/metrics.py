"""What a server counts, in the format of Prometheus."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from apd.util.versions import __version__

_SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256)
_SECONDS = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30)


class Metrics:
    """Counters of one application."""

    def __init__(self) -> None:
        self._registry = known = CollectorRegistry()
        self._requests = Counter("apd_requests", "Requests to classify, by HTTP status.", ["status"], registry=known)
        self._seconds = Histogram("apd_request_seconds", "Duration of a request.", buckets=_SECONDS, registry=known)
        self._images = Counter("apd_images", "Images classified.", registry=known)
        self._abstained = Counter("apd_abstained", "Images without a class: below the threshold.", registry=known)
        self._sizes = Histogram("apd_batch_size", "Images per call of the model.", buckets=_SIZES, registry=known)
        self._model = Histogram(
            "apd_model_seconds", "Duration of a call of the model.", buckets=_SECONDS, registry=known
        )
        self._mean = Gauge("apd_batch_size_mean", "Mean number of images per call of the model.", registry=known)
        self._waiting = Gauge("apd_images_waiting", "Images that wait for the model.", registry=known)
        self._info = Gauge("apd_info", "1; the labels say what is served.", ["version", "classes"], registry=known)
        self._temperature = Gauge(
            "apd_temperature", "Temperature of the probabilities; 1: not calibrated.", registry=known
        )
        self._batches = self._classified = 0

    def describe(self, classes: int, temperature: float, waiting: Callable[[], float]) -> None:
        """Say what is served, and where to look for the images that wait."""
        self._info.labels(__version__, str(classes)).set(1)
        self._temperature.set(temperature)
        self._waiting.set_function(waiting)

    def batch(self, size: int, seconds: float) -> None:
        """Count a call of the model; from its thread alone."""
        self._batches += 1
        self._classified += size
        self._images.inc(size)
        self._sizes.observe(size)
        self._model.observe(seconds)
        self._mean.set(self._classified / self._batches)

    def request(self, status: int, seconds: float) -> None:
        """Count a request to classify."""
        self._requests.labels(str(status)).inc()
        self._seconds.observe(seconds)

    def abstained(self) -> None:
        """Count an image without a class."""
        self._abstained.inc()

    def text(self) -> str:
        """All of it, as Prometheus reads it."""
        return generate_latest(self._registry).decode()
