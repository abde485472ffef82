"""Prometheus metrics of this process. Labels name no key, account or model's text that a client could invent."""

from __future__ import annotations

from functools import cache

from prometheus_client import Counter, Gauge, Histogram

from relay.call import Record

CALLS = Counter("baton_calls_total", "Calls that ended, by how.", ["dialect", "provider", "status"])
COST = Counter("baton_cost_nanodollars_total", "Booked cost in nano-dollars.", ["provider"])
OUTPUT = Counter("baton_output_tokens_total", "Booked output tokens.", ["provider"])
DURATION = Histogram(
    "baton_call_duration_seconds", "Duration of calls.", ["dialect"], buckets=(0.1, 0.3, 1, 3, 10, 30, 100, 300, 1000)
)
IN_FLIGHT = Gauge("baton_calls_in_flight", "Calls in flight in this process.")
DRAINING = Gauge("baton_calls_draining", "Calls in flight whose client has left.")
TASKS = Gauge("baton_asyncio_tasks", "Tasks of this process's event loop; as many as before when no call is in flight.")
WAITING = Gauge("baton_journal_waiting_entries", "Finished records that the database does not have yet.")
OLDEST = Gauge("baton_journal_oldest_seconds", "Age of the oldest record that the database does not have yet.")
UNAUTHENTICATED = Counter("baton_unauthenticated_total", "Requests without a usable key; they leave no record.")


# Looking a child up takes a lock and longer than counting. There are as many as there are label values, which are few.
@cache
def calls_of(dialect: str, provider: str, status: str) -> Counter:
    return CALLS.labels(dialect, provider, status)


@cache
def cost_of(provider: str) -> Counter:
    return COST.labels(provider)


@cache
def output_of(provider: str) -> Counter:
    return OUTPUT.labels(provider)


@cache
def duration_of(dialect: str) -> Histogram:
    return DURATION.labels(dialect)


def count(record: Record) -> None:
    """Count one ended call."""
    calls_of(record.dialect, record.provider, record.status).inc()
    if record.cost_nanos:
        cost_of(record.provider).inc(record.cost_nanos)
    if record.output_tokens:
        output_of(record.provider).inc(record.output_tokens)
    if record.duration_ms is not None:
        duration_of(record.dialect).observe(record.duration_ms / 1000)
