"""Monitoring of a service: metrics, drift, and alerts by the thresholds of the settings."""

import logging
import math
import threading
import time
from collections import defaultdict, deque
from collections.abc import Callable, Iterator
from dataclasses import asdict
from functools import partial
from typing import Any

import jax
import numpy as np
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from instructrec_jax.distributed.compilations import Compilations
from instructrec_jax.service.alerts import Alerts, Notice
from instructrec_jax.service.drift import Drift, Finding, read_reference, smallest_distance
from instructrec_jax.service.engine import Engine
from instructrec_jax.service.exchange import Exchange
from instructrec_jax.service.memory import device_memory, machine_memory
from instructrec_jax.service.metrics import Metrics, Named
from instructrec_jax.service.models import Served, Service
from instructrec_jax.service.monitoring_settings import DriftConfig, check_monitoring
from instructrec_jax.service.webhooks import Webhook

logger = logging.getLogger(__name__)
RECENT = 10_000  # requests per model that the thresholds look at


class Monitoring:
    """Watches a service from `start` to `close`.

    Raises ValueError for settings that cannot be, a damaged predictions.jsonl of a served run, or a webhook without its
    secret.
    """

    def __init__(self, service: Service, clock: Callable[[], float] = time.monotonic):
        self.service, self.config, self._clock = service, service.config.monitoring, clock
        check_monitoring(self.config)
        self.webhooks = [Webhook(hook, number) for number, hook in enumerate(self.config.webhooks)]
        self.alerts = Alerts([hook.send for hook in self.webhooks])
        self.metrics = Metrics(self._parts, self._of_service, self._of_drift)
        for model in service.models.values():
            service.drifts[model.name] = open_drift(
                model, self.config.drift, partial(tell_drift, self.alerts, model.name)
            )
        self._recent: dict[str, deque[tuple[float, float, bool]]] = defaultdict(lambda: deque(maxlen=RECENT))
        self._lock, self._stop = threading.Lock(), threading.Event()
        self._thread = threading.Thread(target=self._run, name="monitoring", daemon=True)
        self._ends: list[Callable[[], None]] = []
        self._compilations = Compilations()
        self._compiled_before: int | None = None  # the service was ready

    def observe(self, exchange: Exchange) -> None:
        """Counts a request that has ended."""
        self.metrics.observe(exchange)
        if exchange.model:
            seconds = exchange.seconds if exchange.first is None else exchange.first
            with self._lock:
                self._recent[exchange.model].append((self._clock(), seconds, exchange.status >= 500))

    def at_end(self, end: Callable[[], None]) -> None:
        """Also call this at the end."""
        self._ends.append(end)

    def start(self) -> None:
        self._compilations.__enter__()
        self._thread.start()

    def warmed_up(self) -> None:
        """Every shape is compiled: programs compiled from now on are late."""
        self._compiled_before = self._compilations.count

    def close(self) -> None:
        """Ends the threads, once they have sent what waits."""
        self._stop.set()
        self._thread.join()
        self._compilations.__exit__(None, None, None)
        for end in (*(hook.close for hook in self.webhooks), *self._ends):
            end()

    def _run(self) -> None:
        while not self._stop.wait(self.config.every):
            try:
                self.check()
            except Exception:  # the next check may work, and without this thread there would be no alerts at all
                logger.exception("a check of the thresholds failed.")

    # ---------------------------------------------------------------- thresholds

    def check(self) -> None:
        """Compares the present values with the thresholds."""
        for model in list(self.service.models):
            self._check_requests(model)
        queues = self.config.thresholds.queue
        filled: dict[str, float] = defaultdict(float)
        for model, _, found in self._parts():
            if found.get("queue"):
                filled[model] = max(filled[model], found.get("waiting", 0) / found["queue"])
        for model, share in filled.items():
            self._update("queue", model, share, queues, f"{share:.0%} of the queue is taken")
        shares = [found["used"] / found["limit"] for each in jax.local_devices() if (found := device_memory(each))]
        share = max((each for each in (*shares, machine_memory()) if not math.isnan(each)), default=0.0)
        self._update("memory", "", share, self.config.thresholds.memory, f"{share:.0%} of the memory is in use")

    def _check_requests(self, model: str) -> None:
        limits = self.config.thresholds
        with self._lock:
            recent, since = self._recent[model], self._clock() - limits.period
            while recent and recent[0][0] < since:
                recent.popleft()
            seconds = np.array([each[1] for each in recent])
            errors = sum(each[2] for each in recent)
        count = len(seconds)
        if 0 < count < limits.least:
            return
        rate = errors / max(count, 1)
        p95 = float(np.quantile(seconds, 0.95)) if count else 0.0
        of = f"of {count:,} requests in {limits.period:g} s"
        self._update("error_rate", model, rate, limits.error_rate, f"{rate:.1%} errors {of}")
        self._update("latency", model, p95, limits.latency_p95, f"95% {of} were answered within {p95:.2f} s")

    def _update(self, alert: str, model: str, value: float, threshold: float | None, text: str) -> None:
        if threshold is not None:
            self.alerts.update(alert, model, value=value, threshold=threshold, text=text)

    # ---------------------------------------------------------------- metrics

    def _parts(self) -> Iterator[Named]:
        for model, served in self.service.models.items():
            for ability, queue in served.queues.items():
                yield model, ability, queue.stats()
            if served.writes is not None:
                yield model, "engine", engine_counts(served.writes.engine)

    def _of_service(self) -> Iterator[Metric]:
        yield GaugeMetricFamily("instructrec_ready", "1 once every shape is compiled.", value=int(self.service.ready))
        compiled = self._compilations
        late = 0 if self._compiled_before is None else compiled.count - self._compiled_before
        for name, text, value in (
            ("compilations", "Programs compiled by this process since the start.", compiled.count),
            ("late_compilations", "Programs compiled after the service was ready, for which a request waited.", late),
            ("compile_seconds", "Seconds spent compiling.", compiled.seconds),
        ):
            yield CounterMetricFamily(f"instructrec_{name}", text, value=value)
        firing = GaugeMetricFamily(
            "instructrec_alert_firing", "1 while an alert of this service fires.", labels=["alert", "model"]
        )
        for (alert, model), fires in self.alerts.firing().items():
            firing.add_metric([alert, model], int(fires))
        yield firing
        notices = CounterMetricFamily(
            "instructrec_notices", "Notices to a webhook (its number), sent or dropped.", labels=["webhook", "result"]
        )
        for number, hook in enumerate(self.webhooks):
            for result in ("sent", "dropped"):
                notices.add_metric([str(number), result], hook.counts[result])
        yield notices

    def _of_drift(self) -> Iterator[Metric]:
        cases = GaugeMetricFamily(
            "instructrec_drift_reference_cases", "Cases that drift is measured against; 0: none.", labels=["model"]
        )
        windows = CounterMetricFamily("instructrec_drift_windows", "Windows compared.", labels=["model"])
        distance = GaugeMetricFamily(
            "instructrec_drift_distance", "Distance of the last window, 0 to 1.", labels=["model", "what"]
        )
        excess = GaugeMetricFamily(
            "instructrec_drift_excess",
            "By which factor the last window is beyond threshold and chance; above 1: drift.",
            labels=["model", "what"],
        )
        for model, drift in self.service.drifts.items():
            cases.add_metric([model], drift.reference.cases if drift.reference else 0)
            windows.add_metric([model], drift.windows)
            for each in drift.latest:
                distance.add_metric([model, each.what], each.distance)
                excess.add_metric([model, each.what], each.excess)
        yield from (cases, windows, distance, excess)


def engine_counts(engine: Engine[Any]) -> dict[str, float]:
    """The counts of an engine by the names of `STATS`."""
    found = engine.stats()
    room = found.steps * found.slots
    return {
        "waiting": found.queued,
        "queue": engine.settings.queue,
        "running": found.active,
        "batches": found.steps,
        "batch_rows": round(found.batch_fill * room),
        "batch_room": room,
        "cache_hits": found.prefix_hits,
        "cache_misses": found.prefix_misses,
    }


def tell_drift(alerts: Alerts, model: str, findings: list[Finding]) -> Notice | None:
    """Updates the alert `drift` of a model with the findings of a window; returns its notice, if there is one.

    The four distributions are one alert, because what moves one usually moves another.
    """
    if not findings:
        return None
    worst = max(findings, key=lambda each: each.excess)
    moved = [each for each in findings if each.excess > 1] or [worst]
    text = "; ".join(f"{each.what} at distance {each.distance:.2f} ({each.detail})" for each in moved)
    details = [asdict(each) for each in findings]
    return alerts.update(
        "drift", model, value=worst.excess, threshold=1.0, recovery=0.5, mean_of=4, text=text, details=details
    )


def open_drift(model: Served, config: DriftConfig, seen: Callable[[list[Finding]], object]) -> Drift:
    """The watch over a model, against the predictions.jsonl of its run; logs what it can see."""
    if not config.reference:
        return Drift()
    path = model.run.path / "predictions.jsonl"
    reference = read_reference(path, config.reference, getattr(model.run.task, "labels", None) or ())
    if reference is None:
        logger.info("drift of %s is not watched: %s is not there (an evaluation writes it).", model.name, path)
        return Drift()
    least = smallest_distance(reference.cases, config)
    logger.log(
        logging.WARNING if least > 0.5 else logging.INFO,
        "drift of %s: %d cases of its evaluation; distances from %.2f are seen in %d answers.",
        model.name,
        reference.cases,
        least,
        config.window,
    )
    return Drift(reference, config, seen)
