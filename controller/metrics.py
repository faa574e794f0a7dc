"""Metrics for Prometheus: counters and histograms of this controller's requests, gauges of the last pool view."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence, Sized
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from itertools import accumulate
from typing import Literal

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    Info,
    ProcessCollector,
    generate_latest,
)
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

from app.clock import PoolClock
from app.ledger.wire import BatchHead
from app.redis import keys
from app.unreadable import WHATS, Unreadable
from app.worker_record import by_queue, followed_version
from controller.batch_files.batch_files import BatchFigures
from controller.events import Accepted, Completed
from controller.operate.wanted_replicas import wanted_replicas
from controller.pool_watcher import PoolView, PoolWatcher
from modelyard.schemas import FINAL_STATUSES, Status

LATENCY_BUCKETS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
_BOUNDS_S = (*LATENCY_BUCKETS_S, math.inf)
BATCH_BUCKETS_JOBS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)


WebhookOutcome = Literal["delivered", "retried", "failed"]
LABELS = ("worker", "model", "version")
_Labels = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _OfQueue:
    """The series of one queue, cached because a look-up by labels takes as long as counting."""

    labels: _Labels
    batch_jobs: Histogram
    dispatch: Histogram
    jobs: Mapping[Status, Counter]
    failures: Counter


class Metrics:
    """All series of one controller. Labels come only from known sets: model versions, outcomes, error codes."""

    def __init__(
        self,
        watcher: PoolWatcher,
        clock: PoolClock,
        unreadable: Unreadable,
        waiting: Sized,
        longest_wait_s: float,
    ) -> None:
        registry = self._registry = CollectorRegistry()
        self._watcher, self._clock = watcher, clock
        self._seen: dict[str, _OfQueue] = {}
        self._end_to_end = Latencies(
            "modelyard_end_to_end_latency_seconds",
            "Time from a request's arrival to the receipt of its outcome",
        )
        registry.register(self._end_to_end)
        self._end_to_end_last = Gauge(
            "modelyard_end_to_end_latency_last_seconds",
            "End-to-end latency of the job whose outcome arrived last",
            LABELS,
            registry=registry,
        )
        counter = partial(Counter, registry=registry)
        self._jobs = counter(
            "modelyard_jobs", "Jobs by outcome, as received by this controller", [*LABELS, "outcome"]
        )
        self._failures = counter(
            "modelyard_version_failures",
            "Failed jobs without those whose input was refused, as received by this controller",
            LABELS,
        )
        histogram = partial(Histogram, labelnames=LABELS, registry=registry)
        self._batch_jobs = histogram(
            "modelyard_batch_jobs", "Jobs per batch sent", buckets=BATCH_BUCKETS_JOBS
        )
        self._dispatch = histogram(
            "modelyard_dispatch_latency_seconds",
            "Time from closing a batch to storing it",
            buckets=LATENCY_BUCKETS_S,
        )
        self._rejected = counter(
            "modelyard_requests_rejected", "Requests answered with a problem document", ["code"]
        )
        self._webhooks = counter(
            "modelyard_webhooks",
            "Attempts of this controller to deliver a job to its callback_url, by what came of them",
            ["outcome"],
        )
        self._losses = counter(
            "modelyard_ledger_losses", "Losses of confirmed data by Redis, as detected by this controller"
        )
        ProcessCollector(registry=registry)
        Info("modelyard_build", "Release of this controller", registry=registry).info(
            {"version": version("modelyard")}
        )
        registry.register(_PoolCollector(watcher, clock, waiting, longest_wait_s))
        registry.register(_UnreadableCollector(unreadable))

    def add_batch_files(self, figures: BatchFigures) -> None:
        """Tell of batches of files too."""
        self._registry.register(_BatchFilesCollector(figures))

    def accepted(self, event: Accepted) -> None:
        """Count an accepted batch."""
        head = event.accept.batch.head
        own = self._seen.get(head.queue) or self._of(head)
        own.batch_jobs.observe(len(head.jobs))
        own.dispatch.observe(event.took_s)

    def completed(self, event: Completed) -> None:
        """Count the outcomes of a batch."""
        heard_at_ms = self._clock.ms_at(event.heard_at_s)
        own = self._seen.get(event.head.queue) or self._of(event.head)
        latencies_s = [max(0.0, heard_at_ms - job.received_at_ms) / 1000 for job in event.head.jobs]
        self._end_to_end.observe(own.labels, latencies_s)
        # Not cached in `own`: the series exists only after the first value.
        self._end_to_end_last.labels(*own.labels).set(latencies_s[-1])
        statuses = [job.status for job in event.outcome.jobs]
        for status in set(statuses):
            own.jobs[status].inc(statuses.count(status))
        own.failures.inc(event.n_version_failures)

    def _of(self, head: BatchHead) -> _OfQueue:
        labels = _labels(head.worker, head.queue)
        own = self._seen[head.queue] = _OfQueue(
            labels,
            batch_jobs=self._batch_jobs.labels(*labels),
            dispatch=self._dispatch.labels(*labels),
            jobs={status: self._jobs.labels(*labels, status) for status in FINAL_STATUSES},
            failures=self._failures.labels(*labels),
        )
        return own

    def rejected(self, code: str) -> None:
        """Count a request that was answered with a problem document."""
        self._rejected.labels(code).inc()

    def webhook(self, outcome: WebhookOutcome) -> None:
        """Count an attempt to deliver a webhook."""
        self._webhooks.labels(outcome).inc()

    def ledger_lost(self) -> None:
        """Count a loss of Redis's data."""
        self._losses.inc()

    def exposition(self) -> bytes:
        """All series in Prometheus's text format; series of removed workers are dropped first."""
        view = self._watcher.view
        for queue in self._seen.keys() - {record.queue for record in view.records} - view.backlog_jobs.keys():
            labels = self._seen.pop(queue).labels
            for series in (
                self._end_to_end,
                self._end_to_end_last,
                self._failures,
                self._batch_jobs,
                self._dispatch,
            ):
                series.remove(*labels)
            for outcome in FINAL_STATUSES:
                self._jobs.remove(*labels, outcome)
        return generate_latest(self._registry)


class Latencies(Collector):
    """A histogram by model version that is updated once per batch: prometheus-client's histogram takes 2 µs per value.

    Args:
        name: Name of the series, without Prometheus's suffixes.
        text: Help text.
    """

    def __init__(self, name: str, text: str) -> None:
        self._name = name
        self._text = text
        self._counts: dict[_Labels, list[int]] = {}
        self._sums_s: dict[_Labels, float] = {}

    def observe(self, labels: _Labels, latencies_s: Sequence[float]) -> None:
        """Count latencies, in seconds."""
        counts = self._counts.get(labels)
        if counts is None:
            counts = self._counts[labels] = [0] * len(_BOUNDS_S)
            self._sums_s[labels] = 0.0
        for latency_s in latencies_s:
            counts[bisect_left(_BOUNDS_S, latency_s)] += 1
        self._sums_s[labels] += sum(latencies_s)

    def remove(self, *labels: str) -> None:
        """Remove the series of a model version."""
        self._counts.pop(labels, None)
        self._sums_s.pop(labels, None)

    def collect(self) -> Iterator[Metric]:
        """The metric family, with one series per model version."""
        family = HistogramMetricFamily(self._name, self._text, labels=LABELS)
        for labels, counts in self._counts.items():
            buckets = zip(map(floatToGoString, _BOUNDS_S), accumulate(counts), strict=True)
            family.add_metric(labels, list(buckets), self._sums_s[labels])
        yield family


class _PoolCollector(Collector):
    """Gauges read from the last pool view, so that removed workers have none."""

    def __init__(self, watcher: PoolWatcher, clock: PoolClock, waiting: Sized, longest_wait_s: float) -> None:
        self._longest_wait_s = longest_wait_s
        self._waiting = waiting
        self._watcher = watcher
        self._clock = clock

    def collect(self) -> Iterator[Metric]:
        """One metric family per gauge, with one series per model version."""
        view, now_ms = self._watcher.view, self._clock.now_ms()
        accuracy = _family("val_accuracy_ratio", "val_accuracy of the worker's model version")
        inference = _family(
            "inference_latency_seconds", "Duration of the last forward pass, as reported by the worker"
        )
        live = _family("live_workers", "Ready workers")
        backlog = _family("backlog_jobs", "Accepted jobs without an outcome")
        oldest = _family("oldest_job_age_seconds", "Age of the oldest accepted job without an outcome")
        wait = _family("expected_wait_seconds", "Expected wait of a job that arrives now")
        wanted = _family("wanted_replicas", "Workers that the load needs, as `GET /scale` tells")
        circuit = _family(
            "circuit_open", "Whether the version's jobs keep failing, as this controller sees it"
        )
        started = _family("worker_start_time_seconds", "Start of the newest serving process, Unix time")
        read = _family("registry_read_age_seconds", "Time since a worker last read the registry's aliases")
        for candidate in view.snapshot.ready_versions:
            wait.add_metric(_labels(candidate.worker, candidate.queue), candidate.expected_wait_ms / 1000)
        groups = by_queue(view.records)
        # Only the replica with the newest heartbeat: two samples of one series would fail the whole scrape.
        for record, *others in groups.values():
            labels = _labels(view.numbers.get(record.queue, record.worker), record.queue)
            if record.val_accuracy is not None:
                accuracy.add_metric(labels, record.val_accuracy)
            if record.inference_ms.last is not None:
                inference.add_metric(labels, record.inference_ms.last / 1000)
            replicas = (record, *others)
            started.add_metric(labels, max(each.started_at_ms for each in replicas) / 1000)
            if read_at_ms := max(each.aliases_read_at_ms for each in replicas):
                read.add_metric(labels, max(0, now_ms - read_at_ms) / 1000)
        for queue in {*groups, *view.backlog_jobs}:
            labels = _labels(view.numbers.get(queue, 0), queue)
            n_live = [record.state for record in groups.get(queue, ())].count("ready")
            n_jobs = view.backlog_jobs.get(queue, 0)
            live.add_metric(labels, n_live)
            backlog.add_metric(labels, n_jobs)
            wanted.add_metric(labels, wanted_replicas(view, queue, self._longest_wait_s))
            age_ms = max(0, now_ms - view.oldest_at_ms[queue]) if queue in view.oldest_at_ms else 0
            oldest.add_metric(labels, age_ms / 1000)
            circuit.add_metric(labels, queue in view.open_circuits)
        yield from (accuracy, inference, live, backlog, oldest, wait, wanted, circuit, started, read)
        failing = _family("version_start_failed", "1 for each wanted version whose workers do not start")
        for queue in view.start_failures:
            failing.add_metric(_labels(view.numbers.get(queue, 0), queue), 1)
        yield failing
        yield _behind(view)
        yield _aliases(view)
        watcher = self._watcher
        text = "Long polls and event streams that wait for an outcome"
        yield _gauge("waiting_callers", text, len(self._waiting))
        yield _gauge("redis_up", "Whether Redis answers and accepts writes", watcher.reachable)
        yield _gauge("redis_memory_bytes", "Memory that Redis uses", watcher.memory_bytes)
        yield _gauge(
            "redis_memory_max_bytes",
            "Memory that Redis may use; 0 if it has no limit",
            watcher.max_memory_bytes,
        )


class _UnreadableCollector(Collector):
    """Counts of unreadable records and messages in this process."""

    def __init__(self, unreadable: Unreadable) -> None:
        self._unreadable = unreadable

    def collect(self) -> Iterator[Metric]:
        """One metric family, with one series per kind."""
        family = CounterMetricFamily(
            "modelyard_unreadable", "Unreadable data in Redis, as found by this controller", labels=["what"]
        )
        for what in WHATS:
            family.add_metric((what,), self._unreadable.counts[what])
        yield family


class _BatchFilesCollector(Collector):
    """Batches of files in this controller's folder, and the rows that its own processes have finished."""

    def __init__(self, figures: BatchFigures) -> None:
        self._figures = figures

    def collect(self) -> Iterator[Metric]:
        """A gauge by status and a counter by outcome."""
        text = "Batches of files that have not ended, in this controller's folder"
        open_batches = GaugeMetricFamily("modelyard_batch_files", text, labels=["status"])
        for status in ("waiting", "running"):
            open_batches.add_metric((status,), self._figures.by_status[status])
        text = "Rows of batches of files that were finished by this controller"
        rows = CounterMetricFamily("modelyard_batch_file_rows", text, labels=["outcome"])
        rows.add_metric(("predicted",), self._figures.predicted)
        rows.add_metric(("failed",), self._figures.failed)
        yield from (open_batches, rows)


def _behind(view: PoolView) -> GaugeMetricFamily:
    """Workers whose alias names another version, which is being loaded or cannot be served."""
    family = GaugeMetricFamily(
        "modelyard_alias_behind_workers",
        "Workers that follow an alias and serve another version than it names now",
        labels=[*LABELS, "alias"],
    )
    counts: dict[_Labels, int] = {}
    for record in view.records:
        if record.follows and record.state != "draining":
            number = view.numbers.get(record.queue, record.worker)
            labels = (*_labels(number, record.queue), record.follows)
            is_behind = followed_version(record) not in (0, record.model_version)
            counts[labels] = counts.get(labels, 0) + is_behind
    for labels, count in counts.items():
        family.add_metric(labels, count)
    return family


def _aliases(view: PoolView) -> GaugeMetricFamily:
    """The aliases of the served versions, to be joined with other series."""
    family = GaugeMetricFamily(
        "modelyard_version_alias_info", "1 for each alias of a served version", labels=[*LABELS, "alias"]
    )
    for queue in {record.queue for record in view.records}:
        name, version = keys.model_of(queue)
        for alias, named in view.snapshot.aliases.get(name, {}).items():
            if named == version:
                family.add_metric((*_labels(view.numbers.get(queue, 0), queue), alias), 1)
    return family


def _labels(number: int, queue: str) -> _Labels:
    name, version = keys.model_of(queue)
    return str(number), name, str(version)


def _family(name: str, text: str) -> GaugeMetricFamily:
    return GaugeMetricFamily(f"modelyard_{name}", text, labels=LABELS)


def _gauge(name: str, text: str, value: float) -> GaugeMetricFamily:
    return GaugeMetricFamily(f"modelyard_{name}", text, value=value)
