"""Prometheus metrics: of requests, counted as they end, and of the models, read when they are scraped.

A label's value is the name of a route, a model, a key or one of this module's own words, so that their number is
bounded and nothing that a user sent is among them.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping

import jax
from prometheus_client import CollectorRegistry, Counter, Histogram, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector

from instructrec_jax.service.exchange import Exchange
from instructrec_jax.service.memory import device_memory, machine_memory

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)

# Name of a count of a queue or an engine -> (counter or gauge, metric, help). All have the labels model and part.
STATS: dict[str, tuple[type[CounterMetricFamily] | type[GaugeMetricFamily], str, str]] = {
    "waiting": (GaugeMetricFamily, "instructrec_queue_waiting", "Requests that wait for their turn."),
    "queue": (GaugeMetricFamily, "instructrec_queue_limit", "Requests that may wait (limits.queue, engine.queue)."),
    "running": (GaugeMetricFamily, "instructrec_running", "Answers that are being written at present."),
    "batches": (
        CounterMetricFamily,
        "instructrec_batches",
        "Calls of a queue's model, or decoding steps of an engine.",
    ),
    "batch_rows": (CounterMetricFamily, "instructrec_batch_rows", "Texts, records or answers in these calls or steps."),
    "batch_room": (CounterMetricFamily, "instructrec_batch_room", "How many there was room for."),
    "cache_hits": (
        CounterMetricFamily,
        "instructrec_cache_hits",
        "Tokens of prompts that were read before (the cache of prefixes).",
    ),
    "cache_misses": (CounterMetricFamily, "instructrec_cache_misses", "Tokens of prompts that had to be read."),
}
Named = tuple[str, str, Mapping[str, float]]  # model, part (a queue's name, "engine"), its counts


class _AtScrape(Collector):
    """Metrics that are read when they are scraped, by functions that yield them."""

    def __init__(self, *sources: Callable[[], Iterable[Metric]]):
        self._sources = sources

    def collect(self) -> Iterator[Metric]:
        for source in self._sources:
            yield from source()


class Metrics:
    """The metrics of one service, in a registry of their own.

    Args:
      parts: the parts of the models, asked at each scrape.
      more: further metrics, asked at each scrape.
    """

    def __init__(self, parts: Callable[[], Iterable[Named]], *more: Callable[[], Iterable[Metric]]):
        self.registry = registry = CollectorRegistry()
        self._parts = parts
        by = ["route", "model"]

        def counter(name: str, text: str, labels: list[str]) -> Counter:
            return Counter(name, text, labels, registry=registry)

        def histogram(name: str, text: str) -> Histogram:
            return Histogram(name, text, by, registry=registry, buckets=SECONDS)

        self._requests = counter("instructrec_requests", "Answered requests.", [*by, "status"])
        self._seconds = histogram("instructrec_request_seconds", "Seconds from the request to the end of its answer.")
        self._first = histogram("instructrec_first_byte_seconds", "Seconds from the request to its first byte.")
        self._tokens = counter("instructrec_tokens", "Tokens, by kind: prompt, completion ...", [*by, "kind"])
        self._items = counter("instructrec_items", "Texts, documents ... in requests, by kind.", [*by, "kind"])
        self._of_keys = counter("instructrec_key_requests", "Answered requests by key.", ["key", "status"])
        self._tokens_of_keys = counter("instructrec_key_tokens", "Tokens by key.", ["key"])
        ProcessCollector(registry=registry)
        registry.register(_AtScrape(self._of_parts, _memory, *more))

    def observe(self, exchange: Exchange) -> None:
        """Counts a request that has ended."""
        by = (exchange.route, exchange.model)
        self._requests.labels(*by, str(exchange.status)).inc()
        self._seconds.labels(*by).observe(exchange.seconds)
        if exchange.first is not None:
            self._first.labels(*by).observe(exchange.first)
        tokens = {name: n for name, n in exchange.counts.items() if name.endswith("_tokens")}
        for name, number in exchange.counts.items():
            if name in tokens:
                self._tokens.labels(*by, name.removesuffix("_tokens")).inc(number)
            else:
                self._items.labels(*by, name).inc(number)
        if exchange.key:
            self._of_keys.labels(exchange.key, str(exchange.status)).inc()
            self._tokens_of_keys.labels(exchange.key).inc(sum(tokens.values()))

    def shown(self, accept: str = "") -> tuple[bytes, str]:
        """(all metrics in the format that an Accept header asks for, its content type)."""
        encode, kind = choose_encoder(accept)
        return encode(self.registry), kind

    def _of_parts(self) -> Iterator[Metric]:
        found = list(self._parts())
        for _, part, stats in found:
            if unknown := sorted(set(stats) - set(STATS)):
                raise ValueError(f"{part} counts {', '.join(unknown)}: name them in STATS of service/metrics.py.")
        for name, (family, metric, text) in STATS.items():
            made = family(metric, text, labels=["model", "part"])
            for model, part, stats in found:
                if name in stats:
                    made.add_metric([model, part], stats[name])
            yield made


def _memory() -> Iterator[Metric]:
    devices = GaugeMetricFamily(
        "instructrec_device_memory_bytes", "Memory of a device, by kind: used, limit.", labels=["device", "kind"]
    )
    for device in jax.local_devices():
        for kind, value in device_memory(device).items():
            devices.add_metric([str(device.id), kind], value)
    share = machine_memory()
    text = "Share of the memory of this machine or container that is in use, 0 to 1."
    yield devices
    yield GaugeMetricFamily("instructrec_machine_memory_share", text, value=share)
