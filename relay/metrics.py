"""Prometheus metrics of this process. Labels name no key, account or model's text that a client could invent.

What every call counts is kept in plain numbers and told when somebody asks: the library's counters take a lock and
five function calls each.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator
from itertools import accumulate

from prometheus_client import REGISTRY, Counter, Gauge
from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from relay.call import Record

IN_FLIGHT = Gauge("baton_calls_in_flight", "Calls in flight in this process.")
DRAINING = Gauge("baton_calls_draining", "Calls in flight whose client has left.")
TASKS = Gauge("baton_asyncio_tasks", "Tasks of this process's event loop; as many as before when no call is in flight.")
WAITING = Gauge("baton_journal_waiting_entries", "Finished records that the database does not have yet.")
OLDEST = Gauge("baton_journal_oldest_seconds", "Age of the oldest record that the database does not have yet.")
UNAUTHENTICATED = Counter("baton_unauthenticated_total", "Requests without a usable key; they leave no record.")
BUCKETS = (0.1, 0.3, 1, 3, 10, 30, 100, 300, 1000)  # seconds


class Ended(Collector):
    """The calls that ended, by how, and what they used. Counted by the event loop's thread alone."""

    def __init__(self) -> None:
        self.calls: dict[tuple[str, str, str], int] = {}
        self.cost: dict[str, int] = {}
        self.output: dict[str, int] = {}
        self.durations: dict[str, list[int]] = {}  # calls by bucket, the last one behind all bounds
        self.seconds: dict[str, float] = {}

    def collect(self) -> Iterator[Metric]:
        calls = CounterMetricFamily(
            "baton_calls", "Calls that ended, by how.", labels=["dialect", "provider", "status"]
        )
        for labels, number in list(self.calls.items()):
            calls.add_metric(labels, number)
        yield calls
        cost = CounterMetricFamily("baton_cost_nanodollars", "Booked cost in nano-dollars.", labels=["provider"])
        for provider, number in list(self.cost.items()):
            cost.add_metric([provider], number)
        yield cost
        output = CounterMetricFamily("baton_output_tokens", "Booked output tokens.", labels=["provider"])
        for provider, number in list(self.output.items()):
            output.add_metric([provider], number)
        yield output
        durations = HistogramMetricFamily("baton_call_duration_seconds", "Duration of calls.", labels=["dialect"])
        for dialect, numbers in list(self.durations.items()):
            bounds = [*(str(float(bound)) for bound in BUCKETS), "+Inf"]
            buckets = list(zip(bounds, accumulate(numbers), strict=True))
            durations.add_metric([dialect], buckets, self.seconds[dialect])
        yield durations


ENDED = Ended()
REGISTRY.register(ENDED)


def count(record: Record) -> None:
    """Count one ended call."""
    key = (record.dialect, record.provider, record.status)
    ENDED.calls[key] = ENDED.calls.get(key, 0) + 1
    if record.cost_nanos:
        ENDED.cost[record.provider] = ENDED.cost.get(record.provider, 0) + record.cost_nanos
    if record.output_tokens:
        ENDED.output[record.provider] = ENDED.output.get(record.provider, 0) + record.output_tokens
    if record.duration_ms is not None:
        dialect, seconds = record.dialect, record.duration_ms / 1000
        if dialect not in ENDED.durations:
            ENDED.seconds[dialect] = 0.0  # first: whoever collects meanwhile goes by the other
            ENDED.durations[dialect] = [0] * (len(BUCKETS) + 1)
        ENDED.durations[dialect][bisect_left(BUCKETS, seconds)] += 1
        ENDED.seconds[dialect] += seconds
